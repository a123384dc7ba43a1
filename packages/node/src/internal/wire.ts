/**
 * A `net.Socket` as a wire. The socket flows only while the connection wants input; listeners are shared functions that find
 * their wire on the socket, so that a connection costs no closures.
 */
import type { TlsInfo } from "@socketserver/core/Connection"
import type { Loan, Receiver, StartTls, Wire, WireFailure } from "@socketserver/core/StreamTransport"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Net from "node:net"
import { allocatedOutside } from "./externalMemory.ts"
import { large, makeReadInto, sharedBuffer } from "./sharedBuffer.ts"
import type { PortableTls } from "./tlsOptions.ts"

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

/** What a socket of Node's knows of the write that is under way: how long it is, and how much of it waits in the system's hands. */
interface Insides {
  readonly writableLength: number
  readonly _writableState?: { readonly writelen?: number }
  readonly _handle?: { readonly writeQueueSize?: number } | null
}

const ignore = () => {}

/**
 * Who receives from a socket that was closed or given away. Node holds such a socket for a while, long enough for V8 to take it
 * for old, and what an old object refers to is kept by young collections. So it no longer refers to the connection. (Bench
 * "workers: churn": in the server's thread some 7 KiB of each connection survived young collections, 2 with this and
 * `jobTable.ts`; with this alone 5.)
 */
const nobody: Receiver = { onData: ignore, onEnd: ignore, onError: ignore, onDrain: ignore, onClose: ignore }

/** What a wire over TLS knows of what is under it. */
export interface Encryption {
  /** The socket that TLS has taken over. */
  readonly below: Net.Socket
  readonly info: TlsInfo
  /** What went through the connection in clear, before. */
  readonly bytesRead: number
  readonly bytesWritten: number
}

export class NodeWire implements Wire {
  private readonly socket: WiredSocket
  private receiver: Receiver | undefined
  /** Nothing was read yet. */
  private fresh = true
  /** Does what is read come here at once, with nothing left in the socket's own buffer? */
  private direct = false
  private delivering = false
  private stopped = false
  private readonly addresses: Addresses
  private peerEnded = false
  private closing = false
  private timer: NodeJS.Timeout | undefined
  /** Has somebody else the socket? */
  private given = false
  private destroyTls: (() => void) | undefined
  private readonly encryption: Encryption | undefined
  startTls: StartTls | undefined
  /** What a worker needs that has the socket: for the handshake that is left to it, or for `startTls`. */
  portableTls: PortableTls | undefined

  constructor(socket: Net.Socket, addresses: Addresses, encryption?: Encryption) {
    this.socket = socket as WiredSocket
    this.encryption = encryption
    this.socket[wireOf] = this
    this.addresses = addresses
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
    return this.socket.bytesRead + (this.encryption?.bytesRead ?? 0)
  }

  get bytesWritten(): number {
    return this.socket.bytesWritten + (this.encryption?.bytesWritten ?? 0)
  }

  /**
   * Node counts what is being written as unsent until all of it is gone. How much of it is gone shows only in two fields that are
   * not documented: without them, a peer that takes a large write slowly looks like one that takes nothing.
   */
  get unsent(): number {
    const { _handle, _writableState, writableLength } = this.socket as unknown as Insides
    const { writelen = 0 } = _writableState ?? {}
    return writableLength - Math.max(0, writelen - (_handle?.writeQueueSize ?? writelen))
  }

  get tls(): TlsInfo | undefined {
    return this.encryption?.info
  }

  start(receiver: Receiver): void {
    const isFirst = this.receiver === undefined
    this.receiver = receiver
    if (!isFirst) return
    // Lost between a handshake and now, when nobody listened.
    if (this.socket.closed) return queueMicrotask(() => this.missed())
    this.socket
      .on("end", onEnd)
      .on("error", onError)
      .on("drain", onDrain)
      .on("close", onClose)
    // It came with the last of the handshake.
    if (this.socket.readableEnded) this.peerEnded = true
  }

  resume(): void {
    this.stopped = false
    if (this.fresh) {
      this.fresh = false
      // What TLS has decrypted meanwhile lies in the socket's own buffer.
      this.direct = this.encryption === undefined && readInto(this.socket)
      if (!this.direct) this.socket.on("data", onData)
    }
    this.socket.resume()
    if (this.peerEnded && !this.endReported) queueMicrotask(() => this.reportEnd())
  }

  /**
   * Gives the socket to somebody else, if that would lose nothing: `take` says whether it was taken, and has stopped this wire before
   * if it `wasRead` from. Then this wire has nothing to do with it any more.
   */
  handOver(take: (socket: Net.Socket, wasRead: boolean) => boolean): boolean {
    const { socket } = this
    if (this.isGone || socket.bytesWritten > 0 || this.isTied) return false
    if (!this.fresh && (!this.direct || this.delivering || this.peerEnded)) return false
    if (!take(socket, !this.fresh)) return false
    this.detach()
    return true
  }

