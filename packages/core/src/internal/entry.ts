/**
 * One accepted connection on its way: admitted or refused, queued, handled, closed. An entry decides how its connection
 * ended, once, and is finished when both its fiber and its wire are.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Latch from "effect/Latch"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import type { Step } from "../Admission.ts"
import * as CloseReason from "../CloseReason.ts"
import type { ConnectionError } from "../ConnectionError.ts"
import type { Request } from "../Dispatch.ts"
import type { ConnectionInfo } from "../Server.ts"
import type { Wire } from "../StreamTransport.ts"
import { ConnectionImpl, formatAddress, type Owner } from "./connection.ts"
import type { Registered } from "./registry.ts"
import type { Counts, ServerImpl } from "./server.ts"

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Which entry's handler is this? Asked by a drain that must not wait for its own caller. */
export const CurrentEntry = Context.Reference<Entry | undefined>("@socketserver/core/CurrentEntry", {
  defaultValue: () => undefined
})

export class Entry implements Request, Owner, Registered {
  readonly server: ServerImpl
  readonly id: number
  readonly connection: ConnectionImpl
  readonly openedAt: number
  place = 0
  state: ConnectionInfo["state"] = "admitting"
  waitsForDrain = false

  /** The handler's. */
  private readonly scope = Scope.makeUnsafe()
  private fiber: Fiber.Fiber<void> | undefined
  private fiberEnded = false
  private idleTimer: Fiber.Fiber<void> | undefined
  /** Decided at most once, by whatever ends the connection first. */
  private reason: CloseReason.CloseReason | undefined
  private interruptedByDrain = false
  private killedByDrain = false
  private finished = false

  constructor(server: ServerImpl, id: number, wire: Wire) {
    this.server = server
    this.id = id
    this.openedAt = server.now()
    this.connection = new ConnectionImpl(id, wire, this)
  }

  /**
   * What the handler runs with. Its fiber is made with it, so that nothing is merged or provided later. Not kept: V8 may
   * allocate contexts in the old heap, and young collections would take the entry for alive long after its end. (Bench
   * "churn": 1.38 of raw node:net's CPU time with a field for it.)
   */
  private get context(): Context.Context<never> {
    return Context.add(Context.add(this.server.context, CurrentEntry, this), Scope.Scope, this.scope)
  }

  get draining(): Latch.Latch {
    return this.server.draining
  }

  /** Has the handler begun? */
  get begun(): boolean {
    return this.state === "handling" || this.state === "closing"
  }

  begin(): void {
    const { idleMillis } = this.server
    if (idleMillis !== undefined) {
      this.connection.trackActivity(this.server.now)
      this.idleTimer = Effect.runForkWith(this.server.context)(this.watchIdle(idleMillis))
    }
    const fiber = this.fiber = Effect.runForkWith(this.context)(this.life)
    fiber.addObserver((exit) => this.onFiberEnd(exit))
  }

  // ---- the way to the handler

  private get life(): Effect.Effect<void> {
    const { steps } = this.server.config.transport
    return steps.length === 0
      ? this.dispatch
      : Effect.flatMap(this.admit(steps), (admitted) => admitted ? this.dispatch : Effect.void)
  }

  private admit(steps: ReadonlyArray<Step>): Effect.Effect<boolean> {
    return Effect.gen({ self: this }, function*() {
      for (const { check, policy } of steps) {
        const verdict = yield* Effect.exit(Effect.suspend(() => check(this.connection)))
        if (Exit.isSuccess(verdict) && verdict.value) continue
        const reason = this.decide(CloseReason.Refused(policy))
        if (Exit.isFailure(verdict)) yield* this.onError(Cause.die(Cause.squash(verdict.cause)), reason, "Error")
        this.connection.closeNow()
        return false
      }
      return true
    })
  }

