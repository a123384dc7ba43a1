/** UDP by what `node:dgram` documents, where it does not have what the direct way needs: it must pass no less. */
import { NodeTransport } from "@socketserver/node"
import { DatagramTestClient, DatagramTransportSuite } from "@socketserver/testing"
import { directUdp } from "../src/internal/directUdp.ts"

// For this file: every test file has its modules to itself.
directUdp.enabled = false

DatagramTransportSuite.suite("udp4, by `message` events", {
  layer: () => NodeTransport.udp({ host: "127.0.0.1", port: 0 }),
  client: DatagramTestClient.udp("IPv4")
})

// And what only real sockets do.
await import("./Udp.test.ts")
