/**
 * Control is a second way into a running server, for whoever operates it: a unix socket beside it, where one asks what it does,
 * and tells it to suspend, to close a connection, to drain. Only the user that the program runs as may connect. A request is a
 * line of JSON, and so is an answer, so `nc -U` is a client; `ControlClient` is another one, and the command `socketserver` is
 * made of it.
 *
 * **Protocol**
 *
 * A request is an object with `do`, and with the `server` that is meant if there are several. Each has one answer, in order:
 * `{"ok":true,"value":…}` or `{"ok":false,"code":"…","error":"…"}`. Some have items before it, `{"item":…}`, one a line.
 *
 * | `do`          | with                                       | `value`, items                                        |
 * | ------------- | ------------------------------------------ | ----------------------------------------------------- |
 * | `servers`     |                                            | all servers: {@link ServerView}                       |
 * | `info`        |                                            | one: {@link ServerView}                               |
 * | `stats`       |                                            | `Server.Stats`                                        |
 * | `connections` | `where`                                    | an item for each: {@link ConnectionView}; how many    |
 * | `close`       | `id`, or `where`                           | how many                                              |
 * | `suspend`     |                                            |                                                       |
 * | `resume`      |                                            |                                                       |
 * | `drain`       | `graceMs`, `killMs`                        | when it is done, {@link DrainView}                    |
 * | `limits`      |                                            | each by its name                                      |
 * | `limit`       | `name`, `value`                            |                                                       |
 * | `events`      |                                            | an item for each: {@link EventView}                   |
 * | `top`         | `everyMs`, 100 to 3,600,000, default 1,000 | an item each time: {@link TopView}                    |
 *
 * `where` is {@link Where}. `events` and `top` go on until the server has stopped, or the client sends another line or finishes.
 *
 * @since 0.1.0
 */
import * as Admission from "@socketserver/core/Admission"
import type { CloseReason } from "@socketserver/core/CloseReason"
import type { Connection } from "@socketserver/core/Connection"
import type { ConnectionError } from "@socketserver/core/ConnectionError"
import * as Dispatch from "@socketserver/core/Dispatch"
import type { ListenError } from "@socketserver/core/ListenError"
import * as Server from "@socketserver/core/Server"
import type { DrainReport, ServerEvent } from "@socketserver/core/ServerEvent"
import { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as IpNetwork from "effect/net/IpNetwork"
import * as NetAddress from "effect/net/NetAddress"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  addressOf,
  named,
  plain,
  type Servers,
  viewOfAnnotations,
  viewOfConnection,
  viewOfServer
} from "./internal/views.ts"
import { unix } from "./NodeTransport.ts"

// ---- requests

/**
 * Which connections are meant: those for which all holds that is given.
 *
 * @category models
 * @since 0.1.0
 */
export const Where = Schema.Struct({
  /** An address, with or without its port, a network such as `10.0.0.0/8`, or the path of a unix client. */
  peer: Schema.optionalKey(Schema.String),
  state: Schema.optionalKey(Schema.Literals(["admitting", "queued", "handling", "closing"])),
  /** At least so old. */
  olderThanMs: Schema.optionalKey(Schema.Finite),
  /** What handlers have noted; other values than strings as `String` has them. */
  annotations: Schema.optionalKey(Schema.Record(Schema.String, Schema.String))
})

/** @category models @since 0.1.0 */
export type Where = typeof Where.Type

const server = Schema.optionalKey(Schema.String)
const millis = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 31 - 1 }))

const requests = {
  servers: Schema.Struct({ do: Schema.Literal("servers") }),
  info: Schema.Struct({ do: Schema.Literal("info"), server }),
  stats: Schema.Struct({ do: Schema.Literal("stats"), server }),
  connections: Schema.Struct({ do: Schema.Literal("connections"), server, where: Schema.optionalKey(Where) }),
  close: Schema.Struct({
    do: Schema.Literal("close"),
    server,
    id: Schema.optionalKey(Schema.Int),
    where: Schema.optionalKey(Where)
  }),
  suspend: Schema.Struct({ do: Schema.Literal("suspend"), server }),
  resume: Schema.Struct({ do: Schema.Literal("resume"), server }),
  drain: Schema.Struct({
    do: Schema.Literal("drain"),
    server,
    graceMs: Schema.optionalKey(millis),
    killMs: Schema.optionalKey(millis)
  }),
  limits: Schema.Struct({ do: Schema.Literal("limits"), server }),
  limit: Schema.Struct({ do: Schema.Literal("limit"), server, name: Schema.String, value: Schema.Finite }),
  events: Schema.Struct({ do: Schema.Literal("events"), server }),
  top: Schema.Struct({
    do: Schema.Literal("top"),
    everyMs: Schema.optionalKey(Schema.Finite.check(Schema.isBetween({ minimum: 100, maximum: 3_600_000 })))
  })
}

