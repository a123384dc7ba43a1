/** What a prober sees of a server. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Health, Logging, MemoryTransport, Server } from "@socketserver/core"
import * as ServerHttp from "@socketserver/core/ServerHttp"
import { Context, Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { HttpRouter, HttpServer } from "effect/http"
import { NetAddress } from "effect/net"
import { settle } from "./utils.ts"

const lines = (options?: Server.ServerOptions) =>
  MemoryTransport.stream().pipe(
    Dispatch.fiberPerRequest({ maxInFlight: 1 }),
    Server.serveStream((c) => c.readLine(), options),
    Layer.provide(Logging.off)
  )

class Echo extends Server.Service<Echo>()("app/Echo") {}
class Other extends Server.Service<Other>()("app/Other") {}

describe("as an effect", () => {
  it.effect("a server is ready while it takes clients, and alive until it has stopped", () =>
    Effect.gen(function*() {
      const server = Context.get(yield* Layer.build(lines()), Server.Server)
      const seen: Array<unknown> = []
      const look = Effect.gen(function*() {
        seen.push([yield* server.status, yield* Health.isReady(server), yield* Health.isLive(server)])
      })
      yield* look
      const first = yield* MemoryTransport.connect(server.address)
      const second = yield* MemoryTransport.connect(server.address)
      yield* settle
      yield* look
      yield* Effect.andThen(second.write("a\n"), first.write("a\n"))
      yield* server.awaitIdle
      yield* server.suspend
      yield* look
      yield* server.resume
      yield* look
      const last = yield* MemoryTransport.connect(server.address)
      yield* last.write("half a line")
      yield* settle
      const drain = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* look
      yield* last.write("\n")
      yield* Fiber.join(drain)
      yield* look
      assert.deepStrictEqual(seen, [
        ["ready", true, true],
        ["saturated", true, true],
        ["suspended", false, true],
        ["ready", true, true],
        ["draining", false, true],
        ["stopped", false, false]
      ])
    }))
})

describe("tcpProbe", () => {
  const address = NetAddress.unixPathAddress("memory:probe")
  const answers = MemoryTransport.connect(address).pipe(
    Effect.flatMap((client) => Effect.flip(client.pull)),
    Effect.as(true),
    Effect.orElseSucceed(() => false)
  )

  it.effect("accepts and closes while the server is ready, and refuses while it is not", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* lines().pipe(
        Health.tcpProbe(MemoryTransport.stream({ name: "memory:probe" })),
        Layer.build,
        Scope.provide(scope),
        Effect.provide(Logging.off)
      )
      const server = Context.get(context, Server.Server)
      assert.isTrue(yield* answers)
      yield* server.suspend
      yield* settle
      assert.isFalse(yield* answers)
      yield* server.resume
      yield* settle
      assert.isTrue(yield* answers)
      yield* server.drain()
      yield* settle
      assert.isFalse(yield* answers)
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(yield* answers)
    }))

  it.effect("costs the server's connections nothing: it follows the events of the server only", () =>
    Effect.gen(function*() {
      const context = yield* lines().pipe(
        Health.tcpProbe(MemoryTransport.stream()),
        Layer.build,
        Effect.provide(Logging.off)
      )
      const server = Context.get(context, Server.Server)
      const lifecycle: Array<string> = []
      yield* Effect.forkScoped(
        Stream.runForEach(server.lifecycle, ({ _tag }) => Effect.sync(() => lifecycle.push(_tag))),
        { startImmediately: true }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\n")
      yield* server.awaitIdle
      yield* server.suspend
      yield* server.drain()
      yield* settle
      assert.deepStrictEqual(lifecycle, ["Suspended", "Draining", "Stopped"])
    }))
})

describe("over HTTP", () => {
  const ask = (handler: (request: Request) => Promise<Response>, path: string) =>
    Effect.promise(async () => {
      const response = await handler(new Request(`http://localhost${path}`))
      return [response.status, await response.text()] as const
    })

  const handlerOf = <E>(layer: Layer.Layer<never, E, HttpRouter.HttpRouter>) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() =>
          HttpRouter.toWebHandler(layer.pipe(Layer.provideMerge(HttpServer.layerServices)), { disableLogger: true })
        ),
        ({ dispose }) => Effect.promise(dispose)
      ),
      ({ handler }) => handler
    )

  it.effect("/readyz and /livez answer with the status", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(lines())
      const server = Context.get(context, Server.Server)
      const handler = yield* handlerOf(ServerHttp.health().pipe(Layer.provide(Layer.succeedContext(context))))
      assert.deepStrictEqual(yield* ask(handler, "/readyz"), [200, "ready\n"])
      assert.deepStrictEqual(yield* ask(handler, "/livez"), [200, "ready\n"])
      yield* server.suspend
      assert.deepStrictEqual(yield* ask(handler, "/readyz"), [503, "suspended\n"])
      assert.deepStrictEqual(yield* ask(handler, "/livez"), [200, "suspended\n"])
      yield* server.drain()
      assert.deepStrictEqual(yield* ask(handler, "/readyz"), [503, "stopped\n"])
      assert.deepStrictEqual(yield* ask(handler, "/livez"), [503, "stopped\n"])
    }))

  it.effect("of several servers, all have to be ready", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(Layer.merge(Server.as(Echo)(lines()), Server.as(Other)(lines())))
      const routes = ServerHttp.health(Echo, Other).pipe(Layer.provide(Layer.succeedContext(context)))
      const handler = yield* handlerOf(routes)
      assert.deepStrictEqual(yield* ask(handler, "/readyz"), [200, "app/Echo: ready\napp/Other: ready\n"])
      yield* Context.get(context, Other).suspend
      assert.deepStrictEqual(yield* ask(handler, "/readyz"), [503, "app/Echo: ready\napp/Other: suspended\n"])
    }))
})
