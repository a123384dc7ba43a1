/**
 * Why a worker did not do what it was given. A request's ending says it by its `CloseReason`; a task fails with it.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import { messageOf } from "./internal/causes.ts"
import type { HandlerNotFound } from "./ListenError.ts"

/**
 * The worker ended while it ran this: it exited, ran out of memory, was killed from outside or for another request's sake, or
 * could not be started. `cause` says which.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerCrashed extends Data.TaggedError("WorkerCrashed")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return `the worker crashed: ${messageOf(this.cause)}`
  }
}

/**
 * It took longer than the `timeout` of the workers, and was ended: interrupted, and killed where it did not heed that.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerTimeout extends Data.TaggedError("WorkerTimeout")<{
  readonly timeout: Duration.Duration
}> {
  override get message(): string {
    return `not done within the workers' \`timeout\` of ${Duration.format(this.timeout)}`
  }
}

/**
 * As many as may wait for a worker do so already.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueFull extends Data.TaggedError("QueueFull")<{
  readonly max: number
}> {
  override get message(): string {
    return `${this.max} tasks wait for a worker already: raise \`queue.max\` or \`maxWorkers\`, or come back later`
  }
}

/**
 * A worker did not do what it was given. `reason` tells why.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerError extends Data.TaggedError("WorkerError")<{
  readonly reason: WorkerCrashed | WorkerTimeout | QueueFull | HandlerNotFound
  /** The handler or task, by its name. */
  readonly handler: string
}> {
  override get message(): string {
    return `${this.handler}: ${this.reason.message}`
  }
}
