/** The memory transport's datagrams, held to what every datagram transport must do. */
import { MemoryTransport } from "@socketserver/core"
import { DatagramTestClient, DatagramTransportSuite } from "@socketserver/testing"

DatagramTransportSuite.suite("memory", {
  layer: () => MemoryTransport.datagram(),
  client: DatagramTestClient.memory(),
  anonymous: DatagramTestClient.memory({ name: "" }),
  lossless: true
})
