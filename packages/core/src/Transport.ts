/**
 * From one kind of transport to another: a framing makes a transport of messages, of connections or of packets, and so does a
 * stream of values; any Effect `SocketServer` can be a transport here, and any of our transports, with its strategy, limits
 * and drain, can serve code that asks for a `SocketServer`, such as Effect's RPC.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import type * as Socket from "effect/socket/Socket"
import * as SocketServer from "effect/socket/SocketServer"
import * as Stream from "effect/Stream"
import { DatagramTransport } from "./DatagramTransport.ts"
import type { Dispatch } from "./Dispatch.ts"
import type { Framing } from "./Framing.ts"
import { Flow } from "./internal/flow.ts"
import type { ListenError } from "./ListenError.ts"
import { MessageTransport } from "./MessageTransport.ts"
import * as Server from "./Server.ts"
import { publish } from "./ServerEvent.ts"
import { type Receiver, StreamTransport, type Wire } from "./StreamTransport.ts"

/**
 * Makes messages of what a transport brings: of connections by their frames, of packets one each. For `Server.serveMessage`.
 *
 * **Details**
 *
 * A packet must be exactly one frame; the end of the packet counts as the end of the input, so a line in a packet needs no line
 * end, and with `Framing.whole()` every packet is a message as it is. A packet that is longer than the transport takes is no
 * frame.
 *
 * Steps of `Admission`, and handshakes, stand before this step.
 *
 * **Example** (The same messages by TCP and by UDP)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Framing, type Message, Server, Transport } from "@socketserver/core"
 * import { Effect, Layer } from "effect"
 *
 * const upper = Server.serveMessage(({ payload }: Message.Message<string, string>) =>
 *   Effect.succeed(payload.toUpperCase())
 * )
 *
 * const Upper = Layer.mergeAll(
 *   NodeTransport.tcp({ port: 9999 }).pipe(Transport.framed(Framing.lines()), Dispatch.fiberPerRequest(), upper),
 *   NodeTransport.udp({ port: 9999 }).pipe(Transport.framed(Framing.lines()), Dispatch.fiberPerRequest(), upper)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const framed = <In, Out>(framing: Framing<In, Out>) =>
<A extends StreamTransport | DatagramTransport, E, R>(
  transport: Layer.Layer<A, E, R>
): Layer.Layer<MessageTransport<In, Out>, E, R> =>
  Layer.flatMap(transport, (context) => {
    const connections = Context.getOrUndefined(context as Context.Context<any>, StreamTransport)
    const datagrams = Context.getOrUndefined(context as Context.Context<any>, DatagramTransport)
    return Layer.succeed(
      MessageTransport,
      connections === undefined
        ? { _tag: "Datagrams", transport: datagrams!, framing }
        : { _tag: "Connections", transport: connections, framing }
    )
  })

/**
 * Any stream of values as the source of requests: the rows of a table, the messages of a queue, the lines of a file. For
 * `Server.serveMessage`.
 *
 * **Details**
 *
 * The server takes the next value when the strategy has a place for it: nothing is read ahead but one. There is nobody to
 * answer: a handler of these messages returns nothing.
 *
 * When the stream has ended, and the last handler has, the server stops by itself, as if it had been drained: its status is
 * `stopped`, and its `events` end. A drain takes no more values. A stream must not fail: say before what is to happen then,
 * with `Stream.retry` or `Stream.orDie`; a defect is logged and ends the server like the stream's end.
 *
 * **Example** (The rows of a table)
 *
 * ```ts
 * import { Dispatch, Server, Transport } from "@socketserver/core"
 * import { Effect, Stream } from "effect"
 *
 * const rows = Stream.make({ id: 1, mail: "a@example.org" }, { id: 2, mail: "b@example.org" })
 *
 * const Mailer = Transport.fromStream(rows).pipe(
 *   Dispatch.fiberPerRequest({ maxInFlight: 10 }),
 *   Server.serveMessage(({ payload }) => Effect.log(`to ${payload.mail}`))
 * )
 *
 * // Completes when all rows are done.
 * const program = Effect.flatMap(Server.Server, (server) => Stream.runDrain(server.events)).pipe(Effect.provide(Mailer))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const fromStream = <A, R>(
  stream: Stream.Stream<A, never, R>
): Layer.Layer<MessageTransport<A, never>, never, R> =>
  Layer.effect(
    MessageTransport,
    Effect.map(Effect.context<R>(), (context) => ({
      _tag: "Stream" as const,
      stream: Stream.provideContext(stream, context)
    }))
  ) as any

/**
 * Serves an Effect `SocketServer` over our transport: its connections are admitted, dispatched, counted and drained as every
 * server's are. Also provides the `Server`, to ask for its state and to drain it.
 *
 * **Details**
 *
 * Clients that come before somebody calls `run` wait for it. One `run` at a time; when it is interrupted, the clients that
 * come wait for the next one. A failure of its handler goes to `onError`.
 *
 * **Gotchas**
 *
 * A protocol server on top, such as `RpcServer`, is released before this layer, and interrupts its own work then. To let
 * calls under way finish, drain first: `server.drain()` before the program's scope closes.
 *
 * **Example** (An RPC server with our drain)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Transport } from "@socketserver/core"
 * import { Effect, Layer, Schema } from "effect"
 * import { Rpc, RpcGroup, RpcSerialization, RpcServer } from "effect/rpc"
 *
 * const Group = RpcGroup.make(Rpc.make("Upper", { payload: { text: Schema.String }, success: Schema.String }))
 *
 * const Live = RpcServer.layer(Group).pipe(
 *   Layer.provide(Group.toLayer({ Upper: ({ text }) => Effect.succeed(text.toUpperCase()) })),
 *   Layer.provide(RpcServer.layerProtocolSocketServer),
 *   Layer.provide(RpcSerialization.layerNdjson),
 *   Layer.provideMerge(
 *     NodeTransport.tcp({ port: 9000 }).pipe(Dispatch.fiberPerRequest(), Transport.toSocketServer())
 *   )
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const toSocketServer = <RError = never, RTimeout = never>(
  options?: Server.ServerOptions<unknown, RError, RTimeout>
) =>
<E, R>(
  layer: Layer.Layer<StreamTransport | Dispatch, E, R>
): Layer.Layer<
  SocketServer.SocketServer | Server.Server,
  E | ListenError,
  R | Exclude<RError | RTimeout, Scope.Scope | Server.Server>
> =>
  Layer.effectContext(Effect.gen(function*() {
    let current: ((socket: Socket.Socket) => Effect.Effect<unknown, unknown>) | undefined
    const running = Latch.makeUnsafe(false)
    const serve = (socket: Socket.Socket): Effect.Effect<unknown, unknown> =>
      // It may have been interrupted again by then.
      Effect.flatMap(running.await, () => current === undefined ? serve(socket) : current(socket))
    const server = yield* Server.makeStream((connection) => serve(connection.socket), options)
    const socketServer = SocketServer.SocketServer.of({
      address: server.address,
      run: <R, E, _>(handler: (socket: Socket.Socket) => Effect.Effect<_, E, R>) =>
        Effect.contextWith((context: Context.Context<R>) =>
          Effect.acquireUseRelease(
            Effect.suspend(() => {
              if (current !== undefined) {
                return Effect.die(new Error("this SocketServer runs already: interrupt that `run` before the next"))
              }
              current = (socket) => Effect.provideContext(handler(socket), context)
              return running.open
            }),
            () => Effect.never,
            () =>
              Effect.suspend(() => {
                current = undefined
                return running.close
              })
          )
        )
    })
    return Context.make(SocketServer.SocketServer, socketServer).pipe(Context.add(Server.Server, server))
  })).pipe(Layer.provide(layer)) as any

/**
 * Any Effect `SocketServer` as a transport.
 *
 * **Gotchas**
 *
 * A `SocketServer` binds when its own layer is built, before ours, and holds what it accepts until then; suspending the
 * server above stops handing connections over, but cannot close the port. Peers are unnamed: a `Socket` does not tell them.
 *
 * **Example** (Effect's own server below, our dispatch and drain above)
 *
 * ```ts
 * import { NodeSocketServer } from "@effect/platform-node"
 * import { Dispatch, Server, Transport } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Echo = NodeSocketServer.layer({ port: 9999 }).pipe(
 *   Transport.fromSocketServer,
 *   Dispatch.serial(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const fromSocketServer = <E, R>(
  layer: Layer.Layer<SocketServer.SocketServer, E, R>
): Layer.Layer<StreamTransport, E, R> =>
  Layer.effect(
    StreamTransport,
    Effect.gen(function*() {
      const server = yield* SocketServer.SocketServer
      // Connections live here, not in the fiber of `run`: ending `run` must not end them.
      const connections = yield* Effect.scope
      return {
        name: "socketServer",
        steps: [],
        listen: Effect.fnUntraced(function*(onConnection) {
          const context = yield* Effect.context<never>()
          const track = Fiber.runIn(connections)
          const handOver = (socket: Socket.Socket) =>
            Effect.callback<void>((resume) => {
              track(
                Effect.runForkWith(context)(
                  serveSocket(socket, server.address, onConnection, () => resume(Effect.void))
                )
              )
            })
          const running = Effect.catchCause(server.run(handOver), (cause) =>
            publish({
              _tag: "Problem",
              level: "Error",
              message: "the SocketServer has failed: nobody is accepted",
              cause
            }))
          yield* Effect.forkScoped(running, { startImmediately: true })
          return { address: server.address }
        })
      }
    })
  ).pipe(Layer.provide(layer))

const highWaterMark = 65_536
/** How long a peer may take to read the last of its output after the handler has ended. */
const flushTimeout = "30 seconds"
/** How long input is read and dropped after that: a socket that is closed on unread input resets, and may lose the output. */
const lingerTimeout = "1 second"
const encoder = new TextEncoder()
const unnamed = NetAddress.unixPathAddress("")

