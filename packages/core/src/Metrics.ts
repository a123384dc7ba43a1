/**
 * A server's counts as Effect metrics, so that whatever reads those, a Prometheus endpoint or an OTLP exporter, sees the
 * server. Off unless this layer is provided. Most of it is read from the server when the metrics are read, and costs requests
 * nothing.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { descriptions, ServerMetrics } from "./internal/measured.ts"
import { Measured } from "./internal/observed.ts"

/**
 * What metrics can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface MetricsOptions {
  /** The upper bounds of the histograms' buckets, in seconds, rising. Default: 14 from 0.0001 to 3,600. */
  readonly boundaries?: ReadonlyArray<number> | undefined
}

const defaultBoundaries = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600, 3_600]

/**
 * Measures the servers that it is provided to.
 *
 * **Details**
 *
 * Each series has the attributes `server.name` (the server's `name` option), `server.address`, `server.port` and
 * `network.transport`. For servers of packets a "connection" is a packet, or a session; of values, a value. For servers of
 * messages a request is a message. A handler that is interrupted with its connection has the connection's reason.
 *
 * | metric                            | type      | further attributes                                |
 * | --------------------------------- | --------- | ------------------------------------------------- |
 * | `socketserver.connections.accepted` | counter |                                                   |
 * | `socketserver.connections.open`   | gauge     |                                                   |
 * | `socketserver.connections.closed` | counter   | `reason`: the tag of the `CloseReason`            |
 * | `socketserver.connections.refused` | counter  | `policy`                                          |
 * | `socketserver.io` (bytes)         | counter   | `network.io.direction`: `receive` or `transmit`   |
 * | `socketserver.requests.in_flight` | gauge     |                                                   |
 * | `socketserver.requests.queued`    | gauge     |                                                   |
 * | `socketserver.request.wait` (s)   | histogram |                                                   |
 * | `socketserver.request.duration` (s) | histogram | `error.type`: the reason, unless `Completed` or `Drained` |
 * | `socketserver.handshake.duration` (s) | histogram | `handshake`; those that succeeded             |
 * | `socketserver.packets.dropped`, `.truncated` | counter | of servers of packets                    |
 * | `socketserver.workers`            | gauge     | `state`: `starting`, `busy`, `idle`               |
 * | `socketserver.workers.started`    | counter   |                                                   |
 * | `socketserver.workers.ended`      | counter   | `how`: `crashed`, `recycled`, `killed`            |
 *
 * When a server ends, its gauges go, and its counters and histograms stay as they are until this layer ends: provide it after
 * an exporter, and the exporter's last report has the final values.
 *
 * **Gotchas**
 *
 * Of two servers with the same name at the same address (`reusePort`), only the later one's counts are seen: give each a
 * `name`. `Server.handleOne` is not measured.
 *
 * **Example** (A server whose metrics Prometheus reads)
 *
 * ```ts
 * import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
 * import { Dispatch, Metrics, Server } from "@socketserver/core"
 * import * as ServerHttp from "@socketserver/core/ServerHttp"
 * import { NodeTransport } from "@socketserver/node"
 * import { Layer, Stream } from "effect"
 * import { HttpRouter } from "effect/http"
 * import { createServer } from "node:http"
 *
 * const Echo = NodeTransport.tcp({ port: 9999 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *   Layer.provide(Metrics.layer())
 * )
 *
 * const Http = HttpRouter.serve(ServerHttp.metrics()).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { port: 9090 }))
 * )
 *
 * NodeRuntime.runMain(Layer.launch(Layer.merge(Echo, Http)))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = ({ boundaries = defaultBoundaries }: MetricsOptions = {}): Layer.Layer<never> =>
  Layer.effect(
    Measured,
    Effect.gen(function*() {
      const all = new Set<ServerMetrics>()
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          for (const metrics of all) metrics.remove()
        })
      )
      return (server) =>
        Effect.acquireRelease(
          Effect.sync(() => {
            const metrics = new ServerMetrics(server, boundaries)
            all.add(metrics)
            return metrics
          }),
          (metrics) => Effect.sync(() => metrics.freeze())
        )
    })
  )

/**
 * The name of a metric for Prometheus, as OpenTelemetry translates it: with its unit, and `_total` for counters. Names that
 * are not of this module stay as they are.
 *
 * @category combinators
 * @since 0.1.0
 */
export const prometheusName = (name: string): string => prometheusNames.get(name) ?? name

const { duration, handshake, inFlight, io, open, queued, wait, workers } = descriptions
const prometheusNames = new Map<string, string>(
  Object.values(descriptions).map((description) => {
    const { id } = description
    if (description === io) return [id, `${id}.bytes.total`]
    if ([duration, handshake, wait].some((timed) => timed === description)) return [id, `${id}.seconds`]
    return [id, [open, inFlight, queued, workers].some((gauge) => gauge === description) ? id : `${id}.total`]
  })
)
