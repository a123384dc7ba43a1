/** Reads, whatever the chunks that the bytes arrive in. */
import { assert, describe, it } from "@effect/vitest"
import { MemoryTransport } from "@socketserver/core"
import type { Connection } from "@socketserver/core"
import { Cause, Deferred, Effect, Fiber, Schema, Stream } from "effect"
import { forkSettled, settle, start } from "./utils.ts"

type Handler = (connection: Connection.Connection) => Effect.Effect<unknown, any>

/** What `read` gives in a handler whose client sends `chunks`, one delivery each, and then finishes. */
const receive = <A, E>(
  chunks: ReadonlyArray<Uint8Array>,
  read: (connection: Connection.Connection) => Effect.Effect<A, E>
) =>
  Effect.scoped(Effect.gen(function*() {
    const result = Deferred.makeUnsafe<A, E>()
    const server = yield* start((connection) => Deferred.into(read(connection), result))
    const client = yield* MemoryTransport.connect(server.address)
    for (const chunk of chunks) yield* client.write(chunk)
    yield* client.end
    return yield* Deferred.await(result)
  }))

const bytes = (text: string) => new TextEncoder().encode(text)
const text = (bytes: Uint8Array) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)

/** Cuts `input` at the given places (taken modulo its length). */
const cut = (input: Uint8Array, places: ReadonlyArray<number>): Array<Uint8Array> => {
  const at = [...new Set(places.map((place) => place % (input.length + 1)))].toSorted((a, b) => a - b)
  return [...at, input.length].map((end, i) => input.subarray(at[i - 1] ?? 0, end)).filter((chunk) => chunk.length > 0)
}

/** All ways to cut `input` into two. */
const halves = (input: Uint8Array) => Array.from({ length: input.length + 1 }, (_, at) => cut(input, [at]))

const collect = <A, E>(read: Effect.Effect<A, E | Cause.Done>) =>
  Effect.gen(function*() {
    const all: Array<A> = []
    yield* Effect.forever(Effect.map(read, (value) => all.push(value))).pipe(
      Effect.catchIf(Cause.isDone, () => Effect.void)
    )
    return all
  })

const Line = Schema.String.check(Schema.isPattern(/^[^\n\r]*$/))
const Cuts = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 10_000 })))

