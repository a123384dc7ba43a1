/**
 * One timer for all the deadlines of something, however often they begin anew. It is not set for each of them: it looks what is
 * due, sleeps until something could be, and looks again. So what happens a million times a second has only to note when.
 *
 * A process that stands still, be it for a handler that computes or a machine that is busy, comes to its timers before it comes to
 * what peers have sent meanwhile. So a look that comes late gives way first: peers are not to blame.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"

/** In milliseconds: more than a timer is late by itself. */
const late = 20

export class Timer {
  private readonly look: () => number
  private readonly now: () => number
  private readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  private fiber: Fiber.Fiber<void> | undefined
  private wakesAt = Infinity
  private looking = false
  private stopped = false

  /** `look` does what is due, and says in how many milliseconds something could be; `Infinity` where nothing can. */
  constructor(look: () => number, now: () => number, fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>) {
    this.look = look
    this.now = now
    this.fork = fork
  }

  /** Something is due at that time, which it might not have known of. */
  by(time: number): void {
    if (this.wakesAt <= time) return
    this.wakesAt = time
    if (this.looking) return
    this.fiber?.interruptUnsafe()
    this.fiber = this.fork(this.turn)
  }

  /** For good, also from within `look`. */
  stop(): void {
    this.stopped = true
    this.fiber?.interruptUnsafe()
  }

  private readonly turn: Effect.Effect<void> = Effect.suspend(() => {
    this.wakesAt = Infinity
    this.looking = true
    const left = Math.ceil(this.look())
    this.looking = false
    const now = this.now()
    this.wakesAt = Math.min(this.wakesAt, now + left)
    return this.stopped || this.wakesAt === Infinity
      ? Effect.void
      : Effect.flatMap(
        Effect.sleep(Math.max(this.wakesAt - now, 0)),
        () => this.now() - this.wakesAt > late ? this.nextTurn : this.turn
      )
  })

  private readonly nextTurn = Effect.flatMap(Effect.yieldNow, () => this.turn)
}
