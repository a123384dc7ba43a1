/** The upper-case server: one handler, over TCP, over a unix socket, and in memory. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server, type StreamTransport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Effect, Layer } from "effect"
import { join } from "node:path"
import { LineCount } from "../src/LineCount.ts"
import { Upper, upper } from "../src/upper.ts"
import { targetOf, temporaryDirectory, withEachClient } from "./utils.ts"

const on = (transport: Layer.Layer<StreamTransport.StreamTransport>) =>
  transport.pipe(Dispatch.serial(), Server.serveStream(upper), Layer.provideMerge(LineCount.layer))

describe("upper", () => {
  withEachClient("answers each line in upper case over TCP", (open) =>
    Effect.gen(function*() {
      const client = yield* open(targetOf((yield* Server.Server).address))
      yield* client.send("hello\nthere\n")
      yield* client.finish
      assert.deepStrictEqual(yield* client.rest, ["HELLO", "THERE"])
    }).pipe(Effect.provide(Layer.provide(Upper(0), LineCount.layer))))

  withEachClient("answers each line in upper case over a unix socket", (open) =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      yield* Effect.gen(function*() {
        const client = yield* open(targetOf((yield* Server.Server).address))
        yield* client.send("hello\nthere\n")
        yield* client.finish
        assert.deepStrictEqual(yield* client.rest, ["HELLO", "THERE"])
      }).pipe(Effect.scoped, Effect.provide(on(NodeTransport.unix({ path: join(directory, "upper.sock") }))))
    }))

  it.effect("counts the lines, and a last one without an end is one too", () =>
    Effect.gen(function*() {
      const client = yield* MemoryTransport.connect((yield* Server.Server).address)
      yield* client.write("one\ntwo\nthr")
      yield* client.end
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "ONE\nTWO\nTHR\n")
      assert.strictEqual(yield* LineCount.use((lines) => lines.total), 3)
    }).pipe(Effect.provide(on(MemoryTransport.stream()))))
})
