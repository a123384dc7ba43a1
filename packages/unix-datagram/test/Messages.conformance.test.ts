/** Messages in unix datagrams, inline and in workers, held to what every server of messages must do. */
import { Dispatch } from "@socketserver/core"
import { NodeDispatch } from "@socketserver/node"
import { MessageSuite } from "@socketserver/testing"
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

const packets = {
  layer: () => UnixDatagram.transport({ path: join(directory, "server.sock") }),
  client: Effect.suspend(() => makeClient(join(directory, `client-${++clients}.sock`)))
}

MessageSuite.packetSuite("messages in unix datagrams", packets)

MessageSuite.packetSuite("messages in unix datagrams, under serial", {
  ...packets,
  dispatch: () => Dispatch.serial(),
  maxInFlight: 1
})

for (const kind of ["thread", "process"] as const) {
  MessageSuite.packetSuite(`messages in unix datagrams, each in a ${kind}`, {
    ...packets,
    dispatch: ({ maxInFlight }) => NodeDispatch.workerPerRequest({ kind, maxWorkers: maxInFlight }),
    isolated: true
  })
}
