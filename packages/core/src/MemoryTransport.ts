/**
 * Transports without a network: connections are pairs of Effect queues in this process, packets go from queue to queue. Nothing here reads a real
 * clock or waits for the event loop, so a whole server, with its timeouts and its drain, runs under `TestClock`.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { Connection } from "./Connection.ts"
import type { DatagramError } from "./DatagramError.ts"
import { DatagramTransport, type Packet, type ReceiveQueueOptions } from "./DatagramTransport.ts"
import { ConnectionImpl, formatAddress } from "./internal/connection.ts"
import { Flow } from "./internal/flow.ts"
import * as datagrams from "./internal/memoryDatagram.ts"
import { checkInteger, invalidOption } from "./internal/options.ts"
import { AddressInUse, ListenError } from "./ListenError.ts"
import { type Receiver, StreamTransport, type Wire } from "./StreamTransport.ts"

/**
 * Nobody listens on the address.
 *
 * @category errors
 * @since 0.1.0
 */
export class ConnectionRefused extends Data.TaggedError("ConnectionRefused")<{
  readonly address: NetAddress.SocketAddress
}> {
  override get message(): string {
    return `nobody listens on ${formatAddress(this.address)}: the server is not started, suspended, or drained`
  }
}

/** What listens in this process, by name: as the system keeps its table of bound addresses. */
const listeners = new Map<string, Bound>()

interface Bound {
  readonly highWaterMark: number
  readonly onConnection: (wire: Wire) => void
}
let lastName = 0
const freshName = () => `memory:${++lastName}`

type ForkContext = <A>(effect: Effect.Effect<A>) => Fiber.Fiber<A>

/**
 * A transport in memory.
 *
 * **Details**
 *
 * It behaves as the others do: an address in use is an error, a client of a suspended server is refused, output beyond the
 * high-water mark waits for its reader, half-close works both ways, and writing to a peer that is gone fails.
 *
 * **Example** (A handler under test, without a port)
 *
 * ```ts
 * import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
 * import { Effect, Stream } from "effect"
 *
 * const Echo = MemoryTransport.stream().pipe(
 *   Dispatch.serial(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* Server.Server
 *   const client = yield* MemoryTransport.connect(server.address)
 *   yield* client.write("hello\n")
 *   return yield* client.readLine()
 * }).pipe(Effect.scoped, Effect.provide(Echo))
 *
 * Effect.runPromise(program) // => "hello"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const stream = (options?: {
  /** The name to listen on, shown as a unix path. Default: a name that nobody else has. */
  readonly name?: string | undefined
  /** How many bytes may lie unread in either direction before a write waits. Default 65,536. */
  readonly highWaterMark?: number | undefined
}): Layer.Layer<StreamTransport> =>
  Layer.succeed(StreamTransport, {
    name: "memory",
    steps: [],
    listen: Effect.fnUntraced(function*(onConnection, at) {
      const highWaterMark = options?.highWaterMark ?? 65_536
      yield* checkInteger("highWaterMark", highWaterMark, 1)
      const name = at !== undefined && NetAddress.isUnixPathAddress(at) ? at.path : options?.name ?? freshName()
      const address = at ?? NetAddress.unixPathAddress(name)
      if (listeners.has(name)) {
        return yield* new ListenError({ reason: new AddressInUse({ address: formatAddress(address) }) })
      }
      yield* Effect.acquireRelease(
        Effect.sync(() => listeners.set(name, { highWaterMark, onConnection })),
        () => Effect.sync(() => listeners.delete(name))
      )
      return { address }
    })
  })

/**
 * Connects to a server in memory: the client's side, with everything that a server's connection has. The scope's end closes
 * it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const connect = (
  address: NetAddress.SocketAddress,
  options?: {
    /** The address that the server sees as `peer`, for handlers and admission steps that look at it. */
    readonly from?: NetAddress.SocketAddress | undefined
  }
): Effect.Effect<Connection, ConnectionRefused, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.flatMap(Effect.context<never>(), (context) => {
      const bound = NetAddress.isUnixPathAddress(address) ? listeners.get(address.path) : undefined
      if (bound === undefined) return Effect.fail(new ConnectionRefused({ address }))
      const from = options?.from ?? NetAddress.unixPathAddress(freshName())
      const [near, far] = MemoryWire.pair(from, address, bound.highWaterMark, Effect.runForkWith(context))
      const client = new ConnectionImpl(++lastClient, near, { draining: neverDrains, onReleased: () => {} })
      // The handler may run right here, up to its first wait: by now the client's end is there to hear of it.
      bound.onConnection(far)
      return Effect.succeed(client)
    }),
    (connection) => Effect.sync(() => connection.closeNow())
  )

