/** Limits: who is let in, who waits, who is turned away; and that nothing of that stays. */
import { assert, describe, it } from "@effect/vitest"
import {
  Admission,
  CloseReason,
  type Connection,
  Dispatch,
  Logging,
  MemoryTransport,
  Server,
  type StreamTransport
} from "@socketserver/core"
import { Context, Deferred, Effect, Exit, Fiber, Latch, Layer, Option, Stream, SubscriptionRef } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { PeerCounts } from "../src/internal/peerCounts.ts"
import { TokenBuckets } from "../src/internal/tokenBuckets.ts"
import { forkSettled, settle } from "./utils.ts"

type Step = <E, R>(
  transport: Layer.Layer<StreamTransport.StreamTransport, E, R>
) => Layer.Layer<StreamTransport.StreamTransport, E, R>

const start = <E>(
  step: Step,
  handler: Server.StreamHandler<E, never>,
  options?: Server.ServerOptions<NoInfer<E>>
) =>
  Effect.map(
    Layer.build(MemoryTransport.stream().pipe(step, Dispatch.fiberPerRequest(), Server.serveStream(handler, options))),
    Context.get(Server.Server)
  )

/** Greets, and stays until its client has finished. */
const greet = (connection: Connection.Connection) =>
  Effect.andThen(connection.write("hello\n"), Stream.runDrain(connection.bytes))

const connect = (server: { readonly address: NetAddress.SocketAddress }, from?: string) =>
  Effect.tap(
    MemoryTransport.connect(server.address, {
      from: from === undefined ? undefined : NetAddress.inetAddressFromNativeUnsafe(from, 4_000)
    }),
    () => settle
  )

/** What the client has been told so far: `undefined` where it still waits to hear something. */
const heard = (client: Connection.Connection) =>
  Effect.gen(function*() {
    const reading = yield* forkSettled(Effect.exit(client.readLine()))
    const exit = reading.pollUnsafe()
    yield* Fiber.interrupt(reading)
    if (exit === undefined) return undefined
    return Exit.isSuccess(exit) ? Exit.isSuccess(exit.value) ? exit.value.value : "closed" : "interrupted"
  })

const leave = (client: Connection.Connection) => Effect.andThen(client.close, settle)

const optionOf = (step: Step) =>
  Effect.map(
    Effect.flip(start(step, () => Effect.void)),
    ({ reason }) => reason._tag === "InvalidOption" ? reason.option : reason._tag
  )

