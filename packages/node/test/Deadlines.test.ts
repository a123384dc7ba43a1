/**
 * Deadlines on real sockets, the same under every strategy: clients that do not read, that send byte by byte, and handlers that
 * take too long.
 */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, type Handler, Server, type ServerEvent, type StreamTransport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Duration, Effect, Fiber, Layer, Stream } from "effect"
import type * as Net from "node:net"
import * as Path from "node:path"
import { connect, directory, once, receiveAll } from "./utils.ts"
import { obey } from "./workers/handlers.ts"

const tcp = Effect.succeed(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }))
const unix = Effect.map(directory, (path) => NodeTransport.unix({ path: Path.join(path, "server.sock") }))

type Step = (
  transport: Layer.Layer<StreamTransport.StreamTransport>,
  options: Server.ServerOptions<any>
) => Layer.Layer<Server.Server, any>

const handler = obey as Handler.Portable<any, unknown, any, never>
const strategies: Record<string, Step> = {
  serial: (transport, options) => transport.pipe(Dispatch.serial(), Server.serveStream(handler.handle, options) as any),
  fiberPerRequest: (transport, options) =>
    transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(handler.handle, options) as any),
  "workers, threads": (transport, options) =>
    transport.pipe(
      NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 1 }),
      Server.serveStream(handler, options)
    ),
  "workers, processes": (transport, options) =>
    transport.pipe(
      NodeDispatch.workerPerRequest({ kind: "process", maxWorkers: 1 }),
      Server.serveStream(handler, options)
    )
}

/** A server, what it said, and a client that has told its handler what to do. */
const serve = Effect.fnUntraced(function*(
  transport: Layer.Layer<StreamTransport.StreamTransport>,
  step: Step,
  options: Server.ServerOptions<any>
) {
  const causes: Array<unknown> = []
  const server = yield* Effect.map(
    Layer.build(step(transport, {
      shutdown: { grace: "100 millis" },
      onError: (cause) => Effect.sync(() => causes.push(cause)),
      ...options
    })),
    Context.get(Server.Server)
  )
  const closed: Array<Extract<ServerEvent.ServerEvent, { readonly _tag: "Closed" }>> = []
  yield* Effect.forkScoped(
    Stream.runForEach(server.events, (event) => Effect.sync(() => event._tag === "Closed" && closed.push(event))),
    { startImmediately: true }
  )
  return {
    server,
    causes,
    visit: Effect.fnUntraced(function*(command: string) {
      const socket = yield* connect(server.address)
      socket.write(command)
      return socket
    }),
    /** How the one connection ended, and how long it took. */
    ending: Effect.gen(function*() {
      yield* server.awaitIdle
      yield* Effect.yieldNow
      assert.strictEqual(closed.length, 1)
      return { reason: closed[0]!.reason._tag, millis: Duration.toMillis(closed[0]!.duration) }
    }).pipe(Effect.timeoutOrElse({
      duration: "15 seconds",
      orElse: () => Effect.die(new Error("the connection did not end"))
    }))
  }
})

const reset = (socket: Net.Socket) =>
  Effect.callback<string | undefined>((resume) => {
    socket.once("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(error.code)))
    socket.once("end", () => resume(Effect.succeed("an end")))
    socket.resume()
  })

for (const [place, transport] of Object.entries({ tcp, unix })) {
  for (const [strategy, step] of Object.entries(strategies)) {
    describe(`${place}, ${strategy}`, () => {
      it.live("a peer that never reads has its connection ended by `writeTimeout`", () =>
        Effect.gen(function*() {
          const { causes, ending, visit } = yield* serve(yield* transport, step, { writeTimeout: "200 millis" })
          const client = yield* visit("flood\n")
          const { millis, reason } = yield* ending
          assert.strictEqual(reason, "WriteTimeout")
          assert.isAtLeast(millis, 190)
          // A client of Node 22 that has not read all before the reset takes it for an end.
          if (place === "tcp" && !process.version.startsWith("v22.")) {
            assert.strictEqual(yield* reset(client), "ECONNRESET")
          }
          assert.strictEqual(causes.length, 1)
        }))

      it.live("and one that does not read the last of its answer, too", () =>
        Effect.gen(function*() {
          const { ending, visit } = yield* serve(yield* transport, step, { writeTimeout: "200 millis" })
          yield* visit("leave\n")
          const { millis, reason } = yield* ending
          assert.strictEqual(reason, "WriteTimeout")
          assert.isBelow(millis, 10_000)
        }))

      it.live("a peer that reads slowly, but reads, gets all of it", () =>
        Effect.gen(function*() {
          const { ending, visit } = yield* serve(yield* transport, step, { writeTimeout: "1 second" })
          const client = yield* visit("leave\n")
          let received = 0
          client.on("data", (chunk: Buffer) => {
            received += chunk.length
            client.pause()
            // 32 MB in pieces of 64 KiB, some 500 of them: longer than the timeout in all.
            setTimeout(() => client.resume(), 4)
          })
          yield* once(client, "end")
          client.destroy()
          assert.strictEqual(received, 32_000_000)
          const { millis, reason } = yield* ending
          assert.strictEqual(reason, "Completed")
          assert.isAbove(millis, 1_000)
        }), 30_000)

      it.live("a line that comes byte by byte is ended by `readTimeout`, and the client hears why", () =>
        Effect.gen(function*() {
          const { ending, visit } = yield* serve(yield* transport, step, {
            readTimeout: "200 millis",
            onTimeout: (connection) => connection.write("too slow\n")
          })
          const client = yield* visit("echo one\n")
          const dripping = setInterval(() => client.write("x"), 20)
          assert.strictEqual(yield* receiveAll(client), "one\ntoo slow\n")
          clearInterval(dripping)
          client.destroy()
          assert.strictEqual((yield* ending).reason, "ReadTimeout")
        }))

      it.live("a handler that takes too long is interrupted by `requestTimeout`, and its finalizers run", () =>
        Effect.gen(function*() {
          const { causes, ending, visit } = yield* serve(yield* transport, step, { requestTimeout: "1 second" })
          const client = yield* visit("wait\n")
          assert.strictEqual(yield* receiveAll(client), "waiting\ninterrupted\n")
          client.destroy()
          assert.strictEqual((yield* ending).reason, "RequestTimeout")
          assert.deepStrictEqual(causes, [])
        }))
    })
  }
}

describe("a process that stands still", () => {
  const standStill = (millis: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, millis)

  for (const deadline of ["idleTimeout", "readTimeout"] as const) {
    it.live(`does not hold it against those who have sent by then: ${deadline}`, () =>
      Effect.gen(function*() {
        const { ending, visit } = yield* serve(yield* tcp, strategies["fiberPerRequest"]!, { [deadline]: "200 millis" })
        const client = yield* visit("echo one\necho t")
        const data = yield* Effect.forkChild(receiveAll(client))
        yield* once(client, "data")
        client.write("wo\n")
        standStill(400)
        client.end()
        assert.strictEqual(yield* Fiber.join(data), "one\ntwo\n")
        assert.strictEqual((yield* ending).reason, "Completed")
      }))
  }
})

describe("requestTimeout, with workers", () => {
  for (const kind of ["thread", "process"] as const) {
    it.live(`ends a handler that computes for ever, with its ${kind}`, () =>
      Effect.gen(function*() {
        const { ending, visit } = yield* serve(
          yield* tcp,
          strategies[kind === "thread" ? "workers, threads" : "workers, processes"]!,
          {
            requestTimeout: "200 millis"
          }
        )
        yield* visit("compute\n")
        assert.strictEqual((yield* ending).reason, "RequestTimeout")
      }))
  }
})
