/** A server of sessions: packets go to the mailbox of their peer's session, and the first of a peer begins one. */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import * as CloseReason from "../CloseReason.ts"
import type { Datagram } from "../Datagram.ts"
import { DatagramError } from "../DatagramError.ts"
import { DatagramTransport, type Packet } from "../DatagramTransport.ts"
import { Dispatch } from "../Dispatch.ts"
import type { SessionHandler, SessionOptions } from "../Server.ts"
import type { Session } from "../Session.ts"
import { formatAddress } from "./connection.ts"
import { bytesOf, failClosed, type Link } from "./datagramEntry.ts"
import { Entry } from "./entry.ts"
import { checkDuration, checkInteger } from "./options.ts"
import { run, type ServerImpl, type Tag, type Waiting } from "./server.ts"

export const makeSessions = Effect.fnUntraced(function*(
  tag: Tag,
  handler: SessionHandler<any, any>,
  { idleTimeout = "1 minute", mailbox = {}, maxSessions = 16_384, ...options }: SessionOptions<any, any> = {}
) {
  const dispatch = yield* Dispatch
  const transport = yield* DatagramTransport
  const strategy = yield* dispatch.make
  yield* checkInteger("maxSessions", maxSessions, 1)
  yield* checkInteger("mailbox.max", mailbox.max, 1)
  const table = new SessionTable({
    maxSessions,
    mailboxSize: mailbox.max ?? 64,
    dropOldest: mailbox.overflow === "dropOldest",
    idleMillis: Duration.toMillis(yield* checkDuration("idleTimeout", idleTimeout))
  })
  const server = yield* run(
    tag,
    {
      name: transport.name,
      steps: transport.steps,
      listen: (server, at) =>
        Effect.acquireRelease(
          Effect.tap(transport.listen((packet) => table.receive(server, packet), at), (listener) =>
            Effect.sync(() => {
              table.link.listener = listener
            })),
          () =>
            Effect.sync(() => {
              table.link.listener = undefined
            })
        ),
      waiting: table
    },
    { name: dispatch.name, run: strategy },
    handler,
    options
  )
  return server.shape
})

interface Limits {
  readonly maxSessions: number
  readonly mailboxSize: number
  readonly dropOldest: boolean
  readonly idleMillis: number
}

class SessionTable implements Waiting {
  readonly limits: Limits
  readonly link: Link = { listener: undefined }
  readonly sessions = new Map<string, SessionEntry>()
  /** Packets wait in the mailboxes of sessions, which are requests under way. */
  readonly length = 0
  dropped = 0
  truncated = 0

  constructor(limits: Limits) {
    this.limits = limits
  }

  receive(server: ServerImpl, packet: Packet): void {
    if (packet.truncated) this.truncated++
    const key = formatAddress(packet.peer)
    const session = this.sessions.get(key)
    if (session !== undefined) return session.offer(packet)
    if (!server.isOpen || this.sessions.size >= this.limits.maxSessions) {
      this.dropped++
      return
    }
    server.accept((id) => {
      const entry = new SessionEntry(server, id, key, packet, this)
      this.sessions.set(key, entry)
      return entry
    })
  }

  onRoom(): void {}

  clear(): number {
    return 0
  }
}

class SessionEntry extends Entry implements Session {
  private readonly table: SessionTable
  private readonly key: string
  private readonly first: Packet
  private readonly mailbox: Queue.Queue<Uint8Array, Cause.Done>
  private idleTimer: Fiber.Fiber<void> | undefined
  private lastActivity: number
  private timedOut = false
  private drained = false
  private lost = 0
  annotations: Map<string, unknown> | undefined
  bytesRead = 0
  bytesWritten = 0

  constructor(server: ServerImpl, id: number, key: string, first: Packet, table: SessionTable) {
    super(server, id)
    this.table = table
    this.key = key
    this.first = first
    this.lastActivity = server.now()
    this.mailbox = Effect.runSync(Queue.unbounded<Uint8Array, Cause.Done>())
    this.offer(first)
  }

  protected get kind(): string {
    return "session"
  }

