/**
 * Admission decides which clients get to the handler. Each policy is a step between transport and dispatch, written in the
 * pipe where it applies, and they are asked in that order. A slow decision about one client delays no other. Limits are those
 * of the whole server, however many acceptors or workers it has; servers that are made of one and the same layer share them.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { IpNetworkInput } from "effect/net/IpNetwork"
import { isUnixPathAddress, type SocketAddress } from "effect/net/NetAddress"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as SubscriptionRef from "effect/SubscriptionRef"
import type { Connection } from "./Connection.ts"
import type { Datagram } from "./Datagram.ts"
import { DatagramTransport } from "./DatagramTransport.ts"
import { follow, liveLimit } from "./internal/live.ts"
import { checkDuration, checkInteger, invalidOption } from "./internal/options.ts"
import { PeerCounts } from "./internal/peerCounts.ts"
import { ipOf, Networks, prefixOf, toNetwork } from "./internal/prefix.ts"
import { dropped, Rejection, Seats } from "./internal/seats.ts"
import { TokenBuckets } from "./internal/tokenBuckets.ts"
import type { ListenError } from "./ListenError.ts"
import { StreamTransport } from "./StreamTransport.ts"

// ---- what a step is

/**
 * How a client is turned away that is not closed in order: at once, so that nothing stays of it, or after a last word.
 *
 * @category models
 * @since 0.1.0
 */
export interface Refusal {
  /** What it is told, and how long that may take until the connection is cut. Packets are dropped without a word. */
  readonly farewell: { readonly bytes: Uint8Array; readonly timeout: Duration.Duration } | undefined
}

/**
 * What a step decides: `true` lets the client go on, `false` closes it in order, a {@link Refusal} turns it away.
 *
 * @category models
 * @since 0.1.0
 */
export type Verdict = boolean | Refusal

/**
 * What a step is given besides the connection or the packet that it decides about.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ticket {
  /**
   * Calls `release` once, when nothing is left of the connection, or when the packet's handler has ended; whatever became of
   * it, let in, refused or interrupted. For steps that count.
   */
  readonly whenReleased: (release: () => void) => void
}

/**
 * What a step tells the server that it stands before.
 *
 * @category models
 * @since 0.1.0
 */
export interface Gate {
  /** Is there no room for one more? Then the server's status is `saturated`. */
  readonly setSaturated: (isSaturated: boolean) => void
}

/**
 * A number that bounds what a step lets in, for `Server.limits`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limit {
  readonly current: () => number
  /** Applies from now on, and sets the `SubscriptionRef` where there is one. A value that is not valid changes nothing. */
  readonly set: (value: number) => Effect.Effect<void, ListenError>
}

/**
 * One decision about whatever asks to be let in. A refused one is counted under `policy`.
 *
 * @category models
 * @since 0.1.0
 */
export interface StepFor<in Subject> {
  readonly policy: string
  /**
   * Decides at once, or by an effect in the client's own fiber. One that fails or dies refuses, and its cause goes to the
   * server's `onError`.
   */
  readonly check: (subject: Subject, ticket: Ticket) => Verdict | Effect.Effect<Verdict, unknown>
  /** Does the server close its listener while this step is saturated? Default `false`. */
  readonly pausesListening?: boolean | undefined
  /** What can be changed while the server runs, by the step's `policy` as its name. Default: nothing. */
  readonly limit?: Limit | undefined
  /** Runs before the server binds: checks the options, and follows what changes, until the scope ends with the server. */
  readonly start?: ((gate: Gate) => Effect.Effect<void, ListenError, Scope.Scope>) | undefined
}

/**
 * A decision about a connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface Step extends StepFor<Connection> {}

/**
 * A decision about a packet, or about the packet that would begin a session.
 *
 * @category models
 * @since 0.1.0
 */
export interface DatagramStep extends StepFor<Datagram> {}

const withStep =
  (make: () => StepFor<Connection | Datagram>) =>
  <A extends StreamTransport | DatagramTransport, E, R>(transport: Layer.Layer<A, E, R>): Layer.Layer<A, E, R> =>
    Layer.flatMap(transport, (context) => {
      const step = make()
      let result: Context.Context<any> = context
      for (const tag of [StreamTransport, DatagramTransport] as ReadonlyArray<Context.Service<any, any>>) {
        const inner = Context.getOrUndefined(result, tag)
        if (inner !== undefined) result = Context.add(result, tag, { ...inner, steps: [...inner.steps, step] })
      }
      return Layer.succeedContext(result as Context.Context<A>)
    })

