/**
 * The other kind of dispatch: requests that run somewhere else. It is a service of its own beside `Dispatch`, so that a
 * handler that cannot travel does not compile with it. This module is the contract between a server and its workers; users
 * need none of it, `NodeDispatch.workerPerRequest` in `@socketserver/node` implements it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Connection } from "./Connection.ts"
import type { Datagram } from "./Datagram.ts"
import type { Strategy } from "./Dispatch.ts"
import type { Portable } from "./Handler.ts"
import * as internal from "./internal/remote.ts"
import type { ListenError } from "./ListenError.ts"
import type { Message } from "./Message.ts"
import type { Header } from "./ProxyProtocol.ts"
import type { WorkerEvent } from "./ServerEvent.ts"
import type { Wire, WireFailure } from "./StreamTransport.ts"

/**
 * The workers of a server, as they are now and what became of the others.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkersInfo {
  readonly kind: "thread" | "process"
  /**
   * How the latest connection got to its worker: the socket itself, or its bytes one by one; `undefined` before the first.
   * Datagrams always travel as bytes.
   */
  readonly transfer: "socket" | "bytes" | undefined
  /** Workers that are being started. */
  readonly starting: number
  /** Workers with a request. */
  readonly busy: number
  /** Workers without one. */
  readonly idle: number
  /** How many were started in all. */
  readonly started: number
  /** How many of those have ended by themselves: they exited, ran out of memory, or were killed from outside. */
  readonly crashed: number
  /** How many have ended by age: `recycleAfter`. */
  readonly recycled: number
  /** How many were ended by force: they overran `timeout`, did not hear of an interruption, or of the end of a drain. */
  readonly killed: number
  /** Why the latest attempt to start a worker failed, while no later one has succeeded. */
  readonly failure: unknown
}

/**
 * How long a peer may keep its connection waiting, in milliseconds; `Infinity` where it may for ever. See the options
 * `idleTimeout`, `readTimeout` and `writeTimeout` of a server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Patience {
  readonly idle: number
  readonly read: number
  readonly write: number
}

/**
 * A connection on its way to a worker, as its server holds it.
 *
 * @category models
 * @since 0.1.0
 */
export interface RemoteConnection {
  readonly _tag: "Connection"
  /** At the last deadline of a drain, `kill` is called: whatever the handler does, it must end. */
  readonly onKill: (kill: () => void) => void
  readonly connection: Connection
  /** The transport's half of the connection: whoever can carry it elsewhere takes it, and leaves another with `replaceWire`. */
  readonly wire: Wire
  /** Reads nothing more, and gives a copy of what was read and nobody has taken: it goes with the wire. A read reads on. */
  readonly haltInput: () => Uint8Array
  readonly replaceWire: (wire: Wire) => void
  /** The handshake that the worker is to make before it runs the handler, if there is one. */
  readonly handshake: {
    /** For how many milliseconds it may last. */
    readonly left: () => number
    readonly succeeded: () => void
    /** The connection has ended with that: the handler was not run. */
    readonly failed: (cause: unknown) => void
  } | undefined
  /** The worker begins another handshake, which the handler has asked for: the result is to be told how it has ended. */
  readonly followHandshake: () => (succeeded: boolean) => void
  /** Is its disappearance to be noticed while the handler does not read? Then this is to be called where its bytes stay here. */
  readonly watch: (() => void) | undefined
  /**
   * What the worker has to watch: the handler's reads, and where it has the socket, its output. Otherwise output waits here.
   */
  readonly patience: Patience
  /** The worker has found that the peer has overrun the deadline of a read: runs what the server has for that. */
  readonly onTimeout: Effect.Effect<void>
  /**
   * Calls `listener` when the server drains, at once if it does already. One is enough. For so many milliseconds, a peer that
   * has said nothing yet may still do so.
   */
  readonly onDrain: (listener: (expected: number) => void) => void
  /** What the worker found when the handler had ended. */
  readonly ended: (state: ConnectionState) => void
  /** Tells that an error of the handler's is this connection's own. */
  readonly own: (error: object) => void
}

/**
 * A datagram on its way to a worker.
 *
 * @category models
 * @since 0.1.0
 */
export interface RemoteDatagram {
  readonly _tag: "Datagram"
  /** As for connections. */
  readonly onKill: (kill: () => void) => void
  readonly datagram: Datagram
}

