/** Effect's RPC over our transports, with our drain and an unmodified client. */
import * as NodeSocket from "@effect/platform-node-shared/NodeSocket"
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Server, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Context, Deferred, Effect, Fiber, Layer, Schema, Stream } from "effect"
import { NetAddress } from "effect/net"
import { Rpc, RpcClient, RpcGroup, RpcSerialization, RpcServer } from "effect/rpc"

const Group = RpcGroup.make(
  Rpc.make("Upper", { payload: { text: Schema.String }, success: Schema.String }),
  Rpc.make("Held", { success: Schema.String }),
  Rpc.make("Count", { payload: { to: Schema.Int }, success: Schema.Int, stream: true }),
  Rpc.make("Fail", { error: Schema.String })
)

/** An RPC server whose call `Held` begins and ends when the test says so. */
const start = Effect.gen(function*() {
  const begun = Deferred.makeUnsafe<void>()
  const release = Deferred.makeUnsafe<void>()
  const context = yield* RpcServer.layer(Group).pipe(
    Layer.provide(Group.toLayer({
      Upper: ({ text }) => Effect.succeed(text.toUpperCase()),
      Held: () => Effect.as(Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(release)), "finished"),
      Count: ({ to }) => Stream.range(1, to),
      Fail: () => Effect.fail("typed")
    })),
    Layer.provide(RpcServer.layerProtocolSocketServer),
    Layer.provideMerge(
      NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(Dispatch.fiberPerRequest(), Transport.toSocketServer())
    ),
    Layer.provide(RpcSerialization.layerNdjson),
    Layer.build
  )
  const server = Context.get(context, Server.Server)
  return { server, begun, release }
})

const connect = (server: Server.Server["Service"]) =>
  Effect.gen(function*() {
    if (!NetAddress.isInetAddress(server.address)) return yield* Effect.die("not a TCP address")
    const protocol = yield* Layer.build(
      RpcClient.layerProtocolSocket().pipe(
        Layer.provide([
          NodeSocket.layerNet({ host: "127.0.0.1", port: server.address.port }),
          RpcSerialization.layerNdjson
        ])
      )
    )
    return yield* Effect.provideContext(RpcClient.make(Group), protocol as Context.Context<any>)
  })

describe("Effect RPC over our TCP transport", () => {
  it.live("answers calls, streams and typed failures", () =>
    Effect.gen(function*() {
      const { server } = yield* start
      const client = yield* connect(server)
      assert.strictEqual(yield* client.Upper({ text: "hello" }), "HELLO")
      assert.deepStrictEqual(yield* Stream.runCollect(client.Count({ to: 5 })), [1, 2, 3, 4, 5])
      assert.strictEqual(yield* Effect.flip(client.Fail()), "typed")
      const stats = yield* server.stats
      assert.deepStrictEqual([stats.accepted, stats.inFlight], [1, 1])
    }))

  it.live("answers many clients at once", () =>
    Effect.gen(function*() {
      const { server } = yield* start
      const answers = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, i) => `n${i}`),
        (text) => Effect.scoped(Effect.flatMap(connect(server), (client) => client.Upper({ text }))),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers, Array.from({ length: 20 }, (_, i) => `N${i}`))
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).closed.Completed, 20)
    }))

  it.live("drains: a call under way finishes and is answered, then its connection and the idle ones end", () =>
    Effect.gen(function*() {
      const { begun, release, server } = yield* start
      const idle = yield* connect(server)
      yield* idle.Upper({ text: "x" })
      const client = yield* connect(server)
      const call = yield* Effect.forkChild(client.Held(), { startImmediately: true })
      yield* Deferred.await(begun)
      const oneClosed = yield* server.events.pipe(
        Stream.filter((event) => event._tag === "Closed"),
        Stream.runHead,
        Effect.forkChild({ startImmediately: true })
      )
      const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* Fiber.join(oneClosed)
      assert.isUndefined(draining.pollUnsafe())
      yield* Deferred.succeed(release, undefined)
      assert.strictEqual(yield* Fiber.join(call), "finished")
      const report = yield* Fiber.join(draining)
      assert.deepStrictEqual({ ...report, elapsed: 0 }, {
        idleClosed: 2,
        completed: 0,
        interrupted: 0,
        killed: 0,
        refused: 0,
        elapsed: 0
      })
    }))
})
