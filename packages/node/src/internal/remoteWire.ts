/** The wire of a connection whose socket is in a worker: what is done to it here is done there. */
import type { TlsInfo } from "@socketserver/core/Connection"
import type { Receiver, Wire, WireFailure } from "@socketserver/core/StreamTransport"
import type { SocketAddress } from "effect/net/NetAddress"
import { decodeLocal, decodePeer, type EncodedEnds, type ToWorker } from "./workerProtocol.ts"

export class RemoteWire implements Wire {
  readonly unsent = 0
  bytesRead: number
  tls: TlsInfo | undefined
  private readonly readBefore: number
  bytesWritten = 0
  private readonly id: number
  private readonly post: (message: ToWorker) => void
  private receiver: Receiver | undefined
  isReleased = false
  /** Has the worker closed it by itself? */
  isClosed = false

  private readonly onRelease: () => void
  private readonly ends: EncodedEnds

  constructor(
    id: number,
    ends: EncodedEnds,
    readBefore: number,
    post: (message: ToWorker) => void,
    onRelease: () => void
  ) {
    this.id = id
    this.ends = ends
    this.readBefore = readBefore
    this.bytesRead = readBefore
    this.post = post
    this.onRelease = onRelease
  }

  private _peer: SocketAddress | undefined
  get peer(): SocketAddress {
    return this._peer ??= decodePeer(this.ends)
  }

  private _local: SocketAddress | undefined
  get local(): SocketAddress {
    return this._local ??= decodeLocal(this.ends)
  }

  start(receiver: Receiver): void {
    this.receiver = receiver
  }

  // Its input is read where the handler runs.
  resume(): void {}
  pause(): void {}

  write(bytes: Uint8Array | string): boolean {
    this.tell({ _tag: "Write", id: this.id, bytes })
    return true
  }

  end(): void {
    this.tell({ _tag: "End", id: this.id })
  }

  close(): void {
    if (!this.isClosed) this.tell({ _tag: "Close", id: this.id })
  }

  destroy(reset: boolean): void {
    this.tell({ _tag: "Destroy", id: this.id, reset })
  }

  private tell(message: ToWorker): void {
    if (!this.isReleased) this.post(message)
  }

  // ---- what the worker says

  counted(bytesRead: number, bytesWritten: number): void {
    this.bytesRead = this.readBefore + bytesRead
    this.bytesWritten = bytesWritten
  }

  ended(): void {
    if (!this.isReleased) this.receiver?.onEnd()
  }

  lost(failure: WireFailure): void {
    if (!this.isReleased) this.receiver?.onError(failure)
  }

  /** The worker has released the socket, or is gone. */
  release(): void {
    if (this.isReleased) return
    this.isReleased = true
    this.onRelease()
    this.receiver?.onClose()
  }
}
