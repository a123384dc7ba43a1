/**
 * A session is all that one peer sends to a datagram server, as long as it keeps sending: a handler for each peer, with state
 * of its own, instead of one for each packet. It is what protocols need that speak in more than one packet over UDP.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Stream from "effect/Stream"
import type { DatagramError } from "./DatagramError.ts"

/**
 * One peer's packets, and the way back.
 *
 * **Details**
 *
 * Packets are still packets: they may be lost, doubled, and overtake each other, and whom they say they are from proves
 * nothing. Senders that are bound to no address, as unix datagram clients may be, cannot be told apart: they share a session,
 * and cannot be answered.
 *
 * @category models
 * @since 0.1.0
 */
export interface Session {
  /** Counts up from 1 within a server. */
  readonly id: number
  readonly peer: SocketAddress
  /** The address that the server is bound to. */
  readonly local: SocketAddress
  /**
   * The payload of the peer's next packet. Fails with `Cause.Done` when the peer was silent for longer than `idleTimeout`, or
   * when a drain finds that nothing waits.
   */
  readonly receive: Effect.Effect<Uint8Array, Cause.Done>
  /** The same as a stream. */
  readonly packets: Stream.Stream<Uint8Array>
  /** Sends one packet to the peer. A string is sent as UTF-8. */
  readonly send: (payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
  /** How many of the peer's packets were dropped because the handler did not keep up. */
  readonly dropped: Effect.Effect<number>
  /** Completes when the server begins to drain. */
  readonly draining: Effect.Effect<void>
  /** Attaches a value for people who look at the session while it runs. */
  readonly annotate: (key: string, value: unknown) => Effect.Effect<void>
}
