/**
 * A message is what a message handler is given: one request of a protocol, whole and decoded, and the means to answer. Where it
 * comes from, a framed connection, a packet or a stream of values, makes no difference to its handler.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type { ConnectionError } from "./ConnectionError.ts"
import type { DatagramError } from "./DatagramError.ts"

/**
 * Whoever has sent a message: the connection that it came by, or the peer that the packet came from.
 *
 * **Details**
 *
 * It outlives the message: keep it to send more later, without being asked. All messages of a connection have the same one, so
 * it can be a key in a `Map`, a `Set` or a `WeakMap`. Each packet has one of its own.
 *
 * **Gotchas**
 *
 * In a worker each message has one of its own, too, and it works while that message's handler runs. Kept for longer, its `send`
 * fails, its `close` does nothing, and its `closed` completes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sender<in Out> {
  /** The connection's `id`; of a packet, the packet's. */
  readonly id: number
  readonly peer: SocketAddress
  /** The address that the peer has sent to. */
  readonly local: SocketAddress
  /**
   * Sends a message of its own accord, at once: between replies, not in their order. Completes when the peer is not too slow,
   * as `Connection.write` does, and fails when the connection is gone.
   */
  readonly send: (message: Out) => Effect.Effect<void, ConnectionError | DatagramError>
  /** Completes when the connection is gone; for a packet or a value, when its handler has ended. */
  readonly closed: Effect.Effect<void>
  /** Closes the connection, in order; for a packet, does nothing. */
  readonly close: Effect.Effect<void>
  /** Notes something about the connection, shown by `Server.connections`. */
  readonly annotate: (key: string, value: unknown) => Effect.Effect<void>
}

/**
 * One request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Message<out In, in Out = never> {
  /** Counts up from 1 within a server. */
  readonly id: number
  readonly payload: In
  /** Who sent it. Of values of a stream, the path `""`. */
  readonly peer: SocketAddress
  readonly sender: Sender<Out>
  /**
   * Sends a reply before the handler has ended; for most handlers it is simpler to return one, or a stream of them. Where
   * replies keep the order of their messages, it waits until all messages before this one are answered. Behind the handler's
   * end it is `sender.send`.
   */
  readonly reply: (reply: Out) => Effect.Effect<void, ConnectionError | DatagramError>
  /** Completes when the server begins to drain, or the connection has reached its `maxAge`. */
  readonly draining: Effect.Effect<void>
}
