/**
 * A server is the running thing: a transport that is bound, a strategy, and a handler, as one scoped resource. Building its
 * layer binds and starts to accept; closing its scope drains. This module makes servers and says what can be asked of one.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { SocketAddress } from "effect/net/NetAddress"
import type * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { CloseReason } from "./CloseReason.ts"
import type { Connection } from "./Connection.ts"
import type { Datagram } from "./Datagram.ts"
import type { DatagramTransport } from "./DatagramTransport.ts"
import type { Dispatch } from "./Dispatch.ts"
import type { FrameError } from "./FrameError.ts"
import type { Portable } from "./Handler.ts"
import * as datagrams from "./internal/datagramServer.ts"
import * as internal from "./internal/handleOne.ts"
import * as messages from "./internal/messageServer.ts"
import * as running from "./internal/server.ts"
import * as sessions from "./internal/sessionServer.ts"
import type { ListenError } from "./ListenError.ts"
import type { Message, Sender } from "./Message.ts"
import type { MessageTransport } from "./MessageTransport.ts"
import { type DrainReport, type LifecycleEvent, publish, type ServerEvent } from "./ServerEvent.ts"
import type { Session } from "./Session.ts"
import type { StreamTransport } from "./StreamTransport.ts"
import type { WorkerDispatch, WorkersInfo } from "./WorkerDispatch.ts"

/**
 * A server's deadlines for a drain.
 *
 * @category options
 * @since 0.1.0
 */
export interface DrainOptions {
  /**
   * How long requests under way may go on before they are interrupted. Default 20 seconds: with `kill` it stays below the
   * 30 seconds that Kubernetes gives a container, and Docker Compose users set anyway.
   */
  readonly grace?: Duration.Input | undefined
  /** How long, after that, interrupted handlers may take to end before their connections are cut. Default 5 seconds. */
  readonly kill?: Duration.Input | undefined
}

/**
 * How old a connection gets: at least `after`, and by chance up to `jitter` more, so that clients that came together do not all
 * come back together.
 *
 * @category options
 * @since 0.1.0
 */
export interface MaxAge {
  readonly after: Duration.Input
  /** Default: a tenth of `after`. */
  readonly jitter?: Duration.Input | undefined
}

/**
 * What a server can be told. A deadline of 0 is `InvalidOption`, as nobody could keep it; `Duration.infinity` is none.
 *
 * @category options
 * @since 0.1.0
 */
export interface ServerOptions<E = unknown, RError = never, RTimeout = never> {
  /** A name for people: it shows in `info`. Default: the transport's name. */
  readonly name?: string | undefined
  /** The deadlines of the drain that closing the server's scope begins. */
  readonly shutdown?: DrainOptions | undefined
  /**
   * How long a handler waits in a read for a silent peer: when nothing was received or written for that long, the read
   * fails with reason `Timeout`, and the connection closes with `IdleTimeout`. A handler that computes, or waits for
   * something other than input, is not idle. Default: no limit.
   */
  readonly idleTimeout?: Duration.Input | undefined
  /**
   * How long a client may take for what one read asks, once it has begun: from when a part of it is there (half a line, some
   * bytes of a `readExactly`, some of a `readAll`), and for a read within `connection.busy` from when it waits. Then the read
   * fails with reason `Timeout`, and the connection closes with `ReadTimeout`. So a client that sends a byte now and then, and
   * is never idle, has only so long for a line. How long it may take to begin is `idleTimeout`. Default: no limit.
   */
  readonly readTimeout?: Duration.Input | undefined
  /**
   * How long a client may take nothing of the output while some waits for it: then the write fails with reason `Timeout`, and
   * the connection ends with a reset and `WriteTimeout`; that goes for the last of the output too, when the handler has ended.
   * A client that takes some, however slowly, goes on; it is seen to have stopped a quarter of this late at most. Default: 30
   * seconds.
   */
  readonly writeTimeout?: Duration.Input | undefined
  /**
   * How long a handler may run, with its finalizers, from when it begins. Then it is interrupted, and the connection closes
   * with `RequestTimeout`; what it has written is still sent. For a connection with many requests that is the time for all of
   * them. Default: no limit.
   */
  readonly requestTimeout?: Duration.Input | undefined
  /**
   * How old a connection gets. Then it is drained, alone: `connection.draining` completes, and its handler sees end of input
   * when it is idle; one that is busy first ends what it does. So that clients come back by a load balancer, and spread over
   * the servers that there are by then. Default: no limit.
   */
  readonly maxAge?: MaxAge | undefined
  /**
   * Interrupts the handler when its client is gone, with `PeerReset`: `"reset"` when the connection is lost, `"end"` also when
   * the client has finished sending, for protocols whose clients stay until they have their answers. To notice it while the
   * handler does not read, the server reads ahead, up to 64 KiB. One that waits for the strategy leaves the line. Default: the handler goes on, and its reads and writes fail.
   */
  readonly interruptOnDisconnect?: "reset" | "end" | undefined
  /**
   * Runs when `idleTimeout` or `readTimeout` has passed, before the handler's read fails: the moment for a farewell. What it
   * fails with is logged.
   */
  readonly onTimeout?: ((connection: Connection) => Effect.Effect<void, unknown, RTimeout>) | undefined
  /**
   * Runs when a handler has failed or died, before the connection closes: Python's `handle_error`. Also for an admission
   * check or a strategy that fails, as a defect. What it fails with is logged. Default: one log line with the cause, at
   * `Error` for failures of the server's own code and at `Debug` for what a client can cause.
   */
  readonly onError?:
    | ((cause: Cause.Cause<E>, connection: Connection, reason: CloseReason) => Effect.Effect<void, unknown, RError>)
    | undefined
}

