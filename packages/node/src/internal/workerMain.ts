/**
 * What runs in a worker, thread or process: it loads handlers, runs them on what the pool sends, and tells what became of it.
 * What a handler is given here does what it does in a server, by messages, or, where the socket came along, by itself.
 */
import type { TlsInfo } from "@socketserver/core/Connection"
import { Closed, ConnectionError, Timeout } from "@socketserver/core/ConnectionError"
import type { Datagram } from "@socketserver/core/Datagram"
import type { DatagramError } from "@socketserver/core/DatagramError"
import { isPortable, type Portable } from "@socketserver/core/Handler"
import type { Message } from "@socketserver/core/Message"
import type { StartTls, Wire } from "@socketserver/core/StreamTransport"
import {
  type ConnectionState,
  type Host,
  hostConnection,
  type HostedConnection
} from "@socketserver/core/WorkerDispatch"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import type * as NetAddress from "effect/net/NetAddress"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Socket } from "node:net"
import { parentPort, Worker } from "node:worker_threads"
import { decodeExit, encodeExit } from "./exits.ts"
import { JobTable } from "./jobTable.ts"
import { PortWire } from "./portWire.ts"
import { type Reported, Reports } from "./reports.ts"
import { CurrentRequest, makeReporter, type Reporter } from "./telemetry.ts"
import type { Clear } from "./tls.ts"
import type { PlainTls } from "./tlsOptions.ts"
import { decodeValue, encodeValue } from "./values.ts"
import { NodeWire } from "./wire.ts"
import {
  type Counts,
  decodeFailure,
  decodeLocal,
  decodePeer,
  encodeFailure,
  type FromWorker,
  type Subject,
  type ToWorker
} from "./workerProtocol.ts"

type Run = Extract<ToWorker, { readonly _tag: "Run" }>
type SubjectOf<Tag extends Subject["_tag"]> = Extract<Subject, { readonly _tag: Tag }>

let posted = 0
const post: (message: FromWorker) => void = parentPort === null
  ? (message) => void process.send!(message)
  : (message) => {
    parentPort!.postMessage(message)
    // Not where that throws: reports would wait for what never comes.
    posted++
  }

let reporter: Reporter
let reports: Reports | undefined

interface Loaded {
  readonly portable: Portable<any, unknown, unknown, unknown>
  readonly context: Context.Context<never>
}
const handlers = new Map<number, Loaded>()
const jobs = new JobTable<Job>()
/** Of the services of all handlers. */
const services = Scope.makeUnsafe()

/** One request, from `Run` to `Result`, and what is left of its connection after that. */
class Job implements Host {
  readonly id: number
  /** Of a datagram; a connection has its own. */
  private draining: Latch.Latch | undefined
  private fiber: Fiber.Fiber<unknown, unknown> | undefined
  private hosted: HostedConnection | undefined
  private port: PortWire | undefined
  /** Is the server to know when the peer is gone? */
  private watch = false
  private ended = false
  private calls: Map<number, (exit: Exit.Exit<any, any>) => void> | undefined
  private lastCall = 0

  constructor(id: number) {
    this.id = id
  }

  run({ handler, request, span, subject }: Run, socket: Socket | undefined): void {
    const { context, portable } = handlers.get(handler)!
    const own = Context.merge(context, reporter.spanContext(span, this.id)).pipe(Context.add(CurrentRequest, this.id))
    const handle = (input: unknown) =>
      Effect.scoped(
        subject._tag === "Message"
          ? Effect.flatMap(
            Effect.suspend(() => portable.handle(input)),
            (reply) => replyAll(input as RemoteReplies, reply)
          )
          : Effect.suspend(() => portable.handle(input))
      ) as Effect.Effect<unknown, unknown>
    this.fiber = Effect.runForkWith(own)(
      subject._tag === "Connection" && subject.handshake !== undefined
        ? Effect.flatMap(
          this.shakeHands(subject, request, subject.handshake, socket),
          (wire) => handle(this.host({ ...subject, input: undefined }, request, wire))
        )
        : handle(this.makeInput(subject, request, socket))
    )
    this.fiber.addObserver((exit) => this.onEnd(exit, portable))
  }

