/**
 * A server with a control, for a process with few descriptors: tells its port, and at each line of its input how it is. Where it is
 * told to, its handlers are in a process of their own.
 */
import { Dispatch, Logging, Server } from "@socketserver/core"
import { Control, NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Effect, Layer, Stream } from "effect"
import { NetAddress } from "effect/net"
import { greet } from "../workers/handlers.ts"

const program = Effect.gen(function*() {
  const tcp = NodeTransport.tcp({ host: "127.0.0.1", port: 0 })
  const layer = process.argv[3] === "process"
    ? tcp.pipe(
      NodeDispatch.workerPerRequest({ kind: "process", maxWorkers: 1, concurrencyPerWorker: 1_000 }),
      Server.serveStream(greet)
    )
    : tcp.pipe(
      Dispatch.fiberPerRequest(),
      Server.serveStream((connection) => Effect.andThen(connection.write("hello\n"), Stream.runDrain(connection.bytes)))
    )
  const server = yield* layer.pipe(
    Layer.build,
    Effect.map(Context.get(Server.Server))
  )
  yield* Control.make({ path: process.argv[2]!, servers: { server } })
  const report = Effect.gen(function*() {
    const { accepted, open, refused } = yield* server.stats
    const { system, user } = process.cpuUsage()
    const cpu = (system + user) / 1_000
    process.stdout.write(`${JSON.stringify({ status: yield* server.status, accepted, open, refused, cpu })}\n`)
  })
  process.stdin.on("data", () => Effect.runSync(report))
  process.stdout.write(`${NetAddress.isInetAddress(server.address) ? server.address.port : 0}\n`)
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program).pipe(Effect.provide(Logging.off)))
