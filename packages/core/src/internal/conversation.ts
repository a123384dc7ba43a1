/**
 * A connection whose handler is ours: it reads frames, gives each message to the dispatch strategy, and brings the replies in
 * order. Messages that are answered at once cost no fiber and no write of their own: the frames of a chunk are decoded and
 * handled one behind the other, and what they are answered leaves together.
 *
 * A message waits for the strategy with its connection: nothing behind it is read meanwhile. So what a strategy lets wait is one
 * message a connection.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as CloseReason from "../CloseReason.ts"
import type { Connection } from "../Connection.ts"
import { Closed, type ConnectionError } from "../ConnectionError.ts"
import type { Request, Strategy } from "../Dispatch.ts"
import { FrameError } from "../FrameError.ts"
import type { Decoder } from "../Framing.ts"
import type { Message, Sender } from "../Message.ts"
import type { MessageOptions } from "../Server.ts"
import type { Wire } from "../StreamTransport.ts"
import type { RemoteMessage } from "../WorkerDispatch.ts"
import type { ReadDeadline } from "./connection.ts"
import { ConnectionEntry } from "./connectionEntry.ts"
import type { Remotable } from "./dispatching.ts"
import type { InputBuffer } from "./inputBuffer.ts"
import { joinBytes } from "./joinBytes.ts"
import type { ObservedRequest } from "./observed.ts"
import type { Places } from "./places.ts"
import type * as Reads from "./reads.ts"
import type { ServerImpl } from "./server.ts"

/** What all connections of a server speak. */
export interface Protocol {
  readonly decoder: () => Decoder<unknown>
  readonly encode: (reply: any) => Frame
  /** What its hooks require is in the server's context: the public signatures see to it. */
  readonly options: MessageOptions<any, any, any, never, never>
  readonly maxPipelined: number
  /** Of the connections. */
  readonly connections: Strategy
  /** Of the messages, where it can say at once whether there is a place. */
  readonly places: Places | undefined
  lastId: number
}

/** So many messages are handled before others get a turn. */
const turnLimit = 1_024
/** Replies that are gathered are handed over from here on. */
const gatherLimit = 65_536

/**
 * A message that has ended lets its connection be read on, from within that end: and what is read may end one of another
 * connection, and so on. So many of them are inside each other; the next one has a turn of its own.
 */
const nestingLimit = 16
let nested = 0

export class MessageEntry extends ConnectionEntry {
  readonly conversation: Conversation

  constructor(server: ServerImpl, id: number, wire: Wire, protocol: Protocol) {
    super(server, id, wire)
    this.conversation = new Conversation(this, protocol)
  }

  protected override get strategy(): Strategy {
    return this.conversation.protocol.connections
  }

  /** What is in flight is its messages. */
  protected override get weight(): number {
    return 0
  }

  /** What is followed is its messages, too. */
  protected override get followed(): undefined {
    return undefined
  }

  /** Its messages have deadlines of their own. */
  protected override get requestMillis(): number {
    return Infinity
  }

  protected override callHandler(): Effect.Effect<unknown, unknown> {
    return this.conversation.life
  }

  protected override checkDeadlines(now: number): number {
    return Math.min(super.checkDeadlines(now), this.conversation.checkRequests(now))
  }

  /** What a message waits for is no silence of its peer's; what is there of the next one began when it did. */
  protected override checkPatience(now: number): ReadDeadline | number {
    const { conversation, server: { patience }, subject } = this
    const idle = conversation.isBusy ? Infinity : patience.idle
    const next = subject.checkDeadlines({ ...patience, idle, read: Infinity }, now)
    if (typeof next !== "number" || subject.overrun !== undefined) return next
    const left = (conversation.frameBegunAt ?? now) + patience.read - now
    return left > 0 ? Math.min(next, left, patience.idle) : "readTimeout"
  }

  /** Who waits for a peer that does not read need not be one of its handlers, nor its reader: those have to be told. */
  override onGone(how: "end" | "reset"): void {
    super.onGone(how)
    if (this.subject.stalled) this.endWith(CloseReason.WriteTimeout)
  }

  /** How a message's handler has ended that was cut off with its connection, or by it. */
  endOf(cause: Cause.Cause<unknown>): CloseReason.CloseReason {
    return this.reason ?? this.reasonOf(Exit.failCause(cause))
  }

  override kill(): void {
    this.conversation.kill()
    super.kill()
  }

