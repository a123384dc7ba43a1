/**
 * Reading into one buffer for all connections, instead of a fresh 64 KiB slab for every read that is cut to size afterwards
 * (bench "ping-pong 64 B × 64": 1.00 of raw node:net with it, 0.90 by `data` events).
 *
 * Node has that for client sockets, as `net.connect({ onread })`, but not for accepted ones. So this sets, on an accepted
 * socket, the three fields that `onread` sets. They are undocumented: where one is missing, it says `false`, the
 * socket is left as it was, and delivers by its `data` event. Nothing else in the project knows of any of this.
 */
import type { Loan } from "@socketserver/core/StreamTransport"
import * as Net from "node:net"
import { allocatedOutside } from "./externalMemory.ts"

/** Takes what was read, and says whether to go on. */
export type OnRead = (this: Net.Socket, bytes: Uint8Array, loan: Loan) => boolean

const size = 65_536
/** A read of this many bytes is the sign of more: the socket gets a buffer of its own, which can be lent and left. */
export const large = 4_096
const shared = Buffer.allocUnsafeSlow(size)

/** What `net` reads into next on the socket whose callback has just returned; `undefined` for the same buffer again. */
let nextBuffer: Uint8Array | undefined
const takeNextBuffer = () => {
  const next = nextBuffer
  nextBuffer = undefined
  return next
}
const takeNewBuffer = () => {
  allocatedOutside(size)
  nextBuffer = Buffer.allocUnsafeSlow(size)
}

/** Small copies come from Node's pool, large ones are not zeroed first: half the cost of what the language has. */
const copy = (bytes: Uint8Array): Uint8Array => {
  if (bytes.length >= large) allocatedOutside(bytes.length)
  return Buffer.from(bytes)
}
const loanOfShared: Loan = { copy }
const loanOfOwn: Loan = {
  copy: (bytes) => {
    if (bytes.length < handOver) return copy(bytes)
    // To leave them where they are and read on behind them, or elsewhere, costs less than a copy.
    const { buffer, byteLength, byteOffset } = bytes
    const end = byteOffset + byteLength
    if (buffer.byteLength - end >= byteLength) nextBuffer = Buffer.from(buffer, end)
    else takeNewBuffer()
    return bytes
  },
  keep: takeNewBuffer
}
const handOver = 16_384

const symbolOf = (socket: Net.Socket, description: string) =>
  Object.getOwnPropertySymbols(socket).find((symbol) => symbol.description === description)

const probe = new Net.Socket()
const kBuffer = symbolOf(probe, "kBuffer")
const kBufferCb = symbolOf(probe, "kBufferCb")
const kBufferGen = symbolOf(probe, "kBufferGen")
probe.destroy()

/** Tests look at `available`, and switch it off with `enabled` to run the way without it; nothing else does. */
export const sharedBuffer = {
  available: kBuffer !== undefined && kBufferCb !== undefined && kBufferGen !== undefined,
  enabled: true
}

/** A way to make a socket, fresh and unread, deliver to `onRead` once it flows. Its `data` event does not come then. */
export const makeReadInto = (onRead: OnRead): (socket: Net.Socket) => boolean => {
  // One for all sockets: a connection costs no closure.
  const callback = function(this: Net.Socket, length: number, buffer: Uint8Array): boolean {
    const bytes = length === buffer.length ? buffer : buffer.subarray(0, length)
    if (buffer === shared) {
      if (length >= large) takeNewBuffer()
      return onRead.call(this, bytes, loanOfShared)
    }
    // A connection that has become quiet goes back to the shared buffer.
    if (length < large) nextBuffer = shared
    return onRead.call(this, bytes, loanOfOwn)
  }
  return (socket) => {
    const fields = socket as any
    if (
      !sharedBuffer.enabled || kBuffer === undefined || kBufferCb === undefined || kBufferGen === undefined ||
      typeof fields._handle?.useUserBuffer !== "function"
    ) return false
    fields[kBuffer] = shared
    fields[kBufferGen] = takeNextBuffer
    fields[kBufferCb] = callback
    fields._handle.useUserBuffer(shared)
    return true
  }
}
