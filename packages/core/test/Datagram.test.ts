/** Servers of packets, in memory. */
import { assert, describe, it } from "@effect/vitest"
import {
  Admission,
  CloseReason,
  type Datagram,
  type DatagramError,
  Dispatch,
  MemoryTransport,
  Server
} from "@socketserver/core"
import { Context, Deferred, Effect, Fiber, Latch, Layer, Option } from "effect"
import type { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { settle } from "./utils.ts"

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

const startWith = (
  step: ReturnType<typeof Dispatch.custom>,
  transport: Parameters<typeof MemoryTransport.datagram>[0] = {}
) =>
<E, R, RError = never>(
  handler: Server.DatagramHandler<E, R>,
  options?: Server.DatagramOptions<NoInfer<E>, RError>
) =>
  Effect.map(
    Layer.build(MemoryTransport.datagram(transport).pipe(step, Server.serveDatagram(handler, options))),
    (context) => Context.get(context, Server.Server)
  )

const start = startWith(Dispatch.fiberPerRequest())
const startSerial = startWith(Dispatch.serial())

const echo = ({ payload, reply }: Datagram.Datagram) => reply(payload)

describe("a handler", () => {
  it.effect("is given the packet and who sent it, and answers with one packet for each reply", () =>
    Effect.gen(function*() {
      const server = yield* start((datagram) =>
        Effect.andThen(
          datagram.reply(`${text(datagram.payload)} from ${(datagram.peer as NetAddress.UnixPathAddress).path}`),
          datagram.reply("again")
        )
      )
      const client = yield* MemoryTransport.bindDatagram({ name: "me" })
      yield* client.send(server.address, "hello")
      const first = yield* client.receive
      assert.strictEqual(text(first.payload), "hello from me")
      assert.deepStrictEqual(first.peer, server.address)
      assert.strictEqual(text((yield* client.receive).payload), "again")
    }))

  it.effect("sends nothing by accident: no empty packet, and none after a failure", () =>
    Effect.gen(function*() {
      const server = yield* start(
        Effect.fnUntraced(function*({ payload, reply }: Datagram.Datagram) {
          if (text(payload) === "fail") return yield* Effect.fail("no")
          if (text(payload) !== "silent") yield* reply(payload)
        }),
        { onError: () => Effect.void }
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (const request of ["fail", "silent", "last"]) {
        yield* client.send(server.address, request)
      }
      assert.strictEqual(text((yield* client.receive).payload), "last")
    }))

  it.effect("is given empty packets too, and may answer with one", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "")
      assert.strictEqual((yield* client.receive).payload.length, 0)
    }))

  it.effect("has its bytes counted, in both directions", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload, reply, send, peer }) =>
        Effect.andThen(reply(`${text(payload)}ß`), send(peer, payload))
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "four")
      yield* client.receive
      yield* client.receive
      yield* server.awaitIdle
      const { bytesRead, bytesWritten } = yield* server.stats
      assert.deepStrictEqual([bytesRead, bytesWritten], [4, 4 + 2 + 4])
    }))

  it.effect("sends to others than the sender", () =>
    Effect.gen(function*() {
      const other = yield* MemoryTransport.bindDatagram()
      const server = yield* start(({ payload, send }) => send(other.address, payload))
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "relayed")
      const packet = yield* other.receive
      assert.strictEqual(text(packet.payload), "relayed")
      assert.deepStrictEqual(packet.peer, server.address)
    }))

  it.effect("cannot answer a sender without an address, which fails and stops nothing", () =>
    Effect.gen(function*() {
      const failed = Deferred.makeUnsafe<DatagramError.DatagramError>()
      const server = yield* start((datagram) =>
        Effect.tapError(echo(datagram), (error) => Deferred.succeed(failed, error))
      )
      const nobody = yield* MemoryTransport.bindDatagram({ name: "" })
      yield* nobody.send(server.address, "anonymous")
      const error = yield* Deferred.await(failed)
      assert.strictEqual(error.reason._tag, "NoReturnAddress")
      assert.match(error.message, /a client that wants an answer has to bind one/)
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "still there")
      assert.strictEqual(text((yield* client.receive).payload), "still there")
      assert.deepStrictEqual((yield* server.stats).closed, { TransportFailed: 1, Completed: 1 })
    }))

  it.effect("that fails or dies is reported with its packet, and stops nothing", () =>
    Effect.gen(function*() {
      const reported: Array<string> = []
      const server = yield* start(
        Effect.fnUntraced(function*(datagram: Datagram.Datagram) {
          if (text(datagram.payload) === "fail") return yield* Effect.fail("failure")
          if (text(datagram.payload) === "die") return yield* Effect.die("defect")
          yield* echo(datagram)
        }),
        {
          onError: (_, datagram, reason) =>
            Effect.sync(() => {
              reported.push(`${datagram.id} ${text(datagram.payload)} ${reason._tag}`)
            })
        }
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (const request of ["fail", "die", "good"]) yield* client.send(server.address, request)
      assert.strictEqual(text((yield* client.receive).payload), "good")
      assert.deepStrictEqual(reported, ["1 fail HandlerFailed", "2 die HandlerFailed"])
    }))

  it.effect("sees a packet that is too long cut, and told so", () =>
    Effect.gen(function*() {
      const server = yield* startWith(Dispatch.serial(), { maxPacketSize: 4 })(({ payload, reply, truncated }) =>
        reply(`${text(payload)} ${truncated}`)
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "1234")
      yield* client.send(server.address, "12345")
      assert.strictEqual(text((yield* client.receive).payload), "1234 false")
      assert.strictEqual(text((yield* client.receive).payload), "1234 true")
      assert.strictEqual((yield* server.stats).truncated, 1)
    }))
})

