/** The deadlines of a connection and of its handler, under a test clock. `idleTimeout` and `maxAge` have tests of their own. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, Dispatch, Logging, MemoryTransport, Server } from "@socketserver/core"
import { Cause, Clock, Context, Deferred, Duration, Effect, Layer, Logger, Stream } from "effect"
import { TestClock } from "effect/testing"
import { settle, start, startSerial } from "./utils.ts"

const readLines = (connection: Connection.Connection) =>
  Effect.forever(Effect.flatMap(connection.readLine(), (line) => connection.write(`${line}\n`)))

/** More than the high-water mark. */
const much = new Uint8Array(100_000)

/** The test's clock, and how many fibers sleep by it. */
const countingClock = Effect.map(Clock.Clock, (clock) => {
  let sleeping = 0
  const counting: Clock.Clock = Object.assign(Object.create(clock), {
    sleep: (duration: Duration.Duration) =>
      Effect.suspend(() => {
        sleeping++
        return Effect.ensuring(clock.sleep(duration), Effect.sync(() => sleeping--))
      })
  })
  return { clock: counting, sleeping: () => sleeping }
})

const closedBy = (server: Server.Server["Service"]) => Effect.map(server.stats, ({ closed }) => closed)

describe("readTimeout", () => {
  it.effect("ends a client that sends a line byte by byte, from the first byte on; one that has not begun is let be", () =>
    Effect.gen(function*() {
      const server = yield* start(readLines, { readTimeout: "10 seconds", idleTimeout: "1 hour" })
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("30 minutes")
      yield* client.write("a\n")
      assert.strictEqual(yield* client.readLine(), "a")
      yield* TestClock.adjust("30 minutes")
      for (let second = 0; second < 10; second++) {
        assert.strictEqual((yield* server.stats).open, 1, `after ${second} seconds`)
        yield* client.write("x")
        yield* TestClock.adjust(second < 9 ? "1 second" : "999 millis")
      }
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
    }))

  it.effect("is about one read: a client that ends each line in time stays, whatever lies behind it", () =>
    Effect.gen(function*() {
      const server = yield* start(readLines, { readTimeout: "10 seconds" })
      const client = yield* MemoryTransport.connect(server.address)
      for (let i = 0; i < 20; i++) {
        yield* client.write(i === 0 ? "begun" : "-ended\nbegun")
        yield* TestClock.adjust("9 seconds")
      }
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
    }))

  const reads: Record<string, (connection: Connection.Connection) => Effect.Effect<unknown, any>> = {
    readExactly: (connection) => connection.readExactly(100),
    readUntil: (connection) => connection.readUntil(";"),
    readAll: (connection) => connection.readAll(),
    "an element of `lines`": (connection) => Stream.runDrain(connection.lines())
  }
  for (const [name, read] of Object.entries(reads)) {
    it.effect(`holds for ${name}`, () =>
      Effect.gen(function*() {
        const server = yield* start(read, { readTimeout: "10 seconds" })
        const client = yield* MemoryTransport.connect(server.address)
        yield* TestClock.adjust("1 hour")
        yield* client.write("x")
        yield* TestClock.adjust("5 seconds")
        yield* client.write("x")
        yield* TestClock.adjust("4999 millis")
        assert.strictEqual((yield* server.stats).open, 1)
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
      }))
  }

  it.effect("counts from when a read waits, within `busy`", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (connection) =>
          Effect.gen(function*() {
            const length = Number(yield* connection.readLine())
            yield* connection.busy(Effect.andThen(Effect.sleep("1 minute"), connection.readExactly(length)))
          }),
        { readTimeout: "10 seconds" }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("4\n")
      yield* TestClock.adjust("69999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
    }))

  it.effect("runs `onTimeout`, fails the read with its name, and stays passed", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (connection) =>
          connection.readLine().pipe(
            Effect.catchReason("ConnectionError", "Timeout", ({ deadline }) => connection.write(`bye: ${deadline}\n`)),
            Effect.andThen(connection.readLine())
          ),
        { readTimeout: "10 seconds", onTimeout: (connection) => connection.write("too slow\n") }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("x")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* client.readLine(), "too slow")
      assert.strictEqual(yield* client.readLine(), "bye: readTimeout")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
    }))
})