/**
 * The state of a server.
 *
 * - `starting`: not bound yet
 * - `ready`: accepts, and every admitted request runs
 * - `saturated`: requests wait for the strategy to have room, or the limit of an admission step is reached
 * - `suspended`: does not accept, keeps its connections
 * - `draining`, `stopped`: shutting down; shut down
 *
 * @category models
 * @since 0.1.0
 */
export type Status = "starting" | "ready" | "saturated" | "suspended" | "draining" | "stopped"

/**
 * What a server is.
 *
 * @category models
 * @since 0.1.0
 */
export interface Info {
  readonly name: string
  readonly address: SocketAddress
  /** The descriptor of the listening socket, where the platform tells it and while there is one. */
  readonly descriptor: number | undefined
  /** The transport's name: `"tcp"`, `"unix"`, `"memory"`. */
  readonly transport: string
  /** The strategy's name: `"serial"`, `"fiberPerRequest"`, `"workerPerRequest"`. */
  readonly strategy: string
  /** Its workers, where requests run in workers. */
  readonly workers: WorkersInfo | undefined
  /** What its admission steps let in, see {@link Limits}. */
  readonly limits: Readonly<Record<string, number>>
}

/**
 * What a server has done so far. `accepted` equals `open` plus the sum of `closed`, always.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stats {
  /** Clients accepted since the start, refused ones included. */
  readonly accepted: number
  /** Connections that are not released yet. */
  readonly open: number
  /** Requests that wait for the strategy. */
  readonly queued: number
  /** Handlers that run. */
  readonly inFlight: number
  /** How many connections ended, by the tag of their `CloseReason`. */
  readonly closed: Partial<Record<CloseReason["_tag"], number>>
  /** How many clients were turned away, by policy. */
  readonly refused: Readonly<Record<string, number>>
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Packets that were dropped because too many waited, or a drain had begun. 0 for connections, which are refused instead. */
  readonly dropped: number
  /** Packets that were longer than the transport takes, and were cut. */
  readonly truncated: number
}

/**
 * What is known of an open connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConnectionInfo {
  readonly id: number
  readonly peer: SocketAddress
  readonly local: SocketAddress
  /** Where the connection is in its life: with admission, waiting for the strategy, with the handler, being closed. */
  readonly state: "admitting" | "queued" | "handling" | "closing"
  readonly age: Duration.Duration
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly annotations: ReadonlyMap<string, unknown>
}

/**
 * The open connections of a server. What is asked about a connection that is gone is `none` or `false`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Connections {
  readonly list: Effect.Effect<ReadonlyArray<ConnectionInfo>>
  readonly find: (id: number) => Effect.Effect<Option.Option<ConnectionInfo>>
  readonly annotate: (id: number, key: string, value: unknown) => Effect.Effect<boolean>
  /** Ends one connection with `Killed`: its handler is interrupted, what it has written is still sent. */
  readonly close: (id: number) => Effect.Effect<boolean>
  /** Ends, in the same way, all for which `predicate` holds, the oldest first, and says how many those were. */
  readonly closeWhere: (predicate: (connection: ConnectionInfo) => boolean) => Effect.Effect<number>
}

/**
 * The numbers of the admission steps that bound a server, which may change while it runs. The name of each is its policy, as in
 * `Stats.refused`: `"maxConnections"`, `"perPeer"`, `"rate"`, `"ratePerPeer"`; a second one of a policy is `"rate-2"`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limits {
  readonly list: Effect.Effect<Readonly<Record<string, number>>>
  /**
   * Applies from now on; connections that are there stay. `false` if there is no such limit. A value that the step does not
   * take is `InvalidOption`, and the one before stays.
   */
  readonly set: (name: string, value: number) => Effect.Effect<boolean, ListenError>
}

