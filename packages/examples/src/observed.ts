/**
 * A server with everything that its operator asks for: metrics for Prometheus and probes for Kubernetes on a second port, a
 * probe that only opens a connection on a third, and, where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector, spans, metrics
 * and logs sent there.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Dispatch, Health, Metrics, Server, Tracing } from "@socketserver/core"
import * as ServerHttp from "@socketserver/core/ServerHttp"
import { NodeTransport } from "@socketserver/node"
import { Config, Console, Effect, Layer, Option } from "effect"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { Otlp } from "effect/observability"
import { createServer } from "node:http"
import { echo } from "./echo.ts"
import { isMain, netcat, run } from "./run.ts"

export interface Ports {
  readonly echo: number
  readonly http: number
  readonly probe: number
}

export const Observed = (ports: Ports) =>
  HttpRouter.serve(Layer.merge(ServerHttp.metrics(), ServerHttp.health()), {
    disableLogger: true,
    disableListenLog: true
  }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { host: "127.0.0.1", port: ports.http })),
    Layer.provideMerge(
      NodeTransport.tcp({ host: "127.0.0.1", port: ports.echo }).pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(echo, { name: "echo" }),
        Health.tcpProbe(NodeTransport.tcp({ host: "127.0.0.1", port: ports.probe })),
        Layer.provide(Tracing.layer)
      )
    )
  )

/** Outside the exporter, so that its last report has the final counts. */
export const Exported = (collector: Option.Option<string>) =>
  Option.match(collector, {
    onNone: () => Metrics.layer(),
    onSome: (baseUrl) =>
      Otlp.layerJson({ baseUrl, resource: { serviceName: "echo" } }).pipe(
        Layer.provide(FetchHttpClient.layer),
        Layer.provideMerge(Metrics.layer())
      )
  })

if (isMain(import.meta)) {
  const Settings = Config.all({
    echo: Config.Int("PORT").pipe(Config.withDefault(7007)),
    http: Config.Int("HTTP_PORT").pipe(Config.withDefault(9090)),
    probe: Config.Int("PROBE_PORT").pipe(Config.withDefault(8081)),
    collector: Config.option(Config.String("OTEL_EXPORTER_OTLP_ENDPOINT"))
  })
  Layer.effectDiscard(Effect.gen(function*() {
    const http = yield* HttpServer.HttpServer
    yield* Console.log(`echo: ${netcat((yield* Server.Server).address)}`)
    yield* Console.log(`operator: curl ${HttpServer.formatAddress(http.address)}/metrics`)
  })).pipe(
    Layer.provide(
      Layer.unwrap(
        Effect.map(Settings, ({ collector, ...ports }) => Layer.provide(Observed(ports), Exported(collector)))
      )
    ),
    Layer.launch,
    run
  )
}
