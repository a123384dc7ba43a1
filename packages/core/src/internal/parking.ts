/**
 * A place where one fiber waits until it is woken. `Effect.callback` does that too, for three closures and two primitives
 * each time; this does it for none (bench "ping-pong 64 B × 64 unix": 0.87 of raw node:net with `Effect.callback`). And a way
 * to go on at once, for what has not to wait (bench "lines pipelined", loop: a quarter of the interpreter's time).
 *
 * It rests on what a fiber of Effect looks like inside, which is not documented. So it is tried out once, before its first
 * use; where it does not work as it must, `Effect.callback` does the same. Nothing else in the project knows of any of this.
 */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"

/** The inside of a fiber, as far as it is used here. */
interface Insides {
  /** What is to be done with the result of what runs now, last first. */
  readonly _stack: Array<unknown>
  /** Set while the fiber is suspended; called when it goes on. */
  _yielded: () => void
  readonly evaluate: (effect: Effect.Effect<any, any>) => void
  /** Where it was suspended, for what others store by where code runs (`AsyncLocalStorage` of Node's). */
  readonly _asyncContext?:
    | { readonly runInAsyncScope: <A, B>(run: (input: A) => B, self: undefined, input: A) => B }
    | undefined
  /** Goes on with what is on the stack; what it returns is for the run loop. */
  readonly succeedWith: <A>(value: A) => Effect.Effect<A>
}

/** What an effect returns to the run loop of a fiber that it has suspended. */
const suspended = Symbol.for("effect/Effect/Yield") as never
/** The method of what lies on the stack that is called when its turn comes, whether with a success or with a failure. */
const onPassed = "~effect/Effect/ensureCont"
const nothing = () => {}

export interface Owner<A, E> {
  /** Runs in the fiber that was woken: what it goes on with. It may park again. */
  readonly onWoken: (fiber: Fiber.Fiber<unknown, unknown>) => Effect.Effect<A, E>
  /** Runs in the fiber that was woken to take something, which is there: what it succeeds with. */
  readonly onTaken: () => A
}

export class Parking<A, E> {
  private readonly owner: Owner<A, E>
  private fiber: Insides | undefined
  private resume: ((effect: Effect.Effect<A, E>) => void) | undefined
  /** How often a fiber was woken, and went on. */
  private woken = 0
  private asking = false

  constructor(owner: Owner<A, E>) {
    this.owner = owner
  }

  /** Suspends `fiber`, in which this must be called, as the last thing that an `Effect.withFiber` does. */
  park(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<A, E> {
    if (!usable()) return this.callback ??= this.makeCallback()
    const insides = this.fiber = fiber as unknown as Insides
    insides._stack.push(this)
    insides._yielded = nothing
    return suspended
  }

  /**
   * No finalizer that would tell of an interrupt: it would cost as much as all the rest. What is woken is nobody then, which
   * is as good a sign. (Bench "ping-pong 64 B × 64", documented ways: 0.87 of raw node:net with a finalizer.)
   */
  private callback: Effect.Effect<A, E> | undefined
  private makeCallback(): Effect.Effect<A, E> {
    return Effect.callback((resume) => {
      this.resume = resume
    })
  }

  /** Wakes the fiber that waits, which runs at once. Is there one, or has it been interrupted? */
  wake(): boolean {
    return this.run(this.goOn ??= this.makeGoOn())
  }

  /** The same for a fiber that has only to take something: a primitive less. */
  wakeToTake(): boolean {
    return this.run(this.take ??= this.makeTake())
  }

  private run(effect: Effect.Effect<A, E>): boolean {
    const { fiber, woken } = this
    if (fiber === undefined) this.resume?.(effect)
    else {
      this.fiber = undefined
      fiber.evaluate(effect)
    }
    return this.woken !== woken
  }

  private goOn: Effect.Effect<A, E> | undefined
  private makeGoOn(): Effect.Effect<A, E> {
    return Effect.withFiber((fiber) => {
      this.woken++
      return this.asking ? this.park(fiber) : this.owner.onWoken(fiber)
    })
  }

  private take: Effect.Effect<A> | undefined
  private makeTake(): Effect.Effect<A> {
    return Effect.sync(() => {
      this.woken++
      return this.owner.onTaken()
    })
  }

  /** Does a fiber wait here for certain? Nobody knows that of one that waits in `Effect.callback`. */
  get parked(): boolean {
    return this.fiber !== undefined
  }

  /** Does something for the fiber that is parked, without waking it: where it would be done if that were woken. */
  within<I, B>(run: (input: I) => B, input: I): B {
    const context = this.fiber!._asyncContext
    return context === undefined ? run(input) : context.runInAsyncScope(run, undefined, input)
  }

  /** Does a fiber wait here? To be sure, `Effect.callback`'s is woken, and parks again. */
  get occupied(): boolean {
    if (this.parked) return true
    if (this.resume === undefined) return false
    this.asking = true
    const occupied = this.wake()
    this.asking = false
    return occupied
  }

  [onPassed](): void {
    this.fiber = undefined
  }
}

const usable = (): boolean => parking.enabled && (parking.available ??= worksAsItMust())

/** What an `Effect.withFiber` returns to succeed with `value`: `Effect.succeed` without its object, and without its turn. */
export const succeed = <A>(fiber: Fiber.Fiber<unknown, unknown>, value: A): Effect.Effect<A> =>
  usable() ? (fiber as unknown as Insides).succeedWith(value) : Effect.succeed(value)

/** The same for `Effect.void`. */
export const done = (fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> =>
  usable() ? (fiber as unknown as Insides).succeedWith(undefined) : Effect.void

/** Tests look at `available`, and switch it off with `enabled` to run the way without it; nothing else does. */
export const parking: { available: boolean | undefined; enabled: boolean } = { available: undefined, enabled: true }

/** A fiber parks and is ended by `end`: what it ends with, if it ends, or `undefined`. */
const outcome = (
  next: Effect.Effect<number, string> | undefined,
  end: (place: Parking<number, string>, fiber: Fiber.Fiber<unknown, unknown>) => void
) => {
  const place = new Parking<number, string>({ onTaken: () => 1, onWoken: (fiber) => next ?? succeed(fiber, 1) })
  const fiber = Effect.runFork(
    Effect.matchCause(Effect.withFiber((fiber) => place.park(fiber)), {
      onSuccess: (value) => value + 1,
      onFailure: (cause) => cause.reasons[0]?._tag
    })
  )
  const before = fiber.pollUnsafe()
  end(place, fiber)
  const after = fiber.pollUnsafe() as Exit.Exit<any, never> | undefined
  return before !== undefined || after === undefined || place.occupied
    ? undefined
    : after._tag === "Success"
    ? after.value
    : after.cause.reasons[0]?._tag
}

const worksAsItMust = (): boolean => {
  parking.available = true
  try {
    return outcome(undefined, (place) => place.wake()) === 2 &&
      outcome(undefined, (place) => place.wakeToTake()) === 2 &&
      outcome(Effect.fail("no"), (place) => place.wake()) === "Fail" &&
      outcome(undefined, (_, fiber) => fiber.interruptUnsafe()) === "Interrupt"
  } catch {
    return false
  }
}
