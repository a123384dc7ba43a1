/**
 * A running server: it owns the listener, the requests under way, and their drain. What arrives, connections or packets,
 * and what makes a request of it, comes as configuration.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as LogLevel from "effect/LogLevel"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type { Gate, Limit, StepFor } from "../Admission.ts"
import * as CloseReason from "../CloseReason.ts"
import type { Connection } from "../Connection.ts"
import type { Strategy } from "../Dispatch.ts"
import type { Portable } from "../Handler.ts"
import type { ListenError } from "../ListenError.ts"
import { level, Log, type Logging } from "../Logging.ts"
import type { DrainOptions, Info, MaxAge, Server, ServerOptions, Stats, Status, StreamHandler } from "../Server.ts"
import type { DrainReport, LifecycleEvent, RequestEvent, ServerEvent } from "../ServerEvent.ts"
import { type Handshake, type Listener, type Preface, StreamTransport, type Wire } from "../StreamTransport.ts"
import type { Patience } from "../WorkerDispatch.ts"
import { discard } from "./connection.ts"
import { ConnectionEntry } from "./connectionEntry.ts"
import { type Dispatched, dispatching, type WorkersOfServer } from "./dispatching.ts"
import { CurrentEntry, type Entry } from "./entry.ts"
import { both, Measured, type ObservedRequest, type Observer, Traced } from "./observed.ts"
import { checkDeadline, checkDuration } from "./options.ts"
import { Publisher } from "./publisher.ts"
import { Registry } from "./registry.ts"

type Shape = Server["Service"]

/** The `Server` tag comes as a value: its module builds on this one. */
export type Tag = Context.Service<Server, Shape>

const defaultShutdown = { grace: Duration.seconds(20), kill: Duration.seconds(5) }

/**
 * A write has a deadline by default, unlike a read: a client that is silent for long may be an honest one, but it is nowhere a
 * way to use a protocol to ask for something and not to take it; and while it waits, its handler does, with all that it holds,
 * and the system's memory for its output. Half a minute is what Ranch and Thousand Island have for it.
 */
const defaultWriteTimeout = Duration.seconds(30)

/**
 * For how many milliseconds of a connection's life a drain leaves a client that has said nothing yet the time to do so: its first
 * request may be on the way. A client that speaks first does so when it has connected, a round trip later at most; a second is
 * that around the world, and a segment that was lost on the way and is sent again (RFC 6298: after a second at first).
 */
const firstWord = 1_000

interface Deadlines {
  readonly grace: Duration.Duration
  readonly kill: Duration.Duration
}

export const makeStream = Effect.fnUntraced(function*(
  tag: Tag,
  handler: StreamHandler<any, any> | Portable<Connection, any, any, any>,
  options?: ServerOptions<any, any, any>
) {
  const transport = yield* StreamTransport
  const server = yield* start(tag, transport, yield* dispatching(handler), options)
  return server.shape
})

/** A server of the connections that a stream transport accepts. */
export const start = (
  tag: Tag,
  transport: StreamTransport["Service"],
  dispatched: Dispatched,
  options: ServerOptions<any, any, any> = {},
  makeEntry: (server: ServerImpl, id: number, wire: Wire) => Entry = (server, id, wire) =>
    new ConnectionEntry(server, id, wire)
) =>
  run(
    tag,
    {
      name: transport.name,
      steps: transport.steps,
      listen: (server, at) =>
        transport.listen((wire) => {
          if (!server.draining.isOpen()) server.accept((id) => makeEntry(server, id, wire))
          // The listener had this client in hand when the drain closed it.
          else discard(wire)
        }, at)
    },
    dispatched,
    options
  )

