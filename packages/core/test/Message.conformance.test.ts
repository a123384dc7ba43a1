/** Messages in memory, under each strategy that runs handlers inline, held to what every server of messages must do. */
import { Dispatch, MemoryTransport } from "@socketserver/core"
import { DatagramTestClient, MessageSuite, TestClient } from "@socketserver/testing"

const connections = { layer: () => MemoryTransport.stream(), connect: TestClient.memory }
const packets = { layer: () => MemoryTransport.datagram(), client: DatagramTestClient.memory() }
const strategies: Record<string, MessageSuite.DispatchOptions> = {
  serial: { dispatch: () => Dispatch.serial(), maxInFlight: 1 },
  fiberPerRequest: { dispatch: ({ maxInFlight }) => Dispatch.fiberPerRequest({ maxInFlight }) }
}

for (const [name, strategy] of Object.entries(strategies)) {
  MessageSuite.suite(`messages in memory, under ${name}`, { ...connections, ...strategy })
  MessageSuite.packetSuite(`messages in packets in memory, under ${name}`, { ...packets, ...strategy })
}
