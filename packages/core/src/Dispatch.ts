/**
 * A dispatch strategy decides when and how admitted requests run: one at a time, or each in its own fiber. It is the last
 * step before the handler, and chosen independently of transport and handler.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { DatagramTransport } from "./DatagramTransport.ts"
import { checkInteger } from "./internal/options.ts"
import { placesOf } from "./internal/places.ts"
import type { ListenError } from "./ListenError.ts"
import type * as MessageTransport from "./MessageTransport.ts"
import type { StreamTransport } from "./StreamTransport.ts"

/**
 * A request that waits to be run, as a strategy sees it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  /** Counts up from 1 within a server. */
  readonly id: number
  /**
   * Runs the handler, its finalizers and the server's bookkeeping, and begins to close the connection. Never fails: what
   * the handler did is the server's business. Run it once.
   */
  readonly handle: Effect.Effect<void>
  /** Turns the request away with `Refused(policy)`, and ends its fiber if that is another one. For requests not yet handled. */
  readonly refuse: (policy: string) => Effect.Effect<void>
}

/**
 * What a strategy does with a request. It is called in the request's own fiber: to run it is to `yield* request.handle`, to
 * queue it is to wait before that, to turn it away is `request.refuse`.
 *
 * @category models
 * @since 0.1.0
 */
export type Strategy = (request: Request) => Effect.Effect<void>

/**
 * How the requests of a server are run.
 *
 * **Details**
 *
 * The contract, held by ours and checked by the conformance suite in `@socketserver/testing`:
 *
 * 1. Bounded: it lets only so many requests wait, and refuses beyond.
 * 2. A wait is interruptible: a drain interrupts requests that have not begun.
 * 3. What it holds for a request it gives back when `handle` ends, by interruption too.
 * 4. What it needs for itself is acquired in `make`, whose scope is the server's.
 *
 * **Example** (A strategy of one's own: the newest waiting client first)
 *
 * ```ts
 * import { Dispatch } from "@socketserver/core"
 * import { Deferred, Effect } from "effect"
 *
 * const lastInFirstOut = (options: { readonly queue: number }) =>
 *   Dispatch.custom({
 *     name: "lastInFirstOut",
 *     make: Effect.sync(() => {
 *       const waiting: Array<Deferred.Deferred<void>> = []
 *       let running = false
 *       const next = Effect.suspend(() => {
 *         const turn = waiting.pop()
 *         running = turn !== undefined
 *         return turn === undefined ? Effect.void : Deferred.succeed(turn, undefined)
 *       })
 *       return (request) =>
 *         Effect.suspend(() => {
 *           if (running && waiting.length >= options.queue) return request.refuse("queue")
 *           const turn = Deferred.makeUnsafe<void>()
 *           if (running) waiting.push(turn)
 *           else Deferred.doneUnsafe(turn, Effect.void)
 *           running = true
 *           return Deferred.await(turn).pipe(
 *             Effect.andThen(request.handle),
 *             Effect.ensuring(Effect.suspend(() => {
 *               const index = waiting.indexOf(turn)
 *               if (index === -1) return next // It had its turn.
 *               waiting.splice(index, 1) // It was interrupted while it waited.
 *               return Effect.void
 *             }))
 *           )
 *         })
 *     })
 *   })
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class Dispatch extends Context.Service<Dispatch, {
  /** A short name for people: it shows in `Server.info`. */
  readonly name: string
  /** Makes the strategy for one server, or says why it cannot, with `InvalidOption` for instance. */
  readonly make: Effect.Effect<Strategy, ListenError, Scope.Scope>
}>()("@socketserver/core/Dispatch") {}

/**
 * Puts a strategy behind a transport.
 *
 * @category constructors
 * @since 0.1.0
 */
export const custom = (
  strategy: Dispatch["Service"]
): <A extends StreamTransport | DatagramTransport | MessageTransport.Any, E, R>(
  transport: Layer.Layer<A, E, R>
) => Layer.Layer<A | Dispatch, E, R> =>
(transport) => Layer.merge(transport, Layer.succeed(Dispatch, strategy))

