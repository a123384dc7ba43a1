/**
 * A `net.Socket` as a wire. The socket flows only while the connection wants input; listeners are shared functions that find
 * their wire on the socket, so that a connection costs no closures.
 */
import type { Loan, Receiver, Wire, WireFailure } from "@socketserver/core/StreamTransport"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Net from "node:net"
import { allocatedOutside } from "./externalMemory.ts"
import { large, makeReadInto } from "./sharedBuffer.ts"

/** How long a peer may take to read the last of its output after the handler has ended. */
const flushTimeout = 30_000

/**
 * How long a closed connection waits for the peer to close its side too. A socket that is closed with input unread, or
 * before more input comes, resets the connection, and a reset can take the last answer with it (RFC 1122, 4.2.2.13). So the
 * output is ended, and input is read and dropped for this long.
 */
const lingerTimeout = 1_000

const wireOf = Symbol("socketserver wire")
type WiredSocket = Net.Socket & { [wireOf]: NodeWire }

/** How a transport names the ends of a socket; asked when somebody wants to know. */
export interface Addresses {
  readonly peerOf: (socket: Net.Socket) => SocketAddress
  readonly localOf: (socket: Net.Socket) => SocketAddress
}

const ignore = () => {}

/**
 * Who receives from a socket that was closed or given away. Node holds such a socket for a while, long enough for V8 to take it
 * for old, and what an old object refers to is kept by young collections. So it no longer refers to the connection. (Bench
 * "workers: churn": in the server's thread some 7 KiB of each connection survived young collections, 2 with this and
 * `jobTable.ts`; with this alone 5.)
 */
const nobody: Receiver = { onData: ignore, onEnd: ignore, onError: ignore, onDrain: ignore, onClose: ignore }

export class NodeWire implements Wire {
  private readonly socket: WiredSocket
  private receiver!: Receiver
  /** Nothing was read yet. */
  private fresh = true
  private delivering = false
  private stopped = false
  private readonly addresses: Addresses
  private peerEnded = false
  private closing = false
  private timer: NodeJS.Timeout | undefined

  constructor(socket: Net.Socket, addresses: Addresses) {
    this.socket = socket as WiredSocket
    this.socket[wireOf] = this
    this.addresses = addresses
    // Asked for now, Node remembers it when the socket is gone.
    void socket.remoteAddress
  }

  private _peer: SocketAddress | undefined
  get peer(): SocketAddress {
    return this._peer ??= this.addresses.peerOf(this.socket)
  }

  private _local: SocketAddress | undefined
  get local(): SocketAddress {
    return this._local ??= this.addresses.localOf(this.socket)
  }

  get bytesRead(): number {
    return this.socket.bytesRead
  }

  get bytesWritten(): number {
    return this.socket.bytesWritten
  }

  get unsent(): number {
    return this.socket.writableLength
  }

  start(receiver: Receiver): void {
    this.receiver = receiver
    this.socket
      .on("end", onEnd)
      .on("error", onError)
      .on("drain", onDrain)
      .on("close", onClose)
  }

  resume(): void {
    this.stopped = false
    if (this.fresh) {
      this.fresh = false
      if (!readInto(this.socket)) this.socket.on("data", onData)
    }
    this.socket.resume()
  }

  /**
   * Gives the socket to somebody else, if nothing was read from it yet: `take` says whether it was taken. Then this wire has
   * nothing to do with it any more.
   */
  handOver(take: (socket: Net.Socket) => boolean): boolean {
    const { socket } = this
    if (!this.fresh || this.closing || socket.destroyed || socket.bytesWritten > 0 || !take(socket)) return false
    socket
      .off("end", onEnd)
      .off("error", onError)
      .off("drain", onDrain)
      .off("close", onClose)
      .on("error", ignore)
    this.receiver = nobody
    return true
  }

  pause(): void {
    // From within a delivery, its return value stops the flow: cheaper, for a socket that reads into a buffer.
    if (this.delivering) this.stopped = true
    else this.socket.pause()
  }

  write(chunk: Uint8Array | string): boolean {
    const { socket } = this
    if (socket.destroyed) return true
    socket.write(chunk)
    // Not what `write` returns: that is `false` for every chunk of the mark's size, also when the system has taken it.
    return socket.writableLength < socket.writableHighWaterMark
  }

  end(): void {
    if (!this.socket.writableEnded) this.socket.end()
  }

  close(): void {
    const { socket } = this
    if (this.closing || socket.destroyed) return
    this.closing = true
    this.end()
    if (this.peerEnded && socket.writableLength === 0) return
    // Now the peer's end of input, or a deadline, ends it.
    socket.resume()
    if (socket.writableLength === 0) return this.destroyIn(lingerTimeout)
    this.destroyIn(flushTimeout)
    socket.once("finish", onFinish)
  }

  private destroyIn(millis: number): void {
    clearTimeout(this.timer)
    this.timer = setTimeout(destroy, millis, this.socket)
  }

  destroy(reset: boolean): void {
    const { socket } = this
    if (socket.destroyed) return
    // Only TCP has resets.
    if (reset && socket.remoteFamily !== undefined) socket.resetAndDestroy()
    else socket.destroy()
  }

  // ---- called by the listeners below

  ended(): void {
    this.peerEnded = true
    // Node would do so only after its listeners, and after what they write.
    if (!this.socket.allowHalfOpen) this.end()
    this.receiver.onEnd()
  }

  finished(): void {
    if (!this.peerEnded) this.destroyIn(lingerTimeout)
  }

  failed(error: NodeJS.ErrnoException): void {
    this.receiver.onError(toFailure(error))
  }

  closed(): void {
    clearTimeout(this.timer)
    const { receiver } = this
    this.receiver = nobody
    receiver.onClose()
  }

  received(chunk: Uint8Array, loan?: Loan): boolean {
    this.delivering = true
    this.receiver.onData(chunk, loan)
    this.delivering = false
    const goOn = !this.stopped
    this.stopped = false
    return goOn
  }

  drained(): void {
    this.receiver.onDrain()
  }
}

function onData(this: Net.Socket, chunk: Uint8Array) {
  if (chunk.length >= large) allocatedOutside(chunk.length)
  if (!(this as WiredSocket)[wireOf].received(chunk)) this.pause()
}

function onRead(this: Net.Socket, bytes: Uint8Array, loan: Loan) {
  return (this as WiredSocket)[wireOf].received(bytes, loan)
}

const readInto = makeReadInto(onRead)

function onEnd(this: Net.Socket) {
  ;(this as WiredSocket)[wireOf].ended()
}

function onError(this: Net.Socket, error: NodeJS.ErrnoException) {
  ;(this as WiredSocket)[wireOf].failed(error)
}

function onDrain(this: Net.Socket) {
  ;(this as WiredSocket)[wireOf].drained()
}

function onClose(this: Net.Socket) {
  ;(this as WiredSocket)[wireOf].closed()
}

function onFinish(this: Net.Socket) {
  ;(this as WiredSocket)[wireOf].finished()
}

const destroy = (socket: Net.Socket) => {
  socket.destroy()
}

const toFailure = (error: NodeJS.ErrnoException): WireFailure =>
  error.code === "ECONNRESET" || error.code === "EPIPE" || error.code === "ECONNABORTED"
    ? { _tag: "Reset" }
    : { _tag: "Failed", cause: error }
