/**
 * UDP with `node:dgram`. A packet costs its bytes, Node's description of the sender, and one object: what the sender's address
 * is as a value is worked out when somebody asks.
 */
import { Closed, DatagramError, Failed, TooLarge, Unreachable } from "@socketserver/core/DatagramError"
import type { DatagramListener, Packet } from "@socketserver/core/DatagramTransport"
import { ListenError, ListenFailed } from "@socketserver/core/ListenError"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import * as Dgram from "node:dgram"
import * as Dns from "node:dns"
import * as Net from "node:net"
import { inetAddress, scopeIds } from "./address.ts"
import { DirectSocket, type Errno } from "./directUdp.ts"
import { toListenError } from "./listen.ts"

export interface UdpConfig {
  /** Without one, all addresses of the machine: IPv6 and IPv4, unless `ipv4` asks for the latter alone. */
  readonly host: string | undefined
  readonly ipv4: boolean
  readonly port: number
  readonly ipv6Only: boolean
  readonly reusePort: boolean
  readonly reuseAddress: boolean
  readonly maxPacketSize: number
  /** What is set on the bound socket; it throws what the system refuses. */
  readonly setUp: (socket: Dgram.Socket) => void
  /** The address for people, in errors. */
  readonly address: string
}

interface Endpoint {
  readonly host: string
  readonly isIpv6: boolean
}

export const bind = Effect.fnUntraced(function*(
  config: UdpConfig,
  onPacket: (packet: Packet) => void
): Effect.fn.Return<DatagramListener, ListenError, Scope.Scope> {
  const { address, host, ipv4, ipv6Only } = config
  const open = (endpoint: Endpoint) =>
    Effect.map(
      Effect.acquireRelease(
        openSocket(config, endpoint, onPacket),
        ({ socket }) => Effect.sync(() => close(socket))
      ),
      (socket) => listenerOf(socket, endpoint.isIpv6)
    )
  const opened = host !== undefined
    ? Effect.flatMap(resolve(host, ipv6Only), open)
    : ipv4
    ? open(everyIpv4)
    : Effect.catchIf(open(everyAddress), (error) => !ipv6Only && isWithoutIpv6(error), () => open(everyIpv4))
  return yield* Effect.mapError(
    opened,
    (error) => error instanceof ListenError ? error : toListenError(error, address)
  )
})

const everyAddress: Endpoint = { host: "::", isIpv6: true }
const everyIpv4: Endpoint = { host: "0.0.0.0", isIpv6: false }

const isWithoutIpv6 = (error: Errno | ListenError) =>
  !(error instanceof ListenError) && (error.code === "EAFNOSUPPORT" || error.code === "EADDRNOTAVAIL")

/** The kind of socket depends on the address, so that names are looked up before there is one. */
const resolve = (host: string, ipv6Only: boolean) =>
  Effect.callback<Endpoint, Errno>((resume) => {
    const version = Net.isIP(host)
    if (version !== 0) return resume(Effect.succeed({ host, isIpv6: version === 6 }))
    Dns.lookup(host, { family: ipv6Only ? 6 : 0 }, (error, address, family) => {
      resume(error === null ? Effect.succeed({ host: address, isIpv6: family === 6 }) : Effect.fail(error))
    })
  })

const openSocket = (config: UdpConfig, { host, isIpv6 }: Endpoint, onPacket: (packet: Packet) => void) =>
  Effect.callback<Bound, Errno | ListenError>((resume) => {
    const { address, maxPacketSize, port, setUp } = config
    const socket = Dgram.createSocket({
      type: isIpv6 ? "udp6" : "udp4",
      ipv6Only: isIpv6 && config.ipv6Only,
      reusePort: config.reusePort,
      reuseAddr: config.reuseAddress,
      // All addresses are numeric here: without this, each of them would take a turn through the resolver.
      lookup: (hostname, options, callback) => callback(null, hostname, options as unknown as number)
    })
    const fail = (error: Errno | ListenError) => {
      close(socket)
      resume(Effect.fail(error))
    }
    socket.once("error", fail)
    socket.once("listening", () => {
      socket.off("error", fail)
      // What is reported here from now on belongs to packets, not to the socket, and would otherwise end the process.
      socket.on("error", () => {})
      const bound: Bound = { socket, direct: new DirectSocket(socket) }
      const onMessage = (payload: Buffer, from: Dgram.RemoteInfo) =>
        onPacket(new UdpPacket(bound, payload, from, maxPacketSize))
      if (!bound.direct.receive(onMessage)) socket.on("message", onMessage)
      try {
        setUp(socket)
      } catch (cause) {
        return fail(new ListenError({ reason: new ListenFailed({ address, cause }) }))
      }
      resume(Effect.succeed(bound))
    })
    socket.bind({ port, address: host })
  })

