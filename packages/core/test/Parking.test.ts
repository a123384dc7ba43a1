/** A place where a fiber waits, both ways: on the inside of a fiber, and by `Effect.callback`. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber } from "effect"
import { AsyncLocalStorage } from "node:async_hooks"
import { Parking, parking, succeed } from "../src/internal/parking.ts"

/** A place, the effect that waits there, and a way to wake it with an effect. */
const makePlace = () => {
  let next: Effect.Effect<number, string> = Effect.die("woken with nothing")
  const parking: Parking<number, string> = new Parking({ onTaken: () => 41, onWoken: () => next })
  return {
    parking,
    wait: Effect.withFiber((fiber): Effect.Effect<number, string> => parking.park(fiber)),
    wake: (effect: Effect.Effect<number, string>): boolean => {
      next = effect
      return parking.wake()
    }
  }
}

it("works on the inside of this Effect's fibers", () => {
  const place = makePlace()
  Effect.runFork(place.wait)
  assert.isTrue(parking.available)
})

describe.each([["on the inside of a fiber", true], ["by Effect.callback", false]])("%s", (_, enabled) => {
  const test = (name: string, effect: Effect.Effect<void, unknown>) =>
    it.effect(name, () =>
      Effect.gen(function*() {
        parking.enabled = enabled
        yield* effect
      }).pipe(Effect.ensuring(Effect.sync(() => {
        parking.enabled = true
      }))))

  test(
    "a fiber goes on with what it is woken with, a success or a failure",
    Effect.gen(function*() {
      const place = makePlace()
      const fiber = Effect.runFork(Effect.map(place.wait, (value) => value + 1))
      assert.isUndefined(fiber.pollUnsafe())
      assert.isTrue(place.parking.occupied)
      assert.isTrue(place.wake(Effect.succeed(41)))
      assert.strictEqual(yield* Fiber.join(fiber), 42)
      assert.isFalse(place.parking.occupied)

      const taking = Effect.runFork(Effect.map(place.wait, (value) => value + 1))
      assert.isTrue(place.parking.wakeToTake())
      assert.strictEqual(yield* Fiber.join(taking), 42)

      const failing = Effect.runFork(Effect.flip(place.wait))
      place.wake(Effect.fail("no"))
      assert.strictEqual(yield* Fiber.join(failing), "no")
      assert.isFalse(place.wake(Effect.succeed(1)))
      assert.isFalse(place.parking.wakeToTake())
    })
  )

  test(
    "the same place serves one wait after the other, deep in the same fiber",
    Effect.gen(function*() {
      const place = makePlace()
      const sum = (rest: number): Effect.Effect<number, string> =>
        rest === 0
          ? Effect.succeed(0)
          : Effect.flatMap(place.wait, (value) => Effect.map(sum(rest - 1), (n) => n + value))
      const fiber = Effect.runFork(sum(1_000))
      for (let i = 1; i <= 1_000; i++) place.wake(Effect.succeed(i))
      assert.strictEqual(yield* Fiber.join(fiber), 500_500)
    })
  )

  test(
    "a fiber that was interrupted, and is busy with its finalizers, does not wait any more",
    Effect.gen(function*() {
      const place = makePlace()
      const cleaning = yield* Deferred.make<void>()
      const fiber = Effect.runFork(Effect.ensuring(place.wait, Deferred.await(cleaning)))
      fiber.interruptUnsafe()
      assert.isUndefined(fiber.pollUnsafe())
      assert.isFalse(place.parking.occupied)
      const other = Effect.runFork(place.wait)
      assert.isTrue(place.wake(Effect.succeed(3)))
      assert.strictEqual(yield* Fiber.join(other), 3)
      yield* Deferred.succeed(cleaning, undefined)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    })
  )

  test(
    "asked whether it is there, a fiber goes on waiting",
    Effect.gen(function*() {
      const place = makePlace()
      const fiber = Effect.runFork(place.wait)
      for (let i = 0; i < 3; i++) assert.isTrue(place.parking.occupied)
      assert.isUndefined(fiber.pollUnsafe())
      assert.isTrue(place.wake(Effect.flatMap(Effect.succeed(5), (n) => Effect.succeed(n + 1))))
      assert.strictEqual(yield* Fiber.join(fiber), 6)
    })
  )

  test(
    "what succeeds at once goes on in whatever the fiber does next, a million times over",
    Effect.gen(function*() {
      const one = Effect.withFiber((fiber) => succeed(fiber, 1))
      assert.strictEqual(Effect.runSync(one), 1)
      assert.deepStrictEqual(yield* Effect.exit(one), Exit.succeed(1))
      let sum = 0
      while (sum < 100_000) sum += yield* one
      yield* Effect.forever(
        Effect.flatMap(one, (value) => (sum += value) < 1_000_000 ? Effect.void : Effect.fail("enough")),
        { disableYield: true }
      ).pipe(Effect.ignore)
      assert.strictEqual(sum, 1_000_000)
      assert.strictEqual(yield* Effect.catch(Effect.andThen(one, Effect.fail("no")), () => one), 1)
    })
  )

  test(
    "what succeeds at once does not outrun an interrupt",
    Effect.gen(function*() {
      let after = false
      const fiber = Effect.runFork(
        Effect.andThen(
          Effect.withFiber((fiber) => {
            fiber.interruptUnsafe()
            return succeed(fiber, 1)
          }),
          Effect.sync(() => {
            after = true
          })
        )
      )
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.isFalse(after)
    })
  )

  test(
    "an interrupt ends the wait, so that nobody is there to be woken, and runs finalizers",
    Effect.gen(function*() {
      const place = makePlace()
      let finalized = false
      const fiber = Effect.runFork(
        Effect.ensuring(
          place.wait,
          Effect.sync(() => {
            finalized = true
          })
        )
      )
      const exit = yield* Effect.exit(Effect.andThen(Fiber.interrupt(fiber), Fiber.join(fiber)))
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      assert.isTrue(finalized)
      assert.isFalse(place.parking.occupied)
      assert.isFalse(place.parking.wakeToTake())
      assert.isFalse(place.wake(Effect.succeed(1)))
    })
  )

  test(
    "an interrupt skips the fiber's own recovery",
    Effect.gen(function*() {
      const place = makePlace()
      let recovered = false
      const fiber = Effect.runFork(
        Effect.catchCause(place.wait, () =>
          Effect.sync(() => {
            recovered = true
          }))
      )
      yield* Fiber.interrupt(fiber)
      assert.isFalse(recovered)
      assert.isFalse(place.parking.occupied)
    })
  )

  test(
    "a fiber that cannot be interrupted goes on waiting, and is interrupted after it",
    Effect.gen(function*() {
      const place = makePlace()
      const seen: Array<number> = []
      const fiber = Effect.runFork(
        Effect.andThen(
          Effect.uninterruptible(Effect.map(place.wait, (value) => seen.push(value))),
          Effect.sync(() => seen.push(-1))
        )
      )
      fiber.interruptUnsafe()
      assert.isUndefined(fiber.pollUnsafe())
      assert.isTrue(place.parking.occupied)
      place.wake(Effect.succeed(1))
      const exit = fiber.pollUnsafe()
      assert.isTrue(exit !== undefined && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      assert.deepStrictEqual(seen, [1])
    })
  )

  test(
    "a wait that lost a race is over, and the place free for the next",
    Effect.gen(function*() {
      const place = makePlace()
      assert.strictEqual(yield* Effect.race(place.wait, Effect.succeed(7)), 7)
      assert.isFalse(place.parking.occupied)
      const fiber = Effect.runFork(place.wait)
      place.wake(Effect.succeed(8))
      assert.strictEqual(yield* Fiber.join(fiber), 8)
    })
  )

  test(
    "what was stored in the fiber's asynchronous context is there after the wait",
    Effect.gen(function*() {
      const storage = new AsyncLocalStorage<string>()
      const place = makePlace()
      const fiber = storage.run("mine", () => Effect.runFork(Effect.map(place.wait, () => storage.getStore())))
      storage.run("another's", () => place.wake(Effect.succeed(1)))
      assert.strictEqual(yield* Fiber.join(fiber), "mine")
    })
  )
})
