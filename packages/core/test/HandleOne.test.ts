/** One request at a time, without a server: Python's `handle_request`. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, CloseReason, MemoryTransport, Server } from "@socketserver/core"
import { Cause, Effect, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, settle } from "./utils.ts"

const answer: Server.StreamHandler<any, never> = (c) => Effect.flatMap(c.readLine(), (line) => c.write(`${line}!\n`))

const provided = Effect.provide(MemoryTransport.stream())

describe("handleOne", () => {
  it.effect("leaves no client hanging whose server does not start", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const client = yield* MemoryTransport.connect(listener.address)
      yield* Effect.flip(Server.handleOne(listener, answer, { idleTimeout: -1 }))
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
    }).pipe(provided))

  it.effect("handles exactly one client and leaves the next for the next call", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const first = yield* MemoryTransport.connect(listener.address)
      const second = yield* MemoryTransport.connect(listener.address)
      yield* first.write("one\n")
      yield* second.write("two\n")

      assert.deepStrictEqual(yield* Server.handleOne(listener, answer), Option.some({ _tag: "Completed" }))
      assert.strictEqual(yield* first.readLine(), "one!")
      assert.isTrue(Cause.isDone(yield* Effect.flip(first.pull)))
      const waiting = yield* forkSettled(second.readLine())
      assert.isUndefined(waiting.pollUnsafe())

      yield* Server.handleOne(listener, answer)
      assert.strictEqual(yield* Fiber.join(waiting), "two!")
    }).pipe(provided))

  it.effect("gives up at its timeout, runs `onTimeout`, and can be called again", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const log: Array<string> = []
      const handling = yield* forkSettled(Server.handleOne(listener, answer, {
        timeout: "10 seconds",
        onTimeout: Effect.sync(() => log.push("handle_timeout"))
      }))
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(handling.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Fiber.join(handling), Option.none())
      assert.deepStrictEqual(log, ["handle_timeout"])

      const client = yield* MemoryTransport.connect(listener.address)
      yield* client.write("x\n")
      assert.isTrue(Option.isSome(yield* Server.handleOne(listener, answer, { timeout: "10 seconds" })))
    }).pipe(provided))

  it.effect("does not hold the timeout against the handler", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      yield* MemoryTransport.connect(listener.address)
      const handling = yield* forkSettled(
        Server.handleOne(listener, () => Effect.sleep("1 hour"), { timeout: "1 second" })
      )
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(yield* Fiber.join(handling), Option.some({ _tag: "Completed" }))
    }).pipe(provided))

  it.effect("reports a failing handler to `onError` and says how the request ended", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      yield* MemoryTransport.connect(listener.address)
      const seen: Array<string> = []
      const reason = yield* Server.handleOne(listener, () => Effect.fail("no"), {
        onError: (cause) => Effect.sync(() => seen.push(String(Cause.squash(cause))))
      })
      assert.strictEqual(Option.getOrThrow(reason)._tag, "HandlerFailed")
      assert.deepStrictEqual(seen, ["no"])
    }).pipe(provided))

  it.effect("takes a refused client for the one", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const client = yield* MemoryTransport.connect(listener.address)
      assert.deepStrictEqual(
        yield* Server.handleOne(listener, answer),
        Option.some(CloseReason.Refused("verify"))
      )
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
    }).pipe(Effect.provide(MemoryTransport.stream().pipe(Admission.verify(() => Effect.succeed(false))))))

  it.effect("interrupted, it ends its client with it", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const client = yield* MemoryTransport.connect(listener.address)
      const handling = yield* forkSettled(
        Server.handleOne(listener, () => Effect.never, { shutdown: { grace: "1 second" } })
      )
      const interrupting = yield* forkSettled(Fiber.interrupt(handling))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(interrupting)
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
    }).pipe(provided))

  it.effect("closes the clients that nobody took, with the listener", () =>
    Effect.gen(function*() {
      const client = yield* Effect.scoped(
        Effect.gen(function*() {
          const listener = yield* Server.listen
          return { connection: yield* MemoryTransport.connect(listener.address), listener }
        }).pipe(Effect.map(({ connection }) => connection))
      )
      yield* settle
      assert.isTrue((yield* Effect.exit(client.pull))._tag === "Failure")
    }).pipe(provided))

  it.effect("holds 128 clients, and closes the next", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const clients = yield* Effect.replicateEffect(MemoryTransport.connect(listener.address), 129)
      assert.isTrue(Cause.isDone(yield* Effect.flip(clients[128]!.pull)))
      yield* clients[127]!.write("x\n")
      const reading = yield* forkSettled(clients[127]!.pull)
      assert.isUndefined(reading.pollUnsafe())
      yield* Fiber.interrupt(reading)
    }).pipe(provided))
})
