/** UDP, held to what every datagram transport must do. */
import { NodeTransport } from "@socketserver/node"
import { DatagramTestClient, DatagramTransportSuite } from "@socketserver/testing"
import { networkInterfaces } from "node:os"

DatagramTransportSuite.suite("udp4", {
  layer: () => NodeTransport.udp({ host: "127.0.0.1", port: 0 }),
  client: DatagramTestClient.udp("IPv4")
})

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === "::1")
)

// A machine without IPv6 cannot run these.
if (hasIpv6) {
  DatagramTransportSuite.suite("udp6", {
    layer: () => NodeTransport.udp({ host: "::1", port: 0 }),
    client: DatagramTestClient.udp("IPv6")
  })
}