describe("readLine", () => {
  it.effect.prop(
    "gives the same lines however they are cut into chunks",
    [Schema.Array(Line), Cuts, Schema.Boolean],
    ([lines, cuts, windows]) =>
      Effect.gen(function*() {
        const input = bytes(lines.map((line) => line + (windows ? "\r\n" : "\n")).join(""))
        const expected = lines.map((line) => text(bytes(line)))
        assert.deepStrictEqual(yield* receive(cut(input, cuts), (c) => collect(c.readLine())), expected)
        assert.deepStrictEqual(yield* receive(cut(input, cuts), (c) => Stream.runCollect(c.lines())), expected)
      })
  )

  it.effect("works across every boundary, also within a character and within a line end", () =>
    Effect.gen(function*() {
      for (const chunks of halves(bytes("αβ\r\n\r\n\nγ\r\nlast"))) {
        assert.deepStrictEqual(yield* receive(chunks, (c) => collect(c.readLine())), ["αβ", "", "", "γ", "last"])
      }
    }))

  it.effect("keeps a byte order mark, and replaces what is not UTF-8", () =>
    Effect.gen(function*() {
      const input = new Uint8Array([0xef, 0xbb, 0xbf, 0x61, 10, 0xff, 10])
      assert.deepStrictEqual(yield* receive([input], (c) => collect(c.readLine())), ["\uFEFFa", "\uFFFD"])
    }))

  it.effect("allows `maxLength` bytes, line end not counted, and not one more, across every boundary", () =>
    Effect.gen(function*() {
      for (const end of ["\n", "\r\n"]) {
        for (const chunks of halves(bytes(`12345${end}x${end}`))) {
          assert.deepStrictEqual(yield* receive(chunks, (c) => collect(c.readLine({ maxLength: 5 }))), ["12345", "x"])
          const error = yield* Effect.flip(receive(chunks, (c) => c.readLine({ maxLength: 4 })))
          assert.isTrue(error._tag === "ConnectionError" && error.reason._tag === "LimitExceeded")
        }
      }
    }))

  it.effect("fails as soon as the limit is passed, without waiting for the line to end", () =>
    Effect.gen(function*() {
      const failed = Deferred.makeUnsafe<string, any>()
      const server = yield* start((connection) => Deferred.into(connection.readLine({ maxLength: 10 }), failed))
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("0123456789AB")
      const error = yield* Effect.flip(Deferred.await(failed))
      assert.deepStrictEqual({ ...error.reason }, { operation: "readLine", limit: 10, _tag: "LimitExceeded" })
      assert.match(error.message, /^connection 1 from memory:\d+: readLine: more than 10 bytes/)
    }))

  it.effect("is limited to 65,536 bytes by default", () =>
    Effect.gen(function*() {
      const line = "x".repeat(65_536)
      assert.strictEqual(yield* receive([bytes(`${line}\n`)], (c) => c.readLine()), line)
      const error = yield* Effect.flip(receive([bytes(`${line}y\n`)], (c) => c.readLine()))
      assert.strictEqual((error as any).reason._tag, "LimitExceeded")
    }))

  it.effect("leaves the bytes after a failure for a read with a larger limit", () =>
    Effect.gen(function*() {
      const read = (connection: Connection.Connection) =>
        connection.readLine({ maxLength: 2 }).pipe(
          Effect.catchReason("ConnectionError", "LimitExceeded", () => connection.readLine())
        )
      assert.strictEqual(yield* receive([bytes("long\n")], read), "long")
    }))
})

describe("all kinds of reads, in any order", () => {
  const Kind = Schema.Literals(["line", "exactly", "until", "pull", "lines"])
  // Half of the input ASCII, half not, some of it no UTF-8: lines are decoded together or one by one.
  const Piece = Schema.Union([
    Schema.Literals(["a", "bc", "\n", "\r\n", "\r", "längst", "🦆", "x".repeat(300), "y".repeat(5_000)]),
    Schema.Literals([0xff, 0xe2, 0xc3])
  ])

  it.effect.prop(
    "give every byte once, in its place",
    [Schema.Array(Piece).check(Schema.isMinLength(20)), Cuts, Schema.Array(Kind).check(Schema.isMinLength(3))],
    ([pieces, cuts, kinds]) =>
      Effect.gen(function*() {
        const input = Uint8Array.from(pieces.flatMap((p) => typeof p === "number" ? [p] : [...bytes(p)]))
        let at = 0
        const lineEnd = () => input.indexOf(10, at)
        const lineOf = (end: number) => {
          const line = input.subarray(at, end > at && input[end - 1] === 13 ? end - 1 : end)
          at = end + 1
          return new TextDecoder("utf-8", { ignoreBOM: true }).decode(line)
        }
        yield* receive(cut(input, cuts), (c) =>
          Effect.gen(function*() {
            for (let i = 0; at < input.length; i++) {
              const kind = kinds[i % kinds.length]!
              if (kind === "line" && lineEnd() !== -1) assert.strictEqual(yield* c.readLine(), lineOf(lineEnd()))
              else if (kind === "lines" && lineEnd() !== -1) {
                const lines = yield* Stream.runCollect(Stream.take(c.lines(), 1))
                assert.deepStrictEqual(lines, [lineOf(lineEnd())])
                return
              } else if (kind === "until" && lineEnd() !== -1) {
                assert.deepStrictEqual(yield* c.readUntil("\n"), new Uint8Array(input.subarray(at, lineEnd())))
                at = lineEnd() + 1
              } else if (kind === "pull") {
                const chunk = yield* c.pull
                assert.deepStrictEqual(Buffer.from(chunk), Buffer.from(input.subarray(at, at + chunk.length)))
                at += chunk.length
              } else {
                const length = Math.min(3, input.length - at)
                assert.deepStrictEqual(
                  Buffer.from(yield* c.readExactly(length)),
                  Buffer.from(input.subarray(at, at + length))
                )
                at += length
              }
            }
            yield* Effect.flip(c.pull)
          }))
      })
  )
})

