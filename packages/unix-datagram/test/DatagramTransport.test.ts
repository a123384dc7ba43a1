/** Unix datagrams, held to what every datagram transport must do. */
import { DatagramTransportSuite } from "@socketserver/testing"
import { UnixDatagram } from "@socketserver/unix-datagram"
import { Effect } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll } from "vitest"
import { makeClient } from "./utils.ts"

const directory = mkdtempSync(join(tmpdir(), "socketserver-"))
afterAll(() => rmSync(directory, { recursive: true }))
let clients = 0

DatagramTransportSuite.suite("unix datagram", {
  layer: () => UnixDatagram.transport({ path: join(directory, "server.sock") }),
  client: Effect.suspend(() => makeClient(join(directory, `client-${++clients}.sock`))),
  anonymous: makeClient(""),
  lossless: true,
  tooLarge: 8_000_000
})

if (process.platform === "linux") {
  const name = `\0${directory}`
  DatagramTransportSuite.suite("unix datagram with abstract names", {
    layer: () => UnixDatagram.transport({ path: name }),
    client: Effect.suspend(() => makeClient(`${name}-${++clients}`)),
    tooLarge: 8_000_000
  })
}
