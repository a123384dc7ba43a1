/**
 * What a server logs. A server writes no line itself: its events go to the log that is in its context, and that makes lines
 * of them with Effect's loggers. There is one from the start; a layer puts another in its place, or none.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { formatAddress } from "./internal/connection.ts"
import type { ServerEvent } from "./ServerEvent.ts"
import { WorkerTimeout } from "./WorkerError.ts"

/**
 * What is done with a server's events as they happen.
 *
 * @category models
 * @since 0.1.0
 */
export interface Logging {
  /**
   * Logs an event of the server with that name; of none, where something beside a server has gone wrong. It runs at the
   * event, with the span of the connection if there is one, and nobody waits for it.
   */
  readonly log: (event: ServerEvent, server: string | undefined) => Effect.Effect<void>
  /**
   * Does it take the events of level `Debug`, see {@link level}, one or more for each connection? Default: if the
   * minimum log level lets them through when the server starts. Without, they are not even made.
   */
  readonly debug?: boolean | undefined
}

/**
 * The level at which an event deserves a line.
 *
 * **Details**
 *
 * - `Info`: the steps of a server's life: `Listening`, `Suspended`, `Draining`, `Stopped`, `CertificatesRenewed`
 * - `Error`: `WorkerNotStarted`
 * - `Error` or `Debug`, as the event has it: `Failed`, `Problem`; for the latter also `Warn`
 * - `Warn`: a worker that ended by itself, or was killed because a request overran its `timeout` and did not heed its
 *   interruption
 * - `Debug`: all that a client can cause at will: the others, and `Listening` after there was no room
 *
 * @category combinators
 * @since 0.1.0
 */
export const level = (event: ServerEvent): "Error" | "Warn" | "Info" | "Debug" => {
  switch (event._tag) {
    case "Failed":
    case "Problem":
      return event.level
    case "WorkerNotStarted":
      return "Error"
    case "WorkerEnded":
      return event.how === "Crashed" || (event.how === "Killed" && isOverrun(event.cause)) ? "Warn" : "Debug"
    case "Listening":
      return event.after === "saturated" ? "Debug" : "Info"
    case "Suspended":
    case "Draining":
    case "Stopped":
    case "CertificatesRenewed":
      return "Info"
    default:
      return "Debug"
  }
}

/** A handler that waits, for its client for instance, heeds its interruption: this one has kept its worker busy. */
const isOverrun = (cause: unknown): boolean => cause instanceof Error && cause.cause instanceof WorkerTimeout

/**
 * The log that servers have unless another one is provided: one line for each event but `Accepted`, at the event's
 * {@link level}, annotated with the server's name and what is known of the connection.
 *
 * @category logs
 * @since 0.1.0
 */
export const lines: Logging = {
  log: (event, server) => {
    if (event._tag === "Accepted") return Effect.void
    const { annotations, cause, message } = lineOf(event)
    const write = Effect.logWithLevel(level(event))
    return Effect.annotateLogs(
      cause === undefined ? write(message) : write(message, cause),
      server === undefined ? { ...annotations } : { server, ...annotations }
    )
  }
}

interface Line {
  readonly message: string
  /** A `Cause`, or an error. */
  readonly cause?: unknown
  readonly annotations?: Record<string, unknown>
}

const lineOf = (event: Exclude<ServerEvent, { _tag: "Accepted" }>): Line => {
  switch (event._tag) {
    case "Failed": {
      const { annotations, cause, id, kind, reason } = event
      const peer = formatAddress(event.peer)
      return {
        message: `${kind} ${id} from ${peer}: ${reason._tag}`,
        cause,
        annotations: { ...Object.fromEntries(annotations), [kind]: id, peer }
      }
    }
    case "Closed": {
      const { bytesRead, bytesWritten, duration, id, kind, reason } = event
      const peer = formatAddress(event.peer)
      return {
        message: `${kind} ${id} from ${peer} closed: ${reason._tag}`,
        cause: reason._tag === "HandshakeFailed" ? reason.cause : undefined,
        annotations: {
          [kind]: id,
          peer,
          reason: reason._tag,
          ...(reason._tag === "Refused" ? { policy: reason.policy } : undefined),
          duration: Duration.format(duration),
          bytesRead,
          bytesWritten
        }
      }
    }
    case "Listening":
      return { message: `listening on ${formatAddress(event.address)}` }
    case "Suspended":
      return { message: "suspended: no client is accepted until it is resumed" }
    case "Saturated":
      return { message: `saturated: ${event.policy} has no room` }
    case "Relieved":
      return { message: `relieved: ${event.policy} has room` }
    case "Draining":
      return { message: "draining" }
    case "Stopped": {
      const { elapsed, ...counts } = event.report
      return { message: "stopped", annotations: { elapsed: Duration.format(elapsed), ...counts } }
    }
    case "CertificatesRenewed":
      return { message: "new certificates are in use" }
    case "Problem":
      return event
    case "WorkerStarted":
      return { message: `worker ${event.worker} started` }
    case "WorkerEnded":
      return { message: `worker ${event.worker} ended: ${event.how}`, cause: event.cause }
    case "WorkerNotStarted":
      return {
        message: `a worker could not be started, will try again in ${Duration.format(event.retryIn)}`,
        cause: event.cause
      }
  }
}

/**
 * The log of the servers that are built in this context: {@link lines} unless something else is provided.
 *
 * @category services
 * @since 0.1.0
 */
export const Log = Context.Reference<Logging>("@socketserver/core/Logging", { defaultValue: () => lines })

/**
 * Puts another log in the place of {@link lines}, for the servers that it is provided to.
 *
 * **Example** (An access log: each connection at Info)
 *
 * ```ts
 * import { Dispatch, Logging, MemoryTransport, Server } from "@socketserver/core"
 * import { Effect, Layer } from "effect"
 *
 * const AccessLog = Logging.layer({
 *   debug: true,
 *   log: (event, server) =>
 *     event._tag === "Closed"
 *       ? Effect.log(`${server} ${event.peer} ${event.reason._tag} ${event.bytesRead} ${event.bytesWritten}`)
 *       : Logging.lines.log(event, server)
 * })
 *
 * const Echo = MemoryTransport.stream().pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => connection.write("hello\n")),
 *   Layer.provide(AccessLog)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (logging: Logging): Layer.Layer<never> => Layer.succeed(Log, logging)

/**
 * The usual lines, without the steps of a server's life: for programs that tell those themselves.
 *
 * @category layers
 * @since 0.1.0
 */
export const quiet: Layer.Layer<never> = layer({
  log: (event, server) => level(event) === "Info" ? Effect.void : lines.log(event, server)
})

/**
 * No line at all, not even for failures.
 *
 * @category layers
 * @since 0.1.0
 */
export const off: Layer.Layer<never> = layer({ debug: false, log: () => Effect.void })
