/** Portable handlers for tests: a worker imports this module. */
import { type Connection, type Datagram, Handler } from "@socketserver/core"
import { Effect, Stream } from "effect"

export const echo = Handler.portable(
  import.meta.url,
  "echo",
  (connection: Connection.Connection) => Stream.run(connection.bytes, connection.sink)
)

export const upper = Handler.portable(
  import.meta.url,
  "upper",
  (datagram: Datagram.Datagram) => datagram.reply(new TextDecoder().decode(datagram.payload).toUpperCase())
)

export const square = Handler.portable(import.meta.url, "square", (n: number) => Effect.succeed(n * n))
