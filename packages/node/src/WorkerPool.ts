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
 * What workers can be told. What is out of range is a `ListenError` with reason `InvalidOption`, before anything is started.
 *
 * @category options
 * @since 0.1.0
 */
export interface WorkerOptions {
  /**
   * `"thread"`: a thread of this process; starts in some 150 ms, holds some 40 MB, and a crash of native code takes the
   * process with it. `"process"`: a process of its own; starts in some 200 ms, holds some 60 MB, and nothing that it does harms
   * this one.
   */
  readonly kind: "thread" | "process"
  /**
   * How many workers there may be: 1 or more. Default: as many as the machine runs at a time (`os.availableParallelism()`).
   *
   * There are never more requests with workers than this times `concurrencyPerWorker`. Workers there may be more of for a
   * while, with `recycleAfter`: those that are on their way out, or finish their last requests beside a successor.
   */
  readonly maxWorkers?: number | undefined
  /** How many are kept, busy or not: 0 to `maxWorkers`. Default 1; the others start when they are needed, and stay. */
  readonly minWorkers?: number | undefined
  /**
   * How many requests a worker has at a time: 1 or more. Default 1: whatever a request does, it does to itself. More are for handlers
   * that mostly wait: a request that computes holds up those beside it, and one that is killed takes them with it.
   */
  readonly concurrencyPerWorker?: number | undefined
  /** Who may wait for a worker. Default: 1,024 requests, then new ones are refused. */
  readonly queue?: QueueOptions | undefined
  /**
   * How long a request may take in its worker, above 0; its wait for one does not count. When it is over the handler is interrupted, and 50 ms later its worker is
   * killed, if it has not ended by then: `WorkerTimeout`. Default: no limit.
   */
  readonly timeout?: Duration.Input | undefined
  /** After how many requests, 1 or more, a worker is replaced by a fresh one; 1 for one worker a request. Default: never. */
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
   * fails with `WorkerError`, and so does one that cannot be found. Interrupting this interrupts the task.
   */
  readonly run: <I, A, E, ELayer>(
    task: Portable<I, A, E, ELayer>,
    input: I
  ) => Effect.Effect<A, E | ELayer | WorkerError>
  /** The workers as they are now, and what became of the others. */
  readonly info: Effect.Effect<WorkersInfo>
  /** What happens to the workers from now on. A subscriber that is slower loses the oldest beyond 1,024. */
  readonly events: Stream.Stream<WorkerEvent>
  /** How servers run their requests in it; see `NodeDispatch.workers`. */
  readonly dispatch: WorkerDispatch["Service"]
}>()("@socketserver/node/WorkerPool") {}

/**
 * Makes a pool, and starts its first workers: `minWorkers`, and at least one, so that it is known that they start. It completes
 * when one of them is ready. The scope's end stops them: those that have nothing to do may release their services within a
 * second, the others are killed.
 *
 * Fails with `ListenError`: with reason `InvalidOption` for an option out of range, and `WorkersNotStarted` where none could be
 * started, or not within 30 seconds.
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
 * A pool as a service; see {@link make}.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: WorkerOptions): Layer.Layer<WorkerPool, ListenError> =>
  Layer.effect(WorkerPool, make(options))
