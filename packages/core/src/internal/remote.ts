/**
 * A connection in the worker that runs its handler: what a server does for one during the handler, without the server. With
 * short connections, a worker spends much of its time on objects and their garbage, so it is made of two: the connection, and
 * its owner, which has methods and no closures. (Bench "workers: churn".)
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type { Connection } from "../Connection.ts"
import type { Wire, WireFailure } from "../StreamTransport.ts"
import type { ConnectionState, Host, hostConnection as HostConnection, HostedConnection } from "../WorkerDispatch.ts"
import { ConnectionImpl, type Owner, type ReadDeadline } from "./connection.ts"
import { Timer } from "./deadlines.ts"

type Options = Parameters<typeof HostConnection>[0]

class OwnConnection extends ConnectionImpl {
  private readonly host: Host

  constructor({ host, id, wire }: Options, owner: Owner) {
    super(id, wire, owner)
    this.host = host
  }

  override get annotate(): Connection["annotate"] {
    return this.host.annotate
  }
}

class Hosted implements HostedConnection, Owner {
  readonly connection: OwnConnection
  private readonly host: Host
  private readonly patience: Options["patience"]
  private timer: Timer | undefined
  private isDraining = false
  /** Made for a handler that asks. */
  private latch: Latch.Latch | undefined

  constructor(options: Options) {
    const { host, input, patience, proxy, watch } = options
    this.host = host
    this.patience = patience
    const connection = this.connection = new OwnConnection(options, this)
    connection.proxy = proxy
    if (input !== undefined) connection.onData(input)
    if (Math.min(patience.idle, patience.read) < Infinity) {
      connection.trackActivity(Date.now)
      this.lookBy(Date.now())
    }
    if (watch) connection.watch()
  }

  /** Another one, once the handler has asked for TLS. */
  get wire(): Wire {
    return this.connection.wire
  }

  // ---- deadlines

  private lookBy(time: number): void {
    ;(this.timer ??= new Timer(() => this.look(), Date.now, Effect.runFork)).by(time)
  }

  private look(): number {
    const now = Date.now()
    const next = this.connection.checkDeadlines(this.patience, now)
    if (typeof next === "number") return next
    this.host.onTimeout(next)
    return this.look()
  }

  // ---- what the connection asks and tells

  get draining(): Latch.Latch {
    return this.latch ??= Latch.makeUnsafe(this.isDraining)
  }

  onGone(how: "end" | "reset"): void {
    this.host.onGone(how)
  }

  onOutputWaits(): number {
    const now = Date.now()
    const { write } = this.patience
    if (write < Infinity) this.lookBy(now + write / 4)
    return now
  }

  onReleased(): void {
    this.timer?.stop()
    this.host.onReleased()
  }

  // ---- what the worker does

  drain(expected: number): void {
    this.isDraining = true
    this.latch?.openUnsafe()
    if (expected === 0) return this.connection.startDrain()
    this.connection.startDrain(Date.now() + expected)
    this.lookBy(Date.now())
  }

  timeOut(deadline: ReadDeadline): void {
    this.connection.timeOut(deadline)
  }

  flush(): void {
    this.connection.flush()
  }

  close(): void {
    this.connection.closeNow()
  }

  destroy(reset: boolean): void {
    this.connection.destroyNow(reset)
  }

  get lost(): WireFailure | undefined {
    return this.connection.lost
  }

  get state(): ConnectionState | undefined {
    const { drained, lost, overrun } = this.connection
    return lost === undefined && !drained && overrun === undefined ? undefined : { lost, drained, timedOut: overrun }
  }

  owns(error: unknown): boolean {
    return this.connection.owns(error)
  }
}

export const hostConnection: typeof HostConnection = (options) => new Hosted(options)