/**
 * A running server.
 *
 * @category services
 * @since 0.1.0
 */
export class Server extends Context.Service<Server, {
  /** The address that is bound; port 0 is resolved. It stays the same through `suspend` and `resume`. */
  readonly address: SocketAddress
  readonly info: Effect.Effect<Info>
  readonly status: Effect.Effect<Status>
  readonly stats: Effect.Effect<Stats>
  readonly connections: Connections
  readonly limits: Limits
  /**
   * What happens from now on, until `Stopped`. A subscriber that is slower than the server loses the oldest events beyond
   * 1,024.
   */
  readonly events: Stream.Stream<ServerEvent>
  /** As `events`, without those of requests: while only this is followed, requests cost what they cost unobserved. */
  readonly lifecycle: Stream.Stream<LifecycleEvent>
  /**
   * Closes the listener and keeps the connections. New clients are refused by the system; those of a socket that was adopted
   * and cannot be bound again wait, as its transport says. Does nothing if suspended.
   */
  readonly suspend: Effect.Effect<void>
  /** Binds the same address again. Does nothing if not suspended; a drained server stays drained. */
  readonly resume: Effect.Effect<void, ListenError>
  /**
   * Stops the server in order: closes the listener, refuses what waits, ends idle connections, lets the others finish until
   * `grace`, interrupts them, cuts them at `kill`. Closing the server's scope does the same with the `shutdown` options.
   *
   * A second drain joins the first, whatever its options. A handler may call it: for that caller it completes when all
   * other requests are done, so nothing waits for itself.
   */
  readonly drain: (options?: DrainOptions) => Effect.Effect<DrainReport>
  /** Completes when no connection is open. */
  readonly awaitIdle: Effect.Effect<void>
}>()("@socketserver/core/Server") {}

/**
 * A tag of one's own for a server, where one program runs several. Give it to a server with {@link as}.
 *
 * **Example** (Two servers in one program)
 *
 * ```ts
 * import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
 * import { Layer, Stream } from "effect"
 *
 * class Echo extends Server.Service<Echo>()("app/Echo") {}
 * class Discard extends Server.Service<Discard>()("app/Discard") {}
 *
 * const Servers = Layer.merge(
 *   MemoryTransport.stream().pipe(
 *     Dispatch.fiberPerRequest(),
 *     Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *     Server.as(Echo)
 *   ),
 *   MemoryTransport.stream().pipe(
 *     Dispatch.fiberPerRequest(),
 *     Server.serveStream((connection) => Stream.runDrain(connection.bytes)),
 *     Server.as(Discard)
 *   )
 * )
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export const Service = <Self>() =>
<const Identifier extends string>(
  identifier: Identifier
): Context.ServiceClass<Self, Identifier, Server["Service"]> => Context.Service<Self, Server["Service"]>()(identifier)

/**
 * Provides a server under a tag of one's own instead of `Server`.
 *
 * @category layers
 * @since 0.1.0
 */
export const as =
  <Self>(tag: Context.Service<Self, Server["Service"]>) =>
  <E, R>(server: Layer.Layer<Server, E, R>): Layer.Layer<Self, E, R> =>
    Layer.effect(tag, Effect.map(Server, (self) => self)).pipe(Layer.provide(server))

/**
 * A handler of stream requests. When it ends, in whatever way, the connection is closed.
 *
 * **Details**
 *
 * It may use a `Scope`, whose finalizers run when the handler ends, before the output is flushed and the connection closes;
 * and the `Server` that it runs in. Everything else it needs is the server layer's requirement.
 *
 * What its ending means:
 *
 * - success, or failure with `Cause.Done` (end of input that nobody caught): `Completed`
 * - failure with this connection's `ConnectionError`: the peer's doing, `PeerReset`, `IdleTimeout`, `ReadTimeout`,
 *   `WriteTimeout` or `TransportFailed`
 * - any other failure, a defect, an interruption of its own making: `HandlerFailed`
 *
 * None of them stops the server, or touches another request.
 *
 * @category models
 * @since 0.1.0
 */
export type StreamHandler<E, R> = (connection: Connection) => Effect.Effect<unknown, E, R>

