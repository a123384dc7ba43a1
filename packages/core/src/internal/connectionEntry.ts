/** A connection as a request: it has a wire to be released, deadlines, and errors that are its peer's doing. */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Random from "effect/Random"
import * as Socket from "effect/socket/Socket"
import type { Refusal } from "../Admission.ts"
import * as CloseReason from "../CloseReason.ts"
import type { Connection } from "../Connection.ts"
import { type ConnectionError, Timeout } from "../ConnectionError.ts"
import type { Handshake, LeftHandshake, Preface, Wire } from "../StreamTransport.ts"
import type { RemoteConnection } from "../WorkerDispatch.ts"
import { ConnectionImpl, type Owner } from "./connection.ts"
import type { Remotable } from "./dispatching.ts"
import { Entry } from "./entry.ts"
import type { ServerImpl } from "./server.ts"
import { silence } from "./silence.ts"

export class ConnectionEntry extends Entry implements Owner, Remotable {
  readonly subject: ConnectionImpl
  private idleTimer: Fiber.Fiber<void> | undefined
  private ageTimer: Fiber.Fiber<void> | undefined
  /** Its own, where it may be drained alone. */
  private readonly drainingAlone: Latch.Latch | undefined
  /** Tells the worker that has the connection. */
  private tellDrain: (() => void) | undefined

  constructor(server: ServerImpl, id: number, wire: Wire) {
    super(server, id)
    this.drainingAlone = server.config.maxAge === undefined ? undefined : Latch.makeUnsafe(server.draining.isOpen())
    this.subject = new ConnectionImpl(id, wire, this)
  }

  protected get kind(): string {
    return "connection"
  }

  get draining(): Latch.Latch {
    return this.drainingAlone ?? this.server.draining
  }

  get peer(): SocketAddress {
    return this.subject.peer
  }

  get local(): SocketAddress {
    return this.subject.local
  }

  get annotations(): Map<string, unknown> | undefined {
    return this.subject.annotations
  }

  get bytesRead(): number {
    return this.subject.wire.bytesRead
  }

  get bytesWritten(): number {
    return this.subject.wire.bytesWritten
  }

  get released(): boolean {
    return this.subject.released
  }

  get endedIdle(): boolean {
    return this.subject.drained
  }

  get annotate(): Connection["annotate"] {
    return this.subject.annotate
  }

  protected closeSubject(): void {
    this.subject.closeNow()
  }

  protected destroySubject(): void {
    this.subject.destroyNow(false)
  }

  protected override sayFarewell({ bytes, timeout }: NonNullable<Refusal["farewell"]>): void {
    this.subject.wire.write(bytes)
    this.closeSubject()
    if (this.released) return
    const cut = Effect.delay(Effect.sync(() => this.destroySubject()), timeout)
    const timer = Effect.runForkWith(this.server.context)(cut)
    this.whenReleased(() => timer.interruptUnsafe())
  }

  startDrain(): void {
    this.drainingAlone?.openUnsafe()
    this.subject.startDrain()
    this.tellDrain?.()
  }

  // ---- prefaces and handshakes

  protected override readPreface(preface: Preface): Effect.Effect<boolean> {
    const { subject } = this
    return this.inTime(subject.readPreface(preface), preface).pipe(
      Effect.onExit((exit) => Effect.sync(() => Exit.isFailure(exit) && subject.destroyNow(false))),
      Effect.matchCause({ onSuccess: () => !this.isDecided, onFailure: (cause) => this.handshakeFailed(cause) })
    )
  }

  protected override shakeHands(handshake: Handshake, isLast: boolean): Effect.Effect<boolean> {
    const { subject } = this
    const left = isLast && this.server.config.workers?.moves(subject.wire) ? handshake.leave?.(subject.wire) : undefined
    if (left !== undefined) {
      this.left = { ended: left.ended, until: this.server.now() + Duration.toMillis(handshake.timeout) }
      return Effect.onExit(
        this.readPreface(left.first),
        (exit) => Exit.isSuccess(exit) && exit.value ? Effect.void : left.ended(false)
      )
    }
    const run = Effect.suspend(() => handshake.run(subject.wire, () => subject.takeInput()))
    return this.inTime(run, handshake).pipe(
      // Nothing is left of what it began with.
      Effect.onExit((exit) => Effect.sync(() => Exit.isFailure(exit) && subject.onClose())),
      Effect.matchCause({
        onSuccess: (wire) => {
          subject.replaceWire(wire)
          if (this.isDecided) wire.destroy(false)
          return !this.isDecided
        },
        onFailure: (cause) => this.handshakeFailed(cause)
      })
    )
  }

  private inTime<A>(effect: Effect.Effect<A, unknown>, { timeout }: Preface | Handshake): Effect.Effect<A, unknown> {
    return Effect.timeoutOrElse(effect, {
      duration: timeout,
      orElse: () => this.subject.fail(new Timeout({ deadline: "handshakeTimeout" }))
    })
  }

  private handshakeFailed(cause: Cause.Cause<unknown>): false {
    this.decide(CloseReason.HandshakeFailed(Cause.squash(cause)))
    return false
  }

