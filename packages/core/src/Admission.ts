/**
 * Admission decides which clients get to the handler. Each policy is a step between transport and dispatch, written in the
 * pipe where it applies; it runs in the connection's own fiber, so a slow decision about one client delays no other.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Connection } from "./Connection.ts"
import type { Datagram } from "./Datagram.ts"
import { DatagramTransport } from "./DatagramTransport.ts"
import { StreamTransport } from "./StreamTransport.ts"

/**
 * One decision about a connection: `check` says whether it may go on. A refused client is closed and counted under `policy`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Step {
  readonly policy: string
  readonly check: (connection: Connection) => Effect.Effect<boolean, unknown>
  /** Called once for each connection that passed `check`, when nothing is left of it: for steps that count. */
  readonly release?: ((connection: Connection) => void) | undefined
}

/**
 * One decision about a packet: `check` says whether it may go on. A refused one is dropped and counted under `policy`.
 *
 * @category models
 * @since 0.1.0
 */
export interface DatagramStep {
  readonly policy: string
  readonly check: (datagram: Datagram) => Effect.Effect<boolean, unknown>
  /** Called once for each packet that passed `check`, when its handler has ended: for steps that count. */
  readonly release?: ((datagram: Datagram) => void) | undefined
}

/**
 * Asks an effect about every client before it is dispatched: Python's `verify_request`.
 *
 * **Details**
 *
 * `false` closes the connection with `CloseReason` `Refused("verify")`. An effect that fails or dies refuses too, and its
 * cause goes to the server's `onError`. The check may read from and write to the connection; what it reads is consumed.
 *
 * **Example** (Serving local clients only)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Effect, Stream } from "effect"
 * import { NetAddress } from "effect/net"
 *
 * const LocalEcho = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Admission.verify(({ peer }) => Effect.succeed(NetAddress.isInetAddress(peer) && NetAddress.isLoopback(peer.address))),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const verify = <E, R>(
  check: (connection: Connection) => Effect.Effect<boolean, E, R>
): <E2, R2>(transport: Layer.Layer<StreamTransport, E2, R2>) => Layer.Layer<StreamTransport, E2, R | R2> =>
(transport) =>
  Layer.effect(
    StreamTransport,
    Effect.gen(function*() {
      const inner = yield* StreamTransport
      const context = yield* Effect.context<R>()
      return {
        ...inner,
        steps: [
          ...inner.steps,
          { policy: "verify", check: (connection) => Effect.provideContext(check(connection), context) }
        ]
      }
    })
  ).pipe(Layer.provide(transport)) as Layer.Layer<StreamTransport, never, any>

/**
 * Asks an effect about every packet before it is dispatched: Python's `verify_request`, for datagrams.
 *
 * **Details**
 *
 * `false` drops the packet with `CloseReason` `Refused("verify")`. An effect that fails or dies drops it too, and its cause
 * goes to the server's `onError`. Whom a packet says it is from proves nothing: anybody can write any address there.
 *
 * @category steps
 * @since 0.1.0
 */
export const verifyDatagram = <E, R>(
  check: (datagram: Datagram) => Effect.Effect<boolean, E, R>
): <E2, R2>(transport: Layer.Layer<DatagramTransport, E2, R2>) => Layer.Layer<DatagramTransport, E2, R | R2> =>
(transport) =>
  Layer.effect(
    DatagramTransport,
    Effect.gen(function*() {
      const inner = yield* DatagramTransport
      const context = yield* Effect.context<R>()
      return {
        ...inner,
        steps: [
          ...inner.steps,
          { policy: "verify", check: (datagram) => Effect.provideContext(check(datagram), context) }
        ]
      }
    })
  ).pipe(Layer.provide(transport)) as Layer.Layer<DatagramTransport, never, any>
