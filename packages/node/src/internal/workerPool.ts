/**
 * The workers of a pool: started when they are needed, given work, replaced when they end. A worker is `starting` until it
 * has loaded this pool's handlers, takes up to `concurrency` jobs at a time, is `retiring` once it has had as many as
 * `recycleAfter` says, and is gone when the system says so. Whoever comes while all are busy or starting waits in line.
 */
import { HandlerNotFound, ListenError, WorkersNotStarted } from "@socketserver/core/ListenError"
import type { WorkerEvent } from "@socketserver/core/ServerEvent"
import type { WorkersInfo } from "@socketserver/core/WorkerDispatch"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { decodeExit } from "./exits.ts"
import { JobNumbers, JobTable } from "./jobTable.ts"
import { type Reported, Reports } from "./reports.ts"
import { makeReceiver, type Receiver, type ReporterOptions } from "./telemetry.ts"
import type { PlainTls, PortableTls } from "./tlsOptions.ts"
import { type HandleOptions, spawn, type WorkerHandle } from "./workerHandle.ts"
import type { FromWorker, LoadOutcome, ToWorker } from "./workerProtocol.ts"

/** How long a worker may take to start and to load a handler. */
const startTimeout = 30_000
/** How long a worker may take to release the services of its handlers, when it is not needed any more. */
const stopTimeout = 1_000
/** How long a worker may take to hear of an interruption. One that computes does not hear, and is killed. */
const hearingTimeout = 1_000
/** The first pause after a worker could not be started; it doubles each time, up to the second. */
const firstPause = 100
const longestPause = 10_000
/** In how many milliseconds there is another look at what threads have reported. */
const lookInterval = 2

export interface PoolOptions extends HandleOptions {
  readonly maxWorkers: number
  readonly minWorkers: number
  readonly concurrency: number
  readonly recycleAfter: number
  readonly reporter: ReporterOptions
}

/** What a worker does for somebody. */
export interface Job {
  readonly id: number
  /** What it runs with, for its logs, metrics and spans. */
  readonly context: Context.Context<never>
  readonly receive: (message: FromWorker) => void
  /** The handler of a connection has ended with nothing to say. */
  readonly handlerEnded: (bytesRead: number, bytesWritten: number) => void
  /** Nothing is left of the connection whose socket the worker had. */
  readonly released: (bytesRead: number, bytesWritten: number) => void
  /** The worker is gone, or has not got it. */
  readonly crashed: (cause: Error) => void
}

/** What a worker must know before it can run anything. */
interface HandlerName {
  readonly module: string
  readonly name: string
}

const isReady: LoadOutcome = { _tag: "Ready" }

export class PooledWorker {
  readonly number: number
  readonly pool: Pool
  readonly jobs = new JobTable<Job>()
  /** How many of them are not done yet; the others' connections are being closed. */
  load = 0
  private served = 0
  state: "starting" | "ready" | "retiring" | "ended" = "starting"
  /** Why it is being ended, where that is our doing. */
  ending: { readonly how: "Stopped" | "Recycled" | "Killed"; readonly cause: Error } | undefined
  readonly receiver: Receiver
  private handle: WorkerHandle
  /** Of a thread. */
  private readonly reports: Reports | undefined
  private timer: NodeJS.Timeout | undefined
  /** The handlers that it has. One that it could not load it is told to load again, when that is wanted again. */
  private readonly loaded = new Set<number>()
  private readonly loading = new Map<number, Array<(outcome: LoadOutcome) => void>>()

  constructor(pool: Pool, number: number) {
    this.pool = pool
    this.number = number
    this.receiver = pool.makeReceiver(this.jobs)
    this.reports = pool.options.kind === "thread" ? new Reports() : undefined
    this.handle = spawn(pool.options, {
      onMessage: (message) => this.receive(message),
      onLost: (message) => {
        if ("id" in message) this.jobs.get(message.id)?.crashed(new Error("the worker has no descriptors left"))
      },
      onEnd: (cause) => this.onEnd(cause)
    })
    this.timer = setTimeout(
      () => this.fail(new Error(`a worker did not start within ${startTimeout / 1_000} seconds`)),
      startTimeout
    )
  }

  get hasRoom(): boolean {
    return this.state === "ready" && this.load < this.pool.options.concurrency
  }