  private get dispatch(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.reason !== undefined) return Effect.void
      this.state = "queued"
      this.server.queued++
      return this.server.config.strategy.run(this)
    })
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
    this.connection.closeNow()
    // A fiber that is not known yet is still in its first, synchronous run: it is the one that asks.
    if (this.fiber !== undefined && this.fiber !== asking) this.fiber.interruptUnsafe()
    return true
  }

  // ---- the handler

  get handle(): Effect.Effect<void> {
    return Effect.withFiber((fiber) => {
      const run = Effect.uninterruptibleMask((restore) => this.run(restore))
      // The request's own fiber has its context from the start. Another one, of a strategy's, gets it here.
      return fiber.getRef(CurrentEntry) === this ? run : Effect.provideContext(run, this.context)
    })
  }

  private run(restore: Restore): Effect.Effect<void> {
    if (this.begun) return Effect.die(new Error(`request ${this.id}: a strategy ran \`handle\` twice`))
    if (this.reason !== undefined) return Effect.void
    this.server.queued--
    this.state = "handling"
    this.server.inFlight++
    return Effect.flatMap(
      Effect.exit(restore(Effect.suspend(() => this.server.config.handler(this.connection)))),
      (exit) => this.settle(exit, restore)
    )
  }

  /** The handler has ended: its finalizers, the verdict, the error hook, the close. */
  private settle(
    handled: Exit.Exit<unknown, unknown>,
    restore: Restore
  ): Effect.Effect<void> {
    const finalizers = Scope.closeUnsafe(this.scope, handled)
    const finalized = finalizers === undefined
      ? Effect.succeed(handled)
      : Effect.map(Effect.exit(finalizers), (exit) => this.withFailure(handled, exit))
    return Effect.flatMap(finalized, (exit) => {
      const reason = this.decide(this.reasonOf(exit))
      return this.isReported(exit)
        ? Effect.andThen(Effect.exit(restore(this.onError(exit.cause, reason))), this.close)
        : this.close
    })
  }

  private get close(): Effect.Effect<void> {
    return Effect.sync(() => {
      this.state = "closing"
      this.server.inFlight--
      this.connection.closeNow()
    })
  }

  private reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    const { drained, lost, wasTimedOut } = this.connection
    let error: ConnectionError | Socket.SocketError | undefined
    if (Exit.isFailure(exit) && !this.isEnd(exit.cause)) {
      if (Cause.hasInterruptsOnly(exit.cause) && this.interruptedByDrain) return CloseReason.Drained
      error = this.ownErrorOf(exit.cause)
      if (error === undefined) return CloseReason.HandlerFailed(exit.cause)
    }
    if (wasTimedOut) return CloseReason.IdleTimeout
    if (lost?._tag === "Reset") return CloseReason.PeerReset
    if (error !== undefined) return CloseReason.TransportFailed(error)
    return drained ? CloseReason.Drained : CloseReason.Completed
  }

  /** Does the cause say nothing but "the input has ended", to a reader of the connection or of its `socket`? */
  private isEnd(cause: Cause.Cause<unknown>): boolean {
    return cause.reasons.length > 0 && cause.reasons.every((reason) =>
      Cause.isFailReason(reason) && (
        Cause.isDone(reason.error) ||
        (Socket.isSocketError(reason.error) && this.connection.owns(reason.error) &&
          reason.error.reason._tag === "SocketCloseError" && reason.error.reason.code === 1000)
      )
    )
  }

  /** The failure of this very connection that the cause consists of, if it does: nothing that the handler did wrong. */
  private ownErrorOf(cause: Cause.Cause<unknown>): ConnectionError | Socket.SocketError | undefined {
    let found: ConnectionError | Socket.SocketError | undefined
    for (const reason of cause.reasons) {
      if (!Cause.isFailReason(reason) || !this.connection.owns(reason.error)) return undefined
      found = reason.error as ConnectionError | Socket.SocketError
    }
    return found
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

  private decide(reason: CloseReason.CloseReason): CloseReason.CloseReason {
    return this.reason ??= reason
  }

  private onError(
    cause: Cause.Cause<unknown>,
    reason: CloseReason.CloseReason,
    level: "Error" | "Debug" = CloseReason.logLevel(reason)
  ): Effect.Effect<void> {
    const { onError } = this.server.config.options
    const handled = onError === undefined
      ? Effect.logWithLevel(level)(
        `connection ${this.id} from ${formatAddress(this.connection.peer)}: ${reason._tag}`,
        cause
      )
      : Effect.suspend(() => onError(cause, this.connection, reason))
    return Effect.ignoreCause(Effect.provideContext(handled, this.server.context), {
      log: "Error",
      message: `onError failed for connection ${this.id}`
    })
  }

  // ---- deadlines and ends from outside

  private watchIdle(limit: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      while (true) {
        const since = this.connection.silentSince
        const left = since === undefined ? limit : since + limit - this.server.now()
        if (left <= 0) break
        yield* Effect.sleep(left)
      }
      const { onTimeout } = this.server.config.options
      if (onTimeout !== undefined) {
        yield* Effect.ignoreCause(
          Effect.provideContext(Effect.suspend(() => onTimeout(this.connection)), this.server.context),
          { log: "Error", message: `onTimeout failed for connection ${this.id}` }
        )
      }
      this.connection.timeOut()
    })
  }

  closeByHand(): boolean {
    if (!this.begun) return this.endEarly(CloseReason.Killed)
    if (this.reason !== undefined) return false
    this.decide(CloseReason.Killed)
    this.fiber?.interruptUnsafe()
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
    this.decide(CloseReason.Killed)
    this.connection.destroyNow(false)
    this.fiber?.interruptUnsafe()
    this.finish()
  }

  drainOutcome(reason: CloseReason.CloseReason): keyof Counts {
    if (this.killedByDrain) return "killed"
    if (reason._tag === "Refused") return "refused"
    if (this.interruptedByDrain) return "interrupted"
    return this.connection.drained ? "idleClosed" : "completed"
  }

  // ---- the end

  private onFiberEnd(exit: Exit.Exit<void>): void {
    this.fiberEnded = true
    this.idleTimer?.interruptUnsafe()
    if (this.state === "queued") this.server.queued--
    if (this.reason === undefined) {
      // The strategy neither ran nor refused it: it failed, or it dropped the request.
      const reason = this.decide(
        Exit.isFailure(exit) ? CloseReason.HandlerFailed(exit.cause) : CloseReason.Refused("dispatch")
      )
      if (this.isReported(exit)) Effect.runForkWith(this.server.context)(this.onError(exit.cause, reason))
    }
    this.connection.closeNow()
    this.onReleased()
  }

  /** Ends when both have: the fiber, and the wire. */
  onReleased(): void {
    if (this.fiberEnded && this.connection.released) this.finish()
  }

  private finish(): void {
    if (this.finished) return
    this.finished = true
    this.server.remove(this, this.reason!)
  }

  info(): ConnectionInfo {
    const { annotations, local, peer, wire } = this.connection
    return {
      id: this.id,
      peer,
      local,
      state: this.state,
      age: Duration.millis(this.server.now() - this.openedAt),
      bytesRead: wire.bytesRead,
      bytesWritten: wire.bytesWritten,
      annotations: new Map(annotations)
    }
  }
}