/**
 * A message on its way to a worker. Its payload and its replies are values: instances of classes arrive as plain objects.
 *
 * @category models
 * @since 0.1.0
 */
export interface RemoteMessage {
  readonly _tag: "Message"
  /** As for connections. */
  readonly onKill: (kill: () => void) => void
  readonly message: Message<unknown, never>
  /** Tells that an error of the handler's is that of the message's own connection. */
  readonly own: (error: object) => void
}

/**
 * What became of a connection while its handler ran.
 *
 * @category models
 * @since 0.1.0
 */
export interface ConnectionState {
  readonly lost: WireFailure | undefined
  readonly drained: boolean
  readonly timedOut: "idleTimeout" | "readTimeout" | undefined
}

/**
 * The workers of one server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Workers {
  /** Bounds how many requests are with workers and how many wait. */
  readonly strategy: Strategy
  /**
   * Runs the handler for one request in a worker, and ends as it does. Where it ends by the worker's doing, that is a
   * defect: a `WorkerError`. Interrupting it interrupts the handler.
   */
  readonly run: (request: RemoteConnection | RemoteDatagram | RemoteMessage) => Effect.Effect<unknown, unknown>
  /** Does the wire itself go to the worker, with what was read from it, and not its bytes? */
  readonly moves?: ((wire: Wire) => boolean) | undefined
  /**
   * Takes what the workers have told by now, if they may tell it before they are heard: called before one more connection is
   * admitted, which may depend on that, and when something begins to wait for the end of connections.
   */
  readonly catchUp?: (() => void) | undefined
  readonly info: () => WorkersInfo
}

/**
 * How the requests of a server are run by workers.
 *
 * @category services
 * @since 0.1.0
 */
export class WorkerDispatch extends Context.Service<WorkerDispatch, {
  /** A short name for people: it shows in `Server.info`. */
  readonly name: string
  /** Starts workers for one server's handler, or says why it cannot. */
  readonly make: <E>(
    handler: Portable<any, unknown, unknown, E>,
    publish: (event: WorkerEvent) => void,
    /** Does something in the server wait for the end of connections, other ones that there is no room for, or a drain? */
    isAwaiting: () => boolean
  ) => Effect.Effect<Workers, ListenError | E, Scope.Scope>
}>()("@socketserver/core/WorkerDispatch") {}

/**
 * A connection in the worker that runs its handler.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostedConnection {
  readonly connection: Connection
  readonly wire: Wire
  /**
   * From now on a read that finds the connection idle sees end of input; where the peer has said nothing yet, from so many
   * milliseconds on.
   */
  readonly drain: (expected: number) => void
  /** Ends the waiting read, and all later ones, with `Timeout`. */
  readonly timeOut: (deadline: NonNullable<ConnectionState["timedOut"]>) => void
  /** Hands over what was written and waits for more. */
  readonly flush: () => void
  readonly close: () => void
  readonly destroy: (reset: boolean) => void
  /** How it was lost, if it was. */
  readonly lost: WireFailure | undefined
  /** What has happened to it, if anything has. */
  readonly state: ConnectionState | undefined
  /** Is the error this connection's own? */
  readonly owns: (error: unknown) => boolean
}

/**
 * Who runs the handler of a {@link HostedConnection}, and hears what becomes of that connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface Host {
  readonly annotate: Connection["annotate"]
  readonly onGone: (how: "end" | "reset") => void
  /** The peer has overrun the deadline of a read. */
  readonly onTimeout: (deadline: NonNullable<ConnectionState["timedOut"]>) => void
  /** Nothing is left of the connection. */
  readonly onReleased: () => void
}

/**
 * Makes a connection of a wire, outside a server: for the worker that runs its handler.
 *
 * @category constructors
 * @since 0.1.0
 */
export const hostConnection: (options: {
  readonly id: number
  readonly wire: Wire
  /** As `connection.proxy`. */
  readonly proxy: Header | undefined
  /** What was read from it before. */
  readonly input: Uint8Array | undefined
  readonly patience: Patience
  /** Is the peer's disappearance to be noticed while the handler does not read? */
  readonly watch: boolean
  readonly host: Host
}) => HostedConnection = internal.hostConnection