describe("lines", () => {
  it.effect("gives the lines before one that is too long", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const error: any = yield* Effect.flip(
        receive([bytes("a\nb\ntoo long\n")], (c) =>
          Stream.runForEach(c.lines({ maxLength: 3 }), (line) => Effect.sync(() => seen.push(line))))
      )
      assert.deepStrictEqual(seen, ["a", "b"])
      assert.strictEqual(error.reason._tag, "LimitExceeded")
    }))

  it.effect("gives all lines that are there as one chunk", () =>
    Effect.gen(function*() {
      const chunks = yield* receive([bytes("a\nb\nc\n")], (c) => Stream.runCollect(Stream.chunks(c.lines())))
      assert.deepStrictEqual(chunks, [["a", "b", "c"]])
    }))
})

describe("readExactly", () => {
  it.effect.prop(
    "gives the same pieces however they are cut into chunks",
    [Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 300 }))), Cuts],
    ([lengths, cuts]) =>
      Effect.gen(function*() {
        const pieces = lengths.map((length, i) => new Uint8Array(length).fill(i))
        const input = new Uint8Array(pieces.flatMap((piece) => [...piece]))
        const read = (c: Connection.Connection) => Effect.forEach(lengths, (length) => c.readExactly(length))
        assert.deepStrictEqual(
          (yield* receive(cut(input, cuts), read)).map((piece) => [...piece]),
          pieces.map((piece) => [...piece])
        )
      })
  )

  it.effect("tells no input from input that ends too early", () =>
    Effect.gen(function*() {
      assert.isTrue(Cause.isDone(yield* Effect.flip(receive([], (c) => c.readExactly(4)))))
      const error: any = yield* Effect.flip(receive([bytes("abc")], (c) => c.readExactly(4)))
      assert.deepStrictEqual([error.reason._tag, error.reason.received], ["UnexpectedEnd", 3])
    }))

  it.effect("refuses a length above the limit before it reads, and a length that is no length as a defect", () =>
    Effect.gen(function*() {
      const error: any = yield* Effect.flip(receive([], (c) => c.readExactly(1e9)))
      assert.strictEqual(error.reason._tag, "LimitExceeded")
      for (const length of [-1, 1.5, Number.NaN]) {
        const exit = yield* Effect.exit(receive([], (c) => c.readExactly(length)))
        assert.isTrue(exit._tag === "Failure" && Cause.hasDies(exit.cause))
      }
    }))
})

