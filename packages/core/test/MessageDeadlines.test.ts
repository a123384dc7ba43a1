/** The deadlines of messages: for the rest of a frame, and for a handler. */
import { assert, describe, it } from "@effect/vitest"
import {
  CloseReason,
  Dispatch,
  Framing,
  Logging,
  MemoryTransport,
  Server,
  type ServerEvent,
  Transport
} from "@socketserver/core"
import { Cause, Context, Effect, Layer, type Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { settle } from "./utils.ts"

const startWith = <In, Out>(framing: Framing.Framing<In, Out>) =>
<E, EStream = never>(
  handler: Server.MessageHandler<In, Out, E, Scope.Scope, EStream>,
  options?: Server.MessageOptions<In, Out, any>
) =>
  MemoryTransport.stream().pipe(
    Transport.framed(framing),
    Dispatch.fiberPerRequest(),
    Server.serveMessage(handler, { shutdown: { grace: 0 }, ...options }),
    Layer.build,
    Effect.map(Context.get(Server.Server))
  )

const start = startWith(Framing.lines())

const connect = (server: Server.Server["Service"]) => MemoryTransport.connect(server.address)
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)
const closedBy = (server: Server.Server["Service"]) =>
  Effect.map(Effect.andThen(settle, server.stats), ({ closed }) => closed)

describe("readTimeout", () => {
  const framings = {
    "a line": startWith(Framing.lines()),
    "what a length has announced": startWith(Framing.text(Framing.lengthPrefixed({ bytes: 4 }))),
    "what a delimiter ends": startWith(Framing.text(Framing.delimiter("\r\n\r\n"))),
    // Its decoder takes the first byte away, and nothing is left in the buffer.
    "a frame that is half taken": startWith(Framing.custom<string, string>({
      name: "pair",
      maxLength: 100,
      decoder: () => {
        let first: number | undefined
        return {
          read: (input) => {
            if (first === undefined) {
              if (input.length === 0) return undefined
              first = input.take(1)[0]!
            }
            if (input.length < 50) return undefined
            const message = String(first) + input.takeText(50)
            first = undefined
            return message
          }
        }
      },
      encode: (reply) => reply
    }))
  }
  for (const [what, start] of Object.entries(framings)) {
    it.effect(`ends a client that sends ${what} a byte a second`, () =>
      Effect.gen(function*() {
        const server = yield* start(({ payload }) => Effect.succeed(payload), {
          readTimeout: "10 seconds",
          idleTimeout: "1 hour"
        })
        const client = yield* connect(server)
        yield* TestClock.adjust("30 minutes")
        for (let second = 0; second < 10; second++) {
          yield* client.write(new Uint8Array([second < 3 ? 0 : 40]))
          yield* TestClock.adjust(second < 9 ? "1 second" : "999 millis")
        }
        assert.deepStrictEqual(yield* closedBy(server), {})
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
      }))
  }

  it.effect("is about one frame: a client that ends each in time stays, whatever lies behind it", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.succeed(payload), { readTimeout: "10 seconds" })
      const client = yield* connect(server)
      for (let i = 0; i < 20; i++) {
        yield* client.write(i === 0 ? "begun" : "-ended\nbegun")
        yield* TestClock.adjust("9 seconds")
      }
      assert.deepStrictEqual(yield* closedBy(server), {})
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
      assert.strictEqual(text(yield* client.readAll()), "begun-ended\n".repeat(19))
    }))

  it.effect("lets a client be that has begun no frame, and the handlers of whole ones run", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.as(Effect.sleep("1 hour"), payload), {
        readTimeout: "10 seconds"
      })
      const client = yield* connect(server)
      yield* TestClock.adjust("1 hour")
      yield* client.write("whole\n")
      yield* TestClock.adjust("30 minutes")
      assert.deepStrictEqual(yield* closedBy(server), {})
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* client.readLine(), "whole")
      assert.deepStrictEqual(yield* closedBy(server), {})
    }))

  it.effect("holds behind messages under way, whose replies leave first", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.as(Effect.sleep("30 seconds"), payload), {
        readTimeout: "10 seconds"
      })
      const client = yield* connect(server)
      yield* client.write("whole\nhalf")
      yield* TestClock.adjust("29 seconds")
      assert.deepStrictEqual(yield* closedBy(server), {})
      yield* client.write(" too late\n")
      yield* TestClock.adjust("1 second")
      assert.strictEqual(text(yield* client.readAll()), "whole\n")
      assert.deepStrictEqual(yield* closedBy(server), { ReadTimeout: 1 })
    }))

  it.effect("does not count while the connection is not read because of messages under way", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.as(Effect.sleep("30 seconds"), payload), {
        readTimeout: "10 seconds",
        maxPipelined: 1
      })
      const client = yield* connect(server)
      yield* client.write("whole\nhalf")
      yield* TestClock.adjust("39 seconds")
      assert.deepStrictEqual(yield* closedBy(server), {})
      yield* client.write("\n")
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* client.readLine(), "whole")
      assert.strictEqual(yield* client.readLine(), "half")
    }))
})