/** Binds, and drains when the scope closes. */
export const run = Effect.fnUntraced(function*(
  tag: Tag,
  transport: Arrivals,
  { context, handler, strategy, workers }: Dispatched,
  options: Options<any> = {}
) {
  const { idleTimeout = Infinity, readTimeout = Infinity, requestTimeout = Infinity } = options
  const patience = {
    idle: yield* checkDeadline("idleTimeout", idleTimeout),
    read: yield* checkDeadline("readTimeout", readTimeout),
    write: yield* checkDeadline("writeTimeout", options.writeTimeout ?? defaultWriteTimeout)
  }
  const requestMillis = yield* checkDeadline("requestTimeout", requestTimeout)
  const maxAge = options.maxAge === undefined ? undefined : yield* checkMaxAge(options.maxAge)
  const shutdown = {
    grace: yield* checkDuration("shutdown.grace", options.shutdown?.grace ?? defaultShutdown.grace),
    kill: yield* checkDuration("shutdown.kill", options.shutdown?.kill ?? defaultShutdown.kill)
  }
  const ambient = yield* Effect.context<never>()
  const server = new ServerImpl({
    tag,
    transport,
    strategy,
    // What they require is in `context`: the public signatures see to it.
    handler: handler as Config["handler"],
    options: options as Options<never>,
    patience,
    requestMillis,
    maxAge,
    shutdown,
    clock: yield* Clock.Clock,
    context: Context.merge(ambient, context),
    workers,
    logging: Context.get(ambient, Log),
    events: yield* PubSub.sliding<ServerEvent>(1_024),
    lifecycle: yield* PubSub.sliding<LifecycleEvent>(1_024)
  })
  for (const step of transport.steps) {
    if ("policy" in step && step.start !== undefined) yield* server.publishing(step.start(server.gateOf(step)))
  }
  for (const reference of [Measured, Traced]) {
    const observer = yield* Context.get(ambient, reference)?.(server) ?? Effect.undefined
    if (observer !== undefined) server.observers.push(observer)
  }
  yield* Effect.acquireRelease(server.bind("start"), () => server.drain(shutdown), { interruptible: true })
  for (const { bound } of server.observers) bound?.()
  // A step may have no room from the start.
  yield* Effect.orDie(server.adjustListening)
  return server
})

const checkMaxAge = Effect.fnUntraced(function*({ after, jitter }: MaxAge) {
  const least = Duration.toMillis(yield* checkDuration("maxAge.after", after))
  const more = jitter === undefined ? least / 10 : Duration.toMillis(yield* checkDuration("maxAge.jitter", jitter))
  const most = least + more
  // One that is not reached.
  return most === Infinity ? undefined : { least, most }
})

/** How many clients may wait to be accepted, as Node and most systems have it. */
const longestBacklog = 512

/** Of the event loop: then transports have delivered all that the system had. */
const twoTurns = Effect.andThen(Effect.yieldNow, Effect.yieldNow)

export interface NamedStrategy {
  readonly name: string
  readonly run: Strategy
}

/** The options of either kind of server. */
interface Options<R> extends
  Pick<
    ServerOptions,
    | "name"
    | "shutdown"
    | "idleTimeout"
    | "readTimeout"
    | "writeTimeout"
    | "requestTimeout"
    | "maxAge"
    | "interruptOnDisconnect"
  >
{
  readonly onTimeout?: ((subject: any) => Effect.Effect<void, unknown, R>) | undefined
  readonly onError?:
    | ((cause: Cause.Cause<any>, subject: any, reason: CloseReason.CloseReason) => Effect.Effect<void, unknown, R>)
    | undefined
}

/** An admission step, of either kind of request. */
export type Check = StepFor<any>

/** Where requests come from, and what is particular about them. */
export interface Arrivals {
  readonly name: string
  readonly steps: ReadonlyArray<Check | Preface | Handshake>
  /** Binds; what arrives goes to the server's `accept`. */
  readonly listen: (server: ServerImpl, at?: SocketAddress) => Effect.Effect<Listener, ListenError, Scope.Scope>
  /** Where more may wait than the strategy has been given: packets. */
  readonly waiting?: Waiting | undefined
}

export interface Waiting {
  readonly length: number
  readonly dropped: number
  readonly truncated: number
  /** The strategy has room, or may have. */
  readonly onRoom: (server: ServerImpl) => void
  /** Drops all, and says how many. */
  readonly clear: () => number
}

interface Config {
  readonly tag: Tag
  readonly transport: Arrivals
  readonly strategy: NamedStrategy
  readonly handler: (subject: any) => Effect.Effect<unknown, unknown>
  readonly options: Options<never>
  readonly patience: Patience
  readonly requestMillis: number
  /** In milliseconds. */
  readonly maxAge: { readonly least: number; readonly most: number } | undefined
  readonly shutdown: Deadlines
  readonly clock: Clock.Clock
  readonly context: Context.Context<never>
  readonly workers: WorkersOfServer | undefined
  readonly logging: Logging
  readonly events: PubSub.PubSub<ServerEvent>
  readonly lifecycle: PubSub.PubSub<LifecycleEvent>
}

export type Counts = { -readonly [K in keyof Omit<DrainReport, "elapsed">]: DrainReport[K] }

