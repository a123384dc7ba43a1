/** The way without the shared buffer, where Node does not have what it needs: it must pass no less. */
import { assert, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"
import { Context, Effect, Layer } from "effect"
import { sharedBuffer } from "../src/internal/sharedBuffer.ts"
import { identityOf, localhost } from "./certificates.ts"
import { behindHeader, secured } from "./proxyClients.ts"
import { connect, receiveAll, start } from "./utils.ts"
import { proxied } from "./workers/proxied.ts"

// For this file: every test file has its modules to itself.
sharedBuffer.enabled = false

StreamTransportSuite.suite("tcp, read by `data` events", {
  layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
  connect: TestClient.node
})

const behindProxy = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
  NodeTransport.proxyProtocol({ trusted: ["127.0.0.1"] })
)
const header = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
const told = "192.0.2.1:56324 198.51.100.7:443 v1 undefined 0"

it.live("TLS follows a PROXY header in the same segment", () =>
  Effect.gen(function*() {
    const server = yield* start(behindProxy.pipe(NodeTransport.tls(identityOf(localhost))), proxied.handle)
    const client = yield* secured(behindHeader(yield* connect(server.address), header))
    client.end("hello")
    assert.strictEqual(yield* receiveAll(client), `${told} TLSv1.3\nhello`)
  }))

it.live("what came behind a PROXY header goes to a worker, by bytes", () =>
  Effect.gen(function*() {
    const server = yield* behindProxy.pipe(
      NodeDispatch.workerPerRequest({ kind: "process", maxWorkers: 1 }),
      Server.serveStream(proxied),
      Layer.build,
      Effect.map(Context.get(Server.Server))
    )
    const client = yield* connect(server.address)
    const body = Array.from({ length: 50_000 }, (_, i) => i).join()
    client.end(header + body)
    assert.strictEqual(yield* receiveAll(client), `${told} clear\n${body}`)
    assert.strictEqual((yield* server.info).workers?.transfer, "bytes")
  }))
