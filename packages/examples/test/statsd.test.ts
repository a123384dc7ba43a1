/** The StatsD server: what it counts, and what it does not take for a number. */
import { assert, describe, it } from "@effect/vitest"
import { MemoryTransport, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Effect, Layer } from "effect"
import { maxNames, Metrics, Statsd } from "../src/statsd.ts"
import { connectDatagram, startExample, targetOf } from "./utils.ts"

const InMemory = Statsd(MemoryTransport.datagram()).pipe(Layer.provideMerge(Metrics.layer))
const OverUdp = Statsd(NodeTransport.udp({ host: "127.0.0.1", port: 0 })).pipe(Layer.provideMerge(Metrics.layer))

/** The snapshot, as soon as it is as it should be; the test's time limit is the only one. */
const snapshotWhen = (isComplete: (counters: ReadonlyMap<string, number>) => boolean) =>
  Metrics.use(({ snapshot }) =>
    Effect.repeat(Effect.tap(snapshot, () => Effect.yieldNow), { until: ({ counters }) => isComplete(counters) })
  )

/** Sends the packets, and looks at the numbers when all have been counted. */
const snapshotAfter = (...packets: ReadonlyArray<Uint8Array | string>) =>
  Effect.scoped(Effect.gen(function*() {
    const { address } = yield* Server.Server
    const client = yield* MemoryTransport.bindDatagram()
    for (const packet of packets) yield* client.send(address, packet)
    // Packets are counted in order: this one is the last.
    yield* client.send(address, "last:1|c")
    const snapshot = yield* snapshotWhen((counters) => counters.has("last"))
    const counters = new Map(snapshot.counters)
    counters.delete("last")
    return { ...snapshot, counters }
  }))

