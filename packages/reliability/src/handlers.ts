/** What the server does with a connection; portable, so that workers can do it too. */
import { type Connection, Handler } from "@socketserver/core"
import * as Effect from "effect/Effect"

/** Answers every line with that line. */
export const lines = Handler.portable(
  import.meta.url,
  "lines",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.flatMap(connection.readLine(), (line) => connection.write(`${line}\n`)))
)
