/** A connection in the worker that runs its handler: what a server does for one during the handler, without the server. */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type { Connection } from "../Connection.ts"
import type { hostConnection as HostConnection, HostedConnection } from "../WorkerDispatch.ts"
import { ConnectionImpl, type Owner } from "./connection.ts"
import { silence } from "./silence.ts"

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
  let timer: Fiber.Fiber<void> | undefined
  const connection = new HostedImpl(options, {
    draining,
    onGone: options.onGone,
    onReleased: () => {
      timer?.interruptUnsafe()
      options.onReleased()
    }
  })
  const { idleMillis, input } = options
  connection.proxy = options.proxy
  if (input !== undefined) connection.onData(input)
  if (idleMillis !== undefined) {
    connection.trackActivity(Date.now)
    timer = Effect.runFork(
      Effect.map(silence(idleMillis, () => connection.silentSince, Date.now), options.onIdle)
    )
  }
  if (options.watch) connection.watch()
  return {
    connection,
    // Another one, once the handler has asked for TLS.
    get wire() {
      return connection.wire
    },
    drain: () => {
      draining.openUnsafe()
      connection.startDrain()
    },
    timeOut: () => connection.timeOut(),
    flush: () => void connection.flush(),
    close: () => connection.closeNow(),
    destroy: (reset) => connection.destroyNow(reset),
    state: () => ({ lost: connection.lost, drained: connection.drained, timedOut: connection.wasTimedOut }),
    owns: (error) => connection.owns(error)
  } satisfies HostedConnection
}