/**
 * Serves every connection with `handler`, as a scoped effect: completes when the server listens, and drains it when the scope
 * closes. For embedding without a layer; see {@link serveStream}. The handler runs inline, under a `Dispatch`; for a server
 * with workers as a scoped effect, build the layer that `serveStream` gives, with `Layer.build`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeStream: {
  <E, R, RError = never, RTimeout = never>(
    handler: StreamHandler<E, R>,
    options?: ServerOptions<NoInfer<E>, RError, RTimeout>
  ): Effect.Effect<
    Server["Service"],
    ListenError,
    StreamTransport | Dispatch | Scope.Scope | Exclude<R | RError | RTimeout, Scope.Scope | Server>
  >
  <E, ELayer, RError = never, RTimeout = never>(
    handler: Portable<Connection, unknown, E, ELayer>,
    options?: ServerOptions<NoInfer<E>, RError, RTimeout>
  ): Effect.Effect<
    Server["Service"],
    ListenError | ELayer,
    StreamTransport | Dispatch | Scope.Scope | Exclude<RError | RTimeout, Scope.Scope | Server>
  >
} = (handler: any, options?: any): any => running.makeStream(Server, handler, options)

/**
 * Serves every connection with `handler`: the last step of the pipe, from a transport and a strategy to a running server.
 *
 * **Details**
 *
 * Building the layer binds, after everything that the handler needs was built, so no client is accepted that could not be
 * served. Closing it drains, before any of that is released. Failure to bind is a `ListenError`.
 *
 * **Example** (A server of upper-case lines)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Upper = NodeTransport.tcp({ port: 9999 }).pipe(
 *   Dispatch.fiberPerRequest({ maxInFlight: 1024 }),
 *   Server.serveStream((connection) =>
 *     connection.lines().pipe(
 *       Stream.map((line) => `${line.toUpperCase()}\n`),
 *       Stream.run(connection.sink)
 *     ))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const serveStream: {
  <E, R, RError = never, RTimeout = never>(
    handler: StreamHandler<E, R>,
    options?: ServerOptions<NoInfer<E>, RError, RTimeout>
  ): <E2, R2>(
    layer: Layer.Layer<StreamTransport | Dispatch, E2, R2>
  ) => Layer.Layer<Server, ListenError | E2, R2 | Exclude<R | RError | RTimeout, Scope.Scope | Server>>
  <E, ELayer, RError = never, RTimeout = never>(
    handler: Portable<Connection, unknown, E, ELayer>,
    options?: ServerOptions<NoInfer<E>, RError, RTimeout>
  ): <E2, R2>(
    layer:
      | Layer.Layer<StreamTransport | Dispatch, E2, R2>
      | Layer.Layer<StreamTransport | WorkerDispatch, E2, R2>
  ) => Layer.Layer<Server, ListenError | ELayer | E2, R2 | Exclude<RError | RTimeout, Scope.Scope | Server>>
} = (handler: any, options?: any) => (layer: Layer.Layer<any, any, any>): any =>
  Layer.effect(Server, makeStream(handler, options)).pipe(Layer.provide(layer))

/**
 * What a datagram server can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface DatagramOptions<E = unknown, RError = never> extends Pick<ServerOptions, "name" | "shutdown"> {
  /**
   * How long a handler may run, with its finalizers. Then it is interrupted, and ends with `RequestTimeout`. Default: no limit.
   */
  readonly requestTimeout?: Duration.Input | undefined
  /**
   * Runs when a handler has failed or died: Python's `handle_error`. Also for an admission check or a strategy that fails,
   * as a defect. What it fails with is logged. Default: one log line with the cause, at `Error` for failures of the server's
   * own code and at `Debug` for what a client can cause.
   */
  readonly onError?:
    | ((cause: Cause.Cause<E>, datagram: Datagram, reason: CloseReason) => Effect.Effect<void, unknown, RError>)
    | undefined
}

/**
 * A handler of datagrams. Nothing is sent but what it sends.
 *
 * **Details**
 *
 * It may use a `Scope`, whose finalizers run when it ends, and the `Server` that it runs in. A failure with `DatagramError` is
 * the peer's doing, `TransportFailed`; any other failure and every defect is `HandlerFailed`. None of them stops the
 * server, or touches another packet.
 *
 * @category models
 * @since 0.1.0
 */
export type DatagramHandler<E, R> = (datagram: Datagram) => Effect.Effect<unknown, E, R>

