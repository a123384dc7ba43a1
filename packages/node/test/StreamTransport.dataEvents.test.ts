/** The way without the shared buffer, where Node does not have what it needs: it must pass no less. */
import { NodeTransport } from "@socketserver/node"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"
import { sharedBuffer } from "../src/internal/sharedBuffer.ts"

// For this file: every test file has its modules to itself.
sharedBuffer.enabled = false

StreamTransportSuite.suite("tcp, read by `data` events", {
  layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
  connect: TestClient.node
})
