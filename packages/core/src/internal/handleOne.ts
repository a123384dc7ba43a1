/** One request at a time, without a server: a listener that holds what comes, and a server for exactly one of it. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import { type DatagramListener, DatagramTransport, type Packet } from "../DatagramTransport.ts"
import type { ListenError } from "../ListenError.ts"
import { level, Log, type Logging } from "../Logging.ts"
import type { DatagramHandler, HandleOneDatagramOptions, HandleOneOptions, StreamHandler } from "../Server.ts"
import { StreamTransport, type Wire } from "../StreamTransport.ts"
import { discard } from "./connection.ts"
import * as datagramServer from "./datagramServer.ts"
import type { Dispatched } from "./dispatching.ts"
import { Measured } from "./observed.ts"
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

export interface HeldDatagramListener {
  /** The address that is bound; port 0 is resolved. */
  readonly address: SocketAddress
  /** The packets that came and were not handled yet. */
  readonly packets: Queue.Dequeue<Packet>
  readonly transport: DatagramTransport["Service"]
  readonly socket: DatagramListener
}

export const listenDatagram = Effect.gen(function*() {
  const transport = yield* DatagramTransport
  const packets = yield* Effect.acquireRelease(Queue.dropping<Packet>(held), Queue.shutdown)
  const socket = yield* transport.listen((packet) => {
    Queue.offerUnsafe(packets, packet)
  })
  return { address: socket.address, packets, transport, socket } satisfies HeldDatagramListener
})

/** The strategy of one: the handler runs inline. */
const inline = (handler: Dispatched["handler"]): Dispatched => ({
  strategy: { name: "handleOne", run: (request) => request.handle },
  handler,
  context: Context.empty(),
  workers: undefined
})

/** A server of one request has no life to tell of, nor counts that mean something: its requests' failures are told. */
const unnoticed = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.updateContext(effect, (context: Context.Context<R>) => {
    const { debug, log } = Context.get(context, Log)
    const logging: Logging = {
      debug,
      log: (event, server) => level(event) === "Info" ? Effect.void : log(event, server)
    }
    return context.pipe(Context.add(Log, logging), Context.add(Measured, undefined))
  })

/** Waits for one to come, and for a server of that one to have nothing left. */
const handleNext = Effect.fnUntraced(function*<A>(
  arrivals: Queue.Dequeue<A>,
  start: (arrival: A) => Effect.Effect<server.ServerImpl, ListenError, Scope.Scope>,
  { onTimeout, timeout }: Pick<HandleOneOptions<any, any, any>, "onTimeout" | "timeout">
) {
  const next = Queue.take(arrivals)
  const arrival = timeout === undefined
    ? Option.some(yield* next)
    : yield* Effect.timeoutOption(next, yield* checkDuration("timeout", timeout))
  if (Option.isNone(arrival)) {
    if (onTimeout !== undefined) yield* onTimeout
    return Option.none()
  }
  const one = yield* unnoticed(start(arrival.value))
  yield* one.shape.awaitIdle
  return Option.fromUndefinedOr(one.lastReason)
}, Effect.scoped)

export const handleOne = (
  tag: server.Tag,
  { address, clients, transport }: HeldListener,
  handler: StreamHandler<any, any>,
  { onTimeout, timeout, ...options }: HandleOneOptions<any, any, any> = {}
) =>
  handleNext(
    clients,
    (wire) => {
      let isTaken = false
      const listen = (onConnection: (wire: Wire) => void) =>
        Effect.sync(() => {
          isTaken = true
          onConnection(wire)
          return { address }
        })
      const started = server.start(tag, { ...transport, listen }, inline(handler), options)
      // The client of a server that does not start, because of its options, has nobody else.
      return Effect.onExit(started, () => Effect.sync(() => isTaken || discard(wire)))
    },
    { onTimeout, timeout }
  )

export const handleOneDatagram = (
  tag: server.Tag,
  { packets, socket, transport }: HeldDatagramListener,
  handler: DatagramHandler<any, any>,
  { onTimeout, timeout, ...options }: HandleOneDatagramOptions<any, any, any> = {}
) =>
  handleNext(
    packets,
    (packet) => {
      let deliver!: (packet: Packet) => void
      const listen = (onPacket: (packet: Packet) => void) => {
        deliver = onPacket
        return Effect.succeed(socket)
      }
      const started = datagramServer.start(tag, { ...transport, listen }, inline(handler), options)
      // Now that it has its socket, it can answer.
      return Effect.tap(started, () => Effect.sync(() => deliver(packet)))
    },
    { onTimeout, timeout }
  )