/**
 * Serves every packet with `handler`, as a scoped effect: completes when the server is bound, and drains it when the scope
 * closes. For embedding without a layer; see {@link serveDatagram}. The handler runs inline, under a `Dispatch`; for a server
 * with workers as a scoped effect, build the layer that `serveDatagram` gives, with `Layer.build`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeDatagram: {
  <E, R, RError = never>(
    handler: DatagramHandler<E, R>,
    options?: DatagramOptions<NoInfer<E>, RError>
  ): Effect.Effect<
    Server["Service"],
    ListenError,
    DatagramTransport | Dispatch | Scope.Scope | Exclude<R | RError, Scope.Scope | Server>
  >
  <E, ELayer, RError = never>(
    handler: Portable<Datagram, unknown, E, ELayer>,
    options?: DatagramOptions<NoInfer<E>, RError>
  ): Effect.Effect<
    Server["Service"],
    ListenError | ELayer,
    DatagramTransport | Dispatch | Scope.Scope | Exclude<RError, Scope.Scope | Server>
  >
} = (handler: any, options?: any): any => datagrams.makeDatagram(Server, handler, options)

/**
 * Serves every packet with `handler`: the last step of the pipe, from a datagram transport and a strategy to a running server.
 *
 * **Details**
 *
 * Building the layer binds, after everything that the handler needs was built. Packets that the strategy has no room for wait
 * in the transport's receive queue, in order of arrival; what does not fit there is dropped and counted. A drain takes no
 * new packets, serves those that were received, within `grace`, and closes the socket last.
 *
 * **Example** (A server of upper-case packets)
 *
 * ```ts
 * import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
 *
 * const Upper = MemoryTransport.datagram().pipe(
 *   Dispatch.fiberPerRequest({ maxInFlight: 256 }),
 *   Server.serveDatagram(({ payload, reply }) => reply(new TextDecoder().decode(payload).toUpperCase()))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const serveDatagram: {
  <E, R, RError = never>(
    handler: DatagramHandler<E, R>,
    options?: DatagramOptions<NoInfer<E>, RError>
  ): <E2, R2>(
    layer: Layer.Layer<DatagramTransport | Dispatch, E2, R2>
  ) => Layer.Layer<Server, ListenError | E2, R2 | Exclude<R | RError, Scope.Scope | Server>>
  <E, ELayer, RError = never>(
    handler: Portable<Datagram, unknown, E, ELayer>,
    options?: DatagramOptions<NoInfer<E>, RError>
  ): <E2, R2>(
    layer:
      | Layer.Layer<DatagramTransport | Dispatch, E2, R2>
      | Layer.Layer<DatagramTransport | WorkerDispatch, E2, R2>
  ) => Layer.Layer<Server, ListenError | ELayer | E2, R2 | Exclude<RError, Scope.Scope | Server>>
} = (handler: any, options?: any) => (layer: Layer.Layer<any, any, any>): any =>
  Layer.effect(Server, makeDatagram(handler, options)).pipe(Layer.provide(layer))

/**
 * What a server of sessions can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface SessionOptions<E = unknown, RError = never> extends Pick<ServerOptions, "name" | "shutdown"> {
  /**
   * How long a session lives without a packet in either direction: then its `receive` fails with `Cause.Done`, it ends with
   * `IdleTimeout`, and the peer's next packet begins another. Default 1 minute.
   */
  readonly idleTimeout?: Duration.Input | undefined
  /**
   * How many packets wait for a session's handler: 64 by default. At one more, `"dropNewest"` (the default) drops that one,
   * `"dropOldest"` the one that has waited longest. Dropped packets are counted.
   */
  readonly mailbox?: {
    readonly max?: number | undefined
    readonly overflow?: "dropNewest" | "dropOldest" | undefined
  } | undefined
  /** How many sessions there may be. Default 16,384; beyond that, packets of new peers are dropped and counted. */
  readonly maxSessions?: number | undefined
  /** Runs when a handler has failed or died. Default: one log line, as for other servers. */
  readonly onError?:
    | ((cause: Cause.Cause<E>, session: Session, reason: CloseReason) => Effect.Effect<void, unknown, RError>)
    | undefined
}

/**
 * A handler of sessions. When it ends, in whatever way, the session does, and the peer's next packet begins another.
 *
 * @category models
 * @since 0.1.0
 */
export type SessionHandler<E, R> = (session: Session) => Effect.Effect<unknown, E, R>