  offer({ payload }: Packet): void {
    this.lastActivity = this.server.now()
    if (Queue.sizeUnsafe(this.mailbox) >= this.table.limits.mailboxSize) {
      this.lost++
      this.table.dropped++
      if (!this.table.limits.dropOldest) return
      Queue.takeUnsafe(this.mailbox)
    }
    this.bytesRead += payload.length
    Queue.offerUnsafe(this.mailbox, payload)
  }

  // ---- for the handler

  get subject(): Session {
    return this
  }

  get peer(): SocketAddress {
    return this.first.peer
  }

  get local(): SocketAddress {
    return this.server.shape.address
  }

  readonly receive: Session["receive"] = Effect.suspend(() => Queue.take(this.mailbox))

  get packets(): Session["packets"] {
    return Stream.fromPull(Effect.succeed(Effect.map(this.receive, (payload) => [payload] as const)))
  }

  get send(): Session["send"] {
    return (payload) =>
      Effect.suspend(() => {
        if (this.table.link.listener === undefined) return failClosed(this.peer)
        this.lastActivity = this.server.now()
        const bytes = bytesOf(payload)
        this.bytesWritten += bytes.length
        return this.first.reply(bytes)
      })
  }

  readonly dropped: Session["dropped"] = Effect.sync(() => this.lost)

  get draining(): Effect.Effect<void> {
    return this.server.draining.await
  }

  get annotate(): Session["annotate"] {
    return (key, value) =>
      Effect.sync(() => {
        ;(this.annotations ??= new Map()).set(key, value)
      })
  }

  // ---- for the server

  /** The packet that began it. */
  protected override get candidate(): Datagram {
    const { annotate, draining, first, id, local, peer, send, table } = this
    return {
      id,
      peer,
      local,
      payload: first.payload,
      truncated: first.truncated,
      reply: send,
      send: (to, payload) => Effect.suspend(() => table.link.listener?.send(to, payload) ?? failClosed(to)),
      draining,
      annotate
    }
  }

  get released(): boolean {
    return true
  }

  get endedIdle(): boolean {
    return this.drained
  }

  override begin(): void {
    this.idleTimer = Effect.runForkWith(this.server.context)(this.watchIdle)
    super.begin()
  }

  private get watchIdle(): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      while (true) {
        const left = this.lastActivity + this.table.limits.idleMillis - this.server.now()
        if (left <= 0) break
        yield* Effect.sleep(left)
      }
      this.timedOut = true
      this.forget()
      Queue.endUnsafe(this.mailbox)
    })
  }

  /** From now on a packet of this peer begins a new session. */
  private forget(): void {
    if (this.table.sessions.get(this.key) === this) this.table.sessions.delete(this.key)
  }

  startDrain(): void {
    this.drained = Queue.sizeUnsafe(this.mailbox) === 0
    // What waits can still be received before the end.
    Queue.endUnsafe(this.mailbox)
  }

  protected closeSubject(): void {
    this.forget()
    Queue.endUnsafe(this.mailbox)
  }

  protected destroySubject(): void {
    this.closeSubject()
  }

  protected override onFiberEnd(exit: Exit.Exit<void>): void {
    this.idleTimer?.interruptUnsafe()
    super.onFiberEnd(exit)
  }

  protected isEnd(cause: Cause.Cause<unknown>): boolean {
    return cause.reasons.length > 0 &&
      cause.reasons.every((reason) => Cause.isFailReason(reason) && Cause.isDone(reason.error))
  }

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    if (Exit.isFailure(exit) && !this.isEnd(exit.cause)) {
      if (Cause.hasInterruptsOnly(exit.cause) && this.interruptedByDrain) return CloseReason.Drained
      const [reason] = exit.cause.reasons
      return exit.cause.reasons.length === 1 && reason !== undefined && Cause.isFailReason(reason) &&
          reason.error instanceof DatagramError
        ? CloseReason.TransportFailed(reason.error)
        : CloseReason.HandlerFailed(exit.cause)
    }
    return this.timedOut ? CloseReason.IdleTimeout : this.drained ? CloseReason.Drained : CloseReason.Completed
  }
}
