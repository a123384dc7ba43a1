/** Servers for as long as nobody asks them to stop: several transports, one command. */
import {
  Admission,
  type DatagramTransport,
  Dispatch,
  Handler,
  ListenError,
  Logging,
  Metrics,
  Server,
  type StreamTransport,
  Transport,
  WorkerDispatch
} from "@socketserver/core"
import { Control, NodeDispatch, NodeTransport } from "@socketserver/node"
import { Clock, Console, Context, Deferred, Duration, Effect, Layer, Stream } from "effect"
import { join } from "node:path"
import { ownDirectory, pathOf } from "./find.ts"
import { changing } from "./framings.ts"
import type { Handlers, PlainHandler, PortableHandler, Subject, UserModule, Wanted } from "./modules.ts"
import { failure, oneLine, type Problem } from "./problem.ts"
import { firstSignal, unless } from "./signals.ts"
import { isTerminal, ratesSince, statusLine } from "./status.ts"
import { Swap } from "./swap.ts"
import { bytes, clientFor, drained, place } from "./text.ts"

export interface Listen {
  readonly transport: "tcp" | "unix" | "udp" | "unix-datagram"
  /** A port, or a path. */
  readonly at: number | string
}

export interface ServingOptions {
  readonly name: string
  readonly listen: ReadonlyArray<Listen>
  readonly host: string
  readonly dispatch: "serial" | "fiber" | "thread" | "process"
  readonly maxInFlight: number | undefined
  readonly maxWorkers: number | undefined
  readonly maxConnections: number | undefined
  readonly idleTimeout: Duration.Duration | undefined
  readonly tls: { readonly certFile: string; readonly keyFile: string } | undefined
  readonly grace: Duration.Duration | undefined
  readonly kill: Duration.Duration | undefined
  /** A path or a name; `"none"` for no control. */
  readonly control: string | undefined
  /** The port of a page that shows and operates the servers. */
  readonly dashboard: number | undefined
  /** Is the last line a status? Default: in a terminal. */
  readonly status: boolean | undefined
}

/** What is served: a handler, or a module that has one, which may be loaded again. */
export type Source =
  | { readonly handlers: Handlers }
  | { readonly module: UserModule; readonly wanted: Wanted; readonly watch: boolean }

export const isStream = ({ transport }: Listen): boolean => transport === "tcp" || transport === "unix"

/** How the handler of one server runs, and how another takes its place. */
interface Runner {
  readonly prepare: (
    handler: PlainHandler | PortableHandler,
    memoMap: Layer.MemoMap
  ) => ReturnType<Swap<any>["prepare"]>
  readonly serve: (
    transport: Layer.Layer<any>,
    options: Server.ServerOptions
  ) => Layer.Layer<Server.Server, ListenError.ListenError>
}

/** What the handler of a server is given. */
type Kind = "connection" | "packet" | "message"

const serveWith =
  (kind: Kind, handler: any, options: any) =>
  (layer: Layer.Layer<any>): Layer.Layer<Server.Server, ListenError.ListenError> => {
    const serve: (handler: any, options: any) => (layer: any) => any = kind === "connection"
      ? Server.serveStream
      : kind === "packet"
      ? Server.serveDatagram
      : Server.serveMessage
    return serve(handler, options)(layer)
  }

const inline = (options: ServingOptions, kind: Kind, changes: boolean) =>
  Effect.gen(function*() {
    const swap = new Swap<PlainHandler>()
    yield* Effect.addFinalizer(() => swap.release)
    const dispatch = options.dispatch === "serial"
      ? Dispatch.serial()
      : Dispatch.fiberPerRequest({ maxInFlight: options.maxInFlight })
    return {
      prepare: (handler, memoMap) =>
        swap.prepare(
          Handler.isPortable(handler)
            ? Effect.gen(function*() {
              const context = yield* Layer.buildWithMemoMap(handler.layer, memoMap, yield* Effect.scope)
              return (subject: Subject) =>
                Effect.map(
                  Effect.provideContext(handler.handle(subject), context),
                  // The replies to a message, which are still to be made.
                  (value) => Stream.isStream(value) ? Stream.provideContext(value, context) : value
                )
            })
            : Effect.succeed(handler)
        ),
      serve: (transport, server) =>
        serveWith(
          kind,
          changes ? (subject: Subject) => Effect.flatMap(swap.hold, (handler) => handler(subject)) : swap.value,
          server
        )(dispatch(transport))
    } satisfies Runner
  })

