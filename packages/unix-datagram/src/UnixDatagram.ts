/**
 * Packets between processes of one machine, by unix datagram sockets: with message boundaries, as UDP has them, and with files
 * for addresses, so that the file system says who may send. Syslog and systemd's notifications come this way.
 *
 * Node has no such sockets. This package brings a small native part, which is compiled when the package is installed and
 * needs a C compiler for it. Where there was none, binding fails with a `ListenError` that says what to do.
 *
 * @since 0.1.0
 */
import { DatagramTransport, type ReceiveQueueOptions } from "@socketserver/core/DatagramTransport"
import { InvalidOption, ListenError } from "@socketserver/core/ListenError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { location } from "./internal/native.ts"
import { bind } from "./internal/socket.ts"

/**
 * Where and how to receive.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The path, up to 107 bytes (103 on macOS). One that begins with a NUL byte is an abstract name: no file, Linux only.
   */
  readonly path: string
  /**
   * The file's permissions, such as `0o660`; who may write to it may send. At no moment does anybody have more (on macOS: more
   * than the process's umask gives). Default: as the process's umask has it.
   */
  readonly mode?: number | undefined
  /**
   * Removes a socket file that a crashed server left behind. Whether it is one is found out by connecting: a socket that
   * answers is `AddressInUse`, and a file that is no socket is never removed. Default `true`.
   */
  readonly unlinkStale?: boolean | undefined
  /**
   * How many bytes of a packet are taken, 1 to 1,048,576; a longer packet is cut, and `truncated`. Default 8,192. How long a
   * packet can be is up to the sender's system: some 200 KiB on Linux.
   */
  readonly maxPacketSize?: number | undefined
  /** How many packets may wait for the handlers. Default: 1,024 packets and 4 MiB, beyond which the newest is dropped. */
  readonly receiveQueue?: ReceiveQueueOptions | undefined
}

/**
 * Receives on a unix datagram socket.
 *
 * **Details**
 *
 * Binding happens when the server's layer is built. It fails with `ListenError`: `AddressInUse`, `PermissionDenied`,
 * `AddressNotAvailable` for a directory that does not exist, `InvalidOption` for a path that is too long, `ListenFailed` where
 * the native part was not compiled. The file is removed when the listener closes.
 *
 * A client gets answers only if it has bound an address of its own. One that has not has the empty path as `peer`, and a
 * reply to it fails with `NoReturnAddress`.
 *
 * **Gotchas**
 *
 * The system does not lose packets that it has taken; it takes no more when too many wait to be read by their receiver, on
 * Linux 11 by default (`net.unix.max_dgram_qlen`). Sending does not wait for that: it fails with `Unreachable`, with an error
 * whose `code` is `EAGAIN` for its `cause`. A handler that wants to wait tries again, for as long as it can afford.
 *
 * **Example** (An echo server that gives a slow client a tenth of a second)
 *
 * ```ts
 * import { Dispatch, Server } from "@socketserver/core"
 * import { UnixDatagram } from "@socketserver/unix-datagram"
 * import { Effect, Schedule } from "effect"
 *
 * const patiently = Schedule.spaced("5 millis").pipe(Schedule.upTo({ times: 20 }))
 *
 * const Echo = UnixDatagram.transport({ path: "/tmp/echo.sock", mode: 0o660 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveDatagram(({ payload, reply }) => Effect.retry(reply(payload), patiently))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const transport = (options: Options): Layer.Layer<DatagramTransport> =>
  Layer.succeed(DatagramTransport, {
    name: "unix datagram",
    steps: [],
    receiveQueue: options.receiveQueue,
    listen: Effect.fnUntraced(function*(onPacket) {
      const { maxPacketSize = 8_192, mode, path, unlinkStale = true } = options
      if (path === "" || Buffer.byteLength(path) > maxPathLength) {
        return yield* invalid("path", path, `1 to ${maxPathLength} bytes, which is the system's limit for socket paths`)
      }
      if (mode !== undefined) {
        yield* checkInteger("mode", mode, 0, 0o777)
        if (path.startsWith("\0")) {
          return yield* invalid("mode", mode, "no mode with an abstract name: it has no file, and every user may send")
        }
      }
      yield* checkInteger("maxPacketSize", maxPacketSize, 1, 1_048_576)
      return yield* bind({ path, mode, unlinkStale, maxPacketSize, native: location }, onPacket)
    })
  })

const maxPathLength = process.platform === "linux" ? 107 : 103

const invalid = (option: string, value: unknown, expected: string) =>
  Effect.fail(new ListenError({ reason: new InvalidOption({ option, value, expected }) }))

const checkInteger = (option: string, value: number, least: number, most: number) =>
  Number.isInteger(value) && value >= least && value <= most
    ? Effect.void
    : invalid(option, value, `an integer from ${least} to ${most}`)