const close = (socket: Dgram.Socket): void => {
  try {
    socket.close()
  } catch {
    // Node throws if it is closed already, as when a cluster's worker was disconnected.
  }
}

interface Bound {
  readonly socket: Dgram.Socket
  readonly direct: DirectSocket
}

interface Target {
  readonly by: Bound
  /** As Node names it. */
  readonly to: { readonly address: string; readonly port: number }
  readonly peer: NetAddress.SocketAddress
}

class UdpPacket implements Packet, Target {
  readonly by: Bound
  readonly to: Dgram.RemoteInfo
  readonly payload: Uint8Array
  readonly truncated: boolean

  constructor(by: Bound, payload: Buffer, from: Dgram.RemoteInfo, maxPacketSize: number) {
    this.by = by
    this.to = from
    this.truncated = payload.length > maxPacketSize
    // A copy of a part, so that what waits takes no more memory than its length says.
    this.payload = this.truncated ? new Uint8Array(payload.subarray(0, maxPacketSize)) : payload
  }

  private _peer: NetAddress.SocketAddress | undefined
  get peer(): NetAddress.SocketAddress {
    return this._peer ??= inetAddress(this.to.address, this.to.port)
  }

  get reply(): Packet["reply"] {
    return (payload) => send(this, payload)
  }
}

const listenerOf = (by: Bound, isIpv6: boolean): DatagramListener => {
  const { address, port } = by.socket.address()
  return {
    address: inetAddress(address, port),
    send: (peer, payload) => {
      const host = hostOf(peer, isIpv6)
      return host === undefined
        ? Effect.fail(new DatagramError({ reason: new Unreachable({ cause: `not by ${kindOf(isIpv6)}` }), peer }))
        : send({ by, to: { address: host, port: (peer as NetAddress.InetAddress).port }, peer }, payload)
    }
  }
}

const kindOf = (isIpv6: boolean) => isIpv6 ? "a UDP socket" : "a UDP socket that is bound to an IPv4 address"

/** The address as the socket takes it: one that is bound to IPv6 takes IPv4 addresses only in their IPv6 form. */
const hostOf = (peer: NetAddress.SocketAddress, isIpv6: boolean): string | undefined => {
  if (NetAddress.isInetAddressV4(peer)) return `${isIpv6 ? "::ffff:" : ""}${NetAddress.formatIp(peer.address)}`
  if (!isIpv6 || !NetAddress.isInetAddressV6(peer)) return undefined
  return peer.scopeId === 0
    ? NetAddress.formatIp(peer.address)
    : NetAddress.formatNativeHost(peer, scopeIds(), process.platform)
}

const send = (target: Target, payload: Uint8Array | string): Effect.Effect<void, DatagramError> =>
  Effect.suspend(() => {
    const { by, to } = target
    const bytes = typeof payload === "string" ? Buffer.from(payload) : payload
    const sent = by.direct.trySend(bytes, to.port, to.address)
    if (sent === true) return Effect.void
    return Effect.callback<void, DatagramError>((resume) => {
      const done = (error: Errno | null) =>
        resume(
          error === null
            ? Effect.void
            : Effect.fail(new DatagramError({ reason: reasonOf(error, bytes), peer: target.peer }))
        )
      if (sent !== undefined) return sent.onEnd(done)
      try {
        by.socket.send(bytes, to.port, to.address, done)
      } catch (error) {
        done(error as Errno)
      }
    })
  })

const reasonOf = (error: Errno, payload: Uint8Array): DatagramError["reason"] => {
  switch (error.code) {
    case "EMSGSIZE":
      return new TooLarge({ length: payload.length })
    case "ECONNREFUSED":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EHOSTDOWN":
    case "ENOBUFS":
      return new Unreachable({ cause: error })
    // The latter is what Node has for packets that still wait when the socket is closed.
    case "ERR_SOCKET_DGRAM_NOT_RUNNING":
    case "ECANCELED":
      return new Closed()
    default:
      return new Failed({ cause: error })
  }
}