/** The number that the strategy has of it. */
const idOf = (request: Parameters<WorkerDispatch.Workers["run"]>[0]): number =>
  request._tag === "Connection"
    ? request.connection.id
    : request._tag === "Datagram"
    ? request.datagram.id
    : request.message.id

const inWorkers = (options: ServingOptions, kind: Kind, workers: "thread" | "process", changes: boolean) =>
  Effect.gen(function*() {
    const swap = new Swap<WorkerDispatch.Workers>()
    yield* Effect.addFinalizer(() => swap.release)
    const inner = Context.get(
      yield* Layer.build(
        NodeDispatch.workerPerRequest({ kind: workers, maxWorkers: options.maxWorkers })(
          Layer.empty as Layer.Layer<any>
        ) as Layer.Layer<WorkerDispatch.WorkerDispatch>
      ),
      WorkerDispatch.WorkerDispatch
    )
    /** A request's handler runs where its place is, whichever workers have come after those. */
    const given = new Map<number, WorkerDispatch.Workers>()
    let first: PortableHandler
    let publish: Parameters<typeof inner.make>[1] | undefined
    let isAwaiting: Parameters<typeof inner.make>[2] | undefined
    const dispatch: WorkerDispatch.WorkerDispatch["Service"] = {
      name: inner.name,
      make: (_, toServer, serverAwaits) =>
        Effect.sync(() => {
          publish = toServer
          isAwaiting = serverAwaits
          if (!changes) return swap.value
          return {
            strategy: (request) =>
              Effect.scoped(Effect.flatMap(swap.hold, (workers) => {
                given.set(request.id, workers)
                return Effect.ensuring(workers.strategy(request), Effect.sync(() => given.delete(request.id)))
              })),
            run: (request) => Effect.suspend(() => given.get(idOf(request))!.run(request)),
            catchUp: () => swap.value.catchUp?.(),
            info: () => swap.value.info()
          }
        })
    }
    return {
      prepare: (handler) => {
        first = handler as PortableHandler
        return swap.prepare(inner.make(first, (event) => publish?.(event), () => isAwaiting?.() === true))
      },
      serve: (transport, server) =>
        serveWith(kind, first, server)(Layer.merge(transport, Layer.succeed(WorkerDispatch.WorkerDispatch, dispatch)))
    } satisfies Runner
  })

const runnerOf = (options: ServingOptions, kind: Kind, changes: boolean) =>
  options.dispatch === "thread" || options.dispatch === "process"
    ? inWorkers(options, kind, options.dispatch, changes)
    : inline(options, kind, changes)

const transportOf = (options: ServingOptions, { at, transport }: Listen) =>
  Effect.gen(function*() {
    const { host, maxConnections, tls } = options
    const limited = <A extends StreamTransport.StreamTransport>(layer: Layer.Layer<A>) =>
      maxConnections === undefined
        ? layer
        : Admission.maxConnections({ max: maxConnections })(layer as any) as typeof layer
    switch (transport) {
      case "tcp": {
        const tcp = limited(NodeTransport.tcp({ host, port: Number(at) }))
        return tls === undefined ? tcp : NodeTransport.tls(tls)(tcp)
      }
      case "unix":
        return limited(NodeTransport.unix({ path: String(at) }))
      case "udp":
        return NodeTransport.udp({ host, port: Number(at) })
      case "unix-datagram": {
        // Has a native part, which not everybody has built.
        const { UnixDatagram } = yield* Effect.tryPromise({
          try: () => import("@socketserver/unix-datagram"),
          catch: (error) => failure(`no unix datagrams here: ${oneLine(error)}`)
        })
        return UnixDatagram.transport({ path: String(at) })
      }
    }
  }) as Effect.Effect<Layer.Layer<StreamTransport.StreamTransport | DatagramTransport.DatagramTransport>, Problem>

