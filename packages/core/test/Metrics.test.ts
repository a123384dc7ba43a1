/** What Effect's metrics say of a server. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Logging, MemoryTransport, Metrics, Server } from "@socketserver/core"
import { Context, Effect, Exit, Layer, Metric, Scope } from "effect"
import { TestClock } from "effect/testing"
import { settle } from "./utils.ts"

const registry = Layer.sync(Metric.MetricRegistry, () => new Map())

const built = <E, R>(layer: Layer.Layer<Server.Server, E, R>) =>
  Effect.map(Layer.build(layer), Context.get(Server.Server))

/** All series, by name and what attributes are not the server's, without those that are zero. */
const read = Effect.map(
  Metric.snapshot,
  (series) =>
    Object.fromEntries(series.flatMap(({ attributes = {}, id, state }) => {
      const own = Object.entries(attributes).filter(([key]) =>
        !/^(server|network)\.(name|address|port|transport)$|^unit$/.test(key)
      )
      const name = [id.replace("socketserver.", ""), ...own.map(([key, value]) => `${key}=${value}`)].join(" ")
      const value = "buckets" in state
        ? [state.count, state.sum] as const
        : "count" in state
        ? state.count
        : (state as any).value
      return value === 0 ? [] : [[name, value] as const]
    }))
)

const test = <A, E>(name: string, effect: Effect.Effect<A, E, Scope.Scope>) =>
  it.effect(name, () => Effect.provide(effect, Layer.merge(registry, Logging.off)))

const serve = (handler: Server.StreamHandler<any, never>, options?: Server.ServerOptions<any>) =>
  MemoryTransport.stream().pipe(
    Admission.maxConnections({ max: 3 }),
    Dispatch.fiberPerRequest({ maxInFlight: 1 }),
    Server.serveStream(handler, options)
  )

describe("without the layer", () => {
  test(
    "nothing is in the registry",
    Effect.gen(function*() {
      const server = yield* built(serve(() => Effect.void))
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* Metric.snapshot, [])
    })
  )
})

describe("Metrics.layer", () => {
  test(
    "counts connections, bytes, what waits and runs, and how long it did",
    Effect.gen(function*() {
      const server = yield* serve((c) => Effect.andThen(c.readLine(), c.write("12345"))).pipe(
        Layer.provide(Metrics.layer()),
        built
      )
      assert.deepStrictEqual(yield* read, {})
      const first = yield* MemoryTransport.connect(server.address)
      const second = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.deepStrictEqual(yield* read, {
        "connections.accepted": 2,
        "connections.open": 2,
        "requests.in_flight": 1,
        "requests.queued": 1,
        "request.wait": [1, 0]
      })
      yield* TestClock.adjust("3 seconds")
      yield* first.write("a\n")
      yield* settle
      yield* TestClock.adjust("250 millis")
      yield* second.reset
      yield* server.awaitIdle
      const third = yield* MemoryTransport.connect(server.address)
      yield* MemoryTransport.connect(server.address)
      yield* MemoryTransport.connect(server.address)
      yield* MemoryTransport.connect(server.address)
      yield* third.write("b\n")
      yield* settle
      assert.deepStrictEqual(yield* read, {
        "connections.accepted": 6,
        "connections.open": 2,
        "connections.closed reason=Completed": 2,
        "connections.closed reason=PeerReset": 1,
        "connections.closed reason=Refused": 1,
        "connections.refused policy=maxConnections": 1,
        "io network.io.direction=receive": 4,
        "io network.io.direction=transmit": 10,
        "requests.in_flight": 1,
        "requests.queued": 1,
        "request.wait": [4, 3],
        "request.duration": [2, 3],
        "request.duration error.type=PeerReset": [1, 0.25]
      })
    })
  )

  test(
    "tells servers apart, by name and address",
    Effect.gen(function*() {
      const servers = yield* Effect.forEach(
        ["one", "two"],
        (name) => built(serve((c) => c.pull, { name }).pipe(Layer.provide(Metrics.layer())))
      )
      yield* MemoryTransport.connect(servers[1]!.address)
      const series = (yield* Metric.snapshot).filter(({ id }) => id === "socketserver.connections.open")
      assert.deepStrictEqual(
        series.map(({ attributes, state }) => [attributes, state] as const),
        servers.map((server, i) =>
          [
            {
              "server.name": ["one", "two"][i]!,
              "server.address": String(server.address),
              "network.transport": "memory"
            },
            { value: i }
          ] as const
        )
      )
    })
  )

  test(
    "keeps the last counts of a server that has ended until the layer ends",
    Effect.gen(function*() {
      const outer = yield* Scope.make()
      const measured = yield* Layer.build(Metrics.layer()).pipe(Scope.provide(outer))
      const inner = yield* Scope.make()
      const server = yield* built(serve(() => Effect.void)).pipe(Effect.provide(measured), Scope.provide(inner))
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      yield* MemoryTransport.connect(server.address)
      yield* Scope.close(inner, Exit.void)
      assert.deepStrictEqual(yield* read, {
        "connections.accepted": 2,
        "connections.closed reason=Completed": 2,
        "request.wait": [2, 0],
        "request.duration": [2, 0]
      })
      assert.notInclude((yield* Metric.snapshot).map(({ id }) => id), "socketserver.connections.open")
      yield* Scope.close(outer, Exit.void)
      assert.deepStrictEqual(yield* Metric.snapshot, [])
    })
  )

  test(
    "counts packets, those that were dropped too",
    Effect.gen(function*() {
      const server = yield* MemoryTransport.datagram({ receiveQueue: { maxPackets: 1 } }).pipe(
        Dispatch.serial(),
        Server.serveDatagram((datagram) => Effect.andThen(Effect.sleep("1 second"), datagram.reply("ok"))),
        Layer.provide(Metrics.layer()),
        built
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 5; i++) yield* client.send(server.address, "abc")
      yield* settle
      yield* TestClock.adjust("1 second")
      const now = yield* read
      assert.isAbove(now["packets.dropped"] as number, 0)
      assert.strictEqual(
        (now["packets.dropped"] as number) + (now["connections.accepted"] as number) + 1,
        5 + (now["requests.queued"] as number)
      )
      assert.deepStrictEqual(now["request.duration"], [1, 1])
      assert.strictEqual(now["io network.io.direction=transmit"], 2)
      yield* TestClock.adjust("5 seconds")
    })
  )

  it("has a name for Prometheus, with unit and total, and leaves others' names", () => {
    assert.deepStrictEqual(
      ["io", "request.duration", "connections.accepted", "connections.open", "x"].map((name) =>
        Metrics.prometheusName(`socketserver.${name}`)
      ),
      [
        "socketserver.io.bytes.total",
        "socketserver.request.duration.seconds",
        "socketserver.connections.accepted.total",
        "socketserver.connections.open",
        "socketserver.x"
      ]
    )
  })
})