/**
 * A value, or one that changes while the server runs: what it is set to applies from then on. A value that is not valid fails
 * the server's start; set later, it is logged, and the one before stays.
 *
 * @category models
 * @since 0.1.0
 */
export type Live<A> = A | SubscriptionRef.SubscriptionRef<A>

// ---- what happens at a limit

/**
 * Turns clients away: see {@link reject}.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reject {
  readonly _tag: "Reject"
  readonly farewell?: string | Uint8Array | undefined
  readonly timeout?: Duration.Input | undefined
  readonly max?: number | undefined
}

/**
 * Lets clients wait: see {@link queue}.
 *
 * @category models
 * @since 0.1.0
 */
export interface Queue {
  readonly _tag: "Queue"
  readonly max?: number | undefined
  readonly timeout?: Duration.Input | undefined
}

/**
 * Stops to listen: see {@link pauseListening}.
 *
 * @category models
 * @since 0.1.0
 */
export interface PauseListening {
  readonly _tag: "PauseListening"
}

/**
 * What happens to a client that is one too many.
 *
 * @category models
 * @since 0.1.0
 */
export type Overflow = Reject | Queue | PauseListening

/**
 * Turns the client away: without a farewell at once, so that nothing of it stays; with one, after what it was told has been
 * sent. A farewell is for a step behind the handshakes: before them, the client does not expect it.
 *
 * @category overflow
 * @since 0.1.0
 */
export const reject = (options?: {
  /** What the client is told; strings are UTF-8. Packets are dropped without it. Default: nothing. */
  readonly farewell?: string | Uint8Array | undefined
  /** How long a client may take to hear it, before it is cut. Default 1 second. */
  readonly timeout?: Duration.Input | undefined
  /** How many clients may be hearing it at a time; one more is turned away without. Default 64. */
  readonly max?: number | undefined
}): Reject => ({ _tag: "Reject", ...options })

/**
 * Lets the client wait for room, in order of arrival. Nothing is read from it meanwhile. It is turned away at once if too many
 * wait, or when its time is over.
 *
 * @category overflow
 * @since 0.1.0
 */
export const queue = (options?: {
  /** How many clients may wait. Default 1,024; 0 lets none wait. */
  readonly max?: number | undefined
  /** How long one may wait. Default 5 seconds. */
  readonly timeout?: Duration.Input | undefined
}): Queue => ({ _tag: "Queue", ...options })

/**
 * Closes the listener while there is no room, so that the system refuses new clients, and a load balancer takes another
 * server. Clients that had been accepted by then are turned away. The listener binds again as soon as there is room; if
 * somebody else has taken the address, it tries again every second.
 *
 * @category overflow
 * @since 0.1.0
 */
export const pauseListening: PauseListening = { _tag: "PauseListening" }

const makeRejection = Effect.fnUntraced(function*({ farewell, max = 64, timeout = "1 second" }: Omit<Reject, "_tag">) {
  yield* checkInteger("overflow.max", max, 0)
  const within = yield* checkDuration("overflow.timeout", timeout)
  const bytes = typeof farewell === "string" ? new TextEncoder().encode(farewell) : farewell
  return new Rejection(
    bytes === undefined ? dropped : { farewell: { bytes: new Uint8Array(bytes), timeout: within } },
    max
  )
})

// ---- who a peer is

/**
 * How many first bits of its address make a peer.
 *
 * @category options
 * @since 0.1.0
 */
export interface Prefix {
  /** 0 to 32. Default 32: each address is a peer. */
  readonly ipv4?: number | undefined
  /**
   * 0 to 128. Default 64, which is the least that a provider gives to one customer: whoever has one IPv6 address has 2^64 of
   * them, and a limit for each would be none.
   */
  readonly ipv6?: number | undefined
}

/** Peers on this machine may have no address at all; they cannot be told apart. */
const peerKey = ({ ipv4 = 32, ipv6 = 64 }: Prefix) => (peer: SocketAddress): string | undefined => {
  const ip = ipOf(peer)
  if (ip !== undefined) return prefixOf(ip, ip._tag === "Ipv4Address" ? ipv4 : ipv6)
  return isUnixPathAddress(peer) && peer.path !== "" ? peer.path : undefined
}