  private received = 0
  private receive(message: FromWorker | null | undefined): void {
    // A handler's own code may post something, too.
    if (message?._tag === undefined) return
    // What is older comes first.
    this.takeReports()
    this.received++
    this.hear(message)
    this.takeReports()
  }

  private hear(message: FromWorker): void {
    switch (message._tag) {
      case "Started": {
        this.post({ _tag: "Init", reporter: this.pool.options.reporter, reports: this.reports?.memory })
        const { required } = this.pool
        if (required.size === 0) return this.becomeReady()
        let missing = required.size
        for (const handler of required) {
          this.whenLoaded(handler, (outcome) => {
            if (outcome._tag !== "Ready") this.fail(failureOf(outcome, this.pool.handlers[handler]!))
            else if (--missing === 0) this.becomeReady()
          })
        }
        return
      }
      case "Loaded": {
        const { handler, outcome } = message
        const waiting = this.loading.get(handler) ?? []
        this.loading.delete(handler)
        if (outcome._tag === "Ready") this.loaded.add(handler)
        for (const then of waiting) then(outcome)
        return
      }
      case "Report":
        return this.receiver.receive(message.report)
      case "Reported":
        return this.pool.look()
      case "Ended": {
        const { connections, released } = message
        for (let i = 0; i < connections.length; i += 3) {
          this.onReport("ended", connections[i]!, connections[i + 1]!, connections[i + 2]!)
        }
        for (let i = 0; i < released.length; i += 3) {
          this.onReport("released", released[i]!, released[i + 1]!, released[i + 2]!)
        }
        return
      }
      default:
        this.jobs.get(message.id)?.receive(message)
    }
  }

  private readonly onReport = (what: Reported, id: number, bytesRead: number, bytesWritten: number): void => {
    const job = this.jobs.get(id)
    if (what === "ended") job?.handlerEnded(bytesRead, bytesWritten)
    else job?.released(bytesRead, bytesWritten)
  }

  private hasReported = false
  /** Takes what the thread has reported, if it has. */
  takeReports(received = this.received): void {
    if (this.reports?.take(received, this.onReport) === true) this.hasReported = true
  }

  /** Is there to be another look in a moment? If not, the thread wakes its server. */
  lookAgain(isAwaited: boolean): boolean {
    const { reports } = this
    this.takeReports()
    if (reports?.isLooking !== true) return false
    const { hasReported } = this
    this.hasReported = false
    if (hasReported && !isAwaited) return true
    reports.stopLooking()
    this.takeReports()
    return false
  }

  /** Loads the handler if it was not yet; `then` is told, at once if it was. */
  whenLoaded(handler: number, then: (outcome: LoadOutcome) => void): void {
    if (this.loaded.has(handler)) return then(isReady)
    const waiting = this.loading.get(handler)
    if (waiting !== undefined) return void waiting.push(then)
    this.loading.set(handler, [then])
    const { module, name } = this.pool.handlers[handler]!
    this.post({ _tag: "Load", handler, module, name })
  }

  private becomeReady(): void {
    if (this.state !== "starting") return
    clearTimeout(this.timer)
    this.state = "ready"
    this.pool.onReady(this)
  }

  private failure: StartFailure | undefined
  /** It could not be made ready. */
  private fail(failure: StartFailure): void {
    if (this.state !== "starting") return
    this.failure ??= failure
    this.handle.kill()
  }

  // ---- work

  begin(job: Job): void {
    this.jobs.add(job)
    this.load++
    if (++this.served >= this.pool.options.recycleAfter) this.state = "retiring"
  }

  /** The job is done; the worker may have another one. */
  done(): void {
    this.load--
    this.pool.onRoom(this)
  }

  /** Nothing of the job is left. */
  forget(job: Job): void {
    if (!this.jobs.delete(job.id)) return
    this.pool.numbers.giveBack(job.id)
    this.pool.onRoom(this)
  }

  post(message: ToWorker): void {
    if (this.state !== "ended") this.handle.post(message)
  }

  /** Whose TLS it knows, and how it is told of new certificates. */
  private readonly tls = new Map<PortableTls, (settings: PlainTls) => void>()

  /** Tells what handshakes are made with, now and whenever that changes. */
  knowTls(portable: PortableTls): void {
    if (this.tls.has(portable)) return
    const tell = (settings: PlainTls) => this.post({ _tag: "Tls", step: portable.step, settings })
    this.tls.set(portable, tell)
    portable.users.add(tell)
    tell(portable.settings!)
  }

