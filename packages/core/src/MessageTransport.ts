/**
 * A message transport is where messages come from: connections or packets with a framing, or a stream of values. It is made by
 * `Transport.framed` and `Transport.fromStream`, and knows the types of both directions, so that a handler of other messages
 * does not compile.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Stream from "effect/Stream"
import type { DatagramTransport } from "./DatagramTransport.ts"
import type { Framing } from "./Framing.ts"
import type { StreamTransport } from "./StreamTransport.ts"

/**
 * Where messages come from, as a server sees it.
 *
 * @category models
 * @since 0.1.0
 */
export type Source =
  | {
    readonly _tag: "Connections"
    readonly transport: StreamTransport["Service"]
    readonly framing: Framing<any, any>
  }
  | {
    readonly _tag: "Datagrams"
    readonly transport: DatagramTransport["Service"]
    readonly framing: Framing<any, any>
  }
  | { readonly _tag: "Stream"; readonly stream: Stream.Stream<unknown> }

/**
 * A message transport of any types.
 *
 * @category services
 * @since 0.1.0
 */
export interface Any {
  readonly "~@socketserver/core/MessageTransport": unknown
}

/**
 * Where messages of type `In` come from, and replies of type `Out` go to.
 *
 * @category services
 * @since 0.1.0
 */
export interface MessageTransport<in out In, in out Out> extends Any {
  readonly "~@socketserver/core/MessageTransport": {
    readonly In: (_: In) => In
    readonly Out: (_: Out) => Out
  }
}

/**
 * The tag of all message transports.
 *
 * @category services
 * @since 0.1.0
 */
export const MessageTransport: Context.Service<MessageTransport<any, any>, Source> = Context.Service(
  "@socketserver/core/MessageTransport"
)