describe("requestTimeout", () => {
  const slow = ({ payload }: { readonly payload: string }) =>
    payload === "slow" ? Effect.as(Effect.sleep("1 hour"), payload) : Effect.succeed(payload)

  it.effect("interrupts a handler that runs for longer; the connection closes behind the replies before", () =>
    Effect.gen(function*() {
      const levels: Array<string> = []
      let interrupted = 0
      const server = yield* start(
        (message) => Effect.onInterrupt(slow(message), () => Effect.sync(() => interrupted++)),
        { requestTimeout: "10 seconds" }
      ).pipe(
        Effect.provide(Logging.layer({
          debug: true,
          log: (event: ServerEvent.ServerEvent) =>
            Effect.sync(() => {
              if (event._tag === "Failed") levels.push(`${event.kind} ${event.id} ${event.reason._tag} ${event.level}`)
            })
        }))
      )
      const client = yield* connect(server)
      yield* client.write("one\nslow\nbehind\n")
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual([yield* closedBy(server), interrupted], [{}, 0])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([yield* closedBy(server), interrupted], [{ RequestTimeout: 1 }, 1])
      assert.strictEqual(text(yield* client.readAll()), "one\n")
      assert.deepStrictEqual(levels, ["message 2 RequestTimeout Debug"])
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))

  it.effect("is each message's own, and `onError` may answer for one that is over", () =>
    Effect.gen(function*() {
      const causes: Array<boolean> = []
      const server = yield* start(
        ({ payload }) => Effect.as(Effect.sleep(Number(payload)), payload),
        {
          requestTimeout: "10 seconds",
          onError: (cause, { payload }, reason) => {
            causes.push(Cause.hasInterruptsOnly(cause))
            return Effect.succeed(`${payload} ${reason._tag}`)
          }
        }
      )
      const client = yield* connect(server)
      for (const millis of ["9000", "15000", "9000", "20000", "9999"]) {
        yield* client.write(`${millis}\n`)
        yield* TestClock.adjust("4 seconds")
      }
      yield* TestClock.adjust("10 seconds")
      yield* client.end
      assert.strictEqual(
        text(yield* client.readAll()),
        "9000\n15000 RequestTimeout\n9000\n20000 RequestTimeout\n9999\n"
      )
      assert.deepStrictEqual(causes, [true, true])
      assert.deepStrictEqual(yield* closedBy(server), { Completed: 1 })
    }))

  it.effect("is for the stream that a handler returns, and its finalizers, too", () =>
    Effect.gen(function*() {
      const server = yield* start(
        ({ payload }) =>
          payload === "stream"
            ? Effect.succeed(Stream.fromEffectRepeat(Effect.as(Effect.sleep("4 seconds"), "tick")))
            : Effect.as(Effect.addFinalizer(() => Effect.sleep("11 seconds")), "too late"),
        { requestTimeout: "10 seconds" }
      )
      const ticking = yield* connect(server)
      yield* ticking.write("stream\n")
      const finalizing = yield* connect(server)
      yield* finalizing.write("finalizer\n")
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* closedBy(server), { RequestTimeout: 1 })
      assert.strictEqual(text(yield* ticking.readAll()), "tick\ntick\n")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* closedBy(server), { RequestTimeout: 2 })
      assert.strictEqual(text(yield* finalizing.readAll()), "")
    }))

  it.effect("counts from when a handler begins: a wait for the strategy is no part of it", () =>
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.serial(),
        Server.serveMessage(({ payload }) => Effect.as(Effect.sleep(Number(payload)), payload), {
          requestTimeout: "10 seconds",
          shutdown: { grace: 0 }
        }),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const client = yield* connect(server)
      yield* client.write("9000\n9000\n")
      yield* TestClock.adjust("18 seconds")
      assert.strictEqual(yield* client.readLine(), "9000")
      assert.strictEqual(yield* client.readLine(), "9000")
    }))

  it.effect("holds for packets, and for the values of a stream", () =>
    Effect.gen(function*() {
      const options = { requestTimeout: "10 seconds" } as const
      const packets = yield* MemoryTransport.datagram().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(slow, options),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(packets.address, "slow")
      const values = yield* Transport.fromStream(Stream.make("slow", "fast")).pipe(
        Dispatch.fiberPerRequest(),
        Server.serveMessage((message) => Effect.asVoid(slow(message)), options),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* closedBy(packets), { RequestTimeout: 1 })
      assert.deepStrictEqual(yield* closedBy(values), { RequestTimeout: 1, Completed: 1 })
    }))
})

describe("reasons that a client can cause at will", () => {
  it("are logged at Debug, those of deadlines too", () => {
    const { IdleTimeout, ReadTimeout, RequestTimeout, WorkerTimeout, WriteTimeout, logLevel } = CloseReason
    for (const reason of [IdleTimeout, ReadTimeout, WriteTimeout, RequestTimeout, WorkerTimeout]) {
      assert.strictEqual(logLevel(reason), "Debug", reason._tag)
    }
  })
})
