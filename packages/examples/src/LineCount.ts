/**
 * A service that handlers share: it counts the lines of all servers that it is provided to. A handler that uses it says so
 * in its type, and does not compile into a program that forgot to provide it.
 */
import { Context, Effect, Layer, Ref } from "effect"

export class LineCount extends Context.Service<LineCount, {
  /** One more line. */
  readonly add: Effect.Effect<void>
  /** The lines so far. */
  readonly total: Effect.Effect<number>
}>()("@socketserver/examples/LineCount") {
  static readonly layer = Layer.effect(
    LineCount,
    Effect.map(Ref.make(0), (lines) => ({
      add: Ref.update(lines, (n) => n + 1),
      total: Ref.get(lines)
    }))
  )
}
