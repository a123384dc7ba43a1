/**
 * Is a server alive, and does it take new clients? Asked as an effect, by TCP with {@link tcpProbe}, or by HTTP with
 * `ServerHttp.health`.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as Dispatch from "./Dispatch.ts"
import { Measured, Traced } from "./internal/observed.ts"
import type { ListenError } from "./ListenError.ts"
import { makeStream, Server, type Status } from "./Server.ts"
import { publish } from "./ServerEvent.ts"
import type { StreamTransport } from "./StreamTransport.ts"

/**
 * Does a server with this status take new clients? When it is `ready`, and when it is `saturated`: its limits then decide who
 * waits and who is turned away, and a balancer that took a busy server out would only move its load to the next. Not when it
 * is `starting`, `suspended`, `draining` or `stopped`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const isReadyStatus = (status: Status): boolean => status === "ready" || status === "saturated"

/**
 * Does it take new clients? See {@link isReadyStatus}.
 *
 * @category combinators
 * @since 0.1.0
 */
export const isReady = (server: Server["Service"]): Effect.Effect<boolean> => Effect.map(server.status, isReadyStatus)

/**
 * Is a server with this status alive? Unless it is `stopped`: one that drains, or is suspended, is. That it is asked at all
 * says that the event loop turns.
 *
 * @category combinators
 * @since 0.1.0
 */
export const isLiveStatus = (status: Status): boolean => status !== "stopped"

/**
 * Is it alive? See {@link isLiveStatus}.
 *
 * @category combinators
 * @since 0.1.0
 */
export const isLive = (server: Server["Service"]): Effect.Effect<boolean> => Effect.map(server.status, isLiveStatus)

/**
 * A TCP probe beside a server: a port, or a unix socket, that accepts and closes while the server is ready, and refuses while
 * it is not. For Kubernetes' `tcpSocket`, HAProxy's `check port` and their like.
 *
 * **Details**
 *
 * It refuses from the first moment of a drain or a `suspend`, and is there again with `resume`. When the server's layer ends,
 * the probe ends first. An address that cannot be bound fails the layer; one that is taken when the server resumes is tried
 * again every second, and that is logged.
 *
 * **Example** (A server, and a probe for it on another port)
 *
 * ```ts
 * import { Dispatch, Health, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ port: 9999 }).pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *   Health.tcpProbe(NodeTransport.tcp({ port: 8081 }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const tcpProbe =
  <E2, R2>(on: Layer.Layer<StreamTransport, E2, R2>) =>
  <E, R>(server: Layer.Layer<Server, E, R>): Layer.Layer<Server, ListenError | E | E2, R | R2> =>
    Layer.effectDiscard(Effect.gen(function*() {
      const server = yield* Server
      const { name } = yield* server.info
      const probe = yield* makeStream(() => Effect.void, { name: `${name} probe` }).pipe(
        Effect.provideContext(yield* Layer.build(Dispatch.fiberPerRequest()(on))),
        Effect.provideContext(Context.make(Measured, undefined).pipe(Context.add(Traced, undefined)))
      )
      const follow: Effect.Effect<void> = Effect.flatMap(
        isReady(server),
        (ready) => ready ? Effect.catch(probe.resume, tryAgain) : probe.suspend
      )
      const tryAgain = (error: ListenError) =>
        Effect.andThen(
          publish({
            _tag: "Problem",
            level: "Error",
            message: "the probe cannot listen again, will try once more",
            cause: Cause.fail(error)
          }),
          Effect.delay(follow, "1 second")
        )
      yield* Effect.forkScoped(Stream.runForEach(server.lifecycle, () => follow), { startImmediately: true })
      yield* follow
    })).pipe(Layer.provideMerge(server))
