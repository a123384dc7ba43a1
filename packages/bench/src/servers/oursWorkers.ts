/**
 * This project with workers: each connection in a worker, or its lines as tasks of a pool, or none of both; and a fiber server
 * beside it, which should not notice what the other one does.
 */
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport, WorkerPool } from "@socketserver/node"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as NetAddress from "effect/net/NetAddress"
import { control, ready, service } from "./control.ts"
import * as handlers from "./handlers.ts"

/** How requests get to workers, of which kind, how many there are, and how many connections each has at a time. */
const [how, kind, workers, concurrency] = process.argv[4]!.split(",") as [
  "inline" | "connections" | "tasks",
  "thread" | "process",
  string,
  string
]
const options = {
  kind,
  maxWorkers: Number(workers),
  minWorkers: Number(workers),
  concurrencyPerWorker: Number(concurrency)
}
const tcp = NodeTransport.tcp({ host: "127.0.0.1", port: 0 })
const handler = service === "compute" ? handlers.compute : handlers.echo

const sendAway = (connection: Connection.Connection) =>
  Effect.flatMap(WorkerPool.WorkerPool, (pool) =>
    Effect.forever(
      Effect.flatMap(
        Effect.flatMap(connection.readLine(), (line) => pool.run(handlers.answer, line)),
        (answer) => connection.write(`${answer}\n`)
      )
    ))

const measured: Layer.Layer<Server.Server, unknown> = how === "tasks"
  ? tcp.pipe(Dispatch.fiberPerRequest(), Server.serveStream(sendAway), Layer.provide(WorkerPool.layer(options)))
  : how === "connections"
  ? tcp.pipe(NodeDispatch.workerPerRequest(options), Server.serveStream(handler))
  : tcp.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handler))
const beside = tcp.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handlers.echo))

const portOf = (context: Context.Context<Server.Server>) =>
  (Context.get(context, Server.Server).address as NetAddress.InetAddress).port

const program = Effect.gen(function*() {
  const server = yield* Layer.build(measured)
  // All workers are there before anything is measured.
  const { info } = Context.get(server, Server.Server)
  while (true) {
    const { workers } = yield* info
    if (workers === undefined || workers.idle === options.maxWorkers) break
    yield* Effect.sleep("10 millis")
  }
  control()
  ready({ port: portOf(server), beside: portOf(yield* Layer.build(beside)) })
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program))