const checkPrefix = ({ ipv4, ipv6 }: Prefix) =>
  Effect.andThen(checkInteger("prefix.ipv4", ipv4, 0, 32), checkInteger("prefix.ipv6", ipv6, 0, 128))

// ---- steps

/**
 * Limits how many connections there are: from here on in the pipe until nothing is left of them.
 *
 * **Details**
 *
 * One too many is turned away with `CloseReason` `Refused("maxConnections")`, or waits, or is not accepted, as `overflow` says.
 * At the limit, the server's status is `saturated`. With a lower `max`, connections that are there stay.
 *
 * Before a handshake in the pipe, connections that make it count; behind it, only those that have made it.
 *
 * **Example** (A hundred connections, ten more may wait)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Admission.maxConnections({ max: 100, overflow: Admission.queue({ max: 10, timeout: "2 seconds" }) }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const maxConnections = (options: {
  /** How many, 0 or more. */
  readonly max: Live<number>
  /** What happens to one more. Default {@link reject}. */
  readonly overflow?: Overflow | undefined
}): <E, R>(transport: Layer.Layer<StreamTransport, E, R>) => Layer.Layer<StreamTransport, E, R> =>
  withStep(() => {
    const { overflow = reject() } = options
    let atLimit: ConstructorParameters<typeof Seats>[0]
    const seats = new Seats((self, ticket) => atLimit(self, ticket))
    const max = liveLimit(options.max, (value) => Effect.map(checkLimit("max", value, 0), () => seats.setMax(value)))
    return {
      policy: "maxConnections",
      limit: max.limit,
      pausesListening: overflow._tag === "PauseListening",
      check: (_, ticket) => seats.admit(ticket),
      start: Effect.fnUntraced(function*(gate: Gate) {
        if (overflow._tag === "Queue") {
          const { max = 1_024 } = overflow
          yield* checkInteger("overflow.max", max, 0)
          const timeout = yield* checkDuration("overflow.timeout", overflow.timeout ?? "5 seconds")
          atLimit = (self, ticket) => self.wait(ticket, max, timeout)
        } else {
          const { refuse } = yield* makeRejection(overflow._tag === "Reject" ? overflow : {})
          atLimit = (_, ticket) => refuse(ticket)
        }
        yield* max.start
        yield* seats.attach(gate)
      })
    }
  })

/**
 * Limits how many connections one peer has; of packets, how many are with the handler; of sessions, how many there are.
 *
 * **Details**
 *
 * One too many is turned away with `CloseReason` `Refused("perPeer")`. A peer is an IPv4 address or the first 64 bits of an
 * IPv6 address, see `prefix`. Clients of a unix socket that have no path of their own are not limited: they cannot be told
 * apart. Behind a proxy, put this step behind the proxy's handshake, or all clients are one peer.
 *
 * **Example** (Ten connections for each client)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Admission.perPeer({ max: 10, overflow: Admission.reject({ farewell: "too many connections\n" }) }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const perPeer = (options: {
  /** How many, 0 or more. */
  readonly max: Live<number>
  /** What a peer is. */
  readonly prefix?: Prefix | undefined
  /** How one more is turned away. Default {@link reject}, without a farewell. */
  readonly overflow?: Reject | undefined
}) =>
  withStep(() => {
    const { overflow = reject(), prefix = {} } = options
    const counts = new PeerCounts()
    const keyOf = peerKey(prefix)
    let rejection: Rejection
    const max = liveLimit(options.max, (value) => checkLimit("max", value, 0))
    return {
      policy: "perPeer",
      limit: max.limit,
      check: ({ peer }, ticket) => {
        const key = keyOf(peer)
        if (key === undefined) return true
        if (counts.get(key) >= max.limit.current()) return rejection.refuse(ticket)
        counts.enter(key)
        // Not by what the peer is then: a handshake may tell who it really is.
        ticket.whenReleased(() => counts.leave(key))
        return true
      },
      start: Effect.fnUntraced(function*() {
        yield* checkPrefix(prefix)
        rejection = yield* makeRejection(overflow)
        yield* max.start
      })
    }
  })

