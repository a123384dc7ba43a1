/**
 * Why a read or a write on a connection failed. End of input is not among the reasons: reads report it as `Cause.Done`, the
 * convention of Effect's `Pull`.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import { messageOf } from "./internal/causes.ts"

/**
 * The peer reset the connection, or went away while there was something left to send to it.
 *
 * @category errors
 * @since 0.1.0
 */
export class Reset extends Data.TaggedError("Reset")<{}> {
  override get message(): string {
    return "the peer reset the connection"
  }
}

/**
 * This side has closed the connection, or its output (`end`), before.
 *
 * @category errors
 * @since 0.1.0
 */
export class Closed extends Data.TaggedError("Closed")<{
  readonly what: "connection" | "output"
}> {
  override get message(): string {
    return this.what === "connection"
      ? "the connection was closed on this side"
      : "the output was ended on this side: nothing can be written after `end`"
  }
}

/**
 * A deadline passed. `deadline` names the option that set it.
 *
 * @category errors
 * @since 0.1.0
 */
export class Timeout extends Data.TaggedError("Timeout")<{
  readonly deadline: "idleTimeout" | "readTimeout" | "writeTimeout" | "handshakeTimeout"
}> {
  override get message(): string {
    return overdue[this.deadline]
  }
}

const overdue: Record<Timeout["deadline"], string> = {
  idleTimeout: "the peer was silent for longer than `idleTimeout`",
  readTimeout: "the peer took longer than `readTimeout` for the rest of what it had begun to send",
  writeTimeout: "the peer took nothing of the output for `writeTimeout`",
  handshakeTimeout: "the peer took longer than `handshakeTimeout` for a handshake"
}

/**
 * The peer sent more than the read allows. The bytes are still there: a read with a larger limit can have them.
 *
 * @category errors
 * @since 0.1.0
 */
export class LimitExceeded extends Data.TaggedError("LimitExceeded")<{
  readonly operation: string
  readonly limit: number
}> {
  override get message(): string {
    return `${this.operation}: more than ${this.limit} bytes; raise \`maxLength\` if that is legitimate`
  }
}

/**
 * The peer finished in the middle of what was asked for.
 *
 * @category errors
 * @since 0.1.0
 */
export class UnexpectedEnd extends Data.TaggedError("UnexpectedEnd")<{
  readonly operation: string
  readonly received: number
}> {
  override get message(): string {
    return `${this.operation}: the input ended after ${this.received} bytes`
  }
}

/**
 * `upgradeTls` did not succeed, and the connection is gone. `cause` is what the platform reported.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandshakeFailed extends Data.TaggedError("HandshakeFailed")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return `the handshake failed: ${messageOf(this.cause)}`
  }
}

/**
 * The connection was lost for a reason of the system's (`ETIMEDOUT`, `EHOSTUNREACH`, …), in `cause`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Failed extends Data.TaggedError("Failed")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return messageOf(this.cause)
  }
}

/**
 * What a read or a write fails with. `reason` tells why: use `Effect.catchReason("ConnectionError", "LimitExceeded", …)`.
 *
 * @category errors
 * @since 0.1.0
 */
export class ConnectionError extends Data.TaggedError("ConnectionError")<{
  readonly reason: Reset | Closed | Timeout | LimitExceeded | UnexpectedEnd | HandshakeFailed | Failed
  /** The connection's `id`. */
  readonly connection: number
  /** The peer's address, for people. */
  readonly peer: string
}> {
  override get message(): string {
    return `connection ${this.connection} from ${this.peer}: ${this.reason.message}`
  }
}

/**
 * `upgradeTls` on a connection that cannot be upgraded: its transport does not know how, or it has TLS already. The connection
 * is as it was.
 *
 * @category errors
 * @since 0.1.0
 */
export class TlsUnavailable extends Data.TaggedError("TlsUnavailable")<{
  readonly why: "transport" | "already"
}> {
  override get message(): string {
    return this.why === "transport"
      ? "the transport cannot upgrade to TLS; over TCP and unix sockets, add `NodeTransport.startTls` to the pipe"
      : "the connection has TLS already"
  }
}