  private makeInput(subject: Subject, request: number, socket: Socket | undefined): unknown {
    switch (subject._tag) {
      case "Task":
        return decodeValue(subject.input)
      case "Datagram":
        return this.makeDatagram(subject, request)
      case "Message":
        return this.makeMessage(subject, request)
      case "Connection":
        return this.host(subject, request, this.makeWire(subject, socket))
    }
  }

  private host(subject: SubjectOf<"Connection">, request: number, wire: Wire): HostedConnection["connection"] {
    const hosted = this.hosted = hostConnection({
      id: request,
      wire,
      proxy: subject.proxy === undefined ? undefined : decodeValue(subject.proxy),
      input: subject.input,
      watch: this.watch = subject.watch && subject.transfer === "socket",
      patience: subject.patience,
      host: this
    })
    return hosted.connection
  }

  /** While there is a handshake to be made. */
  private shaking: NodeWire | undefined

  private shakeHands(
    subject: SubjectOf<"Connection">,
    request: number,
    millis: number,
    socket: Socket | undefined
  ): Effect.Effect<Wire, unknown> {
    // Its client was gone before it came here.
    const wire = this.shaking = this.makeWire(subject, socket ?? new Socket().destroy()) as NodeWire
    const input = subject.input ?? new Uint8Array(0)
    return shakeHandsAs(subject.tlsStep!, wire, { input }).pipe(
      Effect.timeoutOrElse({
        duration: millis,
        orElse: () =>
          Effect.fail(
            new ConnectionError({
              reason: new Timeout({ deadline: "handshakeTimeout" }),
              connection: request,
              peer: String(decodePeer(subject.ends))
            })
          )
      }),
      Effect.map((wire) => {
        this.shaking = undefined
        return this.shaken(wire)
      })
    )
  }

  private shaken(wire: Wire): Wire {
    post({ _tag: "Shaken", id: this.id, tls: wire.tls! })
    return wire
  }

  private makeWire(subject: SubjectOf<"Connection">, socket: Socket | undefined): Wire {
    const { allowHalfOpen, ends, transfer } = subject
    if (transfer === "socket") {
      const own = socket ?? goneSocket()
      // What is passed to a process forgets this.
      own.allowHalfOpen = allowHalfOpen
      const wire = new NodeWire(own, {
        peerOf: () => decodePeer(ends),
        localOf: () => decodeLocal(ends)
      })
      const { startTls, tlsStep } = subject
      if (startTls !== undefined) {
        wire.startTls = {
          timeout: Duration.millis(startTls),
          run: (goAhead) =>
            Effect.suspend(() => {
              post({ _tag: "Shaking", id: this.id })
              return Effect.map(shakeHandsAs(tlsStep!, wire, { goAhead }), (wire) => this.shaken(wire))
            })
        }
      }
      return wire
    }
    const settings = { id: this.id, peer: decodePeer(ends), local: decodeLocal(ends), post }
    const startTls: StartTls = {
      // The server has its own, which comes first.
      timeout: Duration.millis((subject.startTls ?? 0) + 60_000),
      run: (goAhead) =>
        Effect.suspend(() => {
          port.abandon()
          return Effect.map(
            this.ask<unknown, TlsInfo>((call) => ({ _tag: "Upgrade", id: this.id, call, goAhead })),
            (tls) => this.port = new PortWire({ ...settings, tls, startTls: undefined })
          )
        })
    }
    const port = this.port = new PortWire({
      ...settings,
      tls: subject.tls,
      startTls: subject.startTls === undefined ? undefined : startTls
    })
    return port
  }

  readonly annotate = (key: string, value: unknown): Effect.Effect<void> =>
    this.ask((call) => ({ _tag: "Annotate", id: this.id, call, key, value: encodeValue(value) }))

