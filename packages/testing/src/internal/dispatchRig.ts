/**
 * How the dispatch suite comes by servers, and tells their handlers to end: inline, where it has its hands on everything, or
 * with workers, where a handler is a module and a name and hears from its client only.
 */
import type { Connection } from "@socketserver/core/Connection"
import * as Dispatch from "@socketserver/core/Dispatch"
import * as Server from "@socketserver/core/Server"
import type { StreamTransport } from "@socketserver/core/StreamTransport"
import { WorkerDispatch } from "@socketserver/core/WorkerDispatch"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Client } from "../TestClient.ts"
import * as Handlers from "./dispatchHandlers.ts"

/** What the strategy did with one request. */
export interface Trace {
  handled: number
  refused: number
  exit: Exit.Exit<void> | undefined
}

/** What a handler can be made to do before it returns, inline. */
export type Deed = Effect.Effect<void, never, Server.Server>

type Serve = Effect.Effect<Server.Server["Service"], unknown, Scope.Scope>

/** A strategy behind its transport, and a trace of what it does with every request. */
export interface Rig {
  readonly traces: Map<number, Trace>
  /** The requests whose handlers were begun, in that order. */
  readonly begun: Array<number>
  /** A server whose handlers end when they are told to, or else, where they heed that, when it drains. */
  readonly serve: (heedDrain: boolean) => Serve
  /** A server whose handlers greet with the greeting that is a service of theirs. */
  readonly serveGreeting: Serve
  /** Tells a handler how to end, without a turn for anybody else. */
  readonly tell: (id: number, client: Client, how: Handlers.Ending | Deed) => Effect.Effect<void>
  /** From now on handlers return as soon as they begin, unless their clients are still to tell them. */
  readonly over: () => void
}

const quietly = { onError: () => Effect.void }

/** Traces what a strategy does; tells when something has changed. */
const trace =
  (traces: Rig["traces"], changed: () => void) => (strategy: Dispatch.Strategy): Dispatch.Strategy => (request) => {
    const trace: Trace = { handled: 0, refused: 0, exit: undefined }
    traces.set(request.id, trace)
    changed()
    return Effect.onExit(
      strategy({
        id: request.id,
        handle: Effect.suspend(() => {
          trace.handled++
          changed()
          return request.handle
        }),
        refuse: (policy) =>
          Effect.suspend(() => {
            trace.refused++
            changed()
            return request.refuse(policy)
          })
      }),
      (exit) =>
        Effect.sync(() => {
          trace.exit = exit
          changed()
        })
    )
  }

export const inline = (
  layer: Layer.Layer<StreamTransport | Dispatch.Dispatch>
): Effect.Effect<Rig, never, Scope.Scope> =>
  Effect.gen(function*() {
    const built = yield* Layer.build(layer)
    const inner = Context.get(built, Dispatch.Dispatch)
    const traces: Rig["traces"] = new Map()
    const context = Context.add(built, Dispatch.Dispatch, {
      ...inner,
      make: Effect.map(inner.make, trace(traces, () => {}))
    })
    const begun: Array<number> = []
    const ends = new Map<number, Deferred.Deferred<Handlers.Ending | Deed>>()
    let over = false
    const told = (connection: Connection) =>
      Effect.suspend((): Effect.Effect<void, Handlers.Oops, Server.Server> => {
        if (over) return Effect.void
        const end = Deferred.makeUnsafe<Handlers.Ending | Deed>()
        ends.set(connection.id, end)
        return Effect.flatMap(
          Deferred.await(end),
          (how) => typeof how === "string" ? Handlers.endBy(how, connection) : how
        )
      })
    return {
      traces,
      begun,
      serve: (heedDrain) =>
        Server.makeStream((connection) => {
          begun.push(connection.id)
          return Handlers.handle(connection, told(connection), heedDrain)
        }, quietly).pipe(Effect.provideContext(context)),
      serveGreeting: Server.makeStream(Handlers.greeting.handle, quietly).pipe(
        Effect.provideContext(context),
        Effect.provideService(Handlers.Greeting, "hello")
      ),
      tell: (id, _, how) =>
        Effect.sync(() => {
          const end = ends.get(id)
          if (end !== undefined) Deferred.doneUnsafe(end, Effect.succeed(how))
        }),
      over: () => {
        over = true
      }
    }
  })

export const workers = (
  transport: () => Layer.Layer<StreamTransport>,
  dispatch: (transport: Layer.Layer<StreamTransport>) => Layer.Layer<StreamTransport | WorkerDispatch>,
  changed: () => void
): Effect.Effect<Rig, never, Scope.Scope> =>
  Effect.gen(function*() {
    const inner = Context.get(yield* Layer.build(dispatch(transport())), WorkerDispatch)
    const traces: Rig["traces"] = new Map()
    const begun: Array<number> = []
    const watched: WorkerDispatch["Service"] = {
      ...inner,
      make: (handler, publish, isAwaiting) =>
        Effect.map(inner.make(handler, publish, isAwaiting), ({ catchUp, info, run, strategy }) => ({
          catchUp,
          info,
          strategy: trace(traces, changed)(strategy),
          run: (request) => {
            if (request._tag === "Connection") begun.push(request.connection.id)
            return run(request)
          }
        }))
    }
    // A transport of its own for each server: most cannot bind twice.
    const serve = (handler: typeof Handlers[keyof Pick<typeof Handlers, "steadfast" | "heedful" | "greeting">]) =>
      Layer.merge(transport(), Layer.succeed(WorkerDispatch, watched)).pipe(
        Server.serveStream(handler, quietly),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
    return {
      traces,
      begun,
      serve: (heedDrain) => serve(heedDrain ? Handlers.heedful : Handlers.steadfast),
      serveGreeting: Effect.suspend(() => serve(Handlers.greeting)),
      tell: (_, client, how) =>
        typeof how === "string"
          ? Effect.asVoid(Effect.forkDetach(Effect.ignore(client.write(`${how}\n`)), { startImmediately: true }))
          : Effect.die(new Error("a handler in a worker can be told words only")),
      over: () => {}
    }
  })
