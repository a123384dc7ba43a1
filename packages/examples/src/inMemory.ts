/**
 * A whole server and its client in one process, without a port. The game is a handler like any other; on the memory
 * transport it can be played by a test in no time, timeouts included, because the test owns the clock.
 */
import { type Connection, Dispatch, MemoryTransport, Server, type StreamTransport } from "@socketserver/core"
import { Console, Effect, type Layer, Random, Stream } from "effect"
import { isMain, run } from "./run.ts"

/** Guess the number: the client has all the tries it wants, but not all the time. */
export const guess = (secret: Effect.Effect<number>) =>
  Effect.fnUntraced(function*(connection: Connection.Connection) {
    const number = yield* secret
    yield* connection.write("a number from 1 to 100?\n")
    for (let tries = 1;; tries++) {
      const guessed = Number(yield* connection.readLine({ maxLength: 16 }))
      if (guessed === number) return yield* connection.write(`yes, with ${tries} tries\n`)
      yield* connection.write(guessed < number ? "higher\n" : guessed > number ? "lower\n" : "a number, please\n")
    }
  })

/** The game on any transport. */
export const Game = (secret: Effect.Effect<number>, transport: Layer.Layer<StreamTransport.StreamTransport>) =>
  transport.pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(guess(secret), {
      idleTimeout: "1 minute",
      onTimeout: (connection) => connection.write("too slow, goodbye\n")
    })
  )

/** Plays one game, halving the range with every guess. */
export const play = Effect.fnUntraced(function*(client: Connection.Connection) {
  const range = { low: 1, high: 100 }
  yield* client.lines().pipe(
    Stream.runForEach((line) => {
      const middle = Math.floor((range.low + range.high) / 2)
      if (line === "higher") range.low = middle + 1
      if (line === "lower") range.high = middle - 1
      const next = Math.floor((range.low + range.high) / 2)
      return Effect.andThen(
        Console.log(`server: ${line}`),
        line.startsWith("yes") ? Effect.void : Effect.andThen(Console.log(`client: ${next}`), client.write(`${next}\n`))
      )
    })
  )
})

if (isMain(import.meta)) {
  Effect.gen(function*() {
    const server = yield* Server.Server
    yield* play(yield* MemoryTransport.connect(server.address))
  }).pipe(
    Effect.scoped,
    Effect.provide(Game(Random.nextIntBetween(1, 101), MemoryTransport.stream())),
    run
  )
}
