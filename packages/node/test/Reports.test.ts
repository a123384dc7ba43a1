/** What threads report in shared memory: each report once, in order, after the messages before it, and one wake-up for many. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, type Handler, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport, WorkerPool } from "@socketserver/node"
import { DatagramTestClient, TestClient } from "@socketserver/testing"
import { Context, Effect, Layer } from "effect"
import { Reports } from "../src/internal/reports.ts"
import { until } from "./utils.ts"
import * as handlers from "./workers/handlers.ts"

/** A thread's end and the server's end of the same memory. */
const pair = () => {
  const server = new Reports()
  const thread = new Reports(server.memory)
  const taken: Array<ReadonlyArray<unknown>> = []
  return {
    server,
    thread,
    taken,
    take: (received = 0) => server.take(received, (...report) => taken.push(report))
  }
}

describe("reports", () => {
  it("are taken once, in order", () => {
    const { take, taken, thread } = pair()
    assert.isFalse(take())
    assert.isTrue(thread.add("ended", 2 ** 50 + 1, 3, 2 ** 40, 0))
    assert.isTrue(thread.add("released", 2, 5, 6, 0))
    assert.isTrue(take())
    assert.isFalse(take())
    assert.deepStrictEqual(taken, [["ended", 2 ** 50 + 1, 3, 2 ** 40], ["released", 2, 5, 6]])
  })

  it("wait for the messages that were posted before them", () => {
    const { take, taken, thread } = pair()
    thread.add("ended", 1, 0, 0, 0)
    thread.add("released", 1, 0, 0, 1)
    assert.isTrue(take(0))
    assert.isFalse(take(0))
    assert.strictEqual(taken.length, 1)
    assert.isTrue(take(1))
    assert.strictEqual(taken.length, 2)
  })

  it("are no more than there is room for, and find room again however many there were", () => {
    const { take, taken, thread } = pair()
    let room = 0
    while (thread.add("ended", room, 0, 0, 0)) room++
    assert.isAbove(room, 100)
    take()
    assert.deepStrictEqual(taken.map(([, id]) => id), Array.from({ length: room }, (_, id) => id))
    // The indices begin anew at 2 ** 32.
    const { memory } = new Reports()
    new Int32Array(memory, 0, 2).fill(2 ** 31 - 3)
    const [writer, reader] = [new Reports(memory), new Reports(memory)]
    const ids: Array<number> = []
    for (let id = 0; id < room + 6; id++) {
      assert.strictEqual(writer.add("ended", id, 0, 0, 0), id < room)
    }
    reader.take(0, (_, id) => ids.push(id))
    assert.strictEqual(ids.length, room)
    assert.strictEqual(ids.at(-1), room - 1)
  })

  it("may lead to another look, which takes none of them twice", () => {
    const { server, thread } = pair()
    const ids: Array<number> = []
    for (let id = 1; id <= 4; id++) thread.add("ended", id, 0, 0, 0)
    server.take(0, (_, id) => {
      if (id === 2) server.take(0, (_, id) => ids.push(id))
      ids.push(id)
    })
    assert.deepStrictEqual(ids, [1, 3, 4, 2])
  })

  it("wake the server for the first of them, and again when it does not look by itself any more", () => {
    const { server, thread } = pair()
    assert.isTrue(thread.mustWake)
    assert.isFalse(thread.mustWake)
    assert.isTrue(server.isLooking)
    server.stopLooking()
    assert.isTrue(thread.mustWake)
  })
})

const obey = handlers.obey as Handler.Portable<Connection.Connection, unknown, handlers.Oops>

const serve = (options: Omit<WorkerPool.WorkerOptions, "kind">) =>
  Effect.map(
    Layer.build(
      NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
        NodeDispatch.workerPerRequest({ kind: "thread", ...options }),
        Server.serveStream(obey, { shutdown: { grace: "100 millis" } })
      )
    ),
    Context.get(Server.Server)
  )

const visit = (server: Server.Server["Service"], command: string, answer: string) =>
  Effect.gen(function*() {
    const client = yield* TestClient.node(server.address)
    yield* client.write(`${command}\n`)
    assert.strictEqual(yield* client.readLine, answer)
    return client
  })

const leave = (client: TestClient.Client) => Effect.andThen(client.end, client.closed)

