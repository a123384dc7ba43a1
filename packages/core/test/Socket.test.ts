/** A connection as an Effect `Socket`. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, MemoryTransport } from "@socketserver/core"
import { Effect, Fiber, Stream } from "effect"
import { Socket } from "effect/socket"
import { TestClock } from "effect/testing"
import { forkSettled, settle, start } from "./utils.ts"

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

/** Echoes, as code for Effect sockets does. */
const echo = ({ socket }: Connection.Connection) =>
  Effect.scoped(Effect.gen(function*() {
    const reader = yield* socket.reader
    const writer = yield* socket.writer
    while (true) yield* writer.writeAll(yield* reader.pull)
  }))

describe("connection.socket", () => {
  it.effect("reads and writes; the end of input, uncaught, completes the request", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("hello")
      assert.strictEqual(text(yield* client.pull), "hello")
      yield* client.end
      assert.strictEqual((yield* client.readAll()).length, 0)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.effect("reports a reset as close 1006, and the request as the peer's doing", () =>
    Effect.gen(function*() {
      const codes: Array<number> = []
      const server = yield* start((connection) =>
        echo(connection).pipe(
          Effect.tapError(({ reason }) =>
            Effect.sync(() => reason._tag === "SocketCloseError" && codes.push(reason.code))
          )
        )
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      yield* client.reset
      yield* server.awaitIdle
      assert.deepStrictEqual(codes, [1006])
      assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
    }))

  it.effect("half-closes when its writer is released, and closes on a close event", () =>
    Effect.gen(function*() {
      const server = yield* start(({ id, socket }) =>
        id === 1
          ? Effect.andThen(Effect.scoped(Effect.flatMap(socket.writer, (writer) => writer.write("bye"))), Effect.never)
          : Effect.scoped(Effect.flatMap(socket.writer, (writer) => writer.write(new Socket.CloseEvent()))), {
        shutdown: { grace: 0 }
      })
      const first = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(text(yield* first.readAll()), "bye")
      assert.strictEqual((yield* server.stats).open, 1)
      const second = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(text(yield* second.readAll()), "")
    }))

  it.effect("is a stream and a channel, with Effect's own functions", () =>
    Effect.gen(function*() {
      const server = yield* start(({ socket }) =>
        Stream.fromArray(["a", "b"]).pipe(Stream.pipeThroughChannel(Socket.toChannelString(socket)), Stream.runDrain)
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.end
      assert.strictEqual(text(yield* client.readAll()), "ab")
    }))

  it.effect("cannot be upgraded to TLS yet, and says so", () =>
    Effect.gen(function*() {
      const server = yield* start(({ socket }) =>
        Effect.scoped(Effect.gen(function*() {
          const reader = yield* socket.reader
          const error = yield* Effect.flip(reader.upgrade())
          const writer = yield* socket.writer
          yield* writer.write(error.reason._tag)
        }))
      )
      const client = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(text(yield* client.readAll()), "SocketUpgradeError")
    }))

  it.effect("while the server drains, ends its reads once what came was answered", () =>
    Effect.gen(function*() {
      const server = yield* start(({ socket }) =>
        Effect.scoped(Effect.gen(function*() {
          const reader = yield* socket.reader
          const writer = yield* socket.writer
          yield* reader.pull
          // Reads ahead while it computes.
          const ahead = yield* Effect.forkChild(reader.pull, { startImmediately: true })
          yield* Effect.sleep("1 second")
          yield* writer.write("answer")
          yield* Fiber.join(ahead)
        }))
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("question")
      yield* settle
      const draining = yield* forkSettled(server.drain())
      assert.isUndefined(draining.pollUnsafe())
      yield* TestClock.adjust("1 second")
      assert.strictEqual(text(yield* client.readAll()), "answer")
      assert.strictEqual((yield* Fiber.join(draining)).idleClosed, 1)
    }))
})