describe("statsd", () => {
  it.effect("adds up counters, also those that are only reported now and then", () =>
    Effect.gen(function*() {
      const { counters } = yield* snapshotAfter("hits:1|c", "hits:2|c", "misses:1.5|c", "hits:-1|c", "rare:1|c|@0.1")
      assert.deepStrictEqual([...counters], [["hits", 2], ["misses", 1.5], ["rare", 10]])
    }).pipe(Effect.provide(InMemory)))

  it.effect("sets gauges, and moves them where there is a sign", () =>
    Effect.gen(function*() {
      const { gauges } = yield* snapshotAfter(
        "load:5|g",
        "load:7|g",
        "users:10|g",
        "users:-3|g",
        "users:+1|g",
        "new:+2|g"
      )
      assert.deepStrictEqual([...gauges], [["load", 7], ["users", 8], ["new", 2]])
    }).pipe(Effect.provide(InMemory)))

  it.effect("counts how often each timer is reported", () =>
    Effect.gen(function*() {
      const { timers } = yield* snapshotAfter("query:320|ms", "query:12.5|ms", "render:4|ms|@0.5")
      assert.deepStrictEqual([...timers], [["query", 2], ["render", 2]])
    }).pipe(Effect.provide(InMemory)))

  it.effect("takes several metrics from one packet, and the same name for each kind", () =>
    Effect.gen(function*() {
      const { counters, gauges, malformed, timers } = yield* snapshotAfter(
        "a:1|c\na:2|g\r\n\na:3|ms\na:4|c\n",
        "",
        "\n"
      )
      assert.deepStrictEqual([[...counters], [...gauges], [...timers]], [[["a", 5]], [["a", 2]], [["a", 1]]])
      assert.strictEqual(malformed, 0)
    }).pipe(Effect.provide(InMemory)))

  it.effect("counts lines that make no sense, and takes those beside them", () =>
    Effect.gen(function*() {
      const wrong = [
        "nothing",
        ":1|c",
        "a:|c",
        "a:one|c",
        "a:1",
        "a:1|",
        "a:1|x",
        "a:1|c|",
        "a:1|c|@",
        "a:1|c|@0",
        "a:1|c|@0.0",
        "a:1|c|@2",
        "a:1|g|@0.5",
        "a:NaN|g",
        "a:1e999|c",
        `a:${"9".repeat(400)}|c`,
        `${"a".repeat(201)}:1|c`,
        "two words:1|c",
        "a:1|c:2|c",
        "\u0000\uFFFD"
      ]
      const { counters, gauges, malformed, timers } = yield* snapshotAfter(
        ["good:1|c", ...wrong, "good:1|c"].join("\n"),
        ...wrong,
        Uint8Array.of(0xff, 0xfe),
        "__proto__:1|c"
      )
      assert.strictEqual(malformed, 2 * wrong.length + 1)
      assert.deepStrictEqual([...counters], [["good", 2], ["__proto__", 1]])
      assert.deepStrictEqual([gauges.size, timers.size], [0, 0])
      assert.deepStrictEqual((yield* Server.Server.use(({ stats }) => stats)).closed["HandlerFailed"], undefined)
    }).pipe(Effect.provide(InMemory)))

  it.effect("does not take the last line of a packet that was cut", () =>
    Effect.gen(function*() {
      const { counters, malformed } = yield* snapshotAfter("a:1|c\nb:1000|c")
      assert.deepStrictEqual([[...counters], malformed], [[["a", 1]], 1])
    }).pipe(
      Effect.provide(Statsd(MemoryTransport.datagram({ maxPacketSize: 8 })).pipe(Layer.provideMerge(Metrics.layer)))
    ))

  it.effect("has room for so many names, and counts what it refuses", () =>
    Effect.gen(function*() {
      const { add, snapshot } = yield* Metrics
      for (let n = 0; n < maxNames + 5; n++) yield* add(`name${n}:1|c`)
      yield* add("name0:1|c")
      yield* add("name0:1|g")
      const { counters, gauges, malformed, refused } = yield* snapshot
      assert.deepStrictEqual([counters.size, gauges.size, malformed, refused], [maxNames, 0, 0, 6])
      assert.strictEqual(counters.get("name0"), 2)
    }).pipe(Effect.provide(Metrics.layer)))

  it.effect("gives a snapshot that stays as it was", () =>
    Effect.gen(function*() {
      const { add, snapshot } = yield* Metrics
      yield* add("a:1|c")
      const before = yield* snapshot
      yield* add("a:1|c")
      assert.strictEqual(before.counters.get("a"), 1)
      assert.strictEqual((yield* snapshot).counters.get("a"), 2)
    }).pipe(Effect.provide(Metrics.layer)))

  it.live("counts what a socket of Node's sends", () =>
    Effect.gen(function*() {
      const target = targetOf((yield* Server.Server).address)
      assert(!("path" in target))
      const client = yield* connectDatagram(target.host, target.port)
      yield* client.send("hits:1|c\nload:3|g\nquery:10|ms")
      yield* client.send("what?")
      yield* client.send("hits:1|c")
      const { counters, gauges, malformed, timers } = yield* snapshotWhen((counts) => counts.get("hits") === 2)
      assert.deepStrictEqual([[...counters], [...gauges], [...timers]], [[["hits", 2]], [["load", 3]], [["query", 1]]])
      assert.strictEqual(malformed, 1)
    }).pipe(Effect.provide(OverUdp)))

  it.live("runs by itself, and on SIGINT drains, prints its numbers, and exits with 0", () =>
    Effect.gen(function*() {
      const program = yield* startExample("statsd", { PORT: "0" })
      assert.match(yield* program.line, /^statsd: echo "hits:1\|c" \| nc -u -w 0 127\.0\.0\.1 \d+$/)
      yield* program.signal("SIGINT")
      const [report, ...numbers] = yield* program.rest
      assert.match(report!, /^statsd: drained in \d+ ms; /)
      assert.match(numbers.join("\n"), /malformed: 0/)
      assert.deepStrictEqual(yield* program.errors, [])
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
