/** What an operator sees: Prometheus' text format, probes by curl and nc, and what a collector is sent. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { createServer, type IncomingMessage } from "node:http"
import type { AddressInfo } from "node:net"
import { connect, start, startExample, targetIn } from "./utils.ts"

const program = (env: Readonly<Record<string, string>> = {}) =>
  Effect.gen(function*() {
    const example = yield* startExample("observed", { PORT: "0", HTTP_PORT: "0", PROBE_PORT: "0", ...env })
    const target = targetIn(yield* example.line)
    const [url = ""] = /http:\S+(?=\/metrics)/.exec(yield* example.line) ?? []
    return { example, target, url }
  })

/** What curl prints: the body, and the status in a line of its own. */
const curl = (url: string) =>
  Effect.gen(function*() {
    const client = yield* start("curl", ["--silent", "--show-error", "--write-out", "%{http_code}\\n", url])
    return yield* client.rest
  })

/**
 * Prometheus' text format, read strictly: each family has its HELP and TYPE before its series and stands together, no series
 * comes twice, buckets are cumulative and end with `+Inf`, which is the count.
 */
const parse = (lines: ReadonlyArray<string>) => {
  const series = new Map<string, number>()
  const types = new Map<string, string>()
  const buckets = new Map<string, { le: number; count: number }>()
  let family = ""
  for (const line of lines) {
    const [, kind, name = "", rest = ""] = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line) ?? []
    if (kind === "HELP") {
      assert.isFalse(types.has(name), `${name} comes twice`)
      family = name
      continue
    }
    if (kind === "TYPE") {
      assert.strictEqual(name, family)
      assert.match(rest, /^(counter|gauge|histogram)$/)
      if (rest === "counter") assert.match(name, /_total$/)
      types.set(name, rest)
      continue
    }
    const [, id = "", labels = "", value = ""] =
      /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)$/.exec(line) ?? []
    assert.isNotEmpty(id, `not a series: ${line}`)
    const suffix = types.get(family) === "histogram" ? /^_(bucket|sum|count)$/ : /^$/
    assert.isTrue(id.startsWith(family))
    assert.match(id.slice(family.length), suffix)
    assert.isFalse(series.has(`${id}{${labels}}`), `${line} comes twice`)
    series.set(`${id}{${labels}}`, Number(value))
    assert.isFalse(Number.isNaN(Number(value)), line)
    if (id.endsWith("_bucket")) {
      const [, le = ""] = /le="([^"]+)"/.exec(labels) ?? []
      const key = labels.replace(/,?le="[^"]+"/, "")
      const before = buckets.get(key + family)
      const bound = le === "+Inf" ? Infinity : Number(le)
      if (before !== undefined && before.le !== Infinity) {
        assert.isTrue(bound > before.le && Number(value) >= before.count)
      }
      buckets.set(key + family, { le: bound, count: Number(value) })
    }
    if (id.endsWith("_count")) {
      assert.deepStrictEqual(buckets.get(labels + family), { le: Infinity, count: Number(value) })
    }
  }
  return (name: string, ...labels: ReadonlyArray<string>) => {
    for (const [key, value] of series) {
      if (key.startsWith(`${name}{`) && labels.every((label) => key.includes(label))) return value
    }
    return undefined
  }
}

const test = (name: string, effect: Effect.Effect<void, unknown, Scope.Scope>) => it.live(name, () => effect, 60_000)

