/**
 * What an operator reads of a server, as routes for Effect's `HttpRouter`: metrics and health. It is a module of its own,
 * imported as `@socketserver/core/ServerHttp`, so that programs without HTTP do not load it.
 *
 * @since 0.1.0
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Layer from "effect/Layer"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Health from "./Health.ts"
import { prometheusName } from "./Metrics.ts"
import { Server, type Status } from "./Server.ts"

/**
 * `GET /metrics`: all metrics of the program in Prometheus' text format. Those of servers are there with `Metrics.layer`.
 *
 * @category routes
 * @since 0.1.0
 */
export const metrics = (options?: {
  /** Default `"/metrics"`. */
  readonly path?: HttpRouter.PathInput | undefined
}): Layer.Layer<never, never, HttpRouter.HttpRouter> =>
  PrometheusMetrics.layerHttp({ path: options?.path, metricNameMapper: prometheusName })

type Tag = Context.Service<any, Server["Service"]>

/**
 * `GET /livez` and `GET /readyz`: 200 or 503, with the server's status as text. See `Health` for what counts as ready.
 *
 * **Details**
 *
 * For servers with tags of their own, name the tags: there is a line for each, and 200 if all of them are ready. While a
 * server's layer is released, the HTTP server, which depends on it, is gone already.
 *
 * **Example** (Probes for Kubernetes, and metrics, on one port)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
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
 * const Program = HttpRouter.serve(Layer.merge(ServerHttp.health(), ServerHttp.metrics())).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { port: 9090 })),
 *   Layer.provideMerge(Echo)
 * )
 * ```
 *
 * @category routes
 * @since 0.1.0
 */
export const health: {
  (): Layer.Layer<never, never, HttpRouter.HttpRouter | Server>
  <const Tags extends readonly [Tag, ...ReadonlyArray<Tag>]>(
    ...tags: Tags
  ): Layer.Layer<never, never, HttpRouter.HttpRouter | Context.Service.Identifier<Tags[number]>>
} = (...tags: ReadonlyArray<Tag>): Layer.Layer<never, never, any> =>
  HttpRouter.use(Effect.fnUntraced(function*(router) {
    const servers: Array<{ readonly name: string; readonly status: Effect.Effect<Status> }> = []
    for (const tag of tags.length === 0 ? [Server] : tags) {
      const { status } = yield* tag
      servers.push({ name: tag.key, status })
    }
    const answer = (isWell: (status: Status) => boolean) =>
      Effect.map(
        Effect.forEach(servers, ({ name, status }) => Effect.map(status, (status) => ({ name, status }))),
        (all) =>
          HttpServerResponse.text(
            all.map(({ name, status }) => all.length === 1 ? `${status}\n` : `${name}: ${status}\n`).join(""),
            { status: all.every(({ status }) => isWell(status)) ? 200 : 503, headers: { "cache-control": "no-store" } }
          )
      )
    yield* router.add("GET", "/livez", answer(Health.isLiveStatus))
    yield* router.add("GET", "/readyz", answer(Health.isReadyStatus))
  }))