  /** Can it be given to somebody else as long as nothing is written? */
  get isMovable(): boolean {
    return sharedBuffer.available && sharedBuffer.enabled && !this.isTied
  }

  /** Over TCP? */
  get isTcp(): boolean {
    return this.socket.remoteFamily !== undefined
  }

  /** Only whoever has the certificates can do what is to be done with it. */
  private get isTied(): boolean {
    return this.encryption !== undefined || (this.startTls !== undefined && this.portableTls === undefined)
  }

  private get isGone(): boolean {
    return this.given || this.closing || this.socket.destroyed
  }

  /**
   * Leaves the socket to TLS, which has everything that is read from now on. `undefined` if there is no socket any more, or TLS has
   * it already. To destroy this wire is then to call `destroy`.
   */
  giveToTls(destroy: () => void): Net.Socket | undefined {
    const { socket } = this
    if (this.isGone || this.encryption !== undefined) return undefined
    this.detach()
    this.destroyTls = destroy
    return socket.off("data", onData).pause()
  }

  private detach(): void {
    this.given = true
    this.socket
      .off("end", onEnd)
      .off("error", onError)
      .off("drain", onDrain)
      .off("close", onClose)
      .on("error", ignore)
    this.receiver = nobody
  }

  pause(): void {
    // From within a delivery, its return value stops the flow: cheaper, for a socket that reads into a buffer.
    if (this.delivering) this.stopped = true
    else this.socket.pause()
  }

  write(chunk: Uint8Array | string): boolean {
    const { socket } = this
    if (socket.destroyed || this.given) return true
    socket.write(chunk)
    // Not what `write` returns: that is `false` for every chunk of the mark's size, also when the system has taken it.
    return socket.writableLength < socket.writableHighWaterMark
  }

  end(): void {
    if (!this.socket.writableEnded && !this.given) this.socket.end()
  }

  close(): void {
    const { socket } = this
    if (this.closing || socket.destroyed) return
    if (this.given) return this.destroy(false)
    this.closing = true
    this.end()
    // The end itself is something to write for TLS, that a peer may not take.
    if (this.peerEnded && socket.writableLength === 0 && this.encryption === undefined) return
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
    if (this.destroyTls !== undefined) return this.destroyTls()
    // Only TCP has resets.
    if (!reset || socket.remoteFamily === undefined) socket.destroy()
    else if (this.encryption === undefined) socket.resetAndDestroy()
    else resetBelow(socket, this.encryption.below)
  }

  // ---- called by the listeners below

  ended(): void {
    this.peerEnded = true
    // Node would do so only after its listeners, and after what they write.
    if (!this.socket.allowHalfOpen) this.end()
    // TLS reads before anybody has asked.
    if (!this.fresh) this.reportEnd()
  }

  private endReported = false
  private reportEnd(): void {
    if (this.endReported || this.lost) return
    this.endReported = true
    this.receiver!.onEnd()
  }

  finished(): void {
    if (!this.peerEnded) this.destroyIn(lingerTimeout)
  }

  private lost = false
  failed(error: NodeJS.ErrnoException): void {
    if (this.lost) return
    this.lost = true
    this.receiver!.onError(toFailure(error))
    // Node leaves a socket open on which TLS has failed.
    this.socket.destroy()
  }

  private missed(): void {
    this.receiver!.onError({ _tag: "Reset" })
    this.closed()
  }

  closed(): void {
    clearTimeout(this.timer)
    // What TLS still had to write fails later.
    this.lost = true
    const { receiver } = this
    this.receiver = nobody
    receiver!.onClose()
  }

  received(chunk: Uint8Array, loan?: Loan): boolean {
    this.delivering = true
    this.receiver!.onData(chunk, loan)
    this.delivering = false
    const goOn = !this.stopped
    this.stopped = false
    return goOn
  }

  drained(): void {
    this.receiver!.onDrain()
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

/**
 * Node crashes where the socket below a TLS socket is destroyed before that (22 to 26: SIGSEGV, if the TLS socket is destroyed
 * too before the other has closed). So it is always TLS that is destroyed, and what it then does below is made a reset, by
 * the undocumented field that `resetAndDestroy` sets: a Node without it closes instead.
 */
const resetBelow = (socket: Net.Socket, below: Net.Socket) => {
  ;(below as { resetAndClosing?: boolean }).resetAndClosing = true
  socket.destroy()
}

const destroy = (socket: Net.Socket) => {
  socket.destroy()
}

const toFailure = (error: NodeJS.ErrnoException): WireFailure =>
  error.code === "ECONNRESET" || error.code === "EPIPE" || error.code === "ECONNABORTED"
    ? { _tag: "Reset" }
    : { _tag: "Failed", cause: error }
