/** A server of messages: of connections, each a conversation; of packets; or of the values of a stream. */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { SocketAddress } from "effect/net/NetAddress"
import { unixPathAddress } from "effect/net/NetAddress"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as CloseReason from "../CloseReason.ts"
import type { Datagram } from "../Datagram.ts"
import type { DatagramError } from "../DatagramError.ts"
import { bounded } from "../Dispatch.ts"
import { FrameError, Malformed, TooLong } from "../FrameError.ts"
import type { Framing } from "../Framing.ts"
import type { Portable } from "../Handler.ts"
import type { Message, Sender } from "../Message.ts"
import { MessageTransport } from "../MessageTransport.ts"
import type { MessageHandler, MessageOptions } from "../Server.ts"
import { publish } from "../ServerEvent.ts"
import type { RemoteMessage } from "../WorkerDispatch.ts"
import { MessageEntry, type Protocol } from "./conversation.ts"
import type { DatagramEntry } from "./datagramEntry.ts"
import * as datagramServer from "./datagramServer.ts"
import { dispatching, type Remotable } from "./dispatching.ts"
import { Entry } from "./entry.ts"
import { Flow } from "./flow.ts"
import { FrameReader } from "./frames.ts"
import { checkInteger } from "./options.ts"
import { placesOf } from "./places.ts"
import { run, type ServerImpl, start, type Tag } from "./server.ts"

export const makeMessage = Effect.fnUntraced(function*(
  tag: Tag,
  handler: MessageHandler<any, any, any, any, any, any> | Portable<Message<any, any>, any, any, any>,
  options: MessageOptions<any, any, any, any, any> = {}
) {
  const source = yield* MessageTransport
  const { maxConnections = 16_384, maxPipelined = 64, onError: _, onInvalid: __, ...rest } = options
  yield* checkInteger("maxPipelined", maxPipelined, 1)
  yield* checkInteger("maxConnections", maxConnections, 1)
  const dispatched = yield* dispatching(handler, (message: Remotable) => message.remote)
  switch (source._tag) {
    case "Connections": {
      const { framing, transport } = source
      const protocol: Protocol = {
        decoder: framing.messages.decoder,
        encode: framing.replies.encode,
        options: options as Protocol["options"],
        maxPipelined,
        connections: yield* bounded(maxConnections),
        places: placesOf.get(dispatched.strategy.run),
        lastId: 0
      }
      const server = yield* start(
        tag,
        transport,
        dispatched,
        rest,
        (server, id, wire) => new MessageEntry(server, id, wire, protocol)
      )
      return server.shape
    }
    case "Datagrams": {
      const { framing, transport } = source
      const packets = new Packets(framing, dispatched.handler, options)
      const server = yield* datagramServer.start(
        tag,
        transport,
        { ...dispatched, handler: packets.handle },
        {
          name: options.name,
          shutdown: options.shutdown,
          requestTimeout: options.requestTimeout,
          onError: options.onError && packets.onError
        }
      )
      return server.shape
    }
    case "Stream": {
      const { onError } = options
      const server = yield* run(tag, values(source.stream), dispatched, {
        name: options.name,
        shutdown: options.shutdown,
        requestTimeout: options.requestTimeout,
        onError: onError && ((cause, message, reason) => Effect.asVoid(onError(cause, message, reason)))
      })
      return server.shape
    }
  }
})

// ---- packets

/** One packet, one message. */
class Packets {
  private readonly framing: Framing<any, any>
  private readonly handler: (message: Message<any, any>) => Effect.Effect<unknown, unknown, any>
  private readonly options: MessageOptions<any, any, any, any, any>
  private readonly messages = new WeakMap<Datagram, PacketMessage>()

  constructor(
    framing: Framing<any, any>,
    handler: (message: Message<any, any>) => Effect.Effect<unknown, unknown, any>,
    options: MessageOptions<any, any, any, any, any>
  ) {
    this.framing = framing
    this.handler = handler
    this.options = options
  }