/** An option that is wrong has the name that was typed. */
const asTyped = (path: string) => <A, R>(self: Effect.Effect<A, ListenError.ListenError, R>) =>
  Effect.catchReason(self, "ListenError", "InvalidOption", ({ expected, option, value }) => {
    const flags: Readonly<Record<string, string>> = {
      path,
      certFile: "--tls-cert",
      keyFile: "--tls-key",
      idleTimeout: "--idle-timeout"
    }
    return failure(new ListenError.InvalidOption({ option: flags[option] ?? option, value, expected }).message)
  })

/** The socket by which others find this program. Of a second one of a name, the process's number is in it. */
const openControl = Effect.fnUntraced(function*(
  options: ServingOptions,
  servers: Readonly<Record<string, Server.Server["Service"]>>
) {
  if (options.control === "none") return undefined
  const open = (path: string) => Effect.as(asTyped("--control")(Control.make({ path, servers })), path)
  if (options.control?.includes("/") === true) return yield* open(yield* pathOf(options.control))
  const directory = yield* ownDirectory
  const name = options.control ?? options.name
  return yield* open(join(directory, `${name}.sock`)).pipe(
    Effect.catchReason("ListenError", "AddressInUse", (_, error) => {
      if (options.control !== undefined) return Effect.fail(error)
      return open(join(directory, `${name}-${process.pid}.sock`))
    })
  )
})

/**
 * What the handlers need is built, once for all servers of the command. The first of these handlers is that of the server. They
 * are in place when the effect that this gives has run.
 */
const prepareAll = (
  servers: ReadonlyArray<{ readonly listen: Listen; readonly runner: Runner }>,
  handlers: Handlers
) =>
  Effect.gen(function*() {
    const memoMap = Layer.makeMemoMapUnsafe()
    const prepared: Array<Effect.Success<ReturnType<Runner["prepare"]>>> = []
    for (const { listen, runner } of servers) {
      const handler = isStream(listen) ? handlers.stream : handlers.datagram
      prepared.push(
        yield* runner.prepare(handler!, memoMap).pipe(
          Effect.onError(() => Effect.forEach(prepared, ({ discard }) => discard, { discard: true }))
        )
      )
    }
    return Effect.forEach(prepared, ({ commit }) => commit, { discard: true })
  })

/** The steps of a server's life are said by the command itself, in its own words; all else as any server logs it. */
const logging: Logging.Logging = {
  log: (event, server) => {
    switch (event._tag) {
      case "Listening":
        return event.after === "suspended" ? Console.log(`${server}: listening again`) : Effect.void
      case "Suspended":
        return Console.log(`${server}: suspended`)
      case "Draining":
      case "Stopped":
        return Effect.void
      default:
        return Logging.lines.log(event, server)
    }
  }
}

