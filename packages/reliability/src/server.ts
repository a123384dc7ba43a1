/**
 * The server that is attacked: built as users build theirs, from what its argument says, in a process of its own. It tells how it
 * is when it is asked, drains at SIGTERM, and then says what it has done.
 */
import * as NodeRuntime from "@effect/platform-node-shared/NodeRuntime"
import { collect } from "@socketserver/bench/control"
import { Dispatch, ProxyProtocol, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as NetAddress from "effect/net/NetAddress"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { counted, echo, large, lines } from "./handlers.ts"
import type { Target } from "./processes.ts"

/** The handlers by name. */
const services = { counted, echo, large, lines }

export interface ServerConfig {
  readonly service: keyof typeof services
  /** A path of a unix socket; without one it is TCP on the loopback interface. */
  readonly path?: string | undefined
  readonly tls?: { readonly certFile: string; readonly keyFile: string; readonly handshakeTimeout?: string } | undefined
  /** Behind a proxy, on this machine, that sends the header of the PROXY protocol. */
  readonly proxy?: { readonly timeout: string } | undefined
  /** In workers of this kind; without it a fiber each. */
  readonly workers?: "thread" | "process" | undefined
  readonly idleTimeout?: string | undefined
  readonly readTimeout?: string | undefined
  readonly writeTimeout?: string | undefined
  readonly keepAlive?: string | undefined
  /** Where TCP listens; by default at the loopback interface. */
  readonly host?: string | undefined
  /** Follow the events? Then the report has them, by tag. */
  readonly events?: boolean | undefined
}

export interface Report {
  readonly status: Server.Status
  readonly stats: Server.Stats
  readonly events: { readonly [tag: string]: number }
  /** User and system time so far, in milliseconds. */
  readonly cpu: number
  /** How long its thread was ready and had no core so far, in milliseconds: others had them. */
  readonly starved: number
  /** Resident memory, and what of it is in use by objects and buffers, in bytes. */
  readonly memory: number
  readonly used: number
  /** How many descriptors it has open. */
  readonly descriptors: number
  /** How many lines it has logged above Debug, but for its own start and end; and the first of them. */
  readonly logged: number
  readonly firstLogged: string | undefined
}

/** What it says at its end: what it has done, and logged, in all. */
export interface Summary extends Pick<Report, "stats" | "logged" | "firstLogged"> {}

/** Time on a core, time of waiting for one, and turns, as "Scheduler Statistics" of Linux's documentation has it. */
const schedstat = "/proc/thread-self/schedstat"

const config: ServerConfig = JSON.parse(process.argv[2]!)

let logged = 0
/** When it starts and when it drains, it tells so itself. */
let tells = true
process.once("SIGTERM", () => {
  tells = true
})
let firstLogged: string | undefined
const counting = Logger.make(({ logLevel, message }) => {
  if (!LogLevel.isGreaterThan(logLevel, tells ? "Info" : "Debug")) return
  logged++
  firstLogged ??= `${logLevel}: ${String(message)}`
})

const { host = "127.0.0.1" } = config
const listening = config.path === undefined
  ? NodeTransport.tcp({ host, port: 0, backlog: 4_096, keepAlive: config.keepAlive as Duration.Input | undefined })
  : NodeTransport.unix({ path: config.path, backlog: 4_096 })
const prefaced = config.proxy === undefined ? listening : listening.pipe(
  ProxyProtocol.accept({ trusted: ["127.0.0.0/8"], timeout: config.proxy.timeout as Duration.Input })
)
const transport = config.tls === undefined ? prefaced : prefaced.pipe(
  NodeTransport.tls({ ...config.tls, handshakeTimeout: config.tls.handshakeTimeout as Duration.Input | undefined })
)
const options = {
  idleTimeout: config.idleTimeout as Duration.Input | undefined,
  readTimeout: config.readTimeout as Duration.Input | undefined,
  writeTimeout: config.writeTimeout as Duration.Input | undefined
}
const handler = services[config.service]
const server: Layer.Layer<Server.Server, unknown> = config.workers === undefined
  ? transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handler, options))
  : transport.pipe(
    NodeDispatch.workerPerRequest({ kind: config.workers, maxWorkers: 2, minWorkers: 2, concurrencyPerWorker: 64 }),
    Server.serveStream(handler, options)
  )

const events: Record<string, number> = {}
const count = ({ _tag }: { readonly _tag: string }) =>
  Effect.sync(() => {
    events[_tag] = (events[_tag] ?? 0) + 1
  })

const program = Effect.gen(function*() {
  let running: Server.Server["Service"] | undefined
  // Made first, it is the last: the server has drained by then.
  yield* Effect.addFinalizer(() =>
    running === undefined ? Effect.void : Effect.map(running.stats, (stats) => {
      const summary: Summary = { stats, logged, firstLogged }
      process.send!({ summary })
    })
  )
  running = Context.get(yield* Layer.build(server), Server.Server)
  const { address, stats, status } = running
  if (config.events === true) yield* Effect.forkScoped(Stream.runForEach(running.events, count))
  // Workers that are there from the start are waited for: what comes is measured without their start.
  yield* Effect.repeat(
    Effect.andThen(Effect.sleep("10 millis"), running.info),
    { until: ({ workers }) => workers === undefined || workers.idle === 2 }
  )
  process.on("message", (ask: { readonly report: "now" | "collected" }) => {
    if (ask.report === "collected") collect()
    const { system, user } = process.cpuUsage()
    const memory = process.memoryUsage()
    const report: Report = {
      status: Effect.runSync(status),
      stats: Effect.runSync(stats),
      events,
      cpu: (user + system) / 1_000,
      starved: existsSync(schedstat) ? Number(readFileSync(schedstat, "latin1").split(" ")[1]) / 1e6 : Number.NaN,
      memory: memory.rss,
      used: memory.heapUsed + memory.external,
      descriptors: readdirSync("/proc/self/fd").length,
      logged,
      firstLogged
    }
    process.send!({ report })
  })
  process.on("disconnect", () => process.exit())
  const target: Target = NetAddress.isInetAddress(address)
    ? { host, port: address.port }
    : { path: address.path }
  tells = false
  process.send!({ ready: target })
  return yield* Effect.never
}).pipe(
  Effect.scoped,
  Effect.provide(Layer.merge(Logger.layer([counting]), Layer.succeed(References.MinimumLogLevel, "All")))
)

NodeRuntime.runMain(program, { disableErrorReporting: true })
