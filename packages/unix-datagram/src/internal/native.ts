/**
 * The native part: where it is, and a socket made of it. Packets come in bundles, up to 32 at a time, in memory that both
 * sides share; a packet costs a copy of its bytes and a string for its sender's address, and one that is sent a copy of its
 * bytes.
 *
 * Addresses are strings of the system's bytes (`latin1`) here, so that every address can be answered, also one that is no
 * UTF-8. An abstract one begins with a NUL byte; the empty string is no address.
 */
import { existsSync } from "node:fs"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"
import { getSystemErrorMap } from "node:util"

/** What `native/unix_datagram.c` exports. Errors are negative numbers of the system's. */
export interface Native {
  readonly open: (
    path: string,
    mode: number,
    maxPacketSize: number,
    memory: Uint8Array,
    onPackets: (count: number) => void
  ) => NativeSocket | number
  readonly send: (socket: NativeSocket, to: string, bytes: Uint8Array, length: number) => number
  readonly close: (socket: NativeSocket) => void
  readonly probe: (path: string) => number
  /** How many packets come at a time, and where in the memory their addresses and they themselves begin. */
  readonly slots: number
  readonly addresses: number
  readonly addressSize: number
  readonly packets: number
}

interface NativeSocket {
  readonly NativeSocket: unique symbol
}

/** Where `native/install.js` puts it. */
export const location = fileURLToPath(
  new URL(`../../build/unix_datagram-${process.platform}-${process.arch}.node`, import.meta.url)
)

/** Throws an error that says what to do, where it was not compiled. */
export const load = (file: string): Native => {
  if (!existsSync(file)) {
    throw new Error(
      "the native part of @socketserver/unix-datagram is not compiled; install a C compiler (Debian: apt-get install gcc " +
        "libc6-dev), then run `npm rebuild @socketserver/unix-datagram`; pnpm has to be told first, with `allowBuilds`"
    )
  }
  return createRequire(import.meta.url)(file)
}

export const errnoException = (call: string, errno: number): NodeJS.ErrnoException => {
  const [code, text] = getSystemErrorMap().get(errno) ?? [`error ${errno}`, "unknown"]
  return Object.assign(new Error(`${call} ${code}: ${text}`), { code, errno, syscall: call })
}

export interface SocketOptions {
  /** Where to bind; the empty string binds nowhere. */
  readonly path: string
  readonly mode: number | undefined
  readonly maxPacketSize: number
  /** The payload is the receiver's. */
  readonly onPacket: (payload: Uint8Array, from: string, truncated: boolean) => void
}

/** Sending is done at once or not at all, so that all sockets can copy to the same place. */
const output = Buffer.allocUnsafeSlow(65_536)

export class Socket {
  private readonly native: Native
  private readonly socket: NativeSocket
  private readonly memory: Buffer
  private readonly bytes: Uint8Array
  private readonly table: Int32Array
  private readonly onPacket: SocketOptions["onPacket"]
  private closed = false

  /** Throws the system's error. */
  constructor(native: Native, { maxPacketSize, mode, onPacket, path }: SocketOptions) {
    this.native = native
    this.onPacket = onPacket
    // Beside one packet of the largest size there is room for a bundle of small ones.
    this.memory = Buffer.allocUnsafeSlow(native.packets + maxPacketSize + 65_536)
    // A part of it is copied in a quarter of the time that it takes with a `Buffer`.
    this.bytes = new Uint8Array(this.memory.buffer)
    this.table = new Int32Array(this.memory.buffer, 0, 3 * native.slots)
    const opened = native.open(path, mode ?? -1, maxPacketSize, this.memory, (count) => this.receive(count))
    if (typeof opened === "number") throw errnoException("bind", opened)
    this.socket = opened
  }

  private receive(count: number): void {
    const { bytes, memory, native: { addressSize, addresses, packets }, table } = this
    let begin = packets
    // What is still there when a handler has closed the socket is lost, as what the system has.
    for (let i = 0; i < count && !this.closed; i++) {
      const end = begin + table[3 * i]!
      const address = addresses + i * addressSize
      const from = memory.toString("latin1", address, address + table[3 * i + 1]!)
      this.onPacket(bytes.slice(begin, end), from, table[3 * i + 2] !== 0)
      begin = end
    }
  }

  /** 0, or the error. */
  send(to: string, payload: Uint8Array | string): number {
    if (this.closed) return closed
    let bytes: Uint8Array = output
    let length: number
    if (typeof payload !== "string") {
      length = payload.length
      // A small array has to be moved by V8 before native code can look into it; copying it costs less.
      if (length <= output.length) output.set(payload)
      else bytes = payload
    } else if (payload.length * 3 <= output.length) {
      length = output.write(payload)
    } else {
      bytes = Buffer.from(payload)
      length = bytes.length
    }
    return this.native.send(this.socket, to, bytes, length)
  }

  close(): void {
    this.closed = true
    this.native.close(this.socket)
  }
}

/** As the system has it for a descriptor that is closed (`EBADF`). */
const closed = -9
