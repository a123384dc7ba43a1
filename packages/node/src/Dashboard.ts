/**
 * A dashboard is a page for whoever operates a server: what it has as connections, its rates and latencies as small plots, why
 * connections close, and buttons to kill one, to suspend, resume and drain. It is routes for Effect's `HttpRouter`, as those of
 * `ServerHttp` are, and asks and tells what a `Control` does. All of it but the empty page takes a token. It is a module of
 * its own, imported as `@socketserver/node/Dashboard`, so that programs without HTTP do not load it.
 *
 * **Protocol**
 *
 * | route             |                                                                                                |
 * | ----------------- | ---------------------------------------------------------------------------------------------- |
 * | `GET /dashboard`  | the page: the same for everybody, and nothing of a server in it                                |
 * | `GET …/data`      | {@link Data}; `?server=` names the server whose connections are wanted, `&sort=` is {@link Sort} |
 * | `POST …/do`       | a `Control.Request`, answered with a `Control.Answer`; 200, or 400 where it was not done       |
 *
 * The last two take `Authorization: Bearer`, the token; a wrong one is 401.
 *
 * @since 0.1.0
 */
import type { ListenError } from "@socketserver/core/ListenError"
import type * as Server from "@socketserver/core/Server"
import * as ByteSize from "effect/ByteSize"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { createHash, timingSafeEqual } from "node:crypto"
import * as Control from "./Control.ts"
import { page, policy } from "./internal/dashboardPage.ts"
import { invalid } from "./internal/options.ts"
import { named, type Servers, viewOfConnection, viewOfServer } from "./internal/views.ts"

/**
 * Which connections come first.
 *
 * @category models
 * @since 0.1.0
 */
export type Sort = "oldest" | "newest" | "most" | "least"

/**
 * How long requests took, since the start: how many took at most so many seconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Latency {
  readonly bounds: ReadonlyArray<number>
  /** Of each bound; those of a smaller one are in it. */
  readonly counts: ReadonlyArray<number>
  readonly count: number
  /** The longest, in seconds. */
  readonly max: number
}

/**
 * All servers at a time.
 *
 * @category models
 * @since 0.1.0
 */
export interface Data {
  /** Milliseconds since 1970. */
  readonly at: number
  readonly servers: ReadonlyArray<
    Control.ServerView & {
      readonly stats: Server.Stats
      /** `null` where it is not measured: without `Metrics.layer`. */
      readonly latency: Latency | null
      /** Of the server that was asked for, or the first: how many there are, and the first 200. */
      readonly connections?: { readonly total: number; readonly shown: ReadonlyArray<Control.ConnectionView> }
    }
  >
}

const maxShown = 200
const maxBody = ByteSize.kibibytes(64)
const leastToken = 16

// ---- what is shown

const firstOf = (connections: ReadonlyArray<Server.ConnectionInfo>, sort: string | null) => {
  const byAge = sort !== "most" && sort !== "least"
  const sign = sort === "newest" || sort === "least" ? 1 : -1
  const key = (one: Server.ConnectionInfo) => byAge ? Duration.toMillis(one.age) : one.bytesRead + one.bytesWritten
  return connections.toSorted((a, b) => sign * (key(a) - key(b)) || a.id - b.id).slice(0, maxShown)
}

/** What `Metrics.layer` has measured of a server. */
const latencyOf = (metrics: ReadonlyArray<Metric.Metric.Snapshot>, { address, name }: Server.Info): Latency | null => {
  const isUnix = NetAddress.isUnixPathAddress(address)
  const host = isUnix ? address.path : NetAddress.formatHost(address)
  const port = isUnix ? undefined : String(address.port)
  let latency: { bounds: Array<number>; counts: Array<number>; count: number; max: number } | null = null
  for (const metric of metrics) {
    const { attributes = {}, id } = metric
    const isOfServer = attributes["server.name"] === name && attributes["server.port"] === port &&
      (attributes["server.address"] ?? "") === host
    if (!isOfServer) continue
    // There from the start; durations are from the first request on.
    if (id === "socketserver.connections.accepted") latency ??= { bounds: [], counts: [], count: 0, max: 0 }
    if (id !== "socketserver.request.duration" || metric.type !== "Histogram") continue
    const buckets = metric.state.buckets.filter(([bound]) => Number.isFinite(bound))
    latency ??= { bounds: [], counts: [], count: 0, max: 0 }
    latency.bounds = buckets.map(([bound]) => bound)
    const { counts } = latency
    buckets.forEach(([, count], i) => (counts[i] = (counts[i] ?? 0) + count))
    latency.count += metric.state.count
    latency.max = Math.max(latency.max, metric.state.max)
  }
  return latency
}