/** Takes a socket for its own, hands it over as a wire, and holds it until that is released. */
const serveSocket = (
  socket: Socket.Socket,
  local: NetAddress.SocketAddress,
  onConnection: (wire: Wire) => void,
  onOwned: () => void
): Effect.Effect<void> =>
  Effect.scoped(Effect.gen(function*() {
    const reader = yield* socket.reader
    onOwned()
    const output = yield* Scope.make()
    const writer = yield* Scope.provide(socket.writer, output)
    const wire = new SocketWire(local, reader, writer, output, Effect.runForkWith(yield* Effect.context<never>()))
    onConnection(wire)
    yield* Deferred.await(wire.finished)
  })).pipe(Effect.ignore, Effect.ensuring(Effect.sync(onOwned)))

/** An Effect socket as a wire: one fiber reads while it may, one fiber writes what is queued. */
class SocketWire implements Wire {
  readonly local: NetAddress.SocketAddress
  readonly peer = unnamed
  bytesRead = 0
  bytesWritten = 0
  /** Done when the connection is released, and its scopes may close. */
  readonly finished = Deferred.makeUnsafe<void>()

  private receiver!: Receiver
  private readonly outbox = Effect.runSync(Queue.unbounded<Uint8Array, Cause.Done>())
  private readonly flow = new Flow()
  private readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  private readonly fibers: Array<Fiber.Fiber<void>>
  unsent = 0
  private writerWaits = false
  private inputEnded = false
  private outputEnded = false
  private closing = false
  private closed = false