describe("more packets than the handlers can take", () => {
  const held = (gate: Latch.Latch, seen: Array<string>) => (datagram: Datagram.Datagram) =>
    Effect.andThen(
      Effect.sync(() => seen.push(text(datagram.payload))),
      Effect.andThen(gate.await, echo(datagram))
    )

  it.effect("wait in order, one at a time under the serial strategy", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const gate = Latch.makeUnsafe(false)
      const server = yield* startSerial(held(gate, seen))
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 500; i++) yield* client.send(server.address, `${i}`)
      yield* settle
      assert.deepStrictEqual(seen, ["0"])
      assert.strictEqual((yield* server.stats).queued, 499)
      assert.strictEqual(yield* server.status, "saturated")
      yield* gate.open
      for (let i = 0; i < 500; i++) assert.strictEqual(text((yield* client.receive).payload), `${i}`)
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).queued, 0)
    }))

  it.effect("run side by side up to the fiber strategy's bound", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const gate = Latch.makeUnsafe(false)
      const server = yield* startWith(Dispatch.fiberPerRequest({ maxInFlight: 3 }))(held(gate, seen))
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 5; i++) yield* client.send(server.address, `${i}`)
      yield* settle
      assert.deepStrictEqual(seen, ["0", "1", "2"])
      yield* gate.open
      yield* server.awaitIdle
      assert.deepStrictEqual(seen, ["0", "1", "2", "3", "4"])
    }))

  for (
    const [overflow, kept] of [["dropNewest", ["0", "1", "2", "3"]], ["dropOldest", ["0", "1", "8", "9"]]] as const
  ) {
    it.effect(`are dropped beyond the queue's number of packets, with ${overflow}, and counted`, () =>
      Effect.gen(function*() {
        const seen: Array<string> = []
        const gate = Latch.makeUnsafe(false)
        const server = yield* startWith(Dispatch.serial(), { receiveQueue: { maxPackets: 2, overflow } })(
          held(gate, seen)
        )
        const client = yield* MemoryTransport.bindDatagram()
        for (let i = 0; i < 10; i++) yield* client.send(server.address, `${i}`)
        yield* settle
        assert.strictEqual((yield* server.stats).dropped, 6)
        yield* gate.open
        yield* server.awaitIdle
        assert.deepStrictEqual(seen, [...kept])
      }))
  }

  it.effect("go alone where they would not fit into the empty queue", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const served: Array<string> = []
      const server = yield* startWith(Dispatch.serial(), { receiveQueue: { maxBytes: 10, overflow: "dropOldest" } })(
        ({ payload }) => Effect.andThen(gate.await, Effect.sync(() => served.push(text(payload))))
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (const packet of ["a", "b", "c", "d", "more than all"]) yield* client.send(server.address, packet)
      yield* settle
      yield* gate.open
      yield* server.awaitIdle
      assert.deepStrictEqual([served, (yield* server.stats).dropped], [["a", "b", "c", "d"], 1])
    }))

  it.effect("wait while as many are with admission, and come in when it has decided", () =>
    Effect.gen(function*() {
      const served: Array<string> = []
      const answers = new Map<string, Deferred.Deferred<boolean>>()
      const server = yield* MemoryTransport.datagram({ receiveQueue: { maxPackets: 2 } }).pipe(
        Admission.verifyDatagram(({ payload }) => {
          const answer = Deferred.makeUnsafe<boolean>()
          answers.set(text(payload), answer)
          return Deferred.await(answer)
        }),
        Dispatch.fiberPerRequest(),
        Server.serveDatagram(
          ({ payload }) => Effect.andThen(Effect.sync(() => served.push(text(payload))), Effect.never),
          {
            shutdown: { grace: 0 }
          }
        ),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const decide = (packet: string, verdict: boolean) =>
        Effect.andThen(Deferred.succeed(answers.get(packet)!, verdict), settle)
      const client = yield* MemoryTransport.bindDatagram()
      for (const packet of ["a", "b", "c", "d", "e"]) yield* client.send(server.address, packet)
      yield* settle
      const { dropped, open, queued } = yield* server.stats
      assert.deepStrictEqual({ dropped, open, queued }, { dropped: 1, open: 2, queued: 2 })
      // Whatever the answer is, there is room for the next; one that is served holds up nobody.
      yield* decide("a", true)
      assert.deepStrictEqual([...answers.keys()], ["a", "b", "c"])
      yield* decide("b", false)
      assert.deepStrictEqual([...answers.keys()], ["a", "b", "c", "d"])
      yield* decide("c", true)
      yield* decide("d", true)
      assert.deepStrictEqual(served, ["a", "c", "d"])
    }))

  it.effect("are dropped beyond the queue's number of bytes", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const gate = Latch.makeUnsafe(false)
      const server = yield* startWith(Dispatch.serial(), { receiveQueue: { maxBytes: 10 } })(held(gate, seen))
      const client = yield* MemoryTransport.bindDatagram()
      for (const request of ["a", "b", "12345", "too long", "1234", "5", "6"]) {
        yield* client.send(server.address, request)
      }
      yield* settle
      yield* gate.open
      yield* server.awaitIdle
      assert.deepStrictEqual(seen, ["a", "b", "12345", "1234", "5"])
      assert.strictEqual((yield* server.stats).dropped, 2)
    }))

  it.effect("and each answered at once are served in a loop, not in a recursion", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      let served = 0
      const server = yield* startWith(Dispatch.fiberPerRequest({ maxInFlight: 1 }), {
        receiveQueue: { maxPackets: 20_000 }
      })((datagram) =>
        datagram.id === 1 ? gate.await : Effect.sync(() => {
          served++
        })
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i <= 20_000; i++) {
        yield* client.send(server.address, "x")
        if (i % 500 === 0) yield* settle
      }
      yield* settle
      yield* gate.open
      yield* server.awaitIdle
      assert.strictEqual(served, 20_000)
    }))
})

