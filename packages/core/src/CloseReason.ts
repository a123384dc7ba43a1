/**
 * How a connection ended, as a value. Every connection that was accepted ends with exactly one `CloseReason`: it is in the
 * server's events and statistics, it goes to `onError`, and its log level follows from it, so that what a hostile or
 * impatient client can cause at will never fills a log.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type { SocketError } from "effect/socket/Socket"
import type { ConnectionError } from "./ConnectionError.ts"
import type { DatagramError } from "./DatagramError.ts"
import type { FrameError } from "./FrameError.ts"

/**
 * How a connection ended.
 *
 * - `Completed`: the handler returned, or let end of input (`Cause.Done`) end it
 * - `PeerReset`: the peer reset the connection, or was gone as `interruptOnDisconnect` means it
 * - `IdleTimeout`: the handler waited for longer than `idleTimeout` on a silent peer
 * - `ReadTimeout`: the peer took longer than `readTimeout` for what a read had begun to receive
 * - `WriteTimeout`: the peer took nothing of the output for `writeTimeout`, during the handler or after it
 * - `RequestTimeout`: the handler ran for longer than `requestTimeout`
 * - `HandshakeFailed`: TLS or another handshake did not succeed
 * - `Refused`: an admission policy or a full queue turned the client away; `policy` names it
 * - `HandlerFailed`: the handler failed, died, or interrupted itself; `cause` has it
 * - `InvalidFrame`: the peer has sent something that is no frame, or not one that its schema allows; `error` says what
 * - `Drained`: the server's drain ended it, by end of input while idle or by interruption after `grace`
 * - `Killed`: cut at the drain's `kill` deadline, or closed through `Server.connections`
 * - `WorkerCrashed`, `WorkerTimeout`: under worker dispatch, the worker ended, or overran its `timeout`
 * - `TransportFailed`: the connection was lost for another reason, or the handler let a `ConnectionError` through
 *
 * @category models
 * @since 0.1.0
 */
export type CloseReason =
  | { readonly _tag: "Completed" }
  | { readonly _tag: "PeerReset" }
  | { readonly _tag: "IdleTimeout" }
  | { readonly _tag: "ReadTimeout" }
  | { readonly _tag: "WriteTimeout" }
  | { readonly _tag: "RequestTimeout" }
  | { readonly _tag: "HandshakeFailed"; readonly cause: unknown }
  | { readonly _tag: "Refused"; readonly policy: string }
  | { readonly _tag: "HandlerFailed"; readonly cause: Cause.Cause<unknown> }
  | { readonly _tag: "InvalidFrame"; readonly error: FrameError }
  | { readonly _tag: "Drained" }
  | { readonly _tag: "Killed" }
  | { readonly _tag: "WorkerCrashed"; readonly cause: unknown }
  | { readonly _tag: "WorkerTimeout" }
  | { readonly _tag: "TransportFailed"; readonly error: ConnectionError | SocketError | DatagramError }

/** @category constructors @since 0.1.0 */
export const Completed: CloseReason = { _tag: "Completed" }

/** @category constructors @since 0.1.0 */
export const PeerReset: CloseReason = { _tag: "PeerReset" }

/** @category constructors @since 0.1.0 */
export const IdleTimeout: CloseReason = { _tag: "IdleTimeout" }

/** @category constructors @since 0.1.0 */
export const ReadTimeout: CloseReason = { _tag: "ReadTimeout" }

/** @category constructors @since 0.1.0 */
export const WriteTimeout: CloseReason = { _tag: "WriteTimeout" }

/** @category constructors @since 0.1.0 */
export const RequestTimeout: CloseReason = { _tag: "RequestTimeout" }

/** @category constructors @since 0.1.0 */
export const HandshakeFailed = (cause: unknown): CloseReason => ({ _tag: "HandshakeFailed", cause })

/** @category constructors @since 0.1.0 */
export const Refused = (policy: string): CloseReason => ({ _tag: "Refused", policy })

/** @category constructors @since 0.1.0 */
export const HandlerFailed = (cause: Cause.Cause<unknown>): CloseReason => ({ _tag: "HandlerFailed", cause })

/** @category constructors @since 0.1.0 */
export const InvalidFrame = (error: FrameError): CloseReason => ({ _tag: "InvalidFrame", error })

/** @category constructors @since 0.1.0 */
export const Drained: CloseReason = { _tag: "Drained" }

/** @category constructors @since 0.1.0 */
export const Killed: CloseReason = { _tag: "Killed" }

/** @category constructors @since 0.1.0 */
export const WorkerCrashed = (cause: unknown): CloseReason => ({ _tag: "WorkerCrashed", cause })

/** @category constructors @since 0.1.0 */
export const WorkerTimeout: CloseReason = { _tag: "WorkerTimeout" }

/** @category constructors @since 0.1.0 */
export const TransportFailed = (error: ConnectionError | SocketError | DatagramError): CloseReason => ({
  _tag: "TransportFailed",
  error
})

/**
 * The level at which an ending deserves a line in a log: `Error` for a failure of the server's own code, `Debug` for
 * everything that a client can bring about: also `RequestTimeout` and `WorkerTimeout`, which a client can by being silent while
 * a handler waits for it. A worker that had to be killed for it has an event of its own.
 *
 * @category combinators
 * @since 0.1.0
 */
export const logLevel = (self: CloseReason): "Error" | "Debug" => {
  switch (self._tag) {
    case "HandlerFailed":
    case "WorkerCrashed":
      return "Error"
    default:
      return "Debug"
  }
}
