/** This project's handlers for workers: a worker imports this module. */
import { type Connection, Handler } from "@socketserver/core"
import * as Effect from "effect/Effect"
import { answerTo } from "../compute.ts"

export const echo = Handler.portable(
  import.meta.url,
  "echo",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.flatMap(connection.pull, connection.write), { disableYield: true })
)

export const compute = Handler.portable(
  import.meta.url,
  "compute",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.flatMap(connection.readLine(), (line) => connection.write(`${answerTo(line)}\n`)))
)

/** The same as a task of a pool. */
export const answer = Handler.portable(import.meta.url, "answer", (line: string) => Effect.sync(() => answerTo(line)))