/**
 * How many requests may wait, and who has to go when one too many does.
 *
 * @category options
 * @since 0.1.0
 */
export interface QueueOptions {
  /** How many requests may wait. Default 1,024; 0 lets none wait. */
  readonly max?: number | undefined
  /**
   * At one more than `max`, `"refuseNewest"` (the default) turns that one away, `"refuseOldest"` the one that has waited
   * longest, whose client has most likely given up. Either is closed with `Refused("queue")`.
   */
  readonly overflow?: "refuseNewest" | "refuseOldest" | undefined
}

/**
 * One request at a time, in the order of arrival; the others wait in a bounded queue. For handlers that must not overlap.
 *
 * **Gotchas**
 *
 * A client that does nothing holds up everybody: give the server an `idleTimeout`.
 *
 * @category strategies
 * @since 0.1.0
 */
export const serial = (options?: {
  /** Who may wait. Default: 1,024 requests, then new ones are refused. */
  readonly queue?: QueueOptions | undefined
}) => custom({ name: "serial", make: bounded(1, options?.queue) })

/**
 * A fiber for each request, at most `maxInFlight` at a time; beyond that they wait in a bounded queue.
 *
 * @category strategies
 * @since 0.1.0
 */
export const fiberPerRequest = (options?: {
  /** How many handlers may run at a time. Default 16,384: some 100 MB of idle connections. */
  readonly maxInFlight?: number | undefined
  /** Who may wait for a place. Default: 1,024 requests, then new ones are refused. */
  readonly queue?: QueueOptions | undefined
}) => custom({ name: "fiberPerRequest", make: bounded(options?.maxInFlight ?? 16_384, options?.queue) })

/**
 * The strategy of them all: at most `places` requests run, the others wait in order of arrival, and at the bound of the
 * queue one is refused. For strategies of one's own that differ in something else.
 *
 * @category constructors
 * @since 0.1.0
 */
export const bounded: (
  places: number,
  queue?: QueueOptions
) => Effect.Effect<Strategy, ListenError> = Effect.fnUntraced(function*(places, queue) {
  const max = queue?.max ?? 1_024
  const refuseOldest = queue?.overflow === "refuseOldest"
  yield* checkInteger("maxInFlight", places, 1)
  yield* checkInteger("queue.max", max, 0)
  const waiting = new Map<Request, (turn: Effect.Effect<void>) => void>()
  let running = 0

  let freed = 0
  let handingOn = false
  /** A place is free: the next in line gets it. One function for all requests, kept while they run. */
  const leave = () => {
    if (waiting.size === 0 && !handingOn) {
      running--
      return undefined
    }
    freed++
    // The next in line runs from within this call. If it ends at once, its place is handed on by the loop that is already
    // under way: a thousand requests in line are a thousand turns of it, not a thousand calls inside each other.
    if (handingOn) return
    handingOn = true
    for (; freed > 0; freed--) {
      const next = waiting.entries().next()
      if (next.done) running--
      else {
        const [request, resume] = next.value
        waiting.delete(request)
        resume(Effect.void)
      }
    }
    handingOn = false
    return undefined
  }
  const wait = (request: Request) =>
    Effect.callback<void>((resume) => {
      waiting.set(request, resume)
      return Effect.sync(() => waiting.delete(request))
    })

  const take = () => {
    if (running >= places) return false
    running++
    return true
  }

  const strategy: Strategy = (request) =>
    Effect.suspend(() => {
      if (take()) {
        return Effect.onExitPrimitive(request.handle, leave)
      }
      let refusal = Effect.void
      if (waiting.size >= max) {
        const oldest = refuseOldest ? waiting.keys().next().value : undefined
        if (oldest === undefined) return request.refuse("queue")
        waiting.delete(oldest)
        refusal = oldest.refuse("queue")
      }
      return Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(
          Effect.andThen(refusal, restore(wait(request))),
          () => Effect.onExitPrimitive(restore(request.handle), leave)
        )
      )
    })
  placesOf.set(strategy, { take, leave })
  return strategy
})
