/** Messages on real sockets: the same handler over TCP, unix sockets and TLS, however the kernel cuts what is sent. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, Server, type StreamTransport, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { TestClient } from "@socketserver/testing"
import { Context, Effect, Layer } from "effect"
import type { NetAddress } from "effect/net"
import { join } from "node:path"
import { authority, identityOf, localhost } from "./certificates.ts"
import { directory } from "./utils.ts"

const tcp = NodeTransport.tcp({ host: "127.0.0.1", port: 0 })
const places: ReadonlyArray<{
  readonly name: string
  readonly transport: Layer.Layer<StreamTransport.StreamTransport>
  readonly connect: typeof TestClient.node
}> = [
  { name: "tcp", transport: tcp, connect: TestClient.node },
  {
    name: "unix",
    transport: Layer.unwrap(Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))),
    connect: TestClient.node
  },
  {
    name: "TLS",
    transport: tcp.pipe(NodeTransport.tls(identityOf(localhost))),
    connect: (address: NetAddress.SocketAddress) =>
      TestClient.tls(address, { ca: authority.cert, servername: "localhost" })
  }
]

/** Every third message is answered a little later than those behind it. */
const start = (transport: Layer.Layer<StreamTransport.StreamTransport>) =>
  Effect.map(
    Layer.build(
      transport.pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(({ id, payload }) =>
          id % 3 === 0
            ? Effect.as(Effect.yieldNow, payload)
            : id % 3 === 1
            ? Effect.succeed(payload)
            : Effect.sync(() => payload)
        )
      )
    ),
    Context.get(Server.Server)
  )

for (const { connect, name, transport } of places) {
  describe.concurrent(`messages over ${name}`, () => {
    it.live("are answered in order, thousands of them that came at once", () =>
      Effect.gen(function*() {
        const server = yield* start(transport)
        const client = yield* connect(server.address)
        const lines = Array.from({ length: 5_000 }, (_, n) => `${n} ${"ä".repeat(n % 97)}`)
        const writing = yield* Effect.forkChild(client.write(lines.map((line) => `${line}\n`).join("")))
        for (const line of lines) assert.strictEqual(yield* client.readLine, line)
        writing.interruptUnsafe()
        yield* server.drain()
        const { closed, inFlight } = yield* server.stats
        assert.deepStrictEqual([closed, inFlight], [{ Drained: 1 }, 0])
      }))
  })
}
