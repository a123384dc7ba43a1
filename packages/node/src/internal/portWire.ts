/**
 * The wire of a connection in a worker that has not got its socket: bytes come and go as messages. Either side has only so
 * many bytes on their way that the other has not taken.
 */
import type { TlsInfo } from "@socketserver/core/Connection"
import type { Receiver, StartTls, Wire, WireFailure } from "@socketserver/core/StreamTransport"
import type { SocketAddress } from "effect/net/NetAddress"
import { type FromWorker, outputWindow } from "./workerProtocol.ts"

interface Settings {
  readonly id: number
  readonly peer: SocketAddress
  readonly local: SocketAddress
  readonly post: (message: FromWorker) => void
  readonly tls: TlsInfo | undefined
  readonly startTls: StartTls | undefined
}

export class PortWire implements Wire {
  private readonly settings: Settings
  private receiver: Receiver | undefined
  private asked = false
  private flowing = false
  private delivering = false
  private input: Array<Uint8Array> = []
  private inputEnded = false
  private released = false
  bytesRead = 0
  bytesWritten = 0
  unsent = 0

  constructor(settings: Settings) {
    this.settings = settings
  }

  get peer(): SocketAddress {
    return this.settings.peer
  }

  get local(): SocketAddress {
    return this.settings.local
  }

  get tls(): TlsInfo | undefined {
    return this.settings.tls
  }

  get startTls(): StartTls | undefined {
    return this.settings.startTls
  }

  /** Another wire takes over, with TLS: what comes here is discarded. */
  abandon(): void {
    this.released = true
    this.input = []
  }

  start(receiver: Receiver): void {
    this.receiver = receiver
  }

  resume(): void {
    this.flowing = true
    if (!this.asked) {
      this.asked = true
      this.settings.post({ _tag: "Resume", id: this.settings.id })
    }
    // Not from within this call: the receiver is not ready for it.
    if (this.input.length > 0 || this.inputEnded) queueMicrotask(() => this.deliver())
  }

  pause(): void {
    this.flowing = false
  }

  write(bytes: Uint8Array | string): boolean {
    const { id, post } = this.settings
    if (this.released) return true
    const length = typeof bytes === "string" ? Buffer.byteLength(bytes) : bytes.length
    this.unsent += length
    this.bytesWritten += length
    post({ _tag: "Output", id, bytes, length })
    return this.unsent < outputWindow
  }

  end(): void {
    if (!this.released) this.settings.post({ _tag: "OutputEnd", id: this.settings.id })
  }

  close(): void {
    this.finish("close")
  }

  destroy(reset: boolean): void {
    this.finish(reset ? "reset" : "destroy")
  }

  private finish(how: "close" | "destroy" | "reset"): void {
    if (this.released) return
    this.settings.post({ _tag: "Closed", id: this.settings.id, how })
    this.release()
  }

  private release(): void {
    if (this.released) return
    this.released = true
    this.input = []
    this.receiver?.onClose()
  }

  private deliver(): void {
    if (this.delivering) return
    this.delivering = true
    while (this.flowing && !this.released) {
      const bytes = this.input.shift()
      if (bytes === undefined) {
        if (this.inputEnded) {
          this.flowing = false
          this.receiver!.onEnd()
        }
        break
      }
      this.settings.post({ _tag: "Taken", id: this.settings.id, length: bytes.length })
      this.receiver!.onData(bytes)
    }
    this.delivering = false
  }

  // ---- what the pool says

  received(bytes: Uint8Array): void {
    if (this.released) return
    this.bytesRead += bytes.length
    this.input.push(bytes)
    this.deliver()
  }

  ended(): void {
    this.inputEnded = true
    this.deliver()
  }

  written(length: number): void {
    const wasFull = this.unsent >= outputWindow
    this.unsent -= length
    if (wasFull && this.unsent < outputWindow && !this.released) this.receiver!.onDrain()
  }

  lost(failure: WireFailure): void {
    if (this.released) return
    this.receiver?.onError(failure)
    this.release()
  }
}
