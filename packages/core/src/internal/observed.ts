/**
 * What follows requests on their way: metrics and traces do. It comes by the context that a server is built in, and a server
 * without any pays a look at `undefined` for it.
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CloseReason } from "../CloseReason.ts"
import type { Entry } from "./entry.ts"
import type { ServerImpl } from "./server.ts"

/** A run of a handler as it is followed. The calls come in this order; which of them come at all is its fate. */
export interface ObservedRequest {
  /** Adds to what its fiber, its hooks and its log lines run with. */
  readonly within: (context: Context.Context<never>) => Context.Context<never>
  /** It has come to the strategy. */
  readonly queued: () => void
  /** Its handler begins. */
  readonly begun: () => void
  /** Its handler, the finalizers and `onError` have ended. */
  readonly handled: (reason: CloseReason, cause: Cause.Cause<unknown> | undefined) => void
}

/** A connection, or whatever else comes to a server, with the handler that it has; or with many, where it has messages. */
export interface Observed extends ObservedRequest {
  /** A handshake, whose end it sees. */
  readonly handshake: <A, E>(name: string, shaking: Effect.Effect<A, E>) => Effect.Effect<A, E>
  /** A message of it. The connection itself is then no request. */
  readonly message: (id: number) => ObservedRequest
  /** It is released. */
  readonly closed: (reason: CloseReason) => void
}

/** What follows the requests of one server. */
export interface Observer {
  readonly observe: (entry: Entry) => Observed
  /** The server's address is known. */
  readonly bound?: (() => void) | undefined
}

/** Makes the observer of a server, if there is something to observe for. */
export type Observation = (server: ServerImpl) => Effect.Effect<Observer | undefined, never, Scope.Scope>

const reference = (name: string) =>
  Context.Reference<Observation | undefined>(`@socketserver/core/${name}`, { defaultValue: () => undefined })

/** One for each kind: whoever provides one leaves the other. */
export const Measured = reference("Measured")
export const Traced = reference("Traced")

const bothRequests = (first: ObservedRequest, second: ObservedRequest): ObservedRequest => ({
  within: (context) => second.within(first.within(context)),
  queued: () => {
    first.queued()
    second.queued()
  },
  begun: () => {
    first.begun()
    second.begun()
  },
  handled: (reason, cause) => {
    first.handled(reason, cause)
    second.handled(reason, cause)
  }
})

/** Two that follow the same request. The first one's work is within the second's. */
export const both = (first: Observed, second: Observed): Observed => ({
  ...bothRequests(first, second),
  handshake: (name, shaking) => second.handshake(name, first.handshake(name, shaking)),
  message: (id) => bothRequests(first.message(id), second.message(id)),
  closed: (reason) => {
    first.closed(reason)
    second.closed(reason)
  }
})