describe("maxConnections", () => {
  it.effect("turns away one too many, counted, and lets the next one in when one has left", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.maxConnections({ max: 2 }), greet)
      const clients = [yield* connect(server), yield* connect(server), yield* connect(server)]
      assert.deepStrictEqual(yield* Effect.forEach(clients, heard), ["hello", "hello", "closed"])
      assert.deepStrictEqual((yield* server.stats).refused, { maxConnections: 1 })
      yield* leave(clients[0]!)
      assert.strictEqual(yield* heard(yield* connect(server)), "hello")
    }))

  it.effect("is saturated at the limit, with an event, and not any more when there is room", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.maxConnections({ max: 1 }), greet)
      const events = yield* forkSettled(
        server.events.pipe(
          Stream.filter(({ _tag }) => _tag === "Saturated" || _tag === "Relieved"),
          Stream.take(2),
          Stream.runCollect
        )
      )
      assert.strictEqual(yield* server.status, "ready")
      const client = yield* connect(server)
      assert.strictEqual(yield* server.status, "saturated")
      yield* leave(client)
      assert.strictEqual(yield* server.status, "ready")
      assert.deepStrictEqual(yield* Fiber.join(events), [
        { _tag: "Saturated", policy: "maxConnections" },
        { _tag: "Relieved", policy: "maxConnections" }
      ])
    }))

  it.effect("says farewell, to so many at a time", () =>
    Effect.gen(function*() {
      const full = (max: number) =>
        Admission.maxConnections({ max: 0, overflow: Admission.reject({ farewell: "busy\n", max }) })
      const client = yield* connect(yield* start(full(1), greet))
      assert.deepStrictEqual([yield* heard(client), yield* heard(client)], ["busy", "closed"])
      assert.strictEqual(yield* heard(yield* connect(yield* start(full(0), greet))), "closed")
    }))

  it.effect("is one limit for all servers that are made of one layer", () =>
    Effect.gen(function*() {
      const limited = MemoryTransport.stream().pipe(Admission.maxConnections({ max: 1 }), Dispatch.fiberPerRequest())
      class A extends Server.Service<A>()("A") {}
      class B extends Server.Service<B>()("B") {}
      const servers = yield* Layer.build(Layer.merge(
        limited.pipe(Server.serveStream(greet), Server.as(A)),
        limited.pipe(Server.serveStream(greet), Server.as(B))
      ))
      assert.strictEqual(yield* heard(yield* connect(Context.get(servers, A))), "hello")
      assert.strictEqual(yield* heard(yield* connect(Context.get(servers, B))), "closed")
      assert.deepStrictEqual(
        yield* Effect.all([Context.get(servers, A).status, Context.get(servers, B).status]),
        ["saturated", "saturated"]
      )
    }))

  it.effect("counts from one `handleOne` to the next, and so does a rate", () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(
        MemoryTransport.stream().pipe(Admission.maxConnections({ max: 1 }), Admission.rate({ limit: 2 }))
      )
      const listener = yield* Effect.provideContext(Server.listen, context)
      const reasons: Array<unknown> = []
      for (let i = 0; i < 3; i++) {
        yield* MemoryTransport.connect(listener.address)
        reasons.push(Option.getOrUndefined(yield* Server.handleOne(listener, () => Effect.void)))
      }
      const { Completed, Refused } = CloseReason
      assert.deepStrictEqual(reasons, [Completed, Completed, Refused("rate")])
    }))

  it.effect("follows its limit both ways: those that are there stay, and those that wait come in", () =>
    Effect.gen(function*() {
      const max = yield* SubscriptionRef.make(1)
      const server = yield* start(Admission.maxConnections({ max, overflow: Admission.queue() }), greet)
      const first = yield* connect(server)
      const second = yield* connect(server)
      const third = yield* connect(server)
      assert.deepStrictEqual(yield* Effect.forEach([first, second, third], heard), ["hello", undefined, undefined])
      yield* SubscriptionRef.set(max, 3)
      yield* settle
      assert.deepStrictEqual(yield* Effect.forEach([second, third], heard), ["hello", "hello"])
      yield* SubscriptionRef.set(max, 1)
      yield* settle
      assert.deepStrictEqual([(yield* server.stats).inFlight, yield* server.status], [3, "saturated"])
      yield* leave(first)
      yield* leave(second)
      const fourth = yield* connect(server)
      assert.strictEqual(yield* heard(fourth), undefined)
      yield* leave(third)
      assert.strictEqual(yield* heard(fourth), "hello")
    }))

  it.effect("keeps its limit when it is set to something that is none", () =>
    Effect.gen(function*() {
      const max = yield* SubscriptionRef.make(1)
      const server = yield* start(Admission.maxConnections({ max }), greet)
      for (const wrong of [Number.NaN, -1, 1.5]) yield* SubscriptionRef.set(max, wrong)
      yield* settle
      assert.strictEqual(yield* heard(yield* connect(server)), "hello")
      assert.strictEqual(yield* heard(yield* connect(server)), "closed")
    }))

  it.effect("gives back every place: by a return, a failure, a kill, a close by hand", () =>
    Effect.gen(function*() {
      const server = yield* start(
        Admission.maxConnections({ max: 1 }),
        (connection) => Effect.andThen(connection.write("hello\n"), Effect.flatMap(connection.readLine(), Effect.fail)),
        { onError: () => Effect.void }
      )
      for (const end of ["end", "line", "reset", "byHand"]) {
        const client = yield* connect(server)
        assert.strictEqual(yield* heard(client), "hello", end)
        if (end === "end") yield* client.end
        else if (end === "line") yield* client.write("fail\n")
        else if (end === "reset") yield* client.reset
        else yield* server.connections.close((yield* server.connections.list)[0]!.id)
        yield* settle
        assert.strictEqual((yield* server.stats).open, 0, end)
      }
      assert.strictEqual((yield* server.stats).refused["maxConnections"], undefined)
    }))

  it.effect("says what is wrong with its options when the server starts", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* optionOf(Admission.maxConnections({ max: -1 })), "max")
      assert.strictEqual(yield* optionOf(Admission.maxConnections({ max: undefined as any })), "max")
      assert.strictEqual(
        yield* optionOf(Admission.maxConnections({ max: 1, overflow: Admission.queue({ max: -1 }) })),
        "overflow.max"
      )
      assert.strictEqual(
        yield* optionOf(
          Admission.maxConnections({ max: 1, overflow: Admission.queue({ timeout: "-1 second" as any }) })
        ),
        "overflow.timeout"
      )
    }))
})

