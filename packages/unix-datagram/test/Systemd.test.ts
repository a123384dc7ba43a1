/** Notifications as systemd receives them, by a socket that is named in the environment. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { Systemd } from "@socketserver/unix-datagram"
import { Context, Deferred, Effect, Exit, Fiber, Layer, References, Scope } from "effect"
import { existsSync } from "node:fs"
import { join } from "node:path"
import { directory, eventLoopTurn, makeClient, needs, run } from "./utils.ts"

/** Sets these variables of the environment for one test, and no others that are meant. */
const withEnvironment = (variables: Readonly<Record<string, string>>) => {
  const set = (values: Readonly<Record<string, string | undefined>>) => {
    for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) {
      if (values[name] === undefined) delete process.env[name]
      else process.env[name] = values[name]
    }
  }
  return Effect.acquireRelease(
    Effect.sync(() => {
      const before = { ...process.env }
      set(variables)
      return before
    }),
    (before) => Effect.sync(() => set(before))
  )
}

/** In the place of systemd. */
const receiver = (variables: Readonly<Record<string, string>> = {}, abstract = "") =>
  Effect.gen(function*() {
    const path = `${abstract}${join(yield* directory, "notify")}`
    const socket = yield* makeClient(path)
    yield* withEnvironment({ ...variables, NOTIFY_SOCKET: path.replace("\0", "@") })
    const next = Effect.map(socket.receive, ({ payload }) => new TextDecoder().decode(payload))
    /** Up to and with this one. */
    const until = (wanted: string): Effect.Effect<ReadonlyArray<string>> =>
      Effect.flatMap(next, (message) =>
        message === wanted
          ? Effect.succeed([message])
          : Effect.map(until(wanted), (others) => [message, ...others]))
    return { next, until }
  })

const servers = (handler: Server.StreamHandler<never, never>) =>
  MemoryTransport.stream().pipe(Dispatch.fiberPerRequest(), Server.serveStream(handler))

const watchdog = { WATCHDOG_USEC: "10000", WATCHDOG_PID: String(process.pid) }

describe("notify", () => {
  it.live("says when the servers listen, that they live, and that they stop, before they drain and while they do", () =>
    Effect.gen(function*() {
      const { next, until } = yield* receiver(watchdog)
      const begun = yield* Deferred.make<void>()
      const finish = yield* Deferred.make<void>()
      const scope = yield* Scope.make()
      const context = yield* servers(() => Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(finish)))
        .pipe(
          Systemd.notify({ status: "serving\nnobody yet" }),
          Layer.build,
          Scope.provide(scope)
        )
      const server = Context.get(context, Server.Server)
      assert.strictEqual(yield* next, "READY=1\nSTATUS=serving nobody yet\n")
      yield* until("WATCHDOG=1\n")
      yield* until("WATCHDOG=1\n")
      assert.strictEqual(yield* server.status, "ready")
      yield* MemoryTransport.connect(server.address)
      yield* Deferred.await(begun)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* until("STOPPING=1\n")
      yield* until("WATCHDOG=1\n")
      yield* until("WATCHDOG=1\n")
      assert.strictEqual(yield* server.status, "draining")
      yield* Deferred.succeed(finish, undefined)
      yield* Fiber.join(closing)
    }))

  it.live("gives no sign of life while the service is not healthy", () =>
    Effect.gen(function*() {
      const { next } = yield* receiver(watchdog)
      let asked = 0
      const healthy = Effect.suspend(() => {
        asked++
        return asked === 1 ? Effect.succeed(false) : asked === 2 ? Effect.fail("no") : Effect.succeed(asked > 3)
      })
      yield* servers(() => Effect.void).pipe(Systemd.notify({ healthy }), Layer.build)
      assert.strictEqual(yield* next, "READY=1\n")
      assert.strictEqual(yield* next, "WATCHDOG=1\n")
      assert.isAtLeast(asked, 4)
    }).pipe(Effect.provideService(References.MinimumLogLevel, "None")))

  it.live("gives no sign of life that is another process's", () =>
    Effect.gen(function*() {
      const { next } = yield* receiver({ ...watchdog, WATCHDOG_PID: "1" })
      const healthy = Effect.die("asked")
      yield* Effect.scoped(servers(() => Effect.void).pipe(Systemd.notify({ healthy }), Layer.build))
      assert.strictEqual(yield* next, "READY=1\n")
      assert.strictEqual(yield* next, "STOPPING=1\n")
    }))

  it.live("does nothing without systemd", () =>
    Effect.gen(function*() {
      yield* withEnvironment({ WATCHDOG_USEC: "10000" })
      yield* Effect.scoped(servers(() => Effect.void).pipe(Systemd.notify({ status: "x" }), Layer.build))
      assert.isFalse(yield* Systemd.status("x"))
    }))

  it.live("fails the layer where systemd cannot be told that it is ready, and the servers stop", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "nobody")
      yield* withEnvironment({ NOTIFY_SOCKET: path })
      let server: Server.Server["Service"] | undefined
      const seen = Layer.effectDiscard(Effect.map(Server.Server, (it) => server = it)).pipe(
        Layer.provideMerge(servers(() => Effect.void))
      )
      const error = yield* Effect.flip(Effect.scoped(seen.pipe(Systemd.notify(), Layer.build)))
      assert.strictEqual(error._tag, "NotifyError")
      assert.match(error.message, /^cannot notify systemd at \/.*\/nobody: sendto ENOENT/)
      assert.strictEqual(yield* server!.status, "stopped")
    }).pipe(Effect.provideService(References.MinimumLogLevel, "None")))
})

describe("send", () => {
  it.live.runIf(process.platform === "linux")("reaches an abstract name", () =>
    Effect.gen(function*() {
      const { next } = yield* receiver({}, "\0")
      assert.isTrue(yield* Systemd.send({ MAINPID: "7", STATUS: "ü" }))
      assert.strictEqual(yield* next, "MAINPID=7\nSTATUS=ü\n")
    }))

  it.live("waits for a receiver that does not keep up", () =>
    Effect.gen(function*() {
      const { next } = yield* receiver()
      const texts = Array.from({ length: 200 }, (_, i) => `${i}`)
      // One socket that is read by this process too: it fills up before the event loop turns.
      const sending = yield* Effect.forkChild(Effect.forEach(texts, Systemd.status), { startImmediately: true })
      for (const text of texts) assert.strictEqual(yield* next, `STATUS=${text}\n`)
      assert.isTrue((yield* Fiber.join(sending)).every(Boolean))
    }))

  it.live("refuses what is no unix socket", () =>
    Effect.gen(function*() {
      yield* withEnvironment({ NOTIFY_SOCKET: "vsock:2:1234" })
      assert.match(
        (yield* Effect.flip(Systemd.status("x"))).message,
        /at vsock:2:1234: only a path or an abstract name/
      )
    }))

  const socat = needs("socat", "-V", "socat")
  it.live.runIf(socat.runIf)(`is understood by socat${socat.note}`, () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "notify")
      const program = yield* run("socat", ["-u", `UNIX-RECV:${path}`, "STDOUT"])
      while (!existsSync(path)) yield* eventLoopTurn
      yield* withEnvironment({ NOTIFY_SOCKET: path })
      yield* Systemd.send({ READY: "1", STATUS: "here" })
      assert.deepStrictEqual([yield* program.line, yield* program.line], ["READY=1", "STATUS=here"])
    }))
})