type Requests = { readonly [Do in keyof typeof requests]: (typeof requests)[Do]["Type"] }

/**
 * What can be asked.
 *
 * @category models
 * @since 0.1.0
 */
export type Request = Requests[keyof Requests]

// ---- answers

/**
 * A server.
 *
 * @category models
 * @since 0.1.0
 */
export interface ServerView {
  readonly name: string
  readonly address: string
  readonly transport: string
  readonly strategy: string
  readonly status: Server.Status
  readonly limits: Readonly<Record<string, number>>
  /** Its workers, where requests run in workers. */
  readonly workers?: { readonly kind: string; readonly busy: number; readonly idle: number; readonly crashed: number }
  /** The process that it runs in. */
  readonly pid: number
}

/**
 * A connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConnectionView {
  readonly id: number
  readonly peer: string
  readonly local: string
  readonly state: Server.ConnectionInfo["state"]
  readonly ageMs: number
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly annotations: Readonly<Record<string, unknown>>
}

/**
 * The report of a drain.
 *
 * @category models
 * @since 0.1.0
 */
export interface DrainView extends Omit<DrainReport, "elapsed"> {
  readonly elapsedMs: number
}

/**
 * What happened: a `ServerEvent`, of which addresses are strings, times are milliseconds, and causes are messages.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventView {
  readonly event: ServerEvent["_tag"]
  readonly [detail: string]: unknown
}

/**
 * All servers at a time.
 *
 * @category models
 * @since 0.1.0
 */
export interface TopView {
  readonly servers: ReadonlyArray<ServerView & { readonly stats: Server.Stats }>
}

/**
 * What each request is answered with: its value.
 *
 * @category models
 * @since 0.1.0
 */
export interface Values {
  readonly servers: ReadonlyArray<ServerView>
  readonly info: ServerView
  readonly stats: Server.Stats
  readonly connections: number
  readonly close: number
  readonly suspend: null
  readonly resume: null
  readonly drain: DrainView
  readonly limits: Readonly<Record<string, number>>
  readonly limit: null
  readonly events: null
  readonly top: null
}

/**
 * The items of the requests that have some.
 *
 * @category models
 * @since 0.1.0
 */
export interface Items {
  readonly connections: ConnectionView
  readonly events: EventView
  readonly top: TopView
}

/**
 * Why a request was not done.
 *
 * - `InvalidRequest`: it is no JSON, has no such `do`, or something in it is wrong
 * - `UnknownServer`, `WhichServer`: there is no server of that name; there are several, and none is named
 * - `UnknownLimit`, `InvalidValue`: there is no limit of that name; it does not take this value
 * - `CannotListen`: `resume` could not bind
 * - `Busy`: too many are connected to the control already
 *
 * @category models
 * @since 0.1.0
 */
export type Code =
  | "InvalidRequest"
  | "UnknownServer"
  | "WhichServer"
  | "UnknownLimit"
  | "InvalidValue"
  | "CannotListen"
  | "Busy"

class Problem extends Data.TaggedError("Problem")<{ readonly code: Code; readonly message: string }> {}

// ---- views

const oneLine = (text: string): string => text.replaceAll(/\s*\n\s*/g, "; ").slice(0, 1_000)

const messageOf = (cause: unknown): string =>
  oneLine(
    Cause.isCause(cause)
      ? Cause.prettyErrors(cause).map(({ message }) => message).join("; ")
      : cause instanceof Error
      ? cause.message
      : String(cause)
  )

const viewOfReport = ({ elapsed, ...counts }: DrainReport): DrainView => ({
  ...counts,
  elapsedMs: Math.round(Duration.toMillis(elapsed))
})

const viewOfReason = (reason: CloseReason): object => {
  switch (reason._tag) {
    case "Refused":
      return { reason: reason._tag, policy: reason.policy }
    case "HandshakeFailed":
    case "HandlerFailed":
    case "WorkerCrashed":
      return { reason: reason._tag, cause: messageOf(reason.cause) }
    case "TransportFailed":
      return { reason: reason._tag, cause: messageOf(reason.error) }
    default:
      return { reason: reason._tag }
  }
}

