/**
 * Messages on real sockets, and in workers, held to what every server of messages must do. Each transport has a run of its own,
 * and each kind of worker; what comes by bytes does not know which it is.
 */
import { MemoryTransport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { DatagramTestClient, MessageSuite, TestClient } from "@socketserver/testing"
import { Effect, Layer } from "effect"
import { join } from "node:path"
import { authority, identityOf, localhost } from "./certificates.ts"
import { directory } from "./utils.ts"

const tcp = { layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }), connect: TestClient.node }
const udp = {
  layer: () => NodeTransport.udp({ host: "127.0.0.1", port: 0 }),
  client: DatagramTestClient.udp("IPv4")
}
const memory = { layer: () => MemoryTransport.stream(), connect: TestClient.memory }
const memoryPackets = { layer: () => MemoryTransport.datagram(), client: DatagramTestClient.memory() }

const workers = (kind: "thread" | "process"): MessageSuite.DispatchOptions => ({
  dispatch: ({ maxInFlight }) => NodeDispatch.workerPerRequest({ kind, maxWorkers: maxInFlight }),
  isolated: true
})

MessageSuite.suite("messages over tcp", tcp)

MessageSuite.suite("messages over unix", {
  layer: () => Layer.unwrap(Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))),
  connect: TestClient.node
})

MessageSuite.suite("messages over TLS", {
  layer: () => tcp.layer().pipe(NodeTransport.tls(identityOf(localhost))),
  connect: (address) => TestClient.tls(address, { ca: authority.cert, servername: "localhost" })
})

MessageSuite.packetSuite("messages over udp", udp)

MessageSuite.suite("messages over tcp, in threads", { ...tcp, ...workers("thread") })
MessageSuite.packetSuite("messages over udp, in threads", { ...udp, ...workers("thread") })

MessageSuite.suite("messages in memory, in processes", { ...memory, ...workers("process") })
MessageSuite.packetSuite("messages in packets in memory, in processes", { ...memoryPackets, ...workers("process") })
