/**
 * A client of packets for tests: it sends what it is told to, and keeps what comes until it is asked. It is the yardstick that
 * transports are measured with, so the one for real sockets is written over `node:dgram` alone.
 *
 * @since 0.1.0
 */
import * as MemoryTransport from "@socketserver/core/MemoryTransport"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Dgram from "node:dgram"
import { ClientError } from "./TestClient.ts"

/**
 * A bound client. The end of the scope that it was made in closes it.
 *
 * **Gotchas**
 *
 * `receive` waits for as long as nothing comes, and packets may be lost: give it a timeout.
 *
 * @category models
 * @since 0.1.0
 */
export interface DatagramTestClient {
  /** What servers see as `peer`. */
  readonly address: NetAddress.SocketAddress
  /** Sends one packet, strings as UTF-8. Completes when the system has taken it. */
  readonly send: (to: NetAddress.SocketAddress, payload: Uint8Array | string) => Effect.Effect<void, ClientError>
  /** The next packet that has come or comes, whole, and who sent it. */
  readonly receive: Effect.Effect<{ readonly peer: NetAddress.SocketAddress; readonly payload: Uint8Array }>
}

/**
 * Binds a client of servers on the memory transport; the name `""` makes one without an address, which nobody can answer.
 *
 * @category constructors
 * @since 0.1.0
 */
export const memory = (options?: {
  readonly name?: string | undefined
}): Effect.Effect<DatagramTestClient, ClientError, Scope.Scope> =>
  MemoryTransport.bindDatagram(options).pipe(
    Effect.mapBoth({
      onSuccess: (client): DatagramTestClient => ({
        address: client.address,
        send: (to, payload) =>
          Effect.mapError(client.send(to, payload), (error) =>
            new ClientError({ reason: error.reason._tag === "Unreachable" ? "Refused" : "Failed", cause: error })),
        receive: client.receive
      }),
      onFailure: (error) =>
        new ClientError({ reason: "Failed", cause: error })
    })
  )

/**
 * Binds a client to a free port of the loopback address, with `node:dgram`.
 *
 * **Example** (Whom a packet came from)
 *
 * ```ts
 * import { DatagramTestClient } from "@socketserver/testing"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const alice = yield* DatagramTestClient.udp("IPv4")
 *   const bob = yield* DatagramTestClient.udp("IPv4")
 *   yield* alice.send(bob.address, "hello")
 *   const { payload, peer } = yield* bob.receive
 *   return [new TextDecoder().decode(payload), String(peer) === String(alice.address)]
 * }).pipe(Effect.scoped)
 *
 * Effect.runPromise(program) // => ["hello", true]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const udp = (family: NetAddress.IpFamily): Effect.Effect<DatagramTestClient, ClientError, Scope.Scope> =>
  Effect.gen(function*() {
    const received = yield* Queue.unbounded<Effect.Success<DatagramTestClient["receive"]>>()
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => Dgram.createSocket(family === "IPv4" ? "udp4" : "udp6")),
      (socket) => Effect.callback<void>((resume) => void socket.close(() => resume(Effect.void)))
    )
    yield* Effect.callback<void, ClientError>((resume) => {
      // The listener stays: what goes wrong later shows where a packet does not come.
      socket
        .on("error", (error) => resume(Effect.fail(new ClientError({ reason: "Failed", cause: error }))))
        .on("message", (message, { address, port }) => {
          Queue.offerUnsafe(received, {
            peer: NetAddress.inetAddressFromNativeUnsafe(address, port),
            payload: new Uint8Array(message)
          })
        })
        .bind({ address: family === "IPv4" ? "127.0.0.1" : "::1", port: 0 }, () => resume(Effect.void))
    })
    const { address, port } = socket.address()
    return {
      address: NetAddress.inetAddressFromNativeUnsafe(address, port),
      send: (to, payload) =>
        Effect.callback((resume) => {
          if (!NetAddress.isInetAddress(to)) return resume(Effect.die(new Error(`not an address of UDP: ${to.path}`)))
          socket.send(payload, to.port, NetAddress.formatIp(to.address), (error) =>
            resume(error === null ? Effect.void : Effect.fail(new ClientError({ reason: "Failed", cause: error }))))
        }),
      receive: Queue.take(received)
    }
  })
