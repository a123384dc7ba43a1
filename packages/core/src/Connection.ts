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
import type { ConnectionError, TlsUnavailable } from "./ConnectionError.ts"
import type { Header } from "./ProxyProtocol.ts"

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
 * The certificate that a client has shown.
 *
 * @category models
 * @since 0.1.0
 */
export interface PeerCertificate {
  /** The certificate itself, DER-encoded (X.509). */
  readonly der: Uint8Array
  /** Whom it names, one attribute a line, such as `CN=alice`. */
  readonly subject: string
  /** Who has issued it, one attribute a line. */
  readonly issuer: string
  /** Its SHA-256 digest, as upper-case hexadecimal bytes with colons between them. */
  readonly fingerprint256: string
}

/**
 * What TLS has negotiated for a connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface TlsInfo {
  /** The version: `"TLSv1.2"` or `"TLSv1.3"`. */
  readonly protocol: string
  /** The cipher suite by its standard name, such as `"TLS_AES_256_GCM_SHA384"`. */
  readonly cipher: string
  /** The protocol that ALPN has chosen (RFC 7301); `undefined` where the client or the server offers none. */
  readonly alpn: string | undefined
  /** The name that the client has asked for (SNI, RFC 6066, 3). It is the client's word, of a server that exists or not. */
  readonly serverName: string | undefined
  /** Was an earlier session resumed, and a full handshake saved? */
  readonly sessionReused: boolean
  /** The client's certificate, if the server has asked for one and the client has it. Look at `authorized` too. */
  readonly peerCertificate: PeerCertificate | undefined
  /** Has the client shown a certificate that the server's authorities vouch for? */
  readonly authorized: boolean
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
  /**
   * What a proxy has said about the connection, behind `ProxyProtocol.accept`; `peer` and `local` are as it said. `undefined` where
   * no proxy has said anything.
   */
  readonly proxy: Header | undefined
  /** What TLS has negotiated; `undefined` while the connection is in clear. */
  readonly tls: TlsInfo | undefined

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
   * above `maxLength` is `LimitExceeded` before anything is read, so a length from the peer can be passed as it is, if it is an
   * integer of 0 or more: another is a defect.
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
  /**
   * Goes on with TLS (STARTTLS), where the transport has been told how: `NodeTransport.startTls`. Elsewhere, and a second time,
   * it fails with `TlsUnavailable`, and the connection stays as it is. `goAhead` is the answer that tells the client to begin; it
   * is still sent in clear.
   *
   * **Details**
   *
   * What the client has sent behind its request, in clear, is discarded and never read: it may be somebody else's who sits in
   * between (RFC 3207, 6; CVE-2011-0411). So is everything that the handler has learned before (who the client says it is): to
   * forget that is the handler's part.
   *
   * It takes as long as `handshakeTimeout` says at most. Where the handshake fails, the connection is gone: `ConnectionError`
   * with reason `HandshakeFailed` or `Timeout`. No read may wait meanwhile.
   *
   * **Gotchas**
   *
   * Do not `write` the go-ahead before: the client's answer to it could then be among what is discarded. And let no other fiber
   * write until the handshake has ended: it would be lost.
   */
  readonly upgradeTls: (goAhead?: Uint8Array | string) => Effect.Effect<void, ConnectionError | TlsUnavailable>

  /**
   * Completes when the server begins to drain, or the connection has reached its `maxAge`; never before. For handlers that wait for
   * other things than reads.
   */
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
