/** Handlers of each kind, for the tests of the command. */
import { type Connection, type Datagram, Handler } from "@socketserver/core"
import { Effect, Stream } from "effect"

const upperLines = (connection: Connection.Connection) =>
  connection.lines().pipe(
    Stream.tap((line) => connection.annotate("last", line)),
    Stream.map((line) => `${line.toUpperCase()}\n`),
    Stream.run(connection.sink)
  )

export default upperLines

export const upper = Handler.portable(import.meta.url, "upper", upperLines)

export const where = Handler.portable(import.meta.url, "where", (connection: Connection.Connection) =>
  Effect.andThen(
    Effect.promise(() => import("node:worker_threads")),
    ({ isMainThread }) => connection.write(`${process.pid} ${isMainThread}\n`)
  ))

export const datagram = ({ payload, reply }: Datagram.Datagram) =>
  reply(new TextDecoder().decode(payload).toUpperCase())

export const number = 42

export const promise = async () => "not an Effect"

export const nothing = () => {}
