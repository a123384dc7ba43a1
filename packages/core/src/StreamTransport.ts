/**
 * A stream transport is where connections come from: it binds an address and hands over each client it accepts as a
 * {@link Wire}. This module is the contract between transports and the server. Users of a server need none of it;
 * whoever writes a new transport implements `listen` and `Wire`, and holds the result to the conformance suite in
 * `@socketserver/testing`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { Step } from "./Admission.ts"
import type { TlsInfo } from "./Connection.ts"
import type { ListenError } from "./ListenError.ts"
import type { Header } from "./ProxyProtocol.ts"

/**
 * Where connections come from. Providing a transport binds nothing: the server binds when its own layer is built,
 * after everything that its handler needs.
 *
 * @category services
 * @since 0.1.0
 */
export class StreamTransport extends Context.Service<StreamTransport, {
  /** A short name for people, such as `"tcp"`: it shows in `Server.info`. */
  readonly name: string
  /** What a connection passes between accept and dispatch, in order: decisions of `Admission`, prefaces, and handshakes. */
  readonly steps: ReadonlyArray<Step | Preface | Handshake>
  /**
   * Binds and starts to accept. `onConnection` is called once for every accepted client, synchronously, and never
   * throws. The scope's end closes the listener (and unlinks a socket file); accepted connections are not touched by it.
   *
   * `at` is the address of an earlier listener of this transport, to be bound again when a server resumes; it matters
   * where the configured address was not final (port 0).
   */
  readonly listen: (
    onConnection: (wire: Wire) => void,
    at?: SocketAddress
  ) => Effect.Effect<Listener, ListenError, Scope.Scope>
}>()("@socketserver/core/StreamTransport") {}

/**
 * What a peer says ahead of everything else, and is answered by nothing: the header of a proxy. It is read in the connection's own
 * fiber, so that a slow peer delays nobody else. What comes behind it stays with the connection, for its handler or a handshake.
 *
 * @category models
 * @since 0.1.0
 */
export interface Preface {
  /** A name for people: `"proxy"`. */
  readonly preface: string
  /** How long it may take; then the connection ends with `HandshakeFailed`. */
  readonly timeout: Duration.Duration
  /**
   * Looks at all the input that there is, at first often none, and again whenever more has come. `undefined` asks for more, unless
   * the input has `ended`. A failure ends the connection with `HandshakeFailed`. Whatever it needs to decide, it bounds: what it has
   * seen is kept.
   */
  readonly look: (
    input: Uint8Array,
    peer: SocketAddress,
    ended: boolean
  ) => Result.Result<Prefaced, unknown> | undefined
}

/**
 * What a {@link Preface} has found.
 *
 * @category models
 * @since 0.1.0
 */
export interface Prefaced {
  /** How many bytes it has: those are taken off the input. */
  readonly length: number
  /** Whom the connection is with, as a proxy says. `undefined` where there is nothing new about that. */
  readonly proxy: Header | undefined
}

/**
 * Something that is said on a connection, by both sides, before its handler is: TLS. It runs in the connection's own
 * fiber, so that a slow peer delays nobody else.
 *
 * @category models
 * @since 0.1.0
 */
export interface Handshake {
  /** A name for people: `"tls"`. */
  readonly handshake: string
  /** How long it may take; then the connection ends with `HandshakeFailed`. */
  readonly timeout: Duration.Duration
  /**
   * Takes the wire, and gives the one that the connection goes on with, not started yet. One that makes another wire calls
   * `takeInput` first: from then on the connection reads nothing, and what it has read, behind a {@link Preface}, is the
   * handshake's. Where it fails, or is interrupted, it leaves nothing of the wire behind: it has destroyed what is under it.
   */
  readonly run: (wire: Wire, takeInput: () => Uint8Array) => Effect.Effect<Wire, unknown>
  /**
   * Leaves the handshake to the worker that the wire is moved to, if it can be made there. Called where the wire will be moved, and
   * nothing stands between this step and the handler. The preface waits for the client's first message, and takes nothing off:
   * until that is there, no worker is taken.
   */
  readonly leave?: ((wire: Wire) => Preface | undefined) | undefined
}

/**
 * How a wire goes on with TLS: see `Connection.upgradeTls`.
 *
 * @category models
 * @since 0.1.0
 */
export interface StartTls {
  /** How long it may take; then the connection ends with `HandshakeFailed`. */
  readonly timeout: Duration.Duration
  /**
   * Detaches the wire from its receiver, discards what it had read, writes `goAhead` in clear, and goes on as a
   * {@link Handshake} does.
   */
  readonly run: (goAhead: Uint8Array | string) => Effect.Effect<Wire, unknown>
}