/**
 * Serves every peer of a datagram transport with one run of `handler`, as a scoped effect; see {@link serveSessions}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeSessions: <E, R, RError = never>(
  handler: SessionHandler<E, R>,
  options?: SessionOptions<NoInfer<E>, RError>
) => Effect.Effect<
  Server["Service"],
  ListenError,
  DatagramTransport | Dispatch | Scope.Scope | Exclude<R | RError, Scope.Scope | Server>
> = (handler, options) => sessions.makeSessions(Server, handler, options)

/**
 * Serves every peer of a datagram transport with one run of `handler`, for protocols that speak in more than one packet.
 *
 * **Details**
 *
 * A peer's first packet begins a session, which is a request to the dispatch strategy: under `serial` one session runs at a
 * time. Later packets of that peer go to its mailbox. A drain ends sessions whose mailbox is empty, lets the others take what
 * is there, and closes the socket last. Admission steps are asked about the packet that would begin a session.
 *
 * **Example** (A counter for each peer)
 *
 * ```ts
 * import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * const Counter = MemoryTransport.datagram().pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveSessions((session) =>
 *     Effect.gen(function*() {
 *       for (let count = 1;; count++) {
 *         yield* session.receive
 *         yield* session.send(`${count}`)
 *       }
 *     }), { idleTimeout: "30 seconds" })
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const serveSessions = <E, R, RError = never>(
  handler: SessionHandler<E, R>,
  options?: SessionOptions<NoInfer<E>, RError>
) =>
<E2, R2>(
  layer: Layer.Layer<DatagramTransport | Dispatch, E2, R2>
): Layer.Layer<Server, ListenError | E2, R2 | Exclude<R | RError, Scope.Scope | Server>> =>
  Layer.effect(Server, makeSessions(handler, options)).pipe(Layer.provide(layer)) as any

/**
 * What a server of messages can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface MessageOptions<In = any, Out = any, E = unknown, RError = never, RInvalid = never>
  extends Pick<ServerOptions, "name" | "shutdown" | "writeTimeout" | "maxAge" | "interruptOnDisconnect">
{
  /**
   * How long a connection may be silent, when nothing is received or sent and no message is under way. Then it closes with
   * `IdleTimeout`. Default: no limit.
   */
  readonly idleTimeout?: Duration.Input | undefined
  /**
   * How long a client may take for one frame, from when a part of it is there, or from when the connection is read again where
   * that had to wait for messages under way. Then the connection closes with `ReadTimeout`, behind the replies to what came
   * before. So a client that sends a byte now and then has only so long for a message. Default: no limit.
   */
  readonly readTimeout?: Duration.Input | undefined
  /**
   * How long one message's handler may run, with its finalizers and the `Stream` that it has returned, from when it begins.
   * Then it is interrupted, and has failed with `RequestTimeout`: `onError` may have a reply for it; otherwise the connection
   * closes behind the replies to the messages before. Packets and values end with `RequestTimeout`, and without `onError`.
   * Default: no limit.
   */
  readonly requestTimeout?: Duration.Input | undefined
  /**
   * Do the replies on a connection leave in the order of their messages (`"ordered"`, the default), or as they come? The
   * second is for protocols whose replies say which message they answer.
   */
  readonly order?: "ordered" | "unordered" | undefined
  /**
   * How many messages of one connection may be under way. Default 64: enough to hide a round trip, and few enough that one
   * client does not take all places. At the bound nothing more is read from it.
   */
  readonly maxPipelined?: number | undefined
  /**
   * How many connections there may be. Default 16,384; 1,024 more wait, and then new ones are closed with `Refused("queue")`.
   * For other limits see `Admission`. Not for datagrams and streams.
   */
  readonly maxConnections?: number | undefined
  /**
   * Runs when a handler has failed or died. What it returns is the reply, and the connection goes on; with `undefined` the
   * connection closes, with `reason`, behind the replies to the messages before. Default: one log line with the cause, at
   * `Error` for failures of the server's own code, and `undefined`.
   */
  readonly onError?:
    | ((
      cause: Cause.Cause<E>,
      message: Message<In, Out>,
      reason: CloseReason
    ) => Effect.Effect<Out | void, unknown, RError>)
    | undefined
  /**
   * Runs when a peer has sent something that is no frame, or not one that its schema allows. What it returns is the reply, in
   * its turn. Behind a frame whose schema does not allow it (`error.isRecoverable`) the connection goes on then; otherwise,
   * and with `undefined`, it closes with `InvalidFrame`. Default: `undefined`. A packet is dropped instead.
   */
  readonly onInvalid?:
    | ((error: FrameError, sender: Sender<Out>) => Effect.Effect<Out | void, unknown, RInvalid>)
    | undefined
}

/**
 * A handler of messages: what it returns is the reply. `undefined` is none, and a `Stream` is as many as it has.
 *
 * **Details**
 *
 * It may use a `Scope`, whose finalizers run when it ends, before its reply leaves, and the `Server` that it runs in. Its
 * failure or defect is `HandlerFailed`, and ends the connection that the message came by, unless `onError` has an answer. It
 * stops neither the server nor another connection.
 *
 * @category models
 * @since 0.1.0
 */
