/**
 * Listening sockets that somebody else has opened: which descriptor it is, what it is, and a listener on it. Node has no way to
 * duplicate a descriptor: one that was closed is gone, so that a suspended server keeps it and holds the clients back instead.
 */
import type { ListenError } from "@socketserver/core/ListenError"
import type { Listener, Receiver, Wire } from "@socketserver/core/StreamTransport"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import type * as Net from "node:net"
import { inetAddress, unnamed } from "./address.ts"
import { listen, notAvailable } from "./listen.ts"

export interface Adoptable {
  readonly fd: number
  /** The descriptors that were adopted before: their numbers may mean something else by now. */
  readonly taken: Set<number>
  readonly refuse: (detail: string) => Effect.Effect<never, ListenError>
}

export interface AdoptConfig {
  readonly server: Net.ServerOpts
  readonly backlog: number
  /** Does a suspended listener keep the socket? */
  readonly holds: boolean
}

export const adopt = Effect.fnUntraced(function*(
  { fd, refuse, taken }: Adoptable,
  { backlog, holds, server }: AdoptConfig,
  onConnection: (wire: Wire) => void
): Effect.fn.Return<Listener, ListenError, Scope.Scope> {
  if (taken.has(fd)) {
    return yield* refuse(
      "it was adopted before, and a descriptor is closed with its server; start a process with another"
    )
  }
  const wrong = whatIsWrong(fd)
  if (wrong !== undefined) return yield* refuse(wrong)
  let address: NetAddress.SocketAddress
  const gate = new Gate(onConnection)
  yield* Effect.addFinalizer(() => Effect.sync(() => gate.discard()))
  const listener = yield* listen({
    server,
    listen: { fd, backlog },
    address: `descriptor ${fd}`,
    addressOf: (server) => {
      const bound = server.address() as Net.AddressInfo | null
      return address = bound === null ? unixAddress(fd) : inetAddress(bound.address, bound.port)
    },
    addresses: {
      peerOf: (socket) =>
        NetAddress.isUnixPathAddress(address) ? unnamed : inetAddress(socket.remoteAddress, socket.remotePort),
      localOf: (socket) =>
        socket.localAddress === undefined ? address : inetAddress(socket.localAddress, socket.localPort)
    }
  }, gate.onConnection).pipe(
    Effect.catch((error) => {
      const detail = error.reason._tag === "ListenFailed" ? detailOf(error.reason.cause) : undefined
      return detail === undefined ? Effect.fail(error) : refuse(detail)
    })
  )
  taken.add(fd)
  if (!holds) return listener
  return {
    ...listener,
    inPlace: { suspend: Effect.sync(() => gate.hold()), resume: Effect.sync(() => gate.open()) }
  }
})

const detailOf = (cause: unknown): string | undefined => {
  switch ((cause as NodeJS.ErrnoException).code) {
    case "EINVAL":
    case "EOPNOTSUPP":
      return "it is a socket that cannot listen: it is connected (under systemd: Accept=yes), not bound, or for packets"
    case "EEXIST":
      return "this process uses it already"
    default:
      return undefined
  }
}

/** What a descriptor is, if it is no socket. */
const whatIsWrong = (fd: number): string | undefined => {
  try {
    const stats = Fs.fstatSync(fd)
    if (stats.isSocket()) return undefined
    return `it is a ${stats.isFile() ? "file" : stats.isFIFO() ? "pipe" : stats.isDirectory() ? "directory" : "device"}`
  } catch {
    return "it is not open"
  }
}

// ---- holding clients back

const held = 511

const nobody: Receiver = { onData() {}, onEnd() {}, onError() {}, onDrain() {}, onClose() {} }

const drop = (wire: Wire): void => {
  wire.start(nobody)
  wire.destroy(true)
}

/** What is accepted goes through, or waits. Node goes on to accept for as long as the socket is open. */
class Gate {
  private readonly pass: (wire: Wire) => void
  private waiting: Array<Wire> | undefined

  constructor(pass: (wire: Wire) => void) {
    this.pass = pass
  }