const viewOfEvent = (event: ServerEvent): EventView => {
  switch (event._tag) {
    case "Listening":
      return { event: event._tag, address: addressOf(event.address), after: event.after }
    case "Accepted":
      return { event: event._tag, id: event.id, peer: addressOf(event.peer) }
    case "Failed":
      return {
        event: event._tag,
        level: event.level,
        kind: event.kind,
        id: event.id,
        peer: addressOf(event.peer),
        ...viewOfReason(event.reason),
        cause: messageOf(event.cause),
        annotations: viewOfAnnotations(event.annotations)
      }
    case "Closed":
      return {
        event: event._tag,
        kind: event.kind,
        id: event.id,
        peer: addressOf(event.peer),
        ...viewOfReason(event.reason),
        durationMs: Math.round(Duration.toMillis(event.duration)),
        bytesRead: event.bytesRead,
        bytesWritten: event.bytesWritten
      }
    case "Stopped":
      return { event: event._tag, report: viewOfReport(event.report) }
    case "WorkerEnded":
      return { event: event._tag, worker: event.worker, how: event.how, cause: messageOf(event.cause) }
    case "WorkerNotStarted":
      return { event: event._tag, cause: messageOf(event.cause), retryInMs: Duration.toMillis(event.retryIn) }
    case "Problem":
      return { event: event._tag, level: event.level, message: event.message, cause: messageOf(event.cause) }
    case "Saturated":
    case "Relieved":
      return { event: event._tag, policy: event.policy }
    case "WorkerStarted":
      return { event: event._tag, worker: event.worker }
    case "Suspended":
    case "Draining":
    case "CertificatesRenewed":
      return { event: event._tag }
  }
}

// ---- what is meant

const peerMatches = (text: string): Result.Result<(peer: NetAddress.SocketAddress) => boolean, Problem> => {
  if (text.includes("/") && !text.startsWith("/")) {
    return Result.mapBoth(IpNetwork.fromString(text), {
      onFailure: ({ message }) => new Problem({ code: "InvalidRequest", message: `peer "${text}": ${message}` }),
      onSuccess: (network) => (peer) => NetAddress.isInetAddress(peer) && IpNetwork.contains(network, peer.address)
    })
  }
  return Result.succeed((peer) =>
    NetAddress.isUnixPathAddress(peer)
      ? peer.path === text
      : NetAddress.formatHost(peer) === text || NetAddress.formatInet(peer) === text
  )
}

const matching = (where: Where): Result.Result<(connection: Server.ConnectionInfo) => boolean, Problem> => {
  const { annotations = {}, olderThanMs = 0, peer, state } = where
  return Result.map(
    peer === undefined ? Result.succeed(() => true) : peerMatches(peer),
    (isPeer) => (connection) =>
      isPeer(connection.peer) &&
      (state === undefined || connection.state === state) &&
      Duration.toMillis(connection.age) >= olderThanMs &&
      Object.entries(annotations).every(([key, value]) =>
        connection.annotations.has(key) && String(plain(connection.annotations.get(key))) === value
      )
  )
}

const invalid = (message: string) => new Problem({ code: "InvalidRequest", message })

const parse = (line: string): Effect.Effect<Request, Problem> =>
  Effect.gen(function*() {
    const json: unknown = yield* Effect.try({
      try: () => JSON.parse(line) as unknown,
      catch: () => invalid("not JSON: a request is a line such as {\"do\":\"servers\"}")
    })
    const name = typeof json === "object" && json !== null && "do" in json ? json.do : undefined
    if (typeof name !== "string" || !Object.hasOwn(requests, name)) {
      return yield* invalid(`\`do\` is one of ${Object.keys(requests).join(", ")}`)
    }
    const schema: Schema.Codec<Request, any> = requests[name as keyof typeof requests]
    return yield* Schema.decodeUnknownEffect(schema)(json, { onExcessProperty: "error" }).pipe(
      Effect.mapError(({ message }) => invalid(oneLine(message)))
    )
  })

// ---- answers, one by one

/** What a request comes to: items, and then a value. */
interface Outcome {
  readonly items?: Stream.Stream<unknown>
  /** Do the items go on for as long as the client wants them? */
  readonly endless?: boolean
  readonly value: Effect.Effect<unknown, Problem>
}

const find = (
  servers: Servers,
  name: string | undefined
): Effect.Effect<[string, Server.Server["Service"]], Problem> => {
  const names = Object.keys(servers)
  if (name === undefined && names.length === 1) return Effect.succeed([names[0]!, servers[names[0]!]!])
  const list = names.join(", ")
  if (name === undefined) {
    return Effect.fail(new Problem({ code: "WhichServer", message: `name one \`server\` of ${list}` }))
  }
  return Object.hasOwn(servers, name)
    ? Effect.succeed([name, servers[name]!])
    : Effect.fail(new Problem({ code: "UnknownServer", message: `there is no server "${name}", but ${list}` }))
}

