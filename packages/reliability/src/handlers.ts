/** What the server does with a connection; portable, so that workers can do it too. */
import { type Connection, Handler } from "@socketserver/core"
import * as Effect from "effect/Effect"
import { appendFileSync } from "node:fs"
import { join } from "node:path"

/** Gives back every byte. */
export const echo = Handler.portable(
  import.meta.url,
  "echo",
  (connection: Connection.Connection) => Effect.forever(Effect.flatMap(connection.pull, connection.write))
)

/** Answers every line with that line. */
export const lines = Handler.portable(
  import.meta.url,
  "lines",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.flatMap(connection.readLine(), (line) => connection.write(`${line}\n`)))
)

/** Files that grow by a byte for each request that was read, and for each answer that was written, in whatever process. */
export const countersIn = (directory: string) => ({
  read: join(directory, "read"),
  answered: join(directory, "answered")
})

const counters = process.env["COUNTERS"] === undefined ? undefined : countersIn(process.env["COUNTERS"])
const count = (what: "read" | "answered") => Effect.sync(() => appendFileSync(counters![what], "."))

/** The same as `lines`, and counts what it has read and answered. */
export const counted = Handler.portable(
  import.meta.url,
  "counted",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.gen(function*() {
      const line = yield* connection.readLine()
      yield* count("read")
      yield* connection.write(`${line}\n`)
      yield* count("answered")
    }))
)

/** Answers a number with as many MiB, a chunk of 64 KiB at a time. */
export const large = Handler.portable(
  import.meta.url,
  "large",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.flatMap(connection.readLine(), (line) => {
      const chunk = new Uint8Array(65_536)
      return Number.isInteger(Number(line))
        ? Effect.repeat(connection.write(chunk), { times: Number(line) * 16 - 1 })
        : connection.write(`${line}\n`)
    }))
)
