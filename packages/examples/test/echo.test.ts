/** The echo server, over real sockets. */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { Cause, Effect } from "effect"
import { Echo } from "../src/echo.ts"
import { connect, targetOf, withEachClient } from "./utils.ts"

describe("echo", () => {
  withEachClient("sends back what it gets, and closes when the client has finished", (open) =>
    Effect.gen(function*() {
      const client = yield* open(targetOf((yield* Server.Server).address))
      yield* client.send("hello\n")
      assert.strictEqual(yield* client.line, "hello")
      yield* client.send("and goodbye\n")
      yield* client.finish
      assert.strictEqual(yield* client.line, "and goodbye")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.line)))
    }).pipe(Effect.provide(Echo(0))))

  it.live("keeps clients apart", () =>
    Effect.gen(function*() {
      const target = targetOf((yield* Server.Server).address)
      const one = yield* connect(target)
      const other = yield* connect(target)
      yield* one.send("one\n")
      yield* other.send("other\n")
      assert.deepStrictEqual([yield* one.line, yield* other.line], ["one", "other"])
    }).pipe(Effect.provide(Echo(0))))
})