const all = (servers: Servers) =>
  Effect.forEach(Object.entries(servers), ([name, server]) => viewOfServer(name, server))

const outcomeOf = (servers: Servers, request: Request): Effect.Effect<Outcome, Problem> =>
  Effect.gen(function*() {
    if (request.do === "servers") return { value: all(servers) }
    if (request.do === "top") return { items: top(servers, request.everyMs ?? 1_000), endless: true, value: none }
    const [name, server] = yield* find(servers, request.server)
    switch (request.do) {
      case "info":
        return { value: viewOfServer(name, server) }
      case "stats":
        return { value: server.stats }
      case "connections": {
        const holds = yield* Effect.fromResult(matching(request.where ?? {}))
        const found = (yield* server.connections.list).filter(holds)
        return {
          items: Stream.map(Stream.fromArray(found), viewOfConnection),
          value: Effect.succeed(found.length)
        }
      }
      case "close": {
        const { id, where } = request
        if ((id === undefined) === (where === undefined)) {
          return yield* invalid("`close` takes an `id`, or a `where`")
        }
        const holds = where === undefined
          ? (connection: Server.ConnectionInfo) => connection.id === id
          : yield* Effect.fromResult(matching(where))
        return { value: server.connections.closeWhere(holds) }
      }
      case "suspend":
        return { value: Effect.as(server.suspend, null) }
      case "resume":
        return {
          value: Effect.mapBoth(server.resume, {
            onSuccess: () => null,
            onFailure: ({ message }) => new Problem({ code: "CannotListen", message })
          })
        }
      case "drain": {
        const { graceMs, killMs } = request
        const options: Server.DrainOptions = {
          grace: graceMs === undefined ? undefined : Duration.millis(graceMs),
          kill: killMs === undefined ? undefined : Duration.millis(killMs)
        }
        return { value: Effect.map(server.drain(options), viewOfReport) }
      }
      case "limits":
        return { value: server.limits.list }
      case "limit":
        return { value: setLimit(server, request.name, request.value) }
      case "events":
        return { items: Stream.map(server.events, viewOfEvent), endless: true, value: none }
    }
  })

const none = Effect.succeed(null)

const setLimit = (server: Server.Server["Service"], name: string, value: number) =>
  Effect.gen(function*() {
    const isThere = yield* server.limits.set(name, value).pipe(
      Effect.mapError(({ message, reason }) =>
        new Problem({
          code: "InvalidValue",
          message: reason._tag === "InvalidOption"
            ? `limit "${name}" is ${value}: expected ${reason.expected}`
            : message
        })
      )
    )
    if (isThere) return null
    const names = Object.keys(yield* server.limits.list)
    const others = names.length === 0 ? "this server has none" : `there are ${names.join(", ")}`
    return yield* new Problem({ code: "UnknownLimit", message: `there is no limit "${name}": ${others}` })
  })

const top = (servers: Servers, everyMs: number): Stream.Stream<TopView> =>
  Stream.fromEffectSchedule(
    Effect.map(
      Effect.forEach(Object.entries(servers), ([name, server]) =>
        Effect.zipWith(viewOfServer(name, server), server.stats, (view, stats) => ({ ...view, stats }))),
      (views) => ({ servers: views })
    ),
    Schedule.spaced(Duration.millis(everyMs))
  ).pipe(Stream.takeUntil((view) =>
    view.servers.every(({ status }) =>
      status === "stopped"
    )
  ))

/** What a client is told. */
const failed = ({ code, message }: { readonly code: Code; readonly message: string }) =>
  ({ ok: false, code, error: message }) as const

/**
 * What a request is answered with.
 *
 * @category models
 * @since 0.1.0
 */
export type Answer =
  | { readonly ok: true; readonly value: unknown; readonly items?: ReadonlyArray<unknown> | undefined }
  | { readonly ok: false; readonly code: Code; readonly error: string }

/**
 * What a control of these servers says to a line, with the items in the answer: for requests that come by another way than the
 * socket, as those of a `Dashboard` do. `events` and `top` have no end, and are `InvalidRequest` here.
 *
 * @category combinators
 * @since 0.1.0
 */
export const answer = (servers: Servers, line: string): Effect.Effect<Answer> =>
  Effect.gen(function*() {
    const request = yield* parse(line)
    const { endless, items, value } = yield* outcomeOf(servers, request)
    if (endless === true) return yield* invalid(`\`${request.do}\` has no end: it takes a socket`)
    return {
      ok: true as const,
      ...items === undefined ? {} : { items: yield* Stream.runCollect(items) },
      value: yield* value
    }
  }).pipe(Effect.catchTag("Problem", (problem) => Effect.succeed(failed(problem))))

