/** The memory transport, held to what every stream transport must do. */
import { MemoryTransport } from "@socketserver/core"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"

StreamTransportSuite.suite("memory", {
  layer: () => MemoryTransport.stream(),
  connect: TestClient.memory
})
