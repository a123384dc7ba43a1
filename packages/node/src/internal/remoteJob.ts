/**
 * One request with a worker: it finds a worker, is sent there, is answered for here while it runs, and ends as the handler
 * did, or by the worker's fault. Where the worker has the socket, the connection is closed there when the server closes it
 * here.
 */
import type { Connection } from "@socketserver/core/Connection"
import { ConnectionError, Reset } from "@socketserver/core/ConnectionError"
import type { Portable } from "@socketserver/core/Handler"
import type { Message } from "@socketserver/core/Message"
import type { WireFailure } from "@socketserver/core/StreamTransport"
import type { RemoteConnection, RemoteDatagram, RemoteMessage } from "@socketserver/core/WorkerDispatch"
import { WorkerCrashed, WorkerError, WorkerTimeout } from "@socketserver/core/WorkerError"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as descriptors from "./descriptors.ts"
import { decodeExit, encodeExit } from "./exits.ts"
import { RemoteWire } from "./remoteWire.ts"
import { encodeSpan } from "./telemetry.ts"
import { decodeValue, encodeValue } from "./values.ts"
import { NodeWire } from "./wire.ts"
import { failureOf, type Job, type Pool, type PooledWorker } from "./workerPool.ts"
import {
  decodeFailure,
  type EncodedEnds,
  encodeEnds,
  encodeFailure,
  type FromWorker,
  inputWindow
} from "./workerProtocol.ts"

/** How long a handler whose time is up may take to heed its interruption, before its worker is killed. */
const heedingTime = 50
/** A timer of Node that is to wait for more milliseconds does not wait at all. */
const longestTimer = 2 ** 31 - 1

/** The input of a task. */
export interface RemoteTask {
  readonly _tag: "Task"
  readonly input: unknown
}

export interface Assignment {
  readonly pool: Pool
  readonly handler: Portable<any, any, any, any>
  readonly timeout: Duration.Duration | undefined
  readonly request: RemoteConnection | RemoteDatagram | RemoteMessage | RemoteTask
}

/** Runs it, and ends as it does; fails with `WorkerError` as it is. Interrupting it interrupts the handler. */
export const runRemotely = (assignment: Assignment): Effect.Effect<unknown, unknown> =>
  Effect.withFiber((fiber) =>
    Effect.callback((resume) => {
      const job = new RemoteJob(assignment, fiber.context, (exit) => resume(exit))
      return Effect.suspend(() => job.interrupt)
    })
  )

class RemoteJob implements Job {
  private readonly assignment: Assignment
  readonly context: Context.Context<never>
  private readonly onEnd: (exit: Exit.Exit<unknown, unknown>) => void
  readonly id: number
  private readonly leave: (() => void) | undefined
  worker: PooledWorker | undefined
  private running = false
  private ended = false
  private timedOut = false
  /** Made for an interruption that waits for the end. */
  private end: Latch.Latch | undefined
  private timer: NodeJS.Timeout | undefined
  private hearing: (() => void) | undefined
  /** Of a connection whose socket the worker has. */
  private wire: RemoteWire | undefined
  private helpers: Array<Fiber.Fiber<unknown, unknown>> | undefined
  /** How much input is on its way to the worker. */
  private underWay = 0
  /** Closed while that is too much. */
  private hasWindow: Latch.Latch | undefined

  constructor(
    assignment: Assignment,
    context: Context.Context<never>,
    onEnd: (exit: Exit.Exit<unknown, unknown>) => void
  ) {
    this.assignment = assignment
    this.context = context
    this.onEnd = onEnd
    const { pool } = assignment
    this.id = pool.numbers.take()
    this.leave = pool.request({
      begin: (worker) => this.begin(worker),
      fail: (cause) => this.finish(this.failWith(new WorkerCrashed({ cause })))
    })
  }

  private failWith(reason: WorkerError["reason"]): Exit.Exit<never, WorkerError> {
    return Exit.fail(new WorkerError({ reason, handler: this.assignment.handler.name }))
  }

  // ---- to the worker

  private begin(worker: PooledWorker): void {
    const { handler, pool } = this.assignment
    this.worker = worker
    worker.begin(this)
    const index = pool.register(handler)
    worker.whenLoaded(index, (outcome) => {
      if (this.ended) return
      if (outcome._tag === "Ready") return this.send(worker, index)
      const failure = failureOf(outcome, handler)
      this.finish(Cause.isCause(failure) ? Exit.failCause(failure) : this.failWith(failure))
    })
  }

