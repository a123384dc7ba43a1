/** Messages in workers: what only workers have. All else is in the conformance suite. */
import { assert, describe, it } from "@effect/vitest"
import { Framing, Server, Transport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { DatagramTestClient, TestClient } from "@socketserver/testing"
import { Context, Effect, Layer } from "effect"
import * as handlers from "./workers/handlers.ts"

const options: Server.MessageOptions<string, string, any> = {
  onError: (_, { payload }, reason) => Effect.succeed(`${payload}: ${reason._tag}`)
}

describe.concurrent("a message whose handler takes longer than `timeout` is answered for, and alone", () => {
  for (const kind of ["thread", "process"] as const) {
    const workers = NodeDispatch.workerPerRequest({ kind, maxWorkers: 2, timeout: "1 second" })

    it.live(`in a connection: ${kind}`, () =>
      Effect.gen(function*() {
        const layer = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          Transport.framed(Framing.lines()),
          workers,
          Server.serveMessage(handlers.obeyMessage, options)
        )
        const server = Context.get(yield* Layer.build(layer), Server.Server)
        const client = yield* TestClient.node(server.address)
        yield* client.write("a\ncompute\nb\n")
        for (const line of ["A", "compute: WorkerTimeout", "B"]) assert.strictEqual(yield* client.readLine, line)
      }))

    it.live(`in a packet: ${kind}`, () =>
      Effect.gen(function*() {
        const layer = NodeTransport.udp({ host: "127.0.0.1", port: 0 }).pipe(
          Transport.framed(Framing.lines()),
          workers,
          Server.serveMessage(handlers.obeyMessage, options)
        )
        const server = Context.get(yield* Layer.build(layer), Server.Server)
        const client = yield* DatagramTestClient.udp("IPv4")
        for (const [packet, reply] of [["compute", "compute: WorkerTimeout\n"], ["b", "B\n"]] as const) {
          yield* client.send(server.address, packet)
          assert.strictEqual(new TextDecoder().decode((yield* client.receive).payload), reply)
        }
      }))
  }
})
