/** Handshakes: what is said on a connection before its handler is, as a step between accept and dispatch. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, type Connection, Dispatch, MemoryTransport, Server, StreamTransport } from "@socketserver/core"
import { Context, Deferred, Duration, Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, settle } from "./utils.ts"

const handshake =
  (run: StreamTransport.Handshake["run"]) => (transport: Layer.Layer<StreamTransport.StreamTransport>) =>
    Layer.effect(
      StreamTransport.StreamTransport,
      Effect.map(StreamTransport.StreamTransport, (inner) => ({
        ...inner,
        steps: [...inner.steps, { handshake: "test", timeout: Duration.seconds(10), run }]
      }))
    ).pipe(Layer.provide(transport))

const handled: Array<number> = []
const start = (run: StreamTransport.Handshake["run"], options?: Server.ServerOptions<never>) =>
  Effect.gen(function*() {
    handled.length = 0
    const errors: Array<unknown> = []
    const server = yield* Effect.map(
      Layer.build(
        MemoryTransport.stream().pipe(
          handshake(run),
          Dispatch.fiberPerRequest(),
          Server.serveStream(
            (connection: Connection.Connection) =>
              Effect.andThen(
                Effect.sync(() => handled.push(connection.id)),
                Effect.ignore(connection.write("hello\n"))
              ),
            { onError: (cause) => Effect.sync(() => errors.push(cause)), ...options }
          )
        )
      ),
      Context.get(Server.Server)
    )
    return { server, errors, connect: MemoryTransport.connect(server.address) }
  })

/** As a handshake does that fails, or is interrupted. */
const destroying = <A, E>(wire: StreamTransport.Wire, effect: Effect.Effect<A, E>) =>
  Effect.onExit(effect, (exit) => Effect.sync(() => exit._tag === "Failure" && wire.destroy(false)))

describe("a handshake", () => {
  it.effect("that its handler asks for, and that fails, is no client's leaving", () =>
    Effect.gen(function*() {
      const startTls: StreamTransport.StartTls = { timeout: Duration.seconds(10), run: () => Effect.fail("no TLS") }
      const failed: Array<string> = []
      const server = yield* MemoryTransport.stream().pipe(
        handshake((wire) => Effect.sync(() => Object.assign(wire, { startTls }))),
        Dispatch.fiberPerRequest(),
        Server.serveStream(
          (connection) =>
            Effect.tapError(connection.upgradeTls(), (error) => Effect.sync(() => failed.push(error.message))),
          { interruptOnDisconnect: "reset" }
        ),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.match(failed.join(), /the handshake failed: no TLS$/)
      assert.deepStrictEqual((yield* server.stats).closed, { HandshakeFailed: 1 })
    }))

  it.effect("comes before the handler, which goes on with the wire that it gives", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start((wire) =>
        Effect.sync(() => {
          const write = wire.write.bind(wire)
          return Object.assign(wire, { write: (chunk: Uint8Array | string) => write(String(chunk).toUpperCase()) })
        })
      )
      const client = yield* connect
      assert.strictEqual(yield* client.readLine(), "HELLO")
      assert.strictEqual((yield* server.stats).accepted, 1)
    }))

  it.effect("that fails ends its connection with `HandshakeFailed`; no handler runs, and no error hook", () =>
    Effect.gen(function*() {
      const { connect, errors, server } = yield* start((wire) => destroying(wire, Effect.fail("no")))
      const client = yield* connect
      yield* Effect.exit(client.readAll())
      assert.deepStrictEqual([(yield* server.stats).closed, handled, errors], [{ HandshakeFailed: 1 }, [], []])
    }))

  it.effect("that takes longer than it may ends its connection, and delays no other", () =>
    Effect.gen(function*() {
      let count = 0
      const { connect, server } = yield* start((wire) =>
        ++count === 1 ? destroying(wire, Effect.never) : Effect.succeed(wire)
      )
      const slow = yield* connect
      const quick = yield* connect
      assert.strictEqual(yield* quick.readLine(), "hello")
      yield* TestClock.adjust("9 seconds")
      assert.deepStrictEqual((yield* server.connections.list).map(({ id, state }) => [id, state]), [[1, "admitting"]])
      yield* TestClock.adjust("1 second")
      yield* Effect.exit(slow.readAll())
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1, HandshakeFailed: 1 })
    }))

  it.effect("under way is interrupted by a drain, and its connection refused", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start((wire) => destroying(wire, Effect.never))
      yield* connect
      yield* settle
      const report = yield* server.drain()
      assert.deepStrictEqual([report.refused, (yield* server.stats).refused], [1, { draining: 1 }])
      assert.strictEqual((yield* server.stats).open, 0)
    }))

  it.effect("that succeeds when its connection was closed by hand meanwhile leaves nothing open", () =>
    Effect.gen(function*() {
      const done = yield* Deferred.make<void>()
      const { connect, server } = yield* start((wire) => Effect.as(Effect.uninterruptible(Deferred.await(done)), wire))
      const client = yield* connect
      yield* settle
      assert.isTrue(yield* server.connections.close(1))
      const ended = yield* forkSettled(Effect.exit(client.readAll()))
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(ended)
      yield* settle
      assert.deepStrictEqual([(yield* server.stats).open, handled], [0, []])
    }))
})

describe("an admission step that counts", () => {
  it.effect("is told when a connection that it wants to hear of is released, once", () =>
    Effect.gen(function*() {
      const released: Array<number> = []
      const transport = Layer.effect(
        StreamTransport.StreamTransport,
        Effect.map(StreamTransport.StreamTransport, (inner) => ({
          ...inner,
          steps: [{
            policy: "odd",
            check: ({ id }: Connection.Connection, ticket: Admission.Ticket) => {
              if (id % 2 === 1) ticket.whenReleased(() => released.push(id))
              return id % 2 === 1
            }
          }]
        }))
      ).pipe(Layer.provide(MemoryTransport.stream()))
      const server = yield* Effect.map(
        Layer.build(transport.pipe(
          Admission.verify(({ id }) => Effect.succeed(id !== 3)),
          Dispatch.fiberPerRequest(),
          Server.serveStream((connection) => connection.readLine())
        )),
        Context.get(Server.Server)
      )
      for (let id = 1; id <= 4; id++) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* settle
        assert.deepStrictEqual(released, id < 3 ? id === 1 ? [] : [1] : [1, 3].slice(0, id - 1))
        yield* client.end
        yield* Effect.exit(client.readAll())
        yield* settle
      }
      assert.deepStrictEqual(released, [1, 3])
    }))
})