/** Serves until it is asked to stop, or all servers have been drained; then drains what is left, and says how that went. */
export const serving = (options: ServingOptions, source: Source): Effect.Effect<void, unknown> =>
  Effect.scoped(Effect.gen(function*() {
    let restore: (() => void) | undefined
    const asked = yield* firstSignal(() => restore?.())
    const watches = "module" in source && source.watch
    if (watches) yield* source.module.reloading
    const unlessAsked = unless(asked)
    const handlers = "module" in source ? yield* unlessAsked(source.module.load(source.wanted)) : source.handlers

    let framing = handlers.framing
    const framed = framing === undefined ? undefined : Transport.framed(watches ? changing(() => framing!) : framing)
    const unbuilt: Array<{ readonly listen: Listen; readonly runner: Runner }> = []
    for (const listen of options.listen) {
      const kind = framing !== undefined ? "message" : isStream(listen) ? "connection" : "packet"
      unbuilt.push({ listen, runner: yield* runnerOf(options, kind, watches) })
    }
    yield* unlessAsked(Effect.flatten(prepareAll(unbuilt, handlers)))

    const servers: Record<string, Server.Server["Service"]> = {}
    const stopped: Array<Effect.Effect<void>> = []
    for (const { listen, runner } of unbuilt) {
      let name: string = listen.transport
      for (let n = 2; servers[name] !== undefined; n++) name = `${listen.transport}-${n}`
      const transport = yield* transportOf(options, listen)
      const layer = runner.serve(framed === undefined ? transport : framed(transport), {
        name,
        shutdown: { grace: options.grace, kill: options.kill },
        ...isStream(listen) ? { idleTimeout: options.idleTimeout } : {}
      })
      const server = Context.get(
        // The durations on the page are of the metrics.
        yield* unlessAsked(
          Layer.build(options.dashboard === undefined ? layer : Layer.provide(layer, Metrics.layer())).pipe(
            asTyped(`--${listen.transport}`)
          )
        ),
        Server.Server
      )
      const isStopped = Deferred.makeUnsafe<void>()
      stopped.push(Deferred.await(isStopped))
      // Whoever drains it: this is where it is noticed, and said.
      servers[name] = {
        ...server,
        drain: (deadlines) =>
          Effect.tap(
            server.drain(deadlines),
            (report) =>
              Effect.suspend(() =>
                Deferred.doneUnsafe(isStopped, Effect.void)
                  ? Console.log(drained(name, { ...report, elapsedMs: Duration.toMillis(report.elapsed) }))
                  : Effect.void
              )
          )
      }
    }
    const control = yield* openControl(options, servers)
    const page = options.dashboard === undefined
      ? undefined
      : yield* (yield* Effect.promise(() => import("./dashboard.ts"))).openDashboard(options.dashboard, servers)

    // From before anybody is told that it serves.
    if (watches) {
      const replace = (handlers: Handlers) =>
        Effect.gen(function*() {
          if ((handlers.framing === undefined) !== (framing === undefined)) {
            return yield* failure(
              "a handler with a framing and one without cannot take each other's place: start it anew"
            )
          }
          const commit = yield* prepareAll(unbuilt, handlers)
          framing = handlers.framing
          yield* commit
        })
      yield* Effect.forkScoped(reloads(source, replace), { startImmediately: true })
    }
    for (const [index, [name, { address }]] of Object.entries(servers).entries()) {
      const { transport } = options.listen[index]!
      const client = clientFor(address, transport === "tcp" && options.tls !== undefined ? "tls" : transport)
      yield* Console.log(`${options.name}: listening on ${place(address)} (${name}): ${client}`)
    }
    if (control !== undefined) yield* Console.log(`${options.name}: controlled at ${control}`)
    if (page !== undefined) yield* Console.log(`${options.name}: dashboard at ${page}`)
    yield* Console.log("Ctrl-C drains; a second one ends at once.")

    if (options.status ?? isTerminal()) {
      const line = yield* statusLine
      restore = line.hide
      yield* Effect.forkScoped(keepStatus(servers, line.show))
    }

    yield* Effect.raceFirst(asked, Effect.all(stopped, { concurrency: "unbounded" }))
    // Also where one was drained already: the answer to whoever has asked for that is on its way.
    yield* Effect.forEach(Object.values(servers), (server) => server.drain(), {
      concurrency: "unbounded",
      discard: true
    })
  })).pipe(Effect.provideService(Logging.Log, logging))

const keepStatus = (servers: Readonly<Record<string, Server.Server["Service"]>>, show: (line: string) => void) => {
  const rates = ratesSince()
  const look = Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const parts: Array<string> = []
    for (const [name, server] of Object.entries(servers)) {
      const stats = yield* server.stats
      const rate = rates(name, stats, now)
      parts.push(
        `${name} ${yield* server.status}: ${stats.open} open, ${stats.inFlight} in flight, ${
          rate.accepted.toFixed(0)
        }/s, ` +
          `in ${bytes(rate.bytesRead)}/s, out ${bytes(rate.bytesWritten)}/s`
      )
    }
    show(parts.join(" | "))
  })
  return Effect.andThen(look, Effect.sleep("1 second")).pipe(Effect.forever)
}

/** A module that is broken changes nothing. */
const reloads = (
  { module, wanted }: Extract<Source, { readonly watch: boolean }>,
  replace: (handlers: Handlers) => Effect.Effect<void, unknown>
) =>
  Effect.gen(function*() {
    const nextChange = yield* module.changes
    return yield* Effect.forever(Effect.gen(function*() {
      yield* nextChange
      yield* Effect.flatMap(module.load(wanted), replace).pipe(
        Effect.matchEffect({
          onSuccess: () => Console.log(`${module.name}: loaded again; new requests get the new handler`),
          onFailure: (error) =>
            Console.error(`${module.name}: not loaded, the handler from before goes on: ${oneLine(error)}`)
        })
      )
    }))
  })