describe("the limits of a server", () => {
  const steps: Step = (transport) =>
    transport.pipe(
      Admission.rate({ limit: 100 }),
      Admission.maxConnections({ max: 2 }),
      Admission.rate({ limit: 50 }),
      Admission.perPeer({ max: 10 })
    )

  it.effect("are listed by the names of their policies, each by itself, and shown in `info`", () =>
    Effect.gen(function*() {
      const server = yield* start(steps, greet)
      const expected = { rate: 100, maxConnections: 2, "rate-2": 50, perPeer: 10 }
      assert.deepStrictEqual(yield* server.limits.list, expected)
      assert.deepStrictEqual((yield* server.info).limits, expected)
      assert.isTrue(yield* server.limits.set("rate-2", 60))
      assert.deepStrictEqual(yield* server.limits.list, { ...expected, "rate-2": 60 })
    }))

  it.effect("change while it runs: for those that come, and those that wait", () =>
    Effect.gen(function*() {
      const server = yield* start(
        Admission.maxConnections({ max: 1, overflow: Admission.queue() }),
        greet
      )
      const first = yield* connect(server)
      const second = yield* connect(server)
      assert.deepStrictEqual([yield* heard(first), yield* heard(second)], ["hello", undefined])
      assert.isTrue(yield* server.limits.set("maxConnections", 2))
      yield* settle
      assert.strictEqual(yield* heard(second), "hello")
      assert.isTrue(yield* server.limits.set("maxConnections", 1))
      const third = yield* connect(server)
      assert.strictEqual(yield* heard(third), undefined)
    }))

  it.effect("change each kind of step: how many a peer has, and how fast clients come", () =>
    Effect.gen(function*() {
      const peers = yield* start(Admission.perPeer({ max: 1 }), greet)
      yield* connect(peers, "10.0.0.1")
      yield* peers.limits.set("perPeer", 2)
      assert.deepStrictEqual(
        [yield* heard(yield* connect(peers, "10.0.0.1")), yield* heard(yield* connect(peers, "10.0.0.1"))],
        ["hello", "closed"]
      )
      const fast = yield* start(Admission.rate({ limit: 1, per: "peer" }), greet)
      yield* fast.limits.set("ratePerPeer", 2)
      const heards = yield* Effect.forEach([1, 2, 3], () => Effect.flatMap(connect(fast, "10.0.0.1"), heard))
      assert.deepStrictEqual(heards, ["hello", "hello", "closed"])
    }))

  it.effect("are one with the reference that they were made of, either way", () =>
    Effect.gen(function*() {
      const max = yield* SubscriptionRef.make(5)
      const server = yield* start(Admission.maxConnections({ max }), greet)
      yield* server.limits.set("maxConnections", 6)
      assert.strictEqual(yield* SubscriptionRef.get(max), 6)
      yield* SubscriptionRef.set(max, 7)
      yield* settle
      assert.deepStrictEqual(yield* server.limits.list, { maxConnections: 7 })
    }))

  it.effect("can be changed when their server has stopped, which does not tell of it", () =>
    Effect.gen(function*() {
      const told: Array<string> = []
      const log = Logging.layer({ debug: true, log: (event) => Effect.sync(() => told.push(event._tag)) })
      const server = yield* Effect.provide(start(Admission.maxConnections({ max: 1 }), () => Effect.void), log)
      yield* server.drain()
      yield* server.limits.set("maxConnections", 0)
      assert.strictEqual(told.at(-1), "Stopped")
    }))

  it.effect("stay as they are when they are set to something that is none, or do not exist", () =>
    Effect.gen(function*() {
      const server = yield* start(steps, greet)
      for (const value of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
        for (const name of ["rate", "maxConnections", "perPeer"]) {
          const error = yield* Effect.flip(server.limits.set(name, value))
          assert.strictEqual(error.reason._tag, "InvalidOption")
        }
      }
      assert.isFalse(yield* server.limits.set("rate-3", 1))
      assert.isFalse(yield* server.limits.set("constructor", 1))
      assert.deepStrictEqual((yield* server.limits.list)["rate"], 100)
    }))
})

