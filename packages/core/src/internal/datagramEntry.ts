/** A datagram as a request: nothing is to be released, and what it cannot send is its peer's doing. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
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

export const bytesOf = (payload: Uint8Array | string): Uint8Array =>
  typeof payload === "string" ? encoder.encode(payload) : payload

/** For who wants to send while there is none. */
export const failClosed = (peer: SocketAddress): Effect.Effect<never, DatagramError> =>
  Effect.fail(new DatagramError({ reason: new Closed(), peer }))

/** The entry is the datagram that its handler is given, too: most packets are answered at once, and one object is enough. */
export class DatagramEntry extends Entry implements Datagram {
  private readonly packet: Packet
  private readonly link: Link
  annotations: Map<string, unknown> | undefined
  bytesWritten = 0

  constructor(server: ServerImpl, id: number, packet: Packet, link: Link) {
    super(server, id)
    this.packet = packet
    this.link = link
  }

  protected get kind(): string {
    return "datagram"
  }

  // ---- for the handler

  get subject(): Datagram {
    return this
  }

  get peer(): SocketAddress {
    return this.packet.peer
  }

  get local(): SocketAddress {
    return this.server.shape.address
  }

  get payload(): Uint8Array {
    return this.packet.payload
  }

  get truncated(): boolean {
    return this.packet.truncated
  }

  get reply(): Datagram["reply"] {
    return (payload) =>
      Effect.suspend(() => {
        if (this.link.listener === undefined) return failClosed(this.peer)
        return this.packet.reply(this.counted(payload))
      })
  }

  get send(): Datagram["send"] {
    return (to, payload) =>
      Effect.suspend(() => {
        const { listener } = this.link
        if (listener === undefined) return failClosed(to)
        return listener.send(to, this.counted(payload))
      })
  }

  private counted(payload: Uint8Array | string): Uint8Array {
    const bytes = bytesOf(payload)
    this.bytesWritten += bytes.length
    return bytes
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

  // ---- for the server

  get bytesRead(): number {
    return this.packet.payload.length
  }

  get released(): boolean {
    return true
  }

  get endedIdle(): boolean {
    return false
  }

  protected closeSubject(): void {}
  protected destroySubject(): void {}
  startDrain(): void {}

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    if (Exit.isSuccess(exit) || this.isEnd(exit.cause)) return CloseReason.Completed
    if (Cause.hasInterruptsOnly(exit.cause) && this.interruptedByDrain) return CloseReason.Drained
    const [reason] = exit.cause.reasons
    return exit.cause.reasons.length === 1 && reason !== undefined && Cause.isFailReason(reason) &&
        reason.error instanceof DatagramError
      ? CloseReason.TransportFailed(reason.error)
      : CloseReason.HandlerFailed(exit.cause)
  }

  protected isEnd(cause: Cause.Cause<unknown>): boolean {
    return cause.reasons.length > 0 &&
      cause.reasons.every((reason) => Cause.isFailReason(reason) && Cause.isDone(reason.error))
  }
}
