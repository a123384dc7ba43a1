/**
 * The metrics of one server. What the server counts anyway is read when somebody reads the metrics; the rest, durations, is
 * taken from requests as they go by.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { identity } from "effect/Function"
import * as Metric from "effect/Metric"
import type { CloseReason } from "../CloseReason.ts"
import { addressAttributes, isOrderly, transportAttributes } from "./attributes.ts"
import type { Observed, ObservedRequest, Observer } from "./observed.ts"
import type { ServerImpl } from "./server.ts"

const reasons = Object.keys(
  {
    Completed: 0,
    PeerReset: 0,
    IdleTimeout: 0,
    ReadTimeout: 0,
    WriteTimeout: 0,
    RequestTimeout: 0,
    HandshakeFailed: 0,
    Refused: 0,
    HandlerFailed: 0,
    InvalidFrame: 0,
    Drained: 0,
    Killed: 0,
    WorkerCrashed: 0,
    WorkerTimeout: 0,
    TransportFailed: 0
  } satisfies Record<CloseReason["_tag"], 0>
) as Array<CloseReason["_tag"]>

type Attributes = Readonly<Record<string, string>>

interface Description {
  readonly id: string
  readonly description: string
  /** In the spelling of UCUM. */
  readonly unit?: string
}

export const descriptions = {
  accepted: { id: "socketserver.connections.accepted", description: "Connections that were accepted, or packets" },
  open: { id: "socketserver.connections.open", description: "Connections that are not released yet" },
  closed: { id: "socketserver.connections.closed", description: "Connections that have ended, by reason" },
  refused: { id: "socketserver.connections.refused", description: "Connections that were turned away, by policy" },
  io: { id: "socketserver.io", description: "Bytes received and transmitted", unit: "By" },
  inFlight: { id: "socketserver.requests.in_flight", description: "Handlers that run" },
  queued: { id: "socketserver.requests.queued", description: "Requests that wait for the strategy" },
  wait: {
    id: "socketserver.request.wait",
    description: "How long requests waited for the strategy before their handler ran",
    unit: "s"
  },
  duration: {
    id: "socketserver.request.duration",
    description: "How long handlers ran, with their finalizers",
    unit: "s"
  },
  handshake: { id: "socketserver.handshake.duration", description: "How long handshakes took", unit: "s" },
  dropped: { id: "socketserver.packets.dropped", description: "Packets that were dropped because too many waited" },
  truncated: { id: "socketserver.packets.truncated", description: "Packets that were cut" },
  workers: { id: "socketserver.workers", description: "Workers, by state" },
  workersStarted: { id: "socketserver.workers.started", description: "Workers that were started" },
  workersEnded: { id: "socketserver.workers.ended", description: "Workers that have ended, by how" }
} satisfies Record<string, Description>

export class ServerMetrics implements Observer {
  /** Until it ends: what stays of it then is small. */
  private server: ServerImpl | undefined
  private readonly clock: Clock.Clock
  private readonly context: Context.Context<never>
  private readonly boundaries: ReadonlyArray<number>
  private readonly registrations: Array<Metric.Registration> = []
  /** Ends the live reading: counters keep their last value, gauges go. */
  private readonly freezes: Array<() => void> = []
  private readonly histograms = new Map<string, Metric.Histogram<number>>()
  private readonly policies = new Set<string>()
  private attributes: Attributes = {}

  constructor(server: ServerImpl, boundaries: ReadonlyArray<number>) {
    this.server = server
    this.clock = server.config.clock
    this.context = server.config.context
    this.boundaries = boundaries
  }

  /** Nanoseconds. */
  get now(): bigint {
    return this.clock.currentTimeNanosUnsafe()
  }

  readonly observe = (): Observed => new Measured(this)

