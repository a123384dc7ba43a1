/**
 * Dispatch to workers: each request runs in a thread or a process of its own, as far as there are workers, and the others
 * wait. What a handler does there, compute for ever, exhaust its memory, crash, is its own request's end and nobody else's.
 *
 * @since 0.1.0
 */
import type { DatagramTransport } from "@socketserver/core/DatagramTransport"
import type * as MessageTransport from "@socketserver/core/MessageTransport"
import type { StreamTransport } from "@socketserver/core/StreamTransport"
import { WorkerDispatch } from "@socketserver/core/WorkerDispatch"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { makeUnstarted } from "./internal/workerService.ts"
import { type WorkerOptions, WorkerPool } from "./WorkerPool.ts"

/**
 * Runs each request in a worker. The handler must be one that can travel: see `Handler.portable`.
 *
 * **Details**
 *
 * Workers are started with the server, as many as `minWorkers` says, and then as they are needed, up to `maxWorkers`. Each has
 * `concurrencyPerWorker` requests at a time, one by default. A worker that ends is replaced.
 *
 * A TCP connection itself moves to its worker where the system and Node can do that (to threads from Node 24 on, to processes
 * always, as unix sockets do): the worker talks to the kernel, and the server's thread has nothing more to do with it.
 * Elsewhere its bytes travel as messages, with the same results. `Server.info` says which.
 *
 * How a request ends by its worker's doing: `WorkerTimeout` where it overran `timeout`, else `WorkerCrashed`, with the cause.
 * Both go to `onError`, as a defect that is a `WorkerError`.
 *
 * A server whose handler cannot be found, or whose layer fails in the worker, does not start: `ListenError` with reason
 * `HandlerNotFound`, or what the layer failed with. Nor does one whose first worker cannot be started (`WorkersNotStarted`), or
 * with an option out of range (`InvalidOption`). If workers cannot be started later on, requests that wait for one end with
 * `WorkerCrashed`, and the next attempt comes after a pause that grows from 100 ms to 10 seconds.
 *
 * **Example** (At most two seconds of anybody's time)
 *
 * ```ts
 * import { Connection, Handler, Server } from "@socketserver/core"
 * import { NodeDispatch, NodeTransport } from "@socketserver/node"
 * import { Effect } from "effect"
 * import { scryptSync } from "node:crypto"
 *
 * export const hash = Handler.portable(import.meta.url, "hash", (connection: Connection.Connection) =>
 *   Effect.flatMap(connection.readLine(), (line) => connection.write(scryptSync(line, "salt", 64).toString("hex"))))
 *
 * const Hashing = NodeTransport.tcp({ port: 9999 }).pipe(
 *   NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 4, timeout: "2 seconds" }),
 *   Server.serveStream(hash)
 * )
 * ```
 *
 * @category strategies
 * @since 0.1.0
 */
export const workerPerRequest =
  (options: WorkerOptions) =>
  <A extends StreamTransport | DatagramTransport | MessageTransport.Any, E, R>(
    transport: Layer.Layer<A, E, R>
  ): Layer.Layer<A | WorkerDispatch, E, R> =>
    Layer.merge(
      transport,
      Layer.succeed(WorkerDispatch, {
        name: "workerPerRequest",
        make: (handler, publish, isAwaiting) =>
          Effect.flatMap(makeUnstarted(options), ({ service }) => service.dispatch.make(handler, publish, isAwaiting))
      })
    )

/**
 * Runs each request in a worker of the {@link WorkerPool} that the program has, beside the tasks of others and the requests of
 * other servers, under that pool's bounds and deadlines.
 *
 * @category strategies
 * @since 0.1.0
 */
export const workers = <A extends StreamTransport | DatagramTransport | MessageTransport.Any, E, R>(
  transport: Layer.Layer<A, E, R>
): Layer.Layer<A | WorkerDispatch, E, R | WorkerPool> =>
  Layer.merge(transport, Layer.effect(WorkerDispatch, Effect.map(WorkerPool, ({ dispatch }) => dispatch)))