  private send(worker: PooledWorker, handler: number): void {
    this.running = true
    if (this.assignment.request._tag !== "Task") this.assignment.request.onKill(this.kill)
    const { pool, request, timeout } = this.assignment
    // A handshake has its own time.
    if (timeout !== undefined && !(request._tag === "Connection" && request.handshake !== undefined)) {
      this.allow(Duration.toMillis(timeout))
    }
    const message = {
      _tag: "Run" as const,
      id: this.id,
      handler,
      request: request._tag === "Connection"
        ? request.connection.id
        : request._tag === "Datagram"
        ? request.datagram.id
        : request._tag === "Message"
        ? request.message.id
        : 0,
      span: encodeSpan(this.context)
    }
    switch (request._tag) {
      case "Task":
        return worker.post({ ...message, subject: { _tag: "Task", input: encodeValue(request.input) } })
      case "Datagram": {
        const { local, payload, peer, truncated } = request.datagram
        this.help(Effect.map(request.datagram.draining, () => this.tellDrain(0)))
        return worker.post({
          ...message,
          subject: { _tag: "Datagram", peer: encodeValue(peer), local: encodeValue(local), payload, truncated }
        })
      }
      case "Message": {
        const { draining, payload, peer, sender } = request.message
        this.help(Effect.map(draining, () => this.tellDrain(0)))
        return worker.post({
          ...message,
          subject: {
            _tag: "Message",
            peer: encodeValue(peer),
            local: encodeValue(sender.local),
            sender: sender.id,
            payload: encodeValue(payload)
          }
        })
      }
      case "Connection": {
        const { connection, haltInput, handshake, onDrain, patience, replaceWire, watch, wire } = request
        const { proxy } = connection
        const portableTls = wire instanceof NodeWire ? wire.portableTls : undefined
        const subjectAs = (
          transfer: "socket" | "bytes",
          ends: EncodedEnds,
          allowHalfOpen: boolean,
          input?: Uint8Array
        ) => ({
          _tag: "Connection" as const,
          ends,
          proxy: proxy === undefined ? undefined : encodeValue(proxy),
          tlsStep: portableTls?.step,
          handshake: handshake?.left(),
          input,
          transfer,
          allowHalfOpen,
          watch: watch !== undefined,
          // Where the socket stays here, so does the output that waits.
          patience: transfer === "socket" ? patience : { ...patience, write: Infinity },
          tls: connection.tls,
          startTls: wire.startTls === undefined ? undefined : Duration.toMillis(wire.startTls.timeout)
        })
        const isMoved = wire instanceof NodeWire && wire.handOver((socket, wasRead) => {
          const ends = encodeEnds(connection, socket)
          const readBefore = wasRead ? socket.bytesRead : 0
          const input = wasRead ? haltInput() : undefined
          if (portableTls !== undefined) worker.knowTls(portableTls)
          let isElsewhere = false
          const isTaken = worker.postSocket(
            { ...message, subject: subjectAs("socket", ends, socket.allowHalfOpen, input) },
            socket,
            wasRead,
            () => {
              isElsewhere = true
              descriptors.movedAway()
            }
          )
          if (isTaken) {
            this.wire = new RemoteWire(this.id, ends, readBefore, (message) => worker.post(message), () => {
              if (isElsewhere) descriptors.movedBack()
            })
          }
          return isTaken
        })
        // The client is gone.
        if (handshake !== undefined && !isMoved) return this.notShaken(new Reset())
        pool.transfer = isMoved ? "socket" : "bytes"
        if (isMoved) replaceWire(this.wire!)
        else {
          worker.post({ ...message, subject: subjectAs("bytes", encodeEnds(connection), true) })
          watch?.()
        }
        return onDrain((expected) => this.tellDrain(expected))
      }
    }
  }

  /** Of a handshake that the handler has asked for, where the worker has the socket. */
  private upgrading: ((succeeded: boolean) => void) | undefined

  private notShaken(cause: unknown): void {
    ;(this.assignment.request as RemoteConnection).handshake!.failed(cause)
    this.finish(Exit.void)
  }

  private tellDrain(expected: number): void {
    if (!this.ended) this.worker!.post({ _tag: "Drain", id: this.id, expected })
  }

  /** Runs something until the job ends. */
  private help(effect: Effect.Effect<unknown, unknown>): Fiber.Fiber<unknown, unknown> {
    const fiber = Effect.runForkWith(this.context)(effect)
    ;(this.helpers ??= []).push(fiber)
    return fiber
  }

  // ---- what the worker says

