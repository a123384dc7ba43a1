/** A connection in the worker that runs its handler: what a server does for one during the handler, without the server. */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type { Connection } from "../Connection.ts"
import type { hostConnection as HostConnection, HostedConnection } from "../WorkerDispatch.ts"
import { ConnectionImpl, type Owner } from "./connection.ts"
import { Timer } from "./deadlines.ts"

class HostedImpl extends ConnectionImpl {
  private readonly options: Parameters<typeof HostConnection>[0]

  constructor(options: Parameters<typeof HostConnection>[0], owner: Owner) {
    super(options.id, options.wire, owner)
    this.options = options
  }

  override get annotate(): Connection["annotate"] {
    return this.options.annotate
  }
}

export const hostConnection: typeof HostConnection = (options) => {
  const draining = Latch.makeUnsafe(false)
  const { patience } = options
  let timer: Timer | undefined
  const lookBy = (time: number) => (timer ??= new Timer(look, Date.now, Effect.runFork)).by(time)
  const look = (): number => {
    const now = Date.now()
    const next = connection.checkDeadlines(patience, now)
    if (typeof next === "number") return next
    options.onTimeout(next)
    return look()
  }
  const connection = new HostedImpl(options, {
    draining,
    onGone: options.onGone,
    onOutputWaits: () => {
      const now = Date.now()
      if (patience.write < Infinity) lookBy(now + patience.write / 4)
      return now
    },
    onReleased: () => {
      timer?.stop()
      options.onReleased()
    }
  })
  connection.proxy = options.proxy
  if (options.input !== undefined) connection.onData(options.input)
  if (Math.min(patience.idle, patience.read) < Infinity) {
    connection.trackActivity(Date.now)
    lookBy(Date.now())
  }
  if (options.watch) connection.watch()
  return {
    connection,
    // Another one, once the handler has asked for TLS.
    get wire() {
      return connection.wire
    },
    drain: (expected) => {
      draining.openUnsafe()
      if (expected === 0) return connection.startDrain()
      connection.startDrain(Date.now() + expected)
      lookBy(Date.now())
    },
    timeOut: (deadline) => connection.timeOut(deadline),
    flush: () => void connection.flush(),
    close: () => connection.closeNow(),
    destroy: (reset) => connection.destroyNow(reset),
    state: () => ({ lost: connection.lost, drained: connection.drained, timedOut: connection.overrun }),
    owns: (error) => connection.owns(error)
  } satisfies HostedConnection
}
