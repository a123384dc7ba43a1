/**
 * Three servers in one process: upper-case lines over TCP, the same handler over a unix socket, and a chat room. They are
 * layers, merged; all three count their lines in one service, provided once. Stop it with Ctrl-C.
 * The environment variables UPPER_PORT, CHAT_PORT and UPPER_SOCKET choose other addresses.
 */
import { Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Config, Console, Effect, Layer } from "effect"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { chat, Room } from "./chat.ts"
import { LineCount } from "./LineCount.ts"
import { netcat, reportDrains, run } from "./run.ts"
import { upper } from "./upper.ts"

// One program, several servers: each has a tag of its own.
class UpperTcp extends Server.Service<UpperTcp>()("@socketserver/examples/UpperTcp") {}
class UpperUnix extends Server.Service<UpperUnix>()("@socketserver/examples/UpperUnix") {}
class Chat extends Server.Service<Chat>()("@socketserver/examples/Chat") {}

const host = "127.0.0.1"
const shutdown: Server.DrainOptions = { grace: "5 seconds", kill: "1 second" }

const Servers = Layer.unwrap(Effect.gen(function*() {
  const upperPort = yield* Config.Int("UPPER_PORT").pipe(Config.withDefault(9999))
  const chatPort = yield* Config.Int("CHAT_PORT").pipe(Config.withDefault(9998))
  const upperSocket = yield* Config.String("UPPER_SOCKET").pipe(Config.withDefault(join(tmpdir(), "upper.sock")))
  return Layer.mergeAll(
    NodeTransport.tcp({ host, port: upperPort }).pipe(
      Dispatch.fiberPerRequest({ maxInFlight: 1024 }),
      Server.serveStream(upper, { shutdown }),
      Server.as(UpperTcp)
    ),
    NodeTransport.unix({ path: upperSocket, mode: 0o600 }).pipe(
      Dispatch.fiberPerRequest({ maxInFlight: 1024 }),
      Server.serveStream(upper, { shutdown }),
      Server.as(UpperUnix)
    ),
    NodeTransport.tcp({ host, port: chatPort }).pipe(
      Dispatch.fiberPerRequest({ maxInFlight: 100 }),
      Server.serveStream(chat, { shutdown }),
      Server.as(Chat)
    )
  )
}))

// Printed when all three listen: the layers that this one needs are built before it, and released after it.
const Banner = Layer.effectDiscard(Effect.gen(function*() {
  const upperTcp = yield* UpperTcp
  const upperUnix = yield* UpperUnix
  const room = yield* Chat
  const lines = yield* LineCount
  yield* Console.log([
    "Three servers are listening. In another terminal, type one of these, and then a line of text:",
    "",
    `  upper case, TCP:          ${netcat(upperTcp.address)}`,
    `  upper case, unix socket:  ${netcat(upperUnix.address)}`,
    `  chat room, TCP:           ${netcat(room.address)}    (in two terminals)`,
    "",
    "Ctrl-C stops them: each one drains, and reports."
  ].join("\n"))
  yield* Effect.addFinalizer(() =>
    Effect.flatMap(lines.total, (total) => Console.log(`lines served by all three: ${total}`))
  )
  yield* reportDrains({ "upper case, TCP": upperTcp, "upper case, unix socket": upperUnix, "chat room, TCP": room })
}))

Banner.pipe(
  Layer.provide(Servers),
  Layer.provide([Room.layer, LineCount.layer]),
  Layer.launch,
  run
)