export class ServerImpl {
  readonly config: Config
  readonly shape: Shape
  /** What handlers and hooks run with. */
  readonly context: Context.Context<never>
  readonly draining = Latch.makeUnsafe(false)
  readonly patience: Patience
  /** How long a handler may run; `Infinity` where it may for ever. */
  readonly requestMillis: number

  private state: "starting" | "open" | "suspended" | "draining" | "stopped" = "starting"
  private listener: (Listener & { readonly close: Effect.Effect<void> }) | undefined
  private address: SocketAddress | undefined
  /** One at a time: bind, suspend, resume, and the drain's closing of the listener. */
  private readonly listening = Semaphore.makeUnsafe(1)

  private readonly entries = new Registry<Entry>()
  private lastId = 0
  accepted = 0
  queued = 0
  inFlight = 0
  readonly closed: Partial<Record<CloseReason.CloseReason["_tag"], number>> = {}
  readonly refused: Record<string, number> = {}
  private closedBytesRead = 0
  private closedBytesWritten = 0
  /** How the latest connection ended. */
  lastReason: CloseReason.CloseReason | undefined

  readonly observers: Array<Observer> = []
  private readonly logsDebug: boolean

  /** Effects that wait for something to become true of the open entries. */
  private readonly conditions = new Set<{ readonly holds: () => boolean; readonly resume: () => void }>()
  private drained: Deferred.Deferred<DrainReport> | undefined
  /** How many of the open entries have asked for the drain: what they wait for must not be each other. */
  private waitingForDrain = 0
  private drainStart = 0
  private readonly limits = new Map<string, Limit>()
  private readonly counts: Counts = { idleClosed: 0, completed: 0, interrupted: 0, killed: 0, refused: 0 }

  constructor(config: Config) {
    this.config = config
    for (const step of config.transport.steps) {
      if (!("policy" in step) || step.limit === undefined) continue
      let name = step.policy
      for (let n = 2; this.limits.has(name); n++) name = `${step.policy}-${n}`
      this.limits.set(name, step.limit)
    }
    this.shape = this.makeShape()
    this.context = Context.add(config.context, config.tag, this.shape)
    if (config.workers !== undefined) {
      config.workers.publish = (event) => this.publish(event)
      config.workers.isAwaiting = () => this.isAwaiting
    }
    this.logsDebug = config.logging.debug ??
      LogLevel.isGreaterThanOrEqualTo("Debug", Context.get(config.context, References.MinimumLogLevel))
    this.patience = config.patience
    this.requestMillis = config.requestMillis
  }

  readonly now = (): number => this.config.clock.currentTimeMillisUnsafe()

  // ---- listening