describe("a queue in front of the limit", () => {
  const startQueued = (options?: Parameters<typeof Admission.queue>[0]) =>
    start(Admission.maxConnections({ max: 1, overflow: Admission.queue(options) }), greet)

  it.effect("lets clients in by the order in which they came", () =>
    Effect.gen(function*() {
      const server = yield* startQueued()
      const clients = [yield* connect(server), yield* connect(server), yield* connect(server)]
      for (let i = 0; i < 3; i++) {
        const told = yield* Effect.forEach(clients.slice(i), heard)
        assert.deepStrictEqual(told, ["hello", undefined, undefined].slice(0, 3 - i))
        yield* leave(clients[i]!)
      }
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 3 })
    }))

  it.effect("is bounded, and turns away whoever finds it full", () =>
    Effect.gen(function*() {
      const server = yield* startQueued({ max: 1 })
      const clients = [yield* connect(server), yield* connect(server), yield* connect(server)]
      assert.deepStrictEqual(yield* Effect.forEach(clients, heard), ["hello", undefined, "closed"])
    }))

  it.effect("turns away who has waited for its time, and goes on without", () =>
    Effect.gen(function*() {
      const server = yield* startQueued({ timeout: "3 seconds" })
      const first = yield* connect(server)
      const second = yield* connect(server)
      yield* TestClock.adjust("1 second")
      const third = yield* connect(server)
      yield* TestClock.adjust(1_999)
      assert.strictEqual(yield* heard(second), undefined)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual([yield* heard(second), yield* heard(third)], ["closed", undefined])
      assert.deepStrictEqual((yield* server.stats).refused, { maxConnections: 1 })
      assert.strictEqual(yield* heard(first), "hello")
      yield* leave(first)
      assert.strictEqual(yield* heard(third), "hello")
    }))

  it.effect("is emptied by a drain, at once", () =>
    Effect.gen(function*() {
      const server = yield* startQueued({ timeout: "1 hour" })
      yield* connect(server)
      const waiting = yield* connect(server)
      const report = yield* server.drain()
      assert.deepStrictEqual([report.refused, report.idleClosed, report.killed], [1, 1, 0])
      assert.strictEqual(yield* heard(waiting), "closed")
      assert.deepStrictEqual((yield* server.stats).refused, { draining: 1 })
    }))

  it.effect("forgets who is closed by hand while it waits", () =>
    Effect.gen(function*() {
      const server = yield* startQueued()
      const first = yield* connect(server)
      yield* connect(server)
      const third = yield* connect(server)
      assert.isTrue(yield* server.connections.close(2))
      yield* leave(first)
      assert.strictEqual(yield* heard(third), "hello")
    }))

  it.effect("of a thousand, whose handlers end at once, is worked off", () =>
    Effect.gen(function*() {
      const latch = yield* Latch.make(false)
      const server = yield* start(
        Admission.maxConnections({ max: 1, overflow: Admission.queue() }),
        () => latch.await
      )
      for (let i = 0; i < 1_000; i++) yield* MemoryTransport.connect(server.address)
      yield* settle
      yield* latch.open
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1_000 })
      assert.strictEqual(yield* server.status, "ready")
    }))

  it.effect("and what was killed there leave no place taken", () =>
    Effect.gen(function*() {
      const server = yield* start(
        Admission.maxConnections({ max: 1, overflow: Admission.queue() }),
        () => Effect.uninterruptible(Effect.never)
      )
      yield* connect(server)
      yield* connect(server)
      const drain = yield* forkSettled(server.drain({ grace: "1 second", kill: "1 second" }))
      yield* TestClock.adjust("2 seconds")
      const report = yield* Fiber.join(drain)
      assert.deepStrictEqual([report.refused, report.killed], [1, 1])
      assert.deepStrictEqual([(yield* server.stats).open, yield* server.status], [0, "stopped"])
    }))
})

