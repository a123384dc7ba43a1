/**
 * A server's connections and requests as spans of Effect's tracer. Off unless this layer is provided and there is a tracer to
 * tell them to.
 *
 * @since 0.1.0
 */
import * as Layer from "effect/Layer"
import { Traced } from "./internal/observed.ts"
import { trace } from "./internal/traced.ts"

/**
 * Traces the servers that it is provided to.
 *
 * **Details**
 *
 * - `NAME connection` or `NAME session` (kind `server`), from the moment it is accepted until it is released; `NAME` is the
 *   server's `name`
 * - in it `NAME handshake tls` and the like, and `NAME request`, the handler with its finalizers and `onError`; what the
 *   handler traces is within that one, also in a worker
 * - of a connection of messages, `NAME request` for each message, with `socketserver.message.id`
 * - `NAME datagram` (kind `server`), `NAME value` (kind `consumer`): a packet, or a value of a stream, has but this one span
 *
 * Their attributes are those of OpenTelemetry's semantic conventions: `network.transport`, `network.type`,
 * `network.peer.address` and `.port` (who is at the other end), `client.address` and `.port` (the client, which a proxy's
 * header may have told), `network.local.*`, `server.*`; and `socketserver.request.id`, `socketserver.bytes_read`,
 * `socketserver.bytes_written`, `socketserver.close.reason`. `error.type` is the reason, unless that is `Completed` or
 * `Drained`. Spans end as failures when the server's own code has failed.
 *
 * A span that encloses the building of the server's layer is the parent of all. Sampling is inherited; `TracerEnabled`,
 * `MinimumTraceLevel` and `DisablePropagation` are heeded. What the server logs of a request is logged in its span.
 *
 * **Gotchas**
 *
 * Whether there is a tracer is decided when the server starts: one that is provided to the server's layer, beside or after
 * this one. Effect's default tracer, which keeps spans for nobody, does not count.
 *
 * **Example** (Spans to a collector)
 *
 * ```ts
 * import { Dispatch, Server, Tracing } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 * import { Layer, Stream } from "effect"
 * import { FetchHttpClient } from "effect/http"
 * import { Otlp } from "effect/observability"
 *
 * const Collector = Otlp.layerJson({ baseUrl: "http://localhost:4318", resource: { serviceName: "echo" } }).pipe(
 *   Layer.provide(FetchHttpClient.layer)
 * )
 *
 * const Echo = NodeTransport.tcp({ port: 9999 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *   Layer.provide([Tracing.layer, Collector])
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<never> = Layer.succeed(Traced, trace)