  /** What a message's handler runs with. */
  contextWith(scope: Scope.Scope): Context.Context<never> {
    return Context.add(this.context, Scope.Scope, scope)
  }
}

/** Where a handler's finalizers are, and what it runs with. Given to the next handler if it was not used. */
interface Room {
  readonly scope: Scope.Closeable
  readonly context: Context.Context<never>
}

type Frame = Uint8Array | string

/** How a handler has ended, for those who follow it. */
interface Outcome {
  readonly reason: CloseReason.CloseReason
  readonly cause: Cause.Cause<unknown> | undefined
}

/**
 * Effect's own guards look for all that is ever asked about at one place in the program, which is slow there. (Bench "resp PING
 * pipelined": 35 of the 170 ns that a message cost besides the system's part.)
 */
const isExit = <A, E>(effect: Effect.Effect<A, E>): effect is Exit.Exit<A, E> =>
  (effect as Exit.Exit<A, E> | undefined)?.["~effect/Exit"] !== undefined
const isStream = (value: unknown): value is Stream.Stream<unknown, unknown> =>
  typeof value === "object" && value !== null && Stream.TypeId in value

const completed: Outcome = { reason: CloseReason.Completed, cause: undefined }

class Conversation implements Sender<any> {
  readonly protocol: Protocol
  readonly entry: MessageEntry
  private readonly decoder: Decoder<unknown>
  /** In the order of arrival: what is not answered yet, and what is but has to wait for those before it. */
  private readonly pending = new Set<MessageImpl>()
  /** Is a message under way? */
  isBusy = false
  /** Has the strategy no place for the latest message yet? */
  private waiting: MessageImpl | undefined
  private spare: Room | undefined
  /** What is left to wait for of what was written. */
  private below: Effect.Effect<void, ConnectionError> | undefined
  private inputEnded = false
  /** Has a part of a message been taken from the input? */
  private midFrame = false
  /** Since when a part of a message is there and its rest is waited for: known where that has a deadline. */
  frameBegunAt: number | undefined
  /** Is what comes now of no interest any more? */
  private closing = false
  private closeAsked = false
  private stopped = false
  /** Replies to leave together: text is added to text. */
  private text = ""
  private frames: Array<Frame> = []
  private gathered = 0
  private processing = false
  private onProcessed: (() => void) | undefined
  private flushing = false
  /** Does its peer not take what was written? */
  private pressing = false
  private onRoom: (() => void) | undefined

  constructor(entry: MessageEntry, protocol: Protocol) {
    this.entry = entry
    this.protocol = protocol
    this.decoder = protocol.decoder()
  }

  private get connection() {
    return this.entry.subject
  }

  get server(): ServerImpl {
    return this.entry.server
  }

  // ---- reading

  get life(): Effect.Effect<void, unknown> {
    const next = Effect.flatMap(this.connection.read(this.messages, false), this.goOn)
    const all = Effect.matchCauseEffect(Effect.forever(next, { disableYield: true }), {
      // The peer may have finished, or be gone: what is under way goes on, as any handler would.
      onSuccess: () => Effect.void,
      onFailure: (cause) => {
        const isCut = this.stopped || this.connection.stalled
        return Effect.flatMap(isCut ? Effect.void : this.untilRoom(() => this.pending.size === 0), () => {
          this.flush()
          return Effect.failCause(cause)
        })
      }
    })
    return Effect.onExit(all, () => this.interruptAll)
  }

  /**
   * A read that handles what it finds, and has its result only when there is something to wait for: as long as messages are
   * answered at once, the connection's fiber does not leave it. (Bench "lines": two thirds of the cost of a chunk.)
   */
  private readonly messages: Reads.Read<true> = {
    handles: true,
    step: (input) => this.process(input),
    end: (input) => {
      if (!this.inputEnded && (input.length > 0 || this.midFrame)) {
        this.inputEnded = true
        const message = this.decoder.end?.(input)
        if (message !== undefined) {
          this.processing = true
          this.onMessage(message)
          this.closeIfAsked()
          this.processing = false
          this.below = this.flush()
          return Effect.succeed(true)
        }
      }
      return Cause.done()
    }
  }