describe("pauseListening", () => {
  const paused = (max: Admission.Live<number>) =>
    start(Admission.maxConnections({ max, overflow: Admission.pauseListening }), greet)

  it.effect("closes the listener at the limit, and listens at the same address when there is room", () =>
    Effect.gen(function*() {
      const server = yield* paused(1)
      const client = yield* connect(server)
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
      assert.strictEqual(yield* server.status, "saturated")
      yield* leave(client)
      assert.strictEqual(yield* server.status, "ready")
      assert.strictEqual(yield* heard(yield* connect(server)), "hello")
      assert.deepStrictEqual((yield* server.stats).refused, {})
    }))

  it.effect("follows its limit, also where there is no room from the start", () =>
    Effect.gen(function*() {
      const max = yield* SubscriptionRef.make(0)
      const server = yield* paused(max)
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
      yield* SubscriptionRef.set(max, 2)
      yield* settle
      yield* connect(server)
      yield* connect(server)
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
    }))

  it.effect("leaves a server suspended that somebody has suspended, and a resumed one closed while it is full", () =>
    Effect.gen(function*() {
      const server = yield* paused(1)
      const client = yield* connect(server)
      yield* server.suspend
      yield* leave(client)
      assert.strictEqual(yield* server.status, "suspended")
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
      yield* server.resume
      const next = yield* connect(server)
      yield* server.suspend
      yield* server.resume
      assert.strictEqual(yield* server.status, "saturated")
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
      yield* leave(next)
      assert.strictEqual(yield* heard(yield* connect(server)), "hello")
    }))

  it.effect("tries again each second where somebody else has taken the address", () =>
    Effect.gen(function*() {
      const server = yield* paused(1)
      const client = yield* connect(server)
      const name = (server.address as NetAddress.UnixPathAddress).path
      const squatter = yield* Effect.scoped(Effect.gen(function*() {
        yield* Layer.build(
          MemoryTransport.stream({ name }).pipe(Dispatch.serial(), Server.serveStream(() => Effect.void))
        )
        yield* leave(client)
        return yield* Deferred.make<void>()
      }))
      assert.isDefined(squatter)
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* heard(yield* connect(server)), "hello")
    }))

  it.effect("ends with the drain: the listener stays closed", () =>
    Effect.gen(function*() {
      const server = yield* paused(1)
      yield* connect(server)
      yield* server.drain()
      assert.strictEqual(yield* server.status, "stopped")
      assert.strictEqual((yield* Effect.flip(connect(server)))._tag, "ConnectionRefused")
    }))
})

describe("perPeer", () => {
  it.effect("limits each peer by itself: an IPv4 address, 64 bits of an IPv6 one", () =>
    Effect.gen(function*() {
      const server = yield* start(
        Admission.perPeer({ max: 1, overflow: Admission.reject({ farewell: "too many\n" }) }),
        greet
      )
      const told = (from: string) => Effect.flatMap(connect(server, from), heard)
      assert.strictEqual(yield* told("192.0.2.1"), "hello")
      assert.strictEqual(yield* told("192.0.2.2"), "hello")
      assert.strictEqual(yield* told("192.0.2.1"), "too many")
      assert.strictEqual(yield* told("::ffff:192.0.2.1"), "too many")
      assert.strictEqual(yield* told("2001:db8::1"), "hello")
      assert.strictEqual(yield* told("2001:db8::ffff:1"), "too many")
      assert.strictEqual(yield* told("2001:db8:0:1::1"), "hello")
      assert.deepStrictEqual((yield* server.stats).refused, { perPeer: 3 })
    }))

  it.effect("counts by other prefixes, if it is told to, and follows its limit", () =>
    Effect.gen(function*() {
      const max = yield* SubscriptionRef.make(1)
      const server = yield* start(Admission.perPeer({ max, prefix: { ipv4: 20, ipv6: 128 } }), greet)
      const told = (from: string) => Effect.flatMap(connect(server, from), heard)
      assert.strictEqual(yield* told("10.0.0.1"), "hello")
      assert.strictEqual(yield* told("10.0.15.255"), "closed")
      assert.strictEqual(yield* told("10.0.16.0"), "hello")
      assert.strictEqual(yield* told("::2"), "hello")
      assert.strictEqual(yield* told("::3"), "hello")
      yield* SubscriptionRef.set(max, 2)
      yield* settle
      assert.strictEqual(yield* told("10.0.15.255"), "hello")
    }))

  it.effect("does not limit clients that cannot be told apart", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.perPeer({ max: 0 }), greet)
      const unnamed = yield* MemoryTransport.connect(server.address, { from: NetAddress.unixPathAddress("") })
      assert.strictEqual(yield* heard(unnamed), "hello")
      assert.strictEqual(yield* heard(yield* connect(server)), "closed")
    }))

  it.effect(
    "has forgotten each peer after 10,000 connections that were let in, refused, reset and cut",
    () =>
      Effect.gen(function*() {
        const server = yield* start(Admission.perPeer({ max: 1 }), (connection) => connection.readLine())
        const address = (i: number) => `10.0.0.${i % 250}`
        for (let i = 0; i < 10_000; i++) {
          const from = NetAddress.inetAddressFromNativeUnsafe(address(i), 4_000)
          const client = yield* MemoryTransport.connect(server.address, { from })
          if (i % 4 === 0) yield* MemoryTransport.connect(server.address, { from }).pipe(Effect.scoped)
          yield* i % 2 === 0 ? client.reset : client.close
        }
        yield* server.awaitIdle
        assert.deepStrictEqual((yield* server.stats).refused, { perPeer: 2_500 })
        for (let i = 0; i < 500; i++) yield* connect(server, address(i))
        assert.strictEqual((yield* server.stats).refused["perPeer"], 2_500 + 250)
      }),
    60_000
  )

  it("keeps no peer in its table that has no connection", () => {
    const counts = new PeerCounts()
    for (let i = 0; i < 10_000; i++) counts.enter(String(i % 100))
    assert.strictEqual(counts.size, 100)
    for (let i = 0; i < 10_000; i++) counts.leave(String(i % 100))
    assert.strictEqual(counts.size, 0)
  })

  it.effect("says what is wrong with its options when the server starts", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* optionOf(Admission.perPeer({ max: 1, prefix: { ipv4: 33 } })), "prefix.ipv4")
      assert.strictEqual(yield* optionOf(Admission.perPeer({ max: 1, prefix: { ipv6: -1 } })), "prefix.ipv6")
      assert.strictEqual(yield* optionOf(Admission.perPeer({ max: 0.5 })), "max")
    }))
})

