/**
 * A connection is what a stream handler is given: one client's byte stream, in both directions. Reads are pulls (nothing
 * is read that nobody asks for), every read is bounded, writes wait for the peer, and the server closes the connection
 * when the handler ends, on every path.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import type * as Stream from "effect/Stream"
import type { ConnectionError } from "./ConnectionError.ts"

/**
 * The bound of a read that grows until it finds something.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReadOptions {
  /**
   * The most bytes that the result may have. Default 65,536. One byte more fails the read with `LimitExceeded`.
   */
  readonly maxLength?: number | undefined
}

/**
 * A client's connection.
 *
 * **Details**
 *
 * The life of a connection, in order: accepted, admitted or refused, queued, dispatched, handler, finalizers of the
 * handler's scope, output flushed, half-closed, closed. The server does the closing, exactly once, whether the handler
 * returned, failed, died or was interrupted.
 *
 * - Reads fail with `Cause.Done` at end of input, and with `ConnectionError` for everything else. A handler that lets
 *   `Cause.Done` through has simply completed: `Effect.forever` over `readLine` and `write` is a whole line server.
 * - A client may finish sending and still wait for the answer (half-close): writes work after end of input.
 * - While the server drains, a read that waits with nothing buffered sees end of input, as if the peer had finished.
 *
 * **Gotchas**
 *
 * One read at a time. A second read while one waits dies with a message that says so; the first is not disturbed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Connection {
  /** Unique within the server, counted from 1. */
  readonly id: number
  /** The client's address. A unix client without a path has the empty path. */
  readonly peer: SocketAddress
  /** The address that the client connected to. */
  readonly local: SocketAddress

  /** Waits for input and takes what has arrived, at least one byte. The bytes are the caller's for good. */
  readonly pull: Effect.Effect<Uint8Array, ConnectionError | Cause.Done>
  /**
   * `pull` without its copy: the bytes are valid until the next read of this connection begins, then the memory is used
   * again. Passing them to the `write` of a connection, this or another, and waiting for it is safe. For handlers that relay or count large amounts.
   */
  readonly pullBorrowed: Effect.Effect<Uint8Array, ConnectionError | Cause.Done>
  /**
   * Reads to the next `\n` and returns the line without its `\n` or `\r\n`, decoded as UTF-8 (invalid bytes become U+FFFD).
   * A last line without `\n` counts. `maxLength` is in bytes, without the line end.
   */
  readonly readLine: (options?: ReadOptions) => Effect.Effect<string, ConnectionError | Cause.Done>
  /**
   * Reads exactly `length` bytes. Input that ends before the first is `Cause.Done`, later it is `UnexpectedEnd`; a `length`
   * above `maxLength` is `LimitExceeded` before anything is read, so a length from the peer can be passed as it is.
   */
  readonly readExactly: (
    length: number,
    options?: ReadOptions
  ) => Effect.Effect<Uint8Array, ConnectionError | Cause.Done>
  /**
   * Reads to the next `delimiter`, takes it, and returns the bytes before it. Input that ends before the first byte is
   * `Cause.Done`, later it is `UnexpectedEnd`.
   */
  readonly readUntil: (
    delimiter: string | Uint8Array,
    options?: ReadOptions
  ) => Effect.Effect<Uint8Array, ConnectionError | Cause.Done>
  /** Reads to the end of input: for clients that send all and then finish. No input at all is the empty array. */
  readonly readAll: (options?: ReadOptions) => Effect.Effect<Uint8Array, ConnectionError>
  /** The input as a stream, chunk by chunk as it arrives. Ends with the input. */
  readonly bytes: Stream.Stream<Uint8Array, ConnectionError>
  /** The input as a stream of lines, as `readLine` has them; all lines that are there come in one chunk. */
  readonly lines: (options?: ReadOptions) => Stream.Stream<string, ConnectionError>

  /**
   * Writes, strings as UTF-8. Completes when the bytes are in the output buffer and that is below its high-water mark,
   * else when it is again: a peer that does not read slows its writer down. On a connection that is gone it fails at once.
   *
   * **Gotchas**
   *
   * While more input lies in the buffer, answers are held back and leave as one, at the latest when the handler's fiber
   * lets go of the processor. (`Effect.forever` does that every time round, unless told `{ disableYield: true }`.)
   *
   * Success means accepted for sending, as everywhere with sockets, not that the peer has it. An interrupted write has
   * been accepted too.
   */
  readonly write: (chunk: Uint8Array | string) => Effect.Effect<void, ConnectionError>
  /** Writes several chunks as one. */
  readonly writeAll: (chunks: ReadonlyArray<Uint8Array | string>) => Effect.Effect<void, ConnectionError>
  /** Writes what a stream produces. Does not end the output: the server does, when the handler returns. */
  readonly sink: Sink.Sink<void, Uint8Array | string, never, ConnectionError>
  /** Ends the output (half-close): the peer sees end of input behind what was written. Reads go on, writes fail. */
  readonly end: Effect.Effect<void>
  /** Closes in order: what was written is still sent. The handler goes on; its reads and writes fail with `Closed`. */
  readonly close: Effect.Effect<void>
  /** Closes at once with a reset (TCP RST where the transport can): unsent output is lost. */
  readonly reset: Effect.Effect<void>

  /** Completes when the server begins to drain; never before. For handlers that wait for other things than reads. */
  readonly draining: Effect.Effect<void>
  /**
   * Runs `effect` as work in progress: until it ends, a drain does not take a waiting read for idleness. For handlers that
   * go on reading while they compute (pipelining), and for requests that arrive in several reads.
   */
  readonly busy: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Notes something about this connection, shown by `Server.connections`: who logged in, which room. */
  readonly annotate: (key: string, value: unknown) => Effect.Effect<void>

  /**
   * This connection as an Effect `Socket`, for `Channel`s, RPC and any other code that speaks it. End of input is
   * `SocketCloseError` 1000, a lost connection is 1006. Use this or the reads above, not both at a time.
   *
   * **Details**
   *
   * Code behind a `Socket` often reads ahead while it still computes answers. So while the server drains, a read here ends
   * only once something was written after the last input, or when there was no input at all.
   */
  readonly socket: Socket.Socket
}
