/**
 * One request on its way, a connection or a datagram: admitted or refused, queued, handled, closed. An entry decides how its
 * request ended, once, and is finished when its fiber is, and what it stands for is released. What connections and datagrams
 * do differently is in `connectionEntry.ts` and `datagramEntry.ts`.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Scope from "effect/Scope"
import type { Refusal, Ticket, Verdict } from "../Admission.ts"
import * as CloseReason from "../CloseReason.ts"
import type { Request, Strategy } from "../Dispatch.ts"
import { FrameError } from "../FrameError.ts"
import type { ConnectionInfo } from "../Server.ts"
import type { RequestKind } from "../ServerEvent.ts"
import type { Handshake, Preface } from "../StreamTransport.ts"
import { WorkerError } from "../WorkerError.ts"
import { Timer } from "./deadlines.ts"
import type { Observed, ObservedRequest } from "./observed.ts"
import type { Registered } from "./registry.ts"
import type { Check, Counts, ServerImpl } from "./server.ts"

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Which entry's handler is this? Asked by a drain that must not wait for its own caller. */
export const CurrentEntry = Context.Reference<Entry | undefined>("@socketserver/core/CurrentEntry", {
  defaultValue: () => undefined
})

export abstract class Entry implements Request, Registered, Ticket {
  readonly server: ServerImpl
  readonly id: number
  place = 0
  state: ConnectionInfo["state"] = "admitting"
  waitsForDrain = false

  /** The handler's. */
  private readonly scope = Scope.makeUnsafe()
  private fiber: Fiber.Fiber<void> | undefined
  private fiberEnded = false
  /** Decided at most once, by whatever ends the connection first. */
  protected reason: CloseReason.CloseReason | undefined
  protected interruptedByDrain = false
  private killedByDrain = false
  /** Where the handler runs in a worker: how to end that. */
  protected killWorker: (() => void) | undefined
  finished = false
  /** By whoever follows it. */
  observed: Observed | undefined
  /** What admission steps want to be told. */
  private releases: Array<() => void> | undefined
  // Not set before it is needed, which it seldom is.
  declare private goneLatch: Latch.Latch | undefined
  /** Is it to end that has ended itself in its fiber's first, synchronous run, when that was not known yet? */
  declare private endsAtOnce: boolean | undefined
  private opened: number | undefined
  private handlingSince: number | undefined
  private timer: Timer | undefined

  constructor(server: ServerImpl, id: number) {
    this.server = server
    this.id = id
    this.opened = server.tellsRequests ? server.now() : undefined
  }

  /** A request that is answered at once, unobserved, does without a look at the clock. */
  get openedAt(): number {
    return this.opened ??= this.server.now()
  }

  // ---- what it stands for

  /** For people. */
  abstract readonly kind: RequestKind
  /** What handlers and hooks are given. */
  abstract readonly subject: any
  /** What admission steps are asked about. */
  protected get candidate(): any {
    return this.subject
  }
  abstract readonly peer: SocketAddress
  abstract readonly local: SocketAddress
  abstract readonly annotations: Map<string, unknown> | undefined
  abstract readonly bytesRead: number
  abstract readonly bytesWritten: number
  /** Is nothing of it left? */
  abstract readonly released: boolean
  /** Was it a drain that ended it, while it was idle? */
  abstract readonly endedIdle: boolean
  abstract readonly annotate: (key: string, value: unknown) => Effect.Effect<void>
  /** In order, as at the end of a handler. */
  protected abstract closeSubject(): void
  /** At once. */
  protected abstract destroySubject(): void
  /** For so many milliseconds of its life, a peer that has said nothing yet may still do so. */
  abstract startDrain(expected: number): void
  /** Says how a handler's exit ended the request. */
  protected abstract reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason

  /** Does the cause say nothing but "the input has ended"? */
  protected isEnd(cause: Cause.Cause<unknown>): boolean {
    return cause.reasons.length > 0 &&
      cause.reasons.every((reason) => Cause.isFailReason(reason) && this.isEndError(reason.error))
  }