  /** Handles the messages that are there; `true` where the next one has to wait for something. */
  private process(input: InputBuffer): true | undefined {
    const { decoder } = this
    this.processing = true
    let left = turnLimit
    let mustWait = this.closing || this.mustWait
    try {
      while (!mustWait) {
        const before = input.length
        const message = decoder.read(input)
        if (message === undefined) {
          this.setMidFrame(this.midFrame || input.length < before)
          break
        }
        if (this.midFrame) this.setMidFrame(false)
        left--
        const isAnswered = this.onMessage(message)
        mustWait = left === 0 || this.gathered >= gatherLimit || this.closing || (!isAnswered && this.mustWait)
      }
      this.closeIfAsked()
    } finally {
      this.processing = false
      this.onProcessed?.()
    }
    this.below = this.flush()
    const isRead = mustWait || this.closing || this.below !== undefined
    if (this.server.patience.read < Infinity) {
      if (left < turnLimit || isRead) this.frameBegunAt = undefined
      if (!isRead && (this.midFrame || input.length > 0)) this.frameBegunAt ??= this.server.now()
    }
    return isRead ? true : undefined
  }

  /** A message that is half taken is not idleness. */
  private setMidFrame(isMidFrame: boolean): void {
    if (isMidFrame === this.midFrame) return
    this.midFrame = isMidFrame
    if (isMidFrame) this.connection.beginWork()
    else this.connection.endWork()
  }

  private readonly goOn = (): Effect.Effect<void, Cause.Done> => {
    const { below } = this
    this.below = undefined
    if (this.stopped) return Cause.done()
    // What ends the conversation interrupts this.
    if (this.closing) return Effect.never
    const next = this.mustWait
      ? this.untilRoom(() => !this.mustWait)
      : below === undefined
      ? Effect.yieldNow
      : Effect.void
    return below === undefined ? next : Effect.andThen(Effect.ignore(below), next)
  }

  /** Is there to be no further message for now? */
  private get mustWait(): boolean {
    return this.waiting !== undefined || this.pressing || this.pending.size >= this.protocol.maxPipelined
  }

