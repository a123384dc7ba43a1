/** Limits at real sockets: the process's descriptors, farewells to clients that do not read, a listener that comes and goes. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Server, type StreamTransport } from "@socketserver/core"
import { ControlClient, NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Effect, Layer, Schedule, Stream } from "effect"
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import * as Net from "node:net"
import { createInterface } from "node:readline"
import { connect, directory, eventLoopTurn, once, portOf, receiveAll } from "./utils.ts"
import { echo } from "./workers/handlers.ts"

const start = (
  step: (
    transport: Layer.Layer<StreamTransport.StreamTransport>
  ) => Layer.Layer<StreamTransport.StreamTransport>
) =>
  NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
    step,
    Dispatch.fiberPerRequest(),
    Server.serveStream((connection) => Effect.andThen(connection.write("hello\n"), Stream.runDrain(connection.bytes))),
    Layer.build,
    Effect.map(Context.get(Server.Server))
  )

const until = (condition: Effect.Effect<boolean>) =>
  Effect.repeat(Effect.andThen(eventLoopTurn, condition), { until: (holds) => holds }).pipe(
    Effect.timeout("10 seconds")
  )

describe("a farewell", () => {
  it.live("arrives whole, and before the end of the connection", () =>
    Effect.gen(function*() {
      const farewell = "busy ".repeat(20_000)
      const server = yield* start(Admission.maxConnections({ max: 0, overflow: Admission.reject({ farewell }) }))
      const client = yield* connect(server.address)
      client.write("what the server never reads\n")
      assert.strictEqual(yield* receiveAll(client), farewell)
    }))

  it.live("to a client that does not read it is cut at its time, and counts no longer", () =>
    Effect.gen(function*() {
      const overflow = Admission.reject({ farewell: new Uint8Array(32 * 2 ** 20), timeout: "1 second", max: 1 })
      const server = yield* start(Admission.maxConnections({ max: 0, overflow }))
      const deaf = yield* connect(server.address)
      deaf.pause()
      yield* until(Effect.map(server.stats, ({ accepted }) => accepted === 1))
      // While one hears it, another one is turned away without.
      const second = yield* connect(server.address)
      assert.strictEqual(yield* receiveAll(second), "")
      yield* until(Effect.map(server.stats, ({ open }) => open === 0))
      assert.deepStrictEqual((yield* server.stats).refused, { maxConnections: 2 })
    }))
})

describe("pauseListening", () => {
  it.live("has the system refuse clients at the limit, and takes them again at the same port", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.maxConnections({ max: 2, overflow: Admission.pauseListening }))
      const port = portOf(server)
      for (let i = 0; i < 3; i++) {
        const clients = [yield* connect(server.address), yield* connect(server.address)]
        yield* Effect.forEach(clients, (client) => once(client, "data"))
        assert.strictEqual(yield* server.status, "saturated")
        assert.strictEqual((yield* Effect.flip(connect(server.address))).code, "ECONNREFUSED")
        for (const client of clients) client.destroy()
        yield* until(Effect.map(server.status, (status) => status === "ready"))
        assert.strictEqual(portOf(server), port)
      }
    }))

  it.live("keeps the limit for clients that were in flight", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.maxConnections({ max: 3, overflow: Admission.pauseListening }))
      const sockets = Array.from({ length: 40 }, () => Net.connect(portOf(server), "127.0.0.1").on("error", () => {}))
      let most = 0
      yield* until(Effect.map(server.stats, ({ inFlight }) => {
        most = Math.max(most, inFlight)
        return inFlight === 3 && sockets.every((socket) => !socket.connecting)
      }))
      yield* until(Effect.map(server.stats, ({ inFlight }) => {
        most = Math.max(most, inFlight)
        return sockets.filter((socket) => !socket.closed).length === 3
      }))
      assert.strictEqual(most, 3)
      for (const socket of sockets) socket.destroy()
      yield* until(Effect.map(server.stats, ({ open }) => open === 0))
      const next = yield* Effect.retry(connect(server.address), Schedule.recurs(100))
      yield* once(next, "data")
    }))
})

describe("requests in workers", () => {
  for (const kind of ["thread", "process"] as const) {
    it.live(`are limited and aged as any others, in a ${kind}`, () =>
      Effect.gen(function*() {
        const server = yield* NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          Admission.maxConnections({ max: 1 }),
          NodeDispatch.workerPerRequest({ kind, maxWorkers: 1 }),
          Server.serveStream(echo, { maxAge: { after: "1 second" } }),
          Layer.build,
          Effect.map(Context.get(Server.Server))
        )
        for (let i = 1; i <= 2; i++) {
          const client = yield* connect(server.address)
          yield* until(Effect.map(server.stats, ({ inFlight }) => inFlight === 1))
          assert.strictEqual(yield* receiveAll(yield* connect(server.address)), "")
          assert.strictEqual(yield* receiveAll(client), "")
          client.destroy()
          yield* until(Effect.map(server.stats, ({ open }) => open === 0))
          assert.deepStrictEqual((yield* server.stats).closed, { Refused: i, Drained: i })
        }
      }), 30_000)
  }
})

/** A server in a process that may have 64 descriptors; it says what it knows when it is asked. */
const withFewDescriptors = (control: string, where = "here") =>
  Effect.acquireRelease(
    Effect.callback<{
      readonly port: number
      readonly ask: Effect.Effect<
        {
          readonly status: string
          readonly accepted: number
          readonly open: number
          readonly refused: Record<string, number>
          readonly cpu: number
        }
      >
      readonly exited: () => boolean
      readonly kill: () => void
    }>((resume) => {
      const script = new URL("./admission/fewDescriptors.ts", import.meta.url).pathname
      const child = spawn(
        "sh",
        ["-c", "ulimit -n 64 && exec \"$0\" \"$@\"", process.execPath, script, control, where],
        {
          stdio: ["pipe", "pipe", "inherit"]
        }
      )
      const lines = createInterface(child.stdout)
      child.once("exit", () => resume(Effect.die(new Error("the server has ended"))))
      lines.once("line", (line) =>
        resume(Effect.succeed({
          port: Number(line),
          ask: Effect.callback((answer) => {
            lines.once("line", (line) => answer(Effect.succeed(JSON.parse(line))))
            child.stdin.write("\n")
          }),
          exited: () => child.exitCode !== null || child.signalCode !== null,
          kill: () => child.kill("SIGKILL")
        })))
    }),
    ({ kill }) => Effect.sync(kill)
  )