  readonly onConnection = (wire: Wire): void => {
    if (this.waiting === undefined) this.pass(wire)
    else if (this.waiting.length < held) this.waiting.push(wire)
    else drop(wire)
  }

  hold(): void {
    this.waiting ??= []
  }

  open(): void {
    const { waiting } = this
    this.waiting = undefined
    waiting?.forEach(this.pass)
  }

  discard(): void {
    this.waiting?.forEach(drop)
    this.waiting = []
  }
}

// ---- unix sockets

/** Node does not tell the path of a socket that it has not bound. Linux does, in a table of all of them. */
const unixAddress = (fd: number): NetAddress.UnixPathAddress => {
  try {
    const inode = String(Fs.fstatSync(fd).ino)
    // Num RefCount Protocol Flags Type St Inode Path
    for (const line of Fs.readFileSync("/proc/self/net/unix", "utf8").split("\n")) {
      const [, found, path] = /^(?:\S+ +){6}(\d+) (.+)$/.exec(line) ?? []
      if (found === inode && path !== undefined) {
        return NetAddress.unixPathAddress(path.startsWith("@") ? `\0${path.slice(1)}` : path)
      }
    }
  } catch {
    // Not Linux, or without /proc.
  }
  return unnamed
}

// ---- systemd

/** The first of the descriptors that it passes (`SD_LISTEN_FDS_START`). */
const first = 3

/** Their numbers stay in the environment when they are closed. */
const takenFromSystemd = new Set<number>()

const refusing = (name: string | undefined) => (detail: string) =>
  Effect.fail(notAvailable(name === undefined ? "a socket of systemd" : `systemd's socket ${name}`, detail))

/** As in sd_listen_fds_with_names(3). */
export const systemdSocket = (
  name: string | undefined,
  index: number | undefined
): Effect.Effect<Adoptable, ListenError> =>
  Effect.suspend(() => {
    const refuse = refusing(name)
    const { LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID } = process.env
    if (LISTEN_FDS === undefined || LISTEN_PID === undefined) {
      return refuse(
        `${
          LISTEN_FDS === undefined ? "LISTEN_FDS" : "LISTEN_PID"
        } is not set, so this process was not started with sockets; ` +
          "start it by a socket unit, or try it with `systemd-socket-activate --listen=7007 node main.ts`"
      )
    }
    if (LISTEN_PID !== String(process.pid)) {
      return refuse(
        `LISTEN_PID is ${LISTEN_PID}, and this process is ${process.pid}: the sockets are for another process, such as a ` +
          "shell or a package manager that has started this one; let systemd start node itself"
      )
    }
    const count = Number(LISTEN_FDS)
    if (!Number.isInteger(count) || count < 1 || LISTEN_FDS.trim() === "") {
      return refuse(`LISTEN_FDS is ${JSON.stringify(LISTEN_FDS)}, and has to be the number of sockets, 1 or more`)
    }
    const names = LISTEN_FDNAMES === undefined
      ? Array.from({ length: count }, () => "unknown")
      : LISTEN_FDNAMES.split(":")
    if (names.length !== count) {
      return refuse(`LISTEN_FDNAMES has ${names.length} names, and LISTEN_FDS says ${count}`)
    }
    const matching = names.flatMap((its, i) => name === undefined || its === name ? [first + i] : [])
    const all = [...new Set(names)].join(", ")
    if (matching.length === 0) return refuse(`there is no socket of that name, only: ${all}`)
    if (index === undefined && matching.length > 1) {
      return refuse(
        `there are ${matching.length} sockets${name === undefined ? `, named ${all}` : " of that name"}; choose one ` +
          "with the option `name`, or with `index` among those of one name"
      )
    }
    const fd = matching[index ?? 0]
    if (fd === undefined) return refuse(`there is no socket ${index}: it has ${matching.length}, counted from 0`)
    return Effect.succeed({
      fd,
      taken: takenFromSystemd,
      refuse: (detail: string) => refuse(`descriptor ${fd} is not the one of a listening stream socket: ${detail}`)
    })
  })
