/** Being asked to stop: the first signal is for the program to heed, a second one ends it at once. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { Problem } from "./problem.ts"

const codes = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const

/**
 * Completes with the exit code that stands for the first signal. `restore` runs before a second one ends the process: it leaves
 * the terminal as it was.
 */
export const firstSignal = (restore: () => void = () => {}) =>
  Effect.gen(function*() {
    const first = Deferred.makeUnsafe<number>()
    let asked = false
    for (const [signal, code] of Object.entries(codes)) {
      const listener = () => {
        if (asked) {
          restore()
          process.exit(code)
        }
        asked = true
        Deferred.doneUnsafe(first, Effect.succeed(code))
      }
      yield* Effect.acquireRelease(
        Effect.sync(() => process.on(signal, listener)),
        () => Effect.sync(() => process.off(signal, listener))
      )
    }
    return Deferred.await(first)
  })

/** What begins, unless it is asked to stop meanwhile: then there is nothing to drain yet. */
export const unless = (asked: Effect.Effect<number>) => <A, E, R>(beginning: Effect.Effect<A, E, R>) =>
  Effect.raceFirst(beginning, Effect.flatMap(asked, (exitCode) => new Problem({ message: "", exitCode })))
