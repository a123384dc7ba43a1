/**
 * A datagram transport is where packets come from and go to: it binds, reports packets, and sends them. It is a service of
 * its own, apart from `StreamTransport`, so that a handler for one kind of request cannot be served over the other: such a
 * program does not compile.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import type { DatagramStep } from "./Admission.ts"
import type { DatagramError } from "./DatagramError.ts"
import type { ListenError } from "./ListenError.ts"
import type { Listener } from "./StreamTransport.ts"

/**
 * One packet, as a transport hands it over.
 *
 * @category models
 * @since 0.1.0
 */
export interface Packet {
  /** Who sent it. A sender that is bound to no address, as unix datagram clients may be, has the unix path `""`. */
  readonly peer: SocketAddress
  /** The receiver's for good: a transport does not write to it again. */
  readonly payload: Uint8Array
  /** Was the packet longer than the transport takes, and cut? */
  readonly truncated: boolean
  /** Sends one packet back to the sender. */
  readonly reply: (payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
}

/**
 * A bound datagram socket.
 *
 * @category models
 * @since 0.1.0
 */
export interface DatagramListener extends Listener {
  /** Sends one packet from the bound address: completes when the system has it, and fails if the system refuses it. */
  readonly send: (to: SocketAddress, payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
}

/**
 * How much may wait between the socket and the handlers, and who has to go when there is more.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReceiveQueueOptions {
  /** How many packets may wait; and how many may be with steps of `Admission` that take their time. Default 1,024. */
  readonly maxPackets?: number | undefined
  /** How many bytes of payload may wait in all. Default 4 MiB. */
  readonly maxBytes?: number | undefined
  /** At one more, `"dropNewest"` (the default) drops that one, `"dropOldest"` as many as have waited longest. */
  readonly overflow?: "dropNewest" | "dropOldest" | undefined
}

/**
 * Where packets come from. Providing a transport binds nothing: the server binds when its own layer is built, after
 * everything that its handler needs.
 *
 * @category services
 * @since 0.1.0
 */
export class DatagramTransport extends Context.Service<DatagramTransport, {
  /** A short name for people, such as `"udp"`: it shows in `Server.info`. */
  readonly name: string
  /** What a packet passes between arrival and dispatch, in order. Added to by the steps of `Admission`. */
  readonly steps: ReadonlyArray<DatagramStep>
  /** How many packets may wait for the handlers. */
  readonly receiveQueue?: ReceiveQueueOptions | undefined
  /**
   * Binds and starts to receive. `onPacket` is called for every packet, synchronously, and never throws. The scope's end
   * closes the socket (and unlinks a socket file).
   *
   * `at` is the address of an earlier listener of this transport, to be bound again when a server resumes; it matters where
   * the configured address was not final (port 0).
   */
  readonly listen: (
    onPacket: (packet: Packet) => void,
    at?: SocketAddress
  ) => Effect.Effect<DatagramListener, ListenError, Scope.Scope>
}>()("@socketserver/core/DatagramTransport") {}
