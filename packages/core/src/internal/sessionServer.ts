/** A server of sessions: packets go to the mailbox of their peer's session, and the first of a peer begins one. */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import * as CloseReason from "../CloseReason.ts"
import type { Datagram } from "../Datagram.ts"
import { DatagramTransport, type Packet } from "../DatagramTransport.ts"
import type { SessionHandler, SessionOptions } from "../Server.ts"
import type { Session } from "../Session.ts"
import { formatAddress } from "./connection.ts"
import { arrivals } from "./datagramServer.ts"
import { dispatching } from "./dispatching.ts"
import { checkDeadline, checkInteger } from "./options.ts"
import { type Link, PacketEntry } from "./packetEntry.ts"
import { run, type ServerImpl, type Tag, type Waiting } from "./server.ts"

export const makeSessions = Effect.fnUntraced(function*(
  tag: Tag,
  handler: SessionHandler<any, any>,
  { idleTimeout = "1 minute", mailbox = {}, maxSessions = 16_384, ...options }: SessionOptions<any, any> = {}
) {
  const transport = yield* DatagramTransport
  yield* checkInteger("maxSessions", maxSessions, 1)
  yield* checkInteger("mailbox.max", mailbox.max, 1)
  const table = new SessionTable({
    maxSessions,
    mailboxSize: mailbox.max ?? 64,
    dropOldest: mailbox.overflow === "dropOldest",
    idleMillis: yield* checkDeadline("idleTimeout", idleTimeout)
  })
  const server = yield* run(
    tag,
    arrivals(transport, table.link, table),
    yield* dispatching(handler),
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

class SessionEntry extends PacketEntry implements Session {
  private readonly table: SessionTable
  private readonly key: string
  private readonly mailbox: Queue.Queue<Uint8Array, Cause.Done>
  private lastActivity: number
  private timedOut = false
  private drained = false
  private ended = false
  private lost = 0
  bytesRead = 0

  constructor(server: ServerImpl, id: number, key: string, first: Packet, table: SessionTable) {
    super(server, id, first, table.link)
    this.table = table
    this.key = key
    this.lastActivity = server.now()
    this.mailbox = Effect.runSync(Queue.unbounded<Uint8Array, Cause.Done>())
    this.offer(first)
  }

  get kind(): "session" {
    return "session"
  }

  offer({ payload }: Packet): void {
    this.lastActivity = this.server.now()
    const { dropOldest, mailboxSize } = this.table.limits
    const isFull = Queue.sizeUnsafe(this.mailbox) >= mailboxSize
    if (this.ended || (isFull && !dropOldest)) return this.lose()
    if (isFull) {
      Queue.takeUnsafe(this.mailbox)
      this.lose()
    }
    this.bytesRead += payload.length
    Queue.offerUnsafe(this.mailbox, payload)
  }

  private lose(): void {
    this.lost++
    this.table.dropped++
  }

  /** Takes no more packets; what waits can still be received. */
  private end(): void {
    this.ended = true
    Queue.endUnsafe(this.mailbox)
  }

  // ---- for the handler

  get subject(): Session {
    return this
  }

  readonly receive: Session["receive"] = Effect.suspend(() => Queue.take(this.mailbox))

  get packets(): Session["packets"] {
    return Stream.fromPull(Effect.succeed(Effect.map(this.receive, (payload) => [payload] as const)))
  }

  get send(): Session["send"] {
    return (payload) => Effect.suspend(() => this.sendBack(payload))
  }

  protected override counted(payload: Uint8Array | string): Uint8Array {
    this.lastActivity = this.server.now()
    return super.counted(payload)
  }

  readonly dropped: Session["dropped"] = Effect.sync(() => this.lost)

  // ---- for the server

  /** The packet that began it. */
  protected override get candidate(): Datagram {
    const { annotate, draining, id, local, packet: { payload, truncated }, peer, send } = this
    return {
      id,
      peer,
      local,
      payload,
      truncated,
      reply: send,
      send: (to, payload) => Effect.suspend(() => this.sendTo(to, payload)),
      draining,
      annotate
    }
  }

  get endedIdle(): boolean {
    return this.drained
  }

  protected override get isTimed(): boolean {
    return true
  }

  protected override checkDeadlines(now: number): number {
    const left = this.lastActivity + this.table.limits.idleMillis - now
    if (left > 0) return left
    this.timedOut = true
    this.forget()
    this.end()
    return Infinity
  }

  /** From now on a packet of this peer begins a new session. */
  private forget(): void {
    if (this.table.sessions.get(this.key) === this) this.table.sessions.delete(this.key)
  }

  startDrain(): void {
    this.drained = Queue.sizeUnsafe(this.mailbox) === 0
    this.end()
  }

  protected closeSubject(): void {
    this.forget()
    this.end()
  }

  protected destroySubject(): void {
    this.closeSubject()
  }

  protected reasonOf(exit: Exit.Exit<unknown, unknown>): CloseReason.CloseReason {
    if (Exit.isFailure(exit) && !this.isEnd(exit.cause)) return this.failed(exit)
    return this.timedOut ? CloseReason.IdleTimeout : this.drained ? CloseReason.Drained : CloseReason.Completed
  }
}
