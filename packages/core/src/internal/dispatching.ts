/** From a handler, plain or portable, and what there is to run it, to the strategy and the handler of one server. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Dispatch } from "../Dispatch.ts"
import { isPortable, type Portable } from "../Handler.ts"
import type { ListenError } from "../ListenError.ts"
import type { WorkerEvent } from "../ServerEvent.ts"
import type { Wire } from "../StreamTransport.ts"
import {
  type RemoteConnection,
  type RemoteDatagram,
  type RemoteMessage,
  WorkerDispatch,
  type Workers,
  type WorkersInfo
} from "../WorkerDispatch.ts"
import { CurrentEntry, type Entry } from "./entry.ts"
import type { NamedStrategy } from "./server.ts"

export interface Dispatched {
  readonly strategy: NamedStrategy
  readonly handler: (subject: any) => Effect.Effect<any, any, any>
  /** Services for the handler, beside those of the program. */
  readonly context: Context.Context<never>
  readonly workers: WorkersOfServer | undefined
}

export interface WorkersOfServer {
  readonly info: () => WorkersInfo
  readonly moves: (wire: Wire) => boolean
  /** Where the server publishes its events, once it is there. */
  publish: ((event: WorkerEvent) => void) | undefined
  /** Asked for by the workers; set by the server as well. */
  isAwaiting: () => boolean
  readonly catchUp: () => void
}

type PlainHandler = (subject: any) => Effect.Effect<any, any, any>

export const dispatching = Effect.fnUntraced(function*<E = never>(
  handler: PlainHandler | Portable<any, unknown, unknown, E>,
  /** Where a request is not an entry of its own. */
  remoteOf?: (subject: any) => Remotable["remote"]
): Effect.fn.Return<Dispatched, ListenError | E, Dispatch | Scope.Scope> {
  if (!isPortable(handler)) return yield* inline(handler, Context.empty())
  const remote = yield* Effect.serviceOption(WorkerDispatch)
  if (Option.isNone(remote)) return yield* inline(handler.handle, yield* Layer.build(handler.layer))
  let made: Workers
  const workers: WorkersOfServer = {
    info: () => made.info(),
    moves: (wire) => made.moves?.(wire) === true,
    publish: undefined,
    isAwaiting: () => false,
    catchUp: () => made.catchUp?.()
  }
  made = yield* remote.value.make(handler, (event) => workers.publish?.(event), () => workers.isAwaiting())
  return {
    strategy: { name: remote.value.name, run: made.strategy },
    handler: remoteOf === undefined
      ? () => Effect.withFiber((fiber) => made.run((fiber.getRef(CurrentEntry) as Entry & Remotable).remote))
      : (subject) => made.run(remoteOf(subject)),
    context: Context.empty(),
    workers
  } satisfies Dispatched
})

const inline = (handler: PlainHandler, context: Context.Context<never>) =>
  Effect.gen(function*() {
    const dispatch = yield* Dispatch
    const run = yield* dispatch.make
    return { strategy: { name: dispatch.name, run }, handler, context, workers: undefined } satisfies Dispatched
  })

/** A request that can be given to a worker. */
export interface Remotable {
  readonly remote: RemoteConnection | RemoteDatagram | RemoteMessage
}
