/** One client at a time, without a server: a listener that holds who comes, and a server for exactly one of them. */
import * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type { CloseReason } from "../CloseReason.ts"
import type { HandleOneOptions, StreamHandler } from "../Server.ts"
import { StreamTransport, type Wire } from "../StreamTransport.ts"
import { discard } from "./connection.ts"
import { checkDuration } from "./options.ts"
import * as server from "./server.ts"

const held = 128

export interface HeldListener {
  /** The address that is bound; port 0 is resolved. */
  readonly address: SocketAddress
  /** The clients that came and were not handled yet. */
  readonly clients: Queue.Dequeue<Wire>
  readonly transport: StreamTransport["Service"]
}

export const listen = Effect.gen(function*() {
  const transport = yield* StreamTransport
  const clients = yield* Effect.acquireRelease(
    Queue.dropping<Wire>(held),
    (queue) => Effect.andThen(Effect.map(Queue.clear(queue), (wires) => wires.forEach(discard)), Queue.shutdown(queue))
  )
  const listener = yield* transport.listen((wire) => {
    if (!Queue.offerUnsafe(clients, wire)) discard(wire)
  })
  return { address: listener.address, clients, transport } satisfies HeldListener
})

export const handleOne = Effect.fnUntraced(function*(
  tag: server.Tag,
  listener: HeldListener,
  handler: StreamHandler<any, any>,
  { onTimeout, timeout, ...options }: HandleOneOptions<any, any, any> = {}
) {
  const client = Queue.take(listener.clients)
  const wire = timeout === undefined
    ? Option.some(yield* client)
    : yield* Effect.timeoutOption(client, yield* checkDuration("timeout", timeout))
  if (Option.isNone(wire)) {
    if (onTimeout !== undefined) yield* onTimeout
    return Option.none<CloseReason>()
  }
  const transport: StreamTransport["Service"] = {
    ...listener.transport,
    listen: (onConnection) =>
      Effect.sync(() => {
        onConnection(wire.value)
        return { address: listener.address }
      })
  }
  const one = yield* server.start(
    tag,
    transport,
    { name: "handleOne", run: (request) => request.handle },
    handler,
    options
  )
  yield* one.shape.awaitIdle
  return Option.fromUndefinedOr(one.lastReason)
}, Effect.scoped)