  private untilRoom(hasRoom: () => boolean): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      if (hasRoom()) return resume(Effect.void)
      this.onRoom = () => {
        if (!hasRoom()) return
        this.onRoom = undefined
        if (nested === nestingLimit) return resume(Effect.yieldNow)
        nested++
        try {
          resume(Effect.void)
        } finally {
          nested--
        }
      }
    })
  }

  // ---- messages

  /** Handles it, or what is wrong with it. Was that done at once, with nothing left of it? */
  private onMessage(payload: unknown): boolean {
    if (typeof payload === "object" && payload instanceof FrameError) {
      this.onInvalid(payload)
      return false
    }
    const { entry: { observed }, protocol, server } = this
    const { places } = protocol
    const message = new MessageImpl(this, ++protocol.lastId, payload)
    const followed = observed === undefined ? undefined : message.observed = observed.message(message.id)
    followed?.queued()
    if (places === undefined || !places.take()) {
      this.queue(message)
      return false
    }
    server.inFlight++
    followed?.begun()
    const effect = this.callHandler(message)
    if (isExit(effect) && Exit.isSuccess(effect) && (this.pending.size === 0 || this.isUnordered)) {
      const reply = effect.value
      if (!isStream(reply)) {
        const frame = reply === undefined ? undefined : this.encoded(reply)
        if (reply === undefined || frame !== undefined) {
          server.inFlight--
          places.leave()
          followed?.handled(CloseReason.Completed, undefined)
          if (frame !== undefined) this.gather(frame)
          return true
        }
      }
    }
    message.place = places
    message.begun = true
    this.run(message, effect, (exit) => this.onHandled(message, exit))
    return false
  }

  /** The frame of a reply, if it has one: what is wrong with it otherwise is said where it is made once more. */
  private encoded(reply: unknown): Frame | undefined {
    try {
      return this.protocol.encode(reply)
    } catch {
      return undefined
    }
  }

  private callHandler(message: MessageImpl): Effect.Effect<unknown, unknown> {
    try {
      return this.server.config.handler(message)
    } catch (defect) {
      return Exit.die(defect)
    }
  }

  /** The strategy decides when, and whether. */
  private queue(message: MessageImpl): void {
    this.link(message)
    this.waiting = message
    this.server.queued++
    const fiber = message.turn = Effect.runForkWith(this.server.context)(
      Effect.suspend(() => this.server.config.strategy.run(message))
    )
    fiber.addObserver((exit) => {
      if (this.waiting !== message) return
      this.leaveQueue(message)
      // The strategy has refused it, dropped it, or failed; or all of the conversation is interrupted.
      if (message.refusedBy === undefined && Exit.isFailure(exit)) this.onFailure(message, exit.cause)
      else this.end(message, CloseReason.Refused(message.refusedBy ?? "dispatch"))
    })
  }

  private leaveQueue(message: MessageImpl): void {
    if (this.waiting !== message) return
    this.waiting = undefined
    this.server.leaveQueue()
    this.onRoom?.()
  }

  /** The strategy has a place for it: completes when its handler has ended. */
  handle(message: MessageImpl): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      if (this.waiting !== message) return resume(Effect.die(new Error(`message ${message.id}: handled twice`)))
      message.place = { take: () => false, leave: () => resume(Effect.void) }
      this.begin(message)
      this.leaveQueue(message)
      return Effect.suspend(() => message.interrupt)
    })
  }

  private begin(message: MessageImpl): void {
    this.server.inFlight++
    message.begun = true
    message.observed?.begun()
    this.run(message, this.callHandler(message), (exit) => this.onHandled(message, exit))
  }

  /** Runs something that belongs to a message: without a fiber, if there is nothing to run. */
  private run<A>(
    message: MessageImpl,
    effect: Effect.Effect<A, unknown>,
    then: (exit: Exit.Exit<A, unknown>) => void
  ): void {
    if (isExit(effect)) return then(effect)
    this.link(message)
    message.room ??= this.takeRoom()
    const { observed, room: { context } } = message
    const { now, requestMillis } = this.server
    if (requestMillis < Infinity) message.since ??= now()
    const fiber = Effect.runForkWith(observed === undefined ? context : observed.within(context))(effect)
    const exit = fiber.pollUnsafe()
    if (exit !== undefined) return then(exit)
    this.watch(message, fiber)
    fiber.addObserver(then)
    // It has asked for its own end, before it was known here.
    if (message.onEnd !== undefined) fiber.interruptUnsafe()
  }

  /** What runs of a message is interrupted with it, and in time. */
  private watch(message: MessageImpl, fiber: Fiber.Fiber<unknown, unknown>): void {
    message.fiber = fiber
    const { requestMillis } = this.server
    if (requestMillis < Infinity) this.entry.lookBy(message.since! + requestMillis)
  }

  /** Interrupts the handlers that have run for too long, and says in how many milliseconds another one will have. */
  checkRequests(now: number): number {
    let next = Infinity
    for (const message of this.pending) {
      if (message.since === undefined || message.isDone || message.isFailing || message.overran) continue
      const left = message.since + this.server.requestMillis - now
      if (left > 0) {
        next = Math.min(next, left)
        continue
      }
      message.overran = true
      message.fiber?.interruptUnsafe()
    }
    return next
  }

  private takeRoom(): Room {
    const { spare } = this
    if (spare !== undefined) {
      this.spare = undefined
      return spare
    }
    const scope = Scope.makeUnsafe()
    return { scope, context: this.entry.contextWith(scope) }
  }

  private onHandled(message: MessageImpl, exit: Exit.Exit<unknown, unknown>): void {
    const onEnded = (exit: Exit.Exit<unknown, unknown>) => this.onEnded(message, exit)
    if (Exit.isFailure(exit)) return this.leaveRoom(message, exit, onEnded)
    const { value } = exit
    if (!isStream(value)) return this.leaveRoom(message, exit, onEnded)
    const sending = Stream.runForEachArray(value, (replies) => this.reply(message, replies))
    this.run(message, sending, (exit) => this.leaveRoom(message, exit, onEnded))
  }

  /** The finalizers of what has run, if it has any. */
  private leaveRoom<A>(
    message: MessageImpl,
    exit: Exit.Exit<A, unknown>,
    then: (exit: Exit.Exit<A, unknown>) => void
  ): void {
    const { room } = message
    if (room === undefined) return then(exit)
    message.room = undefined
    if (this.spare === undefined && room.scope.state._tag === "Empty") {
      this.spare = room
      return then(exit)
    }
    const finalizers = Scope.closeUnsafe(room.scope, exit)
    if (finalizers === undefined) return then(exit)
    const fiber = Effect.runForkWith(room.context)(Effect.uninterruptible(finalizers))
    this.watch(message, fiber)
    fiber.addObserver((finalized) =>
      then(
        Exit.isSuccess(finalized)
          ? exit
          : Exit.isSuccess(exit)
          ? Exit.failCause(finalized.cause)
          : Exit.failCause(Cause.combine(exit.cause, finalized.cause))
      )
    )
  }

  private onEnded(message: MessageImpl, exit: Exit.Exit<unknown, unknown>): void {
    if (Exit.isSuccess(exit)) this.finish(message, exit.value)
    else this.onFailure(message, exit.cause)
  }

  // ---- what goes wrong

  private onFailure(message: MessageImpl, cause: Cause.Cause<unknown>): void {
    const isOwn = this.isOwn(cause)
    const reason = message.overran
      ? CloseReason.RequestTimeout
      : isOwn || this.stopped
      ? this.entry.endOf(cause)
      : this.entry.handlerFailed(cause)
    message.failure ??= { reason, cause }
    // Its reader will find that, too: it says how the connection has ended.
    if (isOwn) return this.finish(message, undefined)
    const { onError } = this.protocol.options
    const isEnded = Cause.hasInterruptsOnly(cause) && !message.overran
    if (message.isFailing || this.stopped || isEnded) return this.end(message, reason)
    message.isFailing = true
    const { id, observed } = message
    const handled = onError === undefined
      ? Effect.sync(() => this.entry.tellFailure(cause, reason, { kind: "message", id, observed }))
      : Effect.suspend(() => onError(cause, message, reason))
    this.runHook(message, "onError", handled, reason)
  }

  private onInvalid(error: FrameError): void {
    const message = new MessageImpl(this, 0, undefined)
    const { onInvalid } = this.protocol.options
    const reason = CloseReason.InvalidFrame(error)
    if (onInvalid === undefined) return this.end(message, reason)
    message.isFailing = true
    this.runHook(message, "onInvalid", Effect.suspend(() => onInvalid(error, this)), reason, !error.isRecoverable)
  }

  /** What a hook returns is the reply, with which the connection goes on, unless it cannot; otherwise it ends. */
  private runHook(
    message: MessageImpl,
    name: string,
    hook: Effect.Effect<unknown, unknown>,
    reason: CloseReason.CloseReason,
    isLast = false
  ): void {
    if (isLast) this.closing = true
    const onEnded = (exit: Exit.Exit<unknown, unknown>) => {
      if (Exit.isFailure(exit)) this.entry.hookFailed(name, exit.cause, "a message")
      const reply = Exit.isSuccess(exit) ? exit.value : undefined
      if (reply === undefined || isLast) message.ending = reason
      this.finish(message, reply)
    }
    this.run(message, hook, (exit) => this.leaveRoom(message, exit, onEnded))
  }

  /** The conversation ends at the message's place. */
  private end(message: MessageImpl, reason: CloseReason.CloseReason): void {
    message.ending = reason
    this.finish(message, undefined)
  }

  private isOwn(cause: Cause.Cause<unknown>): boolean {
    return cause.reasons.length > 0 &&
      cause.reasons.every((reason) => Cause.isFailReason(reason) && this.connection.owns(reason.error))
  }

  // ---- the end of a message

  private finish(message: MessageImpl, reply: unknown): void {
    let frame: Frame | undefined
    if (reply !== undefined) {
      try {
        frame = this.protocol.encode(reply)
      } catch (defect) {
        if (!message.isFailing) return this.onFailure(message, Cause.die(defect))
        this.entry.hookFailed("encoding the reply of a hook", Cause.die(defect), "a message")
        message.ending ??= this.entry.handlerFailed(Cause.die(defect))
      }
    }
    if (message.begun) {
      this.server.inFlight--
      const { reason, cause } = message.failure ?? completed
      message.observed?.handled(reason, cause)
    }
    message.isDone = true
    message.fiber = undefined
    if (message.ending !== undefined) this.closing = true
    const inTurn = this.isItsTurn(message)
    if (inTurn && frame !== undefined) this.gather(frame)
    else message.held = frame
    if (inTurn) this.unlink(message)
    // It has to wait for those before it.
    else this.link(message)
    message.onEnd?.()
    message.place?.leave()
    if (!this.processing) {
      if (!this.flushing && this.gathered > 0) {
        this.flushing = true
        queueMicrotask(() => {
          this.flushing = false
          this.press(this.flush())
        })
      }
      this.onRoom?.()
    }
  }

  private get isUnordered(): boolean {
    return this.protocol.options.order === "unordered"
  }

  /** One that ends the conversation waits for those before it, in any order. */
  private isItsTurn(message: MessageImpl): boolean {
    if (this.pending.size === 0 || (this.isUnordered && message.ending === undefined)) return true
    const [first] = this.pending
    return first === message
  }

  private link(message: MessageImpl): void {
    if (message.isLinked) return
    message.isLinked = true
    this.pending.add(message)
    if (this.isBusy) return
    this.isBusy = true
    this.connection.beginWork()
  }

  /** It is answered: those behind it that are, too, may go; and the next has its turn. */
  private unlink(message: MessageImpl): void {
    const { pending } = this
    if (message.ending !== undefined) this.stop(message.ending)
    if (!message.isLinked) return
    pending.delete(message)
    for (const next of pending) {
      next.itsTurn?.openUnsafe()
      if (!next.isDone) break
      if (next.held !== undefined) this.gather(next.held)
      pending.delete(next)
      if (next.ending !== undefined) this.stop(next.ending)
    }
    // Whoever had its turn may have come to its end here, and done this already.
    if (pending.size === 0 && this.isBusy) {
      this.isBusy = false
      this.connection.endWork()
      this.connection.touch()
    }
  }

  /** What was answered is still sent; the rest is interrupted. */
  private stop(reason: CloseReason.CloseReason): void {
    if (this.stopped) return
    this.flush()
    this.closing = this.stopped = true
    this.entry.endWith(reason)
  }

  private get interruptAll(): Effect.Effect<void> {
    return Effect.flatMap(this.processed, () => {
      this.flush()
      this.closing = this.stopped = true
      if (this.pending.size === 0) return this.leaveSpare
      // The one that waits first: it must not get a place that another one leaves.
      const all = Effect.forEach([...this.pending].toReversed(), (message) => message.interruptWith, {
        concurrency: "unbounded",
        discard: true
      })
      return Effect.flatMap(all, () => this.leaveSpare)
    })
  }

  /** What a handler has left behind may have come to a finalizer since. */
  private get leaveSpare(): Effect.Effect<void> {
    const { spare } = this
    this.spare = undefined
    return Effect.asVoid((spare && Scope.closeUnsafe(spare.scope, Exit.void)) ?? Effect.void)
  }

  /** Where a handler has ended its own connection, what came with its message is handled first. */
  private get processed(): Effect.Effect<void> {
    return Effect.suspend(() =>
      this.processing
        ? Effect.callback<void>((resume) => {
          this.onProcessed = () => resume(Effect.void)
        })
        : Effect.void
    )
  }

  // ---- sending

  /** Replies of a handler that has not ended, in their turn. */
  reply(message: MessageImpl, replies: ReadonlyArray<unknown>): Effect.Effect<void, ConnectionError> {
    return Effect.suspend(() => {
      const frames = replies.map((reply) => this.protocol.encode(reply))
      if (message.isDone || this.isItsTurn(message)) return this.sendNow(frames)
      message.itsTurn ??= Latch.makeUnsafe(false)
      return Effect.flatMap(message.itsTurn.await, () => this.sendNow(frames))
    })
  }

  private sendNow(frames: ReadonlyArray<Frame>): Effect.Effect<void, ConnectionError> {
    const failure = this.connection.outputFailure()
    if (failure !== undefined) return failure
    if (this.stopped) return this.connection.fail(new Closed({ what: "connection" }))
    for (const frame of frames) this.gather(frame)
    // While others are handled, what they are answered leaves together.
    if (this.processing && this.gathered < gatherLimit) return Effect.void
    const left = this.flush()
    // The handler waits for the peer; what is read next would not.
    if (this.processing) this.press(left)
    return left ?? Effect.void
  }

  /** Nothing more is read until the peer has taken what nobody else waits for. */
  private press(left: Effect.Effect<void, ConnectionError> | undefined): void {
    if (left === undefined || this.pressing) return
    this.pressing = true
    Effect.runForkWith(this.server.context)(left).addObserver(() => {
      this.pressing = false
      this.onRoom?.()
    })
  }

  private gather(frame: Frame): void {
    if (this.stopped || frame.length === 0) return
    this.gathered += frame.length
    if (typeof frame === "string") {
      this.text += frame
      return
    }
    if (this.text !== "") {
      this.frames.push(this.text)
      this.text = ""
    }
    this.frames.push(frame)
  }

  /** Hands over what was gathered; what is left to wait for, if there is something. */
  private flush(): Effect.Effect<void, ConnectionError> | undefined {
    if (this.gathered === 0) return undefined
    const { frames, text } = this
    this.gathered = 0
    this.text = ""
    if (frames.length === 0) return this.connection.writeNow(text)
    if (text !== "") frames.push(text)
    this.frames = []
    return this.connection.writeNow(joinBytes(frames))
  }

  // ---- as the sender

  get id(): number {
    return this.entry.id
  }

  get peer(): SocketAddress {
    return this.entry.peer
  }

  get local(): SocketAddress {
    return this.entry.local
  }

  get send(): Sender<unknown>["send"] {
    return (message) => Effect.suspend(() => this.sendNow([this.protocol.encode(message)]))
  }

  get closed(): Effect.Effect<void> {
    return this.entry.gone
  }

  /** At its place behind all that has been asked for: a message that is being handled may have no place yet. */
  get close(): Effect.Effect<void> {
    return Effect.sync(() => {
      this.closing = this.closeAsked = true
      if (!this.processing) this.closeIfAsked()
    })
  }

  private closeIfAsked(): void {
    if (!this.closeAsked) return
    this.closeAsked = false
    this.end(new MessageImpl(this, 0, undefined), CloseReason.Completed)
  }

  get annotate(): Connection["annotate"] {
    return this.connection.annotate
  }

  own(error: object): void {
    this.connection.own(error)
  }

  /** The drain's last deadline: handlers may never end. */
  kill(): void {
    for (const message of this.pending) {
      message.killWorker?.()
      if (message.begun && !message.isDone) message.observed?.handled(CloseReason.Killed, undefined)
      message.observed = undefined
    }
  }
}

