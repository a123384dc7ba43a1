/**
 * A pool of workers: threads or processes that run portable handlers and tasks, may crash without harm to others, and can be
 * killed whatever they do. `NodeDispatch.workerPerRequest` makes one for each server; where several servers are to share one,
 * or a handler that runs inline sends a computation away, it is a service.
 *
 * @since 0.1.0
 */
import type { QueueOptions } from "@socketserver/core/Dispatch"
import type { Portable } from "@socketserver/core/Handler"
import type { ListenError } from "@socketserver/core/ListenError"
import type { WorkerEvent } from "@socketserver/core/ServerEvent"
import type { WorkerDispatch, WorkersInfo } from "@socketserver/core/WorkerDispatch"
import type { WorkerError } from "@socketserver/core/WorkerError"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { ResourceLimits } from "./internal/workerHandle.ts"
import { makeUnstarted } from "./internal/workerService.ts"

/**
 * What workers can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface WorkerOptions {
  /**
   * `"thread"`: a thread of this process; starts in some 150 ms, and a crash of native code takes the process with it.
   * `"process"`: a process of its own; nothing that it does harms this one.
   */
  readonly kind: "thread" | "process"
  /** How many workers there may be. Default: as many as the machine runs at a time (`os.availableParallelism()`). */
  readonly maxWorkers?: number | undefined
  /** How many are kept, busy or not, up to `maxWorkers`. Default 1; the others start when they are needed, and stay. */
  readonly minWorkers?: number | undefined
  /**
   * How many requests a worker has at a time. Default 1: whatever a request does, it does to itself. More are for handlers
   * that mostly wait: a request that computes holds up those beside it, and one that is killed takes them with it.
   */
  readonly concurrencyPerWorker?: number | undefined
  /** Who may wait for a worker. Default: 1,024 requests, then new ones are refused. */
  readonly queue?: QueueOptions | undefined
  /**
   * How long a request may take in its worker. When it is over the handler is interrupted, and 50 ms later its worker is
   * killed, if it has not ended by then: `WorkerTimeout`. Default: no limit.
   */
  readonly timeout?: Duration.Input | undefined
  /** After how many requests a worker is replaced by a fresh one; 1 for one worker a request. Default: never. */
  readonly recycleAfter?: number | undefined
  /** How much memory a worker may take. One that needs more crashes. Default: what Node gives. */
  readonly resourceLimits?: ResourceLimits | undefined
  /** The environment of the workers. Default: this process's. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
  /** Node's own options for the workers, such as `["--enable-source-maps"]`. Default: those of this process. */
  readonly execArgv?: ReadonlyArray<string> | undefined
}

/**
 * A pool of workers.
 *
 * @category services
 * @since 0.1.0
 */
export class WorkerPool extends Context.Service<WorkerPool, {
  /**
   * Runs a task in a worker, and ends as it does. What it is given and returns is cloned, as `postMessage` does. Bounds,
   * deadlines and crashes are those of requests: a task that is one too many, overruns its time, or whose worker crashes,
   * fails with `WorkerError`. Interrupting this interrupts the task.
   */
  readonly run: <I, A, E, ELayer>(
    task: Portable<I, A, E, ELayer>,
    input: I
  ) => Effect.Effect<A, E | ELayer | WorkerError>
  readonly info: Effect.Effect<WorkersInfo>
  /** What happens to the workers from now on. A subscriber that is slower loses the oldest beyond 1,024. */
  readonly events: Stream.Stream<WorkerEvent>
  /** How servers run their requests in it; see `NodeDispatch.workers`. */
  readonly dispatch: WorkerDispatch["Service"]
}>()("@socketserver/node/WorkerPool") {}

/**
 * Makes a pool, and starts its first workers. The scope's end stops them: those that have nothing to do may release their
 * services within a second, the others are killed.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (
  options: WorkerOptions
) => Effect.Effect<WorkerPool["Service"], ListenError, Scope.Scope> = Effect.fnUntraced(function*(options) {
  const { pool, service } = yield* makeUnstarted(options)
  yield* pool.start() as Effect.Effect<void, ListenError>
  return service
})

/**
 * A pool as a service.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: WorkerOptions): Layer.Layer<WorkerPool, ListenError> =>
  Layer.effect(WorkerPool, make(options))