  get postSocket(): WorkerHandle["postSocket"] {
    return this.handle.postSocket
  }

  // ---- the end

  /** In order: it has nothing to do, and may release what it has. */
  stop(how: "Stopped" | "Recycled"): void {
    if (this.ending !== undefined) return
    this.ending = { how, cause: new Error("the worker was not needed any more") }
    this.post({ _tag: "Stop" })
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.handle.kill(), stopTimeout)
  }

  /** In order: its handlers have ended, and what they wrote last may still leave. */
  stopWhenDone(): void {
    if (this.jobs.size === 0) return this.stop("Stopped")
    this.state = "retiring"
    this.timer = setTimeout(() => this.kill(new Error("the workers were stopped")), stopTimeout)
  }

  kill(cause: Error): void {
    if (this.state === "ended" || this.ending?.how === "Killed") return
    this.ending = { how: "Killed", cause }
    this.handle.kill()
  }

  private onEnd(cause: Error): void {
    clearTimeout(this.timer)
    for (const [{ users }, tell] of this.tls) users.delete(tell)
    const before = this.state
    this.state = "ended"
    // What was done by then has not crashed, whatever else was on its way.
    this.takeReports(Infinity)
    // First, so that it has been counted when its requests end.
    this.pool.onEnded(this, before === "starting" ? this.failure ?? cause : undefined, cause)
    for (const job of this.jobs.clear()) {
      job.crashed(this.ending?.cause ?? cause)
      this.pool.numbers.giveBack(job.id)
    }
    const outcome: LoadOutcome = {
      _tag: "NotFound",
      detail: `the worker that was to load it has ended: ${cause.message}`
    }
    for (const waiting of this.loading.values()) for (const then of waiting) then(outcome)
    this.receiver.requestEnded(undefined, Exit.die(cause))
  }
}

/** What became of a worker that did not get ready: the system's doing, the handler's absence, or its layer's failure. */
type StartFailure = Error | HandlerNotFound | Cause.Cause<unknown>

/** Why a handler could not be loaded. */
export const failureOf = (
  outcome: Exclude<LoadOutcome, { readonly _tag: "Ready" }>,
  { module, name }: HandlerName
): HandlerNotFound | Cause.Cause<unknown> =>
  outcome._tag === "NotFound"
    ? new HandlerNotFound({ module, handler: name, detail: outcome.detail })
    : (decodeExit(outcome.exit) as Exit.Failure<never, unknown>).cause

/** As a server's start fails with it: with what the layer fails with, or with `ListenError`. */
const toStartExit = (failure: StartFailure): Exit.Exit<never, unknown> =>
  Cause.isCause(failure) ? Exit.failCause(failure) : Exit.fail(
    new ListenError({
      reason: failure instanceof HandlerNotFound ? failure : new WorkersNotStarted({ cause: failure })
    })
  )

interface Waiter {
  readonly begin: (worker: PooledWorker) => void
  readonly fail: (cause: unknown) => void
}

export class Pool {
  readonly options: PoolOptions
  /** All that were ever asked for; the required ones a worker must have before it takes any work. */
  readonly handlers: Array<HandlerName> = []
  readonly required = new Set<number>()
  /** What the pool itself runs with. */
  private readonly context: Context.Context<never>
  /** Who wants to know what becomes of the workers. */
  readonly listeners = new Set<(event: WorkerEvent) => void>()
  private readonly workers = new Set<PooledWorker>()
  private readonly waiting = new Set<Waiter>()
  private lastWorker = 0
  readonly numbers = new JobNumbers()
  private closed = false
  private onClosed: (() => void) | undefined
  private counts = { started: 0, crashed: 0, recycled: 0, killed: 0 }
  transfer: WorkersInfo["transfer"]
  private failure: unknown
  private pause = firstPause
  private retry: NodeJS.Timeout | undefined
  private readonly starts = new Set<(exit: Exit.Exit<void, unknown>) => void>()

  constructor(options: PoolOptions, context: Context.Context<never>) {
    this.options = options
    this.context = context
  }

  /** Takes what a worker reports of its jobs, and of itself. */
  makeReceiver(jobs: JobTable<Job>): Receiver {
    return makeReceiver((id) => (id === undefined ? undefined : jobs.get(id)?.context) ?? this.context)
  }

  private publish(event: WorkerEvent): void {
    for (const listener of this.listeners) listener(event)
  }

