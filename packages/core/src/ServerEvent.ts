/**
 * What happens in a server, as values. `Server.events` is a stream of them; nothing is built while nobody listens.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type { SocketAddress } from "effect/net/NetAddress"
import type { CloseReason } from "./CloseReason.ts"

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
 * Something that happened in a server.
 *
 * - `Listening`: it accepts, at first or again
 * - `Accepted`: a client is there; it is not admitted yet
 * - `Closed`: a connection has ended, and is released; one for every `Accepted`
 * - `Saturated`, `Relieved`: the limit of an admission step is reached; there is room again
 * - `Suspended`: it stopped to accept, and keeps its connections
 * - `Draining`, `Stopped`: a drain began; it ended, and this is the last event
 * - `WorkerStarted`, `WorkerEnded`, `WorkerNotStarted`: see {@link WorkerEvent}
 *
 * @category models
 * @since 0.1.0
 */
export type ServerEvent =
  | { readonly _tag: "Listening"; readonly address: SocketAddress }
  | { readonly _tag: "Accepted"; readonly id: number; readonly peer: SocketAddress }
  | {
    readonly _tag: "Closed"
    readonly id: number
    readonly peer: SocketAddress
    readonly reason: CloseReason
    readonly duration: Duration.Duration
    readonly bytesRead: number
    readonly bytesWritten: number
  }
  | { readonly _tag: "Saturated"; readonly policy: string }
  | { readonly _tag: "Relieved"; readonly policy: string }
  | { readonly _tag: "Suspended" }
  | { readonly _tag: "Draining" }
  | { readonly _tag: "Stopped"; readonly report: DrainReport }
  | WorkerEvent

/**
 * Something that happened to a worker of a server.
 *
 * - `WorkerStarted`: it has loaded the handler, and takes requests; `worker` counts up from 1 within a pool
 * - `WorkerEnded`: it is gone. `Crashed`: by itself, while it was needed; `Recycled`: after as many requests as `recycleAfter`
 *   says; `Killed`: for a request that overran its time or did not heed its interruption
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
