/** Packets of a unix socket in workers: they travel as bytes, and what is sent is sent by the server's socket. */
import { assert, describe, it } from "@effect/vitest"
import { type Datagram, DatagramError, type Handler, Server } from "@socketserver/core"
import { NodeDispatch, type WorkerPool } from "@socketserver/node"
import { UnixDatagram } from "@socketserver/unix-datagram"
import { Cause, Context, Effect, Exit, Layer, Scope } from "effect"
import type { NetAddress } from "effect/net"
import { spawn } from "node:child_process"
import { readdirSync } from "node:fs"
import { join } from "node:path"
import { directory, makeClient } from "./utils.ts"
import * as handlers from "./workers/handlers.ts"

/** A directory of its own, with a server, what it was told of failures, and clients in it. */
const serve = Effect.fnUntraced(function*<E>(
  options: WorkerPool.WorkerOptions,
  handler: Handler.Portable<Datagram.Datagram, unknown, E>
) {
  const parent = yield* directory
  const causes: Array<Cause.Cause<E>> = []
  const scope = yield* Scope.make()
  const server = yield* UnixDatagram.transport({ path: join(parent, "server.sock") }).pipe(
    NodeDispatch.workerPerRequest(options),
    Server.serveDatagram(handler, { onError: (cause) => Effect.sync(() => causes.push(cause)) }),
    Layer.build,
    Effect.map(Context.get(Server.Server)),
    Scope.provide(scope)
  )
  const close = Scope.close(scope, Exit.void)
  yield* Effect.addFinalizer(() => close)
  let clients = 0
  return {
    causes,
    close,
    parent,
    server,
    client: Effect.map(Effect.suspend(() => makeClient(join(parent, `client-${++clients}.sock`))), (client) => ({
      path: (client.address as NetAddress.UnixPathAddress).path,
      send: (text: string) => client.send(server.address, text),
      receive: Effect.map(client.receive, ({ payload }) => new TextDecoder().decode(payload))
    })),
    anonymous: Effect.map(makeClient(""), (client) => ({ send: (text: string) => client.send(server.address, text) }))
  }
})

for (const kind of ["thread", "process"] as const) {
  describe.concurrent(`a handler in a ${kind}`, () => {
    it.live("replies; a reply to a sender without an address fails typed, in the worker and in `onError`", () =>
      Effect.gen(function*() {
        const { anonymous, causes, client: bind, server } = yield* serve({ kind, maxWorkers: 1 }, handlers.obey)
        const client = yield* bind
        yield* client.send("worker")
        const worker = yield* client.receive
        assert.notStrictEqual(worker, `${process.pid}/0`)
        const unnamed = yield* anonymous
        yield* unnamed.send(`tell ${client.path}`)
        assert.strictEqual(yield* client.receive, "NoReturnAddress")
        yield* unnamed.send("answer me")
        yield* client.send("hello")
        assert.strictEqual(yield* client.receive, "hello")
        yield* server.awaitIdle
        const errors = causes.map(Cause.squash)
        assert.lengthOf(errors, 1)
        assert(errors[0] instanceof DatagramError.DatagramError)
        assert.strictEqual(errors[0].reason._tag, "NoReturnAddress")
        const { closed } = yield* server.stats
        assert.deepStrictEqual(closed, { Completed: 3, TransportFailed: 1 })
        const { strategy, transport, workers } = yield* server.info
        assert.deepStrictEqual([strategy, transport, workers?.crashed], ["workerPerRequest", "unix datagram", 0])
      }))

    it.live("that crashes, or computes for longer than its `timeout`, does so alone", () =>
      Effect.gen(function*() {
        const { client: bind, server } = yield* serve({ kind, maxWorkers: 2, timeout: "1 second" }, handlers.obey)
        const client = yield* bind
        for (const doom of ["crash", "compute"]) yield* client.send(doom)
        yield* client.send("alive")
        assert.strictEqual(yield* client.receive, "alive")
        yield* server.awaitIdle
        const { closed } = yield* server.stats
        assert.deepStrictEqual(closed, { Completed: 1, WorkerCrashed: 1, WorkerTimeout: 1 })
      }))
  })
}

describe("a process for each request", () => {
  it.live("answers three clients in turn, and leaves a child that is not ours to whoever waits for it", () =>
    Effect.gen(function*() {
      const child = spawn(process.execPath, ["-e", "process.exit(72)"])
      const { client: bind, close, parent, server } = yield* serve(
        { kind: "process", maxWorkers: 1, recycleAfter: 1 },
        handlers.obey
      )
      for (let i = 0; i < 3; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const client = yield* bind
          yield* client.send(`hello world ${i}\n`)
          assert.strictEqual(yield* client.receive, `hello world ${i}\n`)
        }))
      }
      yield* close
      assert.strictEqual(yield* server.status, "stopped")
      assert.deepStrictEqual(readdirSync(parent), [])
      const code = yield* Effect.callback<number | null>((resume) => {
        if (child.exitCode !== null) resume(Effect.succeed(child.exitCode))
        else child.once("exit", (code) => resume(Effect.succeed(code)))
      })
      assert.strictEqual(code, 72)
    }))
})
