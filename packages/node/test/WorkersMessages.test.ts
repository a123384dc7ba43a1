/** Messages in workers: a handler has the same replies, in the same order, wherever it runs and whatever its messages come by. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, MemoryTransport, type MessageTransport, Server, Transport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { DatagramTestClient, TestClient } from "@socketserver/testing"
import { Context, Effect, Fiber, Layer } from "effect"
import * as handlers from "./workers/handlers.ts"

describe.concurrent("a handler of messages", () => {
  const options: Server.MessageOptions<string, string, any> = {
    onError: (_, { payload }, reason) => Effect.succeed(`${payload}: ${reason._tag}`)
  }
  type Lines = Layer.Layer<MessageTransport.MessageTransport<string, string>>
  const inWorkers = (kind: "thread" | "process") => (lines: Lines) =>
    lines.pipe(
      NodeDispatch.workerPerRequest({ kind, maxWorkers: 2, timeout: "3 seconds" }),
      Server.serveMessage(handlers.obeyMessage, options)
    )
  const dispatches = {
    inline: (lines: Lines) =>
      lines.pipe(Dispatch.fiberPerRequest(), Server.serveMessage(handlers.obeyMessage, options)),
    thread: inWorkers("thread"),
    process: inWorkers("process")
  }
  const streams = [
    { name: "tcp", transport: NodeTransport.tcp({ host: "127.0.0.1", port: 0 }), connect: TestClient.node },
    { name: "memory", transport: MemoryTransport.stream(), connect: TestClient.memory }
  ]
  const packets = [
    {
      name: "udp",
      transport: NodeTransport.udp({ host: "127.0.0.1", port: 0 }),
      connect: DatagramTestClient.udp("IPv4")
    },
    { name: "memory", transport: MemoryTransport.datagram(), connect: DatagramTestClient.memory() }
  ]
  for (const [place, dispatch] of Object.entries(dispatches)) {
    for (const { connect, name, transport } of streams) {
      it.live(`has the same replies, in the same order, in a connection of ${name}: ${place}`, () =>
        Effect.gen(function*() {
          const server = Context.get(
            yield* Layer.build(dispatch(transport.pipe(Transport.framed(Framing.lines())))),
            Server.Server
          )
          const client = yield* connect(server.address)
          const dooms = place === "inline" ? [] : ["exit", "compute"]
          yield* client.write(
            ["slow", "a", "nothing", "stream", "early", "throw", "fail", ...dooms, "b", "quit", "ignored"].map((it) =>
              `${it}\n`
            ).join("")
          )
          const expected = ["slow", "A", "one", "two", "early", "late", "throw: HandlerFailed", "fail: HandlerFailed"]
          if (place !== "inline") expected.push("exit: WorkerCrashed", "compute: WorkerTimeout")
          for (const line of [...expected, "B", "bye"]) assert.strictEqual(yield* client.readLine, line)
          yield* server.awaitIdle
          const { closed, inFlight, queued } = yield* server.stats
          assert.deepStrictEqual([closed, inFlight, queued], [{ Completed: 1 }, 0, 0])
        }))

      it.live(`can push to a connection of ${name}, and is let end by a drain: ${place}`, () =>
        Effect.gen(function*() {
          const server = Context.get(
            yield* Layer.build(dispatch(transport.pipe(Transport.framed(Framing.lines())))),
            Server.Server
          )
          const client = yield* connect(server.address)
          yield* client.write("push\n")
          assert.strictEqual(yield* client.readLine, "pushed")
          assert.strictEqual(yield* client.readLine, "1")
          const [info] = yield* server.connections.list
          assert.deepStrictEqual([...info!.annotations], [["pushed", true]])
          yield* client.write("slow\n")
          while ((yield* server.stats).inFlight === 0) yield* Effect.yieldNow
          const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
          assert.strictEqual(yield* client.readLine, "slow")
          const { completed, interrupted } = yield* Fiber.join(draining)
          assert.deepStrictEqual([completed, interrupted], [0, 0])
        }))
    }
    for (const { connect, name, transport } of packets) {
      it.live(`has the same replies in packets of ${name}: ${place}`, () =>
        Effect.gen(function*() {
          const server = Context.get(
            yield* Layer.build(dispatch(transport.pipe(Transport.framed(Framing.lines())))),
            Server.Server
          )
          const client = yield* connect
          const ask = (payload: string) =>
            Effect.andThen(
              client.send(server.address, payload),
              Effect.map(client.receive, ({ payload }) => new TextDecoder().decode(payload))
            )
          assert.strictEqual(yield* ask("a"), "A\n")
          assert.strictEqual(yield* ask("stream"), "one\n")
          assert.strictEqual(yield* Effect.map(client.receive, ({ payload }) => payload.length), 4)
          assert.strictEqual(yield* ask("fail"), "fail: HandlerFailed\n")
          if (place !== "inline") {
            assert.strictEqual(yield* ask("exit"), "exit: WorkerCrashed\n")
            assert.strictEqual(yield* ask("compute"), "compute: WorkerTimeout\n")
          }
          assert.strictEqual(yield* ask("b"), "B\n")
        }))
    }
  }
})