export class MessageImpl implements Message<any, any>, Request, Remotable {
  readonly sender: Conversation
  readonly id: number
  readonly payload: any
  // The rest is `undefined` until it is set: a message that is answered at once has none of it, and costs no more than this.
  /** Where it is to leave when it has ended. */
  declare place: Places | undefined
  declare room: Room | undefined
  /** What runs of it. */
  declare fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** What waits for the strategy, and then for the handler's end. */
  declare turn: Fiber.Fiber<unknown, unknown> | undefined
  declare refusedBy: string | undefined
  declare observed: ObservedRequest | undefined
  /** When its handler began to run, where it has a deadline; and has it overrun that? */
  declare since: number | undefined
  declare overran: boolean | undefined
  /** What has gone wrong with its handler first. */
  declare failure: Outcome | undefined
  declare begun: boolean | undefined
  declare isFailing: boolean | undefined
  declare isDone: boolean | undefined
  declare isLinked: boolean | undefined
  /** Does the conversation end with it? */
  declare ending: CloseReason.CloseReason | undefined
  /** The reply, while those before it are not answered. */
  declare held: Frame | undefined
  /** Where the handler runs in a worker: how to end that. */
  declare killWorker: (() => void) | undefined
  /** What replies wait for that come before their turn. */
  declare itsTurn: Latch.Latch | undefined
  declare onEnd: (() => void) | undefined

