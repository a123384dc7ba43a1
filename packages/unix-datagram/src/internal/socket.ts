/**
 * Binds a unix datagram socket, makes packets of what it receives, and typed errors of what the system says. What the
 * sender's address is as a value is worked out when somebody asks.
 */
import { Closed, DatagramError, Failed, NoReturnAddress, TooLarge, Unreachable } from "@socketserver/core/DatagramError"
import type { DatagramListener, Packet } from "@socketserver/core/DatagramTransport"
import {
  AddressInUse,
  AddressNotAvailable,
  ListenError,
  ListenFailed,
  PermissionDenied
} from "@socketserver/core/ListenError"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import { dirname } from "node:path"
import { errnoException, load, type Native, Socket } from "./native.ts"

export interface SocketConfig {
  readonly path: string
  readonly mode: number | undefined
  readonly unlinkStale: boolean
  readonly maxPacketSize: number
  /** The file of the native part. */
  readonly native: string
}

type Errno = NodeJS.ErrnoException

export const bind = Effect.fnUntraced(function*(
  config: SocketConfig,
  onPacket: (packet: Packet) => void
): Effect.fn.Return<DatagramListener, ListenError, Scope.Scope> {
  const isAbstract = config.path.startsWith("\0")
  const address = `unix://${isAbstract ? `@${config.path.slice(1)}` : config.path}`
  const attempt = <A>(run: () => A) =>
    Effect.try({ try: run, catch: (cause) => cause instanceof ListenError ? cause : toListenError(cause, address) })
  const native = yield* attempt(() => load(config.native))
  const { socket } = yield* Effect.acquireRelease(
    attempt(() =>
      isAbstract
        ? { socket: openSocket(native, config, onPacket), remove: () => {} }
        : openFile(native, config, address, onPacket)
    ),
    ({ remove, socket }) =>
      Effect.sync(() => {
        remove()
        socket.close()
      })
  )
  return {
    address: NetAddress.unixPathAddress(config.path),
    send: (to, payload) =>
      NetAddress.isUnixPathAddress(to)
        ? send(socket, bytesOf(to.path), to, payload)
        : Effect.fail(
          new DatagramError({ reason: new Unreachable({ cause: "not by a unix datagram socket" }), peer: to })
        )
  }
})

const bytesOf = (path: string): string => Buffer.from(path).toString("latin1")

const openSocket = (
  native: Native,
  { maxPacketSize, mode, path }: SocketConfig,
  onPacket: (packet: Packet) => void
) => {
  const socket: Socket = new Socket(native, {
    path: bytesOf(path),
    mode,
    maxPacketSize,
    onPacket: (payload, from, truncated) => onPacket(new UnixPacket(socket, from, payload, truncated))
  })
  return socket
}

/** A socket with a file, and what removes the file, unless another has taken its place. */
const openFile = (native: Native, config: SocketConfig, address: string, onPacket: (packet: Packet) => void) => {
  const { mode, path, unlinkStale } = config
  // What the system would report less clearly.
  if (Fs.statSync(dirname(path), { throwIfNoEntry: false }) === undefined) {
    throw notAvailable(address, `the directory ${dirname(path)} does not exist; create it first`)
  }
  const found = Fs.lstatSync(path, { throwIfNoEntry: false })
  if (found !== undefined && !found.isSocket()) {
    throw notAvailable(address, "a file that is not a socket is there; remove it, or choose another path")
  }
  // Nobody is there; a socket of another kind would answer with another error.
  const isStale = found !== undefined && errnoException("", native.probe(bytesOf(path))).code === "ECONNREFUSED"
  if (unlinkStale && isStale) Fs.rmSync(path, { force: true })
  const socket = openSocket(native, config, onPacket)
  try {
    // The umask may have taken from it what the mode gives.
    if (mode !== undefined) Fs.chmodSync(path, mode)
    const { dev, ino } = Fs.lstatSync(path)
    const remove = () => {
      try {
        const now = Fs.lstatSync(path)
        if (now.dev === dev && now.ino === ino) Fs.rmSync(path)
      } catch {
        // Somebody else has removed it, or may not be asked about it: it is found stale by the next server.
      }
    }
    return { socket, remove }
  } catch (cause) {
    Fs.rmSync(path, { force: true })
    socket.close()
    throw cause
  }
}

const notAvailable = (address: string, detail: string) =>
  new ListenError({ reason: new AddressNotAvailable({ address, detail }) })

const toListenError = (cause: unknown, address: string): ListenError => {
  switch ((cause as Errno).code) {
    case "EADDRINUSE":
      return new ListenError({ reason: new AddressInUse({ address }) })
    case "EACCES":
    case "EPERM":
      return new ListenError({ reason: new PermissionDenied({ address }) })
    default:
      return new ListenError({ reason: new ListenFailed({ address, cause }) })
  }
}

// ---- packets

/** A sender without an address. */
const unnamed = NetAddress.unixPathAddress("")

class UnixPacket implements Packet {
  private readonly socket: Socket
  private readonly from: string
  readonly payload: Uint8Array
  readonly truncated: boolean

  constructor(socket: Socket, from: string, payload: Uint8Array, truncated: boolean) {
    this.socket = socket
    this.from = from
    this.payload = payload
    this.truncated = truncated
  }

  private _peer: NetAddress.SocketAddress | undefined
  get peer(): NetAddress.SocketAddress {
    return this._peer ??= this.from === ""
      ? unnamed
      : NetAddress.unixPathAddress(Buffer.from(this.from, "latin1").toString())
  }

  get reply(): Packet["reply"] {
    return (payload) => send(this.socket, this.from, this, payload)
  }
}

/** `to` has the peer, or is it. */
const send = (
  socket: Socket,
  to: string,
  target: NetAddress.SocketAddress | UnixPacket,
  payload: Uint8Array | string
): Effect.Effect<void, DatagramError> =>
  Effect.suspend(() => {
    const result = to === "" ? undefined : socket.send(to, payload)
    if (result === 0) return Effect.void
    const reason = result === undefined ? new NoReturnAddress() : reasonOf(errnoException("sendto", result), payload)
    return Effect.fail(new DatagramError({ reason, peer: target instanceof UnixPacket ? target.peer : target }))
  })

const reasonOf = (error: Errno, payload: Uint8Array | string): DatagramError["reason"] => {
  switch (error.code) {
    case "EMSGSIZE":
      return new TooLarge({ length: Buffer.byteLength(payload) })
    // Nobody is there, or a stream socket is.
    case "ENOENT":
    case "ENOTDIR":
    case "ECONNREFUSED":
    case "EPROTOTYPE":
    // The receiver does not keep up.
    case "EAGAIN":
    case "ENOBUFS":
      return new Unreachable({ cause: error })
    case "EBADF":
      return new Closed()
    default:
      return new Failed({ cause: error })
  }
}