  /** The handler's number in this pool. */
  register({ module, name }: HandlerName): number {
    const index = this.handlers.findIndex((handler) => handler.module === module && handler.name === name)
    return index === -1 ? this.handlers.push({ module, name }) - 1 : index
  }

  /** Completes when a worker is ready: one that has the handler, if one is given, as all have from then on. */
  start(handler?: HandlerName): Effect.Effect<void, unknown> {
    return Effect.callback((resume) => {
      const index = handler === undefined ? undefined : this.register(handler)
      const ready = [...this.workers].find(({ state }) => state === "ready")
      if (ready === undefined) {
        const isNew = index !== undefined && !this.required.has(index)
        if (index !== undefined) this.required.add(index)
        this.starts.add((exit) => {
          // One that was starting may have been told before what to load.
          if (Exit.isSuccess(exit)) return resume(handler === undefined ? exit : this.start(handler))
          // Those that others need start without it.
          if (isNew) this.required.delete(index)
          resume(exit)
        })
        const { maxWorkers, minWorkers } = this.options
        while (this.present < Math.min(maxWorkers, Math.max(1, minWorkers))) this.startWorker()
      } else if (index === undefined) resume(Effect.void)
      else {
        ready.whenLoaded(index, (outcome) => {
          if (outcome._tag !== "Ready") return resume(toStartExit(failureOf(outcome, handler!)))
          this.required.add(index)
          resume(Effect.void)
        })
      }
    })
  }

  private startWorker(): void {
    this.workers.add(new PooledWorker(this, ++this.lastWorker))
  }

  // ---- work

  /** A worker with room, which takes the job at once; or the place in line, to be given up. */
  request(waiter: Waiter): () => void {
    const worker = this.leastBusy()
    if (this.closed) waiter.fail(new Error("the workers were stopped"))
    else if (worker !== undefined) waiter.begin(worker)
    else {
      this.waiting.add(waiter)
      this.fill()
    }
    return () => this.waiting.delete(waiter)
  }

  /** Who may wait for something that a connection holds until its end is known: another connection, or the end of a drain. */
  readonly awaiting = new Set<() => boolean>()

  private get isAwaited(): boolean {
    if (this.closed) return true
    let taken = this.waiting.size
    for (const { load } of this.workers) taken += load
    if (taken >= this.options.maxWorkers * this.options.concurrency) return true
    for (const isAwaiting of this.awaiting) if (isAwaiting()) return true
    return false
  }

  private looking: NodeJS.Timeout | undefined
  /** Takes what threads have reported, until there was nothing for a while, or somebody waits for it. */
  look(): void {
    clearTimeout(this.looking)
    const { isAwaited } = this
    let again = false
    for (const worker of this.workers) again = worker.lookAgain(isAwaited) || again
    this.looking = again ? setTimeout(this.onLook, lookInterval) : undefined
  }

  private readonly onLook = () => this.look()

  /** Takes what threads have reported by now. */
  catchUp(): void {
    for (const worker of this.workers) worker.takeReports()
    if (this.looking !== undefined && this.isAwaited) this.look()
  }

  private leastBusy(): PooledWorker | undefined {
    let found: PooledWorker | undefined
    for (const worker of this.workers) {
      if (worker.hasRoom && (found === undefined || worker.load < found.load)) found = worker
      // With none at work there is nothing better.
      if (found?.load === 0) break
    }
    // One that is idle is not better than one that could still be started, if all others are busy.
    return found !== undefined && found.load > 0 && this.canStart ? undefined : found
  }

  private get canStart(): boolean {
    const { concurrency, maxWorkers } = this.options
    return this.retry === undefined && !this.closed && this.places < maxWorkers * concurrency
  }

  /**
   * How many of the jobs that there may be are with workers, or can be. One that retires takes no more: it counts with those
   * that it still has, so that a long one does not keep others waiting for a worker that cannot be started.
   */
  private get places(): number {
    let places = 0
    for (const { ending, jobs, state } of this.workers) {
      if (ending === undefined) {
        places += state === "retiring" ? Math.min(jobs.size, this.options.concurrency) : this.options.concurrency
      }
    }
    return places
  }

  /** How many count as workers: those that retire and have nothing to do any more are on their way out. */
  private get present(): number {
    let present = 0
    for (const worker of this.workers) if (worker.ending === undefined) present++
    return present
  }

