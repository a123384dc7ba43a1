/** Settings that may change while a server runs. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import type { Limit, Live } from "../Admission.ts"
import type { ListenError } from "../ListenError.ts"
import { publish } from "../ServerEvent.ts"

/**
 * Applies the value, and each that takes its place until the scope ends. A wrong one fails at first; later it is logged, and
 * the one before it stays.
 */
export const follow = Effect.fnUntraced(function*<A>(
  live: Live<A>,
  apply: (value: A) => Effect.Effect<void, ListenError>
): Effect.fn.Return<void, ListenError, Scope.Scope> {
  if (!SubscriptionRef.isSubscriptionRef(live)) return yield* apply(live as A)
  const ref = live as SubscriptionRef.SubscriptionRef<A>
  yield* apply(SubscriptionRef.getUnsafe(ref))
  const changes = Stream.runForEach(
    SubscriptionRef.changes(ref),
    (value) =>
      Effect.catch(apply(value), (error) =>
        publish({
          _tag: "Problem",
          level: "Error",
          message: "a limit was not changed, the one before it stays",
          cause: Cause.fail(error)
        }))
  )
  yield* Effect.forkScoped(changes, { startImmediately: true })
})

/** A number that changes by whoever has its `SubscriptionRef`, or by the `limits` of a server: both see what it is. */
export const liveLimit = (live: Live<number>, apply: (value: number) => Effect.Effect<void, ListenError>) => {
  const ref = SubscriptionRef.isSubscriptionRef(live) ? live as SubscriptionRef.SubscriptionRef<number> : undefined
  let current = ref === undefined ? live as number : SubscriptionRef.getUnsafe(ref)
  const change = (value: number) =>
    Effect.map(apply(value), () => {
      current = value
    })
  const limit: Limit = {
    current: () => current,
    set: (value) => Effect.andThen(change(value), ref === undefined ? Effect.void : SubscriptionRef.set(ref, value))
  }
  return { limit, start: Effect.suspend(() => follow(ref ?? current, change)) }
}
