/** How the suites wait: for a condition, never for a time. */
import * as Effect from "effect/Effect"

/** Gives up with a message that says what was waited for, where a bare test timeout would not. */
export const promptly =
  (what: string | (() => string)) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.timeoutOrElse(effect, {
      duration: "10 seconds",
      orElse: () =>
        Effect.die(
          new Error(`did not come about within 10 seconds: ${typeof what === "string" ? what : what()}`)
        )
    })

/**
 * Waits until a count stands still: there is no event for something that ceases to happen. `turn` is what others get done
 * meanwhile, and must be more than one step of the count takes.
 */
export const standstill = <E, R>(
  count: () => number,
  turn: Effect.Effect<unknown, E, R>
): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    const before = count()
    return Effect.flatMap(turn, () => count() === before ? Effect.succeed(before) : standstill(count, turn))
  })

/** Conditions that somebody waits for; whoever changes something has them asked again. */
export class Conditions {
  private readonly checks = new Set<() => void>()

  check(): void {
    for (const check of this.checks) check()
  }

  /** Completes when `holds`. */
  until(what: string | (() => string), holds: () => boolean): Effect.Effect<void> {
    return promptly(what)(Effect.callback<void>((resume) => {
      const check = () => {
        if (!holds()) return
        this.checks.delete(check)
        resume(Effect.void)
      }
      this.checks.add(check)
      check()
      return Effect.sync(() => this.checks.delete(check))
    }))
  }
}
