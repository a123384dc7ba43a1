/** The valve between a wire's input and its receiver: `resume` and `pause` turn it, `pass` waits until it is open. */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"

export class Flow {
  private readonly latch = Latch.makeUnsafe(false)
  private isOpen = false

  resume(): void {
    this.isOpen = true
    this.latch.openUnsafe()
  }

  pause(): void {
    this.isOpen = false
    this.latch.closeUnsafe()
  }

  /** A latch wakes its fiber from within `resume`, where nothing may be delivered: so a wait ends with a turn of its own. */
  readonly pass: Effect.Effect<void> = Effect.suspend(() =>
    this.isOpen ? Effect.void : Effect.flatMap(Effect.andThen(this.latch.await, Effect.yieldNow), () => this.pass)
  )
}
