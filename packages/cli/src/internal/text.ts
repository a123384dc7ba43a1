/** Numbers, addresses and tables, as people read them in a terminal. */
import { Duration } from "effect"
import { NetAddress } from "effect/net"

export const bytes = (count: number): string => {
  let value = count
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 999.5) return `${value < 10 && unit !== "B" ? value.toFixed(1) : value.toFixed(0)} ${unit}`
    value /= 1000
  }
  return `${value.toFixed(1)} TB`
}

export const age = (millis: number): string => {
  const seconds = Math.floor(millis / 1000)
  if (seconds < 60) return `${seconds}s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${seconds % 60}s`
  return `${Math.floor(seconds / 3600)}h${Math.floor(seconds % 3600 / 60)}m`
}

/** What comes from elsewhere may hold anything: a terminal must not be told what to do by it. */
export const printable = (text: string): string => text.replaceAll(/\p{C}/gu, "?")

/** For programs, and yet seen in terminals: JSON leaves some control characters as they are. */
export const jsonLine = (value: unknown): string =>
  JSON.stringify(value).replaceAll(/[\u007f-\u009f]/g, (one) => `\\u00${one.charCodeAt(0).toString(16)}`)

/** Columns as wide as their widest cell. */
export const table = (rows: ReadonlyArray<ReadonlyArray<string>>): Array<string> => {
  const widths: Array<number> = []
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)))
  return rows.map((row) => row.map((cell, i) => cell.padEnd(widths[i]!)).join("  ").trimEnd())
}

/** `30s`, `1.5m`, `500ms`, or as Effect has it: `30 seconds`. */
export const parseDuration = (text: string): Duration.Duration => {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/.exec(text) ?? []
  const factor = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 }[unit ?? ""]
  const duration = factor === undefined
    ? /^\d+ /.test(text) ? Duration.fromInput(text as Duration.Input) : undefined
    : Duration.fromInput(Number(number) * factor)
  if (duration?._tag === "Some" && Duration.toMillis(duration.value) < 2 ** 31) return duration.value
  throw new Error("a duration, such as 500ms, 30s, 5m or 1h")
}

/** The address that a client on this machine uses. */
const reachable = (host: string): string => host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host

/** What a user types to talk to a server. */
export const clientFor = (address: NetAddress.SocketAddress, transport: string): string => {
  if (NetAddress.isUnixPathAddress(address)) {
    const { path } = address
    // Without a path of its own a client gets no replies.
    return transport === "unix-datagram" ? `socat - UNIX-SENDTO:${path},bind=${path}.client` : `nc -U ${path}`
  }
  const host = reachable(NetAddress.formatHost(address))
  switch (transport) {
    case "udp":
      return `nc -u ${host} ${address.port}`
    case "tls":
      return `openssl s_client -quiet -connect ${host.includes(":") ? `[${host}]` : host}:${address.port}`
    default:
      return `nc ${host} ${address.port}`
  }
}

export const place = (address: NetAddress.SocketAddress): string =>
  NetAddress.isUnixPathAddress(address) ? address.path : NetAddress.formatInet(address)

export const drained = (
  name: string,
  report: {
    readonly elapsedMs: number
    readonly idleClosed: number
    readonly completed: number
    readonly interrupted: number
    readonly killed: number
    readonly refused: number
  }
): string =>
  `${name}: drained in ${Math.round(report.elapsedMs)} ms; idle connections ended: ${report.idleClosed}, ` +
  `completed: ${report.completed}, interrupted: ${report.interrupted}, killed: ${report.killed}, refused: ${report.refused}`