  constructor(sender: Conversation, id: number, payload: unknown) {
    this.sender = sender
    this.id = id
    this.payload = payload
  }

  get peer(): SocketAddress {
    return this.sender.peer
  }

  get draining(): Effect.Effect<void> {
    return this.sender.entry.draining.await
  }

  get reply(): Message<any, any>["reply"] {
    return (reply) => this.sender.reply(this, [reply])
  }

  get remote(): RemoteMessage {
    return {
      _tag: "Message",
      message: this,
      onKill: (kill) => {
        this.killWorker = kill
      },
      own: (error) => this.sender.own(error)
    }
  }

  // ---- for the strategy

  get handle(): Effect.Effect<void> {
    return this.sender.handle(this)
  }

  get refuse(): Request["refuse"] {
    return (policy) =>
      Effect.withFiber((fiber) => {
        if (this.begun) return Effect.void
        this.refusedBy = policy
        if (this.turn !== undefined && this.turn !== fiber) this.turn.interruptUnsafe()
        return Effect.void
      })
  }

  /** Completes when its handler has ended. */
  get interrupt(): Effect.Effect<void> {
    if (this.isDone) return Effect.void
    return Effect.callback<void>((resume) => {
      this.onEnd = () => resume(Effect.void)
      this.fiber?.interruptUnsafe()
    })
  }

  get interruptWith(): Effect.Effect<void> {
    return this.turn === undefined ? this.interrupt : Fiber.interrupt(this.turn)
  }
}