  receive(message: FromWorker): void {
    const { request } = this.assignment
    switch (message._tag) {
      case "Result":
        return this.onResult(message)
      case "Interrupting":
        return this.hearing?.()
      case "Shaken": {
        const { timeout } = this.assignment
        const { handshake } = request as RemoteConnection
        this.wire!.tls = message.tls
        if (this.upgrading !== undefined) return this.upgrading(true)
        if (handshake === undefined) return
        handshake.succeeded()
        if (timeout !== undefined) this.allow(Duration.toMillis(timeout))
        return
      }
      case "Shaking":
        this.upgrading = (request as RemoteConnection).followHandshake()
        return
      case "NotShaken":
        this.wire!.release()
        return this.notShaken(decodeValue(message.cause))
      case "SocketEnd":
        return this.wire!.ended()
      case "SocketLost":
        return this.wire!.lost(decodeFailure(message.failure))
      case "Annotate":
        return this.answer(
          message.call,
          subjectOf(request as RemoteConnection | RemoteDatagram | RemoteMessage).annotate(
            message.key,
            decodeValue(message.value)
          )
        )
      case "Send": {
        const { call, payload, to } = message
        const { datagram } = request as RemoteDatagram
        return this.answer(call, to === undefined ? datagram.reply(payload) : datagram.send(decodeValue(to), payload))
      }
      case "Answer": {
        const { reply, sender } = (request as RemoteMessage).message as Message<unknown, unknown>
        const { call, how, value } = message
        switch (how) {
          case "reply":
            return this.answer(call, reply(decodeValue(value)))
          case "send":
            return this.answer(call, sender.send(decodeValue(value)))
          default:
            return this.answer(call, sender[how])
        }
      }
      default:
        return this.onConnection(message, request as RemoteConnection)
    }
  }

  released(bytesRead: number, bytesWritten: number): void {
    this.wire!.counted(bytesRead, bytesWritten)
    this.wire!.release()
    if (this.ended) this.worker!.forget(this)
  }

  private onConnection(message: FromWorker, { connection, onTimeout }: RemoteConnection): void {
    const { id } = this
    const worker = this.worker!
    switch (message._tag) {
      case "TimingOut": {
        const { deadline } = message
        return void this.help(Effect.map(onTimeout, () => worker.post({ _tag: "TimeOut", id, deadline })))
      }
      case "Resume":
        this.pumping = this.help(this.pump(connection))
        return
      case "Upgrade":
        return this.answer(message.call, this.upgrade(connection, message.goAhead))
      case "Taken":
        this.underWay -= message.length
        if (this.underWay < inputWindow) this.hasWindow?.openUnsafe()
        return
      case "Output":
        // It writes at once; what it may wait for is the peer.
        Effect.runForkWith(this.context)(Effect.matchCause(connection.write(message.bytes), {
          onSuccess: () => worker.post({ _tag: "Written", id, length: message.length }),
          onFailure: (cause) => worker.post({ _tag: "Lost", id, failure: failureIn(cause) })
        }))
        return
      case "OutputEnd":
        return Effect.runSync(connection.end)
      case "Closed":
        return Effect.runSync(message.how === "reset" ? connection.reset : connection.close)
    }
  }

  private pumping: Fiber.Fiber<unknown, unknown> | undefined

  /** The worker counts anew: what is on its way to it is discarded there. */
  private upgrade(connection: Connection, goAhead: Uint8Array | string): Effect.Effect<unknown, unknown> {
    return Effect.flatMap(this.pumping === undefined ? Effect.void : Fiber.interrupt(this.pumping), () => {
      this.underWay = 0
      this.hasWindow?.openUnsafe()
      return Effect.map(connection.upgradeTls(goAhead), () => connection.tls)
    })
  }

  /** Brings the input to the worker. It is never idle: the worker knows whether the handler is. */
  private pump(connection: Connection): Effect.Effect<void> {
    const { id } = this
    const worker = this.worker!
    return connection.busy(Effect.forever(
      Effect.flatMap(connection.pull, (bytes) => {
        this.underWay += bytes.length
        worker.post({ _tag: "Input", id, bytes })
        if (this.underWay < inputWindow) return Effect.void
        const window = this.hasWindow ??= Latch.makeUnsafe(false)
        window.closeUnsafe()
        return window.await
      })
    )).pipe(Effect.catchCause((cause) =>
      Effect.sync(() => {
        if (Cause.hasInterruptsOnly(cause)) return
        const isEnd = cause.reasons.some((reason) => Cause.isFailReason(reason) && Cause.isDone(reason.error))
        worker.post(isEnd ? { _tag: "InputEnd", id } : { _tag: "Lost", id, failure: failureIn(cause) })
      })
    ))
  }

  /** Does what the worker has asked for, and tells it what became of that. */
  private answer(call: number, effect: Effect.Effect<unknown, unknown>): void {
    Effect.runForkWith(this.context)(Effect.map(
      Effect.exit(effect),
      (exit) => this.worker!.post({ _tag: "Done", id: this.id, call, exit: encodeExit(exit) })
    ))
  }

