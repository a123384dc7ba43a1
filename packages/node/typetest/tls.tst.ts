/** TLS is for streams: what must not compile. */
import { Dispatch, MemoryTransport, Server, type StreamTransport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import type { Layer } from "effect"
import { describe, expect, test } from "tstyche"

const options = { cert: "cert", key: "key" }
const tcp = NodeTransport.tcp({ port: 0 })
const unix = NodeTransport.unix({ path: "/run/x.sock" })
const udp = NodeTransport.udp({ port: 0 })

for (const step of [NodeTransport.tls(options), NodeTransport.startTls(options)]) {
  describe("TLS, from the beginning or when the handler says so", () => {
    test("is a step behind a stream transport", () => {
      expect(step(tcp)).type.toBe<Layer.Layer<StreamTransport.StreamTransport>>()
      expect(step).type.toBeCallableWith(unix)
    })

    test("is none behind a datagram transport, of Node's or in memory", () => {
      expect(step).type.not.toBeCallableWith(udp)
      expect(step).type.not.toBeCallableWith(MemoryTransport.datagram())
      expect(udp.pipe).type.not.toBeCallableWith(step)
    })

    test("comes before the server", () => {
      expect(step).type.not.toBeCallableWith(
        tcp.pipe(Dispatch.serial(), Server.serveStream((connection) => connection.pull))
      )
    })
  })
}
