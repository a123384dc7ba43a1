/** How long has nothing happened? One timer watches, however much happens. */
import * as Effect from "effect/Effect"

/** Completes when nothing has happened for `limit` milliseconds; `since` says since when, or `undefined` while it does. */
export const silence = (
  limit: number,
  since: () => number | undefined,
  now: () => number
): Effect.Effect<void> =>
  Effect.gen(function*() {
    while (true) {
      const start = since()
      const left = start === undefined ? limit : start + limit - now()
      if (left <= 0) return
      yield* Effect.sleep(left)
    }
  })