describe("writeTimeout", () => {
  const flood = (connection: Connection.Connection) => Effect.forever(connection.write(much))

  it.effect("ends a connection whose peer does not read, 30 seconds by default after it has stopped", () =>
    Effect.gen(function*() {
      const failures: Array<string> = []
      const server = yield* start((connection) =>
        Effect.tapError(flood(connection), (error) => Effect.sync(() => failures.push(error.message)))
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("29999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(failures.length, 1)
      assert.match(failures[0]!, /the peer took nothing of the output for `writeTimeout`/)
      assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
      const error = yield* Effect.flip(Effect.forever(client.pull))
      assert.strictEqual(error._tag === "ConnectionError" && error.reason._tag, "Reset")
    }))

  it.effect("does not end one whose peer reads slowly", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Effect.forEach([1, 2, 3, 4], () => connection.write(much)), {
        writeTimeout: "10 seconds"
      })
      const client = yield* MemoryTransport.connect(server.address)
      for (let i = 0; i < 4; i++) {
        // Twice that, for what the client has read ahead.
        yield* TestClock.adjust("4 seconds")
        yield* client.readExactly(100_000, { maxLength: 100_000 })
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1 })
    }))

  it.effect("takes part of a large write for progress, and the end of that is seen a quarter late at most", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => connection.writeAll(Array.from({ length: 10 }, () => much)), {
        writeTimeout: "8 seconds"
      })
      const client = yield* MemoryTransport.connect(server.address)
      for (let i = 0; i < 5; i++) {
        yield* TestClock.adjust("3 seconds")
        yield* client.readExactly(100_000, { maxLength: 100_000 })
      }
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("7999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
    }))

  it.effect("fails all that comes after, and every writer that waits, at the same time", () =>
    Effect.gen(function*() {
      const deadlines: Array<string> = []
      const attempt = (effect: Effect.Effect<unknown, any>) =>
        Effect.catch(Effect.asVoid(effect), (error) => Effect.sync(() => void deadlines.push(error.reason.deadline)))
      const server = yield* start(
        (connection) =>
          Effect.gen(function*() {
            yield* Effect.all([attempt(connection.write(much)), attempt(connection.write(much))], {
              concurrency: "unbounded"
            })
            yield* attempt(connection.write("more"))
            yield* attempt(connection.readLine())
          }),
        { writeTimeout: "10 seconds" }
      )
      yield* MemoryTransport.connect(server.address)
      yield* settle
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(deadlines, ["writeTimeout", "writeTimeout", "writeTimeout", "writeTimeout"])
      assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
    }))

  it.effect("holds beside deadlines that are looked at more and less often", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (connection) => Effect.andThen(Effect.sleep("7 seconds"), flood(connection)),
        { writeTimeout: "10 seconds", idleTimeout: "1 hour", readTimeout: "3 seconds", requestTimeout: "2 hours" }
      )
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("16999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
    }))

  it.effect("need not be", () =>
    Effect.gen(function*() {
      const server = yield* start(flood, { writeTimeout: Duration.infinity, shutdown: { grace: 0 } })
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("10 days")
      assert.strictEqual((yield* server.stats).open, 1)
    }))
})