let lastClient = 0
const neverDrains = Latch.makeUnsafe(false)
const encoder = new TextEncoder()

/**
 * A datagram transport in memory.
 *
 * **Details**
 *
 * Addresses are unix paths. A packet to an address where nobody is bound fails with `Unreachable`, one of more than 65,507
 * bytes with `TooLarge`. Without the options below every packet arrives, once, in order. With them the same seed makes the
 * same things happen to the same packets, in both directions.
 *
 * **Example** (A handler under test, without a port)
 *
 * ```ts
 * import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * const Echo = MemoryTransport.datagram().pipe(
 *   Dispatch.serial(),
 *   Server.serveDatagram(({ payload, reply }) => reply(payload))
 * )
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* Server.Server
 *   const client = yield* MemoryTransport.bindDatagram()
 *   yield* client.send(server.address, "hello")
 *   const { payload } = yield* client.receive
 *   return new TextDecoder().decode(payload)
 * }).pipe(Effect.scoped, Effect.provide(Echo))
 *
 * Effect.runPromise(program) // => "hello"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const datagram = (options: {
  /** The name to bind, shown as a unix path. Default: a name that nobody else has. */
  readonly name?: string | undefined
  /** The share of packets that are lost, 0 to 1. Default 0. */
  readonly loss?: number | undefined
  /** The share of packets that arrive twice, 0 to 1. Default 0. */
  readonly duplication?: number | undefined
  /** The share of packets that arrive 10 milliseconds late, so that others overtake them, 0 to 1. Default 0. */
  readonly reordering?: number | undefined
  /** What the three above draw their chances from. Default 1. */
  readonly seed?: number | undefined
  /** Packets of more bytes are cut, and `truncated`. Default 8,192. */
  readonly maxPacketSize?: number | undefined
  readonly receiveQueue?: ReceiveQueueOptions | undefined
} = {}): Layer.Layer<DatagramTransport> =>
  Layer.succeed(DatagramTransport, {
    name: "memory datagram",
    steps: [],
    receiveQueue: options.receiveQueue,
    listen: Effect.fnUntraced(function*(onPacket, at) {
      const { duplication = 0, loss = 0, maxPacketSize = 8_192, reordering = 0, seed = 1 } = options
      yield* checkInteger("maxPacketSize", maxPacketSize, 1)
      for (const [option, value] of Object.entries({ loss, duplication, reordering })) {
        if (!(value >= 0 && value <= 1)) return yield* invalidOption(option, value, "a number from 0 to 1")
      }
      return yield* datagrams.bind({
        name: at !== undefined && NetAddress.isUnixPathAddress(at) ? at.path : options.name,
        way: loss + duplication + reordering === 0
          ? undefined
          : { loss, duplication, reordering, random: datagrams.randomOf(seed) },
        maxPacketSize,
        onPacket
      })
    })
  })

/**
 * A client of datagram servers in memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DatagramClient {
  /** What servers see as `peer`. */
  readonly address: NetAddress.SocketAddress
  readonly send: (to: NetAddress.SocketAddress, payload: Uint8Array | string) => Effect.Effect<void, DatagramError>
  /** The next packet that arrives. Up to 1,024 wait; beyond that, packets are lost. */
  readonly receive: Effect.Effect<Packet>
}

/**
 * Binds a client: what arrives at its address until the scope ends, it can receive.
 *
 * @category constructors
 * @since 0.1.0
 */
export const bindDatagram = Effect.fnUntraced(function*(options: {
  /** The name to bind. Default: a name that nobody else has. `""` binds none: nobody can answer. */
  readonly name?: string | undefined
} = {}): Effect.fn.Return<DatagramClient, ListenError, Scope.Scope> {
  const received = yield* Queue.dropping<Packet>(1_024)
  if (options.name === "") {
    const address = NetAddress.unixPathAddress("")
    return { address, send: datagrams.sendFrom(address, undefined), receive: Queue.take(received) }
  }
  const { address, send } = yield* datagrams.bind({
    name: options.name,
    way: undefined,
    maxPacketSize: Number.MAX_SAFE_INTEGER,
    onPacket: (packet) => {
      Queue.offerUnsafe(received, packet)
    }
  })
  return { address, send, receive: Queue.take(received) }
})

