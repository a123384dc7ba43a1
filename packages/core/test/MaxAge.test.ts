/** How old connections get. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, MemoryTransport, Server, Transport } from "@socketserver/core"
import { Context, Deferred, Duration, Effect, Layer, Stream } from "effect"
import { TestClock } from "effect/testing"
import { settle, start } from "./utils.ts"

describe("a connection of its full age", () => {
  it.effect("that is idle sees end of input; each at a time of its own, within the bounds", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Stream.runDrain(connection.bytes), {
        maxAge: { after: "1 hour", jitter: "10 minutes" }
      })
      for (let i = 0; i < 100; i++) yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual((yield* server.stats).open, 100)
      yield* TestClock.adjust("6 minutes")
      const halfway = (yield* server.stats).open
      assert.isTrue(halfway > 0 && halfway < 100)
      yield* TestClock.adjust("5 minutes")
      const { closed, open } = yield* server.stats
      assert.deepStrictEqual([open, closed, yield* server.status], [0, { Drained: 100 }, "ready"])
    }))

  it.effect("is a tenth older at most, if nothing is said about that", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Stream.runDrain(connection.bytes), {
        maxAge: { after: "10 seconds" }
      })
      for (let i = 0; i < 100; i++) yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("11 seconds")
      assert.strictEqual((yield* server.stats).open, 0)
    }))

  it.effect("does not come where that is without end", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Stream.runDrain(connection.bytes), {
        maxAge: { after: Duration.infinity },
        requestTimeout: "1 hour"
      })
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual((yield* server.stats).closed, { RequestTimeout: 1 })
    }))

  it.effect("is told to the handlers of its messages", () =>
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(({ draining }) => Effect.as(draining, "bye"), { maxAge: { after: "1 minute", jitter: 0 } }),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("tell me\n")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "bye\n")
    }))

  it.effect("ends what it does before, and is told; a younger one is not", () =>
    Effect.gen(function*() {
      const done = yield* Deferred.make<void>()
      const told: Array<number> = []
      const server = yield* start(
        (connection) =>
          Effect.gen(function*() {
            yield* Effect.forkScoped(Effect.map(connection.draining, () => told.push(connection.id)))
            yield* connection.readLine()
            yield* Deferred.await(done)
            yield* connection.write("done\n")
            yield* connection.readLine()
          }),
        { maxAge: { after: "1 minute", jitter: 0 } }
      )
      const old = yield* MemoryTransport.connect(server.address)
      yield* old.write("do\n")
      yield* TestClock.adjust("30 seconds")
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual([told, (yield* server.stats).open], [[1], 2])
      yield* Deferred.succeed(done, undefined)
      assert.strictEqual(yield* old.readLine(), "done")
      yield* settle
      assert.strictEqual((yield* server.stats).open, 1)
    }))

  it.effect("or not, is drained with its server", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (connection) => Effect.andThen(connection.draining, connection.write("bye\n")),
        { maxAge: { after: "1 hour" } }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.strictEqual((yield* server.drain()).completed, 1)
      assert.strictEqual(yield* client.readLine(), "bye")
    }))

  it.effect("is a duration, or the server does not start", () =>
    Effect.gen(function*() {
      const wrong = MemoryTransport.stream().pipe(
        Dispatch.serial(),
        Server.serveStream(() => Effect.void, { maxAge: { after: "1 hour", jitter: Number.NaN } })
      )
      const { reason } = yield* Effect.flip(Layer.build(wrong))
      assert.strictEqual(reason._tag === "InvalidOption" && reason.option, "maxAge.jitter")
    }))
})