describe("requestTimeout", () => {
  it.effect("interrupts a handler that runs for longer; what it has written is sent, and nothing is logged", () =>
    Effect.gen(function*() {
      const lines: Array<unknown> = []
      const server = yield* start(
        (connection) => Effect.onInterrupt(Effect.never, () => Effect.ignore(connection.write("too long\n"))),
        { requestTimeout: "10 seconds" }
      ).pipe(Effect.provide([Logger.layer([Logger.make(({ message }) => lines.push(message))]), Logging.quiet]))
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* client.readLine(), "too long")
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closedBy(server), { RequestTimeout: 1 })
      assert.deepStrictEqual(lines, [])
    }))

  it.effect("counts from when the handler begins: a wait for the strategy is no part of it", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(
        (connection) => Effect.sleep(connection.id === 1 ? "8 seconds" : "11 seconds"),
        {
          requestTimeout: "10 seconds"
        }
      )
      yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 2)
      yield* TestClock.adjust("17999 millis")
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1 })
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1, RequestTimeout: 1 })
    }))

  it.effect("lets a place go to the next in line", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(
        (connection) => connection.id === 1 ? Effect.never : connection.write("next\n"),
        {
          requestTimeout: "10 seconds"
        }
      )
      yield* MemoryTransport.connect(server.address)
      const next = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* next.readLine(), "next")
    }))

  it.effect("holds for datagrams", () =>
    Effect.gen(function*() {
      const reasons: Array<unknown> = []
      const server = yield* Effect.map(
        Layer.build(
          MemoryTransport.datagram().pipe(
            Dispatch.fiberPerRequest(),
            Server.serveDatagram(
              ({ payload, reply }) => payload.length === 1 ? Effect.never : reply(payload),
              { requestTimeout: "10 seconds", onError: (_, __, reason) => Effect.sync(() => reasons.push(reason)) }
            )
          )
        ),
        Context.get(Server.Server)
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "x")
      yield* client.send(server.address, "yy")
      assert.strictEqual((yield* client.receive).payload.length, 2)
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1 })
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1, RequestTimeout: 1 })
      assert.deepStrictEqual(reasons, [])
    }))

  it.effect("does not touch a handler that has ended, whose finalizers are done", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.sleep("10 seconds"), { requestTimeout: "10001 millis" })
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1 })
    }))
})

describe("deadlines", () => {
  const options = ["idleTimeout", "readTimeout", "writeTimeout", "requestTimeout"] as const
  for (const option of options) {
    it.effect(`\`${option}\` is a duration, or the server does not start`, () =>
      Effect.gen(function*() {
        // 0 is none that anybody could keep.
        for (const value of [Number.NaN, -1, 0, "0 seconds"] as const) {
          const wrong = MemoryTransport.stream().pipe(
            Dispatch.serial(),
            Server.serveStream(() => Effect.void, { [option]: value })
          )
          const { reason } = yield* Effect.flip(Layer.build(wrong))
          assert.strictEqual(reason._tag === "InvalidOption" && reason.option, option)
        }
      }))
  }

  it.effect("leave nothing asleep behind a connection, however many there were", () =>
    Effect.gen(function*() {
      const { clock, sleeping } = yield* countingClock
      const server = yield* start((connection) => connection.readLine(), {
        idleTimeout: "1 minute",
        readTimeout: "1 minute",
        writeTimeout: "1 minute",
        requestTimeout: "1 minute",
        maxAge: { after: "1 hour" }
      }).pipe(Effect.provideService(Clock.Clock, clock))
      for (let i = 0; i < 10; i++) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write("be")
        yield* settle
        assert.strictEqual(sleeping(), 1, "one timer for all of them")
        yield* client.write("gun\n")
        yield* server.awaitIdle
        yield* settle
        assert.strictEqual(sleeping(), 0)
      }
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 10 })
    }))

  it.effect("that are not set put nothing to sleep, and the default one only while a write waits", () =>
    Effect.gen(function*() {
      const { clock, sleeping } = yield* countingClock
      const server = yield* start((connection) =>
        Effect.forever(Effect.andThen(connection.readLine(), connection.write(much)))
      ).pipe(
        Effect.provideService(Clock.Clock, clock)
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.strictEqual(sleeping(), 0)
      yield* client.write("x\n")
      yield* settle
      assert.strictEqual(sleeping(), 1)
      yield* client.readExactly(much.length, { maxLength: much.length })
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(sleeping(), 0)
      assert.strictEqual((yield* server.stats).open, 1)
    }))

  it.effect("do not wait for a farewell that nobody reads", () =>
    Effect.gen(function*() {
      const farewell = yield* Deferred.make<void>()
      const server = yield* start((connection) => connection.readLine(), {
        idleTimeout: "10 seconds",
        requestTimeout: "20 seconds",
        onTimeout: () => Effect.andThen(Deferred.succeed(farewell, undefined), Effect.never)
      })
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("10 seconds")
      yield* Deferred.await(farewell)
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* closedBy(server), { RequestTimeout: 1 })
    }))
})
