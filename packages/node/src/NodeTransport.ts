/**
 * Stream transports over `node:net`: TCP and unix sockets.
 *
 * @since 0.1.0
 */
import { ListenError } from "@socketserver/core"
import { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { dirname } from "node:path"
import { isMainThread } from "node:worker_threads"
import { inetAddress, unnamed } from "./internal/address.ts"
import { listen, notAvailable } from "./internal/listen.ts"

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
  Layer.succeed(StreamTransport, {
    name: "tcp",
    steps: [],
    listen: Effect.fnUntraced(function*(onConnection, at) {
      const { acceptors = 1, host, ipv6Only, noDelay = true } = options
      const reusePort = acceptors > 1 ? true : options.reusePort
      yield* checkInteger("acceptors", acceptors, 1, 1_024)
      yield* checkInteger("port", options.port, 0, 65_535)
      if (options.port === undefined) return yield* invalid("port", undefined, "an integer from 0 to 65535")
      if (host === "") return yield* invalid("host", host, "an address or a name; leave it out for all addresses")
      let bound: NetAddress.SocketAddress
      const common = yield* commonOptions(options)
      const keepAlive = yield* keepAliveOptions(options.keepAlive)
      // A server that resumes must come back where it was, also where the port was chosen by the system.
      const listenOn = (port: number) =>
        listen({
          server: { ...common.server, ...keepAlive, noDelay },
          listen: { ...common.listen, port, ...defined({ host, ipv6Only, reusePort }) },
          address: `${host === undefined ? "*" : host.includes(":") ? `[${host}]` : host}:${port}`,
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
 * The file is removed when the listener closes. Clients without a path of their own, which is nearly all, have the empty
 * path as `peer`. Binding fails with `ListenError`: `AddressInUse`, `PermissionDenied`, `AddressNotAvailable` for a
 * directory that does not exist, `InvalidOption` for a path that is too long.
 *
 * @category layers
 * @since 0.1.0
 */
export const unix = (options: UnixOptions): Layer.Layer<StreamTransport> =>
  Layer.succeed(StreamTransport, {
    name: "unix",
    steps: [],
    listen: Effect.fnUntraced(function*(onConnection) {
      const { mode, path, unlinkStale = true } = options
      const isAbstract = path.startsWith("\0")
      if (path === "" || Buffer.byteLength(path) > maxPathLength) {
        return yield* invalid("path", path, `1 to ${maxPathLength} bytes, which is the system's limit for socket paths`)
      }
      yield* checkInteger("mode", mode, 0, 0o777)
      if (isAbstract && mode !== undefined) {
        return yield* invalid("mode", mode, "no mode with an abstract name: it has no file, and every user may connect")
      }
      const common = yield* commonOptions(options)
      if (!isAbstract) yield* checkPath(path)
      if (unlinkStale && !isAbstract) yield* removeStale(path)
      const address = NetAddress.unixPathAddress(path)
      const listener = yield* listen({
        server: common.server,
        listen: { ...common.listen, path },
        address: `unix://${isAbstract ? `@${path.slice(1)}` : path}`,
        around: mode === undefined ? undefined : withUmask(0o777 & ~mode),
        addressOf: () => address,
        addresses: { peerOf: () => unnamed, localOf: () => address }
      }, onConnection)
      if (mode !== undefined) yield* Effect.sync(() => Fs.chmodSync(path, mode))
      return listener
    })
  })

// ---- checks

const maxPathLength = process.platform === "linux" ? 107 : 103

const invalid = (option: string, value: unknown, expected: string) =>
  Effect.fail(new ListenError.ListenError({ reason: new ListenError.InvalidOption({ option, value, expected }) }))

const checkInteger = (option: string, value: number | undefined, least: number, most: number) =>
  value === undefined || (Number.isInteger(value) && value >= least && value <= most)
    ? Effect.void
    : invalid(option, value, `an integer from ${least} to ${most}`)

/** Without the keys whose value is `undefined`: Node takes those for wrong values. */
const defined = <A extends object>(options: A): { [K in keyof A]?: Exclude<A[K], undefined> } =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as any

const commonOptions = Effect.fnUntraced(
  function*({ allowHalfOpen = true, backlog = 511, highWaterMark }: StreamOptions) {
    yield* checkInteger("backlog", backlog, 1, 0x7fffffff)
    yield* checkInteger("highWaterMark", highWaterMark, 1, 0x7fffffff)
    return { server: { allowHalfOpen, ...defined({ highWaterMark }) }, listen: { backlog } }
  }
)

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
    const detail = !Fs.existsSync(dirname(path))
      ? `the directory ${dirname(path)} does not exist; create it first`
      : Fs.existsSync(path) && !isSocket(path)
      ? "a file that is not a socket is there; remove it, or choose another path"
      : undefined
    return detail === undefined ? Effect.void : Effect.fail(notAvailable(`unix://${path}`, detail))
  })

/** Removes `path` if it is a socket that nobody listens on. Anything else is left for `bind` to complain about. */
const removeStale = (path: string) =>
  Effect.callback<void>((resume) => {
    if (!isSocket(path)) return resume(Effect.void)
    const probe = Net.connect({ path })
    const done = () => {
      probe.destroy()
      resume(Effect.void)
    }
    probe.once("connect", done)
    probe.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED") Fs.rmSync(path, { force: true })
      done()
    })
    return Effect.sync(() => probe.destroy())
  })

const isSocket = (path: string): boolean => {
  try {
    return Fs.lstatSync(path).isSocket()
  } catch {
    return false
  }
}

/**
 * The mode is set by `chmod` in the end; until then nobody may do more than it allows. Threads cannot have an umask of their
 * own: there the file has the process's mode for a moment.
 */
const withUmask = (umask: number) => (bind: () => void): void => {
  if (!isMainThread) return bind()
  const before = process.umask(umask)
  try {
    bind()
  } finally {
    process.umask(before)
  }
}