describe("rate", () => {
  const admitted = (server: Server.Server["Service"], count: number, from?: string) =>
    Effect.gen(function*() {
      const before = (yield* server.stats).closed["Completed"] ?? 0
      for (let i = 0; i < count; i++) yield* Effect.scoped(connect(server, from))
      yield* server.awaitIdle
      return ((yield* server.stats).closed["Completed"] ?? 0) - before
    })
  const once: Server.StreamHandler<never, never> = () => Effect.void

  it.effect("lets in a burst, and then one for each token that has come back, to the millisecond", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.rate({ limit: 10, burst: 3 }), once)
      assert.strictEqual(yield* admitted(server, 5), 3)
      yield* TestClock.adjust(99)
      assert.strictEqual(yield* admitted(server, 1), 0)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* admitted(server, 2), 1)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* admitted(server, 5), 3)
      assert.deepStrictEqual((yield* server.stats).refused, { rate: 2 + 1 + 1 + 2 })
    }))

  it.effect("is exact where a token takes no whole number of milliseconds", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.rate({ limit: 3, burst: 2 }), once)
      assert.strictEqual(yield* admitted(server, 2), 2)
      for (const [millis, count] of [[333, 0], [1, 1], [332, 0], [1, 1], [333, 1]] as const) {
        yield* TestClock.adjust(millis)
        assert.strictEqual(yield* admitted(server, 1), count)
      }
    }))

  it.effect("is for each peer, if it is told to", () =>
    Effect.gen(function*() {
      const server = yield* start(Admission.rate({ limit: 2, interval: "1 minute", per: "peer" }), once)
      assert.strictEqual(yield* admitted(server, 3, "192.0.2.1"), 2)
      assert.strictEqual(yield* admitted(server, 3, "192.0.2.2"), 2)
      assert.strictEqual(yield* admitted(server, 3, "2001:db8::1"), 2)
      assert.strictEqual(yield* admitted(server, 1, "2001:db8::2"), 0)
      assert.deepStrictEqual((yield* server.stats).refused, { ratePerPeer: 4 })
    }))

  it.effect("follows its limit both ways; what has come back until then has", () =>
    Effect.gen(function*() {
      const limit = yield* SubscriptionRef.make(1)
      const server = yield* start(Admission.rate({ limit, burst: 4 }), once)
      assert.strictEqual(yield* admitted(server, 5), 4)
      yield* TestClock.adjust("2 seconds")
      yield* SubscriptionRef.set(limit, 1_000)
      yield* settle
      assert.strictEqual(yield* admitted(server, 5), 2)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* admitted(server, 5), 1)
      yield* SubscriptionRef.set(limit, 1)
      yield* settle
      yield* TestClock.adjust(999)
      assert.strictEqual(yield* admitted(server, 5), 0)
    }))

  it.effect("says what is wrong with its options when the server starts", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* optionOf(Admission.rate({ limit: 0 })), "limit")
      assert.strictEqual(yield* optionOf(Admission.rate({ limit: 1, interval: 0 })), "interval")
      assert.strictEqual(yield* optionOf(Admission.rate({ limit: 1, burst: 0 })), "burst")
      assert.strictEqual(yield* optionOf(Admission.rate({ limit: 1, maxPeers: 0 })), "maxPeers")
    }))

  it("forgets peers whose bucket is full, and beyond its bound who was heard of longest ago", () => {
    const buckets = new TokenBuckets(1_000, 3)
    buckets.setRate(1, 1, 0)
    for (const peer of ["a", "b", "c"]) assert.isTrue(buckets.take(peer, 0))
    assert.isFalse(buckets.take("a", 1))
    assert.isTrue(buckets.take("d", 2))
    assert.strictEqual(buckets.size, 3)
    assert.isFalse(buckets.take("a", 3))
    assert.isTrue(buckets.take("b", 3)) // It was forgotten.
    assert.isTrue(buckets.take("z", 2_000))
    assert.strictEqual(buckets.size, 1)
  })

  it("does not count backwards when the clock is set back", () => {
    const buckets = new TokenBuckets(1_000, 3)
    buckets.setRate(1, 1, 0)
    assert.isTrue(buckets.take("a", 5_000))
    assert.isFalse(buckets.take("a", 0))
    assert.isTrue(buckets.take("a", 6_000))
  })
})

