/**
 * Why a server could not bind. One tagged error with a `reason`, so that a program can tell "the port is taken" from "the
 * option is wrong", and with a message that names the address or option and says what to do.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import { messageOf } from "./internal/causes.ts"

/**
 * Another socket is bound to the address (`EADDRINUSE`).
 *
 * @category errors
 * @since 0.1.0
 */
export class AddressInUse extends Data.TaggedError("AddressInUse")<{
  readonly address: string
}> {
  override get message(): string {
    const other = this.address.startsWith("unix:") ? "path" : "address (port 0 picks a free one)"
    return `${this.address} is already in use: stop the program that listens there, or choose another ${other}`
  }
}

/**
 * The system denies the address to this user (`EACCES`, `EPERM`): a port below 1024, or a directory that is not writable.
 *
 * @category errors
 * @since 0.1.0
 */
export class PermissionDenied extends Data.TaggedError("PermissionDenied")<{
  readonly address: string
}> {
  override get message(): string {
    return `no permission to listen on ${this.address}: choose a port above 1023, or a path in a directory that this user may write to`
  }
}

/**
 * The address does not belong to this machine (`EADDRNOTAVAIL`), the host name is not known (`ENOTFOUND`), or the directory
 * of a socket path does not exist (`ENOENT`).
 *
 * @category errors
 * @since 0.1.0
 */
export class AddressNotAvailable extends Data.TaggedError("AddressNotAvailable")<{
  readonly address: string
  readonly detail: string
}> {
  override get message(): string {
    return `cannot listen on ${this.address}: ${this.detail}`
  }
}

/**
 * An option is out of its range. Found before anything is opened.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidOption extends Data.TaggedError("InvalidOption")<{
  readonly option: string
  readonly value: unknown
  readonly expected: string
}> {
  override get message(): string {
    const value = typeof this.value === "string" ? JSON.stringify(this.value) : String(this.value)
    return `option \`${this.option}\` is ${this.value === undefined ? "missing" : value}: expected ${this.expected}`
  }
}

/**
 * Workers cannot find the handler: its module cannot be imported, or does not export a portable handler of that name.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerNotFound extends Data.TaggedError("HandlerNotFound")<{
  /** The URL of the module. */
  readonly module: string
  /** The name of the export. */
  readonly handler: string
  readonly detail: string
}> {
  override get message(): string {
    return `no handler \`${this.handler}\` in ${this.module}: ${this.detail}`
  }
}

/**
 * No worker could be started, for a reason that is not the handler's.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkersNotStarted extends Data.TaggedError("WorkersNotStarted")<{
  readonly cause: unknown
}> {
  override get message(): string {
    return `no worker could be started: ${messageOf(this.cause)}`
  }
}

/**
 * Any other failure to bind or listen. `cause` is what the platform reported.
 *
 * @category errors
 * @since 0.1.0
 */
export class ListenFailed extends Data.TaggedError("ListenFailed")<{
  readonly address: string
  readonly cause: unknown
}> {
  override get message(): string {
    return `cannot listen on ${this.address}: ${messageOf(this.cause)}`
  }
}

/**
 * A server could not bind. Nothing is left open.
 *
 * **Example** (Falling back to a free port)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Effect, Layer, Stream } from "effect"
 *
 * const echo = (port: number) =>
 *   NodeTransport.tcp({ port }).pipe(
 *     Dispatch.serial(),
 *     Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 *   )
 *
 * const program = Layer.launch(echo(7)).pipe(
 *   Effect.catchReason("ListenError", "PermissionDenied", () => Layer.launch(echo(7007)))
 * )
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ListenError extends Data.TaggedError("ListenError")<{
  readonly reason:
    | AddressInUse
    | PermissionDenied
    | AddressNotAvailable
    | InvalidOption
    | HandlerNotFound
    | WorkersNotStarted
    | ListenFailed
}> {
  override get message(): string {
    return this.reason.message
  }
}
