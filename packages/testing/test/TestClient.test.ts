/** A test client is the same, and sees the same, whatever it is connected over. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, type ConnectionError, Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { TestClient } from "@socketserver/testing"
import { type Cause, Context, Effect, Fiber, Layer } from "effect"

const ways = {
  memory: { transport: MemoryTransport.stream(), connect: TestClient.memory },
  tcp: { transport: NodeTransport.tcp({ host: "127.0.0.1", port: 0 }), connect: TestClient.node }
}

for (const [name, { connect, transport }] of Object.entries(ways)) {
  const serve = Effect.fnUntraced(function*(
    handler: (connection: Connection.Connection) => Effect.Effect<unknown, ConnectionError.ConnectionError | Cause.Done>
  ) {
    return yield* Layer.build(
      transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handler, { onError: () => Effect.void }))
    ).pipe(Effect.map(Context.get(Server.Server)))
  })
  const visit = (handler: Parameters<typeof serve>[0]) =>
    Effect.flatMap(serve(handler), ({ address }) => connect(address))
  const reasonOf = <A>(effect: Effect.Effect<A, TestClient.ClientError>) =>
    Effect.map(Effect.flip(effect), ({ reason }) => reason)

  describe(name, () => {
    it.live("is refused where nobody listens any more", () =>
      Effect.gen(function*() {
        const { address } = yield* Effect.scoped(serve(() => Effect.void))
        assert.strictEqual(yield* reasonOf(Effect.scoped(connect(address))), "Refused")
      }))

    it.live("keeps what a read did not use for the next one", () =>
      Effect.gen(function*() {
        const client = yield* visit((connection) => connection.write("one\n\uFEFFtwo\n\nfour, and the rest"))
        assert.strictEqual(yield* client.readLine, "one")
        assert.strictEqual(yield* client.readLine, "\uFEFFtwo")
        assert.strictEqual(yield* client.readLine, "")
        assert.strictEqual(new TextDecoder().decode(yield* client.readExactly(4)), "four")
        assert.strictEqual(new TextDecoder().decode(yield* client.readAll), ", and the rest")
        assert.strictEqual((yield* client.readAll).length, 0)
        assert.strictEqual(yield* client.closed, "Ended")
      }))

    it.live("tells when the server finishes before everything that was asked for has come, and keeps what has", () =>
      Effect.gen(function*() {
        const client = yield* visit((connection) => connection.write("half a line"))
        assert.strictEqual(yield* reasonOf(client.readLine), "UnexpectedEnd")
        assert.strictEqual(yield* reasonOf(client.readExactly(12)), "UnexpectedEnd")
        assert.strictEqual(new TextDecoder().decode(yield* client.readAll), "half a line")
      }))

    it.live("finishes sending, and reads on", () =>
      Effect.gen(function*() {
        const client = yield* visit((connection) =>
          Effect.flatMap(connection.readAll({ maxLength: 100 }), (all) => connection.write(`${all.length} bytes\n`))
        )
        yield* client.write("é")
        yield* client.end
        assert.strictEqual(yield* reasonOf(client.write("more")), "Closed")
        assert.strictEqual(yield* client.readLine, "2 bytes")
      }))

    it.live("sees a reset", () =>
      Effect.gen(function*() {
        const client = yield* visit((connection) => Effect.andThen(connection.readExactly(1), connection.reset))
        yield* client.write("x")
        assert.strictEqual(yield* client.closed, "Reset")
        assert.strictEqual(yield* reasonOf(client.readLine), "Reset")
      }))

    it.live("resets, and has nothing to say after that", () =>
      Effect.gen(function*() {
        const server = yield* serve((connection) => connection.readExactly(1))
        const client = yield* connect(server.address)
        yield* client.reset
        assert.strictEqual(yield* reasonOf(client.write("x")), "Closed")
        yield* server.awaitIdle
        assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
      }))

    it.live("is cut off at the end of its scope", () =>
      Effect.gen(function*() {
        const server = yield* serve((connection) => connection.readExactly(1))
        yield* Effect.scoped(connect(server.address))
        yield* server.awaitIdle
        assert.strictEqual((yield* server.stats).accepted, 1)
      }))

    it.live("may stop to wait for something", () =>
      Effect.gen(function*() {
        const client = yield* visit((connection) => Effect.andThen(connection.readExactly(1), connection.write("a\n")))
        const waiting = yield* Effect.forkChild(client.readLine, { startImmediately: true })
        yield* Fiber.interrupt(waiting)
        yield* client.write("x")
        assert.strictEqual(yield* client.readLine, "a")
      }))
  })
}