  protected isEndError(error: unknown): boolean {
    return Cause.isDone(error)
  }

  /** The handler has failed, or the worker that it ran in. */
  handlerFailed(cause: Cause.Cause<unknown>): CloseReason.CloseReason {
    for (const reason of cause.reasons) {
      // The peer's doing, if it is of its bytes; of a reply it would be a defect.
      if (Cause.isFailReason(reason) && reason.error instanceof FrameError && cause.reasons.length === 1) {
        return CloseReason.InvalidFrame(reason.error)
      }
      if (!Cause.isDieReason(reason) || !(reason.defect instanceof WorkerError)) continue
      const { reason: why } = reason.defect
      return why._tag === "WorkerTimeout"
        ? CloseReason.WorkerTimeout
        : CloseReason.WorkerCrashed(why._tag === "WorkerCrashed" ? why.cause : why)
    }
    return CloseReason.HandlerFailed(cause)
  }

  /**
   * What the handler runs with. Its fiber is made with it, so that nothing is merged or provided later. Not kept: V8 may
   * allocate contexts in the old heap, and young collections would take the entry for alive long after its end. (Bench
   * "churn": 1.38 of raw node:net's CPU time with a field for it.)
   */
  protected get context(): Context.Context<never> {
    return Context.add(Context.add(this.surroundings, Scope.Scope, this.scope), CurrentEntry, this)
  }

  /** The server's, and the span of this request if there is one. */
  private get surroundings(): Context.Context<never> {
    const { observed, server: { context } } = this
    return observed === undefined ? context : observed.within(context)
  }

  /** Has the handler begun? */
  get begun(): boolean {
    return this.state === "handling" || this.state === "closing"
  }