  readonly bound = (): void => {
    const server = this.server!
    const { transport, workers } = server.config
    const { "network.transport": network } = transportAttributes(server, server.shape.address)
    const at = Object.entries(addressAttributes("server", server.shape.address))
    this.attributes = {
      "server.name": server.name,
      ...Object.fromEntries(at.map(([key, value]) => [key, String(value)])),
      "network.transport": network!
    }

    this.counter(descriptions.accepted, () => server.accepted)
    this.gauge(descriptions.open, () => server.open)
    for (const reason of reasons) this.counter(descriptions.closed, () => server.closed[reason] ?? 0, { reason })
    for (const step of transport.steps) if ("policy" in step) this.addPolicy(step.policy)
    for (const policy of ["queue", "draining"]) this.addPolicy(policy)
    this.counter(descriptions.io, () => server.bytes("bytesRead"), { "network.io.direction": "receive" })
    this.counter(descriptions.io, () => server.bytes("bytesWritten"), { "network.io.direction": "transmit" })
    this.gauge(descriptions.inFlight, () => server.inFlight)
    this.gauge(descriptions.queued, () => server.waiting)
    const { waiting } = transport
    if (waiting !== undefined) {
      this.counter(descriptions.dropped, () => waiting.dropped)
      this.counter(descriptions.truncated, () => waiting.truncated)
    }
    if (workers !== undefined) {
      for (const state of ["starting", "busy", "idle"] as const) {
        this.gauge(descriptions.workers, () => workers.info()[state], { state })
      }
      this.counter(descriptions.workersStarted, () => workers.info().started)
      for (const how of ["crashed", "recycled", "killed"] as const) {
        this.counter(descriptions.workersEnded, () => workers.info()[how], { how })
      }
    }
  }

  addPolicy(policy: string): void {
    const { server } = this
    if (server === undefined || this.policies.has(policy)) return
    this.policies.add(policy)
    this.counter(descriptions.refused, () => server.refused[policy] ?? 0, { policy })
  }

  private counter(description: Description, count: () => number, attributes?: Attributes): void {
    const metric = Metric.counter(description.id, { ...this.options(description, attributes), incremental: true })
    // Frozen, it holds on to nothing of the server's.
    let current = count
    const get = () => ({ count: current(), incremental: true })
    this.registrations.push(Metric.registerUnsafe(metric, this.context, { get, ...hooks }))
    this.freezes.push(() => {
      const last = current()
      current = () => last
    })
  }

  private gauge(description: Description, value: () => number, attributes?: Attributes): void {
    const metric = Metric.gauge(description.id, this.options(description, attributes))
    const get = () => ({ value: value() })
    const { remove } = Metric.registerUnsafe(metric, this.context, { get, ...hooks })
    this.freezes.push(remove)
  }

  /** Nanoseconds that have passed, into the histogram with these attributes. */
  record(description: Description, since: bigint, key: "error.type" | "handshake" | undefined, value: string): void {
    const name = `${description.id} ${value}`
    let histogram = this.histograms.get(name)
    if (histogram === undefined) {
      const attributes = key === undefined ? undefined : { [key]: value }
      const { boundaries } = this
      histogram = Metric.histogram(description.id, { ...this.options(description, attributes), boundaries })
      this.histograms.set(name, histogram)
    }
    histogram.updateUnsafe(Number(this.now - since) / 1e9, this.context)
  }

  private options({ description, unit }: Description, attributes: Attributes | undefined) {
    return { description, attributes: { ...this.attributes, ...attributes, ...(unit === undefined ? {} : { unit }) } }
  }

  /** The server has ended. */
  freeze(): void {
    for (const freeze of this.freezes) freeze()
    this.freezes.length = 0
    this.server = undefined
  }

  /** Nothing is left in the registry. */
  remove(): void {
    for (const { remove } of this.registrations) remove()
    for (const histogram of this.histograms.values()) Metric.removeUnsafe(histogram, this.context)
  }
}

const hooks = { update: () => {}, modify: () => {} }

class Measured implements Observed {
  private readonly metrics: ServerMetrics
  private since = 0n

  constructor(metrics: ServerMetrics) {
    this.metrics = metrics
  }

  get within(): (context: Context.Context<never>) => Context.Context<never> {
    return identity
  }

  handshake<A, E>(name: string, shaking: Effect.Effect<A, E>): Effect.Effect<A, E> {
    return Effect.suspend(() => {
      const begun = this.metrics.now
      return Effect.onExit(shaking, (exit) =>
        Effect.sync(() => {
          if (Exit.isSuccess(exit)) this.metrics.record(descriptions.handshake, begun, "handshake", name)
        }))
    })
  }

  queued(): void {
    this.since = this.metrics.now
  }

  begun(): void {
    this.metrics.record(descriptions.wait, this.since, undefined, "")
    this.since = this.metrics.now
  }

  handled({ _tag }: CloseReason): void {
    this.metrics.record(descriptions.duration, this.since, isOrderly(_tag) ? undefined : "error.type", _tag)
  }

  message(): ObservedRequest {
    return new Measured(this.metrics)
  }

  closed(reason: CloseReason): void {
    if (reason._tag === "Refused") this.metrics.addPolicy(reason.policy)
  }
}
