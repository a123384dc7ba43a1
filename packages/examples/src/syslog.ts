/**
 * A sink for syslog, as RFC 3164 and RFC 5424 have it, and as programs send it: over UDP, or, where the environment variable
 * SOCKET has a path, on a unix datagram socket, as `/dev/log` is one. Nothing is turned away: what has no priority is a user's
 * notice, as the older RFC has it. Try `logger --udp -d -n 127.0.0.1 -P 5514 hello`, or `logger -d -u /tmp/log.sock hello`.
 */
import { type Datagram, type DatagramTransport, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { UnixDatagram } from "@socketserver/unix-datagram"
import { Config, Console, Effect, Layer, Option } from "effect"
import { NetAddress } from "effect/net"
import { isMain, runServer } from "./run.ts"

// dprint-ignore
const facilities = [
  "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit",
  "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"
] as const
const severities = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"] as const

export interface Message {
  readonly facility: typeof facilities[number]
  readonly severity: typeof severities[number]
  /** What comes after the time and the host; with the program's name where it is in the text, as in RFC 3164. */
  readonly message: string
}

const priority = /^<(0|[1-9]\d{0,2})>/
// Version, time, host, program, process, kind, structured data.
const rfc5424 = /^1 (?:\S+ ){5}(?:-|(?:\[(?:[^\]"\\]|\\.|"(?:[^"\\]|\\.)*")*\])+)(?: \uFEFF?|$)/
// Time and host, which programs leave out when they talk to a socket of their own machine: what ends in a colon is a program.
const rfc3164 = /^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:\S*[^\s:] )?/

export const parse = (packet: string): Message => {
  // Some senders end their packets as they would end lines.
  const text = packet.replace(/[\r\n\0]+$/, "")
  const [prefix = "", digits] = priority.exec(text) ?? []
  const facility = facilities[Number(digits) >> 3]
  const severity = severities[Number(digits) & 7]
  if (digits === undefined || facility === undefined || severity === undefined) {
    return { facility: "user", severity: "notice", message: text }
  }
  const rest = text.slice(prefix.length)
  const header = rfc5424.exec(rest) ?? rfc3164.exec(rest)
  return { facility, severity, message: rest.slice(header?.[0].length ?? 0) }
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

/** Hands each message to `sink`. */
export const syslog =
  <E, R>(sink: (message: Message) => Effect.Effect<unknown, E, R>) => ({ payload }: Datagram.Datagram) =>
    sink(parse(decoder.decode(payload)))

/** One message after the other: they come out in the order in which they came in. */
export const Syslog = <E, R>(
  sink: (message: Message) => Effect.Effect<unknown, E, R>,
  transport: Layer.Layer<DatagramTransport.DatagramTransport>
) =>
  transport.pipe(
    Dispatch.serial(),
    Server.serveDatagram(syslog(sink))
  )

if (isMain(import.meta)) {
  // Anybody can send anything, and it ends up on a terminal: no control characters.
  const print = ({ facility, message, severity }: Message) =>
    Console.log(`${facility}.${severity}: ${message.replace(/\p{Cc}/gu, "")}`)
  runServer(
    "syslog",
    5514,
    (port) =>
      Layer.unwrap(Effect.map(Config.option(Config.String("SOCKET")), (path) =>
        Syslog(
          print,
          Option.isSome(path)
            ? UnixDatagram.transport({ path: path.value, mode: 0o600 })
            : NodeTransport.udp({ host: "127.0.0.1", port })
        ))),
    (address) =>
      NetAddress.isUnixPathAddress(address)
        ? `logger -d -u ${address.path} hello`
        : `logger --udp -d -n ${NetAddress.formatHost(address)} -P ${address.port} hello`
  )
}
