/** What a request of packets is, one of them or a peer's many: it answers by the server's socket, and holds nothing of its own. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type { SocketAddress } from "effect/net/NetAddress"
import * as CloseReason from "../CloseReason.ts"
import type { Datagram } from "../Datagram.ts"
import { Closed, DatagramError } from "../DatagramError.ts"
import type { DatagramListener, Packet } from "../DatagramTransport.ts"
import { Entry } from "./entry.ts"
import type { ServerImpl } from "./server.ts"

/** The socket of a server, while it has one. */
export interface Link {
  listener: DatagramListener | undefined
}

const encoder = new TextEncoder()

export abstract class PacketEntry extends Entry {
  /** The packet that the request began with. */
  protected readonly packet: Packet
  private readonly link: Link
  annotations: Map<string, unknown> | undefined
  bytesWritten = 0

  constructor(server: ServerImpl, id: number, packet: Packet, link: Link) {
    super(server, id)
    this.packet = packet
    this.link = link
  }

  get peer(): SocketAddress {
    return this.packet.peer
  }

  get local(): SocketAddress {
    return this.server.shape.address
  }

  get draining(): Effect.Effect<void> {
    return this.server.draining.await
  }

  get annotate(): Datagram["annotate"] {
    return (key, value) =>
      Effect.sync(() => {
        ;(this.annotations ??= new Map()).set(key, value)
      })
  }

  protected sendBack(payload: Uint8Array | string): Effect.Effect<void, DatagramError> {
    return this.link.listener === undefined ? failClosed(this.peer) : this.packet.reply(this.counted(payload))
  }

  protected sendTo(to: SocketAddress, payload: Uint8Array | string): Effect.Effect<void, DatagramError> {
    const { listener } = this.link
    return listener === undefined ? failClosed(to) : listener.send(to, this.counted(payload))
  }

  /** What is about to be sent. */
  protected counted(payload: Uint8Array | string): Uint8Array {
    const bytes = typeof payload === "string" ? encoder.encode(payload) : payload
    this.bytesWritten += bytes.length
    return bytes
  }

  get released(): boolean {
    return true
  }

  /** How a handler's failure ended the request: what it could not send is its peer's doing. */
  protected failed({ cause }: Exit.Failure<unknown, unknown>): CloseReason.CloseReason {
    if (Cause.hasInterruptsOnly(cause) && this.interruptedByDrain) return CloseReason.Drained
    const error = sendingErrorOf(cause)
    return error === undefined ? this.handlerFailed(cause) : CloseReason.TransportFailed(error)
  }

  protected isPeersDoing(cause: Cause.Cause<unknown>): boolean {
    return sendingErrorOf(cause) !== undefined
  }
}

/** What could not be sent, if the cause says nothing else. */
const sendingErrorOf = ({ reasons }: Cause.Cause<unknown>): DatagramError | undefined => {
  const [reason] = reasons
  if (reasons.length !== 1 || reason === undefined || !Cause.isFailReason(reason)) return undefined
  return reason.error instanceof DatagramError ? reason.error : undefined
}

const failClosed = (peer: SocketAddress): Effect.Effect<never, DatagramError> =>
  Effect.fail(new DatagramError({ reason: new Closed(), peer }))
