/**
 * Packets that have arrived and wait for the strategy to have room: bounded in packets and in bytes. They wait here, as they
 * are, and not as requests with a fiber each.
 */
import type { Packet } from "../DatagramTransport.ts"

export interface Limits {
  readonly maxPackets: number
  readonly maxBytes: number
  readonly dropOldest: boolean
}

export class ReceiveQueue {
  private readonly limits: Limits
  /** Taken from `first` on; what lies before it has been taken. */
  private packets: Array<Packet> = []
  private first = 0
  private bytes = 0
  dropped = 0

  constructor(limits: Limits) {
    this.limits = limits
  }

  get length(): number {
    return this.packets.length - this.first
  }

  offer(packet: Packet): void {
    const { dropOldest, maxBytes, maxPackets } = this.limits
    const { length } = packet.payload
    while (this.length >= maxPackets || this.bytes + length > maxBytes) {
      this.dropped++
      // A packet that would not even fit alone is the one to go.
      if (!dropOldest || this.length === 0 || length > maxBytes) return
      this.take()
    }
    this.bytes += length
    this.packets.push(packet)
  }

  take(): Packet | undefined {
    if (this.length === 0) return undefined
    const packet = this.packets[this.first++]!
    this.bytes -= packet.payload.length
    // Moving the rest once for every so many taken keeps a step's cost constant.
    if (this.first === this.packets.length || this.first >= 1_024) {
      this.packets = this.packets.slice(this.first)
      this.first = 0
    }
    return packet
  }

  /** Drops all, and says how many. */
  clear(): number {
    const { length } = this
    this.packets = []
    this.first = 0
    this.bytes = 0
    return length
  }
}
