/**
 * Transports of Node: TCP and unix sockets over `node:net`, opened here or adopted, and UDP over `node:dgram`.
 *
 * @since 0.1.0
 */
import { DatagramTransport, type ReceiveQueueOptions } from "@socketserver/core/DatagramTransport"
import type { ListenError } from "@socketserver/core/ListenError"
import * as ProxyProtocol from "@socketserver/core/ProxyProtocol"
import { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { dirname } from "node:path"
import { isMainThread } from "node:worker_threads"
import { inetAddress, unnamed } from "./internal/address.ts"
import { adopt, type Adoptable, systemdSocket } from "./internal/adopt.ts"
import * as descriptors from "./internal/descriptors.ts"
import { listen, notAvailable, toListenError } from "./internal/listen.ts"
import { checkInteger, defined, invalid } from "./internal/options.ts"
import type { TlsOptions } from "./internal/tlsOptions.ts"
import { makeStep, ofSockets } from "./internal/tlsStep.ts"
import { bind } from "./internal/udp.ts"

export type { TlsFiles, TlsIdentity, TlsOptions, TlsSettings, TlsSource } from "./internal/tlsOptions.ts"

/**
 * What both transports take.
 *
 * @category options
 * @since 0.1.0
 */
export interface StreamOptions {
  /**
   * How many clients the system holds that were not accepted yet. Default 511; the system caps it (`net.core.somaxconn` on
   * Linux). Beyond it, new clients are not answered, and try again by themselves.
   */
  readonly backlog?: number | undefined
  /**
   * May a client finish sending and still get its answer? Default `true`. With `false` the output ends with the input, and
   * a write after that fails.
   */
  readonly allowHalfOpen?: boolean | undefined
  /** How many bytes of output may wait in the process before a write waits. Default 65,536. */
  readonly highWaterMark?: number | undefined
}

/**
 * Where and how to listen with TCP.
 *
 * @category options
 * @since 0.1.0
 */
export interface TcpOptions extends StreamOptions {
  /** The port, 0 to 65,535. 0 picks a free one, which is then in the server's `address`. */
  readonly port: number
  /** The address or name to bind. Default: all addresses of the machine, IPv6 and IPv4. Use `"127.0.0.1"` for local use. */
  readonly host?: string | undefined
  /** Lets several processes bind the same port, the system spreads clients over them (`SO_REUSEPORT`). Default `false`. */
  readonly reusePort?: boolean | undefined
  /**
   * How many sockets listen on the port. Default 1; more than 1 implies `reusePort`. Node accepts one client from a socket in
   * each turn of its event loop, and with a thousand busy connections a turn takes some 10 ms: then new clients wait in a
   * long line, and 8 acceptors make it 8 times shorter.
   */
  readonly acceptors?: number | undefined
  /** With an IPv6 host, leave IPv4 out. Default `false`: `::` is dual-stack. */
  readonly ipv6Only?: boolean | undefined
  /** Sends small writes at once instead of waiting to fill a packet (`TCP_NODELAY`, against Nagle's algorithm). Default `true`. */
  readonly noDelay?: boolean | undefined
  /**
   * Asks silent peers for a sign of life (`SO_KEEPALIVE`), after the system's time (`true`; two hours on Linux) or the one
   * given, 1 second or more. Default `false`.
   */
  readonly keepAlive?: boolean | Duration.Input | undefined
}

/**
 * Listens with TCP.
 *
 * **Details**
 *
 * Binding happens when the server's layer is built. It fails with `ListenError`: `AddressInUse`, `PermissionDenied`,
 * `AddressNotAvailable` for a host that is not this machine's or not known, `InvalidOption` before anything is opened.
 *
 * When a connection closes, its output is flushed and ended first, for up to 30 seconds; then what the peer still sends is
 * dropped until it closes its side too, for up to 1 second, because a socket closed on unread input would reset the
 * connection and could destroy the answer.
 *
 * **Example** (An echo server on a free local port)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const tcp = (options: TcpOptions): Layer.Layer<StreamTransport> =>
  Layer.succeed(
    StreamTransport,
    ofSockets({
      name: "tcp",
      steps: [descriptors.step],
      listen: Effect.fnUntraced(function*(onConnection, at) {
        const { acceptors = 1, host, ipv6Only, noDelay = true } = options
        const reusePort = acceptors > 1 ? true : options.reusePort
        yield* checkInteger("acceptors", acceptors, 1, 1_024)
        yield* checkPlace(options)
        let bound: NetAddress.SocketAddress
        const common = yield* commonOptions(options)
        const keepAlive = yield* keepAliveOptions(options.keepAlive)
        // A server that resumes must come back where it was, also where the port was chosen by the system.
        const listenOn = (port: number) =>
          listen({
            server: { ...common.server, ...keepAlive, noDelay },
            listen: { ...common.listen, port, ...defined({ host, ipv6Only, reusePort }) },
            address: placeOf(host, port),
            addressOf: (server) => {
              const { address, port } = server.address() as Net.AddressInfo
              return bound = inetAddress(address, port)
            },
            addresses: {
              peerOf: (socket) => inetAddress(socket.remoteAddress, socket.remotePort),
              // A socket that is gone knows no more than its listener.
              localOf: (socket) =>
                socket.localAddress === undefined ? bound : inetAddress(socket.localAddress, socket.localPort)
            }
          }, onConnection)
        const listener = yield* listenOn(at !== undefined && NetAddress.isInetAddress(at) ? at.port : options.port)
        const { port } = listener.address as NetAddress.InetAddress
        for (let i = 1; i < acceptors; i++) yield* listenOn(port)
        return listener
      })
    })
  )

/**
 * Where and how to listen on a unix socket.
 *
 * @category options
 * @since 0.1.0
 */
export interface UnixOptions extends StreamOptions {
  /**
   * The path, up to 107 bytes (103 on macOS). One that begins with a NUL byte is an abstract name: no file, Linux only.
   */
  readonly path: string
  /** The file's permissions, such as `0o660`, in force from the first moment. Default: as the process's umask has it. */
  readonly mode?: number | undefined
  /**
   * Removes a socket file that a crashed server left behind. Whether it is one is found out by connecting: a socket that
   * answers is `AddressInUse`, and a file that is no socket is never removed. Default `true`.
   */
  readonly unlinkStale?: boolean | undefined
}

/**
 * Listens on a unix socket.
 *
 * **Details**
 *
 * The file is removed when the listener closes, unless another server's has taken its place. Clients without a path of their own, which is nearly all, have the empty
 * path as `peer`. Binding fails with `ListenError`: `AddressInUse`, `PermissionDenied`, `AddressNotAvailable` for a
 * directory that does not exist, `InvalidOption` for a path that is too long.
 *
 * @category layers
 * @since 0.1.0
 */
export const unix = (options: UnixOptions): Layer.Layer<StreamTransport> =>
  Layer.succeed(
    StreamTransport,
    ofSockets({
      name: "unix",
      steps: [descriptors.step],
      listen: Effect.fnUntraced(function*(onConnection) {
        const { mode, path, unlinkStale = true } = options
        const isAbstract = path.startsWith("\0")
        if (path === "" || Buffer.byteLength(path) > maxPathLength) {
          return yield* invalid(
            "path",
            path,
            `1 to ${maxPathLength} bytes, which is the system's limit for socket paths`
          )
        }
        yield* checkInteger("mode", mode, 0, 0o777)
        if (isAbstract && mode !== undefined) {
          return yield* invalid(
            "mode",
            mode,
            "no mode with an abstract name: it has no file, and every user may connect"
          )
        }
        const common = yield* commonOptions(options)
        if (!isAbstract) yield* checkPath(path)
        if (unlinkStale && !isAbstract) yield* removeStale(path)
        const address = NetAddress.unixPathAddress(path)
        const addressText = `unix://${isAbstract ? `@${path.slice(1)}` : path}`
        let own: Fs.BigIntStats | undefined
        const listener = yield* listen({
          server: common.server,
          listen: { ...common.listen, path },
          address: addressText,
          around: (bind) => {
            if (mode === undefined) bind()
            else withUmask(0o777 & ~mode, bind)
            own = fileAt(path)
          },
          close: (server) => closeFile(server, path, own),
          addressOf: () => address,
          addresses: { peerOf: () => unnamed, localOf: () => address }
        }, onConnection)
        if (mode !== undefined) {
          yield* Effect.try({
            try: () => Fs.chmodSync(path, mode),
            catch: (error) => toListenError(error as NodeJS.ErrnoException, addressText)
          })
        }
        return listener
      })
    })
  )

/**
 * TLS for the connections of {@link tcp} and {@link unix} (RFC 8446, RFC 5246). A step in the pipe: the handshake is made in the
 * connection's own fiber, before its handler, so that a slow or hostile client delays nobody else; what it has negotiated is
 * `connection.tls`.
 *
 * **Details**
 *
 * When the server starts, certificates, keys and options are checked: `ListenError` with reason `InvalidOption` names the one that
 * is wrong. It does so too over a transport that has no sockets, such as `MemoryTransport`.
 *
 * A handshake that fails, or takes longer than `handshakeTimeout` (default 10 seconds), ends its connection with `CloseReason`
 * `HandshakeFailed`, logged at `Debug`. The metrics `socketserver_tls_handshakes` (by `outcome`) and
 * `socketserver_tls_handshake_millis` count and time them.
 *
 * Files are looked at every 10 seconds (`watch`); new contents, all of which must be right, are for the handshakes that come after.
 * Connections that are open are not touched. What cannot be used is logged at `Warning`, and the old certificate stays.
 *
 * **Gotchas**
 *
 * A connection that ends without TLS's own end (`close_notify`) reads as one that has ended: `node:tls` does not tell. Where the
 * end of input means something, the protocol must have a length or an end of its own.
 *
 * **Example** (Lines over TLS)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * export const WhoAmI = NodeTransport.tcp({ port: 8443 }).pipe(
 *   NodeTransport.tls({ certFile: "/etc/tls/cert.pem", keyFile: "/etc/tls/key.pem", minVersion: "TLSv1.3" }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) =>
 *     Effect.forever(Effect.andThen(connection.readLine(), connection.write(`${connection.tls?.cipher}\n`))))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const tls = <R = never>(
  options: TlsOptions<R>
): <E2, R2>(transport: Layer.Layer<StreamTransport, E2, R2>) => Layer.Layer<StreamTransport, E2, R | R2> =>
  makeStep(options, "now")

/**
 * TLS when the handler says so: connections begin in clear, and `connection.upgradeTls` goes on with TLS (STARTTLS of SMTP, IMAP,
 * LDAP; the `SSLRequest` of PostgreSQL). Options, checks and reload are those of {@link tls}.
 *
 * **Example** (The beginning of an SMTP server, RFC 3207)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * export const Smtp = NodeTransport.tcp({ port: 2525 }).pipe(
 *   NodeTransport.startTls({ certFile: "/etc/tls/cert.pem", keyFile: "/etc/tls/key.pem" }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) =>
 *     Effect.gen(function*() {
 *       yield* connection.write("220 ready\r\n")
 *       while (true) {
 *         const command = (yield* connection.readLine()).toUpperCase()
 *         if (command === "STARTTLS") yield* connection.upgradeTls("220 go ahead\r\n")
 *         else if (command.startsWith("EHLO")) yield* connection.write("250-here\r\n250 STARTTLS\r\n")
 *         else yield* connection.write(connection.tls === undefined ? "530 STARTTLS first\r\n" : "250 ok\r\n")
 *       }
 *     })
 *   )
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const startTls = <R = never>(
  options: TlsOptions<R>
): <E2, R2>(transport: Layer.Layer<StreamTransport, E2, R2>) => Layer.Layer<StreamTransport, E2, R | R2> =>
  makeStep(options, "asked")

/**
 * What the transports take that adopt a socket.
 *
 * @category options
 * @since 0.1.0
 */
export interface AdoptOptions extends StreamOptions, Pick<TcpOptions, "noDelay" | "keepAlive"> {
  /**
   * How many clients the system holds that were not accepted yet. Default 4,096, which is systemd's own and the cap of most
   * Linux systems (`net.core.somaxconn`); what whoever opened the socket has set is not kept.
   */
  readonly backlog?: number | undefined
  /**
   * What `Server.suspend` does. `"hold"` (default) keeps the socket for `resume`: clients that come are taken and wait in the
   * process, up to 511; more are reset. `"release"` closes it: clients go to the other processes that have the socket, or
   * wait for one, and `resume` fails. It is for a server that gives way to its successor.
   */
  readonly onSuspend?: "hold" | "release" | undefined
}

/**
 * Which socket to adopt.
 *
 * @category options
 * @since 0.1.0
 */
export interface FdOptions extends AdoptOptions {
  /** The number of the descriptor, 0 or more. Those that a parent process passes on purpose begin at 3. */
  readonly fd: number
}

/**
 * Listens on a socket that is open already: a parent process has bound it, TCP or unix, and this process has inherited its
 * descriptor. Its address says which of both it is.
 *
 * **Details**
 *
 * A socket that is bound and does not listen yet is made to (listen(2)). From then on the descriptor is the server's, which
 * closes it when it drains, and once: the layer cannot be built again. Other processes that have the socket are not touched
 * by that, and neither is the file of a unix socket. The path of a unix socket is known on Linux, where the process is in
 * the network namespace that the socket is from; otherwise the address is the empty path.
 *
 * It fails with `ListenError`, when the server's layer is built: `InvalidOption` for what is not open, is no socket, or is
 * one that cannot listen because it is connected or for packets. Not for Windows.
 *
 * **Gotchas**
 *
 * A number means what it means at that moment. Adopting a descriptor that Node uses for itself breaks both.
 *
 * **Example** (A server on the socket that its parent has opened)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * // The parent: spawn(process.execPath, ["echo.ts"], { stdio: ["inherit", "inherit", "inherit", descriptor] })
 * const Echo = NodeTransport.fd({ fd: 3 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const fd = (options: FdOptions): Layer.Layer<StreamTransport> => {
  const taken = new Set<number>()
  return adopting("fd", options, () => {
    const { fd } = options
    const expected = "the descriptor of a listening TCP or unix socket"
    return Effect.as(
      fd === undefined ? invalid("fd", fd, expected) : checkInteger("fd", fd, 0, 0x7fffffff),
      { fd, taken, refuse: (detail: string) => invalid("fd", fd, `${expected}; ${detail}`) }
    )
  })
}

/**
 * Which of systemd's sockets to adopt.
 *
 * @category options
 * @since 0.1.0
 */
export interface SystemdOptions extends AdoptOptions {
  /**
   * The socket's name: `FileDescriptorName=` of its unit, by default the unit's name, such as `"echo.socket"`. Needed where the
   * service has sockets of several names. Default: any name.
   */
  readonly name?: string | undefined
  /**
   * Which one of several sockets of that name, from 0, in the order of the unit's lines. Default: there has to be exactly one.
   */
  readonly index?: number | undefined
}

/**
 * Listens on a socket that systemd has opened and passed to this process: socket activation, sd_listen_fds(3). systemd keeps
 * the socket too, so that clients wait in it while the service restarts, and none is refused.
 *
 * **Details**
 *
 * It is {@link fd} with the descriptor that the environment tells, when the server's layer is built: `LISTEN_PID` has to be this
 * process, `LISTEN_FDS` is how many sockets there are, from descriptor 3 on, `LISTEN_FDNAMES` are their names. A socket unit
 * with `Accept=no`, the default, and `ListenStream=`.
 *
 * It fails with `ListenError`, `AddressNotAvailable`: the process was not started with sockets, they are another process's,
 * none or several are of that name, or the socket is not for connections. The message says which, and what to do.
 *
 * **Example** (An echo server that systemd starts for its first client)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * // To try it: systemd-socket-activate --listen=127.0.0.1:7007 --fdname=echo node echo.ts
 * const Echo = NodeTransport.systemd({ name: "echo" }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const systemd = (options: SystemdOptions = {}): Layer.Layer<StreamTransport> =>
  adopting(
    "systemd",
    options,
    () =>
      Effect.andThen(checkInteger("index", options.index, 0, 0x7fffffff), systemdSocket(options.name, options.index))
  )

const adopting = (
  name: string,
  options: AdoptOptions,
  find: () => Effect.Effect<Adoptable, ListenError>
): Layer.Layer<StreamTransport> =>
  Layer.succeed(
    StreamTransport,
    ofSockets({
      name,
      steps: [descriptors.step],
      listen: Effect.fnUntraced(function*(onConnection) {
        const { backlog = 4_096, noDelay = true, onSuspend = "hold" } = options
        const common = yield* commonOptions({ ...options, backlog })
        const keepAlive = yield* keepAliveOptions(options.keepAlive)
        if (onSuspend !== "hold" && onSuspend !== "release") {
          return yield* invalid("onSuspend", onSuspend, "\"hold\" or \"release\"")
        }
        const adoptable = yield* find()
        const server = { ...common.server, ...keepAlive, noDelay }
        return yield* adopt(adoptable, { server, backlog, holds: onSuspend === "hold" }, onConnection)
      })
    })
  )

/**
 * Takes the header off that a load balancer sends ahead, PROXY protocol version 1 or 2: `ProxyProtocol.accept` of the core, which
 * see, under the name by which it is found beside the transports.
 *
 * **Example** (Behind a load balancer in 10.0.0.0/8, that passes TLS through)
 *
 * ```ts
 * import { Dispatch, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 *
 * const WhoAmI = NodeTransport.tcp({ port: 7007 }).pipe(
 *   NodeTransport.proxyProtocol({ trusted: ["10.0.0.0/8"] }),
 *   NodeTransport.tls({ certFile: "/etc/tls/cert.pem", keyFile: "/etc/tls/key.pem" }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => connection.write(`you are ${connection.peer}\n`))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const proxyProtocol: typeof ProxyProtocol.accept = ProxyProtocol.accept

/**
 * Groups of receivers that a UDP socket joins.
 *
 * @category options
 * @since 0.1.0
 */
export interface MulticastOptions {
  /** The addresses of the groups, such as `"239.1.2.3"` or `"ff15::1"`. A group that cannot be joined is a `ListenError`. */
  readonly groups: ReadonlyArray<string>
  /**
   * The network interface to join on and to send to groups from: for IPv4 one of its addresses, for IPv6 its name after `::%`,
   * such as `"::%eth0"`. Default: the system's choice.
   */
  readonly interface?: string | undefined
  /** How many routers a packet to a group may pass, 0 to 255; 0 keeps it on the machine. Default 1: the local network. */
  readonly ttl?: number | undefined
  /** Do receivers on this machine get what it sends to a group? Default `true`. */
  readonly loopback?: boolean | undefined
}

/**
 * Where and how to receive with UDP.
 *
 * @category options
 * @since 0.1.0
 */
export interface UdpOptions {
  /** The port, 0 to 65,535. 0 picks a free one, which is then in the server's `address`. */
  readonly port: number
  /**
   * The address or name to bind; of a name, the first address. Default: all addresses of the machine, IPv6 and IPv4, or IPv4
   * alone where there is no IPv6 or where all multicast groups are IPv4. Use `"127.0.0.1"` for local use.
   */
  readonly host?: string | undefined
  /** With an IPv6 host or none, leave IPv4 out. Default `false`: `::` is dual-stack. */
  readonly ipv6Only?: boolean | undefined
  /** Lets several processes bind the same port, the system spreads senders over them (`SO_REUSEPORT`). Default `false`. */
  readonly reusePort?: boolean | undefined
  /**
   * Lets several sockets bind the same port (`SO_REUSEADDR`): each gets the packets for the groups that it has joined, and one
   * of them, on Linux the latest, all others. Default `false`.
   */
  readonly reuseAddress?: boolean | undefined
  /** May packets be sent to broadcast addresses (`SO_BROADCAST`)? Default `false`: those are refused. */
  readonly broadcast?: boolean | undefined
  /**
   * How many routers a packet may pass, 1 to 255. On a dual-stack socket it applies to IPv6 alone. Default: the system's, 64
   * on Linux.
   */
  readonly ttl?: number | undefined
  /** Groups to join. Default: none. */
  readonly multicast?: MulticastOptions | undefined
  /** How many bytes of a packet are taken, 1 to 65,535; a longer packet is cut, and `truncated`. Default 8,192. */
  readonly maxPacketSize?: number | undefined
  /**
   * How many bytes the system holds that were not read yet (`SO_RCVBUF`); what comes beyond is lost, and nobody counts it here.
   * The system caps it (`net.core.rmem_max` on Linux). Default: the system's, 212,992 on Linux.
   */
  readonly receiveBufferSize?: number | undefined
  /** How many bytes the system holds that were not sent yet (`SO_SNDBUF`). Default: the system's, 212,992 on Linux. */
  readonly sendBufferSize?: number | undefined
  /** How many packets may wait for the handlers. Default: 1,024 packets and 4 MiB, beyond which the newest is dropped. */
  readonly receiveQueue?: ReceiveQueueOptions | undefined
}

/**
 * Receives with UDP.
 *
 * **Details**
 *
 * Binding happens when the server's layer is built. It fails with `ListenError`: `AddressInUse`, `PermissionDenied`,
 * `AddressNotAvailable` for a host that is not this machine's or not known, `InvalidOption` before anything is opened,
 * `ListenFailed` for a group that cannot be joined.
 *
 * Anybody can put any address into a packet as its sender's. An answer that is much larger than its request can be used to
 * flood somebody else.
 *
 * **Example** (An echo server on a free local port)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 *
 * const Echo = NodeTransport.udp({ host: "127.0.0.1", port: 0 }).pipe(
 *   Dispatch.serial(),
 *   Server.serveDatagram(({ payload, reply }) => reply(payload))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const udp = (options: UdpOptions): Layer.Layer<DatagramTransport> =>
  Layer.succeed(DatagramTransport, {
    name: "udp",
    steps: [],
    receiveQueue: options.receiveQueue,
    listen: Effect.fnUntraced(function*(onPacket, at) {
      const { broadcast, host, maxPacketSize = 8_192, multicast, receiveBufferSize, sendBufferSize, ttl } = options
      const { ipv6Only = false, reuseAddress = false, reusePort = false } = options
      yield* checkPlace(options)
      yield* checkInteger("ttl", ttl, 1, 255)
      yield* checkInteger("maxPacketSize", maxPacketSize, 1, 65_535)
      yield* checkInteger("receiveBufferSize", receiveBufferSize, 1, 0x7fffffff)
      yield* checkInteger("sendBufferSize", sendBufferSize, 1, 0x7fffffff)
      if (multicast !== undefined) yield* checkMulticast(multicast)
      const groups = multicast?.groups ?? []
      // A server that resumes must come back where it was, also where the port was chosen by the system.
      const port = at !== undefined && NetAddress.isInetAddress(at) ? at.port : options.port
      return yield* bind({
        host,
        // Not every system lets a dual-stack socket join IPv4 groups, or applies what is set for them.
        ipv4: !ipv6Only && groups.length > 0 && groups.every(Net.isIPv4),
        port,
        ipv6Only,
        reusePort,
        reuseAddress,
        maxPacketSize,
        address: placeOf(host, port),
        setUp: (socket) => {
          if (receiveBufferSize !== undefined) socket.setRecvBufferSize(receiveBufferSize)
          if (sendBufferSize !== undefined) socket.setSendBufferSize(sendBufferSize)
          if (broadcast !== undefined) socket.setBroadcast(broadcast)
          if (ttl !== undefined) socket.setTTL(ttl)
          if (multicast?.ttl !== undefined) socket.setMulticastTTL(multicast.ttl)
          if (multicast?.loopback !== undefined) socket.setMulticastLoopback(multicast.loopback)
          if (multicast?.interface !== undefined) socket.setMulticastInterface(multicast.interface)
          for (const group of groups) socket.addMembership(group, multicast?.interface)
        }
      }, onPacket)
    })
  })

// ---- checks

const maxPathLength = process.platform === "linux" ? 107 : 103

const checkPlace = Effect.fnUntraced(function*({ host, port }: Pick<TcpOptions, "host" | "port">) {
  yield* checkInteger("port", port, 0, 65_535)
  if (port === undefined) return yield* invalid("port", undefined, "an integer from 0 to 65535")
  if (host === "") return yield* invalid("host", host, "an address or a name; leave it out for all addresses")
})

/** The address for people, in errors. */
const placeOf = (host: string | undefined, port: number) =>
  `${host === undefined ? "*" : host.includes(":") ? `[${host}]` : host}:${port}`

const commonOptions = Effect.fnUntraced(
  function*({ allowHalfOpen = true, backlog = 511, highWaterMark }: StreamOptions) {
    yield* checkInteger("backlog", backlog, 1, 0x7fffffff)
    yield* checkInteger("highWaterMark", highWaterMark, 1, 0x7fffffff)
    return { server: { allowHalfOpen, ...defined({ highWaterMark }) }, listen: { backlog } }
  }
)

const checkMulticast = Effect.fnUntraced(function*({ groups, interface: from, ttl }: MulticastOptions) {
  yield* checkInteger("multicast.ttl", ttl, 0, 255)
  if (from !== undefined && Net.isIP(from) === 0) {
    return yield* invalid("multicast.interface", from, "an address of the interface, or `::%` and its name")
  }
  for (const group of groups) {
    const address = NetAddress.ipFromString(group)
    if (Result.isFailure(address) || !NetAddress.isMulticast(address.success)) {
      return yield* invalid("multicast.groups", group, "addresses of multicast groups, such as 239.1.2.3 or ff15::1")
    }
  }
})

const keepAliveOptions = (keepAlive: TcpOptions["keepAlive"]) => {
  if (keepAlive === undefined || typeof keepAlive === "boolean") {
    return Effect.succeed({ keepAlive: keepAlive === true })
  }
  const delay = Duration.fromInput(keepAlive)
  return Option.isSome(delay) && Duration.toMillis(delay.value) >= 1_000
    ? Effect.succeed({ keepAlive: true, keepAliveInitialDelay: Duration.toMillis(delay.value) })
    : invalid("keepAlive", keepAlive, "true, false, or a duration of 1 second or more")
}

// ---- unix socket files

/** What the system would report less clearly: a missing directory as a lack of permission, any file as an address in use. */
const checkPath = (path: string) =>
  Effect.suspend(() => {
    const detail = isMissing(dirname(path))
      ? `the directory ${dirname(path)} does not exist; create it first`
      : fileAt(path)?.isSocket() === false
      ? "a file that is not a socket is there; remove it, or choose another path"
      : undefined
    return detail === undefined ? Effect.void : Effect.fail(notAvailable(`unix://${path}`, detail))
  })

/** Not where it cannot be known: a directory within one that is closed to this process. */
const isMissing = (directory: string): boolean => {
  try {
    return Fs.statSync(directory, { throwIfNoEntry: false }) === undefined
  } catch {
    return false
  }
}

/** Removes `path` if it is a socket that nobody listens on. Anything else is left for `bind` to complain about. */
const removeStale = (path: string) =>
  Effect.callback<void, ListenError>((resume) => {
    const found = fileAt(path)
    if (found?.isSocket() !== true) return resume(Effect.void)
    const probe = Net.connect({ path })
    const done = (result: Effect.Effect<void, ListenError>) => {
      probe.destroy()
      resume(result)
    }
    probe.once("connect", () => done(Effect.void))
    probe.once("error", (error: NodeJS.ErrnoException) => {
      // While it was asked, another server may have found it stale too, and be there by now.
      const now = error.code === "ECONNREFUSED" ? fileAt(path) : undefined
      if (now?.ino !== found.ino || now.ctimeNs !== found.ctimeNs) return done(Effect.void)
      done(Effect.try({
        try: () => Fs.rmSync(path, { force: true }),
        catch: (error) => toListenError(error as NodeJS.ErrnoException, `unix://${path}`)
      }))
    })
    return Effect.sync(() => probe.destroy())
  })

/** Node removes the path of a socket that it closes, whosever file is there by then. Another's is put aside for the moment. */
const closeFile = (server: Net.Server, path: string, own: Fs.BigIntStats | undefined): void => {
  const now = fileAt(path)
  let aside: string | undefined
  if (now !== undefined && own !== undefined && (now.dev !== own.dev || now.ino !== own.ino)) {
    try {
      Fs.linkSync(path, `${path}.${process.pid}`)
      aside = `${path}.${process.pid}`
    } catch {
      // Where nothing can be put, nothing can be removed either.
    }
  }
  server.close()
  if (aside === undefined) return
  Fs.renameSync(aside, path)
  // Where Node has not removed the path, both names are still the same file, and renaming does nothing.
  Fs.rmSync(aside, { force: true })
}

const fileAt = (path: string): Fs.BigIntStats | undefined => {
  try {
    return Fs.lstatSync(path, { bigint: true })
  } catch {
    return undefined
  }
}

/**
 * The mode is set by `chmod` in the end; until then nobody may do more than it allows. Threads cannot have an umask of their
 * own: there the file has the process's mode for a moment.
 */
const withUmask = (umask: number, bind: () => void): void => {
  if (!isMainThread) return bind()
  const before = process.umask(umask)
  try {
    bind()
  } finally {
    process.umask(before)
  }
}
