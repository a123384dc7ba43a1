/** The time server: what it says is what the clock says, which in a test stands still. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { DateTime, Effect, Option } from "effect"
import { TestClock } from "effect/testing"
import { Time, time } from "../src/time.ts"
import { targetOf, withEachClient } from "./utils.ts"

describe("time", () => {
  withEachClient("tells the time, and closes", (open) =>
    Effect.gen(function*() {
      const before = yield* DateTime.now
      const client = yield* open(targetOf((yield* Server.Server).address))
      // As their users do with Ctrl-D: some clients stay until they have nothing more to send.
      yield* client.finish
      const [line, ...more] = yield* client.rest
      const told = DateTime.makeUnsafe(line!)
      assert.deepStrictEqual(more, [])
      assert.isTrue(DateTime.between(told, { minimum: before, maximum: yield* DateTime.now }))
    }).pipe(Effect.provide(Time(0))))

  it.effect("takes the time from Effect's clock", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Option.getOrThrow(DateTime.make("2000-01-01T12:00:00Z")).epochMilliseconds)
      const client = yield* MemoryTransport.connect((yield* Server.Server).address)
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "2000-01-01T12:00:00.000Z\n")
    }).pipe(Effect.provide(MemoryTransport.stream().pipe(Dispatch.serial(), Server.serveStream(time)))))
})