/**
 * Limits how many connections or packets come in a time, by a token bucket: for the server, or for each peer.
 *
 * **Details**
 *
 * A bucket holds `burst` tokens and is full at first. Each client takes one; `limit` of them come back in each `interval`,
 * evenly. A client that finds none is turned away, with `CloseReason` `Refused("rate")`, or `Refused("ratePerPeer")`; it takes
 * no token. For both, the server and each peer, use two steps.
 *
 * **Example** (A hundred packets a second from each sender)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 *
 * const Echo = NodeTransport.udp({ port: 7007 }).pipe(
 *   Admission.rate({ limit: 100, per: "peer" }),
 *   Dispatch.serial(),
 *   Server.serveDatagram(({ payload, reply }) => reply(payload))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const rate = (options: {
  /** How many in each `interval`, 1 or more. */
  readonly limit: Live<number>
  /** From 1 millisecond on. Default 1 second. */
  readonly interval?: Duration.Input | undefined
  /** How many at a time, after a pause, 1 or more. Default: `limit`. */
  readonly burst?: number | undefined
  /** For whom the limit is. Default `"server"`. */
  readonly per?: "server" | "peer" | undefined
  /** What a peer is. */
  readonly prefix?: Prefix | undefined
  /**
   * Of how many peers the recent past is remembered, 1 or more. A peer is forgotten when its bucket is full, and when there is
   * one more, the one that was heard of longest ago is. Default 16,384.
   */
  readonly maxPeers?: number | undefined
  /** How one more is turned away. Default {@link reject}, without a farewell. */
  readonly overflow?: Reject | undefined
}) =>
  withStep(() => {
    const { burst, interval = "1 second", maxPeers = 16_384, overflow = reject(), prefix = {} } = options
    const isPerPeer = options.per === "peer"
    const keyOf = isPerPeer ? peerKey(prefix) : () => ""
    let buckets: TokenBuckets | undefined
    let rejection: Rejection
    let now: () => number
    const limit = liveLimit(options.limit, (value) =>
      Effect.map(checkLimit("limit", value, 1), () => buckets!.setRate(value, burst ?? value, now())))
    return {
      policy: isPerPeer ? "ratePerPeer" : "rate",
      limit: limit.limit,
      check: ({ peer }, ticket) => {
        const key = keyOf(peer)
        return key === undefined || buckets!.take(key, now()) || rejection.refuse(ticket)
      },
      start: Effect.fnUntraced(function*() {
        const clock = yield* Clock.Clock
        now = () =>
          clock.currentTimeMillisUnsafe()
        const millis = Math.round(Duration.toMillis(yield* checkDuration("interval", interval)))
        if (!(millis >= 1 && millis <= 2 ** 31)) {
          return yield* invalidOption("interval", interval, "a duration of 1 millisecond to 24 days")
        }
        yield* checkInteger("burst", burst, 1)
        yield* checkInteger("maxPeers", maxPeers, 1)
        yield* checkPrefix(prefix)
        rejection = yield* makeRejection(overflow)
        // Of a layer that is used again, as `handleOne` does, the past counts.
        buckets ??= new TokenBuckets(millis, maxPeers)
        yield* limit.start
      })
    }
  })

/** It has to be there. */
const checkLimit = (option: string, value: number, least: number) =>
  value === undefined
    ? Effect.fail(invalidOption(option, value, `an integer, ${least} or more`))
    : checkInteger(option, value, least)

const networksStep = <A extends IpNetworkInput>(
  policy: "allow" | "deny",
  list: Live<ReadonlyArray<A>>
): StepFor<Connection | Datagram> => {
  const isAllowed = policy === "allow"
  let networks: Networks
  return {
    policy,
    check: ({ peer }) => {
      const ip = ipOf(peer)
      return (ip !== undefined && networks.has(ip)) === isAllowed || dropped
    },
    start: () =>
      follow(list, (inputs) =>
        Effect.gen(function*() {
          const compiled = new Networks()
          for (const input of inputs) {
            const network = toNetwork(input)
            if (Result.isFailure(network)) {
              return yield* invalidOption(
                policy,
                typeof input === "string" ? input : JSON.stringify(input),
                `networks such as "10.0.0.0/8" or "fd00::/8", or addresses (${network.failure.message})`
              )
            }
            compiled.add(network.success)
          }
          networks = compiled
        }))
  }
}

