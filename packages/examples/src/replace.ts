/**
 * A server that is replaced while it runs, and no client notices: on SIGHUP it starts its successor, a new process of the same
 * program, which inherits the listening socket. The clients that wait in it are the successor's then, those that are in are
 * served to their end. Under systemd, which keeps the socket itself, a restart is all it takes.
 *
 *     node src/replace.ts              then: kill -HUP <pid>
 *     systemd-socket-activate --listen=127.0.0.1:7017 node src/replace.ts
 */
import { Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Config, Console, Data, Effect, Queue, Stream } from "effect"
import { spawn } from "node:child_process"
import { isMain, netcat, reportDrains, run } from "./run.ts"

/** Where a successor finds the socket: the first descriptor after the standard ones. */
const inherited = 3

/** A socket that was not opened here goes back to whoever has it too, as soon as this server gives way. */
const transport = (port: number) =>
  process.env["REPLACES"] !== undefined
    ? NodeTransport.fd({ fd: inherited, onSuspend: "release" })
    : process.env["LISTEN_FDS"] !== undefined
    ? NodeTransport.systemd({ onSuspend: "release" })
    : NodeTransport.tcp({ host: "127.0.0.1", port })

const replaceable = (port: number) =>
  transport(port).pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream((connection) =>
      connection.lines().pipe(Stream.map((line) => `${process.pid} ${line}\n`), Stream.run(connection.sink))
    )
  )

/**
 * Before the drain: takes no new client, and waits for those that are in. A drain alone would end a connection that looks idle,
 * and the request of a client that has just come may still be on its way.
 */
const giveWay = Effect.gen(function*() {
  const server = yield* Server.Server
  yield* Effect.addFinalizer(() => Effect.andThen(server.suspend, Effect.timeoutOption(server.awaitIdle, "10 seconds")))
})

/** SIGHUP, as often as it comes; unheard, it would end the process. */
const hangUps = Effect.gen(function*() {
  const queue = yield* Queue.sliding<void>(1)
  const listener = () => Queue.offerUnsafe(queue, undefined)
  yield* Effect.acquireRelease(
    Effect.sync(() => process.on("SIGHUP", listener)),
    () => Effect.sync(() => process.off("SIGHUP", listener))
  )
  return Queue.take(queue)
})

class NoSuccessor extends Data.TaggedError("NoSuccessor")<{ readonly message: string }> {}

/** Completes when the successor listens. One that ends before, or takes too long, is none: this server goes on. */
const startSuccessor = (descriptor: number) =>
  Effect.callback<void, NoSuccessor>((resume) => {
    const successor = spawn(process.execPath, process.argv.slice(1), {
      detached: true,
      env: { ...process.env, REPLACES: String(process.pid) },
      stdio: ["ignore", "inherit", "inherit", descriptor, "ipc"]
    })
    successor.once("error", (error) => resume(Effect.fail(new NoSuccessor({ message: error.message }))))
    successor.once("exit", (code) => resume(Effect.fail(new NoSuccessor({ message: `it ended with ${code}` }))))
    successor.once("message", () => {
      successor.disconnect()
      successor.unref()
      resume(Effect.void)
    })
    return Effect.sync(() => successor.kill("SIGKILL"))
  }).pipe(Effect.timeout("10 seconds"))

/** Serves until it is replaced. */
const untilReplaced = Effect.gen(function*() {
  const server = yield* Server.Server
  const { descriptor } = yield* server.info
  yield* reportDrains({ [`replace ${process.pid}`]: server })
  yield* giveWay
  const hangUp = yield* hangUps
  yield* Console.log(`replace ${process.pid}: ${netcat(server.address)}`)
  // With a callback, it is no failure that the predecessor has ended.
  process.send?.("listening", () => {})
  while (true) {
    yield* hangUp
    const successor = yield* Effect.result(startSuccessor(descriptor!))
    if (successor._tag === "Success") return
    yield* Console.error(`replace ${process.pid}: no successor: ${successor.failure.message}`)
  }
})

if (isMain(import.meta)) {
  const port = Config.Int("PORT").pipe(Config.withDefault(7017))
  run(Effect.flatMap(port, (port) => Effect.scoped(untilReplaced).pipe(Effect.provide(replaceable(port)))))
}