describe("readUntil", () => {
  it.effect("finds its delimiter across every boundary, and takes it", () =>
    Effect.gen(function*() {
      for (const chunks of halves(bytes("a\r\r\n\r\nb\r\n\r\n\r\n\r\n"))) {
        const read = (c: Connection.Connection) => collect(Effect.map(c.readUntil("\r\n\r\n"), text))
        assert.deepStrictEqual(yield* receive(chunks, read), ["a\r", "b", ""])
      }
    }))

  it.effect.prop(
    "agrees with splitting the whole input",
    [Schema.Array(Schema.Literals(["ab", "aab", "a", "b", "x", "abab"])), Cuts],
    ([words, cuts]) =>
      Effect.gen(function*() {
        const input = words.join("") + "aab"
        const expected: Array<string> = []
        let rest = input
        for (let at = rest.indexOf("aab"); at !== -1; at = rest.indexOf("aab")) {
          expected.push(rest.slice(0, at))
          rest = rest.slice(at + 3)
        }
        const read = (c: Connection.Connection) =>
          Effect.forEach(expected, () => Effect.map(c.readUntil(bytes("aab")), text))
        assert.deepStrictEqual(yield* receive(cut(bytes(input), cuts), read), expected)
      })
  )

  it.effect("is limited, and tells input that ends too early", () =>
    Effect.gen(function*() {
      for (const chunks of halves(bytes("12345;"))) {
        assert.strictEqual(text(yield* receive(chunks, (c) => c.readUntil(";", { maxLength: 5 }))), "12345")
        const error: any = yield* Effect.flip(receive(chunks, (c) => c.readUntil(";", { maxLength: 4 })))
        assert.strictEqual(error.reason._tag, "LimitExceeded")
      }
      const error: any = yield* Effect.flip(receive([bytes("abc")], (c) => c.readUntil(";")))
      assert.strictEqual(error.reason._tag, "UnexpectedEnd")
    }))
})

describe("readAll", () => {
  it.effect("gives everything up to its limit, and the empty array for nothing", () =>
    Effect.gen(function*() {
      assert.strictEqual(text(yield* receive([bytes("ab"), bytes("c")], (c) => c.readAll({ maxLength: 3 }))), "abc")
      assert.strictEqual((yield* receive([], (c) => c.readAll())).length, 0)
      const error: any = yield* Effect.flip(receive([bytes("ab"), bytes("cd")], (c) => c.readAll({ maxLength: 3 })))
      assert.strictEqual(error.reason._tag, "LimitExceeded")
    }))
})

describe("one read at a time", () => {
  const second: Handler = (connection) =>
    Effect.gen(function*() {
      const first = yield* Effect.forkChild(connection.readLine(), { startImmediately: true })
      const exit = yield* Effect.exit(connection.pull)
      assert.isTrue(exit._tag === "Failure" && Cause.hasDies(exit.cause))
      yield* connection.write(`${Cause.pretty(exit._tag === "Failure" ? exit.cause : Cause.empty).split("\n")[0]}\n`)
      yield* connection.write(`first: ${yield* Fiber.join(first)}\n`)
    })

  it.effect("a second read dies with a message that says so, and the first gets its input", () =>
    Effect.gen(function*() {
      const server = yield* start(second)
      const client = yield* MemoryTransport.connect(server.address)
      assert.match(yield* client.readLine(), /connection 1: a read is already waiting/)
      yield* client.write("input\n")
      assert.strictEqual(yield* client.readLine(), "first: input")
    }))

  it.effect("an interrupted read loses no input", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.never, { shutdown: { grace: 0 } })
      const client = yield* MemoryTransport.connect(server.address)
      const peer = yield* start((connection) =>
        Effect.gen(function*() {
          const reading = yield* forkSettled(connection.readLine())
          yield* connection.write("waiting\n")
          yield* Fiber.interrupt(reading)
          yield* connection.write(`got ${yield* connection.readLine()}\n`)
        })
      )
      const second = yield* MemoryTransport.connect(peer.address)
      yield* second.write("hal")
      assert.strictEqual(yield* second.readLine(), "waiting")
      yield* second.write("ves\n")
      assert.strictEqual(yield* second.readLine(), "got halves")
      yield* client.close
    }))
})

describe("backpressure", () => {
  it.effect("nothing is delivered to a handler that does not read, and writes wait", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.never, { shutdown: { grace: 0 } })
      const client = yield* MemoryTransport.connect(server.address)
      const writing = yield* forkSettled(Effect.forever(client.write(new Uint8Array(10_000))))
      assert.isUndefined(writing.pollUnsafe())
      assert.strictEqual((yield* server.stats).bytesRead, 0)
      yield* settle
      assert.strictEqual((yield* server.stats).bytesRead, 0)
      yield* Fiber.interrupt(writing)
    }))
})