  private starting(): number {
    let starting = 0
    for (const worker of this.workers) if (worker.state === "starting") starting++
    return starting
  }

  /** Starts as many as are missing. */
  private fill(): void {
    let starting = this.starting()
    while (
      this.canStart &&
      (this.present < this.options.minWorkers || starting * this.options.concurrency < this.waiting.size)
    ) {
      this.startWorker()
      starting++
    }
  }

  private serveWaiting(): void {
    for (const waiter of this.waiting) {
      const worker = [...this.workers].find((worker) => worker.hasRoom)
      if (worker === undefined) break
      this.waiting.delete(waiter)
      waiter.begin(worker)
    }
  }

  // ---- what becomes of workers

  onReady(worker: PooledWorker): void {
    this.counts.started++
    this.failure = undefined
    this.pause = firstPause
    this.publish({ _tag: "WorkerStarted", worker: worker.number })
    this.endStart(Exit.void)
    if (this.closed) return worker.stop("Stopped")
    this.serveWaiting()
  }

  private endStart(exit: Exit.Exit<void, unknown>): void {
    const starts = [...this.starts]
    // Whoever is told may try again at once.
    this.starts.clear()
    for (const start of starts) start(exit)
  }

  onRoom(worker: PooledWorker): void {
    if (worker.state === "retiring" && worker.load === 0 && worker.jobs.size === 0) {
      worker.stop(this.closed ? "Stopped" : "Recycled")
    }
    if (this.waiting.size > 0) {
      this.serveWaiting()
      this.fill()
    }
  }

  onEnded(
    worker: PooledWorker,
    failure: StartFailure | undefined,
    cause: Error
  ): void {
    this.workers.delete(worker)
    const { ending } = worker
    if (failure !== undefined && ending === undefined) this.onNotStarted(failure)
    else if (ending?.how !== "Stopped") {
      const how = ending?.how ?? "Crashed"
      if (how === "Crashed") this.counts.crashed++
      else if (how === "Recycled") this.counts.recycled++
      else this.counts.killed++
      this.publish({ _tag: "WorkerEnded", worker: worker.number, how, cause: ending?.cause ?? cause })
    }
    if (this.closed) {
      if (this.workers.size === 0) this.onClosed?.()
    } else this.fill()
  }

  /** What cannot start now may not be able to start in a moment either: the next attempt comes after a pause. */
  private onNotStarted(failure: StartFailure): void {
    const cause = Cause.isCause(failure) ? Cause.squash(failure) : failure
    this.failure = cause
    const waiting = [...this.waiting]
    this.waiting.clear()
    // First, so that those who come when these are told wait for the next attempt.
    if (!this.closed && this.retry === undefined) {
      const { pause } = this
      this.pause = Math.min(2 * pause, longestPause)
      this.publish({ _tag: "WorkerNotStarted", cause, retryIn: Duration.millis(pause) })
      this.retry = setTimeout(() => {
        this.retry = undefined
        this.fill()
      }, pause)
    }
    this.endStart(toStartExit(failure))
    for (const { fail } of waiting) fail(cause)
  }

  /** The worker has been told to interrupt a job, and must be heard of soon. */
  expectHearing(worker: PooledWorker, what: string): () => void {
    const timer = setTimeout(
      () =>
        worker.kill(
          new Error(`${what} was interrupted, and its worker did not hear of it within ${hearingTimeout} ms`)
        ),
      hearingTimeout
    )
    return () => clearTimeout(timer)
  }

  info(): WorkersInfo {
    const starting = this.starting()
    let busy = 0
    let idle = 0
    for (const worker of this.workers) {
      if (worker.load > 0) busy++
      else if (worker.state === "ready") idle++
    }
    return {
      kind: this.options.kind,
      transfer: this.transfer,
      starting,
      busy,
      idle,
      ...this.counts,
      failure: this.failure
    }
  }

  /** Stops all workers: those whose handlers still run, at once. */
  readonly close: Effect.Effect<void> = Effect.callback((resume) => {
    this.closed = true
    clearTimeout(this.retry)
    this.look()
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const { fail } of waiting) fail(new Error("the workers were stopped"))
    if (this.workers.size === 0) return resume(Effect.void)
    this.onClosed = () => resume(Effect.void)
    for (const worker of this.workers) {
      if (worker.state === "starting" || worker.load > 0) worker.kill(new Error("the workers were stopped"))
      else worker.stopWhenDone()
    }
  })
}
