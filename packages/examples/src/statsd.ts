/**
 * A StatsD server: programs send it numbers, several to a packet if they like, and wait for nothing. The numbers are in a
 * service, so whoever else has that can look at them. Try `echo "hits:1|c" | nc -u -w 0 127.0.0.1 8125`.
 */
import { type Datagram, type DatagramTransport, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Console, Context, Effect, Layer } from "effect"
import { isMain, netcat, runServer } from "./run.ts"

export interface Snapshot {
  readonly counters: ReadonlyMap<string, number>
  readonly gauges: ReadonlyMap<string, number>
  /** How many times each timer was reported. */
  readonly timers: ReadonlyMap<string, number>
  /** How many lines made no sense. */
  readonly malformed: number
  /** How many lines made sense, but had a new name when there was no more room for one. */
  readonly refused: number
}

/** Anybody can send any name, and every name stays: there has to be an end to it. */
export const maxNames = 10_000

// The name, the number, what it is, and the share of events that are reported at all.
const metric = /^([^\s:|]{1,200}):([+-]?\d{1,15}(?:\.\d{1,15})?)\|(?:(g)|(c|ms)(?:\|@(0?\.\d{1,15}|1(?:\.0{1,15})?))?)$/

export class Metrics extends Context.Service<Metrics, {
  /** Takes one line, such as `hits:1|c`. */
  readonly add: (line: string) => Effect.Effect<void>
  /** One more line that made no sense. */
  readonly malformed: Effect.Effect<void>
  /** All numbers as they are now. */
  readonly snapshot: Effect.Effect<Snapshot>
}>()("@socketserver/examples/Metrics") {
  static readonly layer = Layer.sync(Metrics, () => {
    const counters = new Map<string, number>()
    const gauges = new Map<string, number>()
    const timers = new Map<string, number>()
    let malformed = 0
    let refused = 0

    const add = (line: string) => {
      const [, name, value, gauge, kind, rate = "1"] = metric.exec(line) ?? []
      if (name === undefined || value === undefined || !(Number(rate) > 0)) return malformed++
      const metrics = gauge !== undefined ? gauges : kind === "c" ? counters : timers
      const before = metrics.get(name)
      if (before === undefined && counters.size + gauges.size + timers.size >= maxNames) return refused++
      // A gauge is set, or, with a sign, moved.
      if (gauge !== undefined) {
        return metrics.set(name, /^[+-]/.test(value) ? (before ?? 0) + Number(value) : Number(value))
      }
      metrics.set(name, (before ?? 0) + (kind === "c" ? Number(value) : 1) / Number(rate))
    }

    return {
      add: (line) => Effect.sync(() => void add(line)),
      malformed: Effect.sync(() => void malformed++),
      snapshot: Effect.sync(() => ({
        counters: new Map(counters),
        gauges: new Map(gauges),
        timers: new Map(timers),
        malformed,
        refused
      }))
    }
  })
}

const decoder = new TextDecoder()

export const statsd = Effect.fnUntraced(function*({ payload, truncated }: Datagram.Datagram) {
  const metrics = yield* Metrics
  const lines = decoder.decode(payload).split("\n")
  // Of a packet that was cut, the last number may not be the one that was sent.
  if (truncated) {
    lines.pop()
    yield* metrics.malformed
  }
  for (const line of lines) {
    const trimmed = line.trim()
    if (trimmed !== "") yield* metrics.add(trimmed)
  }
})

/** Gauges have to be set in the order in which they arrive: one packet at a time. */
export const Statsd = (transport: Layer.Layer<DatagramTransport.DatagramTransport>) =>
  transport.pipe(
    Dispatch.serial(),
    Server.serveDatagram(statsd)
  )

if (isMain(import.meta)) {
  // Printed after the server has drained, since it is built before the server: every number that came is in it.
  const Report = Layer.effectDiscard(Effect.gen(function*() {
    const metrics = yield* Metrics
    yield* Effect.addFinalizer(() => Effect.flatMap(metrics.snapshot, (snapshot) => Console.log(snapshot)))
  }))
  runServer(
    "statsd",
    8125,
    (port) =>
      Statsd(NodeTransport.udp({ host: "127.0.0.1", port })).pipe(
        Layer.provide(Layer.provideMerge(Report, Metrics.layer))
      ),
    (address) => `echo "hits:1|c" | ${netcat(address).replace("nc", "nc -u -w 0")}`
  )
}