/**
 * A bound, accepting socket.
 *
 * @category models
 * @since 0.1.0
 */
export interface Listener {
  /** The address that was really bound: port 0 is resolved here. */
  readonly address: SocketAddress
  /** The descriptor of the listening socket, where the platform has one and tells it. */
  readonly descriptor?: number | undefined
  /**
   * How to suspend and resume where a socket that was closed could not be had again: it stays open, and clients that come wait
   * for `resume`. Without it, a server that is suspended closes the listener, and calls `listen` to resume.
   */
  readonly inPlace?: {
    readonly suspend: Effect.Effect<void>
    readonly resume: Effect.Effect<void>
  } | undefined
}

/**
 * The transport's half of one accepted connection: a full-duplex byte stream, driven by calls from the connection and
 * reporting through a {@link Receiver}.
 *
 * **Details**
 *
 * 1. `start` is called once, first. Nothing is delivered before `resume`.
 * 2. After `resume`, input is delivered until `pause`. One delivery that was already under way may still arrive.
 * 3. After `onEnd` there is no more `onData`; after `onClose` there is nothing at all. `onClose` comes exactly once, after
 *    `close`, after `destroy`, or when the connection was lost (then `onError` came before it).
 * 4. Receiver methods may be called from within `write`, `end`, `close` and `destroy`, but not from within `start`,
 *    `resume` and `pause`.
 * 5. No method throws, in any state: after `onClose` they do nothing.
 *
 * @category models
 * @since 0.1.0
 */
export interface Wire {
  readonly peer: SocketAddress
  readonly local: SocketAddress
  readonly bytesRead: number
  readonly bytesWritten: number
  /** How many bytes of output the system has not taken yet: the transport still needs the arrays that they were written from. */
  readonly unsent: number
  /** What TLS has negotiated, on a wire that has it. */
  readonly tls?: TlsInfo | undefined
  /**
   * Is everything that the peer has sent there at once, as between two ends in one process? Then nothing can be on its way, and a
   * drain need not wait for it.
   */
  readonly isImmediate?: boolean | undefined
  /**
   * How to go on with TLS in the middle of a connection, where that is possible.
   */
  readonly startTls?: StartTls | undefined
  readonly start: (receiver: Receiver) => void
  readonly resume: () => void
  readonly pause: () => void
  /**
   * Takes bytes for output; strings are UTF-8. Always takes all of it: `false` says that the output buffer is at its
   * high-water mark, and that `onDrain` will follow once it is below.
   */
  readonly write: (chunk: Uint8Array | string) => boolean
  /** Half-close: the peer sees end of input behind everything written so far. Input goes on. */
  readonly end: () => void
  /**
   * Orderly close: what was written is flushed, the peer sees end of input, then the connection is released. A peer
   * that does not read, or does not close its own side, delays this only up to a bound of the transport's.
   */
  readonly close: () => void
  /** Immediate close: unsent output is lost. With `reset`, the peer sees a reset (TCP RST) where the transport can. */
  readonly destroy: (reset: boolean) => void
}

/**
 * Input that lies in a buffer of the transport's, which it will read into again.
 *
 * @category models
 * @since 0.1.0
 */
export interface Loan {
  /** Makes bytes that the receiver may keep. */
  readonly copy: (bytes: Uint8Array) => Uint8Array
  /** Leaves the whole buffer to the receiver for good, where the transport can take another one. For use during the call. */
  readonly keep?: (() => void) | undefined
}

/**
 * What a {@link Wire} reports to.
 *
 * @category models
 * @since 0.1.0
 */
export interface Receiver {
  /**
   * Input. The bytes belong to the receiver from now on, and the transport never writes to them again; unless they are on
   * `loan`: then they are the receiver's only until the call returns.
   */
  readonly onData: (chunk: Uint8Array, loan?: Loan) => void
  /** The peer has finished sending. */
  readonly onEnd: () => void
  /** The connection is lost. `onClose` follows. */
  readonly onError: (failure: WireFailure) => void
  /** Output is below the high-water mark again. */
  readonly onDrain: () => void
  /** The connection is released: descriptor closed, nothing follows. */
  readonly onClose: () => void
}

/**
 * How a connection was lost: by the peer's reset, or by something else with a cause.
 *
 * @category models
 * @since 0.1.0
 */
export type WireFailure =
  | { readonly _tag: "Reset" }
  | { readonly _tag: "Failed"; readonly cause: unknown }
