/**
 * The smallest server there is: what a client sends comes back. Bytes are copied from the connection to the connection, and
 * a client that does not read its echo is not read from either.
 */
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Stream } from "effect"
import { isMain, runServer } from "./run.ts"

export const echo = (connection: Connection.Connection) => Stream.run(connection.bytes, connection.sink)

export const Echo = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(echo)
  )

if (isMain(import.meta)) runServer("echo", 7007, Echo)