const dataOf = (servers: Servers, query: URLSearchParams): Effect.Effect<Data> =>
  Effect.gen(function*() {
    const names = Object.keys(servers)
    const asked = query.get("server")
    const selected = asked !== null && Object.hasOwn(servers, asked) ? asked : names[0]
    const metrics = yield* Metric.snapshot
    return {
      at: yield* Clock.currentTimeMillis,
      servers: yield* Effect.forEach(
        Object.entries(servers),
        Effect.fnUntraced(function*([name, server]) {
          const all = name === selected ? yield* server.connections.list : undefined
          return {
            ...yield* viewOfServer(name, server),
            stats: yield* server.stats,
            latency: latencyOf(metrics, yield* server.info),
            ...all === undefined ? {} : {
              connections: { total: all.length, shown: firstOf(all, query.get("sort")).map(viewOfConnection) }
            }
          }
        })
      )
    }
  })

// ---- who may see it

const digest = (text: string) => createHash("sha256").update(text).digest()

const isHostName = /^([^:/[\]\s]+|\[[^/\]\s]+\])$/

/** The name in a `Host` header, without the port. */
const hostOf = (header: string | undefined): string => (header ?? "").toLowerCase().replace(/:\d*$/, "")

const isLoopback = (address: string): boolean => address === "::1" || /^(::ffff:)?127\.\d+\.\d+\.\d+$/i.test(address)

const headers = {
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin"
}

const nothing = (status: number, more?: Record<string, string>) =>
  HttpServerResponse.empty({ status, headers: { ...headers, ...more } })

const json = (body: unknown, status = 200) => HttpServerResponse.jsonUnsafe(body, { status, headers })

/**
 * What a dashboard is told.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<Tag> {
  /**
   * Who has it may read everything, and drain the server: at least 16 characters, and better a random number than a word. A
   * shorter one is a `ListenError` with reason `InvalidOption`.
   */
  readonly token: Redacted.Redacted<string>
  /** Where the page is. Default `"/dashboard"`. */
  readonly path?: `/${string}` | undefined
  /**
   * The names by which browsers may reach it, without port, `"ops.example.com"` for instance; who connects does not matter
   * then. Default: `localhost`, `127.0.0.1` and `[::1]`, from this machine. One with a port or a scheme is a `ListenError`.
   */
  readonly hosts?: ReadonlyArray<string> | undefined
  /** Default: `Server.Server` alone. */
  readonly servers?: ReadonlyArray<Tag> | undefined
}

/**
 * The routes of a dashboard for these servers, by these names.
 *
 * @category routes
 * @since 0.1.0
 */
