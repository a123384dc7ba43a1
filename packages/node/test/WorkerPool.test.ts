/** A pool where something goes wrong: workers that cannot be started, or end while somebody waits for them. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, Handler, ListenError, Server, WorkerError } from "@socketserver/core"
import { NodeDispatch, NodeTransport, WorkerPool } from "@socketserver/node"
import { Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { execFile } from "node:child_process"
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import * as Path from "node:path"
import { directory, until } from "./utils.ts"
import * as handlers from "./workers/handlers.ts"

/** A server of the pool. */
const serve = <E, ELayer>(
  pool: WorkerPool.WorkerPool["Service"],
  handler: Handler.Portable<Connection.Connection, unknown, E, ELayer>
) =>
  Layer.build(
    NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
      NodeDispatch.workers,
      Server.serveStream(handler),
      Layer.provide(Layer.succeed(WorkerPool.WorkerPool, pool))
    )
  )

const portable = (module: string, name: string) =>
  Handler.portable(module, name, (_: Connection.Connection) => Effect.void)

const missing = portable(handlers.square.module, "missing")

const soon = Effect.timeout("15 seconds")

for (const kind of ["thread", "process"] as const) {
  const make = (options?: Partial<WorkerPool.WorkerOptions>) => WorkerPool.make({ kind, maxWorkers: 1, ...options })

  describe.concurrent(`a pool with a ${kind}`, () => {
    it.live(
      "goes on when another one could be started again, after there were no descriptors for it",
      () =>
        Effect.gen(function*() {
          const main = Path.join(import.meta.dirname, "workers/exhausted.ts")
          const command = `ulimit -n 256 && exec "$0" "$@"`
          const output = yield* Effect.callback<string>((resume) => {
            execFile("sh", ["-c", command, process.execPath, main, kind], (_, stdout, stderr) => {
              resume(Effect.succeed(stdout + stderr))
            })
          })
          assert.strictEqual(output, "9\n")
        }),
      60_000
    )

    it.live("fails the tasks that wait when its scope is closed, and those that come later", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { info, run } = yield* Scope.provide(make(), scope)
        const tasks = yield* Effect.replicateEffect(
          Effect.forkChild(Effect.flip(run(handlers.doomed, "wait")), { startImmediately: true }),
          3
        )
        yield* until("one runs", Effect.map(info, ({ busy }) => busy === 1))
        yield* Scope.close(scope, Exit.void)
        const later = Effect.flip(run(handlers.square, 3))
        for (const error of [...yield* soon(Fiber.joinAll(tasks)), yield* soon(later)]) {
          assert.isTrue(error instanceof WorkerError.WorkerError && error.reason._tag === "WorkerCrashed")
        }
      }))

    it.live("starts no server whose handler's module ends the worker that loads it, and goes on", () =>
      Effect.gen(function*() {
        const pool = yield* make()
        const dies = portable(new URL("./workers/dies.ts", import.meta.url).href, "dies")
        const error = yield* soon(Effect.flip(serve(pool, dies)))
        assert.isTrue(error instanceof ListenError.ListenError && error.reason._tag === "HandlerNotFound")
        assert.match((error as Error).message, /`dies` in .*dies\.ts: .*ended.* code 9/)
        assert.strictEqual(yield* pool.run(handlers.square, 3), 9)
      }))

    it.live("starts no server whose handler is missing while a worker starts, and goes on without it", () =>
      Effect.gen(function*() {
        const pool = yield* make()
        yield* Effect.flip(pool.run(handlers.doomed, "exit"))
        assert.deepStrictEqual(yield* Effect.map(pool.info, ({ idle, starting }) => [idle, starting]), [0, 1])
        const error = yield* soon(Effect.flip(serve(pool, missing)))
        assert.isTrue(error instanceof ListenError.ListenError && error.reason._tag === "HandlerNotFound")
        assert.strictEqual(yield* pool.run(handlers.square, 3), 9)
      }))

    it.live("starts no server whose handler is missing while a worker loads what others need", () =>
      Effect.gen(function*() {
        const file = Path.join(yield* directory, "slow")
        const pool = yield* make({ env: { ...process.env, TEST_SLOW: file } })
        const builds = (count: number) =>
          until(`${count} built`, Effect.sync(() => existsSync(file) && readFileSync(file).length === count))
        writeFileSync(`${file}.go`, "")
        yield* serve(pool, handlers.slow)
        yield* builds(1)
        rmSync(`${file}.go`)
        yield* Effect.flip(pool.run(handlers.doomed, "exit"))
        yield* builds(2)
        const starting = yield* Effect.forkChild(Effect.flip(serve(pool, missing)), { startImmediately: true })
        writeFileSync(`${file}.go`, "")
        const error = yield* soon(Fiber.join(starting))
        assert.isTrue(error instanceof ListenError.ListenError && error.reason._tag === "HandlerNotFound")
      }))

    it.live("starts a server whose handler's layer has failed before", () =>
      Effect.gen(function*() {
        const file = Path.join(yield* directory, "reluctant")
        const pool = yield* make({ env: { ...process.env, TEST_RELUCTANT: file } })
        writeFileSync(file, "")
        const error = yield* soon(Effect.flip(serve(pool, handlers.reluctant)))
        assert.isTrue("_tag" in error && error._tag === "Oops")
        rmSync(file)
        yield* soon(serve(pool, handlers.reluctant))
      }))

    it.live("does not mind what a handler's own code says to it", () =>
      Effect.gen(function*() {
        const { info, run } = yield* make()
        for (const what of [null, "something", { id: 1 }]) yield* run(handlers.call, what)
        assert.strictEqual(yield* run(handlers.square, 3), 9)
        assert.strictEqual((yield* info).crashed, 0)
      }))
  })
}

describe("a pool of threads that the system does not start", () => {
  /** More than there is room for. */
  const tooLarge = 2 ** 40

  it.live("is none, and says why", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        WorkerPool.make({ kind: "thread", resourceLimits: { stackSizeMb: tooLarge } })
      )
      assert.strictEqual(error.reason._tag, "WorkersNotStarted")
    }))

  it.live("tries again after a pause", () =>
    Effect.gen(function*() {
      const resourceLimits = { stackSizeMb: 4 }
      const { events, run } = yield* WorkerPool.make({ kind: "thread", maxWorkers: 1, resourceLimits })
      const notStarted = yield* events.pipe(
        Stream.filter(({ _tag }) => _tag === "WorkerNotStarted"),
        Stream.runHead,
        (first) => Effect.forkChild(first, { startImmediately: true })
      )
      resourceLimits.stackSizeMb = tooLarge
      yield* Effect.flip(run(handlers.doomed, "exit"))
      yield* soon(Fiber.join(notStarted))
      resourceLimits.stackSizeMb = 4
      assert.strictEqual(yield* run(handlers.square, 3), 9)
    }))
})
