/** The server of sums: JSON by lines, with clients that nobody here wrote, and with one made of the same framing. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, MemoryTransport, Server, Transport } from "@socketserver/core"
import { Effect, Stream } from "effect"
import { framing, serveSums, Sums } from "../src/sums.ts"
import { targetOf, withEachClient } from "./utils.ts"

describe("sums", () => {
  withEachClient("answers each document, and what is none, and says goodbye", (open) =>
    Effect.gen(function*() {
      const client = yield* open(targetOf((yield* Server.Server).address))
      yield* client.send("{\"add\":[1,2]}\n{\"add\":[0.5]}\r\n")
      assert.strictEqual(yield* client.line, "{\"sum\":3,\"total\":3}")
      assert.strictEqual(yield* client.line, "{\"sum\":0.5,\"total\":3.5}")
      yield* client.send("nonsense\n{\"add\":[\"1\"]}\n{\"add\":[]}\n")
      assert.strictEqual(yield* client.line, "{\"error\":\"not a request\"}")
      assert.strictEqual(yield* client.line, "{\"error\":\"not a request\"}")
      assert.strictEqual(yield* client.line, "{\"sum\":0,\"total\":3.5}")
      yield* client.send("{\"quit\":true}\n{\"add\":[1]}\n")
      yield* client.finish
      assert.deepStrictEqual(yield* client.rest, ["{\"bye\":3.5}"])
    }).pipe(Effect.provide(Sums(0))))

  withEachClient("tells what is too long, and closes", (open) =>
    Effect.gen(function*() {
      const client = yield* open(targetOf((yield* Server.Server).address))
      yield* client.send(`{"add":[${"1,".repeat(3_000)}1]}\n`)
      yield* client.finish
      assert.match((yield* client.rest).join(), /^\{"error":".*more than 4096 bytes/)
    }).pipe(Effect.provide(Sums(0))))

  it.effect("has clients made of the same framing", () =>
    Effect.gen(function*() {
      const server = yield* Server.Server
      const client = yield* MemoryTransport.connect(server.address)
      const side = Framing.swap(framing)
      yield* Stream.make({ add: [1, 2] }, { quit: true as const }).pipe(Framing.encode(side), Stream.run(client.sink))
      assert.deepStrictEqual(yield* client.bytes.pipe(Framing.decode(side), Stream.runCollect), [
        { sum: 3, total: 3 },
        { bye: 3 }
      ])
    }).pipe(Effect.provide(
      serveSums(MemoryTransport.stream().pipe(Transport.framed(framing), Dispatch.fiberPerRequest()))
    )))
})