describe("a server whose threads report", () => {
  it.live("knows of every end in a burst, of all bytes, and replaces threads by age", () =>
    Effect.gen(function*() {
      const server = yield* serve({ maxWorkers: 2, concurrencyPerWorker: 8, recycleAfter: 50 })
      const one = Effect.scoped(Effect.flatMap(visit(server, "echo there", "there"), leave))
      yield* Effect.replicateEffect(one, 200, { concurrency: 24, discard: true })
      yield* Effect.timeout(server.awaitIdle, "15 seconds")
      const { accepted, bytesRead, bytesWritten, closed, inFlight, open, queued } = yield* server.stats
      assert.deepStrictEqual(
        { accepted, bytesRead, bytesWritten, closed, inFlight, open, queued },
        {
          accepted: 200,
          bytesRead: 200 * "echo there\n".length,
          bytesWritten: 200 * "there\n".length,
          closed: { Completed: 200 },
          inFlight: 0,
          open: 0,
          queued: 0
        }
      )
      yield* until("old threads are gone", Effect.map(server.info, ({ workers }) => workers!.recycled >= 2))
    }))

  /** Those that have left, and one that is told something then. */
  const leaveBefore = (server: Server.Server["Service"], command: string) =>
    Effect.gen(function*() {
      const clients = yield* Effect.replicateEffect(visit(server, "echo there", "there"), 6)
      const last = yield* visit(server, "echo there", "there")
      yield* Effect.forEach(clients, leave)
      yield* last.write(`${command}\n`)
      return last
    })

  it.live("knows of ends while the thread computes", () =>
    Effect.gen(function*() {
      const server = yield* serve({ maxWorkers: 1, concurrencyPerWorker: 8 })
      const last = yield* leaveBefore(server, "compute")
      assert.strictEqual(yield* last.readLine, "computing")
      yield* until("all others have ended", Effect.map(server.stats, ({ closed }) => closed["Completed"] === 6))
    }))

  it.live("knows of ends when the thread crashes right after", () =>
    Effect.gen(function*() {
      const server = yield* serve({ maxWorkers: 1, concurrencyPerWorker: 8 })
      yield* leaveBefore(server, "exit 3")
      yield* Effect.timeout(server.awaitIdle, "15 seconds")
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 6, WorkerCrashed: 1 })
    }))

  it.live("knows of more ends than there is room for while it does not look", () =>
    Effect.gen(function*() {
      const server = yield* serve({ maxWorkers: 1, concurrencyPerWorker: 1_000 })
      const clients = yield* Effect.replicateEffect(visit(server, "hold", "held"), 600, { concurrency: 50 })
      const last = yield* visit(server, "echo there", "there")
      yield* last.write("letAllGo\n")
      // The server's own thread stands still: all 600 have ended when it goes on, most of them twice over.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_000)
      yield* leave(last)
      yield* Effect.forEach(clients, leave, { concurrency: "unbounded" })
      yield* Effect.timeout(server.awaitIdle, "15 seconds")
      const { bytesRead, bytesWritten, closed, inFlight } = yield* server.stats
      assert.deepStrictEqual({ bytesRead, bytesWritten, closed, inFlight }, {
        bytesRead: 600 * "hold\n".length + "echo there\nletAllGo\n".length,
        bytesWritten: 600 * "held\n".length + "there\n".length,
        closed: { Completed: 601 },
        inFlight: 0
      })
    }))

  it.live("knows of ends that a thread has reported which dies before it can say so", () =>
    Effect.gen(function*() {
      const server = yield* serve({ maxWorkers: 1, concurrencyPerWorker: 8 })
      yield* Effect.replicateEffect(visit(server, "hold", "held"), 6)
      const last = yield* visit(server, "echo there", "there")
      yield* last.write("letGo\n")
      yield* Effect.timeout(server.awaitIdle, "15 seconds")
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 6, WorkerCrashed: 1 })
    }))

  it.live("knows of ends after a message that could not leave the thread", () =>
    Effect.gen(function*() {
      const pool = Layer.succeed(
        WorkerPool.WorkerPool,
        yield* WorkerPool.make({ kind: "thread", maxWorkers: 1, concurrencyPerWorker: 8 })
      )
      const packets = yield* NodeTransport.udp({ host: "127.0.0.1", port: 0 }).pipe(
        NodeDispatch.workers,
        Server.serveDatagram(handlers.obeyPacket, { onError: () => Effect.void }),
        Layer.provide(pool),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const server = yield* NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
        NodeDispatch.workers,
        Server.serveStream(obey),
        Layer.provide(pool),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      yield* (yield* DatagramTestClient.udp("IPv4")).send(packets.address, "detached")
      yield* until(
        "the packet's handler has failed",
        Effect.map(packets.stats, ({ closed }) => closed.HandlerFailed === 1)
      )
      yield* Effect.forEach(yield* Effect.replicateEffect(visit(server, "echo there", "there"), 6), leave, {
        concurrency: "unbounded"
      })
      // Not `awaitIdle`: for whoever waits there is a message more.
      yield* until("all have ended", Effect.map(server.stats, ({ closed }) => closed["Completed"] === 6))
    }))
})
