/** A game played in memory, under a clock that the test owns: nothing here waits, not even for the minute that passes. */
import { assert, describe, it } from "@effect/vitest"
import { MemoryTransport, Server } from "@socketserver/core"
import { Cause, Effect, Ref } from "effect"
import { TestClock, TestConsole } from "effect/testing"
import { Game, play } from "../src/inMemory.ts"

const NumberIs42 = Game(Effect.succeed(42), MemoryTransport.stream())

const join = Effect.gen(function*() {
  const client = yield* MemoryTransport.connect((yield* Server.Server).address)
  assert.strictEqual(yield* client.readLine(), "a number from 1 to 100?")
  return client
})

describe("guess the number", () => {
  it.effect("says higher, lower, and yes; then the game is over", () =>
    Effect.gen(function*() {
      const client = yield* join
      const say = (guess: string) => Effect.andThen(client.write(`${guess}\n`), client.readLine())
      assert.strictEqual(yield* say("50"), "lower")
      assert.strictEqual(yield* say("25"), "higher")
      assert.strictEqual(yield* say("forty-two"), "a number, please")
      assert.strictEqual(yield* say("42"), "yes, with 4 tries")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.readLine())))
    }).pipe(Effect.provide(NumberIs42)))

  it.effect("asks each player about a number of its own", () =>
    Effect.gen(function*() {
      const next = yield* Ref.make(1)
      yield* Effect.gen(function*() {
        const one = yield* join
        const two = yield* join
        yield* one.write("1\n")
        yield* two.write("1\n")
        assert.deepStrictEqual([yield* one.readLine(), yield* two.readLine()], ["yes, with 1 tries", "higher"])
      }).pipe(Effect.scoped, Effect.provide(Game(Ref.getAndUpdate(next, (n) => n + 1), MemoryTransport.stream())))
    }))

  it.effect("ends for a player who thinks for longer than a minute, not a second earlier", () =>
    Effect.gen(function*() {
      const client = yield* join
      yield* TestClock.adjust("59 seconds")
      yield* client.write("50\n")
      assert.strictEqual(yield* client.readLine(), "lower")
      yield* TestClock.adjust("59 seconds")
      const server = yield* Server.Server
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* client.readLine(), "too slow, goodbye")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.readLine())))
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
    }).pipe(Effect.provide(NumberIs42)))

  it.effect("is won by halving the range", () =>
    Effect.gen(function*() {
      const client = yield* MemoryTransport.connect((yield* Server.Server).address)
      yield* play(client)
      const transcript = yield* TestConsole.logLines
      assert.strictEqual(transcript.at(-1), "server: yes, with 7 tries")
    }).pipe(Effect.provide(NumberIs42)))
})
