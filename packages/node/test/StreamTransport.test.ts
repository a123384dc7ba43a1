/** TCP and unix sockets, held to what every stream transport must do. */
import { NodeTransport } from "@socketserver/node"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"
import { Effect, Layer } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { networkInterfaces, tmpdir } from "node:os"
import { join } from "node:path"

StreamTransportSuite.suite("tcp on 127.0.0.1", {
  layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
  connect: TestClient.node
})

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === "::1")
)

if (hasIpv6) {
  StreamTransportSuite.suite("tcp on ::1", {
    layer: () => NodeTransport.tcp({ host: "::1", port: 0 }),
    connect: TestClient.node
  })
}

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "socketserver-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
)

StreamTransportSuite.suite("unix at a path", {
  layer: () =>
    Layer.unwrap(Effect.map(temporaryDirectory, (directory) => NodeTransport.unix({ path: join(directory, "s") }))),
  connect: TestClient.node,
  // Unix sockets have none: a client that is cut off is one that has ended.
  seesResets: false,
  sendsResets: false
})

if (process.platform === "linux") {
  let names = 0
  StreamTransportSuite.suite("unix at an abstract name", {
    layer: () => NodeTransport.unix({ path: `\0socketserver-test-${process.pid}-${++names}` }),
    connect: TestClient.node,
    seesResets: false,
    sendsResets: false
  })
}
