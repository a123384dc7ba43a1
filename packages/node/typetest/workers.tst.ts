/** What goes with workers, and what must not compile. More of it, apart from Node, is in the core's type tests. */
import { type Connection, type Datagram, Dispatch, Handler, type ListenError, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport, WorkerPool } from "@socketserver/node"
import { Effect, Layer, Stream } from "effect"
import { describe, expect, test } from "tstyche"

const url = "file:///handlers.ts"
const echo = (connection: Connection.Connection) => Stream.run(connection.bytes, connection.sink)
const portable = Handler.portable(url, "echo", echo)
const reply = ({ payload, reply }: Datagram.Datagram) => reply(payload)
const portableReply = Handler.portable(url, "reply", reply)

const tcp = NodeTransport.tcp({ port: 0 })
const udp = NodeTransport.udp({ port: 0 })
const inThreads = NodeDispatch.workerPerRequest({ kind: "thread" })

describe("workerPerRequest", () => {
  test("takes any transport, and a portable handler of its requests", () => {
    type Expected = Layer.Layer<Server.Server, ListenError.ListenError>
    expect(tcp.pipe(inThreads, Server.serveStream(portable))).type.toBe<Expected>()
    expect(udp.pipe(inThreads, Server.serveDatagram(portableReply))).type.toBe<Expected>()
    expect(Server.serveStream(echo)).type.not.toBeCallableWith(tcp.pipe(inThreads))
    expect(Server.serveDatagram(reply)).type.not.toBeCallableWith(udp.pipe(inThreads))
    expect(Server.serveDatagram(portableReply)).type.not.toBeCallableWith(tcp.pipe(inThreads))
    expect(Server.serveStream(portable)).type.not.toBeCallableWith(udp.pipe(inThreads))
  })

  test("is instead of another strategy, and below the server", () => {
    expect(inThreads).type.toBeCallableWith(tcp)
    expect(inThreads).type.not.toBeCallableWith(tcp.pipe(Dispatch.serial()))
    expect(inThreads).type.not.toBeCallableWith(tcp.pipe(inThreads, Server.serveStream(portable)))
  })

  test("must be told the kind, and nothing that does not exist", () => {
    expect(NodeDispatch.workerPerRequest).type.not.toBeCallableWith({})
    expect(NodeDispatch.workerPerRequest).type.not.toBeCallableWith({ kind: "fiber" })
    expect(NodeDispatch.workerPerRequest).type.not.toBeCallableWith({ kind: "thread", maxWorker: 2 })
  })
})

describe("a pool", () => {
  test("is what `workers` needs", () => {
    const server = tcp.pipe(NodeDispatch.workers, Server.serveStream(portable))
    expect(server).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, WorkerPool.WorkerPool>>()
    expect(server.pipe(Layer.provide(WorkerPool.layer({ kind: "process" }))))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("runs tasks by their types, and fails with what the task, its layer or its worker does", () => {
    const parse = Handler.portable(
      url,
      "parse",
      (text: string) => text === "" ? Effect.fail("empty" as const) : Effect.succeed(text.length),
      { layer: Layer.effectDiscard(Effect.fail("noLayer" as const)) }
    )
    const run = WorkerPool.WorkerPool.use((pool) => pool.run(parse, "text"))
    expect<Effect.Success<typeof run>>().type.toBe<number>()
    expect<Extract<Effect.Error<typeof run>, string>>().type.toBe<"empty" | "noLayer">()
    expect<Exclude<Effect.Error<typeof run>, string>["_tag"]>().type.toBe<"WorkerError">()
    expect<WorkerPool.WorkerPool["Service"]["run"]>().type.not.toBeCallableWith(parse, 1)
    expect<WorkerPool.WorkerPool["Service"]["run"]>().type.not.toBeCallableWith(
      (text: string) => Effect.succeed(text),
      ""
    )
  })
})