  /** Posts something whose outcome the pool tells, and waits for that. */
  private ask<E = never, A = void>(message: (call: number) => FromWorker): Effect.Effect<A, E> {
    return Effect.callback((resume) => {
      const call = ++this.lastCall
      ;(this.calls ??= new Map()).set(call, resume as (exit: Exit.Exit<any, any>) => void)
      post(message(call))
    })
  }

  private makeDatagram({ local, payload, peer, truncated }: SubjectOf<"Datagram">, request: number): Datagram {
    const send = (to: Datagram["peer"] | undefined, payload: Uint8Array | string) =>
      this.ask<DatagramError>((call) => ({
        _tag: "Send",
        id: this.id,
        call,
        to: to === undefined ? undefined : encodeValue(to),
        payload
      }))
    return {
      id: request,
      peer: decodeValue(peer),
      local: decodeValue(local),
      payload,
      truncated,
      reply: (payload) => send(undefined, payload),
      send,
      draining: (this.draining = Latch.makeUnsafe(false)).await,
      annotate: this.annotate
    }
  }

  private makeMessage(
    { local, payload, peer, sender }: SubjectOf<"Message">,
    request: number
  ): Message<unknown, unknown> {
    const from: NetAddress.SocketAddress = decodeValue(peer)
    const gone = Effect.suspend(() =>
      Effect.fail(
        new ConnectionError({
          reason: new Closed({ what: "connection" }),
          connection: sender,
          peer: `${String(from)}, whose message's handler has ended in its worker`
        })
      )
    )
    const answer = (how: "reply" | "send" | "close" | "closed") => (value: unknown) =>
      Effect.suspend(() =>
        this.ended ? gone : this.ask<ConnectionError>((call) => ({
          _tag: "Answer",
          id: this.id,
          call,
          how,
          value: encodeValue(value)
        }))
      )
    return {
      id: request,
      payload: decodeValue(payload),
      peer: from,
      sender: {
        id: sender,
        peer: from,
        local: decodeValue(local),
        send: answer("send"),
        close: Effect.ignore(answer("close")(undefined)),
        closed: Effect.ignore(answer("closed")(undefined)),
        annotate: this.annotate
      },
      reply: answer("reply"),
      draining: (this.draining = Latch.makeUnsafe(false)).await
    }
  }

  // ---- what the pool says

  receive(message: ToWorker): void {
    switch (message._tag) {
      case "Interrupt":
        post({ _tag: "Interrupting", id: this.id })
        return this.fiber?.interruptUnsafe()
      case "Drain":
        this.draining?.openUnsafe()
        // As in a server: a drain does not wait for handshakes.
        if (this.shaking !== undefined) return this.fiber?.interruptUnsafe()
        // As in a server: what lies in the system's buffers already is a request that the connection is not idle with.
        setImmediate(() => setImmediate(() => this.hosted?.drain(message.expected)))
        return
      case "TimeOut":
        return this.hosted?.timeOut(message.deadline)
      case "Input":
        return this.port?.received(message.bytes)
      case "InputEnd":
        return this.port?.ended()
      case "Lost":
        return this.port?.lost(decodeFailure(message.failure))
      case "Written":
        return this.port?.written(message.length)
      case "Write":
        return void this.hosted?.wire.write(message.bytes)
      case "End":
        return this.hosted?.wire.end()
      case "Close":
        return this.hosted?.close()
      case "Destroy":
        return this.hosted?.destroy(message.reset)
      case "Done": {
        const resume = this.calls?.get(message.call)
        this.calls?.delete(message.call)
        return resume?.(decodeExit(message.exit) as Exit.Exit<void, any>)
      }
    }
  }

  // ---- the end