  // ---- the end

  private onResult(
    { bytesRead, bytesWritten, exit, own, state }: Extract<FromWorker, { readonly _tag: "Result" }>
  ): void {
    const { handler, request } = this.assignment
    const decoded = decodeExit(exit, handler.error)
    if (request._tag === "Connection") {
      if (Exit.isFailure(decoded)) {
        for (const index of own) {
          const reason = decoded.cause.reasons[index]
          if (reason !== undefined && Cause.isFailReason(reason)) request.own(reason.error as object)
        }
      }
      if (state !== undefined) request.ended({ ...state, lost: state.lost && decodeFailure(state.lost) })
      this.wire?.counted(bytesRead, bytesWritten)
    }
    if (request._tag === "Message" && Exit.isFailure(decoded)) {
      for (const reason of decoded.cause.reasons) {
        const isOwn = Cause.isFailReason(reason) && reason.error instanceof ConnectionError &&
          reason.error.connection === request.message.sender.id
        if (isOwn) request.own(reason.error)
      }
    }
    this.finish(decoded)
  }

  handlerEnded(bytesRead: number, bytesWritten: number): void {
    const { wire } = this
    if (wire !== undefined) {
      wire.counted(bytesRead, bytesWritten)
      wire.isClosed = true
    }
    this.finish(Exit.void)
  }

  crashed(cause: Error): void {
    this.wire?.lost({ _tag: "Failed", cause })
    this.wire?.release()
    this.finish(this.failWith(new WorkerCrashed({ cause })))
  }

  private finish(exit: Exit.Exit<unknown, unknown>): void {
    if (this.ended) return
    this.ended = true
    this.leave?.()
    clearTimeout(this.timer)
    this.hearing?.()
    if (this.helpers !== undefined) { for (const helper of this.helpers) helper.interruptUnsafe() }
    const { timeout } = this.assignment
    this.worker?.receiver.requestEnded(this.id, exit)
    const { worker } = this
    if (worker === undefined) this.assignment.pool.numbers.giveBack(this.id)
    else {
      // Before the end is known: whoever comes next because of it finds the worker idle.
      if (this.wire === undefined || this.wire.isReleased) worker.forget(this)
      worker.done()
    }
    this.onEnd(this.timedOut ? this.failWith(new WorkerTimeout({ timeout: timeout! })) : exit)
    this.end?.openUnsafe()
  }

  /** The last deadline of a drain. */
  private readonly kill = (): void => {
    if (!this.ended) this.worker?.kill(new Error("the worker was killed: its server's drain was over"))
  }

  /** It has so many milliseconds, perhaps more than one timer can wait for. */
  private allow(millis: number): void {
    this.timer = setTimeout(
      () => millis > longestTimer ? this.allow(millis - longestTimer) : this.overrun(),
      Math.min(millis, longestTimer)
    )
  }

  /** It may take the time it was given, and what its finalizers need if they are quick. */
  private overrun(): void {
    const worker = this.worker!
    worker.takeReports()
    if (this.ended) return
    this.timedOut = true
    const cause = new WorkerTimeout({ timeout: this.assignment.timeout! })
    worker.post({ _tag: "Interrupt", id: this.id })
    this.timer = setTimeout(
      () => worker.kill(new Error("the worker was killed: a request overran its time", { cause })),
      heedingTime
    )
  }

  /** Completes when the handler has ended, in the worker too. */
  get interrupt(): Effect.Effect<void> {
    if (this.ended) return Effect.void
    const { worker } = this
    if (worker === undefined || !this.running) {
      return Effect.sync(() => this.finish(Exit.void))
    }
    worker.post({ _tag: "Interrupt", id: this.id })
    this.hearing = this.assignment.pool.expectHearing(worker, `\`${this.assignment.handler.name}\``)
    this.end = Latch.makeUnsafe(false)
    return this.end.await
  }
}

const subjectOf = (request: RemoteConnection | RemoteDatagram | RemoteMessage): Pick<Connection, "annotate"> =>
  request._tag === "Connection"
    ? request.connection
    : request._tag === "Datagram"
    ? request.datagram
    : request.message.sender

const failureIn = (cause: Cause.Cause<ConnectionError | Cause.Done>): WireFailure => {
  const [reason] = cause.reasons
  const error = reason !== undefined && Cause.isFailReason(reason) ? reason.error : undefined
  const why = error?._tag === "ConnectionError" ? error.reason : undefined
  // A peer that does not read has its connection ended here, with `Timeout`: so it is there.
  return why?._tag === "Failed" || why?._tag === "Timeout"
    ? encodeFailure({ _tag: "Failed", cause: why._tag === "Failed" ? why.cause : why })
    : { _tag: "Reset" }
}
