/**
 * A server on a socket that its parent has opened. Its arguments are a transport and the options; each line of its input is an
 * order. It prints where it listens, and what became of each order. Answers name the process, so that one sees who answers.
 */
import { Dispatch, Logging, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Context, Effect, Exit, Layer, Scope, Stream } from "effect"
import { existsSync, readFileSync } from "node:fs"
import { createInterface } from "node:readline"

const [, , kind, json = "{}"] = process.argv
const options = JSON.parse(json)

const say = (value: unknown) => Effect.sync(() => void process.stdout.write(`${JSON.stringify(value)}\n`))

const build = (kind === "fd" ? NodeTransport.fd(options) : NodeTransport.systemd(options)).pipe(
  Dispatch.fiberPerRequest(),
  Server.serveStream((connection) =>
    connection.lines().pipe(Stream.map((line) => `${process.pid} ${line}\n`), Stream.run(connection.sink))
  ),
  (server) => Effect.map(Layer.build(Layer.fresh(server)), Context.get(Server.Server))
)

/** Is a descriptor closed when this process starts a program (`O_CLOEXEC`)? */
const closesOnExec = (descriptor: number) => {
  const file = `/proc/self/fdinfo/${descriptor}`
  if (!existsSync(file)) return true
  return (Number.parseInt(/flags:\s*(\d+)/.exec(readFileSync(file, "utf8"))![1]!, 8) & 0o2000000) !== 0
}

const program = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const server = yield* Scope.provide(build, scope)
  const { descriptor, transport } = yield* server.info
  const address = String(server.address)
  yield* say({ pid: process.pid, address, transport, descriptor, closesOnExec: closesOnExec(descriptor!) })
  const orders: Record<string, Effect.Effect<unknown, { readonly message: string }, Scope.Scope>> = {
    suspend: server.suspend,
    resume: server.resume,
    again: build,
    drain: Effect.asVoid(server.drain()),
    close: Scope.close(scope, Exit.void),
    accepted: Effect.map(server.stats, ({ accepted }) => accepted),
    status: server.status
  }
  yield* Stream.fromAsyncIterable(createInterface({ input: process.stdin }), (cause) => cause as Error).pipe(
    Stream.runForEach((order) =>
      orders[order]!.pipe(
        Effect.match({ onFailure: (error) => error.message, onSuccess: (value) => value ?? "done" }),
        Effect.flatMap((result) => say({ [order]: result }))
      )
    )
  )
})

await program.pipe(
  Effect.catch((error) => say({ error: error.message })),
  Effect.scoped,
  Effect.provide(Logging.off),
  Effect.runPromise
)
process.exit()
