/** What metrics and traces see of a server whose handlers run in workers. */
import { assert, describe, it } from "@effect/vitest"
import { Framing, Logging, Metrics, Server, Tracing, Transport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Effect, Layer, Logger, Metric, Option, References, Tracer } from "effect"
import { connect, receiveAll } from "./utils.ts"
import { obey, traced, tracedMessage } from "./workers/handlers.ts"

const tcp = NodeTransport.tcp({ host: "127.0.0.1", port: 0 })

/** A tracer, and the spans that it has been asked for. */
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

describe.each(["thread", "process"] as const)("a server with workers of kind %s", (kind) => {
  it.live("has its connections' spans, with those of the handler within them", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const context = yield* tcp.pipe(
        NodeDispatch.workerPerRequest({ kind, maxWorkers: 1 }),
        Server.serveStream(traced),
        Layer.provide([Tracing.layer, layer, Logging.off]),
        Layer.build
      )
      const server = Context.get(context, Server.Server)
      const client = yield* connect(server.address)
      assert.strictEqual(yield* receiveAll(client), "tcp request")
      client.end()
      yield* server.awaitIdle
      const nameOf = (span: Tracer.AnySpan) => span._tag === "Span" ? span.name : span._tag
      assert.deepStrictEqual(
        spans.map((span) => [Option.getOrUndefined(Option.map(span.parent, nameOf)), span.name, span.status._tag]),
        [
          [undefined, "tcp connection", "Ended"],
          ["tcp connection", "tcp request", "Ended"],
          ["tcp request", "in the worker", "Ended"]
        ]
      )
      assert.strictEqual(spans[1]!.attributes.get("from"), "the worker")
    }))

  it.live("has a span for each message, with those of its handler within it", () =>
    Effect.gen(function*() {
      const { layer, spans } = collected()
      const context = yield* tcp.pipe(
        Transport.framed(Framing.lines()),
        NodeDispatch.workerPerRequest({ kind, maxWorkers: 1 }),
        Server.serveMessage(tracedMessage),
        Layer.provide([Tracing.layer, Metrics.layer(), layer, Logging.off]),
        Layer.build
      )
      const server = Context.get(context, Server.Server)
      const client = yield* connect(server.address)
      client.end("one\ntwo\n")
      assert.strictEqual(yield* receiveAll(client), "one tcp request\ntwo tcp request\n")
      yield* server.awaitIdle
      const parentOf = ({ parent }: Tracer.Span) => Option.getOrUndefined(parent)
      const [connection] = spans
      const requests = spans.filter(({ name }) => name === "tcp request")
      const inner = spans.filter(({ name }) => name === "in the worker")
      assert.deepStrictEqual(requests.map(parentOf), [connection, connection])
      assert.deepStrictEqual(inner.map(parentOf), requests)
      assert.deepStrictEqual(
        requests.map(({ attributes }) => Object.fromEntries(attributes)),
        [1, 2].map((id) => ({
          "socketserver.message.id": id,
          from: "the worker",
          "socketserver.close.reason": "Completed"
        }))
      )
      const durations = (yield* Metric.snapshot).flatMap(({ id, state }) =>
        id === "socketserver.request.duration" && "count" in state ? [state.count] : []
      )
      assert.deepStrictEqual(durations, [2])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.live("counts its workers, and the requests that they fail", () =>
    Effect.gen(function*() {
      const context = yield* tcp.pipe(
        NodeDispatch.workerPerRequest({ kind, maxWorkers: 1 }),
        Server.serveStream(obey),
        Layer.provide(Metrics.layer()),
        Layer.build
      )
      const server = Context.get(context, Server.Server)
      const client = yield* connect(server.address)
      client.write("exit 3\n")
      yield* Effect.exit(receiveAll(client))
      client.destroy()
      yield* server.awaitIdle
      const values = Object.fromEntries(
        (yield* Metric.snapshot).map(({ attributes = {}, id, state }) => [
          [id, attributes.state ?? attributes.how ?? attributes.reason ?? attributes["error.type"] ?? ""].join(" ")
            .trim(),
          "count" in state ? state.count : "value" in state ? state.value : undefined
        ])
      )
      assert.containSubset(values, {
        "socketserver.connections.closed WorkerCrashed": 1,
        "socketserver.request.duration WorkerCrashed": 1,
        "socketserver.workers busy": 0,
        "socketserver.workers.ended crashed": 1
      })
      assert.isAtLeast(values["socketserver.workers.started"] as number, 1)
    }).pipe(Effect.provide(Logging.off), Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("a worker that fails a request", () => {
  it.live("is a line at Error, with the connection and its peer", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        if (logLevel !== "Info") lines.push(`${logLevel} ${String(Array.isArray(message) ? message[0] : message)}`)
      })
      const context = yield* tcp.pipe(
        NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 1 }),
        Server.serveStream(obey),
        Layer.build,
        Effect.provide(Logger.layer([logger]))
      )
      const server = Context.get(context, Server.Server)
      const client = yield* connect(server.address)
      const from = `127.0.0.1:${client.localPort}`
      client.write("exit 3\n")
      yield* Effect.exit(receiveAll(client))
      client.destroy()
      yield* server.awaitIdle
      assert.deepStrictEqual(lines.filter((line) => line.startsWith("Error")), [
        `Error connection 1 from ${from}: WorkerCrashed`
      ])
      assert.deepStrictEqual(lines.filter((line) => line.startsWith("Warn")), ["Warn worker 1 ended: Crashed"])
    }))

  it.live("within its `timeout` is at Debug where it only waits, and at Warn where its worker has to be killed", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        if (logLevel !== "Info") lines.push(`${logLevel} ${String(Array.isArray(message) ? message[0] : message)}`)
      })
      const context = yield* tcp.pipe(
        NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 1, timeout: "300 millis" }),
        Server.serveStream(obey),
        Layer.build,
        Effect.provide(Logger.layer([logger])),
        Effect.provideService(References.MinimumLogLevel, "Debug")
      )
      const server = Context.get(context, Server.Server)
      const ask = (what: string) =>
        Effect.gen(function*() {
          const client = yield* connect(server.address)
          client.write(what)
          yield* Effect.exit(receiveAll(client))
          client.destroy()
          yield* server.awaitIdle
        })
      const aboveDebug = () => lines.filter((line) => !line.startsWith("Debug"))
      let tries = 0
      // One that gets no core for 50 ms is killed as if it computed: a busy machine may do that once or twice.
      do {
        lines.length = 0
        // Nothing: the handler waits in a read until its time is over.
        yield* ask("")
        tries++
      } while (aboveDebug().length > 0 && tries < 5)
      const told = lines.filter((line) => /WorkerTimeout/.test(line))
      assert.isAtLeast(told.length, 1)
      assert.deepStrictEqual(aboveDebug(), [])
      assert.deepStrictEqual((yield* server.stats).closed, { WorkerTimeout: tries })
      yield* ask("compute\n")
      assert.deepStrictEqual((yield* server.stats).closed, { WorkerTimeout: tries + 1 })
      assert.deepStrictEqual(aboveDebug(), [`Warn worker ${tries} ended: Killed`])
    }))
})
