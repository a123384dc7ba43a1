/** Reads that wait by `Effect.callback`, where fibers do not look as parking needs them: they must pass no less. */
import { MemoryTransport } from "@socketserver/core"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"
import { parking } from "../src/internal/parking.ts"

// For this file: every test file has its modules to itself.
parking.enabled = false

StreamTransportSuite.suite("memory, waiting by Effect.callback", {
  layer: () => MemoryTransport.stream(),
  connect: TestClient.memory
})
