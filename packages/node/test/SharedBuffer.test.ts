/** Reading into a buffer that all connections share: nobody's bytes change under their hands. */
import { assert, describe, it } from "@effect/vitest"
import type { Connection } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Deferred, Effect, Fiber } from "effect"
import type * as Net from "node:net"
import { sharedBuffer } from "../src/internal/sharedBuffer.ts"
import { connect, eventLoopTurn, once, start } from "./utils.ts"

/** Bytes that tell their place, so that any exchange of two pieces shows. */
const pattern = (seed: number, length: number) => {
  const bytes = Buffer.allocUnsafe(length)
  for (let i = 0, x = seed + 1; i < length; i++) {
    x = (x * 1_103_515_245 + 12_345) & 0x7fffffff
    bytes[i] = x >> 16
  }
  return bytes
}

/** Sends `data` in pieces of varying size, reads slowly, and gives what came back. */
const exchange = (socket: Net.Socket, data: Buffer) =>
  Effect.callback<Buffer>((resume) => {
    const received: Array<Buffer> = []
    let offset = 0
    const send = () => {
      for (let step = 1; offset < data.length; step = step * 7 % 65_521) {
        const end = Math.min(data.length, offset + step)
        const more = socket.write(data.subarray(offset, end))
        offset = end
        if (!more) return socket.once("drain", send)
      }
      return socket.end()
    }
    socket.on("data", (chunk: Buffer) => {
      received.push(chunk)
      socket.pause()
      setImmediate(() => socket.resume())
    })
    socket.on("end", () => resume(Effect.succeed(Buffer.concat(received))))
    send()
  })

const echoes: Record<string, (connection: Connection.Connection) => Effect.Effect<unknown, unknown>> = {
  "pull": (c) => Effect.forever(Effect.flatMap(c.pull, c.write)),
  "pullBorrowed": (c) => Effect.forever(Effect.flatMap(c.pullBorrowed, c.write), { disableYield: true }),
  // What a read returned belongs to the caller for good: kept over ten more reads, and only then written.
  "pull, kept": (c) =>
    Effect.gen(function*() {
      const kept: Array<Uint8Array> = []
      return yield* Effect.forever(Effect.gen(function*() {
        kept.push(yield* c.pull)
        if (kept.length > 10) yield* c.write(kept.shift()!)
      })).pipe(Effect.ensuring(Effect.suspend(() => Effect.ignore(c.writeAll(kept)))))
    }),
  "readExactly": (c) => Effect.forever(Effect.flatMap(c.readExactly(1_000), c.write)),
  // Borrowed over a suspension: the buffer is this connection's until its next read.
  "pullBorrowed, late": (c) =>
    Effect.forever(Effect.flatMap(c.pullBorrowed, (bytes) => Effect.andThen(Effect.yieldNow, c.write(bytes))))
}

describe("many connections at a time, large and small, each reading in its own way", () => {
  it.live("each gets back exactly what it sent", () =>
    Effect.gen(function*() {
      const names = Object.keys(echoes)
      const server = yield* start(
        NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
        (c) => echoes[names[c.id % names.length]!]!(c),
        { onError: () => Effect.void }
      )
      yield* Effect.forEach(
        Array.from({ length: 20 }, (_, i) => pattern(i, i % 4 === 0 ? 3_000 : 1_000_000)),
        (data) =>
          Effect.scoped(Effect.gen(function*() {
            const socket = yield* connect(server.address)
            const received = yield* exchange(socket, data)
            assert.strictEqual(received.length, data.length)
            assert.isTrue(received.equals(data))
          })),
        { concurrency: 10, discard: true }
      )
    }), 30_000)
})

describe("borrowed bytes that are relayed to another connection", () => {
  it.live("arrive as they were, though that one's client reads late", () =>
    Effect.gen(function*() {
      const target = Deferred.makeUnsafe<Connection.Connection>()
      const server = yield* start(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }), (c) =>
        c.id === 1
          ? Effect.andThen(Deferred.succeed(target, c), c.draining)
          : Effect.flatMap(
            Deferred.await(target),
            (other) =>
              Effect.ensuring(
                Effect.forever(Effect.flatMap(c.pullBorrowed, other.write), { disableYield: true }),
                other.end
              )
          ))
      const reader = yield* connect(server.address)
      const sender = yield* connect(server.address)
      const data = pattern(1, 16_000_000)
      const received: Array<Buffer> = []
      const done = yield* Effect.forkChild(once(reader, "end"), { startImmediately: true })
      reader.on("data", (chunk: Buffer) => received.push(chunk))
      reader.pause()
      // Pieces that leave some room below the high-water mark: the write is done, but not all of it is sent.
      const send = (offset: number): void => {
        if (offset >= data.length) return void sender.end()
        sender.write(data.subarray(offset, offset + 20_000), () => send(offset + 20_000))
      }
      send(0)
      // The reader begins when nothing moves any more: the system's buffers are full, and output waits in the process.
      for (let still = 0, read = -1; still < 200;) {
        yield* eventLoopTurn
        const { bytesRead } = yield* server.stats
        still = bytesRead === read && bytesRead > 0 ? still + 1 : 0
        read = bytesRead
      }
      reader.resume()
      yield* Fiber.join(done)
      assert.isTrue(Buffer.concat(received).equals(data))
    }), 30_000)
})

describe("this Node", () => {
  it("has what reading into a shared buffer needs", () => {
    assert.isTrue(sharedBuffer.available)
  })
})
