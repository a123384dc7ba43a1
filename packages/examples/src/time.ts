/**
 * A server that does not even read: it writes the time and is done, and the server closes the connection. The time comes
 * from Effect's clock, so a test can say what time it is.
 */
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { DateTime, Effect } from "effect"
import { isMain, runServer } from "./run.ts"

export const time = (connection: Connection.Connection) =>
  Effect.flatMap(DateTime.now, (now) => connection.write(`${DateTime.formatIso(now)}\n`))

export const Time = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(time)
  )

if (isMain(import.meta)) runServer("time", 7013, Time)