describe("a drain", () => {
  it.effect("serves what was received, takes nothing new, and closes the socket last", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const server = yield* startSerial((datagram) => Effect.andThen(gate.await, echo(datagram)))
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 3; i++) yield* client.send(server.address, `${i}`)
      yield* settle
      const drain = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* settle
      yield* client.send(server.address, "late")
      yield* settle
      yield* gate.open
      const report = yield* Fiber.join(drain)
      assert.deepStrictEqual({ ...report, elapsed: 0 }, {
        idleClosed: 0,
        completed: 3,
        interrupted: 0,
        killed: 0,
        refused: 0,
        elapsed: 0
      })
      for (let i = 0; i < 3; i++) assert.strictEqual(text((yield* client.receive).payload), `${i}`)
      assert.strictEqual((yield* server.stats).dropped, 1)
      assert.strictEqual((yield* Effect.flip(client.send(server.address, "after"))).reason._tag, "Unreachable")
    }))

  it.effect("interrupts at `grace` what runs, and drops what waits", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(() => Effect.never)
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 3; i++) yield* client.send(server.address, `${i}`)
      yield* settle
      const { interrupted, killed, refused } = yield* server.drain({ grace: 0 })
      assert.deepStrictEqual({ interrupted, killed, refused }, { interrupted: 1, killed: 0, refused: 2 })
      assert.strictEqual((yield* server.stats).queued, 0)
    }))
})

