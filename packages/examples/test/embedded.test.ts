/** The socket server beside the HTTP server: one store behind both, and it outlives both. */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { Deferred, Effect, Exit, Fiber, Layer, Scope } from "effect"
import { HttpServer } from "effect/http"
import { TestConsole } from "effect/testing"
import { Embedded, Store } from "../src/embedded.ts"
import { connect, curlMissing, start, startExample, targetIn, targetOf, withEachClient } from "./utils.ts"

const ports = { http: 0, socket: 0 }
const Live = Embedded(ports).pipe(Layer.provide(Store.layer), Layer.provide(TestConsole.layer))

const url = (key: string) =>
  HttpServer.HttpServer.use(({ address }) => Effect.succeed(`${HttpServer.formatAddress(address)}/${key}`))

const request = (address: string, options?: RequestInit) =>
  Effect.promise(async () => {
    const response = await fetch(address, options)
    return { status: response.status, text: await response.text() }
  })

describe("a socket server embedded beside an HTTP server", () => {
  withEachClient("answers GET and SET, and says what is wrong with anything else", (open) =>
    Effect.gen(function*() {
      const client = yield* open(targetOf((yield* Server.Server).address))
      yield* client.send("GET color\nSET color dark blue\nGET color\nGET\nSET color\nDEL color\n")
      yield* client.finish
      const error = "ERROR expected GET key, or SET key value"
      assert.deepStrictEqual(yield* client.rest, ["NONE", "OK", "VALUE dark blue", error, error, error])
    }).pipe(Effect.provide(Live)))

  it.live("shares its data with the HTTP server, in both directions", () =>
    Effect.gen(function*() {
      const client = yield* connect(targetOf((yield* Server.Server).address))
      const color = yield* url("color")
      assert.strictEqual((yield* request(color)).status, 404)
      yield* client.send("SET color blue\n")
      assert.strictEqual(yield* client.line, "OK")
      assert.deepStrictEqual(yield* request(color), { status: 200, text: "blue" })
      assert.strictEqual((yield* request(color, { method: "PUT", body: "red" })).status, 204)
      yield* client.send("GET color\n")
      assert.strictEqual(yield* client.line, "VALUE red")
    }).pipe(Effect.provide(Live)))

  it.live.skipIf(curlMissing !== undefined)(
    `shares its data with curl${curlMissing === undefined ? "" : ` (${curlMissing})`}`,
    () =>
      Effect.gen(function*() {
        const client = yield* connect(targetOf((yield* Server.Server).address))
        const color = yield* url("color")
        const put = yield* start("curl", ["--silent", "--show-error", "--fail", "-X", "PUT", "--data", "green", color])
        assert.strictEqual(yield* put.exitCode, 0)
        yield* client.send("GET color\n")
        assert.strictEqual(yield* client.line, "VALUE green")
        const get = yield* start("curl", ["--silent", "--show-error", "--fail", color])
        assert.deepStrictEqual(yield* get.rest, ["green"])
      }).pipe(Effect.provide(Live))
  )

  it.live("closes the store only when a request under way has been answered", () =>
    Effect.gen(function*() {
      const happened: Array<string> = []
      const note = (what: string) => Effect.sync(() => void happened.push(what))
      const asked = yield* Deferred.make<void>()
      const found = yield* Deferred.make<string>()
      const SlowStore = Layer.effect(
        Store,
        Effect.acquireRelease(
          Effect.succeed({
            get: () => Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(found)),
            set: () => Effect.void
          }),
          () => note("store closed")
        )
      )
      const scope = yield* Scope.make()
      const address = yield* Layer.buildWithScope(Layer.provide(Embedded(ports), SlowStore), scope).pipe(
        Effect.flatMap((context) => Effect.provideContext(Server.Server, context)),
        Effect.map((server) => server.address)
      )
      const client = yield* connect(targetOf(address))
      yield* client.send("GET color\n")
      yield* Deferred.await(asked)

      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* note("closing")
      yield* Deferred.succeed(found, "blue")

      assert.deepStrictEqual(yield* client.rest, ["VALUE blue"])
      yield* Fiber.join(closing)
      assert.deepStrictEqual(happened, ["closing", "store closed"])
    }))

  it.live("runs by itself, and on SIGTERM drains before it closes the store", () =>
    Effect.gen(function*() {
      const program = yield* startExample("embedded", { PORT: "0", HTTP_PORT: "0" })
      assert.strictEqual(yield* program.line, "store: open")
      const client = yield* connect(targetIn(yield* program.line))
      assert.match(yield* program.line, /^HTTP: curl http:\/\/127\.0\.0\.1:\d+\/color$/)
      yield* client.send("SET color blue\n")
      assert.strictEqual(yield* client.line, "OK")
      yield* program.signal("SIGTERM")
      const [report, ...rest] = yield* program.rest
      assert.match(report!, /^key-value: drained in \d+ ms; idle connections ended: 1,/)
      assert.deepStrictEqual(rest, ["store: closed"])
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
