/**
 * Tells systemd how a service is: that it is ready, what it does, that it stops, that it is alive. This is sd_notify(3), and
 * needs `Type=notify` in the unit, and for `WATCHDOG=1` also `WatchdogSec=`.
 *
 * The messages are unix datagrams, so it takes the native part of this package. Nothing is sent, and the native part is not
 * even loaded, where `NOTIFY_SOCKET` is not set: the same program runs without systemd.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { errnoException, load, location, Socket } from "./internal/native.ts"

/**
 * systemd asked for notifications (`NOTIFY_SOCKET`), and one could not be sent.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotifyError extends Data.TaggedError("NotifyError")<{
  /** What `NOTIFY_SOCKET` is. */
  readonly socket: string
  readonly cause: unknown
}> {
  override get message(): string {
    const { cause, socket } = this
    return `cannot notify systemd at ${socket}: ${cause instanceof Error ? cause.message : String(cause)}`
  }
}

/**
 * Sends one notification, which may set several variables at a time: sd_notify(3) has the list. `true` if it was sent, `false`
 * where `NOTIFY_SOCKET` is not set. Line breaks in a value become spaces: they would begin another variable.
 *
 * **Details**
 *
 * Where systemd does not keep up it waits, for up to 5 seconds. `NotifyError` says that nobody listens, that the native part was
 * not compiled, or that the socket is neither a path nor an abstract name (`@…`).
 *
 * **Example** (Asking for more time to start)
 *
 * ```ts
 * import { Systemd } from "@socketserver/unix-datagram"
 *
 * const program = Systemd.send({ EXTEND_TIMEOUT_USEC: "60000000", STATUS: "replaying the journal" })
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const send = (variables: Readonly<Record<string, string>>): Effect.Effect<boolean, NotifyError> =>
  Effect.suspend(() => {
    const socket = process.env["NOTIFY_SOCKET"]
    if (socket === undefined || socket === "") return Effect.succeed(false)
    const lines = Object.entries(variables).map(([name, value]) => `${name}=${value.replaceAll(/[\r\n]+/g, " ")}\n`)
    const attempt = Effect.try({
      try: () => sendTo(socket, lines.join("")),
      catch: (cause) => new NotifyError({ socket, cause })
    })
    return Effect.as(Effect.retry(attempt, { while: isBusy, schedule: patiently }), true)
  })

/**
 * Tells people what the service is doing: `systemctl status` shows it (`STATUS=`). `false` where `NOTIFY_SOCKET` is not set.
 *
 * @category combinators
 * @since 0.1.0
 */
export const status = (text: string): Effect.Effect<boolean, NotifyError> => send({ STATUS: text })

/**
 * What {@link notify} can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface NotifyOptions<R = never> {
  /** What the service says of itself when it is ready (`STATUS=`). Default: nothing. */
  readonly status?: string | undefined
  /**
   * Asked before each sign of life. With `false`, a failure, or no answer there is none, and systemd restarts the service when
   * `WatchdogSec=` is over. Default: healthy as long as the event loop turns.
   */
  readonly healthy?: Effect.Effect<boolean, unknown, R> | undefined
}

/**
 * Tells systemd about the servers in this layer, whichever and however many they are.
 *
 * **Details**
 *
 * - `READY=1` when the layer was built: all its servers listen.
 * - `WATCHDOG=1` every half of the time that systemd asks for (`WATCHDOG_USEC`, if `WATCHDOG_PID` is this process or not
 *   set), from then on until the servers have drained.
 * - `STOPPING=1` when the layer is released, before its servers begin to drain.
 *
 * If `READY=1` cannot be sent, the layer fails with `NotifyError`: systemd would wait for it, and then stop the service. What
 * cannot be sent later is logged, at `Warning`. Without `NOTIFY_SOCKET` it does nothing.
 *
 * **Example** (An echo server as a service)
 *
 * ```ts
 * import { Dispatch, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 * import { Systemd } from "@socketserver/unix-datagram"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.systemd().pipe(
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink)),
 *   Systemd.notify({ status: "serving echoes" })
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const notify =
  <R = never>(options: NotifyOptions<R> = {}) =>
  <ROut, E, R2>(servers: Layer.Layer<ROut, E, R2>): Layer.Layer<ROut, E | NotifyError, R2 | Exclude<R, ROut>> =>
    Layer.unwrap(Effect.sync(() => {
      const ready = Deferred.makeUnsafe<Effect.Effect<boolean, unknown>>()
      return Layer.effectDiscard(announce(options, ready)).pipe(
        Layer.provideMerge(servers),
        // Around the servers: signs of life go on while they drain.
        Layer.provide(Layer.effectDiscard(watch(ready)))
      )
    })) as Layer.Layer<ROut, E | NotifyError, R2 | Exclude<R, ROut>>

const announce = <R>(
  { healthy, status }: NotifyOptions<R>,
  ready: Deferred.Deferred<Effect.Effect<boolean, unknown>>
) =>
  Effect.gen(function*() {
    const context = yield* Effect.context<R>()
    yield* Effect.addFinalizer(() => Effect.ignore(send({ STOPPING: "1" }), { log: "Warn" }))
    yield* send({ READY: "1", ...(status !== undefined && { STATUS: status }) })
    yield* Deferred.succeed(
      ready,
      healthy === undefined ? Effect.succeed(true) : Effect.provideContext(healthy, context)
    )
  })

const watch = (ready: Deferred.Deferred<Effect.Effect<boolean, unknown>>) =>
  Effect.suspend(() => {
    const interval = watchdogInterval()
    if (interval === undefined) return Effect.void
    const ping = Effect.gen(function*() {
      if (yield* yield* Deferred.await(ready)) yield* send({ WATCHDOG: "1" })
      else yield* Effect.logWarning("not healthy: systemd is sent no sign of life")
    })
    return Effect.forkScoped(
      Effect.repeat(Effect.ignoreCause(ping, { log: "Warn" }), Schedule.spaced(interval))
    )
  })

/** Half of what systemd waits, as sd_watchdog_enabled(3) recommends. */
const watchdogInterval = (): Duration.Duration | undefined => {
  const { NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC } = process.env
  const micros = Number(WATCHDOG_USEC)
  if (!NOTIFY_SOCKET || !Number.isInteger(micros) || micros <= 0) return undefined
  if (WATCHDOG_PID !== undefined && WATCHDOG_PID !== String(process.pid)) return undefined
  return Duration.millis(micros / 2_000)
}

// ---- sending

const patiently = Schedule.spaced("10 millis").pipe(Schedule.upTo({ duration: "5 seconds" }))

const isBusy = ({ cause }: NotifyError): boolean =>
  (cause as NodeJS.ErrnoException).code === "EAGAIN" || (cause as NodeJS.ErrnoException).code === "ENOBUFS"

const sendTo = (address: string, message: string): void => {
  const path = address.startsWith("@") ? `\0${address.slice(1)}` : address
  if (path[0] !== "/" && path[0] !== "\0") throw new Error("only a path or an abstract name (@…) can be sent to")
  const socket = new Socket(load(location), { path: "", mode: undefined, maxPacketSize: 1, onPacket: () => {} })
  try {
    const error = socket.send(Buffer.from(path).toString("latin1"), message)
    if (error !== 0) throw errnoException("sendto", error)
  } finally {
    socket.close()
  }
}