describe("allow and deny", () => {
  const refusedBy = (step: Step, from: string) =>
    Effect.gen(function*() {
      const server = yield* start(step, greet)
      return (yield* heard(yield* connect(server, from))) === "closed" ? Object.keys((yield* server.stats).refused) : []
    })

  it.effect("decide by the address, at the edges of a network, of either family", () =>
    Effect.gen(function*() {
      const cases = [
        ["10.0.0.0/8", "10.255.255.255", true],
        ["10.0.0.0/8", "11.0.0.0", false],
        ["192.0.2.128/25", "192.0.2.127", false],
        ["192.0.2.128/25", "192.0.2.128", true],
        ["192.0.2.7", "192.0.2.7", true],
        ["192.0.2.7", "192.0.2.6", false],
        ["0.0.0.0/0", "203.0.113.1", true],
        ["0.0.0.0/0", "::1", false],
        ["2001:db8::/33", "2001:db8:7fff::1", true],
        ["2001:db8::/33", "2001:db8:8000::1", false],
        ["::1", "::1", true],
        ["::/0", "127.0.0.1", false],
        ["10.0.0.0/8", "::ffff:10.1.2.3", true],
        ["::ffff:10.0.0.0/104", "10.1.2.3", true],
        ["::ffff:10.0.0.0/104", "::ffff:11.1.2.3", false]
      ] as const
      for (const [network, from, isIn] of cases) {
        const what = `${from} in ${network}`
        assert.deepStrictEqual(yield* refusedBy(Admission.allow([network]), from), isIn ? [] : ["allow"], what)
        assert.deepStrictEqual(yield* refusedBy(Admission.deny([network]), from), isIn ? ["deny"] : [], what)
      }
    }))

  it.effect("have a client without an IP address in no network", () =>
    Effect.gen(function*() {
      const networks = ["0.0.0.0/0", "::/0"]
      const allowing = yield* start(Admission.allow(networks), greet)
      assert.strictEqual(yield* heard(yield* connect(allowing)), "closed")
      const denying = yield* start(Admission.deny(networks), greet)
      assert.strictEqual(yield* heard(yield* connect(denying)), "hello")
    }))

  it.effect("follow their list, and keep it when it is set to one with a mistake", () =>
    Effect.gen(function*() {
      const list = yield* SubscriptionRef.make<ReadonlyArray<string>>([])
      const server = yield* start(Admission.deny(list), greet)
      const told = Effect.flatMap(connect(server, "192.0.2.1"), heard)
      assert.strictEqual(yield* told, "hello")
      yield* SubscriptionRef.set(list, ["192.0.2.0/24"])
      yield* settle
      assert.strictEqual(yield* told, "closed")
      yield* SubscriptionRef.set(list, ["192.0.2.0/33"])
      yield* settle
      assert.strictEqual(yield* told, "closed")
      yield* SubscriptionRef.set(list, [])
      yield* settle
      assert.strictEqual(yield* told, "hello")
    }))

  it.effect("say which network is wrong when the server starts", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* optionOf(Admission.allow(["10.0.0.1/8"])), "allow")
      assert.strictEqual(yield* optionOf(Admission.deny(["10.0.0.0/8", "ten"])), "deny")
    }))
})