export type MessageHandler<In, Out, E, R, EStream = never, RStream = never> = (
  message: Message<In, Out>
) => Effect.Effect<NoInfer<Out> | void | Stream.Stream<NoInfer<Out>, EStream, RStream>, E, R>

/**
 * Serves every message with `handler`, as a scoped effect; see {@link serveMessage}. The handler runs inline, under a
 * `Dispatch`; for a server with workers as a scoped effect, build the layer that `serveMessage` gives, with `Layer.build`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeMessage: {
  <In, Out, E, R, EStream = never, RStream = never, RError = never, RInvalid = never>(
    handler: MessageHandler<In, Out, E, R, EStream, RStream>,
    options?: MessageOptions<In, Out, NoInfer<E | EStream>, RError, RInvalid>
  ): Effect.Effect<
    Server["Service"],
    ListenError,
    | MessageTransport<In, Out>
    | Dispatch
    | Scope.Scope
    | Exclude<R | RStream | RError | RInvalid, Scope.Scope | Server>
  >
  <In, Out, E, ELayer, RError = never, RInvalid = never>(
    handler: Portable<
      Message<In, Out>,
      NoInfer<Out> | void | Stream.Stream<NoInfer<Out>, unknown, unknown>,
      E,
      ELayer
    >,
    options?: MessageOptions<In, Out, NoInfer<E>, RError, RInvalid>
  ): Effect.Effect<
    Server["Service"],
    ListenError | ELayer,
    MessageTransport<In, Out> | Dispatch | Scope.Scope | Exclude<RError | RInvalid, Scope.Scope | Server>
  >
} = (handler: any, options?: any): any => messages.makeMessage(Server, handler, options)

/**
 * Serves every message with `handler`: the last step of the pipe, from a message transport and a strategy to a running server.
 *
 * **Details**
 *
 * Each message is a request to the strategy: `serial` runs one at a time, over all connections, `fiberPerRequest` up to
 * `maxInFlight`. A message that the strategy has no place for waits there, and its connection is not read meanwhile; one that
 * is refused closes its connection.
 *
 * A drain ends connections with no message under way and nothing half received. Messages under way are finished, and their
 * replies flushed, within `grace`; so long it also waits for the rest of a message.
 *
 * A server of a stream's values stops when the stream has ended, and the last value's handler.
 *
 * **Example** (A server of upper-case lines)
 *
 * ```ts
 * import { Dispatch, Framing, MemoryTransport, Server, Transport } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * const Upper = MemoryTransport.stream().pipe(
 *   Transport.framed(Framing.lines()),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveMessage(({ payload }) => Effect.succeed(payload.toUpperCase()))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const serveMessage: {
  <In, Out, E, R, EStream = never, RStream = never, RError = never, RInvalid = never>(
    handler: MessageHandler<In, Out, E, R, EStream, RStream>,
    options?: MessageOptions<In, Out, NoInfer<E | EStream>, RError, RInvalid>
  ): <E2, R2>(
    layer: Layer.Layer<MessageTransport<In, Out> | Dispatch, E2, R2>
  ) => Layer.Layer<
    Server,
    ListenError | E2,
    R2 | Exclude<R | RStream | RError | RInvalid, Scope.Scope | Server>
  >
  <In, Out, E, ELayer, RError = never, RInvalid = never>(
    handler: Portable<
      Message<In, Out>,
      NoInfer<Out> | void | Stream.Stream<NoInfer<Out>, unknown, unknown>,
      E,
      ELayer
    >,
    options?: MessageOptions<In, Out, NoInfer<E>, RError, RInvalid>
  ): <E2, R2>(
    layer:
      | Layer.Layer<MessageTransport<In, Out> | Dispatch, E2, R2>
      | Layer.Layer<MessageTransport<In, Out> | WorkerDispatch, E2, R2>
  ) => Layer.Layer<Server, ListenError | ELayer | E2, R2 | Exclude<RError | RInvalid, Scope.Scope | Server>>
} = (handler: any, options?: any) => (layer: Layer.Layer<any, any, any>): any =>
  Layer.effect(Server, makeMessage(handler, options) as any).pipe(Layer.provide(layer))

/**
 * Runs `effect` on a schedule for as long as the server runs: Python's `service_actions`, without its polling. What it fails
 * with is logged, and the schedule goes on.
 *
 * @category layers
 * @since 0.1.0
 */
