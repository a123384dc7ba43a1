/** A server of packets: those that the strategy has no room for wait in a queue of their own, until it has. */
import * as Effect from "effect/Effect"
import type { Datagram } from "../Datagram.ts"
import { DatagramTransport, type Packet } from "../DatagramTransport.ts"
import type { Portable } from "../Handler.ts"
import type { DatagramHandler, DatagramOptions } from "../Server.ts"
import { DatagramEntry } from "./datagramEntry.ts"
import { type Dispatched, dispatching } from "./dispatching.ts"
import { checkInteger } from "./options.ts"
import type { Link } from "./packetEntry.ts"
import { ReceiveQueue } from "./receiveQueue.ts"
import { type Arrivals, run, type ServerImpl, type Tag, type Waiting } from "./server.ts"

export const makeDatagram = Effect.fnUntraced(function*(
  tag: Tag,
  handler: DatagramHandler<any, any> | Portable<Datagram, any, any, any>,
  options?: DatagramOptions<any, any>
) {
  const transport = yield* DatagramTransport
  const server = yield* start(tag, transport, yield* dispatching(handler), options)
  return server.shape
})

export const start = Effect.fnUntraced(function*(
  tag: Tag,
  transport: DatagramTransport["Service"],
  dispatched: Dispatched,
  options?: DatagramOptions<any, any>
) {
  const { maxBytes = 4 * 2 ** 20, maxPackets = 1_024, overflow = "dropNewest" } = transport.receiveQueue ?? {}
  yield* checkInteger("receiveQueue.maxPackets", maxPackets, 0)
  yield* checkInteger("receiveQueue.maxBytes", maxBytes, 0)
  const queue = new ReceiveQueue({ maxBytes, maxPackets, dropOldest: overflow === "dropOldest" })
  const link: Link = { listener: undefined }
  const intake = new Intake(queue, link, Math.max(1, maxPackets))
  return yield* run(
    tag,
    arrivals(transport, link, intake),
    dispatched,
    options
  )
})

/** The packets of a transport as a server's arrivals; `link` has the transport's socket while it is bound. */
export const arrivals = (
  transport: DatagramTransport["Service"],
  link: Link,
  waiting: Waiting & { readonly receive: (server: ServerImpl, packet: Packet) => void }
): Arrivals => ({
  name: transport.name,
  steps: transport.steps,
  listen: (server, at) =>
    Effect.acquireRelease(
      Effect.tap(transport.listen((packet) => waiting.receive(server, packet), at), (listener) =>
        Effect.sync(() => {
          link.listener = listener
        })),
      () =>
        Effect.sync(() => {
          link.listener = undefined
        })
    ),
  waiting
})

class Intake implements Waiting {
  private readonly queue: ReceiveQueue
  private readonly link: Link
  /** How many packets may be with admission, whose decisions may take their time. */
  private readonly maxAdmitting: number
  private late = 0
  private starting = false
  truncated = 0

  constructor(queue: ReceiveQueue, link: Link, maxAdmitting: number) {
    this.queue = queue
    this.link = link
    this.maxAdmitting = maxAdmitting
  }

  get length(): number {
    return this.queue.length
  }

  get dropped(): number {
    return this.queue.dropped + this.late
  }

  receive(server: ServerImpl, packet: Packet): void {
    if (packet.truncated) this.truncated++
    if (!server.isOpen) this.late++
    else if (this.queue.length === 0 && this.hasRoom(server)) this.begin(server, packet)
    else this.queue.offer(packet)
  }

  /** With one that waits for the strategy, the next would only wait behind it. */
  private hasRoom(server: ServerImpl): boolean {
    return server.queued === 0 && server.open - server.inFlight < this.maxAdmitting
  }

  onRoom(server: ServerImpl): void {
    // A handler that ends at once makes room while it begins: the loop below goes on, instead of a deeper one.
    if (this.starting) return
    this.starting = true
    while (this.hasRoom(server)) {
      const packet = this.queue.take()
      if (packet === undefined) break
      this.begin(server, packet)
    }
    this.starting = false
  }

  clear(): number {
    return this.queue.clear()
  }

  private begin(server: ServerImpl, packet: Packet): void {
    server.accept((id) => new DatagramEntry(server, id, packet, this.link))
  }
}
