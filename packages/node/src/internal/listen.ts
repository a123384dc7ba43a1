/** Binding with `node:net`: one listener for TCP and unix sockets, and Node's errors as `ListenError`. */
import {
  AddressInUse,
  AddressNotAvailable,
  ListenError,
  ListenFailed,
  PermissionDenied
} from "@socketserver/core/ListenError"
import type { Listener, Wire } from "@socketserver/core/StreamTransport"
import * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import { type Addresses, NodeWire } from "./wire.ts"

export interface ListenConfig {
  readonly server: Net.ServerOpts
  readonly listen: Net.ListenOptions & { readonly fd?: number }
  /** The address for people, in errors. */
  readonly address: string
  /** Runs around the synchronous part of binding, where `umask` applies. */
  readonly around?: ((bind: () => void) => void) | undefined
  /** How it is closed, where there is more to do. */
  readonly close?: ((server: Net.Server) => void) | undefined
  readonly addressOf: (server: Net.Server) => SocketAddress
  readonly addresses: Addresses
}

export const listen = (
  config: ListenConfig,
  onConnection: (wire: Wire) => void
): Effect.Effect<Listener, ListenError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<{ readonly server: Net.Server; readonly listener: Listener }, ListenError>((resume) => {
      // Sockets start paused: nothing is read that nobody pulls.
      const server = Net.createServer({ ...config.server, pauseOnConnect: true })
      const onError = (error: NodeJS.ErrnoException) => resume(Effect.fail(toListenError(error, config.address)))
      server.once("error", onError)
      server.once("listening", () => {
        server.off("error", onError)
        // Node retries a failing accept by itself; an error here would otherwise end the process.
        server.on("error", () => {})
        const address = config.addressOf(server)
        server.on("connection", (socket) => {
          // Asked for now, Node remembers it when the socket is gone.
          void socket.remoteAddress
          onConnection(new NodeWire(socket, config.addresses))
        })
        resume(Effect.succeed({ server, listener: { address, descriptor: descriptorOf(server) } }))
      })
      const bind = () => {
        server.listen(config.listen)
      }
      if (config.around === undefined) bind()
      else config.around(bind)
      return Effect.sync(() => server.close())
    }),
    // `close` gives the descriptor back at once; its callback would wait for the connections too.
    ({ server }) => Effect.sync(() => config.close === undefined ? server.close() : config.close(server))
  ).pipe(Effect.map(({ listener }) => listener))

/** Node keeps it in an undocumented place, and on Windows nowhere. */
const descriptorOf = (server: Net.Server): number | undefined => {
  const fd: unknown = (server as { readonly _handle?: { readonly fd?: unknown } })._handle?.fd
  return typeof fd === "number" && fd >= 0 ? fd : undefined
}

export const toListenError = (error: NodeJS.ErrnoException, address: string): ListenError => {
  switch (error.code) {
    case "EADDRINUSE":
      return new ListenError({ reason: new AddressInUse({ address }) })
    case "EACCES":
    case "EPERM":
      return new ListenError({ reason: new PermissionDenied({ address }) })
    case "EADDRNOTAVAIL":
      return notAvailable(
        address,
        "the address does not belong to this machine; use one of its own, or leave the host out for all"
      )
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return notAvailable(address, "the host name is not known; check its spelling, or use an IP address")
    default:
      return new ListenError({ reason: new ListenFailed({ address, cause: error }) })
  }
}

export const notAvailable = (address: string, detail: string) =>
  new ListenError({ reason: new AddressNotAvailable({ address, detail }) })