/**
 * Lets in only whose address is in one of the networks; others are turned away at once, with `CloseReason` `Refused("allow")`.
 *
 * **Details**
 *
 * A network is a string such as `"10.0.0.0/8"` or `"2001:db8::/32"`, a single address, or an `IpNetwork`. IPv4 clients of a
 * dual-stack listener are IPv4 addresses, and so are networks within `::ffff:0:0/96`. A client without an IP address, such as
 * one of a unix socket, is in no network. An address with bits beyond its prefix is not valid: `InvalidOption`.
 *
 * **Example** (Only from private networks)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Stream } from "effect"
 *
 * const Echo = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Admission.allow(["127.0.0.1", "10.0.0.0/8", "fd00::/8"]),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const allow = <A extends IpNetworkInput>(networks: Live<ReadonlyArray<A>>) =>
  withStep(() => networksStep("allow", networks))

/**
 * Turns away at once whose address is in one of the networks, with `CloseReason` `Refused("deny")`. The list may be long: what
 * a look-up costs does not depend on it. A client without an IP address is in no network. See {@link allow}.
 *
 * **Example** (A list that grows while the server runs)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Effect, Layer, Stream, SubscriptionRef } from "effect"
 *
 * const Echo = Layer.unwrap(Effect.gen(function*() {
 *   const banned = yield* SubscriptionRef.make<ReadonlyArray<string>>(["192.0.2.0/24"])
 *   yield* SubscriptionRef.update(banned, (networks) => [...networks, "203.0.113.7"])
 *   return NodeTransport.tcp({ port: 7007 }).pipe(
 *     Admission.deny(banned),
 *     Dispatch.fiberPerRequest(),
 *     Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 *   )
 * }))
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const deny = <A extends IpNetworkInput>(networks: Live<ReadonlyArray<A>>) =>
  withStep(() => networksStep("deny", networks))

/**
 * Asks an effect about every client before it is dispatched: Python's `verify_request`.
 *
 * **Details**
 *
 * `false` closes the connection with `CloseReason` `Refused("verify")`. An effect that fails or dies refuses too, and its
 * cause goes to the server's `onError`. The check may read from and write to the connection; what it reads is consumed. That its
 * client is gone, or sends too much, is no failure of the server's: without an `onError`, it is logged at `Debug`.
 *
 * **Example** (Serving local clients only)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Admission, Dispatch, Server } from "@socketserver/core"
 * import { Effect, Stream } from "effect"
 * import { NetAddress } from "effect/net"
 *
 * const LocalEcho = NodeTransport.tcp({ port: 7007 }).pipe(
 *   Admission.verify(({ peer }) => Effect.succeed(NetAddress.isInetAddress(peer) && NetAddress.isLoopback(peer.address))),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => Stream.run(connection.bytes, connection.sink))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const verify = <E, R>(
  check: (connection: Connection) => Effect.Effect<boolean, E, R>
): <E2, R2>(transport: Layer.Layer<StreamTransport, E2, R2>) => Layer.Layer<StreamTransport, E2, R | R2> =>
(transport) =>
  Layer.effect(
    StreamTransport,
    Effect.gen(function*() {
      const inner = yield* StreamTransport
      const context = yield* Effect.context<R>()
      return {
        ...inner,
        steps: [
          ...inner.steps,
          { policy: "verify", check: (connection) => Effect.provideContext(check(connection), context) }
        ]
      }
    })
  ).pipe(Layer.provide(transport)) as Layer.Layer<StreamTransport, never, any>

/**
 * Asks an effect about every packet before it is dispatched: Python's `verify_request`, for datagrams.
 *
 * **Details**
 *
 * `false` drops the packet with `CloseReason` `Refused("verify")`. An effect that fails or dies drops it too, and its cause
 * goes to the server's `onError`. Whom a packet says it is from proves nothing: anybody can write any address there.
 *
 * @category steps
 * @since 0.1.0
 */
export const verifyDatagram = <E, R>(
  check: (datagram: Datagram) => Effect.Effect<boolean, E, R>
): <E2, R2>(transport: Layer.Layer<DatagramTransport, E2, R2>) => Layer.Layer<DatagramTransport, E2, R | R2> =>
(transport) =>
  Layer.effect(
    DatagramTransport,
    Effect.gen(function*() {
      const inner = yield* DatagramTransport
      const context = yield* Effect.context<R>()
      return {
        ...inner,
        steps: [
          ...inner.steps,
          { policy: "verify", check: (datagram) => Effect.provideContext(check(datagram), context) }
        ]
      }
    })
  ).pipe(Layer.provide(transport)) as Layer.Layer<DatagramTransport, never, any>
