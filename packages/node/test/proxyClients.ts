/** Clients that say a header of the PROXY protocol first, or TLS, or both. */
import { Effect } from "effect"
import type * as Net from "node:net"
import { Duplex } from "node:stream"
import * as Tls from "node:tls"
import { authority } from "./certificates.ts"

export const tlv = (type: number, value: string) =>
  Buffer.concat([Buffer.from([type, value.length >> 8, value.length & 255]), Buffer.from(value)])

/** Version 2, of a TCP connection over IPv4. */
export const header2 = (...parts: ReadonlyArray<Buffer>) => {
  const rest = Buffer.concat(parts)
  const fixed = [0x21, 0x11, rest.length >> 8, rest.length & 255]
  return Buffer.concat([Buffer.from("\r\n\r\n\0\r\nQUIT\n"), Buffer.from(fixed), rest])
}

/** What says the header in front of the first bytes that go through it: they leave in one segment. */
export const behindHeader = (socket: Net.Socket, header: Uint8Array | string) => {
  let isFirst = true
  const duplex = new Duplex({
    allowHalfOpen: true,
    read: () => void socket.resume(),
    write: (chunk: Buffer, _, done) => {
      socket.write(isFirst ? Buffer.concat([Buffer.from(header as Uint8Array), chunk]) : chunk, done)
      isFirst = false
    },
    final: (done) => void socket.end(done)
  })
  socket.on("data", (chunk) => void duplex.push(chunk)).on("end", () => void duplex.push(null))
  socket.on("close", () => void duplex.destroy())
  return duplex
}

export const secured = (socket: Duplex) =>
  Effect.acquireRelease(
    Effect.callback<Tls.TLSSocket, string>((resume) => {
      const secure = Tls.connect({ socket, ca: authority.cert, servername: "localhost" })
      secure.once("error", (error) => resume(Effect.fail(error.message)))
      secure.once("secureConnect", () => resume(Effect.succeed(secure)))
    }),
    (secure) => Effect.sync(() => secure.destroy())
  )