  private onEnd(exit: Exit.Exit<unknown, unknown>, { error }: Loaded["portable"]): void {
    this.ended = true
    const { hosted, shaking } = this
    if (shaking !== undefined) {
      shaking.destroy(false)
      const cause = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
      post({ _tag: "NotShaken", id: this.id, cause: encodeValue(cause) })
      jobs.delete(this.id)
      return
    }
    // Where nobody else has a say, the connection is closed at once, as the server would when it hears of the end.
    const isPlain = hosted !== undefined && isPlainEnd(exit)
    let own = none
    if (hosted !== undefined && !isPlain && Exit.isFailure(exit)) {
      const found: Array<number> = own = []
      exit.cause.reasons.forEach((reason, index) => {
        if (Cause.isFailReason(reason) && hosted.owns(reason.error)) found.push(index)
      })
    }
    // What the handler has written comes before its end.
    hosted?.flush()
    reporter.flush()
    const state = hosted && stateOf(hosted)
    const bytesRead = hosted?.wire.bytesRead ?? 0
    const bytesWritten = hosted?.wire.bytesWritten ?? 0
    if (isPlain && state === undefined) tell("ended", this.id, bytesRead, bytesWritten)
    else {post({
        _tag: "Result",
        id: this.id,
        exit: encodeExit(isPlain ? Exit.void : exit, error),
        own,
        state,
        bytesRead,
        bytesWritten
      })}
    if (isPlain && this.port === undefined) hosted.close()
    // The connection of a socket that is here goes on until the server closes it.
    if (hosted === undefined || this.port !== undefined || this.released) jobs.delete(this.id)
  }

  onTimeout(deadline: NonNullable<ConnectionState["timedOut"]>): void {
    post({ _tag: "TimingOut", id: this.id, deadline })
  }

  onGone(how: "end" | "reset"): void {
    const { hosted, id } = this
    if (this.port !== undefined || hosted === undefined) return
    const { lost } = hosted
    if (how === "end") {
      if (this.watch) post({ _tag: "SocketEnd", id })
    } else if (lost !== undefined) post({ _tag: "SocketLost", id, failure: encodeFailure(lost) })
  }

  private released = false
  onReleased(): void {
    this.released = true
    if (this.port !== undefined) return
    const { bytesRead, bytesWritten } = this.hosted!.wire
    tell("released", this.id, bytesRead, bytesWritten)
    if (this.ended) jobs.delete(this.id)
  }
}

/** In the place of one that was gone before it came here. */
const goneSocket = () =>
  new Socket().on("error", () => {}).destroy(Object.assign(new Error("gone"), { code: "ECONNRESET" }))

type RemoteReplies = Pick<Message<unknown, unknown>, "reply">

/** A stream of replies cannot travel: they do, one by one. */
const replyAll = ({ reply }: RemoteReplies, value: unknown): Effect.Effect<unknown, unknown> =>
  Stream.isStream(value) ? Stream.runForEach(value as Stream.Stream<unknown>, reply) : Effect.succeed(value)

/** What there is to say of it, if there is anything. */
const stateOf = (hosted: HostedConnection) => {
  const { state } = hosted
  return state && { ...state, lost: state.lost && encodeFailure(state.lost) }
}

const none: ReadonlyArray<number> = []

/** Without a place in memory, or room there, it is a message. */
const tell = (what: Reported, id: number, bytesRead: number, bytesWritten: number) => {
  if (reports?.add(what, id, bytesRead, bytesWritten, posted) === true) {
    if (reports.mustWake) post({ _tag: "Reported" })
  } else if (what === "ended") tellEnded([id, bytesRead, bytesWritten])
  else {
    if (released.length === 0) setImmediate(tellReleased)
    released.push(id, bytesRead, bytesWritten)
  }
}

/** Nobody waits for these: those of one turn leave in one message, with the first end of a handler if there is one. */
let released: Array<number> = []
const tellReleased = () => {
  if (released.length > 0) tellEnded([])
}

const tellEnded = (connections: Counts) => {
  post({ _tag: "Ended", connections, released })
  released = []
}

/** Success or end of input: no error hook is asked, which might still write something. */
const isPlainEnd = (exit: Exit.Exit<unknown, unknown>): boolean =>
  Exit.isSuccess(exit) ||
  exit.cause.reasons.every((reason) => Cause.isFailReason(reason) && Cause.isDone(reason.error))

