/** What clients of messages can do to a server that they do not read from, ask too much of, or leave. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, Logging, MemoryTransport, type Message, Server, Transport } from "@socketserver/core"
import { Context, Effect, Exit, Fiber, Layer, type Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, settle } from "./utils.ts"

const start = <E, EStream = never>(
  handler: Server.MessageHandler<string, string, E, Scope.Scope, EStream>,
  options?: Server.MessageOptions<string, string, any>,
  transport?: Parameters<typeof MemoryTransport.stream>[0]
) =>
  MemoryTransport.stream(transport).pipe(
    Transport.framed(Framing.lines()),
    Dispatch.fiberPerRequest(),
    Server.serveMessage(handler, { shutdown: { grace: 0 }, ...options }),
    Layer.provide(Logging.off),
    Layer.build,
    Effect.map(Context.get(Server.Server))
  )

const closedBy = (server: Server.Server["Service"]) => Effect.map(server.stats, ({ closed }) => closed)

describe("a client that pipelines 100,000 requests and never reads", () => {
  const reply = "x".repeat(1_000)
  const handlers: Record<string, () => Effect.Effect<string | Stream.Stream<string>>> = {
    "are answered at once": () => Effect.succeed(reply),
    "wait": () => Effect.as(Effect.yieldNow, reply),
    "wait for longer": () => Effect.as(Effect.sleep("1 millis"), reply),
    "have a stream for an answer": () => Effect.succeed(Stream.make(reply, reply))
  }
  for (const order of ["ordered", "unordered"] as const) {
    for (const [what, handler] of Object.entries(handlers)) {
      it.effect(`has few of them handled, and is cut by \`writeTimeout\`: they ${what}, ${order}`, () =>
        Effect.gen(function*() {
          let handled = 0
          const server = yield* start(() => {
            handled++
            return handler()
          }, { order })
          const client = yield* MemoryTransport.connect(server.address)
          const writing = yield* forkSettled(Effect.exit(client.write("ask\n".repeat(100_000))))
          for (let i = 0; i < 290; i++) yield* TestClock.adjust("100 millis")
          assert.isAtMost(handled, 200)
          const { bytesWritten, inFlight, open } = yield* server.stats
          assert.isAtMost(bytesWritten, 300_000)
          assert.strictEqual(open, 1)
          assert.isAtMost(inFlight, 64)
          for (let i = 0; i < 90; i++) yield* TestClock.adjust("100 millis")
          assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
          const after = yield* server.stats
          assert.deepStrictEqual([after.inFlight, after.queued, after.open], [0, 0, 0])
          yield* Fiber.join(writing)
        }))
    }
  }

  for (const [what, handler] of Object.entries(handlers)) {
    it.effect(`one by one has few of them handled, and is cut by \`writeTimeout\`: they ${what}`, () =>
      Effect.gen(function*() {
        let handled = 0
        const server = yield* start(() => {
          handled++
          return handler()
        })
        const client = yield* MemoryTransport.connect(server.address)
        for (let i = 0; i < 400; i++) {
          yield* Effect.forkChild(Effect.exit(client.write("ask\n")), { startImmediately: true })
          yield* TestClock.adjust("10 millis")
        }
        assert.isAtMost(handled, 200)
        yield* TestClock.adjust("40 seconds")
        assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
        assert.strictEqual((yield* server.stats).inFlight, 0)
      }))
  }
})

describe("a client that never reads", () => {
  const ways = {
    "the beginning of another": "a\npart",
    "more messages than may be under way": "a\nb\nnever\nnever\nc\n"
  }
  for (const [what, input] of Object.entries(ways)) {
    it.effect(`is cut by \`writeTimeout\` where behind its request there is ${what}, too`, () =>
      Effect.gen(function*() {
        const server = yield* start(
          ({ payload }) => payload === "never" ? Effect.never : Effect.succeed("x".repeat(5_000)),
          { maxPipelined: 2 },
          { highWaterMark: 8_192 }
        )
        const client = yield* MemoryTransport.connect(server.address)
        // What it is answered first is below the mark.
        yield* client.write("a\n")
        yield* settle
        yield* client.write(input)
        yield* settle
        yield* TestClock.adjust("29 seconds")
        assert.deepStrictEqual(yield* closedBy(server), {})
        yield* TestClock.adjust("9 seconds")
        yield* settle
        assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
      }))
  }

  it.effect("in time goes on: what it has taken is no debt", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.succeed("x".repeat(5_000)), {}, { highWaterMark: 8_192 })
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\na\npart")
      yield* settle
      yield* TestClock.adjust("29 seconds")
      yield* client.readLine()
      yield* client.readLine()
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(yield* closedBy(server), {})
      yield* client.write("\n")
      yield* client.readLine()
    }))
})

describe("unordered replies", () => {
  it.effect("of fast handlers do not wait for slow ones, at the bound of the pipeline neither", () =>
    Effect.gen(function*() {
      const server = yield* start(
        ({ payload }) =>
          payload.startsWith("slow") ? Effect.as(Effect.sleep("1 hour"), payload) : Effect.succeed(payload),
        { order: "unordered", maxPipelined: 3 }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("slow1\nslow2\n")
      yield* client.write(Array.from({ length: 5_000 }, (_, i) => `fast${i}\n`).join(""))
      for (let i = 0; i < 5_000; i++) assert.strictEqual(yield* client.readLine(), `fast${i}`)
      // Three slow ones are all that there may be: what comes behind them waits.
      yield* client.write("slow3\nlast\n")
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual((yield* server.stats).inFlight, 3)
      yield* TestClock.adjust("1 minute")
      const replies = [yield* client.readLine(), yield* client.readLine(), yield* client.readLine()]
      assert.deepStrictEqual(replies.toSorted(), ["last", "slow1", "slow2"])
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* client.readLine(), "slow3")
    }))
})

describe("a reply that never ends", () => {
  const ways = {
    reset: (client: { readonly reset: Effect.Effect<void> }) => client.reset,
    "stops reading": () => TestClock.adjust("40 seconds")
  }
  for (const [way, leave] of Object.entries(ways)) {
    for (const every of ["1 second", "1 millis"] as const) {
      it.effect(`is interrupted when its client leaves: ${way}, a line ${every === "1 second" ? "a second" : "a millisecond"}`, () =>
        Effect.gen(function*() {
          let ended = 0
          const server = yield* start(() =>
            Effect.as(
              Effect.addFinalizer(() => Effect.sync(() => ended++)),
              Stream.fromEffectRepeat(Effect.as(Effect.sleep(every), "x".repeat(10_000)))
            )
          )
          const client = yield* MemoryTransport.connect(server.address)
          yield* client.write("one\ntwo\n")
          yield* TestClock.adjust(every)
          yield* client.readLine()
          assert.strictEqual((yield* server.stats).inFlight, 2)
          yield* leave(client)
          for (let i = 0; i < 10; i++) yield* TestClock.adjust("1 second")
          const { inFlight, open } = yield* server.stats
          assert.deepStrictEqual([inFlight, open, ended], [0, 0, 2])
        }))
    }
  }

  it.effect("is interrupted where its client does not read what others have sent to it, at the bound of the pipeline too", () =>
    Effect.gen(function*() {
      let ended = 0
      const senders: Array<Message.Sender<string>> = []
      const server = yield* start(({ sender }) => {
        senders.push(sender)
        return Effect.onInterrupt(Effect.never, () => Effect.sync(() => ended++))
      }, { maxPipelined: 2 })
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\nb\n")
      yield* settle
      const sending = yield* forkSettled(Effect.exit(senders[0]!.send("x".repeat(200_000))))
      yield* TestClock.adjust("38 seconds")
      yield* settle
      assert.deepStrictEqual(yield* closedBy(server), { WriteTimeout: 1 })
      assert.deepStrictEqual([ended, (yield* server.stats).inFlight], [2, 0])
      assert.isTrue(Exit.isFailure(yield* Fiber.join(sending)))
    }))

  it.effect("is interrupted with what else runs for a client that does not read, whatever that waits for", () =>
    Effect.gen(function*() {
      let ended = 0
      const server = yield* start(
        ({ payload }) =>
          payload === "much"
            ? Effect.succeed("x".repeat(200_000))
            : Effect.onInterrupt(Effect.never, () => Effect.sync(() => ended++)),
        { order: "unordered" }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("wait\nwait\nmuch\n")
      yield* TestClock.adjust("40 seconds")
      const { closed, inFlight, open } = yield* server.stats
      assert.deepStrictEqual([closed, inFlight, open, ended], [{ WriteTimeout: 1 }, 0, 0, 2])
    }))

  it.effect("is interrupted at once with `interruptOnDisconnect`, while it waits for something else", () =>
    Effect.gen(function*() {
      let ended = 0
      const server = yield* start(
        () => Effect.succeed(Stream.ensuring(Stream.never, Effect.sync(() => ended++))),
        { interruptOnDisconnect: "reset" }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("one\ntwo\n")
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* server.stats).inFlight, 2)
      yield* client.reset
      yield* TestClock.adjust(0)
      const { inFlight, open } = yield* server.stats
      assert.deepStrictEqual([inFlight, open, ended], [0, 0, 2])
    }))
})
