/**
 * Handlers that can run somewhere else. A function cannot cross to a worker, a thread or a process of its own; its module
 * and its name can. A portable handler knows both, and brings the services that it needs as a layer, so that a worker can
 * find it and build them. Inline, under the other strategies, it runs like any handler, with the same results.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"

const PortableTypeId = "~@socketserver/core/Handler/Portable"

/**
 * A function from a request, or from a task's input, to an effect, with the name under which a worker finds it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Portable<in Input, out A, out E, out ELayer = never> {
  readonly [PortableTypeId]: typeof PortableTypeId
  /** The URL of the module that exports this. */
  readonly module: string
  /** The name that it is exported under. */
  readonly name: string
  readonly handle: (input: Input) => Effect.Effect<A, E, any>
  /** The services that `handle` needs: built once in a server, or once in each worker. */
  readonly layer: Layer.Layer<any, ELayer>
  readonly error: Schema.Codec<any, any> | undefined
}

/**
 * What a portable handler may be given along.
 *
 * @category options
 * @since 0.1.0
 */
export interface PortableOptions<R, E, ELayer> {
  /**
   * The services that the handler needs, built once in a server that runs it inline, and once in each worker. It must need
   * nothing itself. What it fails with, the server's start fails with. Default: none.
   */
  readonly layer?: Layer.Layer<R, ELayer> | undefined
  /**
   * How a failure travels. Without it, a failure comes back from a worker with its `_tag`, message, stack and fields, which
   * `Effect.catchTag` and logs need, but not as an instance of its class. `ConnectionError` and `DatagramError` always do.
   * Default: none.
   */
  readonly error?: Schema.Codec<E, any> | undefined
}

/** A handler that needs services must be given them. */
type PortableArguments<R, E, ELayer> = [R] extends [never] ? readonly [options?: PortableOptions<never, E, ELayer>]
  : readonly [options: PortableOptions<R, E, ELayer> & { readonly layer: Layer.Layer<R, ELayer> }]

/**
 * Makes a handler, or a task, that can run in a worker: it must be exported, under `name`, by the module whose URL is given.
 *
 * **Details**
 *
 * Under `Dispatch.serial` and `Dispatch.fiberPerRequest` it runs inline. Under `NodeDispatch.workerPerRequest` it runs in a
 * worker that has imported `module`, and everything that module imports; what a module keeps in variables, each worker has
 * for itself. A module that cannot be imported, or that does not export a portable handler of that name, is a `ListenError`
 * with reason `HandlerNotFound` when the server starts.
 *
 * It may use a `Scope`, and the services of its `layer`; not the `Server`, which lives elsewhere.
 *
 * **Example** (A handler for workers, and for anything else)
 *
 * ```ts
 * import { type Connection, Handler } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * export const upper = Handler.portable(import.meta.url, "upper", (connection: Connection.Connection) =>
 *   connection.lines().pipe(
 *     Stream.map((line) => `${line.toUpperCase()}\n`),
 *     Stream.run(connection.sink)
 *   ))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const portable = <Input, A, E, R = never, ELayer = never>(
  module: string,
  name: string,
  handle: (input: Input) => Effect.Effect<A, E, R>,
  ...[options]: PortableArguments<Exclude<R, Scope.Scope>, NoInfer<E>, ELayer>
): Portable<Input, A, E, ELayer> => ({
  [PortableTypeId]: PortableTypeId,
  module,
  name,
  handle,
  layer: (options?.layer ?? Layer.empty) as Layer.Layer<any, ELayer>,
  error: options?.error
})

/**
 * Is this something that {@link portable} has made?
 *
 * @category guards
 * @since 0.1.0
 */
export const isPortable = (u: unknown): u is Portable<any, any, any, any> =>
  typeof u === "object" && u !== null && PortableTypeId in u
