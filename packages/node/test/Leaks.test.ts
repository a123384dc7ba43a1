/** What is left when a scope closes: nothing. Descriptors, timers and fibers are counted before and after. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server, type StreamTransport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Context, Effect, Exit, Layer, Metric, Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

/** Counts the fibers that run with it in their context: the server's, from accept to close. */
const makeFiberCount = () => {
  const count = { started: 0, active: 0 }
  const service: Metric.FiberRuntimeMetricsService = {
    recordFiberStart: () => {
      count.started++
      count.active++
    },
    recordFiberEnd: () => {
      count.active--
    }
  }
  return { count, provide: Effect.provideService(Metric.FiberRuntimeMetrics, service) }
}

/** What the process holds: descriptors, where the system tells them, and what keeps its event loop going. */
const held = () => {
  const resources = process.getActiveResourcesInfo()
  const count = (...kinds: ReadonlyArray<string>) => resources.filter((kind) => kinds.includes(kind)).length
  return {
    descriptors: existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0,
    sockets: count("TCPSocketWrap", "TCPServerWrap", "PipeWrap", "PipeServerWrap"),
    timers: count("Timeout")
  }
}

const eventLoopTurn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/**
 * The system closes what it was told to within a few turns of the loop. Waits for that without a fiber or a timer of its own,
 * which would be counted; fewer than before is fine, the test runner has timers that come and go.
 */
const settlesWithin = (limits: Record<string, number>, current: () => Record<string, number>) =>
  Effect.gen(function*() {
    const excess = () => Object.entries(current()).filter(([kind, count]) => count > limits[kind]!)
    const deadline = performance.now() + 10_000
    while (excess().length > 0 && performance.now() < deadline) yield* eventLoopTurn
    assert.deepStrictEqual(excess(), [])
  })

/** A client of one kind or another: polite, finishing early, silent, or resetting. */
const visit = (options: Net.NetConnectOpts, kind: number) =>
  Effect.callback<void>((resume) => {
    const socket = Net.connect({ ...options, allowHalfOpen: true })
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.void))
    socket.on("connect", () => {
      if (kind === 0) socket.write("hello\n")
      else if (kind === 1) socket.end("hello\n")
      else if (kind === 2) socket.end()
      else if ("path" in options) socket.destroy()
      else socket.resetAndDestroy()
    })
    socket.on("data", () => {
      if (kind === 0) socket.end()
    })
    socket.on("end", () => socket.end())
  })

const echo: Server.StreamHandler<any, never> = (connection) => Stream.run(connection.bytes, connection.sink)

const serveIn = (scope: Scope.Scope, transport: Layer.Layer<StreamTransport.StreamTransport>) =>
  transport.pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(echo, { idleTimeout: "1 minute" }),
    Layer.build,
    Effect.map(Context.get(Server.Server)),
    Scope.provide(scope)
  )

describe("after many connections and the end of the scope", () => {
  const check = (
    transport: Layer.Layer<StreamTransport.StreamTransport>,
    connections: number,
    optionsOf: (address: NetAddress.SocketAddress) => Net.NetConnectOpts
  ) => {
    const fibers = makeFiberCount()
    return Effect.gen(function*() {
      // One connection first: what a process opens once, and keeps, is not a leak.
      yield* Effect.scoped(Effect.gen(function*() {
        const server = yield* serveIn(yield* Effect.scope, transport)
        yield* visit(optionsOf(server.address), 0)
      }))
      yield* eventLoopTurn
      const before = held()
      const startedBefore = fibers.count.started

      const scope = yield* Scope.make()
      const server = yield* serveIn(scope, transport)
      const options = optionsOf(server.address)
      yield* Effect.forEach(Array.from({ length: connections }, (_, i) => i % 4), (kind) => visit(options, kind), {
        concurrency: 64,
        discard: true
      })
      // Node accepts one in each turn of the loop: the last that have left may still wait for that, with none open.
      yield* Effect.repeat(Effect.andThen(eventLoopTurn, server.stats), {
        until: ({ accepted }) => accepted === connections
      })
      yield* server.awaitIdle
      const stats = yield* server.stats
      assert.strictEqual(Object.values(stats.closed).reduce((sum, count) => sum + count, 0), connections)
      assert.deepStrictEqual([stats.open, stats.queued, stats.inFlight], [0, 0, 0])
      assert.deepStrictEqual(yield* server.connections.list, [])
      yield* Scope.close(scope, Exit.void)

      yield* settlesWithin(before, held)
      assert.isAtLeast(fibers.count.started - startedBefore, connections)
      yield* settlesWithin({ active: 0 }, () => ({ active: fibers.count.active }))
    }).pipe(fibers.provide)
  }

  it.live("10,000 over TCP", () =>
    check(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }), 10_000, (address) => {
      assert.isTrue(NetAddress.isInetAddress(address))
      return { host: "127.0.0.1", port: (address as NetAddress.InetAddress).port }
    }), 60_000)

  it.live("2,000 over a unix socket, and its file is gone", () =>
    Effect.gen(function*() {
      const directory = mkdtempSync(join(tmpdir(), "socketserver-"))
      yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(directory, { recursive: true })))
      const path = join(directory, "s.sock")
      yield* check(NodeTransport.unix({ path }), 2_000, () => ({ path }))
      assert.isFalse(existsSync(path))
    }), 60_000)

  it.live("2,000 in memory", () => {
    const fibers = makeFiberCount()
    return Effect.gen(function*() {
      const scope = yield* Scope.make()
      const server = yield* serveIn(scope, MemoryTransport.stream())
      for (let i = 0; i < 2_000; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const client = yield* MemoryTransport.connect(server.address)
          yield* client.write("hello\n")
          assert.strictEqual(yield* client.readLine(), "hello")
        }))
      }
      yield* server.awaitIdle
      yield* Scope.close(scope, Exit.void)
      yield* settlesWithin({ active: 0 }, () => ({ active: fibers.count.active }))
    }).pipe(fibers.provide)
  }, 60_000)
})

describe("what fails to bind", () => {
  it.live("leaves nothing open, 1,024 times over", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const server = yield* serveIn(scope, NodeTransport.tcp({ host: "127.0.0.1", port: 0 }))
      const { port } = server.address as NetAddress.InetAddress
      const failures = [
        NodeTransport.tcp({ port: -1 }),
        NodeTransport.tcp({ host: "127.0.0.1", port }),
        NodeTransport.tcp({ host: "192.0.2.1", port: 0 }),
        NodeTransport.unix({ path: "x".repeat(200) })
      ]
      yield* eventLoopTurn
      const before = held()
      for (let i = 0; i < 1_024; i++) {
        const error = yield* Effect.flip(Effect.scoped(serveIn(yield* Effect.scope, Layer.fresh(failures[i % 4]!))))
        assert.strictEqual(error._tag, "ListenError")
      }
      yield* settlesWithin(before, held)
      yield* Scope.close(scope, Exit.void)
    }), 60_000)
})