  bind(after: "start" | "suspended" | "saturated"): Effect.Effect<void, ListenError> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const scope = Scope.makeUnsafe()
        return restore(this.publishing(this.config.transport.listen(this, this.address))).pipe(
          Scope.provide(scope),
          Effect.tapCause((cause) => Scope.close(scope, Exit.failCause(cause))),
          Effect.map((listener) => {
            this.listener = { ...listener, close: Scope.close(scope, Exit.void) }
            this.address ??= listener.address
            this.isListening = true
            if (this.state !== "draining") this.state = "open"
            this.publish({ _tag: "Listening", address: listener.address, after })
          })
        )
      })
    )
  }

  private closeListener(): Effect.Effect<void> {
    return Effect.suspend(() => {
      const listener = this.listener
      this.listener = undefined
      this.isListening = false
      return listener?.close ?? Effect.void
    })
  }

  private isListening = false
  /** The steps that have no room for one more. */
  private readonly saturatedBy = new Set<Check>()
  /** Opens and closes the listener as the steps have it. */
  private adjusting: Fiber.Fiber<void, ListenError> | undefined

  gateOf(step: Check): Gate {
    return {
      setSaturated: (isSaturated) => {
        // A limit may outlive a server that has it, and its last event.
        if (this.state === "stopped" || isSaturated === this.saturatedBy.has(step)) return
        if (isSaturated) this.saturatedBy.add(step)
        else this.saturatedBy.delete(step)
        this.publish({ _tag: isSaturated ? "Saturated" : "Relieved", policy: step.policy })
        if (step.pausesListening !== true) return
        this.adjusting?.interruptUnsafe()
        this.adjusting = Effect.runForkWith(this.config.context)(this.adjustListening)
      }
    }
  }

  private get isPaused(): boolean {
    for (const step of this.saturatedBy) if (step.pausesListening === true) return true
    return false
  }

  /** The address may have been taken meanwhile: it is tried again, until it is free or the server is told something else. */
  get adjustListening(): Effect.Effect<void, ListenError> {
    const adjust = this.listening.withPermit(Effect.suspend(() => {
      if (this.state !== "open" || this.isPaused !== this.isListening) return Effect.void
      return this.isPaused ? this.stopListening : this.startListening("saturated")
    }))
    const complain = (error: ListenError) =>
      Effect.sync(() =>
        this.publish({
          _tag: "Problem",
          level: "Error",
          message: "cannot listen again, will try once more",
          cause: Cause.fail(error)
        })
      )
    return Effect.retry(Effect.tapError(adjust, complain), Schedule.spaced("1 second"))
  }

  /** Closes the listener, or has it stop where it is: a socket that is somebody else's stays. */
  private get stopListening(): Effect.Effect<void> {
    this.isListening = false
    return this.listener?.inPlace?.suspend ?? this.closeListener()
  }

  private startListening(after: "suspended" | "saturated"): Effect.Effect<void, ListenError> {
    const { inPlace } = this.listener ?? {}
    if (inPlace === undefined) return this.bind(after)
    this.isListening = true
    this.state = "open"
    this.publish({ _tag: "Listening", address: this.address!, after })
    return inPlace.resume
  }

  private get suspend(): Effect.Effect<void> {
    return this.listening.withPermit(Effect.suspend(() => {
      if (this.state !== "open") return Effect.void
      this.state = "suspended"
      return Effect.andThen(this.stopListening, Effect.sync(() => this.publish({ _tag: "Suspended" })))
    }))
  }

  private get resume(): Effect.Effect<void, ListenError> {
    return this.listening.withPermit(
      Effect.suspend(() => {
        if (this.state !== "suspended") return Effect.void
        if (!this.isPaused) return this.startListening("suspended")
        this.state = "open"
        return Effect.void
      })
    )
  }

  // ---- connections

  get isOpen(): boolean {
    return this.state !== "draining" && this.state !== "stopped"
  }

  accept(makeEntry: (id: number) => Entry): void {
    const { workers } = this.config
    workers?.catchUp()
    this.accepted++
    const entry = makeEntry(++this.lastId)
    this.entries.add(entry)
    for (const { observe } of this.observers) {
      const observed = observe(entry)
      entry.observed = entry.observed === undefined ? observed : both(entry.observed, observed)
    }
    if (this.tellsRequests) this.tell({ _tag: "Accepted", id: entry.id, peer: entry.peer }, entry.observed)
    entry.begin()
    if (workers !== undefined && this.isAwaiting) workers.catchUp()
  }

  /** Does somebody wait for the end of what is open? */
  private get isAwaiting(): boolean {
    return this.queued > 0 || this.saturatedBy.size > 0 || this.conditions.size > 0
  }

  /** A request has come to its turn, or will never. */
  leaveQueue(): void {
    this.queued--
    this.config.transport.waiting?.onRoom(this)
  }

  /** An entry has come to its end: it counts, and whoever waits for that is told. */
  remove(entry: Entry, reason: CloseReason.CloseReason): void {
    this.entries.delete(entry)
    if (entry.waitsForDrain) this.waitingForDrain--
    this.closed[reason._tag] = (this.closed[reason._tag] ?? 0) + 1
    if (reason._tag === "Refused") this.refused[reason.policy] = (this.refused[reason.policy] ?? 0) + 1
    this.closedBytesRead += entry.bytesRead
    this.closedBytesWritten += entry.bytesWritten
    this.lastReason = reason
    if (this.state === "draining") this.counts[entry.drainOutcome(reason)]++
    if (this.tellsRequests) {
      this.tell({
        _tag: "Closed",
        kind: entry.kind,
        id: entry.id,
        peer: entry.peer,
        reason,
        duration: Duration.millis(this.now() - entry.openedAt),
        bytesRead: entry.bytesRead,
        bytesWritten: entry.bytesWritten
      }, entry.observed)
    }
    entry.observed?.closed(reason)
    this.config.transport.waiting?.onRoom(this)
    this.checkConditions()
  }

  // ---- what is told

  /** Does anybody want to hear of each request? Without, no event is made of one. */
  get tellsRequests(): boolean {
    return this.logsDebug || this.config.events.subscribers.size > 0
  }

  tell(event: RequestEvent, observed: ObservedRequest | undefined): void {
    if (this.config.events.subscribers.size > 0) PubSub.publishUnsafe(this.config.events, event)
    this.log(event, observed)
  }

  readonly publish = (event: LifecycleEvent): void => {
    PubSub.publishUnsafe(this.config.events, event)
    PubSub.publishUnsafe(this.config.lifecycle, event)
    this.log(event)
  }

  private log(event: ServerEvent, observed?: ObservedRequest): void {
    if (!this.logsDebug && level(event) === "Debug") return
    const { logging } = this.config
    const context = observed === undefined ? this.context : observed.within(this.context)
    Effect.runForkWith(context)(Effect.suspend(() => logging.log(event, this.name)))
  }

  /** What the effect publishes is this server's. */
  publishing<A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.provideService(effect, Publisher, this.publish)
  }

  private until(holds: () => boolean): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      if (holds()) return resume(Effect.void)
      const condition = { holds, resume: () => resume(Effect.void) }
      this.conditions.add(condition)
      this.config.workers?.catchUp()
      return Effect.sync(() => this.conditions.delete(condition))
    })
  }

  private checkConditions(): void {
    for (const condition of this.conditions) {
      if (!condition.holds()) continue
      this.conditions.delete(condition)
      condition.resume()
    }
  }

  // ---- drain

  drain(deadlines: Deadlines): Effect.Effect<DrainReport> {
    return Effect.withFiber((fiber) => {
      if (this.drained === undefined) {
        const drained = this.drained = Deferred.makeUnsafe<DrainReport>()
        // In a fiber of its own: an impatient caller, or a handler that is interrupted at `grace`, does not stop it.
        Effect.runForkWith(this.config.context)(
          Effect.onExit(this.runDrain(deadlines), (exit) => Deferred.done(drained, exit))
        )
      }
      const caller = fiber.getRef(CurrentEntry)
      // What a handler has left behind is none of it.
      if (caller === undefined || caller.server !== this || caller.finished) return Deferred.await(this.drained)
      if (!caller.waitsForDrain) this.waitingForDrain++
      caller.waitsForDrain = true
      this.checkConditions()
      return Effect.map(this.until(() => this.open === this.waitingForDrain), () => this.report())
    })
  }

  private report(): DrainReport {
    return { ...this.counts, elapsed: Duration.millis(this.now() - this.drainStart) }
  }

  private runDrain({ grace, kill }: Deadlines): Effect.Effect<DrainReport> {
    return Effect.gen({ self: this }, function*() {
      this.state = "draining"
      this.adjusting?.interruptUnsafe()
      this.drainStart = this.now()
      this.publish({ _tag: "Draining" })
      const { waiting } = this.config.transport
      // Packets that have been received are served, and their answers leave by the socket that they came in by.
      if (waiting === undefined) {
        yield* this.acceptWaiting(Duration.toMillis(grace))
        yield* this.listening.withPermit(this.closeListener())
        this.refuseWaiting()
      } else {
        // A packet for a session may lie in the system's buffers already, unseen: then the session must not look idle.
        yield* twoTurns
      }
      this.draining.openUnsafe()
      const graceEnd = this.drainStart + Duration.toMillis(grace)
      const expected = Math.min(firstWord, Duration.toMillis(grace))
      for (const entry of this.entries.values()) entry.startDrain(expected)
      const empty = this.until(() => this.isIdle)
      if (Option.isNone(yield* Effect.timeoutOption(empty, Math.max(graceEnd - this.now(), 0)))) {
        this.counts.refused += waiting?.clear() ?? 0
        this.refuseWaiting()
        for (const entry of this.entries.values()) entry.interrupt()
        if (Option.isNone(yield* Effect.timeoutOption(empty, kill))) {
          for (const entry of this.entries.values()) entry.kill()
        }
      }
      yield* this.listening.withPermit(this.closeListener())
      this.state = "stopped"
      const report = this.report()
      this.publish({ _tag: "Stopped", report })
      return report
    })
  }

  /**
   * The system has connected clients already that wait to be accepted, and may have sent their requests: with the listener, it
   * would reset them. They are accepted one after the other (Node takes one for each turn of the event loop), for as long as
   * there are any, and as many as were there when the drain began. That is two turns at least: by then what the system has of
   * requests has been read, and their connections do not look idle.
   */
  private acceptWaiting(grace: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      const last = this.accepted + longestBacklog
      let before: number
      do {
        before = this.accepted
        yield* twoTurns
      } while (this.accepted > before && this.accepted < last && this.now() - this.drainStart < grace)
    })
  }

  private get isIdle(): boolean {
    return this.entries.size === 0 && (this.config.transport.waiting?.length ?? 0) === 0
  }

  private refuseWaiting(): void {
    for (const entry of this.entries.values()) if (!entry.begun) entry.endEarly(CloseReason.Refused("draining"))
  }

  // ---- what can be asked

  private status(): Status {
    return this.state !== "open" ? this.state : this.queued > 0 || this.saturatedBy.size > 0 ? "saturated" : "ready"
  }

  get name(): string {
    return this.config.options.name ?? this.config.transport.name
  }

  private info(): Info {
    const { strategy, transport, workers } = this.config
    return {
      name: this.name,
      address: this.address!,
      descriptor: this.listener?.descriptor,
      transport: transport.name,
      strategy: strategy.name,
      workers: workers?.info(),
      limits: this.currentLimits()
    }
  }

  get open(): number {
    return this.entries.size
  }

  /** Requests that wait, and packets that wait to be one. */
  get waiting(): number {
    return this.queued + (this.config.transport.waiting?.length ?? 0)
  }

  bytes(which: "bytesRead" | "bytesWritten"): number {
    const ofOpen = this.entries.sum((entry) => entry[which])
    return ofOpen + (which === "bytesRead" ? this.closedBytesRead : this.closedBytesWritten)
  }

  private currentLimits(): Record<string, number> {
    return Object.fromEntries(Array.from(this.limits, ([name, limit]) => [name, limit.current()]))
  }

  private stats(): Stats {
    return {
      accepted: this.accepted,
      open: this.open,
      queued: this.waiting,
      inFlight: this.inFlight,
      closed: { ...this.closed },
      refused: { ...this.refused },
      bytesRead: this.bytes("bytesRead"),
      bytesWritten: this.bytes("bytesWritten"),
      dropped: this.config.transport.waiting?.dropped ?? 0,
      truncated: this.config.transport.waiting?.truncated ?? 0
    }
  }

  private untilStopped<A extends ServerEvent>(events: PubSub.PubSub<A>): Stream.Stream<A> {
    return Stream.suspend(() =>
      this.state === "stopped"
        ? Stream.empty
        : Stream.takeUntil(Stream.fromPubSub(events), (event) => event._tag === "Stopped")
    )
  }

  private makeShape(): Shape {
    const { config, entries } = this
    const withAddress = { address: () => this.address! }
    return {
      get address() {
        return withAddress.address()
      },
      info: Effect.sync(() => this.info()),
      status: Effect.sync(() => this.status()),
      stats: Effect.sync(() => this.stats()),
      connections: {
        list: Effect.sync(() => entries.values().map((entry) => entry.info())),
        find: (id) => Effect.sync(() => Option.map(Option.fromNullishOr(entries.get(id)), (entry) => entry.info())),
        annotate: (id, key, value) =>
          Effect.suspend(() => {
            const entry = entries.get(id)
            return entry === undefined ? Effect.succeed(false) : Effect.as(entry.annotate(key, value), true)
          }),
        close: (id) => Effect.sync(() => entries.get(id)?.endWith(CloseReason.Killed) ?? false),
        closeWhere: (predicate) =>
          Effect.sync(() => {
            const chosen = entries.values().filter((entry) => predicate(entry.info()))
            return chosen.filter((entry) => entry.endWith(CloseReason.Killed)).length
          })
      },
      limits: {
        list: Effect.sync(() => this.currentLimits()),
        set: (name, value) =>
          Effect.suspend(() => {
            const limit = this.limits.get(name)
            return limit === undefined ? Effect.succeed(false) : Effect.as(limit.set(value), true)
          })
      },
      events: this.untilStopped(config.events),
      lifecycle: this.untilStopped(config.lifecycle),
      suspend: this.suspend,
      resume: this.resume,
      drain: (options?: DrainOptions) =>
        Effect.suspend(() =>
          this.drain({
            grace: options?.grace === undefined ? config.shutdown.grace : Duration.fromInputUnsafe(options.grace),
            kill: options?.kill === undefined ? config.shutdown.kill : Duration.fromInputUnsafe(options.kill)
          })
        ),
      awaitIdle: this.until(() => this.isIdle)
    }
  }
}