export const every = <Out, E, R, RSchedule>(
  schedule: Schedule.Schedule<Out, void, never, RSchedule>,
  effect: Effect.Effect<unknown, E, R>
) =>
<ROut, E2, R2>(server: Layer.Layer<ROut, E2, R2>): Layer.Layer<ROut, E2, R2 | RSchedule | Exclude<R, ROut>> => {
  const told = Effect.catchCause(
    Effect.asVoid(effect),
    (cause) => publish({ _tag: "Problem", level: "Error", message: "Server.every: the effect failed", cause })
  )
  const repeated = Effect.repeat(told, schedule)
  return Layer.effectDiscard(Effect.forkScoped(repeated)).pipe(Layer.provideMerge(server)) as any
}

/**
 * A listener without a server: it holds the clients that come, until {@link handleOne} takes them one by one.
 *
 * @category models
 * @since 0.1.0
 */
export interface HeldListener extends internal.HeldListener {}

/**
 * Binds, and holds the clients that come, up to 128 at a time; beyond that they are closed. For {@link handleOne}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const listen: Effect.Effect<HeldListener, ListenError, StreamTransport | Scope.Scope> = internal.listen

/**
 * What {@link handleOne} can be told: the options of a server, and how long to wait for a client.
 *
 * @category options
 * @since 0.1.0
 */
export interface HandleOneOptions<E = unknown, RError = never, RTimeout = never>
  extends Omit<ServerOptions<E, RError>, "onTimeout">
{
  /** How long to wait for a client; not for its handler. Default: no limit. */
  readonly timeout?: Duration.Input | undefined
  /** Runs when no client came in time: Python's `handle_timeout`. */
  readonly onTimeout?: Effect.Effect<unknown, never, RTimeout> | undefined
}

/**
 * Handles exactly one connection, and says how it ended; `none` if no client came in time. Python's `handle_request`.
 *
 * **Details**
 *
 * A client that came before is taken at once. A client that an admission step refuses counts as the one. The handler runs
 * inline, whatever the strategy of a server would be.
 *
 * **Example** (One client, within a minute)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Server } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const listener = yield* Server.listen
 *   yield* Effect.log(`waiting on ${listener.address}`)
 *   return yield* Server.handleOne(listener, (connection) => connection.write("hello and goodbye\n"), {
 *     timeout: "1 minute"
 *   })
 * }).pipe(Effect.scoped, Effect.provide(NodeTransport.tcp({ port: 9999 })))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const handleOne: <E, R, RError = never, RTimeout = never>(
  listener: HeldListener,
  handler: StreamHandler<E, R>,
  options?: HandleOneOptions<NoInfer<E>, RError, RTimeout>
) => Effect.Effect<
  Option.Option<CloseReason>,
  ListenError,
  Exclude<R | RError | RTimeout, Scope.Scope | Server>
> = (listener, handler, options) => internal.handleOne(Server, listener, handler, options)

/**
 * A bound datagram socket without a server: it holds the packets that come, until {@link handleOneDatagram} takes them one by
 * one.
 *
 * @category models
 * @since 0.1.0
 */
export interface HeldDatagramListener extends internal.HeldDatagramListener {}

/**
 * Binds, and holds the packets that come, up to 128 at a time; beyond that they are dropped. For {@link handleOneDatagram}.
 *
 * @category constructors
 * @since 0.1.0
 */
export const listenDatagram: Effect.Effect<HeldDatagramListener, ListenError, DatagramTransport | Scope.Scope> =
  internal.listenDatagram

/**
 * What {@link handleOneDatagram} can be told: the options of a server, and how long to wait for a packet.
 *
 * @category options
 * @since 0.1.0
 */
export interface HandleOneDatagramOptions<E = unknown, RError = never, RTimeout = never>
  extends DatagramOptions<E, RError>
{
  /** How long to wait for a packet; not for its handler. Default: no limit. */
  readonly timeout?: Duration.Input | undefined
  /** Runs when no packet came in time: Python's `handle_timeout`. */
  readonly onTimeout?: Effect.Effect<unknown, never, RTimeout> | undefined
}

/**
 * Handles exactly one packet, and says how that ended; `none` if none came in time. Python's `handle_request`, for datagrams.
 * A packet that came before is taken at once, and one that an admission step refuses counts as the one.
 *
 * @category combinators
 * @since 0.1.0
 */
export const handleOneDatagram: <E, R, RError = never, RTimeout = never>(
  listener: HeldDatagramListener,
  handler: DatagramHandler<E, R>,
  options?: HandleOneDatagramOptions<NoInfer<E>, RError, RTimeout>
) => Effect.Effect<
  Option.Option<CloseReason>,
  ListenError,
  Exclude<R | RError | RTimeout, Scope.Scope | Server>
> = (listener, handler, options) => internal.handleOneDatagram(Server, listener, handler, options)
