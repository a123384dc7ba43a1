/** The spans of a server, as a tracer that collects them sees them. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, MemoryTransport, Server, Tracing, Transport } from "@socketserver/core"
import { StreamTransport } from "@socketserver/core/StreamTransport"
import {
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Option,
  References,
  Stream,
  Tracer
} from "effect"
import { TestClock } from "effect/testing"
import { settle } from "./utils.ts"

const collected = () => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return { spans, layer: Layer.succeed(Tracer.Tracer, tracer) }
}

const built = <E, R>(layer: Layer.Layer<Server.Server, E, R>) =>
  Effect.map(Layer.build(layer), Context.get(Server.Server))

const serve = (handler: Server.StreamHandler<any, never>, options?: Server.ServerOptions<any>) =>
  MemoryTransport.stream().pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(handler, { name: "lines", ...options }),
    Layer.provide(Tracing.layer)
  )

const nameOf = (span: Tracer.AnySpan) => span._tag === "Span" ? span.name : "external"
const parentOf = (span: Tracer.Span) => Option.getOrUndefined(Option.map(span.parent, nameOf))
const failed = ({ status }: Tracer.Span) => status._tag === "Ended" && Exit.isFailure(status.exit)

const tree = (spans: ReadonlyArray<Tracer.Span>) =>
  spans.map((span) => [parentOf(span), span.name, span.kind, span.status._tag])

describe("Tracing.layer", () => {
  it.effect("makes a span for a connection and one in it for its handler, which what that traces is within", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* built(
        serve((c) => c.readLine().pipe(Effect.withSpan("mine"), Effect.andThen(c.write("abc"))))
      ).pipe(Effect.provide(layer))
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("2 seconds")
      yield* client.write("a\n")
      yield* server.awaitIdle
      assert.deepStrictEqual(tree(spans), [
        [undefined, "lines connection", "server", "Ended"],
        ["lines connection", "lines request", "internal", "Ended"],
        ["lines request", "mine", "internal", "Ended"]
      ])
      const [connection, request] = spans
      for (const { status } of [connection!, request!]) {
        assert.strictEqual(status._tag === "Ended" && status.endTime - status.startTime, 2_000_000_000n)
      }
      assert.deepStrictEqual(Object.fromEntries(connection!.attributes), {
        "socketserver.request.id": 1,
        "network.transport": "memory",
        "server.address": String(server.address),
        "network.local.address": String(server.address),
        "network.peer.address": String(client.local),
        "client.address": String(client.local),
        "socketserver.bytes_read": 2,
        "socketserver.bytes_written": 3,
        "socketserver.close.reason": "Completed"
      })
      assert.isFalse(failed(connection!))
    }))

  it.effect("ends them as failures when the handler has failed, and with an `error.type` when the client is to blame", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* built(serve((c) => Effect.andThen(c.readLine({ maxLength: 3 }), Effect.fail("no")))).pipe(
        Effect.provide([layer, Logger.layer([])])
      )
      for (const line of ["a\n", "too long\n"]) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write(line)
        yield* server.awaitIdle
      }
      assert.deepStrictEqual(spans.map((span) => [span.name, span.attributes.get("error.type"), failed(span)]), [
        ["lines connection", "HandlerFailed", true],
        ["lines request", "HandlerFailed", true],
        ["lines connection", "TransportFailed", false],
        ["lines request", "TransportFailed", false]
      ])
    }))

  it.effect("ends the spans of a connection that was refused before its handler, or killed in it", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const busy = yield* Deferred.make<void>()
      const server = yield* MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest({ maxInFlight: 1, queue: { max: 0 } }),
        Server.serveStream((c) =>
          Effect.exit(c.pull).pipe(
            Effect.andThen(Deferred.succeed(busy, undefined)),
            Effect.andThen(Effect.sleep("1 hour")),
            Effect.uninterruptible
          )
        ),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide([layer, Logger.layer([])])
      )
      yield* MemoryTransport.connect(server.address)
      yield* MemoryTransport.connect(server.address)
      yield* settle
      const drain = yield* Effect.forkChild(server.drain({ grace: "1 second", kill: "1 second" }), {
        startImmediately: true
      })
      yield* Deferred.await(busy)
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(drain)).killed, 1)
      assert.deepStrictEqual(
        spans.map((span) => [span.name, span.attributes.get("error.type"), span.status._tag]),
        [
          ["memory connection", "Killed", "Ended"],
          ["memory request", "Killed", "Ended"],
          ["memory connection", "Refused", "Ended"]
        ]
      )
      yield* TestClock.adjust("1 hour")
    }))

  it.effect("makes a span of each handshake, within the connection's", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      let succeeds = true
      const shaking = Layer.effect(
        StreamTransport,
        Effect.map(StreamTransport, (inner) => ({
          ...inner,
          steps: [{
            handshake: "hello",
            timeout: Duration.seconds(1),
            run: (wire) => succeeds ? Effect.delay(Effect.succeed(wire), "100 millis") : Effect.never
          }]
        } satisfies StreamTransport["Service"]))
      ).pipe(Layer.provide(MemoryTransport.stream()))
      const server = yield* shaking.pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.void),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide(layer)
      )
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("100 millis")
      yield* server.awaitIdle
      succeeds = false
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("1 second")
      yield* server.awaitIdle
      assert.deepStrictEqual(spans.map((span) => [parentOf(span), span.name, span.attributes.get("error.type")]), [
        [undefined, "memory connection", undefined],
        ["memory connection", "memory handshake hello", undefined],
        ["memory connection", "memory request", undefined],
        [undefined, "memory connection", "HandshakeFailed"],
        ["memory connection", "memory handshake hello", "HandshakeFailed"]
      ])
      const times = spans.map(({ status }) =>
        status._tag === "Ended" ? Number(status.endTime - status.startTime) / 1e6 : -1
      )
      assert.deepStrictEqual(times, [100, 100, 0, 1_000, 1_000])
    }))

  it.effect("makes one span of a packet", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* MemoryTransport.datagram().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveDatagram((datagram) => Effect.withSpan(datagram.reply("ok"), "mine")),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide(layer)
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "abc")
      yield* settle
      assert.deepStrictEqual(tree(spans), [
        [undefined, "memory datagram datagram", "server", "Ended"],
        ["memory datagram datagram", "mine", "internal", "Ended"]
      ])
    }))

  it.effect("has what encloses the server for a parent, and inherits its sampling", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      for (const sampled of [true, false]) {
        const server = yield* built(serve(() => Effect.withSpan(Effect.void, "mine"))).pipe(
          Effect.withSpan("program", { sampled }),
          Effect.provide(layer)
        )
        yield* MemoryTransport.connect(server.address)
        yield* server.awaitIdle
      }
      assert.deepStrictEqual(spans.map((span) => [parentOf(span), span.name, span.sampled]), [
        [undefined, "program", true],
        ["program", "lines connection", true],
        ["lines connection", "lines request", true],
        ["lines request", "mine", true],
        [undefined, "program", false],
        ["program", "lines connection", false],
        ["lines connection", "lines request", false],
        ["lines request", "mine", false]
      ])
    }))

  it.effect("skips a parent that disables propagation", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* built(serve(() => Effect.void)).pipe(
        Effect.withSpan("hidden", { annotations: Context.make(Tracer.DisablePropagation, true) }),
        Effect.withSpan("program"),
        Effect.provide(layer)
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      const connection = spans.find(({ name }) => name === "lines connection")
      assert.strictEqual(parentOf(connection!), "program")
    }))

  it.effect("does nothing where tracing is disabled, or nobody takes the spans", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const none = Effect.map(Effect.currentParentSpan, Option.some).pipe(Effect.orElseSucceed(() => Option.none()))
      const parents: Array<unknown> = []
      const handler = () => Effect.map(none, (parent) => parents.push(Option.isSome(parent)))
      const servers = [
        yield* Effect.provide(built(serve(handler)), [layer, Layer.succeed(References.TracerEnabled, false)]),
        yield* built(serve(handler))
      ]
      for (const server of servers) {
        yield* MemoryTransport.connect(server.address)
        yield* server.awaitIdle
      }
      assert.deepStrictEqual([spans, parents], [[], [false, false]])
    }))

  it.effect("is where the failure of a request is logged, and what its hook runs in", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const within: Array<string> = []
      const logger = Logger.make<unknown, void>(({ fiber, logLevel }) => {
        if (logLevel === "Error") within.push(`log ${fiber.cache.span && nameOf(fiber.cache.span)}`)
      })
      for (
        const onError of [
          undefined,
          () => Effect.map(Effect.orDie(Effect.currentSpan), ({ name }) => void within.push(`onError ${name}`))
        ]
      ) {
        const server = yield* built(serve(() => Effect.fail("no"), { onError })).pipe(
          Effect.withSpan("program"),
          Effect.provide([layer, Logger.layer([logger])])
        )
        yield* MemoryTransport.connect(server.address)
        yield* server.awaitIdle
      }
      assert.deepStrictEqual(within, ["log lines request", "onError lines request"])
      assert.lengthOf(spans, 6)
    }))
})

describe("without the layer", () => {
  it.effect("a tracer hears of no connection", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.void),
        built,
        Effect.provide(layer)
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.deepStrictEqual(spans, [])
    }))
})

describe("messages", () => {
  const handler = ({ payload }: { readonly payload: string }): Effect.Effect<string, string> =>
    payload === "now"
      ? Effect.succeed(payload)
      : Effect.andThen(
        Effect.withSpan(Effect.sleep("2 seconds"), "mine"),
        payload === "fail" ? Effect.fail("no") : Effect.succeed(payload)
      )

  const lines = (options?: Server.MessageOptions<string, string, string>, dispatch = Dispatch.fiberPerRequest()) =>
    MemoryTransport.stream().pipe(
      Transport.framed(Framing.lines()),
      dispatch,
      Server.serveMessage(handler, { name: "lines", shutdown: { grace: 0 }, ...options }),
      Layer.provide(Tracing.layer),
      built
    )

  it.effect("have a span each within their connection's, which what their handler traces is within", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* Effect.provide(lines(), layer)
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("1 second")
      yield* client.write("now\nslow\n")
      yield* TestClock.adjust("3 seconds")
      yield* client.end
      yield* server.awaitIdle
      assert.deepStrictEqual(tree(spans), [
        [undefined, "lines connection", "server", "Ended"],
        ["lines connection", "lines request", "internal", "Ended"],
        ["lines connection", "lines request", "internal", "Ended"],
        ["lines request", "mine", "internal", "Ended"]
      ])
      assert.strictEqual(spans[3]!.parent._tag === "Some" && spans[3]!.parent.value, spans[2])
      const times = spans.map(({ status }) =>
        status._tag === "Ended" && Number(status.endTime - status.startTime) / 1e9
      )
      assert.deepStrictEqual(times, [4, 0, 2, 2])
      assert.deepStrictEqual(Object.fromEntries(spans[2]!.attributes), {
        "socketserver.message.id": 2,
        "socketserver.close.reason": "Completed"
      })
    }))

  it.effect("have their hooks and log lines within their span, and end it as failed when the handler has", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const logged: Array<string> = []
      const logger = Logger.make<unknown, void>(({ fiber, logLevel }) => {
        const span = Context.getOrUndefined(fiber.context, Tracer.ParentSpan)
        if (logLevel === "Error") logged.push(span === undefined ? "none" : nameOf(span))
      })
      const provided = Layer.merge(layer, Logger.layer([logger]))
      const logging = yield* Effect.provide(lines(), provided)
      const answering = yield* Effect.provide(
        lines({ onError: () => Effect.succeed("sorry").pipe(Effect.withSpan("apology")) }),
        provided
      )
      for (const server of [logging, answering]) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write("fail\n")
        yield* client.end
        yield* TestClock.adjust("2 seconds")
        yield* server.awaitIdle
      }
      assert.deepStrictEqual(
        spans.map((span) => [parentOf(span), span.name, span.attributes.get("error.type"), failed(span)]),
        [
          [undefined, "lines connection", "HandlerFailed", true],
          ["lines connection", "lines request", "HandlerFailed", true],
          ["lines request", "mine", undefined, false],
          [undefined, "lines connection", undefined, false],
          ["lines connection", "lines request", "HandlerFailed", true],
          ["lines request", "mine", undefined, false],
          ["lines request", "apology", undefined, false]
        ]
      )
      assert.deepStrictEqual(logged, ["lines request"])
    }))

  it.effect("that wait have no span yet, and those that never end have it ended when their server kills them", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const server = yield* MemoryTransport.stream().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.serial(),
        Server.serveMessage(() => Effect.as(Effect.uninterruptible(Effect.sleep("1 hour")), undefined), {
          name: "lines",
          shutdown: { grace: 0, kill: "1 second" }
        }),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide(layer)
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("one\ntwo\n")
      yield* settle
      assert.strictEqual(spans.length, 2)
      yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* settle
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(spans.map((span) => [span.status._tag, span.attributes.get("error.type")]), [
        ["Ended", "Killed"],
        ["Ended", "Killed"]
      ])
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(spans.length, 2)
    }))

  it.effect("that are packets, or values of a stream, are one span", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const packets = yield* MemoryTransport.datagram().pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(handler, { name: "packets" }),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide(layer)
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(packets.address, "slow")
      yield* TestClock.adjust("2 seconds")
      yield* Transport.fromStream(Stream.make("slow")).pipe(
        Dispatch.fiberPerRequest(),
        Server.serveMessage((message) => Effect.asVoid(handler(message)), { name: "values" }),
        Layer.provide(Tracing.layer),
        built,
        Effect.provide(layer)
      )
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(tree(spans), [
        [undefined, "packets datagram", "server", "Ended"],
        ["packets datagram", "mine", "internal", "Ended"],
        [undefined, "values value", "consumer", "Ended"],
        ["values value", "mine", "internal", "Ended"]
      ])
    }))
})