/** By step. Workers of servers without TLS never load it. */
const tlsServers = new Map<number, ReturnType<typeof makeHandshakes>>()
const makeHandshakes = async (settings: PlainTls) => {
  const [{ handshakeServer, shakeHands }, { selectByName }] = await Promise.all([
    import("./tls.ts"),
    import("./tlsOptions.ts")
  ])
  const server = handshakeServer(settings, selectByName(settings))
  return (wire: Wire, clear: Clear) => shakeHands(server, wire, clear)
}

const shakeHandsAs = (step: number, wire: Wire, clear: Clear) =>
  Effect.flatMap(Effect.promise(() => tlsServers.get(step)!), (shakeHands) => shakeHands(wire, clear))

const load = ({ handler, module, name }: Extract<ToWorker, { readonly _tag: "Load" }>) =>
  Effect.gen(function*() {
    const found = yield* Effect.tryPromise({
      try: (): Promise<Record<string, unknown>> => import(module),
      catch: (error) => `the module cannot be imported: ${error instanceof Error ? error.message : String(error)}`
    })
    const portable = found[name]
    if (portable === undefined) {
      const names = Object.keys(found)
      return yield* Effect.fail(
        `the module exports no \`${name}\`${names.length === 0 ? "" : `, but ${names.join(", ")}`}`
      )
    }
    if (!isPortable(portable)) {
      return yield* Effect.fail(`the module's \`${name}\` was not made by \`Handler.portable\``)
    }
    const context = yield* Effect.exit(
      Layer.buildWithScope(portable.layer, services).pipe(Effect.provideContext(reporter.context))
    )
    if (Exit.isFailure(context)) {
      return { _tag: "LayerFailed" as const, exit: encodeExit(context, portable.error) }
    }
    handlers.set(handler, { portable, context: Context.merge(reporter.context, context.value) })
    return { _tag: "Ready" as const }
  }).pipe(
    Effect.catch((detail) => Effect.succeed({ _tag: "NotFound" as const, detail })),
    Effect.map((outcome) => post({ _tag: "Loaded", handler, outcome })),
    Effect.runFork
  )

const stop = () =>
  Effect.runFork(Effect.map(Effect.exit(Scope.close(services, Exit.void)), () => {
    reporter.flush()
    process.exit(0)
  }))

const receive = (message: ToWorker, handle?: unknown): void => {
  switch (message._tag) {
    case "Init":
      reporter = makeReporter(message.reporter, (report) => post({ _tag: "Report", report }))
      reports = message.reports && new Reports(message.reports)
      return
    case "Load":
      load(message)
      return
    case "Tls":
      tlsServers.set(message.step, makeHandshakes(message.settings))
      return
    case "Run": {
      const job = new Job(message.id)
      jobs.add(job)
      const socket = message.socket ?? handle
      return job.run(message, socket instanceof Socket ? socket : undefined)
    }
    case "Stop":
      stop()
      return
    default:
      // What comes for a request that has ended meanwhile has nothing to do any more.
      jobs.get(message.id)?.receive(message)
  }
}

/**
 * Ends this process with its parent, however that ended, and whatever this process is computing: a thread waits for the end
 * of a pipe whose other end only the parent has.
 */
const endWithParent = () => {
  const source = `new (require("node:net").Socket)({ fd: 4 })
    .on("error", () => {}).on("close", () => process.kill(process.pid, "SIGKILL")).resume()`
  new Worker(source, { eval: true, resourceLimits: { maxOldGenerationSizeMb: 8, maxYoungGenerationSizeMb: 1 } }).unref()
}

if (parentPort === null) {
  endWithParent()
  process.on("disconnect", () => process.exit(0))
  process.on("message", receive as (message: unknown, handle: unknown) => void)
} else {
  parentPort.on("message", receive)
}
post({ _tag: "Started" })