describe("an observed server", () => {
  test(
    "has metrics that Prometheus can read",
    Effect.gen(function*() {
      const { target, url } = yield* program()
      const client = yield* connect(target)
      yield* client.send("hello\n")
      assert.strictEqual(yield* client.line, "hello")
      const ended = yield* connect(target)
      yield* ended.send("a\n")
      yield* ended.finish
      assert.deepStrictEqual(yield* ended.rest, ["a"])
      const lines = yield* Effect.repeat(curl(`${url}/metrics`), {
        until: (lines) => lines.some((line) => /closed_total\{.*Completed.*\} 1$/.test(line))
      })
      assert.strictEqual(lines.at(-1), "200")
      const value = parse(lines.slice(0, -1))
      const named = `server_name="echo"`
      assert.strictEqual(value("socketserver_connections_accepted_total", named, `network_transport="tcp"`), 2)
      assert.strictEqual(value("socketserver_connections_open", named, `server_address="127.0.0.1"`), 1)
      assert.strictEqual(value("socketserver_connections_closed_total", named, `reason="Completed"`), 1)
      assert.strictEqual(value("socketserver_io_bytes_total", `network_io_direction="receive"`), 8)
      assert.strictEqual(value("socketserver_io_bytes_total", `network_io_direction="transmit"`), 8)
      assert.strictEqual(value("socketserver_requests_in_flight", named), 1)
      assert.strictEqual(value("socketserver_request_duration_seconds_count", named), 1)
      assert.strictEqual(value("socketserver_request_wait_seconds_count", named), 2)
      // The probe beside it is not one of the measured.
      assert.isUndefined(value("socketserver_connections_accepted_total", `server_name="echo probe"`))
    })
  )

  test(
    "says by HTTP that it is ready, and while it drains that it is not, and ends with 0",
    Effect.gen(function*() {
      const { example, target, url } = yield* program()
      assert.deepStrictEqual(yield* curl(`${url}/readyz`), ["ready", "200"])
      assert.deepStrictEqual(yield* curl(`${url}/livez`), ["ready", "200"])
      const client = yield* connect(target)
      yield* client.send("hello\n")
      assert.strictEqual(yield* client.line, "hello")
      yield* example.signal("SIGTERM")
      assert.strictEqual(yield* example.exitCode, 0)
      // Refused, by the system: there is nobody any more.
      assert.include((yield* curl(`${url}/readyz`)).join(), "000")
    })
  )

  test(
    "sends spans, metrics and logs to a collector, with the final counts when it ends",
    Effect.gen(function*() {
      const collector = yield* collected
      const { example, target } = yield* program({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url })
      const client = yield* connect(target)
      yield* client.send("hello\n")
      yield* client.finish
      assert.deepStrictEqual(yield* client.rest, ["hello"])
      yield* example.signal("SIGTERM")
      assert.strictEqual(yield* example.exitCode, 0)

      const spans = collector.of("/v1/traces").flatMap((body) => scopesOf(body, "resourceSpans", "scopeSpans", "spans"))
      const connection = spans.find(({ name }) => name === "echo connection")!
      const request = spans.find(({ name }) => name === "echo request")!
      assert.strictEqual(request.parentSpanId, connection.spanId)
      assert.strictEqual(request.traceId, connection.traceId)
      // SERVER, in OTLP's numbers.
      assert.strictEqual(connection.kind, 2)
      const attributes = attributesOf(connection)
      assert.containSubset(attributes, {
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.peer.address": "127.0.0.1",
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "socketserver.close.reason": "Completed"
      })
      assert.strictEqual(Number(attributes["socketserver.bytes_read"]), 6)
      assert.strictEqual(Number(attributes["server.port"]), "port" in target ? target.port : 0)

      const last = collector.of("/v1/metrics").at(-1)
      const accepted = scopesOf(last, "resourceMetrics", "scopeMetrics", "metrics").find(({ name }) =>
        name === "socketserver.connections.accepted"
      )
      assert.strictEqual(Number(accepted.sum.dataPoints[0].asDouble), 1)
      assert.isTrue(accepted.sum.isMonotonic)
    })
  )
})

/** A collector that only keeps what it is sent. */
const collected = Effect.acquireRelease(
  Effect.promise(async () => {
    const bodies: Array<{ readonly path: string; readonly body: any }> = []
    const server = createServer((request: IncomingMessage, response) => {
      let text = ""
      request.setEncoding("utf8")
      request.on("data", (chunk: string) => text += chunk)
      request.on("end", () => {
        bodies.push({ path: request.url ?? "", body: JSON.parse(text) })
        response.setHeader("content-type", "application/json").end("{}")
      })
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    return {
      server,
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      of: (path: string) => bodies.filter((one) => one.path === path).map(({ body }) => body)
    }
  }),
  ({ server }) => Effect.sync(() => void server.close())
)

const scopesOf = (body: any, resources: string, scopes: string, items: string): ReadonlyArray<any> =>
  body[resources].flatMap((resource: any) => resource[scopes].flatMap((scope: any) => scope[items]))

const attributesOf = ({ attributes }: any): Record<string, unknown> =>
  Object.fromEntries(attributes.map(({ key, value }: any) => [key, Object.values(value)[0]]))
