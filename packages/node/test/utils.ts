/** A server on a real socket for a test, and bare clients of `node:net`. */
import { Dispatch, Server, type StreamTransport } from "@socketserver/core"
import { Context, Effect, Layer } from "effect"
import { NetAddress } from "effect/net"
import { mkdtempSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

export const start = <E, R>(
  transport: Layer.Layer<StreamTransport.StreamTransport>,
  handler: Server.StreamHandler<E, R>,
  options?: Server.ServerOptions<NoInfer<E>>
) =>
  transport.pipe(
    Dispatch.fiberPerRequest(),
    Server.serveStream(handler, options),
    Layer.build,
    Effect.map(Context.get(Server.Server))
  )

export const directory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "socketserver-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

export const portOf = (server: { readonly address: NetAddress.SocketAddress }): number => {
  if (NetAddress.isInetAddress(server.address)) return server.address.port
  throw new Error("not an internet address")
}

export const connectOptions = (address: NetAddress.SocketAddress): Net.NetConnectOpts =>
  NetAddress.isInetAddress(address)
    ? { host: NetAddress.formatIp(address.address), port: address.port }
    : { path: address.path }

/** A connected client that may finish sending and still receive. Destroyed with the scope. */
export const connect = (address: NetAddress.SocketAddress) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, NodeJS.ErrnoException>((resume) => {
      const socket = Net.connect({ ...connectOptions(address), allowHalfOpen: true })
      socket.once("error", (error) => resume(Effect.fail(error)))
      socket.once("connect", () => {
        // From now on errors are looked at where a test waits for one.
        socket.on("error", () => {})
        resume(Effect.succeed(socket))
      })
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** What the client receives until the server finishes, or the code of the error that ends it before. */
export const receiveAll = (socket: Net.Socket) =>
  Effect.callback<string, string>((resume) => {
    const chunks: Array<Buffer> = []
    socket.on("data", (chunk: Buffer) => chunks.push(chunk))
    socket.once("end", () => resume(Effect.succeed(Buffer.concat(chunks).toString("utf8"))))
    socket.once("error", (error: NodeJS.ErrnoException) => resume(Effect.fail(error.code ?? error.message)))
    socket.once("close", () => resume(Effect.fail("closed without an end")))
  })

export const once = (socket: Net.Socket, event: string) =>
  Effect.callback<void>((resume) => {
    socket.once(event, () => resume(Effect.void))
  })

export const eventLoopTurn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** Waits until it holds; there is no event for everything. */
export const until = (what: string, holds: Effect.Effect<boolean>) =>
  Effect.gen(function*() {
    while (!(yield* holds)) yield* Effect.sleep(5)
  }).pipe(Effect.timeoutOrElse({
    duration: "15 seconds",
    orElse: () => Effect.die(new Error(`did not come about: ${what}`))
  }))