  readonly handle = (datagram: Datagram): Effect.Effect<unknown, unknown, any> => {
    const payload = this.decode(datagram)
    if (payload instanceof FrameError) return this.onInvalid(datagram, payload)
    const message = new PacketMessage(datagram, payload, this.framing)
    if (this.options.onError !== undefined) this.messages.set(datagram, message)
    const handled = this.handler(message)
    if (Exit.isExit(handled)) return Exit.isSuccess(handled) ? this.answer(message, handled.value) : handled
    return Effect.flatMap(handled, (value) =>
      typeof value === "object" && Stream.isStream(value)
        ? Effect.andThen(this.answer(message, value), finalizing)
        : Effect.andThen(finalizing, this.answer(message, value)))
  }

  private decode({ payload, truncated }: Datagram): unknown {
    if (truncated) return new FrameError({ framing: this.framing.name, reason: new TooLong({ limit: payload.length }) })
    const reader = new FrameReader(this.framing)
    reader.push(payload)
    const message = reader.next()
    if (message === undefined) return reader.endOfPacket() ?? this.malformed
    return message instanceof FrameError || reader.isAtEnd ? message : this.malformed
  }

  private get malformed(): FrameError {
    return new FrameError({
      framing: this.framing.name,
      reason: new Malformed({ detail: "the packet is not exactly one frame" })
    })
  }

  private answer(message: PacketMessage, value: unknown): Effect.Effect<unknown, unknown, any> {
    if (value === undefined) return Effect.void
    return typeof value === "object" && Stream.isStream(value)
      ? Stream.runForEach(value, message.reply)
      : message.reply(value)
  }

  private onInvalid(datagram: Datagram, error: FrameError): Effect.Effect<unknown, unknown, any> {
    const { onInvalid } = this.options
    if (onInvalid === undefined) return Effect.fail(error)
    const message = new PacketMessage(datagram, undefined, this.framing)
    return Effect.flatMap(
      onInvalid(error, message),
      (reply): Effect.Effect<void, unknown> => reply === undefined ? Effect.fail(error) : message.reply(reply)
    )
  }

  readonly onError = (
    cause: Cause.Cause<any>,
    datagram: Datagram,
    reason: CloseReason.CloseReason
  ): Effect.Effect<void, unknown, any> => {
    const message = this.messages.get(datagram)
    if (message === undefined) {
      // No message was made of it. The datagram that its handler was given is the entry.
      return Effect.sync(() => (datagram as DatagramEntry).tellFailure(cause, reason))
    }
    return Effect.flatMap(
      this.options.onError!(cause, message, reason),
      (reply) => reply === undefined ? Effect.void : message.reply(reply)
    )
  }
}

/** The finalizers of a packet's handler, if it has any: not when its packet is done, but before the reply leaves. */
const finalizing: Effect.Effect<void> = Effect.withFiber((fiber) => {
  const scope = Context.getOrUndefined(fiber.context, Scope.Scope) as Scope.Closeable | undefined
  return scope === undefined || scope.state._tag === "Empty" ? Effect.void : Scope.close(scope, Exit.void)
})

class PacketMessage implements Message<any, any>, Sender<any>, Remotable {
  private readonly datagram: Datagram
  private readonly framing: Framing<any, any>
  readonly payload: any

  constructor(datagram: Datagram, payload: unknown, framing: Framing<any, any>) {
    this.datagram = datagram
    this.payload = payload
    this.framing = framing
  }

  get id(): number {
    return this.datagram.id
  }

  get peer(): SocketAddress {
    return this.datagram.peer
  }

  get local(): SocketAddress {
    return this.datagram.local
  }

  get sender(): Sender<any> {
    return this
  }

  get draining(): Effect.Effect<void> {
    return this.datagram.draining
  }

  get annotate(): Datagram["annotate"] {
    return this.datagram.annotate
  }

  get remote(): RemoteMessage {
    const { onKill } = (this.datagram as DatagramEntry).remote
    return { _tag: "Message", message: this, onKill, own: () => {} }
  }

  get reply(): (reply: unknown) => Effect.Effect<void, DatagramError> {
    return (reply) => Effect.suspend(() => this.datagram.reply(this.framing.replies.encode(reply)))
  }

