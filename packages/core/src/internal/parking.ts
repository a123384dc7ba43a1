/**
 * A place where one fiber waits until it is woken. `Effect.callback` does that too, for three closures and two primitives
 * each time; this does it for none (bench "ping-pong 64 B × 64 unix": 0.87 of raw node:net with `Effect.callback`). And a way
 * to go on at once, for what has not to wait (bench "lines pipelined", loop: CPU time 1.28 of raw node:net's, 1.45 without).
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
  /** Goes on with what is on the stack; what it returns is for the run loop. */
  readonly succeedWith: <A>(value: A) => Effect.Effect<A>
}

/** What an effect returns to the run loop of a fiber that it has suspended. */
const suspended = Symbol.for("effect/Effect/Yield") as never
/** The method of what lies on the stack that is called when its turn comes, whether with a success or with a failure. */
const onPassed = "~effect/Effect/ensureCont"
const nothing = () => {}

/** Told when the fiber that waits is interrupted. */
export interface Owner {
  readonly onInterrupted: () => void
}

export class Parking<A, E> {
  private readonly owner: Owner
  private fiber: Insides | undefined
  private resume: ((effect: Effect.Effect<A, E>) => void) | undefined

  constructor(owner: Owner) {
    this.owner = owner
  }

  /** Suspends `fiber`, in which this must be called, as the last thing that an `Effect.withFiber` does. */
  park(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<A, E> {
    if (!parking.enabled || !(parking.available ??= worksAsItMust())) {
      return this.callback ??= this.makeCallback()
    }
    const insides = this.fiber = fiber as unknown as Insides
    insides._stack.push(this)
    insides._yielded = nothing
    return suspended
  }

  private callback: Effect.Effect<A, E> | undefined
  private makeCallback(): Effect.Effect<A, E> {
    const onInterrupted = Effect.sync(() => this.owner.onInterrupted())
    return Effect.callback((resume) => {
      this.resume = resume
      return onInterrupted
    })
  }

  wake(effect: Effect.Effect<A, E>): void {
    const { fiber } = this
    if (fiber === undefined) return this.resume!(effect)
    this.fiber = undefined
    fiber.evaluate(effect)
  }

  [onPassed](): void {
    if (this.fiber === undefined) return
    this.fiber = undefined
    this.owner.onInterrupted()
  }
}

/** What an `Effect.withFiber` returns to succeed with `value`: `Effect.succeed` without its object, and without its turn. */
export const succeed = <A>(fiber: Fiber.Fiber<unknown, unknown>, value: A): Effect.Effect<A> =>
  parking.enabled && (parking.available ??= worksAsItMust())
    ? (fiber as unknown as Insides).succeedWith(value)
    : Effect.succeed(value)

/** Tests look at `available`, and switch it off with `enabled` to run the way without it; nothing else does. */
export const parking: { available: boolean | undefined; enabled: boolean } = { available: undefined, enabled: true }

const worksAsItMust = (): boolean => {
  let interrupted: number = 0
  const owner = {
    onInterrupted: () => {
      interrupted++
    }
  }
  parking.available = true
  const outcome = (end: (place: Parking<number, string>, fiber: Fiber.Fiber<unknown, unknown>) => void) => {
    const place = new Parking<number, string>(owner)
    const fiber = Effect.runFork(
      Effect.matchCause(Effect.withFiber((fiber) => place.park(fiber)), {
        onSuccess: (value) => value + 1,
        onFailure: (cause) => cause.reasons[0]?._tag
      })
    )
    const before = fiber.pollUnsafe()
    end(place, fiber)
    const after = fiber.pollUnsafe() as Exit.Exit<any, never> | undefined
    return before !== undefined || after === undefined
      ? undefined
      : after._tag === "Success"
      ? after.value
      : after.cause.reasons[0]?._tag
  }
  try {
    const sum = Effect.map(Effect.withFiber((fiber) => succeed(fiber, 1)), (value) => value + 1)
    return Effect.runSync(sum) === 2 &&
      outcome((place) => place.wake(Effect.succeed(1))) === 2 &&
      outcome((place) => place.wake(Effect.fail("no"))) === "Fail" &&
      outcome((_, fiber) => fiber.interruptUnsafe()) === "Interrupt" &&
      interrupted === 1
  } catch {
    return false
  }
}
