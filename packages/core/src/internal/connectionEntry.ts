/** A connection as a request: it has a wire to be released, deadlines, and errors that are its peer's doing. */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
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
import type { Handshake, Preface, Wire } from "../StreamTransport.ts"
import type { RemoteConnection } from "../WorkerDispatch.ts"
import { ConnectionImpl, type Owner, type ReadDeadline } from "./connection.ts"
import type { Remotable } from "./dispatching.ts"
import { Entry } from "./entry.ts"
import type { Observed } from "./observed.ts"
import type { ServerImpl } from "./server.ts"

export class ConnectionEntry extends Entry implements Owner, Remotable {
  readonly subject: ConnectionImpl
  /** When it has reached its full age. */
  private agesAt = Infinity
  /** The end of a read's deadline, while `onTimeout` runs. */
  private timingOut: Fiber.Fiber<void> | undefined
  /** Its own, where it may be drained alone. */
  private readonly drainingAlone: Latch.Latch | undefined
  /** Tells the worker that has the connection. */
  private tellDrain: ((expected: number) => void) | undefined

  constructor(server: ServerImpl, id: number, wire: Wire) {
    super(server, id)
    this.drainingAlone = server.config.maxAge === undefined ? undefined : Latch.makeUnsafe(server.draining.isOpen())
    this.subject = new ConnectionImpl(id, wire, this)
  }

