/** Effect's own `NodeSocketServer`, as its users write it: a pull loop, or a stream of lines. */
import * as NodeSocketServer from "@effect/platform-node-shared/NodeSocketServer"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { control, listenPath, ready, service } from "./control.ts"

const echo = (socket: Socket.Socket) =>
  Effect.gen(function*() {
    const reader = yield* socket.reader
    const writer = yield* socket.writer
    while (true) yield* writer.writeAll(yield* reader.pull)
  }).pipe(Effect.scoped, Effect.catchReason("SocketError", "SocketCloseError", () => Effect.void))

const lines = (socket: Socket.Socket) =>
  Effect.gen(function*() {
    const writer = yield* socket.writer
    yield* Socket.toStream(socket).pipe(
      Stream.decodeText,
      Stream.splitLines,
      Stream.runForEachArray((lines) => writer.write(`${lines.join("\n")}\n`))
    )
  }).pipe(Effect.scoped, Effect.catchReason("SocketError", "SocketCloseError", () => Effect.void))

const program = Effect.gen(function*() {
  const server = yield* NodeSocketServer.make(
    listenPath === undefined ? { host: "127.0.0.1", port: 0, noDelay: true } : { path: listenPath }
  )
  control()
  yield* Effect.forkScoped(server.run(service === "echo" ? echo : lines), { startImmediately: true })
  ready(NetAddress.isInetAddress(server.address) ? { port: server.address.port } : { path: server.address.path })
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program))
