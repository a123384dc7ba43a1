/** What Effect's metrics say of a server. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Framing, Logging, MemoryTransport, Metrics, Server, Transport } from "@socketserver/core"
import { Context, Effect, Exit, Fiber, Layer, Metric, Scope, Stream } from "effect"
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

describe("of a server of messages", () => {
  const handler = ({ payload }: { readonly payload: string }) =>
    payload === "fail"
      ? Effect.fail("no")
      : payload === "now"
      ? Effect.succeed(payload)
      : Effect.as(Effect.sleep(payload === "long" ? "1 hour" : "2 seconds"), payload)

  test(
    "requests are its messages: how long they wait and run, how many do, and how many fail",
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest({ maxInFlight: 2 }),
        Server.serveMessage(handler, {
          requestTimeout: "10 seconds",
          shutdown: { grace: 0 },
          onError: (_, __, { _tag }) => Effect.succeed(_tag)
        }),
        Layer.provide(Metrics.layer()),
        built
      )
      const client = yield* MemoryTransport.connect(server.address)
      const other = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.deepStrictEqual(yield* read, { "connections.accepted": 2, "connections.open": 2 })
      yield* client.write("now\nslow\n")
      yield* other.write("slow\nslow\n")
      yield* settle
      const connections = {
        "connections.accepted": 2,
        "connections.open": 2,
        "io network.io.direction=receive": 19,
        "io network.io.direction=transmit": 4
      }
      assert.deepStrictEqual(yield* read, {
        ...connections,
        "requests.in_flight": 2,
        "requests.queued": 1,
        "request.wait": [3, 0],
        "request.duration": [1, 0]
      })
      yield* TestClock.adjust("4 seconds")
      yield* client.write("fail\nlong\n")
      yield* TestClock.adjust("10 seconds")
      yield* client.write("slow\n")
      yield* settle
      yield* client.reset
      yield* settle
      const { "io network.io.direction=receive": _, "io network.io.direction=transmit": __, ...rest } = yield* read
      // The connection is there until its last handler has ended, whose request goes on.
      assert.deepStrictEqual(rest, {
        "connections.accepted": 2,
        "connections.open": 2,
        "requests.in_flight": 1,
        "request.wait": [7, 2],
        "request.duration": [4, 6],
        "request.duration error.type=HandlerFailed": [1, 0],
        "request.duration error.type=RequestTimeout": [1, 10]
      })
    })
  )

  test(
    "handlers that end with their connection have its reason, and a message that is refused is no request",
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest({ maxInFlight: 2, queue: { max: 0 } }),
        Server.serveMessage(handler, { interruptOnDisconnect: "reset", shutdown: { grace: "1 second" } }),
        Layer.provide(Metrics.layer()),
        built
      )
      const left = yield* MemoryTransport.connect(server.address)
      yield* left.write("long\n")
      yield* TestClock.adjust("3 seconds")
      yield* left.reset
      yield* settle
      const refused = yield* MemoryTransport.connect(server.address)
      yield* refused.write("long\nlong\nlong\n")
      yield* TestClock.adjust("4 seconds")
      const series = yield* read
      assert.deepStrictEqual(series["request.duration error.type=PeerReset"], [1, 3])
      assert.deepStrictEqual(series["request.wait"], [3, 0])
      yield* TestClock.adjust("5 seconds")
      const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(draining)
      assert.deepStrictEqual((yield* read)["request.duration"], [2, 20])
    })
  )

  test(
    "packets and the values of a stream are requests, one each",
    Effect.gen(function*() {
      const measured = yield* Layer.build(Metrics.layer())
      const packets = yield* MemoryTransport.datagram().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(handler, { name: "packets" }),
        built,
        Effect.provide(measured)
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (const packet of ["now", "slow", "fail"]) yield* client.send(packets.address, packet)
      yield* Transport.fromStream(Stream.make("slow", "fail", "slow")).pipe(
        Dispatch.fiberPerRequest({ maxInFlight: 1 }),
        Server.serveMessage((message) => Effect.asVoid(handler(message)), { name: "values" }),
        built,
        Effect.provide(measured)
      )
      yield* TestClock.adjust("10 seconds")
      const durations = (yield* Metric.snapshot).flatMap(({ attributes = {}, id, state }) =>
        id === "socketserver.request.duration" && "buckets" in state
          ? [[attributes["server.name"], attributes["error.type"], state.count, state.sum]]
          : []
      )
      assert.sameDeepMembers(durations, [
        ["packets", undefined, 2, 2],
        ["packets", "HandlerFailed", 1, 0],
        ["values", undefined, 2, 4],
        ["values", "HandlerFailed", 1, 0]
      ])
    })
  )
})