export const routes = (
  servers: Readonly<Record<string, Server.Server["Service"]>>,
  { hosts, path = "/dashboard", token }: Omit<Options<never>, "servers">
): Layer.Layer<never, ListenError, HttpRouter.HttpRouter> =>
  HttpRouter.use(Effect.fnUntraced(function*(router) {
    const secret = Redacted.value(token)
    if (secret.length < leastToken) {
      return yield* invalid("token", "<redacted>", `at least ${leastToken} characters`)
    }
    for (const host of hosts ?? []) {
      if (!isHostName.test(host)) {
        return yield* invalid(
          "hosts",
          host,
          "names as browsers have them, without scheme and port: \"ops.example.com\", \"[::1]\""
        )
      }
    }
    const expected = digest(secret)
    const scope = yield* Effect.scope
    const allowed = new Set((hosts ?? ["localhost", "127.0.0.1", "[::1]"]).map((host) => host.toLowerCase()))

    /** A page of another site whose name was made to point here comes with that name; then nothing is answered. */
    const isForUs = (request: HttpServerRequest.HttpServerRequest) =>
      allowed.has(hostOf(request.headers["host"])) &&
      (hosts !== undefined || Option.match(request.peerAddress, { onNone: () => true, onSome: isLoopback }))

    const guarded = <E>(
      answer: (request: HttpServerRequest.HttpServerRequest) => Effect.Effect<HttpServerResponse.HttpServerResponse, E>
    ) =>
      HttpMiddleware.withLoggerDisabled(Effect.gen(function*() {
        const request = yield* HttpServerRequest.HttpServerRequest
        return isForUs(request) ? yield* answer(request) : nothing(403)
      }))

    const withToken = <E>(
      answer: (request: HttpServerRequest.HttpServerRequest) => Effect.Effect<HttpServerResponse.HttpServerResponse, E>
    ) =>
      guarded((request) => {
        const [, given = ""] = /^bearer +(.+)$/i.exec(request.headers["authorization"] ?? "") ?? []
        // Digests have one length, so that the time it takes says nothing about the token.
        return timingSafeEqual(digest(given), expected)
          ? answer(request)
          : Effect.as(
            Effect.logDebug("dashboard: a wrong token"),
            nothing(401, { "www-authenticate": "Bearer" })
          )
      })

    const at = (route: string) => `${path.replace(/\/$/, "")}${route}` as `/${string}`
    yield* router.add(
      "GET",
      path,
      guarded(() =>
        Effect.succeed(
          HttpServerResponse.text(page, {
            contentType: "text/html; charset=utf-8",
            headers: { ...headers, "content-security-policy": policy }
          })
        )
      )
    )
    yield* router.add(
      "GET",
      at("/data"),
      withToken(({ url }) =>
        Effect.map(dataOf(servers, new URL(url, "http://localhost").searchParams), (data) => json(data))
      )
    )
    yield* router.add(
      "POST",
      at("/do"),
      withToken((request) =>
        Effect.matchEffect(Effect.provideService(request.text, HttpIncomingMessage.MaxBodySize, maxBody), {
          onFailure: () => Effect.succeed(nothing(413)),
          // In a fiber of the dashboard's: who closes the page after the click does not undo it.
          onSuccess: (text) =>
            Effect.flatMap(
              Effect.forkIn(Control.answer(servers, text), scope),
              (doing) => Effect.map(Fiber.join(doing), (answer) => json(answer, answer.ok ? 200 : 400))
            )
        })
      )
    )
  }))

/**
 * The routes of a dashboard beside a server, or beside several: by the names of their options; a second one of a name gets
 * `-2`.
 *
 * **Details**
 *
 * The page polls once a second while it is looked at; otherwise nothing is computed. Latencies are those that `Metrics.layer`
 * measures, where the server has it. The page takes its token from the address, `/dashboard#token=…`, or from a form; it keeps it
 * for as long as the tab is open, and sends it in a header, never as a cookie.
 *
 * **Gotchas**
 *
 * The token and the data go over the wire as they are: beyond this machine, put TLS before it, by a proxy or an SSH tunnel.
 *
 * Without `gracefulShutdownTimeout`, half a request, which takes no token, holds up the HTTP server's end for 20 seconds, and so
 * the drain.
 *
 * **Example** (Beside a server, on this machine)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { Dispatch, Metrics, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 * import * as Dashboard from "@socketserver/node/Dashboard"
 * import { Config, Effect, Layer, Stream } from "effect"
 * import { HttpRouter } from "effect/http"
 * import { createServer } from "node:http"
 *
 * const Echo = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *   Layer.provide(Metrics.layer())
 * )
 *
 * const Page = Layer.unwrap(Effect.map(Config.Redacted("DASHBOARD_TOKEN"), (token) => Dashboard.layer({ token })))
 *
 * const Program = HttpRouter.serve(Page).pipe(
 *   Layer.provide(NodeHttpServer.layer(() => createServer(), {
 *     host: "127.0.0.1",
 *     port: 9090,
 *     gracefulShutdownTimeout: "1 second"
 *   })),
 *   Layer.provideMerge(Echo)
 * )
 * ```
 *
 * @category routes
 * @since 0.1.0
 */
export const layer = <Tag extends Context.Service<any, Server.Server["Service"]> = typeof Server.Server>(
  options: Options<Tag>
): Layer.Layer<never, ListenError, HttpRouter.HttpRouter | Context.Service.Identifier<Tag>> =>
  Layer.unwrap(Effect.map(named(options.servers), (servers) => routes(servers, options)))
