/** Writes: when they leave, in what order, and what they do with the caller's bytes. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, Dispatch, MemoryTransport, Server, StreamTransport } from "@socketserver/core"
import { Effect, Layer, Stream } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { settle, start } from "./utils.ts"

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

describe("answers to requests that are already there", () => {
  it.effect("leave together, in order, when the last of them is taken", () =>
    Effect.gen(function*() {
      const server = yield* start((c) =>
        Effect.gen(function*() {
          while (true) yield* c.write(`${(yield* c.readLine()).toUpperCase()}\n`)
        })
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\nb\nc\n")
      assert.strictEqual(text(yield* client.pull), "A\nB\nC\n")
      yield* client.write("d\n")
      assert.strictEqual(text(yield* client.pull), "D\n")
    }))

  it.effect("leave together though half of another request is there", () =>
    Effect.gen(function*() {
      const server = yield* start((c) =>
        Effect.forever(Effect.flatMap(c.readLine(), (line) => c.write(`${line}\n`)), { disableYield: true })
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\nb\nhal")
      assert.strictEqual(text(yield* client.pull), "a\nb\n")
      yield* client.write("f\n")
      assert.strictEqual(text(yield* client.pull), "half\n")
    }))

  it.effect("do not wait for a handler that does something else before it reads on", () =>
    Effect.gen(function*() {
      const server = yield* start((c) =>
        Effect.forever(
          Effect.flatMap(c.readLine(), (line) => Effect.andThen(c.write(`${line}\n`), Effect.sleep("1 hour")))
        ), { shutdown: { grace: 0 } })
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\nb\n")
      assert.strictEqual(text(yield* client.pull), "a\n")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(text(yield* client.pull), "b\n")
    }))

  it.effect("make their handler wait when the client does not read them", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (c) => Effect.forever(Effect.flatMap(c.readLine(), () => c.write("x".repeat(1_000)))),
        { shutdown: { grace: 0 } }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* Effect.forkChild(client.write("\n".repeat(60_000)))
      for (let turns = 0; turns < 10_000; turns++) yield* Effect.yieldNow
      // Of 60 MB, what the client's buffer takes, and what was under way.
      assert.isAtMost((yield* server.stats).bytesWritten, 65_536 + 16_384)
      // None is lost by that.
      for (let read = 0; read < 60_000_000;) read += (yield* client.pullBorrowed).length
    }))

  it.effect("leave before the output ends, the connection closes, or the handler returns", () =>
    Effect.gen(function*() {
      for (const ending of ["end", "close", "return"] as const) {
        const server = yield* start((c) =>
          Effect.gen(function*() {
            yield* c.readLine()
            yield* c.write("answer\n")
            if (ending !== "return") yield* c[ending]
          })
        )
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write("one\ntwo\nthree\n")
        assert.strictEqual(text(yield* client.readAll()), "answer\n")
      }
    }))

  it.effect("are exact, however many there are and of whatever kind", () =>
    Effect.gen(function*() {
      const bytes = new Uint8Array(3)
      const server = yield* start((c) =>
        Effect.gen(function*() {
          for (let i = 0;; i++) {
            const line = yield* c.readLine()
            if (i % 3 === 0) {
              // The same array again and again: what was written before must not change with it.
              bytes.fill(97 + i % 26)
              bytes[2] = 10
              yield* c.write(bytes)
            } else if (i % 3 === 1) yield* c.writeAll([line, new Uint8Array([10])])
            else yield* c.write(`${line}\n`)
          }
        })
      )
      const count = 10_000
      const client = yield* MemoryTransport.connect(server.address)
      const sending = client.writeAll(Array.from({ length: count }, (_, i) => `line ${i}\n`))
      const [lines] = yield* Effect.all(
        [client.lines().pipe(Stream.take(count), Stream.runCollect), sending],
        { concurrency: 2 }
      )
      const letter = (i: number) => String.fromCharCode(97 + i % 26).repeat(2)
      assert.deepStrictEqual(lines, Array.from({ length: count }, (_, i) => i % 3 === 0 ? letter(i) : `line ${i}`))
    }))
})

describe("writeAll", () => {
  it.effect("waits for the peer, also where the last chunk is empty", () =>
    Effect.gen(function*() {
      const server = yield* start((c) => c.writeAll([new Uint8Array(100_000), new Uint8Array(0)]))
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.strictEqual((yield* server.stats).inFlight, 1)
      yield* client.readExactly(100_000, { maxLength: 100_000 })
      yield* settle
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))

  it.effect("is one write, that no other fiber's comes between, however large", () =>
    Effect.gen(function*() {
      const chunks = Array.from({ length: 6 }, () => new Uint8Array(40_000).fill(1))
      const server = yield* start((c) =>
        Effect.all([c.writeAll(chunks), c.write(new Uint8Array(10).fill(2))], { concurrency: 2 })
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      const all = yield* client.readAll({ maxLength: 1_000_000 })
      assert.strictEqual(all.length, 240_010)
      assert.strictEqual(all.indexOf(2), 240_000)
    }))
})

describe("pullBorrowed", () => {
  it.effect("gives what `pull` gives", () =>
    Effect.gen(function*() {
      const server = yield* start((c) => Effect.forever(Effect.flatMap(c.pullBorrowed, c.write)))
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("hello\n")
      assert.strictEqual(yield* client.readLine(), "hello")
      yield* client.end
      assert.strictEqual((yield* client.readAll()).length, 0)
    }))

  it.effect("leaves its bytes to a write that is not all sent yet, on the same connection or another", () =>
    Effect.gen(function*() {
      const connections: Array<Connection.Connection> = []
      const wires = [new HandWire(), new HandWire()]
      const byHand = Layer.succeed(StreamTransport.StreamTransport, {
        name: "by hand",
        steps: [],
        listen: (onConnection) =>
          Effect.sync(() => {
            wires.forEach(onConnection)
            return { address: here }
          })
      })
      yield* byHand.pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream((c) =>
          Effect.suspend(() => {
            connections.push(c)
            // The second relays to the first, the first to itself.
            return Effect.forever(Effect.flatMap(c.pullBorrowed, (bytes) => connections[0]!.write(bytes)), {
              disableYield: true
            })
          })
        ),
        Layer.build
      )
      for (const wire of wires) {
        for (const unsent of [0, 10]) {
          wires[0]!.unsent = unsent
          let kept = 0
          wire.receiver.onData(new Uint8Array(10), { copy: (bytes) => bytes, keep: () => kept++ })
          assert.strictEqual(kept, unsent === 0 ? 0 : 1)
        }
      }
    }))
})

const here = NetAddress.unixPathAddress("by hand")

/** A wire that a test delivers to, and that says of its output what the test wants. */
class HandWire implements StreamTransport.Wire {
  readonly peer = here
  readonly local = here
  readonly bytesRead = 0
  readonly bytesWritten = 0
  unsent = 0
  receiver!: StreamTransport.Receiver
  start(receiver: StreamTransport.Receiver) {
    this.receiver = receiver
  }
  resume() {}
  pause() {}
  write() {
    return true
  }
  end() {}
  close() {
    this.receiver.onClose()
  }
  destroy() {
    this.receiver.onClose()
  }
}