  // ---- how it ended

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    const { drained, lost, wasTimedOut } = this.subject
    let error: ConnectionError | Socket.SocketError | undefined
    if (Exit.isFailure(exit) && !this.isEnd(exit.cause)) {
      if (Cause.hasInterruptsOnly(exit.cause) && this.interruptedByDrain) return CloseReason.Drained
      error = this.ownErrorOf(exit.cause)
      if (error === undefined) return this.handlerFailed(exit.cause)
    }
    if (error !== undefined && isHandshake(error)) return CloseReason.HandshakeFailed(error.reason)
    if (wasTimedOut) return CloseReason.IdleTimeout
    if (lost?._tag === "Reset") return CloseReason.PeerReset
    if (error !== undefined) return CloseReason.TransportFailed(error)
    return drained ? CloseReason.Drained : CloseReason.Completed
  }

  /** To a reader of the connection, or of its `socket`. */
  protected override isEndError(error: unknown): boolean {
    return super.isEndError(error) ||
      (Socket.isSocketError(error) && this.subject.owns(error) && error.reason._tag === "SocketCloseError" &&
        error.reason.code === 1000)
  }

  /** The failure of this very connection that the cause consists of, if it does: nothing that the handler did wrong. */
  private ownErrorOf(cause: Cause.Cause<unknown>): ConnectionError | Socket.SocketError | undefined {
    let found: ConnectionError | Socket.SocketError | undefined
    for (const reason of cause.reasons) {
      if (!Cause.isFailReason(reason) || !this.subject.owns(reason.error)) return undefined
      found = reason.error as ConnectionError | Socket.SocketError
    }
    return found
  }

  // ---- the idle timeout, and the age

  override begin(): void {
    const { config: { maxAge }, idleMillis } = this.server
    if (idleMillis !== undefined) {
      this.subject.trackActivity(this.server.now)
      this.idleTimer = Effect.runForkWith(this.server.context)(this.watchIdle(idleMillis))
    }
    if (maxAge !== undefined) this.ageTimer = Effect.runForkWith(this.server.context)(this.watchAge(maxAge))
    super.begin()
  }

  protected override onFiberEnd(exit: Exit.Exit<void>): void {
    this.idleTimer?.interruptUnsafe()
    this.ageTimer?.interruptUnsafe()
    super.onFiberEnd(exit)
  }

  private watchIdle(limit: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      yield* silence(limit, () => this.subject.silentSince, this.server.now)
      yield* this.onIdle
      this.subject.timeOut()
    })
  }

  private get onIdle(): Effect.Effect<void> {
    const { onTimeout } = this.server.config.options
    return onTimeout === undefined ? Effect.void : Effect.ignoreCause(
      Effect.provideContext(Effect.suspend(() => onTimeout(this.subject)), this.server.context),
      { log: "Error", message: `onTimeout failed for connection ${this.id}` }
    )
  }

  private watchAge({ least, most }: NonNullable<ServerImpl["config"]["maxAge"]>): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      yield* Effect.sleep(yield* Random.nextBetween(least, most))
      this.startDrain()
    })
  }

  // ---- the peer's disappearance

  private get interruptOn(): "reset" | "end" | undefined {
    return this.server.config.options.interruptOnDisconnect
  }

  /** Watched from here on, and not before: what comes first may be a handshake's. */
  override dispatch(): Effect.Effect<void> {
    if (this.interruptOn !== undefined && this.server.config.workers === undefined && !this.isDecided) {
      this.subject.watch()
    }
    return super.dispatch()
  }

  onGone(how: "end" | "reset"): void {
    const { interruptOn } = this
    if (interruptOn === "end" || (interruptOn === "reset" && how === "reset")) this.endWith(CloseReason.PeerReset)
  }

  // ---- its way to a worker

  /** A handshake that the worker makes, and until when. */
  private left: { readonly ended: LeftHandshake["ended"]; readonly until: number } | undefined

  private get handshake(): RemoteConnection["handshake"] {
    const { left } = this
    return left && {
      left: () => Math.max(1, left.until - this.server.now()),
      succeeded: () => void Effect.runForkWith(this.server.context)(left.ended(true)),
      failed: (cause) => {
        Effect.runForkWith(this.server.context)(left.ended(false))
        this.decide(this.draining.isOpen() ? CloseReason.Refused("draining") : CloseReason.HandshakeFailed(cause))
      }
    }
  }

  get remote(): RemoteConnection {
    const { subject } = this
    subject.beRemote()
    return {
      _tag: "Connection",
      connection: subject,
      wire: subject.wire,
      handshake: this.handshake,
      haltInput: () => subject.haltInput(),
      replaceWire: (wire) => subject.replaceWire(wire),
      idleMillis: this.server.idleMillis,
      watch: this.interruptOn === undefined ? undefined : () => subject.watch(),
      onIdle: this.onIdle,
      onDrain: (listener) => {
        if (this.draining.isOpen()) listener()
        else this.tellDrain = listener
      },
      onKill: (kill) => {
        this.killWorker = kill
      },
      ended: (state) => subject.adopt(state),
      own: (error) => void subject.own(error)
    }
  }
}

const isHandshake = (error: ConnectionError | Socket.SocketError): boolean =>
  error.reason._tag === "HandshakeFailed" ||
  (error.reason._tag === "Timeout" && error.reason.deadline === "handshakeTimeout")
