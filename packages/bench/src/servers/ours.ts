/** This project: fiber per request, the handlers as its users write them. */
import { Dispatch, Framing, Logging, Metrics, Server, Tracing, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { control, listenPath, ready, service } from "./control.ts"

/**
 * `loop` pulls and writes, `stream` does the same as a stream, `borrow` pulls without a copy. More words behind a comma:
 * `messages` serves messages, answered at once, `effects` the same, answered by an effect that has to be run.
 * `documented` leaves out the fast ways that rest on the inside of Node and Effect, `acceptors` listens with eight sockets, `deadlines` has
 * all of them set, `metrics` measures, `traces` traces for a tracer that keeps nothing, `logs` makes a line of each connection.
 */
const [style = "loop", ...words] = (process.argv[4] ?? "loop").split(",")

if (words.includes("documented")) {
  const internal = (path: string) => import(new URL(`../../../${path}`, import.meta.url).href)
  ;(await internal("node/src/internal/sharedBuffer.ts")).sharedBuffer.enabled = false
  ;(await internal("core/src/internal/parking.ts")).parking.enabled = false
}

const handlers: Record<string, Server.StreamHandler<any, never>> = {
  "echo loop": (connection) =>
    Effect.forever(Effect.flatMap(connection.pull, connection.write), { disableYield: true }),
  "echo borrow": (connection) =>
    Effect.forever(Effect.flatMap(connection.pullBorrowed, connection.write), { disableYield: true }),
  "echo stream": (connection) => Stream.run(connection.bytes, connection.sink),
  "lines loop": (connection) =>
    Effect.forever(Effect.flatMap(connection.readLine(), (line) => connection.write(`${line}\n`)), {
      disableYield: true
    }),
  "lines stream": (connection) =>
    connection.lines().pipe(Stream.map((line) => `${line}\n`), Stream.run(connection.sink))
}

const observed = [
  ...(words.includes("metrics") ? [Metrics.layer()] : []),
  ...(words.includes("traces")
    ? [
      Tracing.layer,
      Layer.succeed(Tracer.Tracer, Tracer.make({ span: (options) => new Tracer.NativeSpan(options) }))
    ]
    : []),
  ...(words.includes("logs") ? [Logging.layer({ ...Logging.lines, debug: true })] : [])
]
const deadlines: Server.ServerOptions = words.includes("deadlines")
  ? {
    idleTimeout: "1 minute",
    readTimeout: "10 seconds",
    writeTimeout: "10 seconds",
    requestTimeout: "1 hour",
    maxAge: { after: "1 hour" }
  }
  : {}

const program = Effect.gen(function*() {
  const transport = listenPath === undefined || listenPath === ""
    ? NodeTransport.tcp({ host: "127.0.0.1", port: 0, acceptors: words.includes("acceptors") ? 8 : 1 })
    : NodeTransport.unix({ path: listenPath })
  const framed = transport.pipe(Transport.framed(Framing.lines()), Dispatch.fiberPerRequest())
  const served = style === "messages"
    ? framed.pipe(Server.serveMessage(({ payload }) => Effect.succeed(payload)))
    : style === "effects"
    ? framed.pipe(Server.serveMessage(({ payload }) => Effect.sync(() => payload)))
    : transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handlers[`${service} ${style}`]!, deadlines))
  const layer = Layer.provide(served, Layer.mergeAll(Layer.empty, ...observed))
  const server = Context.get(yield* Layer.build(layer), Server.Server)
  control({
    drain: async () => {
      const began = performance.now()
      await Effect.runPromise(server.drain())
      return performance.now() - began
    }
  })
  const { address } = server
  ready(NetAddress.isInetAddress(address) ? { port: address.port } : { path: address.path })
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program))