const visit = (port: number) =>
  Effect.callback<{ readonly socket: Net.Socket; readonly isServed: boolean }>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    socket.on("error", () => {})
    socket.once("data", () => resume(Effect.succeed({ socket, isServed: true })))
    socket.once("close", () => resume(Effect.succeed({ socket, isServed: false })))
  })

describe.runIf(existsSync("/proc/self/limits"))("a process that runs out of descriptors", () => {
  it.live("counts those that are still on their way to a worker's", () =>
    Effect.gen(function*() {
      const { ask, port } = yield* withFewDescriptors(`${yield* directory}/control.sock`, "process")
      const visits = yield* Effect.forEach(Array.from({ length: 100 }), () => visit(port), { concurrency: "unbounded" })
      const { accepted, refused } = yield* ask
      // Node has dropped none.
      assert.strictEqual(accepted, 100)
      assert.isAbove(refused["descriptors"]!, 0)
      yield* until(Effect.map(ask, ({ open, status }) => open === 0 && status === "ready"))
      assert.isTrue((yield* visit(port)).isServed)
      for (const { socket } of visits) socket.destroy()
    }), 60_000)

  it.live(
    "refuses clients before it does, says so, and serves again when some have left",
    () =>
      Effect.gen(function*() {
        const control = `${yield* directory}/control.sock`
        const { ask, exited, port } = yield* withFewDescriptors(control)
        for (let round = 1; round <= 3; round++) {
          const visits = yield* Effect.forEach(Array.from({ length: 100 }), () => visit(port), {
            concurrency: "unbounded"
          })
          const served = visits.filter(({ isServed }) => isServed)
          const full = yield* ask
          assert.isAbove(served.length, 4)
          assert.isBelow(served.length, 64 - 16)
          assert.deepStrictEqual([full.status, full.open], ["saturated", served.length])
          // Whoever operates it gets in.
          const { open } = yield* ControlClient.request(control, { do: "stats" })
          assert.strictEqual(open, served.length)
          // Each that was not served is known to have been refused: none was dropped by Node.
          assert.strictEqual(full.refused["descriptors"], round * (100 - served.length))
          for (const { socket } of visits) socket.destroy()
          yield* until(Effect.map(ask, ({ open, status }) => open === 0 && status === "ready"))
        }
        const before = yield* ask
        yield* Effect.repeat(eventLoopTurn, { times: 1_000 })
        // It has not turned round and round meanwhile.
        assert.isBelow((yield* ask).cpu - before.cpu, 500)
        assert.isFalse(exited())
      }),
    60_000
  )
})
