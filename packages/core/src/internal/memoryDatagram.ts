/**
 * Datagrams without a network: a table of bound endpoints in this process, and a way between them that loses, doubles and
 * delays packets where it is told to. What arrives is delivered by a fiber of the receiver's, never from within a send.
 */
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import { DatagramError, NoReturnAddress, TooLarge, Unreachable } from "../DatagramError.ts"
import type { DatagramListener, Packet } from "../DatagramTransport.ts"
import { AddressInUse, ListenError } from "../ListenError.ts"
import { formatAddress } from "./connection.ts"

/** As UDP over IPv4 has it. */
const largest = 65_507

/** How many milliseconds later a packet arrives that others overtake. */
const delay = 10

/** How many packets may lie in an endpoint's hands before its fiber has come to them. */
const capacity = 1_024

/** What happens to packets on their way, each a probability. */
export interface Way {
  readonly loss: number
  readonly duplication: number
  readonly reordering: number
  /** A number from 0 to 1, excluding 1. */
  readonly random: () => number
}

interface Bound {
  readonly way: Way | undefined
  readonly maxPacketSize: number
  readonly inbox: Queue.Queue<Packet>
}

const bound = new Map<string, Bound>()
let lastName = 0
const encoder = new TextEncoder()

/** The same numbers for the same seed (a linear congruential generator), so that a test that fails fails again. */
export const randomOf = (seed: number) => () => {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
  return seed / 2 ** 32
}

/** Binds an endpoint; `onPacket` gets what arrives. */
export const bind = Effect.fnUntraced(function*(options: {
  readonly name: string | undefined
  readonly way: Way | undefined
  readonly maxPacketSize: number
  readonly onPacket: (packet: Packet) => void
}): Effect.fn.Return<DatagramListener, ListenError, Scope.Scope> {
  const name = options.name ?? `memory-datagram:${++lastName}`
  const address = NetAddress.unixPathAddress(name)
  if (bound.has(name)) return yield* new ListenError({ reason: new AddressInUse({ address: formatAddress(address) }) })
  const inbox = yield* Effect.acquireRelease(Queue.dropping<Packet>(capacity), Queue.shutdown)
  const self: Bound = { ...options, inbox }
  yield* Effect.acquireRelease(
    Effect.sync(() => bound.set(name, self)),
    () => Effect.sync(() => bound.delete(name))
  )
  yield* Effect.forkScoped(Effect.forever(Effect.map(Queue.take(inbox), options.onPacket), { disableYield: true }))
  return { address, send: sendFrom(address, options.way) }
})

/** Sends from `from`; the unix path `""` is no address at all. */
export const sendFrom =
  (from: NetAddress.SocketAddress, way: Way | undefined): DatagramListener["send"] => (to, payload) =>
    Effect.suspend(() => {
      const fail = (reason: DatagramError["reason"]) => Effect.fail(new DatagramError({ reason, peer: to }))
      // A copy: the sender may use its array again.
      const bytes = typeof payload === "string" ? encoder.encode(payload) : new Uint8Array(payload)
      if (bytes.length > largest) return fail(new TooLarge({ length: bytes.length }))
      const path = NetAddress.isUnixPathAddress(to) ? to.path : formatAddress(to)
      if (path === "") return fail(new NoReturnAddress())
      const target = bound.get(path)
      if (target === undefined) return fail(new Unreachable({ cause: "nobody is bound to the address" }))
      const truncated = bytes.length > target.maxPacketSize
      return travel(way ?? target.way, target.inbox, {
        peer: from,
        payload: truncated ? bytes.subarray(0, target.maxPacketSize) : bytes,
        truncated,
        reply: (answer) => sendFrom(to, target.way)(from, answer)
      })
    })

const travel = (way: Way | undefined, inbox: Queue.Queue<Packet>, packet: Packet): Effect.Effect<void> => {
  const arrive = Effect.sync(() => {
    Queue.offerUnsafe(inbox, packet)
  })
  if (way === undefined) return arrive
  if (way.random() < way.loss) return Effect.void
  const once = () => way.random() < way.reordering ? Effect.forkDetach(Effect.delay(arrive, delay)) : arrive
  const first = once()
  return way.random() < way.duplication ? Effect.andThen(first, once()) : Effect.asVoid(first)
}