  get send(): (message: unknown) => Effect.Effect<void, DatagramError> {
    return this.reply
  }

  get closed(): Effect.Effect<void> {
    return (this.datagram as DatagramEntry).gone
  }

  get close(): Effect.Effect<void> {
    return Effect.void
  }
}

// ---- the values of a stream

/** Whom values of a stream come from. */
const nobody = unixPathAddress("")

/** The next value is taken when the one before has a place. */
const values = (stream: Stream.Stream<unknown>) => {
  const flow = new Flow()
  let onRoom: (() => void) | undefined
  const untilRoom = (server: ServerImpl) =>
    Effect.callback<void>((resume) => {
      if (server.queued === 0) return resume(Effect.void)
      onRoom = () => {
        if (server.queued > 0) return
        onRoom = undefined
        resume(Effect.void)
      }
    })
  return {
    name: "stream",
    steps: [],
    waiting: { length: 0, dropped: 0, truncated: 0, onRoom: () => onRoom?.(), clear: () => 0 },
    listen: Effect.fnUntraced(function*(server: ServerImpl) {
      flow.resume()
      const reading = Stream.rechunk(stream, 1).pipe(
        Stream.runForEach((value) =>
          Effect.andThen(
            flow.pass,
            Effect.suspend(() => {
              if (!server.isOpen) return Effect.never
              server.accept((id) => new ValueEntry(server, id, value))
              return untilRoom(server)
            })
          )
        ),
        Effect.catchCause((cause) =>
          publish({ _tag: "Problem", level: "Error", message: "the stream of a server's values died", cause })
        ),
        Effect.andThen(Effect.suspend(() => server.shape.awaitIdle)),
        Effect.andThen(Effect.suspend(() => Effect.forkDetach(server.shape.drain())))
      )
      yield* Effect.forkScoped(reading)
      return {
        address: nobody,
        inPlace: { suspend: Effect.sync(() => flow.pause()), resume: Effect.sync(() => flow.resume()) }
      }
    })
  }
}

class ValueEntry extends Entry {
  readonly subject: ValueMessage
  readonly peer = nobody
  readonly local = nobody
  readonly bytesRead = 0
  readonly bytesWritten = 0
  readonly released = true
  readonly endedIdle = false
  annotations: Map<string, unknown> | undefined

  constructor(server: ServerImpl, id: number, payload: unknown) {
    super(server, id)
    this.subject = new ValueMessage(this, payload)
  }

  get kind(): "value" {
    return "value"
  }

  protected isPeersDoing(): boolean {
    return false
  }

  get annotate(): Sender<never>["annotate"] {
    return (key, value) =>
      Effect.sync(() => {
        ;(this.annotations ??= new Map()).set(key, value)
      })
  }

  protected closeSubject(): void {}
  protected destroySubject(): void {}
  startDrain(): void {}

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    return Exit.isSuccess(exit) || this.isEnd(exit.cause)
      ? CloseReason.Completed
      : this.interruptedByDrain
      ? CloseReason.Drained
      : this.handlerFailed(exit.cause)
  }
}

class ValueMessage implements Message<unknown, never>, Sender<never>, Remotable {
  private readonly entry: ValueEntry
  readonly payload: unknown
  readonly peer = nobody
  readonly local = nobody
  readonly close = Effect.void

  constructor(entry: ValueEntry, payload: unknown) {
    this.entry = entry
    this.payload = payload
  }

  get id(): number {
    return this.entry.id
  }

  get sender(): Sender<never> {
    return this
  }

  get closed(): Effect.Effect<void> {
    return this.entry.gone
  }

  get draining(): Effect.Effect<void> {
    return this.entry.server.draining.await
  }

  get annotate(): Sender<never>["annotate"] {
    return this.entry.annotate
  }

  get remote(): RemoteMessage {
    return { _tag: "Message", message: this, onKill: (kill) => this.entry.onKill(kill), own: () => {} }
  }

  readonly reply = (): Effect.Effect<void> => Effect.void
  readonly send = this.reply
}
