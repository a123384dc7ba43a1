/**
 * The one implementation of `Connection`, over any transport's `Wire`. One input buffer, at most one waiting read; an Effect
 * is suspended only where there is really nothing to do yet. Errors are built when somebody observes them.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as NetAddress from "effect/net/NetAddress"
import * as Result from "effect/Result"
import * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import type * as Connection from "../Connection.ts"
import {
  Closed,
  ConnectionError,
  Failed,
  HandshakeFailed,
  LimitExceeded,
  Reset,
  Timeout,
  TlsUnavailable,
  UnexpectedEnd
} from "../ConnectionError.ts"
import type { Header } from "../ProxyProtocol.ts"
import type { Loan, Preface, Prefaced, Receiver, StartTls, Wire, WireFailure } from "../StreamTransport.ts"
import type { ConnectionState, Patience } from "../WorkerDispatch.ts"
import { InputBuffer, noInput } from "./inputBuffer.ts"
import { joinBytes } from "./joinBytes.ts"
import { done, Parking, succeed } from "./parking.ts"
import * as Reads from "./reads.ts"
import { makeSocket } from "./socket.ts"

/**
 * Input that nobody has asked for yet is held up to here, then the wire is paused: a transport delivers in chunks of its
 * own size, and pausing after every one would cost more than it saves.
 */
const readAhead = 65_536

/** Chunks up to this size in all are joined into one write; a copy of more costs more than a system call. */
const joinLimit = 65_536

/** Output that waits for more is handed over from here on. */
const batchLimit = 16_384

const owners = new WeakMap<object, ConnectionImpl>()

/** Whose borrowing read has the bytes of the delivery under way, if one has: deliveries are synchronous, one at a time. */
let lender: ConnectionImpl | undefined

const lend = (connection: ConnectionImpl): void => {
  lender?.keepLent()
  lender = connection
}

/** What the owner of a connection (a server, a client's scope) wants to know of it. */
export interface Owner {
  /** Opens when the owner drains. */
  readonly draining: Latch.Latch
  /** The peer has finished sending, or the connection is lost; told once the reads know. */
  readonly onGone?: ((how: "end" | "reset") => void) | undefined
  /** From now on, output waits for the peer to take some of it. Says since when, if that has a deadline. */
  readonly onOutputWaits?: (() => number | undefined) | undefined
  readonly onReleased: () => void
  /** Follows a handshake. */
  readonly observeHandshake?: (<A, E>(name: string, shaking: Effect.Effect<A, E>) => Effect.Effect<A, E>) | undefined
}

export type ReadDeadline = NonNullable<ConnectionState["timedOut"]>

export class ConnectionImpl implements Connection.Connection, Receiver {
  // What every exchange looks at stands first and together: with thousands of connections, each line of memory counts.
  wire: Wire
  private input = noInput
  /** Where the fiber of the waiting read is, and that read. Its fiber may have been interrupted: `isReading` knows. */
  private readonly reader = new Parking<any, ConnectionError | Cause.Done>(this)
  private waiting: Reads.Read<any> | undefined
  /** The chunk that is handed over to the waiting read, where it takes chunks as they come. */
  private arrived: Uint8Array | undefined
  /** Is it the `socket` view's read, whose owner may be computing an answer? */
  private waitingAhead = false
  /** What the waiting read has come to, where it was made to look without its fiber. */
  private found: Effect.Effect<any> | undefined
  private closedHere = false
  private flowing = false
  private delivering = false
  /** The loan of the delivery under way. */
  private loan: Loan | undefined
  /** Output that waits for more, see `writeLater`. */
  private batch: Array<Uint8Array | string> | undefined
  /** The end of it, which is text: to strings, strings are added. */
  private batchText = ""
  /** Has input arrived since something was last written? Then an answer may be owed. */
  private unanswered = false
  /** Has input ever arrived? */
  private heard = false
  /** When something last happened, kept only where a deadline needs it. */
  private now: (() => number) | undefined
  /** How the connection was lost, if it was. */
  lost: WireFailure | undefined
  /** Has the wire been released? */
  released = false
  private ended = false
  private outputEnded = false
  private timedOut: ReadDeadline | undefined
  /** Is a waiting read to be ended when it finds the connection idle? */
  private endWhenIdle = false

