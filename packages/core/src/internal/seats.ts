/** A limit on connections: each that is let in has a seat until nothing is left of it; the others wait for one, or go. */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Gate, Refusal, Ticket, Verdict } from "../Admission.ts"

/** At once, and nothing stays of it. */
export const dropped: Refusal = { farewell: undefined }

/** Turns clients away; some hear why. */
export class Rejection {
  private readonly refusal: Refusal
  private readonly max: number
  private saying = 0

  constructor(refusal: Refusal, max: number) {
    this.refusal = refusal
    this.max = max
  }

  readonly refuse = (ticket: Ticket): Refusal => {
    if (this.refusal.farewell === undefined || this.saying >= this.max) return dropped
    this.saying++
    ticket.whenReleased(this.said)
    return this.refusal
  }

  private readonly said = (): void => {
    this.saying--
  }
}

export class Seats {
  private readonly atLimit: (ticket: Ticket) => Verdict | Effect.Effect<Verdict>
  private readonly waiting = new Set<() => void>()
  private readonly gates = new Set<Gate>()
  private max = 0
  private taken = 0
  private isFull = false
  private filling = false

  constructor(atLimit: (seats: Seats, ticket: Ticket) => Verdict | Effect.Effect<Verdict>) {
    this.atLimit = (ticket) => atLimit(this, ticket)
  }

  admit(ticket: Ticket): Verdict | Effect.Effect<Verdict> {
    if (this.taken >= this.max) return this.atLimit(ticket)
    this.seat(ticket)
    return true
  }

  /** Waits in line for a seat. At the end of a full line, or of the time, there is none. */
  wait(ticket: Ticket, max: number, timeout: Duration.Duration): Verdict | Effect.Effect<Verdict> {
    if (this.waiting.size >= max) return dropped
    return Effect.callback<Verdict>((resume) => {
      const waiter = () => {
        // Before the client's fiber hears of it: whatever becomes of that, the seat is given back.
        this.seat(ticket)
        resume(Effect.succeed(true))
      }
      this.waiting.add(waiter)
      return Effect.sync(() => this.waiting.delete(waiter))
    }).pipe(Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.succeed(dropped) }))
  }

  /** Those that have a seat keep it. */
  setMax(max: number): void {
    this.max = max
    this.fill()
  }

  readonly attach = (gate: Gate) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        this.gates.add(gate)
        gate.setSaturated(this.isFull)
      }),
      () => Effect.sync(() => this.gates.delete(gate))
    )

  private seat(ticket: Ticket): void {
    this.taken++
    ticket.whenReleased(this.leave)
    this.update()
  }

  private readonly leave = (): void => {
    this.taken--
    this.fill()
  }

  private fill(): void {
    // One that is let in runs from within this call, and may leave at once: the loop goes on, instead of a deeper one.
    if (this.filling) return
    this.filling = true
    for (const waiter of this.waiting) {
      if (this.taken >= this.max) break
      this.waiting.delete(waiter)
      waiter()
    }
    this.filling = false
    this.update()
  }

  private update(): void {
    const isFull = this.taken >= this.max
    if (isFull === this.isFull) return
    this.isFull = isFull
    for (const gate of this.gates) gate.setSaturated(isFull)
  }
}