/** One end of a connection: it owns the queue of what its peer has sent to it, and the fiber that delivers that. */
class MemoryWire implements Wire {
  static pair(
    client: NetAddress.SocketAddress,
    server: NetAddress.SocketAddress,
    highWaterMark: number,
    fork: ForkContext
  ): [near: MemoryWire, far: MemoryWire] {
    const near = new MemoryWire(client, server, highWaterMark, fork)
    const far = new MemoryWire(server, client, highWaterMark, fork)
    near.other = far
    far.other = near
    return [near, far]
  }

  readonly local: NetAddress.SocketAddress
  readonly peer: NetAddress.SocketAddress
  bytesRead = 0
  bytesWritten = 0

  private readonly highWaterMark: number
  private readonly fork: ForkContext
  private other!: MemoryWire
  private receiver!: Receiver
  private delivery: Fiber.Fiber<void> | undefined
  private readonly inbox = Effect.runSync(Queue.unbounded<Uint8Array, Cause.Done>())
  private readonly flow = new Flow()
  private unread = 0
  private peerWaits = false
  private closed = false

  constructor(
    local: NetAddress.SocketAddress,
    peer: NetAddress.SocketAddress,
    highWaterMark: number,
    fork: ForkContext
  ) {
    this.local = local
    this.peer = peer
    this.highWaterMark = highWaterMark
    this.fork = fork
  }

  /** What is above the mark counts as not sent yet. */
  get unsent(): number {
    return this.closed ? 0 : Math.max(0, this.other.unread - this.highWaterMark + 1)
  }

  get isImmediate(): boolean {
    return true
  }

  start(receiver: Receiver): void {
    this.receiver = receiver
  }

  resume(): void {
    this.flow.resume()
    this.delivery ??= this.closed ? undefined : this.fork(this.deliver())
  }

  pause(): void {
    this.flow.pause()
  }

  private deliver(): Effect.Effect<void> {
    const next = Effect.andThen(this.flow.pass, Queue.take(this.inbox))
    // The first turn is `resume`'s own: nothing is delivered from within it.
    return Effect.andThen(
      Effect.yieldNow,
      Effect.gen({ self: this }, function*() {
        while (true) {
          const chunk = yield* next
          this.unread -= chunk.length
          this.bytesRead += chunk.length
          if (this.peerWaits && this.unread < this.highWaterMark && !this.other.closed) {
            this.peerWaits = false
            this.other.receiver.onDrain()
          }
          this.receiver.onData(chunk)
        }
      })
    ).pipe(Effect.catch(() => Effect.sync(() => this.receiver.onEnd())))
  }

  write(chunk: Uint8Array | string): boolean {
    const { other } = this
    if (this.closed) return true
    if (other.closed) {
      this.lose()
      return true
    }
    // A copy: the writer may use its array again.
    const bytes = typeof chunk === "string" ? encoder.encode(chunk) : new Uint8Array(chunk)
    this.bytesWritten += bytes.length
    other.unread += bytes.length
    Queue.offerUnsafe(other.inbox, bytes)
    other.peerWaits = other.unread >= this.highWaterMark
    return !other.peerWaits
  }

  end(): void {
    Queue.endUnsafe(this.other.inbox)
  }

  close(): void {
    this.end()
    this.release()
  }

  destroy(reset: boolean): void {
    if (this.closed) return
    if (reset) this.other.lose()
    else this.close()
    this.release()
  }

  /** The peer is gone. */
  private lose(): void {
    if (this.closed) return
    this.receiver.onError({ _tag: "Reset" })
    this.release()
  }

  private release(): void {
    if (this.closed) return
    this.closed = true
    this.delivery?.interruptUnsafe()
    Effect.runSync(Queue.shutdown(this.inbox))
    // Whoever waits to write to this end waits for nothing.
    if (this.peerWaits) this.other.lose()
    this.receiver.onClose()
  }
}