// ---- the conversation

const maxRequestLength = 65_536
const maxClients = 32

const conversation = (servers: Servers) => (connection: Connection) => {
  /** Who does not read is not waited for. */
  const write = (text: string) =>
    Effect.timeoutOrElse(connection.write(text), { duration: "10 seconds", orElse: () => connection.reset })
  const say = (answer: unknown) => write(`${JSON.stringify(answer)}\n`)

  const nextLine = connection.readLine({ maxLength: maxRequestLength })
  type NextLine = typeof nextLine

  /** Gives what has ended an endless answer: the next line, or that there is none. */
  const sendAll = (
    items: Stream.Stream<unknown>,
    endless: boolean
  ): Effect.Effect<NextLine | undefined, ConnectionError> => {
    const sending = Stream.runForEachArray(
      items,
      (chunk) => write(chunk.map((item) => `${JSON.stringify({ item })}\n`).join(""))
    )
    // A client that has gone would not be noticed while nothing happens.
    return endless
      ? Effect.raceFirst(Effect.as(sending, undefined), Effect.exit(nextLine))
      : Effect.as(sending, undefined)
  }

  const answer = (line: string) =>
    Effect.gen(function*() {
      const request = yield* parse(line)
      const { endless = false, items, value } = yield* outcomeOf(servers, request)
      const next = items === undefined ? undefined : yield* sendAll(items, endless)
      yield* say({ ok: true, value: yield* value })
      return next
    }).pipe(Effect.catchTag("Problem", (problem) => Effect.as(say(failed(problem)), undefined)))

  return Effect.gen(function*() {
    let next: NextLine | undefined
    while (true) {
      const line: string = yield* next ??
        Effect.timeoutOrElse(nextLine, { duration: "1 minute", orElse: () => Cause.done() })
      next = yield* answer(line)
    }
  }).pipe(
    Effect.catchReason(
      "ConnectionError",
      "LimitExceeded",
      () => say(failed({ code: "InvalidRequest", message: `a request has at most ${maxRequestLength} bytes` }))
    )
  )
}

/** Whoever operates a server gets in, also where its clients have taken all descriptors but the reserve. */
const socket = (path: string) =>
  Layer.effect(StreamTransport, Effect.map(StreamTransport, (transport) => ({ ...transport, steps: [] }))).pipe(
    Layer.provide(unix({ path, mode: 0o600 }))
  )

/**
 * Opens a control for these servers, by these names, until the scope ends. The file has mode 0600.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: {
  /** Of the socket. A file that a crashed program has left there is replaced. */
  readonly path: string
  readonly servers: Servers
}): Effect.Effect<void, ListenError, Scope.Scope> =>
  socket(options.path).pipe(
    Admission.maxConnections({
      max: maxClients,
      overflow: Admission.reject({
        farewell: `${
          JSON.stringify(failed({ code: "Busy", message: `this control has ${maxClients} clients already` }))
        }\n`
      })
    }),
    Dispatch.fiberPerRequest({ maxInFlight: maxClients }),
    Server.serveStream(conversation(options.servers), {
      name: "control",
      shutdown: { grace: "1 second", kill: "1 second" }
    }),
    Layer.build,
    Effect.asVoid
  )

/**
 * Opens a control beside a server, or beside several. Their names are those of `Server.info`; a second one of a name gets
 * `-2`. Closes before they drain.
 *
 * **Example** (One server)
 *
 * ```ts
 * import { Control, NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Layer, Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 *
 * const Program = Control.layer({ path: "/run/echo/control.sock" }).pipe(Layer.provideMerge(Echo))
 * ```
 *
 * **Example** (Two servers)
 *
 * ```ts
 * import { Control } from "@socketserver/node"
 * import { Server } from "@socketserver/core"
 *
 * class Echo extends Server.Service<Echo>()("app/Echo") {}
 * class Discard extends Server.Service<Discard>()("app/Discard") {}
 *
 * const Both = Control.layer({ path: "/run/app/control.sock", servers: [Echo, Discard] })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <Tag extends Context.Service<any, Server.Server["Service"]> = typeof Server.Server>(options: {
  readonly path: string
  /** Default: `Server.Server` alone. */
  readonly servers?: ReadonlyArray<Tag> | undefined
}): Layer.Layer<never, ListenError, Context.Service.Identifier<Tag>> =>
  Layer.effectDiscard(Effect.gen(function*() {
    yield* make({ path: options.path, servers: yield* named(options.servers) })
  }))
