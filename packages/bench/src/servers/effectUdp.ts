/** Effect's own `NodeDatagramSocket`, as its users write it: pull a batch, write each back. */
import * as NodeDatagramSocket from "@effect/platform-node-shared/NodeDatagramSocket"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import { control, ready } from "./control.ts"

const program = Effect.gen(function*() {
  const socket = yield* NodeDatagramSocket.make({ bind: { address: "127.0.0.1", port: 0 } })
  const reader = yield* socket.reader
  const writer = yield* socket.writer
  control()
  ready({ port: reader.address.port })
  while (true) {
    const datagrams = yield* reader.pull
    yield* writer.writeAll(Arr.map(datagrams, (datagram) => ({ payload: datagram.payload, address: datagram })))
  }
})

Effect.runFork(Effect.scoped(program))
