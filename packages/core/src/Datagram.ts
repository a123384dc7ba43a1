/**
 * A datagram is what a datagram handler is given: one packet, who sent it, and the means to answer. Packets are whole or not
 * there at all; they may be lost, doubled, and overtake each other.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type { DatagramError } from "./DatagramError.ts"

/**
 * One received packet.
 *
 * @category models
 * @since 0.1.0
 */
export interface Datagram {
  /** Counts up from 1 within a server. */
  readonly id: number
  /** Who sent it; anybody can put any address there (RFC 2827). A unix sender without an address has the path `""`. */
  readonly peer: SocketAddress
  /** The address that the server is bound to. */
  readonly local: SocketAddress
  /** May be empty. The handler's for good. */
  readonly payload: Uint8Array
  /** Was the packet longer than the transport's `maxPacketSize`, and cut? */
  readonly truncated: boolean
  /**
   * Sends one packet back to the sender; an empty one if `payload` is empty, none unless it is called. Completes when the
   * system has taken the packet. A string is sent as UTF-8.
   */
  readonly reply: (payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
  /** Sends one packet to anybody, from the server's address. */
  readonly send: (to: SocketAddress, payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
  /** Completes when the server begins to drain. */
  readonly draining: Effect.Effect<void>
  /** Attaches a value for people who look at the request while it runs. */
  readonly annotate: (key: string, value: unknown) => Effect.Effect<void>
}