  readonly id: number
  private readonly owner: Owner
  private writers: Array<() => void> | undefined
  private batchLength = 0
  /** Is the output above its high-water mark since a batch has left? */
  private above = false
  private destroyed = false
  private workInProgress = 0
  /** Does the handler run in a worker? */
  private remote = false
  /** Is it a preface that is read? That has its own time. */
  private prefacing = false
  /** Did a drain end a read? */
  drained = false
  annotations: Map<string, unknown> | undefined
  proxy: Header | undefined
  private lastActivity = 0
  /** Since when the waiting read has had a part of what it asks for; within `busy`, since when it waits. */
  private begunAt: number | undefined
  /** Has a read's deadline passed? */
  private overdue = false
  /** Since when nothing of the output was taken, while some waits for that, and how much had been taken by then. */
  private stalledSince: number | undefined
  private takenBefore = 0
  /** Until when a drain leaves a peer that has said nothing yet the time to do so. */
  private expectedUntil: number | undefined

  constructor(id: number, wire: Wire, owner: Owner) {
    this.wire = wire
    this.id = id
    this.owner = owner
    wire.start(this)
  }

  /** Goes on with another wire: one that a handshake has made of the first, or that leads to a worker. */
  replaceWire(wire: Wire): void {
    this.wire = wire
    wire.start(this)
  }

  get peer(): NetAddress.SocketAddress {
    return this.proxy?.source ?? this.wire.peer
  }

  get local(): NetAddress.SocketAddress {
    return this.proxy?.destination ?? this.wire.local
  }

  get tls(): Connection.TlsInfo | undefined {
    return this.wire.tls
  }

  // ---- what the wire reports

  onData(chunk: Uint8Array, loan?: Loan): void {
    if (this.closedHere || chunk.length === 0) return
    this.unanswered = true
    this.heard = true
    if (this.now !== undefined) this.lastActivity = this.now()
    this.delivering = true
    this.loan = loan
    if (!this.handOver(chunk)) {
      if (this.input === noInput) this.input = new InputBuffer()
      this.input.push(chunk, loan)
      const taken = this.waiting !== undefined && (this.waiting.handles ? this.handleHere() : this.reader.wake())
      if (!taken && this.input.length > readAhead && this.flowing) {
        this.flowing = false
        this.wire.pause()
      }
    }
    this.delivering = false
    if (this.batch !== undefined) this.flush()
    if (loan === undefined) return
    this.keepLent()
    this.loan = undefined
    this.input.keep()
  }

  /** Gives a chunk to a waiting read that takes it as it is, if there is one. */
  private handOver(chunk: Uint8Array): boolean {
    if (this.waiting?.direct === undefined || this.input.length > 0) return false
    this.arrived = chunk
    const taken = this.reader.wakeToTake()
    this.arrived = undefined
    return taken
  }

  /** The fiber of the waiting read takes what was handed over. */
  onTaken(): any {
    const chunk = this.arrived!
    const read = this.waiting!
    this.arrived = undefined
    this.waiting = undefined
    return read.direct!(chunk, this.loan)
  }

  /** Lets the waiting read look at what has arrived where it stands, and wakes its fiber only if something came of it. */
  private handleHere(): boolean {
    const { reader } = this
    const read = this.waiting!
    if (!reader.parked) return reader.wake()
    this.waiting = undefined
    let found: Effect.Effect<any> | undefined
    try {
      const result = reader.within(read.step, this.input)
      if (result !== undefined) found = Effect.succeed(result)
    } catch (defect) {
      found = Effect.die(defect)
    }
    // What it has handled may have interrupted it.
    if (!reader.parked) return true
    this.waiting = read
    if (found !== undefined || this.mustEnd) {
      this.found = found
      return reader.wake()
    }
    this.keepWaiting()
    return true
  }

  onEnd(): void {
    this.ended = true
    this.recheckRead()
    this.owner.onGone?.("end")
  }

  onError(failure: WireFailure): void {
    this.lost ??= failure
    this.recheckRead()
    this.wakeWriters()
    this.owner.onGone?.("reset")
  }

  onDrain(): void {
    if (this.now !== undefined) this.lastActivity = this.now()
    this.above = false
    this.wakeWriters()
  }

  onClose(): void {
    if (this.released) return
    this.released = true
    this.recheckRead()
    this.wakeWriters()
    this.owner.onReleased()
  }

  // ---- reads

