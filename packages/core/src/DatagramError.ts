/**
 * Why a packet could not be sent. That the system took it says nothing about its arrival: packets may be lost.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type { SocketAddress } from "effect/net/NetAddress"
import { messageOf } from "./internal/causes.ts"
import { formatAddress } from "./internal/connection.ts"

/**
 * The sender is bound to no address, as unix datagram clients may be: there is nowhere to send a reply to.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoReturnAddress extends Data.TaggedError("NoReturnAddress")<{}> {
  override get message(): string {
    return "the sender has no address; a client that wants an answer has to bind one"
  }
}

/**
 * The packet is larger than the network or the transport takes (`EMSGSIZE`); for UDP over IPv4 at most 65,507 bytes.
 *
 * @category errors
 * @since 0.1.0
 */
export class TooLarge extends Data.TaggedError("TooLarge")<{
  readonly length: number
}> {
  override get message(): string {
    return `a packet of ${this.length} bytes is too large; send several smaller ones`
  }
}

/**
 * Nobody can be reached at the address: an earlier packet was answered by an ICMP error, there is no route, the path of a
 * unix socket is gone, or its receiver does not keep up.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unreachable extends Data.TaggedError("Unreachable")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return `nobody can be reached there (${messageOf(this.cause)})`
  }
}

/**
 * The server's socket is closed: it is suspended, or has been drained.
 *
 * @category errors
 * @since 0.1.0
 */
export class Closed extends Data.TaggedError("Closed")<{}> {
  override get message(): string {
    return "the server's socket is closed: it is suspended, or was drained"
  }
}

/**
 * Another failure of the system's, in `cause`.
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
 * What a reply or a send fails with. `reason` tells why: use `Effect.catchReason("DatagramError", "Unreachable", …)`.
 *
 * @category errors
 * @since 0.1.0
 */
export class DatagramError extends Data.TaggedError("DatagramError")<{
  readonly reason: NoReturnAddress | TooLarge | Unreachable | Closed | Failed
  /** Whom it was for. */
  readonly peer: SocketAddress
}> {
  override get message(): string {
    return `packet for ${formatAddress(this.peer)}: ${this.reason.message}`
  }
}
