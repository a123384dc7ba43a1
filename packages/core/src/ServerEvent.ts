/**
 * What happens in a server, as values. `Server.events` is a stream of them, and what a server logs is made of them, see
 * `Logging`; nothing is built while nobody listens.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import type { CloseReason } from "./CloseReason.ts"
import { Publisher } from "./internal/publisher.ts"
import { Log } from "./Logging.ts"

/**
 * The report of a drain.
 *
 * @category models
 * @since 0.1.0
 */
export interface DrainReport {
  /** Connections that were idle: their waiting read saw end of input, and their handler ended. */
  readonly idleClosed: number
  /** Requests that were under way and finished by themselves. */
  readonly completed: number
  /** Handlers that overstayed `grace`, were interrupted, and ended. */
  readonly interrupted: number
  /** Connections that were cut at `kill`. */
  readonly killed: number
  /** Requests that had not begun, and were turned away. */
  readonly refused: number
  readonly elapsed: Duration.Duration
}

/**
 * What a request is: a connection, a packet, a peer's many packets, a message on a connection, a value of a stream.
 *
 * @category models
 * @since 0.1.0
 */
export type RequestKind = "connection" | "datagram" | "session" | "message" | "value"

/**
 * Something that happened in a server.
 *
 * - `Listening`: it accepts: from the start on, again after a `suspend`, or again because an admission step that had it closed
 *   has room
 * - `Accepted`: a client is there; it is not admitted yet
 * - `Failed`: a handler, an admission check or the strategy failed or died, and there is no `onError` to be told. `level` is
 *   `Debug` for what its client can cause. `Closed` follows
 * - `Closed`: a connection has ended, and is released; one for every `Accepted`
 * - `Saturated`, `Relieved`: the limit of an admission step is reached; there is room again
 * - `Suspended`: it stopped to accept, and keeps its connections
 * - `Draining`, `Stopped`: a drain began; it ended, and this is the last event
 * - `CertificatesRenewed`: new handshakes have other certificates
 * - `Problem`: something that the server does beside its requests, or a hook, has failed, and the server goes on
 * - `WorkerStarted`, `WorkerEnded`, `WorkerNotStarted`: see {@link WorkerEvent}
 *
 * @category models
 * @since 0.1.0
 */
export type ServerEvent = RequestEvent | LifecycleEvent

/**
 * Something that happened to a request: every client brings some.
 *
 * @category models
 * @since 0.1.0
 */
export type RequestEvent =
  | { readonly _tag: "Accepted"; readonly id: number; readonly peer: SocketAddress }
  | {
    readonly _tag: "Failed"
    readonly level: "Error" | "Debug"
    readonly kind: RequestKind
    readonly id: number
    readonly peer: SocketAddress
    readonly reason: CloseReason
    readonly cause: Cause.Cause<unknown>
    readonly annotations: ReadonlyMap<string, unknown>
  }
  | {
    readonly _tag: "Closed"
    readonly kind: RequestKind
    readonly id: number
    readonly peer: SocketAddress
    readonly reason: CloseReason
    readonly duration: Duration.Duration
    readonly bytesRead: number
    readonly bytesWritten: number
  }

/**
 * Something that happened to the server itself.
 *
 * @category models
 * @since 0.1.0
 */
export type LifecycleEvent =
  | {
    readonly _tag: "Listening"
    readonly address: SocketAddress
    readonly after: "start" | "suspended" | "saturated"
  }
  | { readonly _tag: "Saturated"; readonly policy: string }
  | { readonly _tag: "Relieved"; readonly policy: string }
  | { readonly _tag: "Suspended" }
  | { readonly _tag: "Draining" }
  | { readonly _tag: "Stopped"; readonly report: DrainReport }
  | { readonly _tag: "CertificatesRenewed" }
  | {
    readonly _tag: "Problem"
    readonly level: "Error" | "Warn" | "Debug"
    readonly message: string
    readonly cause: Cause.Cause<unknown>
  }
  | WorkerEvent

/**
 * Something that happened to a worker of a server.
 *
 * - `WorkerStarted`: it has loaded the handler, and takes requests; `worker` counts up from 1 within a pool
 * - `WorkerEnded`: it is gone. `Crashed`: by itself, while it was needed; `Recycled`: after as many requests as `recycleAfter`
 *   says; `Killed`: for a request that overran its time and did not heed its interruption, an error whose `cause` is a
 *   `WorkerTimeout`; or because it did not hear of another interruption
 * - `WorkerNotStarted`: it could not be started; the next attempt comes after `retryIn`
 *
 * @category models
 * @since 0.1.0
 */
export type WorkerEvent =
  | { readonly _tag: "WorkerStarted"; readonly worker: number }
  | {
    readonly _tag: "WorkerEnded"
    readonly worker: number
    readonly how: "Crashed" | "Recycled" | "Killed"
    readonly cause: unknown
  }
  | { readonly _tag: "WorkerNotStarted"; readonly cause: unknown; readonly retryIn: Duration.Duration }

/**
 * Publishes an event, for code that belongs to a server: a transport's `listen`, a step's `start`. There it goes to the
 * server's events and its log. Elsewhere it is only logged.
 *
 * @category combinators
 * @since 0.1.0
 */
export const publish = (event: LifecycleEvent): Effect.Effect<void> =>
  Effect.withFiber((fiber) => {
    const publisher = fiber.getRef(Publisher)
    return publisher === undefined ? fiber.getRef(Log).log(event, undefined) : Effect.sync(() => publisher(event))
  })