  /** What has arrived, for a read of somebody else's making that goes on by itself where one of its steps has ended. */
  get buffered(): InputBuffer {
    return this.input
  }

  read<A>(
    read: Reads.Read<A>,
    readsAhead: boolean
  ): Effect.Effect<A, ConnectionError | Cause.Done> {
    return Effect.withFiber((fiber) => {
      if (this.isReading) {
        return Effect.die(
          new Error(
            `connection ${this.id}: a read is already waiting; one fiber at a time may read, let the others get their input from it`
          )
        )
      }
      if (lender === this) lender = undefined
      return this.tryRead(read, readsAhead, fiber) ?? this.wait(read, readsAhead, fiber)
    })
  }

  private wait<A>(
    read: Reads.Read<A>,
    readsAhead: boolean,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<A, ConnectionError | Cause.Done> {
    this.waiting = read
    this.waitingAhead = readsAhead
    if (this.batch !== undefined) this.flush()
    if (this.now !== undefined) {
      this.lastActivity = this.now()
      this.begunAt = this.input.length > 0 || this.workInProgress > 0 ? this.lastActivity : undefined
    }
    if (!this.flowing) {
      this.flowing = true
      this.wire.resume()
    }
    return this.reader.park(fiber)
  }

  private get isReading(): boolean {
    return this.waiting !== undefined && this.reader.occupied
  }

  /** The fiber of the waiting read, woken, looks for itself what there is. */
  onWoken(fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<any, ConnectionError | Cause.Done> {
    const { found } = this
    const read = this.waiting!
    this.waiting = undefined
    this.found = undefined
    const result = found ?? this.tryRead(read, this.waitingAhead, fiber)
    if (result !== undefined) return result
    this.waiting = read
    this.keepWaiting()
    return this.reader.park(fiber)
  }

  private keepWaiting(): void {
    if (this.now !== undefined && this.input.length > 0) this.begunAt ??= this.lastActivity
  }

  /** Could a read that finds nothing have to end? */
  private get mustEnd(): boolean {
    return this.closedHere || this.lost !== undefined || this.ended || this.released || this.timedOut !== undefined ||
      this.endWhenIdle
  }

  /** The result of a read, or `undefined` where it has to wait. What has arrived comes before what has happened since. */
  private tryRead<A>(
    read: Reads.Read<A>,
    readsAhead: boolean,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<A, ConnectionError | Cause.Done> | undefined {
    if (this.closedHere) {
      return this.stalled ? this.failLost(this.lost!) : this.fail(new Closed({ what: "connection" }))
    }
    const result = read.step(this.input)
    if (result !== undefined) return result instanceof LimitExceeded ? this.fail(result) : succeed(fiber, result)
    if (this.lost !== undefined) return this.failLost(this.lost)
    if (this.ended || this.released) return read.end(this.input, this)
    if (this.timedOut !== undefined) return this.fail(new Timeout({ deadline: this.timedOut }))
    if (this.endWhenIdle && this.isIdle(readsAhead)) {
      this.drained = true
      return read.end(this.input, this)
    }
    return undefined
  }

  /** Something other than input has happened: it may end a waiting read. */
  private recheckRead(): void {
    if (this.waiting !== undefined) this.reader.wake()
  }

  /** Borrowed bytes that are still in use when their delivery ends, or wait to be sent, become the handler's for good. */
  keepLent(): void {
    if (lender !== this) return
    lender = undefined
    this.loan?.keep?.()
  }

  private isIdle(readsAhead: boolean): boolean {
    return this.input.length === 0 && this.workInProgress === 0 && !(readsAhead && this.unanswered) &&
      (this.expectedUntil === undefined || this.heard)
  }

  // Members that carry a function are made on first use and then kept: they can be passed around without their object, and
  // a connection that uses three of them pays for three.

  private _pull: Connection.Connection["pull"] | undefined
  get pull(): Connection.Connection["pull"] {
    return this._pull ??= this.read(Reads.pull, false)
  }

  private _pullBorrowed: Connection.Connection["pullBorrowed"] | undefined
  get pullBorrowed(): Connection.Connection["pullBorrowed"] {
    return this._pullBorrowed ??= this.read(Reads.pullBorrowed(() => lend(this)), false)
  }

  private _readLine: Connection.Connection["readLine"] | undefined
  get readLine(): Connection.Connection["readLine"] {
    return this._readLine ??= (options) =>
      options?.maxLength === undefined
        ? this.defaultLine
        : Effect.suspend(() => this.read(Reads.line(options.maxLength), false))
  }

  private _defaultLine: Effect.Effect<string, ConnectionError | Cause.Done> | undefined
  private get defaultLine(): Effect.Effect<string, ConnectionError | Cause.Done> {
    return this._defaultLine ??= this.read(Reads.line(), false)
  }

  get readExactly(): Connection.Connection["readExactly"] {
    return (length, options) => Effect.suspend(() => this.read(Reads.exactly(length, options?.maxLength), false))
  }

  get readUntil(): Connection.Connection["readUntil"] {
    return (delimiter, options) => Effect.suspend(() => this.read(Reads.until(delimiter, options?.maxLength), false))
  }

  get readAll(): Connection.Connection["readAll"] {
    // Its `end` never reports the end of input: that is its success.
    return (options) =>
      Effect.suspend(() =>
        this.read(Reads.all(options?.maxLength), false) as Effect.Effect<Uint8Array, ConnectionError>
      )
  }

  get bytes(): Connection.Connection["bytes"] {
    return Stream.fromPull(Effect.succeed(this.read(Reads.pullArray, false)))
  }

  get lines(): Connection.Connection["lines"] {
    return (options) => Stream.fromPull(Effect.sync(() => this.read(Reads.lines(options?.maxLength), false)))
  }

  // ---- writes

  private _write: Connection.Connection["write"] | undefined
  get write(): Connection.Connection["write"] {
    return this._write ??= (chunk) => Effect.withFiber((fiber) => this.writeNow(chunk) ?? done(fiber))
  }

  /** What is left to wait for, or a failure; `undefined` where it is done. */
  writeNow(chunk: Uint8Array | string): Effect.Effect<void, ConnectionError> | undefined {
    const failure = this.outputFailure()
    if (failure !== undefined || chunk.length === 0) return failure
    this.unanswered = false
    if (this.now !== undefined) this.lastActivity = this.now()
    if (this.batch !== undefined || this.input.length > 0) return this.writeLater(chunk)
    const below = this.wire.write(chunk)
    // It may be borrowed bytes that wait to be sent, this connection's or those of one that relays to it.
    if (lender !== undefined && this.wire.unsent > 0) lender.keepLent()
    if (this.endWhenIdle) this.recheckRead()
    return below ? undefined : this.drain
  }

  /**
   * Answers while more requests lie in the buffer: they leave together, in one system call instead of one each (bench "lines
   * pipelined": 0.1 of raw node:net without this). They leave when the last request is taken, when a read has to wait, when
   * they are many, or else when the running code lets go.
   */
  private writeLater(chunk: Uint8Array | string): Effect.Effect<void, ConnectionError> | undefined {
    if (this.batch === undefined) {
      this.batch = []
      this.batchLength = 0
      if (!this.delivering) queueMicrotask(() => this.flush())
    }
    // Strings become one string: cheaper than a list that is joined.
    if (typeof chunk === "string") this.batchText += chunk
    else {
      if (this.batchText !== "") this.batch.push(this.batchText)
      this.batchText = ""
      this.batch.push(new Uint8Array(chunk))
    }
    this.batchLength += chunk.length
    if (this.input.length > 0 && this.batchLength < batchLimit && !this.above) return undefined
    return this.flush() ? undefined : this.drain
  }

  /** Hands over what was written later; `false` where the output is above its high-water mark then. */
  flush(): boolean {
    const { batch } = this
    if (batch === undefined) return true
    this.batch = undefined
    if (this.batchText !== "") batch.push(this.batchText)
    this.batchText = ""
    if (this.lost !== undefined || this.released || this.destroyed) return true
    const joined = join(batch)
    const below = joined === undefined
      ? batch.reduce((_, chunk) => this.wire.write(chunk), true)
      : this.wire.write(joined)
    // Whoever hands it over is often not who can wait: the next write does. The peer's time begins here.
    const isFirst = !below && !this.above && this.writers === undefined
    this.above = !below
    if (isFirst) this.waitForPeer()
    if (this.endWhenIdle) this.recheckRead()
    return below
  }

  private _writeAll: Connection.Connection["writeAll"] | undefined
  get writeAll(): Connection.Connection["writeAll"] {
    return this._writeAll ??= (chunks) =>
      Effect.withFiber((fiber) => {
        const joined = join(chunks)
        // All are handed over before the first wait: no other fiber's write can come between them.
        const left = joined === undefined
          ? chunks.map((chunk) => this.writeNow(chunk)).findLast((left) => left !== undefined)
          : this.writeNow(joined)
        return left ?? done(fiber)
      })
  }

  get sink(): Connection.Connection["sink"] {
    return Sink.forEachArray(this.writeAll)
  }

  /** Waits until the output buffer is below its high-water mark. */
  private get drain(): Effect.Effect<void, ConnectionError> {
    return Effect.callback<void, ConnectionError>((resume) => {
      const wake = () =>
        resume(
          this.lost !== undefined || this.released || this.destroyed ? this.outputFailure()! : Effect.void
        )
      const writers = this.writers ??= []
      if (writers.push(wake) === 1) this.waitForPeer()
      return Effect.sync(() => {
        const index = writers.indexOf(wake)
        if (index !== -1) writers.splice(index, 1)
        if (writers.length === 0 && this.writers === writers) this.writers = undefined
      })
    })
  }

  private waitForPeer(): void {
    this.takenBefore = this.taken
    this.stalledSince = this.owner.onOutputWaits?.()
  }

  private wakeWriters(): void {
    const writers = this.writers
    if (writers === undefined) return
    this.writers = undefined
    for (const wake of writers) wake()
  }

  outputFailure(): Effect.Effect<never, ConnectionError> | undefined {
    if (this.lost !== undefined) return this.failLost(this.lost)
    if (this.closedHere) return this.fail(new Closed({ what: "connection" }))
    if (this.outputEnded) return this.fail(new Closed({ what: "output" }))
    if (this.released) return this.fail(new Reset())
    return undefined
  }

  get end(): Effect.Effect<void> {
    return Effect.sync(() => {
      if (this.outputEnded || this.closedHere) return
      this.flush()
      this.outputEnded = true
      this.wire.end()
    })
  }

  get close(): Effect.Effect<void> {
    return Effect.sync(() => this.closeNow())
  }

  get reset(): Effect.Effect<void> {
    return Effect.sync(() => this.destroyNow(true))
  }

  get upgradeTls(): Connection.Connection["upgradeTls"] {
    return (goAhead = "") =>
      Effect.suspend((): Effect.Effect<void, ConnectionError | TlsUnavailable> => {
        const failure = this.outputFailure()
        if (failure !== undefined) return failure
        const { startTls, tls } = this.wire
        if (startTls === undefined) {
          return Effect.fail(new TlsUnavailable({ why: tls === undefined ? "transport" : "already" }))
        }
        if (this.isReading) {
          return Effect.die(new Error(`connection ${this.id}: \`upgradeTls\` while a read waits; end that first`))
        }
        if (this.ended) return this.fail(new UnexpectedEnd({ operation: "upgradeTls", received: 0 }))
        return this.shakeHands(startTls, goAhead)
      })
  }

  /** From the discarding to the handshake nothing is read: what comes after the go-ahead is all TLS's. */
  private shakeHands(
    { run, timeout }: StartTls,
    goAhead: Uint8Array | string
  ): Effect.Effect<void, ConnectionError> {
    const { flowing, wire } = this
    this.flush()
    this.flowing = false
    wire.pause()
    this.input.clear()
    const shaking = Effect.suspend(() => run(goAhead)).pipe(
      Effect.timeoutOrElse({
        duration: timeout,
        orElse: () => this.fail(new Timeout({ deadline: "handshakeTimeout" }))
      })
    )
    return (this.owner.observeHandshake?.("tls", shaking) ?? shaking).pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (Exit.isFailure(exit)) return this.lose(Cause.squash(exit.cause))
          this.replaceWire(exit.value)
          if (this.destroyed) return exit.value.destroy(false)
          if (this.closedHere) return exit.value.close()
          if (flowing) this.watch()
        })
      ),
      Effect.catch((cause) =>
        cause instanceof ConnectionError ? Effect.fail(this.own(cause)) : this.fail(new HandshakeFailed({ cause }))
      ),
      Effect.asVoid
    )
  }

  /** A handshake has ended the connection: its handler, which has asked for that, hears of it there. */
  private lose(cause: unknown): void {
    this.lost ??= { _tag: "Failed", cause }
    this.onClose()
  }

  /** Orderly close, from here or from the server at the end of the handler. Idempotent. */
  closeNow(): void {
    if (this.closedHere) return
    this.flush()
    this.closeInput()
    this.wire.close()
    if (!this.released && this.isFlushing) this.waitForPeer()
  }

  destroyNow(reset: boolean): void {
    if (this.destroyed) return
    this.destroyed = true
    this.closeInput()
    this.wire.destroy(reset)
    this.wakeWriters()
  }

  private closeInput(): void {
    this.closedHere = true
    this.input.clear()
    this.recheckRead()
  }

  // ---- the server's side

  get draining(): Effect.Effect<void> {
    return this.owner.draining.await
  }

  /**
   * From now on a read that finds the connection idle sees end of input; one that waits and is idle sees it now. A peer that
   * has said nothing yet has until `expectedUntil` to do so, if that is given.
   */
  startDrain(expectedUntil?: number): void {
    this.endWhenIdle = true
    this.expectedUntil = expectedUntil
    this.recheckRead()
  }

  get busy(): Connection.Connection["busy"] {
    return (effect) =>
      Effect.suspend(() => {
        this.beginWork()
        return Effect.ensuring(effect, Effect.sync(() => this.endWork()))
      })
  }

  beginWork(): void {
    this.workInProgress++
  }

  endWork(): void {
    this.workInProgress--
    if (this.endWhenIdle) this.recheckRead()
  }

  /** A read that waits does so as if from now on. */
  touch(): void {
    if (this.now === undefined) return
    this.lastActivity = this.now()
    this.begunAt = this.input.length > 0 || this.workInProgress > 0 ? this.lastActivity : undefined
  }

  /** Keeps track of activity from now on, for the deadlines of reads. */
  trackActivity(now: () => number): void {
    this.now = now
    this.lastActivity = now()
  }

  /**
   * The deadline that the waiting read has overrun, told once; else in how many milliseconds something could be due. What
   * is due otherwise is done: the connection of a peer that does not read ends.
   */
  checkDeadlines({ idle, read, write }: Patience, now: number): ReadDeadline | number {
    const left = Math.min(this.checkOutput(write, now), this.checkExpected(now))
    if (this.overdue || this.closedHere || this.remote) return left
    if (!this.isReading || this.prefacing) return Math.min(left, idle, read)
    const idleLeft = this.lastActivity + idle - now
    const readLeft = (this.begunAt ?? now) + read - now
    if (idleLeft > 0 && readLeft > 0) return Math.min(left, idleLeft, readLeft)
    this.overdue = true
    return idleLeft <= 0 ? "idleTimeout" : "readTimeout"
  }

  /** What the system takes of a large write is seen only by looking: so it is looked at more often than once. */
  private checkOutput(limit: number, now: number): number {
    if (this.released || limit === Infinity || (this.writers === undefined && !this.above && !this.isFlushing)) {
      this.stalledSince = undefined
      return Infinity
    }
    const { taken } = this
    if (this.stalledSince === undefined || taken !== this.takenBefore) {
      this.stalledSince = now
      this.takenBefore = taken
    }
    const left = this.stalledSince + limit - now
    if (left > 0) return Math.min(left, limit / 4)
    this.lost = { _tag: "Failed", cause: new Timeout({ deadline: "writeTimeout" }) }
    // Before a handler hears of it, and ends: there is no orderly close any more.
    this.closedHere = true
    this.owner.onGone?.("reset")
    // With a reset, so that the system does not keep for long what the peer does not take.
    this.destroyNow(true)
    return Infinity
  }

  /** Has everything been written that will be, and does some of it wait? */
  private get isFlushing(): boolean {
    return this.closedHere && this.wire.unsent > 0
  }

  /** How much of the output the system has taken. */
  private get taken(): number {
    return this.wire.bytesWritten - this.wire.unsent
  }

  private checkExpected(now: number): number {
    if (this.expectedUntil === undefined || this.heard) return Infinity
    if (now < this.expectedUntil) return this.expectedUntil - now
    this.startDrain()
    return Infinity
  }

  /** Ends the waiting read, and all later ones, with `Timeout`. */
  timeOut(deadline: ReadDeadline): void {
    this.timedOut = deadline
    this.recheckRead()
  }

  /** The deadline of reads that its peer has overrun, if it has. */
  get overrun(): ReadDeadline | undefined {
    return this.timedOut
  }

  /** Was it ended because its peer did not read? */
  get stalled(): boolean {
    return this.lost?._tag === "Failed" && this.lost.cause instanceof Timeout
  }

  /** Reads ahead from now on, so that the peer's end is noticed while nobody reads. */
  watch(): void {
    if (this.flowing || this.released) return
    this.flowing = true
    this.wire.resume()
  }

  /** Takes off what is said ahead of everything else. */
  readPreface({ look }: Preface): Effect.Effect<void, unknown> {
    this.prefacing = true
    const read: Reads.Read<Result.Result<Prefaced, unknown>> = {
      step: (input) => look(input.peek(input.length), this.peer, false),
      end: (input) => Effect.sync(() => look(input.peek(input.length), this.peer, true)!)
    }
    return Effect.flatMap(this.read(read, false), (seen) => {
      this.prefacing = false
      if (Result.isFailure(seen)) return Effect.fail(seen.failure)
      const { length, proxy } = seen.success
      if (length > 0) this.input.skip(length)
      this.proxy = proxy ?? this.proxy
      // Not from within the delivery: a socket cannot be given to a worker while it is read.
      return Effect.yieldNow
    })
  }

  /** Reads nothing more, and shows what was read and nobody has taken. */
  haltInput(): Uint8Array {
    if (this.flowing) {
      this.flowing = false
      this.wire.pause()
    }
    return new Uint8Array(this.input.peek(this.input.length))
  }

  /** The same, for a handshake that takes it. */
  takeInput(): Uint8Array {
    const bytes = this.haltInput()
    this.input.clear()
    return bytes
  }

  /** The handler runs in a worker from now on, where its silence is watched. */
  beRemote(): void {
    this.remote = true
  }

  /** What a worker has found, while it had the connection. */
  adopt({ drained, lost, timedOut }: ConnectionState): void {
    this.lost ??= lost
    this.drained ||= drained
    this.timedOut ??= timedOut
  }

  get annotate(): Connection.Connection["annotate"] {
    return (key, value) =>
      Effect.sync(() => {
        ;(this.annotations ??= new Map()).set(key, value)
      })
  }

  private _socket: Socket.Socket | undefined
  get socket(): Socket.Socket {
    return this._socket ??= makeSocket(this, this.read(Reads.pull, true))
  }

  // ---- errors

  fail(reason: ConnectionError["reason"]): Effect.Effect<never, ConnectionError> {
    return Effect.fail(this.own(new ConnectionError({ reason, connection: this.id, peer: formatAddress(this.peer) })))
  }

  /** Remembers an error as this connection's. */
  own<E extends object>(error: E): E {
    owners.set(error, this)
    return error
  }

  /** Is it this connection that failed with `error`, and not another one that its handler has to do with? */
  owns(error: unknown): boolean {
    return typeof error === "object" && error !== null && owners.get(error) === this
  }

  private failLost(failure: WireFailure): Effect.Effect<never, ConnectionError> {
    if (failure._tag === "Reset") return this.fail(new Reset())
    return this.fail(failure.cause instanceof Timeout ? failure.cause : new Failed({ cause: failure.cause }))
  }
}

const join = (chunks: ReadonlyArray<Uint8Array | string>): Uint8Array | string | undefined => {
  if (chunks.length === 1) return chunks[0]!
  if (chunks.every((chunk) => typeof chunk === "string")) return chunks.join("")
  let length = 0
  for (const chunk of chunks) length += chunk.length
  if (length > joinLimit) return undefined
  return joinBytes(chunks)
}

/**
 * An address for people: `127.0.0.1:7`, `[::1]:7`, `/run/x.sock`, `unix (unnamed)`. Clients choose the paths of their sockets: one
 * with a line end in it is no line of its own in a log. Different addresses stay different.
 */
export const formatAddress = (address: NetAddress.SocketAddress): string => {
  if (!NetAddress.isUnixPathAddress(address)) return NetAddress.formatSocketAddress(address)
  return address.path === "" ? "unix (unnamed)" : address.path.replaceAll(/[\\\p{Cc}]/gu, escapeCharacter)
}

const escapeCharacter = (character: string): string =>
  character === "\\" ? "\\\\" : `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`

/** Closes a client for which there is no server any more. */
export const discard = (wire: Wire): void => {
  new ConnectionImpl(0, wire, { draining: Latch.makeUnsafe(false), onReleased: () => {} }).destroyNow(false)
}
