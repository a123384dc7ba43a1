/**
 * A server of lines: each comes back in upper case. The handler is a stream from the connection's lines to its sink, and
 * counts them in a service; it does not know whether its client came by TCP or through a unix socket.
 */
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Layer, Stream } from "effect"
import { LineCount } from "./LineCount.ts"
import { isMain, runServer } from "./run.ts"

export const upper = (connection: Connection.Connection) =>
  connection.lines().pipe(
    Stream.tap(() => LineCount.use((lines) => lines.add)),
    Stream.map((line) => `${line.toUpperCase()}\n`),
    Stream.run(connection.sink)
  )

export const Upper = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Dispatch.fiberPerRequest({ maxInFlight: 1024 }),
    Server.serveStream(upper)
  )

if (isMain(import.meta)) runServer("upper", 9999, (port) => Layer.provide(Upper(port), LineCount.layer))