  begin(): void {
    const fiber = this.fiber = Effect.runForkWith(this.context)(this.life)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) return this.onFiberEnd(exit)
    this.opened ??= this.server.now()
    if (this.isTimed) this.lookBy(this.opened)
    fiber.addObserver((exit) => this.onFiberEnd(exit))
    if (this.endsAtOnce) fiber.interruptUnsafe()
  }

  // ---- the way to the handler

  private get life(): Effect.Effect<void> {
    const { steps } = this.server.config.transport
    return steps.length === 0 ? dispatch : this.admit(steps, 0)
  }

  /** A step that answers at once costs no effect: one that nobody notices may stand in front of every server. */
  private admit(steps: ReadonlyArray<Check | Preface | Handshake>, from: number): Effect.Effect<void> {
    for (let i = from; i < steps.length; i++) {
      const step = steps[i]!
      if (!("policy" in step)) {
        const said = "preface" in step ? this.readPreface(step) : this.shakeHands(step, i === steps.length - 1)
        return Effect.flatMap(said, (done) => done ? this.admit(steps, i + 1) : Effect.void)
      }
      const verdict = this.ask(step)
      if (verdict === true) continue
      if (Effect.isEffect(verdict)) {
        const settled = Effect.flatMap(Effect.exit(verdict), (exit) => this.obey(step, exit))
        return Effect.flatMap(settled, (admitted) => admitted ? this.admit(steps, i + 1) : Effect.void)
      }
      this.turnAway(step, verdict)
      return Effect.void
    }
    return dispatch
  }

  private ask({ check }: Check): Verdict | Effect.Effect<Verdict, unknown> {
    try {
      return check(this.candidate, this)
    } catch (defect) {
      return Effect.die(defect)
    }
  }

  private obey(step: Check, exit: Exit.Exit<Verdict, unknown>): Effect.Effect<boolean> {
    if (Exit.isSuccess(exit)) {
      if (exit.value !== true) this.turnAway(step, exit.value)
      return Effect.succeed(exit.value === true)
    }
    // Closed meanwhile, and that is what the check has failed with.
    if (this.reason !== undefined) return Effect.succeed(false)
    const reason = this.decide(CloseReason.Refused(step.policy))
    const level = this.isPeersEnd(exit.cause) ? "Debug" : "Error"
    return Effect.map(this.onError(Cause.die(Cause.squash(exit.cause)), reason, level), () => {
      this.closeSubject()
      return false
    })
  }

  private turnAway({ policy }: Check, refusal: Refusal | false): void {
    this.decide(CloseReason.Refused(policy))
    if (refusal === false) this.closeSubject()
    else if (refusal.farewell === undefined) this.destroySubject()
    else this.sayFarewell(refusal.farewell)
  }

  /** Only connections can be told something. */
  protected sayFarewell(_: NonNullable<Refusal["farewell"]>): void {
    this.destroySubject()
  }

  whenReleased(release: () => void): void {
    if (this.finished) release()
    else (this.releases ??= []).push(release)
  }

  /** Completes when nothing is left of it. */
  get gone(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.goneLatch === undefined) {
        const latch = this.goneLatch = Latch.makeUnsafe(false)
        this.whenReleased(() => void latch.openUnsafe())
      }
      return this.goneLatch.await
    })
  }

  /** Reads it, and says whether that succeeded. Only connections have one. */
  protected readPreface({ preface }: Preface): Effect.Effect<boolean> {
    return Effect.die(new Error(`${this.kind} ${this.id}: no ${preface} preface without a connection`))
  }

  /** Does it, and says whether it succeeded. Only connections have something to say. */
  protected shakeHands({ handshake }: Handshake, _isLast: boolean): Effect.Effect<boolean> {
    return Effect.die(new Error(`${this.kind} ${this.id}: no ${handshake} handshake without a connection`))
  }

  /** Called in the request's own fiber. */
  dispatch(): Effect.Effect<void> {
    if (this.reason !== undefined) return Effect.void
    this.state = "queued"
    this.server.queued++
    this.followed?.queued()
    return this.strategy(this)
  }

  protected get strategy(): Strategy {
    return this.server.config.strategy.run
  }

  /** How much of what is in flight it is. */
  protected get weight(): number {
    return 1
  }

  /** By whoever follows its handler. */
  protected get followed(): Observed | undefined {
    return this.observed
  }

  /** How long its handler may run. */
  protected get requestMillis(): number {
    return this.server.requestMillis
  }

  refuse(policy: string): Effect.Effect<void> {
    return Effect.withFiber((fiber) => {
      this.endEarly(CloseReason.Refused(policy), fiber)
      return Effect.void
    })
  }

  /** Ends a request whose handler has not begun: its connection, and its fiber, unless that is the one that asks. */
  endEarly(reason: CloseReason.CloseReason, asking?: Fiber.Fiber<unknown, unknown>): boolean {
    if (this.begun || this.reason !== undefined) return false
    this.decide(reason)
    this.closeSubject()
    // A fiber that is not known yet is still in its first, synchronous run: it is the one that asks.
    if (this.fiber !== undefined && this.fiber !== asking) this.fiber.interruptUnsafe()
    return true
  }

  // ---- the handler

  get handle(): Effect.Effect<void> {
    return Effect.uninterruptibleMask((restore) => {
      const run = this.run(restore)
      // The request's own fiber has its context from the start. Another one, of a strategy's, gets it here.
      return Fiber.getCurrent()!.getRef(CurrentEntry) === this ? run : Effect.provideContext(run, this.context)
    })
  }

  private run(restore: Restore): Effect.Effect<void> {
    if (this.begun) return Effect.die(new Error(`request ${this.id}: a strategy ran \`handle\` twice`))
    if (this.reason !== undefined) return Effect.void
    this.state = "handling"
    if (this.requestMillis < Infinity) this.handlingSince = this.server.now()
    this.server.inFlight += this.weight
    this.server.leaveQueue()
    const { followed } = this
    followed?.begun()
    const called = this.callHandler()
    const handling: Effect.Effect<unknown, unknown> = followed === undefined
      ? called
      : Effect.updateContext(called, (context: Context.Context<never>) => followed.within(context))
    return Effect.matchCauseEffect(restore(handling), {
      onSuccess: (value) => this.settle(value === undefined ? Exit.void : Exit.succeed(value), restore),
      onFailure: (cause) => this.settle(Exit.failCause(cause), restore)
    })
  }

  /** Not suspended: it runs in the fiber already (bench "udp": each effect that need not be made counts). */
  protected callHandler(): Effect.Effect<unknown, unknown> {
    try {
      return this.server.config.handler(this.subject)
    } catch (defect) {
      return Effect.die(defect)
    }
  }

  /** The handler has ended: its finalizers, the verdict, the error hook, the close. */
  private settle(
    handled: Exit.Exit<unknown, unknown>,
    restore: Restore
  ): Effect.Effect<void> {
    const finalizers = Scope.closeUnsafe(this.scope, handled)
    return finalizers === undefined
      ? this.conclude(handled, restore)
      : Effect.flatMap(Effect.exit(finalizers), (exit) => this.conclude(this.withFailure(handled, exit), restore))
  }

  private conclude(exit: Exit.Exit<unknown, unknown>, restore: Restore): Effect.Effect<void> {
    const reason = this.decide(this.reasonOf(exit))
    if (this.isReported(exit)) {
      return Effect.map(Effect.exit(restore(this.onError(exit.cause, reason))), () => this.close(reason, exit.cause))
    }
    this.close(reason)
    return Effect.void
  }

  private close(reason: CloseReason.CloseReason, cause?: Cause.Cause<unknown>): void {
    this.state = "closing"
    this.server.inFlight -= this.weight
    this.followed?.handled(reason, cause)
    this.closeSubject()
  }

  /** A handler's exit and that of its finalizers: what either failed with is kept. */
  private withFailure(
    handled: Exit.Exit<unknown, unknown>,
    finalized: Exit.Exit<unknown, unknown>
  ): Exit.Exit<unknown, unknown> {
    if (Exit.isSuccess(finalized)) return handled
    if (Exit.isSuccess(handled)) return finalized
    return Exit.failCause(this.isEnd(handled.cause) ? finalized.cause : Cause.combine(handled.cause, finalized.cause))
  }

  private isReported(exit: Exit.Exit<unknown, unknown>): exit is Exit.Failure<unknown, unknown> {
    return Exit.isFailure(exit) && !this.isEnd(exit.cause) && !Cause.hasInterruptsOnly(exit.cause)
  }

  /** Is it known how it ends? */
  protected get isDecided(): boolean {
    return this.reason !== undefined
  }

  decide(reason: CloseReason.CloseReason): CloseReason.CloseReason {
    return this.reason ??= reason
  }

  onError(
    cause: Cause.Cause<unknown>,
    reason: CloseReason.CloseReason,
    level?: "Error" | "Debug"
  ): Effect.Effect<void> {
    const { onError } = this.server.config.options
    if (onError !== undefined) return this.hook("onError", () => onError(cause, this.subject, reason))
    this.tellFailure(cause, reason, { level })
    return Effect.void
  }

  /** Its own failure, or that of a part of it. */
  tellFailure(
    cause: Cause.Cause<unknown>,
    reason: CloseReason.CloseReason,
    { id = this.id, kind = this.kind, level = CloseReason.logLevel(reason), observed = this.observed }: {
      readonly id?: number
      readonly kind?: RequestKind
      readonly observed?: ObservedRequest | undefined
      readonly level?: "Error" | "Debug" | undefined
    } = {}
  ): void {
    if (level === "Debug" && !this.server.tellsRequests) return
    const { peer } = this
    const annotations = new Map(this.annotations)
    this.server.tell({ _tag: "Failed", level, kind, id, peer, reason, cause, annotations }, observed)
  }

  /** Runs one of the user's hooks. What it fails with is told, and nothing more. */
  protected hook(name: string, run: () => Effect.Effect<void, unknown>): Effect.Effect<void> {
    return Effect.catchCause(
      Effect.provideContext(Effect.suspend(run), this.surroundings),
      (cause) => Effect.sync(() => this.hookFailed(name, cause))
    )
  }

  hookFailed(name: string, cause: Cause.Cause<unknown>, subject = `${this.kind} ${this.id}`): void {
    if (Cause.hasInterruptsOnly(cause)) return
    const level = this.isPeersEnd(cause) ? "Debug" : "Error"
    this.server.publish({ _tag: "Problem", level, message: `${name} failed for ${subject}`, cause })
  }

  /** Is it nothing but a failure to speak with the peer, or that it has nothing more to say? */
  private isPeersEnd(cause: Cause.Cause<unknown>): boolean {
    return this.isEnd(cause) || this.isPeersDoing(cause)
  }

  /** Is it a failure to speak with the peer, and nothing else? */
  protected abstract isPeersDoing(cause: Cause.Cause<unknown>): boolean

  // ---- deadlines and ends from outside

  /** Is there anything to look at from the beginning? */
  protected get isTimed(): boolean {
    return this.server.requestMillis < Infinity
  }

  /** Does what is due, and says in how many milliseconds something else could be. */
  protected checkDeadlines(now: number): number {
    const { requestMillis } = this
    if (requestMillis === Infinity || this.state === "closing") return Infinity
    const left = (this.handlingSince ?? now) + requestMillis - now
    if (left > 0) return left
    this.endWith(CloseReason.RequestTimeout)
    return Infinity
  }

  /** Has the deadlines looked at by then. */
  lookBy(time: number): void {
    if (this.finished) return
    const { context, now } = this.server
    this.timer ??= new Timer(() => this.checkDeadlines(now()), now, Effect.runForkWith(context))
    this.timer.by(time)
  }

  onKill(kill: () => void): void {
    this.killWorker = kill
  }

  /** Ends it for that reason, if it has none yet: a handler is interrupted. */
  endWith(reason: CloseReason.CloseReason): boolean {
    if (!this.begun) return this.endEarly(reason)
    if (this.reason !== undefined) return false
    this.decide(reason)
    if (this.fiber === undefined) this.endsAtOnce = true
    else this.fiber.interruptUnsafe()
    return true
  }

  /** The drain's first deadline. */
  interrupt(): void {
    if (this.state === "closing") return
    this.interruptedByDrain = true
    this.fiber?.interruptUnsafe()
  }

  /** The drain's last deadline: nobody waits for this connection any more. */
  kill(): void {
    this.killedByDrain = true
    this.killWorker?.()
    this.decide(CloseReason.Killed)
    this.destroySubject()
    this.fiber?.interruptUnsafe()
    this.finish()
  }

  drainOutcome(reason: CloseReason.CloseReason): keyof Counts {
    if (this.killedByDrain) return "killed"
    if (reason._tag === "Refused") return "refused"
    if (this.interruptedByDrain) return "interrupted"
    return this.endedIdle ? "idleClosed" : "completed"
  }

  // ---- the end

  protected onFiberEnd(exit: Exit.Exit<void>): void {
    this.fiberEnded = true
    if (this.state === "queued") this.server.leaveQueue()
    if (this.reason === undefined) {
      // The strategy neither ran nor refused it: it failed, or it dropped the request.
      const reason = this.decide(
        Exit.isFailure(exit) ? CloseReason.HandlerFailed(exit.cause) : CloseReason.Refused("dispatch")
      )
      if (this.isReported(exit)) Effect.runForkWith(this.server.context)(this.onError(exit.cause, reason))
    }
    this.closeSubject()
    this.onReleased()
  }

  /** Ends when both have: the fiber, and the wire. */
  onReleased(): void {
    if (this.fiberEnded && this.released) this.finish()
  }

  private finish(): void {
    if (this.finished) return
    this.finished = true
    this.timer?.stop()
    if (this.releases !== undefined) { for (const release of this.releases) release() }
    this.server.remove(this, this.reason!)
  }

  info(): ConnectionInfo {
    const { annotations, bytesRead, bytesWritten, id, local, peer, state } = this
    return {
      id,
      peer,
      local,
      state,
      age: Duration.millis(this.server.now() - this.openedAt),
      bytesRead,
      bytesWritten,
      annotations: new Map(annotations)
    }
  }
}

/** Of whichever request's fiber it runs in: one effect for all of them. */
const dispatch: Effect.Effect<void> = Effect.withFiber((fiber) => fiber.getRef(CurrentEntry)!.dispatch())
