/**
 * A datagram transport is where packets come from. It is a service of its own, apart from `StreamTransport`, so that a
 * handler for one kind of request cannot be served over the other: such a program does not compile.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import type { ListenError } from "./ListenError.ts"
import type { Listener } from "./StreamTransport.ts"

/**
 * One packet, as a transport hands it over.
 *
 * @category models
 * @since 0.1.0
 */
export interface Packet {
  readonly peer: SocketAddress
  readonly payload: Uint8Array
  /** Was the packet longer than the transport takes, and cut? */
  readonly truncated: boolean
}

/**
 * Where packets come from. Providing a transport binds nothing: the server binds when its own layer is built.
 *
 * @category services
 * @since 0.1.0
 */
export class DatagramTransport extends Context.Service<DatagramTransport, {
  /** A short name for people, such as `"udp"`. */
  readonly name: string
  /** Binds and starts to receive. `onPacket` is called for every packet, synchronously, and never throws. */
  readonly listen: (
    onPacket: (packet: Packet) => void,
    at?: SocketAddress
  ) => Effect.Effect<Listener, ListenError, Scope.Scope>
}>()("@socketserver/core/DatagramTransport") {}