describe("steps together", () => {
  it.effect("are asked in the order of the pipe: what the first refuses takes no place at the second", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (transport) =>
          transport.pipe(
            Admission.deny(["192.0.2.0/24"]),
            Admission.maxConnections({ max: 1 }),
            Admission.perPeer({ max: 1 })
          ),
        greet
      )
      assert.strictEqual(yield* heard(yield* connect(server, "192.0.2.1")), "closed")
      assert.strictEqual(yield* heard(yield* connect(server, "10.0.0.1")), "hello")
      assert.strictEqual(yield* heard(yield* connect(server, "10.0.0.2")), "closed")
      assert.deepStrictEqual((yield* server.stats).refused, { deny: 1, maxConnections: 1 })
    }))

  it.effect("are those of a server with any strategy: a place is held while a request waits for its turn", () =>
    Effect.gen(function*() {
      const server = yield* Effect.map(
        Layer.build(
          MemoryTransport.stream().pipe(
            Admission.maxConnections({ max: 2 }),
            Dispatch.serial(),
            Server.serveStream(greet)
          )
        ),
        Context.get(Server.Server)
      )
      const clients = [yield* connect(server), yield* connect(server), yield* connect(server)]
      assert.deepStrictEqual(yield* Effect.forEach(clients, heard), ["hello", undefined, "closed"])
    }))
})

describe("packets", () => {
  const serve = (step: Parameters<typeof apply>[0], handler: Server.DatagramHandler<never, never>) =>
    Effect.map(Layer.build(apply(step, handler)), Context.get(Server.Server))
  const apply = (
    step: ReturnType<typeof Admission.perPeer>,
    handler: Server.DatagramHandler<never, never>
  ) => MemoryTransport.datagram().pipe(step, Dispatch.fiberPerRequest(), Server.serveDatagram(handler))

  it.effect("beyond a rate are dropped, and counted as refused", () =>
    Effect.gen(function*() {
      const server = yield* serve(Admission.rate({ limit: 2, per: "peer" }), () => Effect.void)
      const one = yield* MemoryTransport.bindDatagram({ name: "one" })
      const two = yield* MemoryTransport.bindDatagram({ name: "two" })
      for (let i = 0; i < 3; i++) yield* one.send(server.address, "packet")
      yield* two.send(server.address, "packet")
      yield* settle
      const { closed, refused } = yield* server.stats
      assert.deepStrictEqual([closed, refused], [{ Completed: 3, Refused: 1 }, { ratePerPeer: 1 }])
    }))

  it.effect("of one peer are with the handler up to its limit", () =>
    Effect.gen(function*() {
      const latch = yield* Latch.make(false)
      const server = yield* serve(Admission.perPeer({ max: 1 }), () => latch.await)
      const one = yield* MemoryTransport.bindDatagram({ name: "one" })
      const two = yield* MemoryTransport.bindDatagram({ name: "two" })
      yield* one.send(server.address, "first")
      yield* one.send(server.address, "second")
      yield* two.send(server.address, "first")
      yield* settle
      yield* latch.open
      yield* server.awaitIdle
      yield* one.send(server.address, "third")
      yield* settle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 3, Refused: 1 })
    }))

  it.effect("from nowhere in a list are dropped by it", () =>
    Effect.gen(function*() {
      const server = yield* serve(Admission.allow(["10.0.0.0/8"]), () => Effect.void)
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "packet")
      yield* settle
      assert.deepStrictEqual((yield* server.stats).refused, { allow: 1 })
    }))

  it.effect("that would begin a session too many of their peer are refused; those of its sessions are not", () =>
    Effect.gen(function*() {
      const server = yield* Effect.map(
        Layer.build(
          MemoryTransport.datagram().pipe(
            Admission.rate({ limit: 1, interval: "1 hour" }),
            Dispatch.fiberPerRequest(),
            Server.serveSessions(({ packets, send }) => Stream.runForEach(packets, send))
          )
        ),
        Context.get(Server.Server)
      )
      const one = yield* MemoryTransport.bindDatagram()
      const two = yield* MemoryTransport.bindDatagram()
      yield* one.send(server.address, "1")
      yield* two.send(server.address, "no")
      yield* one.send(server.address, "2")
      yield* one.receive
      yield* one.receive
      assert.deepStrictEqual((yield* server.stats).refused, { rate: 1 })
    }))
})
