/** A pool of workers for servers and tasks: its bounds, and how a request or a task goes through it. */
import * as Dispatch from "@socketserver/core/Dispatch"
import type { WorkerEvent } from "@socketserver/core/ServerEvent"
import type { WorkerDispatch } from "@socketserver/core/WorkerDispatch"
import { QueueFull, WorkerError } from "@socketserver/core/WorkerError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Stream from "effect/Stream"
import { availableParallelism } from "node:os"
import type { WorkerOptions, WorkerPool } from "../WorkerPool.ts"
import { checkInteger, invalid } from "./options.ts"
import { runRemotely } from "./remoteJob.ts"
import { reporterOptions } from "./telemetry.ts"
import { NodeWire } from "./wire.ts"
import { movesSockets } from "./workerHandle.ts"
import { Pool } from "./workerPool.ts"

const most = Number.MAX_SAFE_INTEGER

/** A pool without workers yet: `start` and the first server that uses it start them. */
export const makeUnstarted = Effect.fnUntraced(function*(options: WorkerOptions) {
  const maxWorkers = options.maxWorkers ?? availableParallelism()
  const minWorkers = options.minWorkers ?? 1
  const concurrency = options.concurrencyPerWorker ?? 1
  yield* checkInteger("maxWorkers", maxWorkers, 1, most)
  yield* checkInteger("minWorkers", minWorkers, 0, maxWorkers)
  yield* checkInteger("concurrencyPerWorker", concurrency, 1, most)
  yield* checkInteger("recycleAfter", options.recycleAfter, 1, most)
  const timeout = yield* checkTimeout(options.timeout)
  const strategy = yield* Dispatch.bounded(maxWorkers * concurrency, options.queue)
  const maxWaiting = options.queue?.max ?? 1_024

  const context = yield* Effect.context<never>()
  const pool = new Pool(
    {
      kind: options.kind,
      maxWorkers,
      minWorkers,
      concurrency,
      recycleAfter: options.recycleAfter ?? Infinity,
      env: options.env,
      execArgv: options.execArgv,
      resourceLimits: options.resourceLimits,
      reporter: reporterOptions(context)
    },
    context
  )
  yield* Effect.addFinalizer(() => pool.close)
  const events = yield* PubSub.sliding<WorkerEvent>(1_024)
  pool.listeners.add((event) => {
    if (events.subscribers.size > 0) PubSub.publishUnsafe(events, event)
  })

  const run: WorkerPool["Service"]["run"] = (task, input) =>
    Effect.withFiber((caller) =>
      Effect.callback<any, any>((resume) => {
        let result: Exit.Exit<any, any> | undefined
        let running: Fiber.Fiber<void> | undefined
        running = Effect.runForkWith(caller.context)(strategy({
          id: 0,
          handle: Effect.map(
            Effect.exit(runRemotely({ pool, handler: task, timeout, request: { _tag: "Task", input } })),
            (exit) => {
              result = exit
            }
          ),
          // It may be another's fiber that asks, while this one waits.
          refuse: () =>
            Effect.withFiber((asking) => {
              result = Exit.fail(
                new WorkerError({ reason: new QueueFull({ max: maxWaiting }), handler: task.name })
              )
              if (running !== asking) running?.interruptUnsafe()
              return Effect.void
            })
        }))
        // Not before the next in line has the worker: what the caller does then may take its time.
        running.addObserver((exit) => resume(result ?? (Exit.isFailure(exit) ? exit : Effect.interrupt)))
        return Fiber.interrupt(running)
      })
    )

  const dispatch: WorkerDispatch["Service"] = {
    name: "workerPerRequest",
    make: (handler, publish, isAwaiting) =>
      Effect.gen(function*() {
        yield* pool.start(handler) as Effect.Effect<void, any>
        yield* Effect.acquireRelease(
          Effect.sync(() => {
            pool.listeners.add(publish)
            pool.awaiting.add(isAwaiting)
          }),
          () =>
            Effect.sync(() => {
              pool.listeners.delete(publish)
              pool.awaiting.delete(isAwaiting)
            })
        )
        return {
          strategy,
          // A request is not to blame for its worker: handlers and their error hooks know nothing of workers.
          run: (request) =>
            Effect.catchIf(
              runRemotely({ pool, handler, timeout, request }),
              (error) => error instanceof WorkerError,
              Effect.die
            ),
          moves: (wire) => wire instanceof NodeWire && wire.isMovable && movesSockets(options.kind, wire.isTcp),
          catchUp: () => pool.catchUp(),
          info: () => pool.info()
        }
      })
  }

  const service: WorkerPool["Service"] = {
    run,
    info: Effect.sync(() => pool.info()),
    events: Stream.fromPubSub(events),
    dispatch
  }
  return { pool, service }
})

const checkTimeout = (timeout: Duration.Input | undefined) => {
  if (timeout === undefined) return Effect.succeed(undefined)
  const duration = Duration.fromInput(timeout)
  return Option.isSome(duration) && Duration.isGreaterThan(duration.value, Duration.zero)
    ? Effect.succeed(duration.value)
    : invalid("timeout", timeout, "a duration above 0, such as \"10 seconds\"")
}