describe("a suspended server", () => {
  it.effect("is bound to nothing, and comes back at the same address", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      const client = yield* MemoryTransport.bindDatagram()
      yield* server.suspend
      assert.strictEqual((yield* Effect.flip(client.send(server.address, "x"))).reason._tag, "Unreachable")
      yield* server.resume
      yield* client.send(server.address, "back")
      assert.strictEqual(text((yield* client.receive).payload), "back")
    }))

  it.effect("cannot answer what it received before, which fails typed", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const failed = Deferred.makeUnsafe<DatagramError.DatagramError>()
      const server = yield* start((datagram) =>
        Effect.andThen(gate.await, Effect.tapError(echo(datagram), (error) => Deferred.succeed(failed, error)))
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "x")
      yield* settle
      yield* server.suspend
      yield* gate.open
      assert.strictEqual((yield* Deferred.await(failed)).reason._tag, "Closed")
    }))
})

describe("a network that misbehaves", () => {
  const run = (options: Parameters<typeof MemoryTransport.datagram>[0]) =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const server = yield* startWith(Dispatch.serial(), options)(({ payload }) =>
        Effect.sync(() => {
          seen.push(text(payload))
        })
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (let i = 0; i < 200; i++) {
        yield* client.send(server.address, `${i}`)
        yield* settle
      }
      yield* server.drain()
      return seen
    })
  const all = Array.from({ length: 200 }, (_, i) => `${i}`)

  it.effect("loses, doubles and reorders about as often as it is told to, and the same with the same seed", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* run({}), all)
      const lossy = yield* run({ loss: 0.5 })
      assert.isTrue(lossy.length > 60 && lossy.length < 140)
      assert.deepStrictEqual(yield* run({ loss: 0.5 }), lossy)
      assert.notDeepEqual(yield* run({ loss: 0.5, seed: 2 }), lossy)
      assert.deepStrictEqual(yield* run({ loss: 1 }), [])
      assert.deepStrictEqual(yield* run({ duplication: 1 }), all.flatMap((n) => [n, n]))
    }))
})

describe("admission", () => {
  it.effect("drops what a check refuses", () =>
    Effect.gen(function*() {
      const server = Context.get(
        yield* Layer.build(
          MemoryTransport.datagram().pipe(
            Admission.verifyDatagram(({ payload }) => Effect.succeed(text(payload) !== "bad")),
            Dispatch.serial(),
            Server.serveDatagram(echo)
          )
        ),
        Server.Server
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "bad")
      yield* client.send(server.address, "good")
      assert.strictEqual(text((yield* client.receive).payload), "good")
      assert.deepStrictEqual((yield* server.stats).refused, { verify: 1 })
    }))
})

describe("handleOneDatagram", () => {
  it.effect("handles exactly one packet, and leaves the next for the next call", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listenDatagram
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(listener.address, "one")
      yield* client.send(listener.address, "two")
      assert.deepStrictEqual(yield* Server.handleOneDatagram(listener, echo), Option.some(CloseReason.Completed))
      assert.strictEqual(text((yield* client.receive).payload), "one")
      const waiting = yield* Effect.forkChild(client.receive, { startImmediately: true })
      yield* settle
      assert.isUndefined(waiting.pollUnsafe())
      yield* Server.handleOneDatagram(listener, echo)
      assert.strictEqual(text((yield* Fiber.join(waiting)).payload), "two")
    }).pipe(Effect.provide(MemoryTransport.datagram())))

  it.effect("gives up at its timeout and runs `onTimeout`", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listenDatagram
      const log: Array<string> = []
      const handling = yield* Effect.forkChild(
        Server.handleOneDatagram(listener, echo, {
          timeout: "10 seconds",
          onTimeout: Effect.sync(() => log.push("handle_timeout"))
        }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(handling.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Fiber.join(handling), Option.none())
      assert.deepStrictEqual(log, ["handle_timeout"])
    }).pipe(Effect.provide(MemoryTransport.datagram())))

  it.effect("says how a failing handler ended", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listenDatagram
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(listener.address, "x")
      const reason = yield* Server.handleOneDatagram(listener, () => Effect.fail("no"), { onError: () => Effect.void })
      assert.strictEqual(Option.getOrThrow(reason)._tag, "HandlerFailed")
    }).pipe(Effect.provide(MemoryTransport.datagram())))
})
