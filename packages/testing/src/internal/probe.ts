/** A receiver that notes what a wire reports, and whether it kept to the rules. */
import type { Loan, Receiver, Wire, WireFailure } from "@socketserver/core/StreamTransport"
import type * as Effect from "effect/Effect"
import { Conditions } from "./waiting.ts"

export class Probe implements Receiver {
  readonly wire: Wire
  readonly log: Array<"data" | "end" | "error" | "drain" | "close"> = []
  readonly chunks: Array<Uint8Array> = []
  readonly violations: Array<string> = []
  received = 0
  failure: WireFailure | undefined
  /** Runs within the next delivery. */
  onNextData: (() => void) | undefined
  private inside: string | undefined
  private readonly conditions = new Conditions()

  constructor(wire: Wire) {
    this.wire = wire
    this.call("start", () => wire.start(this))
  }

  resume(): void {
    this.call("resume", () => this.wire.resume())
  }

  pause(): void {
    this.call("pause", () => this.wire.pause())
  }

  private call(name: string, method: () => void): void {
    this.inside = name
    method()
    this.inside = undefined
  }

  private note(event: Probe["log"][number]): void {
    if (this.inside !== undefined) this.violations.push(`reported ${event} from within \`${this.inside}\``)
    if (this.has("close")) this.violations.push(`reported ${event} after close`)
    if (event === "data" && this.has("end")) this.violations.push("reported data after end")
    this.log.push(event)
  }

  has(event: Probe["log"][number]): boolean {
    return this.log.includes(event)
  }

  onData(chunk: Uint8Array, loan?: Loan): void {
    this.note("data")
    this.chunks.push(loan === undefined ? chunk : loan.copy(chunk))
    this.received += chunk.length
    const hook = this.onNextData
    this.onNextData = undefined
    hook?.()
    this.conditions.check()
  }

  onEnd(): void {
    this.note("end")
    this.conditions.check()
  }

  onError(failure: WireFailure): void {
    this.note("error")
    this.failure = failure
    this.conditions.check()
  }

  onDrain(): void {
    this.note("drain")
    this.conditions.check()
  }

  onClose(): void {
    this.note("close")
    this.conditions.check()
  }

  /** Completes when `holds`; it is asked after everything that the wire reports. */
  until(what: string, holds: () => boolean): Effect.Effect<void> {
    return this.conditions.until(what, holds)
  }

  get closed(): Effect.Effect<void> {
    return this.until("the wire reports close", () => this.has("close"))
  }
}