  constructor(
    local: NetAddress.SocketAddress,
    reader: Socket.Reader,
    writer: Socket.Writer,
    output: Scope.Closeable,
    fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  ) {
    this.local = local
    this.fork = fork
    this.fibers = [fork(this.read(reader)), fork(this.send(writer, output))]
  }

  private read(reader: Socket.Reader): Effect.Effect<void> {
    return Effect.andThen(this.flow.pass, reader.pull).pipe(
      // A pull gives many chunks: the receiver may pause behind each.
      Effect.flatMap(Effect.forEach((chunk) => Effect.andThen(this.flow.pass, this.deliver(chunk)), { discard: true })),
      Effect.forever({ disableYield: true }),
      Effect.catch((error) =>
        Effect.sync(() => {
          if (error.reason._tag !== "SocketCloseError" || error.reason.code !== 1000) return this.lose()
          this.inputEnded = true
          this.receiver.onEnd()
          this.releaseIfDone()
        })
      )
    )
  }

  private deliver(chunk: Uint8Array | string): Effect.Effect<void> {
    return Effect.sync(() => {
      const bytes = typeof chunk === "string" ? encoder.encode(chunk) : chunk
      this.bytesRead += bytes.length
      this.receiver.onData(bytes)
    })
  }

  private send(writer: Socket.Writer, output: Scope.Closeable): Effect.Effect<void> {
    return Queue.take(this.outbox).pipe(
      Effect.flatMap((chunk) => Effect.as(writer.write(chunk), chunk.length)),
      Effect.flatMap((sent) =>
        Effect.sync(() => {
          this.unsent -= sent
          if (this.writerWaits && this.unsent < highWaterMark) {
            this.writerWaits = false
            this.receiver.onDrain()
          }
        })
      ),
      Effect.forever({ disableYield: true }),
      Effect.catch((error) => Cause.isDone(error) ? Scope.close(output, Exit.void) : Effect.sync(() => this.lose())),
      Effect.tap(() =>
        Effect.sync(() => {
          this.outputEnded = true
          this.releaseIfDone()
        })
      )
    )
  }

  start(receiver: Receiver): void {
    this.receiver = receiver
  }

  resume(): void {
    this.flow.resume()
  }

  pause(): void {
    this.flow.pause()
  }

  write(chunk: Uint8Array | string): boolean {
    if (this.closed) return true
    const bytes = typeof chunk === "string" ? encoder.encode(chunk) : new Uint8Array(chunk)
    this.bytesWritten += bytes.length
    this.unsent += bytes.length
    Queue.offerUnsafe(this.outbox, bytes)
    this.writerWaits = this.unsent >= highWaterMark
    return !this.writerWaits
  }

  end(): void {
    Queue.endUnsafe(this.outbox)
  }

  close(): void {
    if (this.closing || this.closed) return
    this.closing = true
    this.end()
    this.flow.resume()
    this.releaseIfDone()
    if (!this.closed) this.releaseIn(flushTimeout)
  }

  private releaseIfDone(): void {
    if (!this.closing || !this.outputEnded) return
    if (this.inputEnded) this.release()
    else this.releaseIn(lingerTimeout)
  }

  private releaseIn(duration: Duration.Input): void {
    this.fibers.push(this.fork(Effect.delay(Effect.sync(() => this.release()), duration)))
  }

  destroy(): void {
    this.release()
  }

  private lose(): void {
    if (this.closed) return
    this.receiver.onError({ _tag: "Reset" })
    this.release()
  }

  private release(): void {
    if (this.closed) return
    this.closed = true
    Effect.runSync(Queue.shutdown(this.outbox))
    for (const fiber of this.fibers) fiber.interruptUnsafe()
    Deferred.doneUnsafe(this.finished, Effect.void)
    this.receiver.onClose()
  }
}
