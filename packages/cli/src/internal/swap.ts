/** Something that is replaced while it is in use: who has begun with the old one ends with it, and then it is released. */
import { Effect, Exit, Scope } from "effect"

interface Held<A> {
  readonly value: A
  readonly scope: Scope.Closeable
  users: number
  replaced: boolean
}

/** What stands ready to take the place of the current one. */
export interface Next {
  /** From now on it is the current one. */
  readonly commit: Effect.Effect<void>
  readonly discard: Effect.Effect<void>
}

export class Swap<A> {
  private current: Held<A> | undefined

  /** Makes one to take the place of the current one, if there is one. Where that fails, all stays as it is. */
  prepare<E>(make: Effect.Effect<A, E, Scope.Scope>): Effect.Effect<Next, E> {
    return Effect.suspend(() => {
      const scope = Scope.makeUnsafe()
      return Scope.provide(make, scope).pipe(
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause))),
        Effect.map((value) => ({
          commit: Effect.suspend(() => {
            const old = this.current
            this.current = { value, scope, users: 0, replaced: false }
            if (old === undefined) return Effect.void
            old.replaced = true
            return this.releaseUnused(old)
          }),
          discard: Scope.close(scope, Exit.void)
        }))
      )
    })
  }

  /** The current one, which stays until the scope closes. */
  readonly hold: Effect.Effect<A, never, Scope.Scope> = Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const held = this.current!
        held.users++
        return held
      }),
      (held) =>
        Effect.suspend(() => {
          held.users--
          return this.releaseUnused(held)
        })
    ),
    ({ value }) => value
  )

  get value(): A {
    return this.current!.value
  }

  /** For the end of all. */
  readonly release = Effect.suspend(() =>
    this.current === undefined ? Effect.void : Scope.close(this.current.scope, Exit.void)
  )

  private releaseUnused(held: Held<A>): Effect.Effect<void> {
    return held.replaced && held.users === 0 ? Scope.close(held.scope, Exit.void) : Effect.void
  }
}