  get kind(): "connection" {
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

  startDrain(expected: number): void {
    this.drainingAlone?.openUnsafe()
    const until = this.expectedUntil(expected)
    this.subject.startDrain(until)
    if (until !== undefined) this.lookBy(this.server.now())
    this.tellDrain?.(until === undefined ? 0 : until - this.server.now())
  }

  /** Until when something may come of a peer that has said nothing yet, unless that is past. */
  private expectedUntil(expected: number): number | undefined {
    const until = this.openedAt + expected
    return this.subject.wire.isImmediate === true || until <= this.server.now() ? undefined : until
  }

  // ---- prefaces and handshakes

  /** Follows a handshake, if somebody follows the connection. */
  get observeHandshake(): Observed["handshake"] | undefined {
    const { observed } = this
    return observed && ((name, shaking) => observed.handshake(name, shaking))
  }

  protected override readPreface(preface: Preface): Effect.Effect<boolean> {
    return this.read(preface, this.observed)
  }

  private read(preface: Preface, observed: Observed | undefined): Effect.Effect<boolean> {
    const { subject } = this
    const reading = this.inTime(subject.readPreface(preface), preface)
    return (observed?.handshake(preface.preface, reading) ?? reading).pipe(
      Effect.onExit((exit) => Effect.sync(() => Exit.isFailure(exit) && subject.destroyNow(false))),
      Effect.matchCause({ onSuccess: () => !this.isDecided, onFailure: (cause) => this.handshakeFailed(cause) })
    )
  }

  protected override shakeHands(handshake: Handshake, isLast: boolean): Effect.Effect<boolean> {
    const { observed, subject } = this
    const first = isLast && this.server.config.workers?.moves(subject.wire)
      ? handshake.leave?.(subject.wire)
      : undefined
    if (first !== undefined) {
      this.left = { ended: this.followHandshake(), until: this.server.now() + Duration.toMillis(handshake.timeout) }
      return this.read(first, undefined)
    }
    const shaking = this.inTime(Effect.suspend(() => handshake.run(subject.wire, () => subject.takeInput())), handshake)
    // What only allows one for later takes no time, and is none.
    const isNone = handshake.handshake === "startTls"
    const seen = observed === undefined || isNone ? shaking : observed.handshake(handshake.handshake, shaking)
    return seen.pipe(
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
    const { drained, lost, overrun, stalled } = this.subject
    let error: ConnectionError | Socket.SocketError | undefined
    if (Exit.isFailure(exit) && !this.isEnd(exit.cause)) {
      error = this.ownErrorOf(exit.cause)
      const isInterrupted = error === undefined ? Cause.hasInterruptsOnly(exit.cause) : Cause.hasInterrupts(exit.cause)
      if (isInterrupted && this.interruptedByDrain) return CloseReason.Drained
      if (error === undefined) return this.handlerFailed(exit.cause)
    }
    if (error !== undefined && isHandshake(error)) return CloseReason.HandshakeFailed(error.reason)
    if (stalled) return CloseReason.WriteTimeout
    if (overrun !== undefined) return overrun === "idleTimeout" ? CloseReason.IdleTimeout : CloseReason.ReadTimeout
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

  protected isPeersDoing(cause: Cause.Cause<unknown>): boolean {
    return this.ownErrorOf(cause) !== undefined
  }

  /**
   * The failure of this very connection that the cause consists of, if it does: nothing that the handler did wrong. What an
   * interrupted handler had to say yet may have failed so, too.
   */
  private ownErrorOf(cause: Cause.Cause<unknown>): ConnectionError | Socket.SocketError | undefined {
    let found: ConnectionError | Socket.SocketError | undefined
    for (const reason of cause.reasons) {
      if (Cause.isInterruptReason(reason)) continue
      if (!Cause.isFailReason(reason) || !this.subject.owns(reason.error)) return undefined
      found = reason.error as ConnectionError | Socket.SocketError
    }
    return found
  }

  // ---- deadlines

  override begin(): void {
    const { config: { maxAge }, context, patience } = this.server
    if (Math.min(patience.idle, patience.read) < Infinity) this.subject.trackActivity(this.server.now)
    if (maxAge !== undefined) {
      const age = Random.nextBetween(maxAge.least, maxAge.most)
      this.agesAt = this.openedAt + Effect.runSyncWith(context)(age)
    }
    super.begin()
  }

  protected override get isTimed(): boolean {
    const { patience } = this.server
    return super.isTimed || this.agesAt < Infinity || Math.min(patience.idle, patience.read) < Infinity
  }

  protected override checkDeadlines(now: number): number {
    if (now >= this.agesAt) {
      this.agesAt = Infinity
      this.startDrain(0)
    }
    const next = this.checkPatience(now)
    if (typeof next === "number") return Math.min(super.checkDeadlines(now), this.agesAt - now, next)
    this.timingOut = Effect.runForkWith(this.server.context)(
      Effect.map(this.onTimeout, () => this.subject.timeOut(next))
    )
    return this.checkDeadlines(now)
  }

  protected checkPatience(now: number): ReadDeadline | number {
    return this.subject.checkDeadlines(this.server.patience, now)
  }

  protected override onFiberEnd(exit: Exit.Exit<void>): void {
    this.timingOut?.interruptUnsafe()
    super.onFiberEnd(exit)
  }

  private get onTimeout(): Effect.Effect<void> {
    const { onTimeout } = this.server.config.options
    return onTimeout === undefined ? Effect.void : this.hook("onTimeout", () => onTimeout(this.subject))
  }

  onOutputWaits(): number | undefined {
    const { now, patience: { write } } = this.server
    if (write === Infinity) return undefined
    const since = now()
    this.lookBy(since + write / 4)
    return since
  }

  // ---- the peer's disappearance

  private get interruptOn(): "reset" | "end" | undefined {
    return this.server.config.options.interruptOnDisconnect
  }

  /**
   * Watched from here on, and not before: what comes first may be a handshake's. For a worker only if it has to wait for one: a
   * socket that was read from stays here, and its bytes travel.
   */
  override dispatch(): Effect.Effect<void> {
    if (this.interruptOn !== undefined && !this.isDecided) {
      if (this.server.config.workers === undefined) this.subject.watch()
      else queueMicrotask(() => this.state === "queued" && this.subject.watch())
    }
    return super.dispatch()
  }

  onGone(how: "end" | "reset"): void {
    const { interruptOn, subject: { stalled } } = this
    if (stalled && this.state === "closing") return this.onLastOutputLost()
    if (interruptOn === "end" || (interruptOn === "reset" && how === "reset")) {
      this.endWith(stalled ? CloseReason.WriteTimeout : CloseReason.PeerReset)
    }
  }

  /** The handler had done its part. */
  private onLastOutputLost(): void {
    if (this.reason === CloseReason.Completed || this.reason === CloseReason.Drained) {
      this.reason = CloseReason.WriteTimeout
    }
  }

  // ---- its way to a worker

  /** A handshake that the worker makes, and until when. */
  private left: { readonly ended: (succeeded: boolean) => void; readonly until: number } | undefined

  /** Follows a handshake that a worker makes: it has ended when the result is called, or with the connection. */
  private readonly followHandshake = (): (succeeded: boolean) => void => {
    const { observed } = this
    if (observed === undefined) return () => {}
    const end = Deferred.makeUnsafe<void, string>()
    Effect.runForkWith(this.server.context)(Effect.ignore(observed.handshake("tls", Deferred.await(end))))
    const ended = (succeeded: boolean) => {
      Deferred.doneUnsafe(end, succeeded ? Effect.void : Effect.fail("the handshake failed"))
    }
    this.whenReleased(() => ended(false))
    return ended
  }

  private get handshake(): RemoteConnection["handshake"] {
    const { left } = this
    return left && {
      left: () => Math.max(1, left.until - this.server.now()),
      succeeded: () => left.ended(true),
      failed: (cause) => {
        left.ended(false)
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
      followHandshake: this.followHandshake,
      haltInput: () => subject.haltInput(),
      replaceWire: (wire) => subject.replaceWire(wire),
      patience: this.server.patience,
      watch: this.interruptOn === undefined ? undefined : () => subject.watch(),
      onTimeout: this.onTimeout,
      onDrain: (listener) => {
        if (this.draining.isOpen()) listener(0)
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
