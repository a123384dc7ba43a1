/** Sessions: one run of the handler for each peer of a datagram server. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, MemoryTransport, Server, type Session } from "@socketserver/core"
import { Context, Effect, Fiber, Latch, Layer, Stream } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, settle } from "./utils.ts"

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

const start = <E, R>(
  handler: Server.SessionHandler<E, R>,
  options?: Server.SessionOptions<NoInfer<E>>,
  step: ReturnType<typeof Dispatch.custom> = Dispatch.fiberPerRequest()
) =>
  Effect.map(
    Layer.build(MemoryTransport.datagram().pipe(step, Server.serveSessions(handler, options))),
    (context) => Context.get(context, Server.Server)
  )

/** Answers each packet with how many there have been in this session. */
const count = (session: Session.Session) =>
  Effect.gen(function*() {
    for (let n = 1;; n++) yield* session.send(`${text(yield* session.receive)} ${n}`)
  })

const exchange = (client: MemoryTransport.DatagramClient, server: Server.Server["Service"], payload: string) =>
  Effect.andThen(client.send(server.address, payload), Effect.map(client.receive, (packet) => text(packet.payload)))

describe("a session", () => {
  it.effect("has its peer's packets, in order, and each peer has its own", () =>
    Effect.gen(function*() {
      const server = yield* start(count)
      const one = yield* MemoryTransport.bindDatagram()
      const two = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(one, server, "a"), "a 1")
      assert.strictEqual(yield* exchange(one, server, "b"), "b 2")
      assert.strictEqual(yield* exchange(two, server, "c"), "c 1")
      assert.strictEqual(yield* exchange(one, server, "d"), "d 3")
      const { accepted, inFlight } = yield* server.stats
      assert.deepStrictEqual([accepted, inFlight], [2, 2])
    }))

  it.effect("ends when its peer is silent for longer than `idleTimeout`, and the next packet begins another", () =>
    Effect.gen(function*() {
      const server = yield* start(count, { idleTimeout: "10 seconds" })
      const client = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(client, server, "a"), "a 1")
      yield* TestClock.adjust("9 seconds")
      assert.strictEqual(yield* exchange(client, server, "b"), "b 2")
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual((yield* server.stats).closed, {})
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
      assert.strictEqual(yield* exchange(client, server, "c"), "c 1")
    }))

  it.effect("ends with its handler, and the next packet begins another", () =>
    Effect.gen(function*() {
      const server = yield* start((session) => Effect.flatMap(session.receive, session.send))
      const client = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(client, server, "a"), "a")
      yield* server.awaitIdle
      assert.strictEqual(yield* exchange(client, server, "b"), "b")
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 2 })
    }))

  it.effect("is a stream of packets, too", () =>
    Effect.gen(function*() {
      const server = yield* start(({ packets, send }) => Stream.runForEach(packets, send))
      const client = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(client, server, "a"), "a")
      assert.strictEqual(yield* exchange(client, server, "b"), "b")
    }))

  it.effect("that fails stops no other", () =>
    Effect.gen(function*() {
      const failed: Array<string> = []
      const server = yield* start(
        Effect.fnUntraced(function*(session: Session.Session) {
          if (text(yield* session.receive) === "fail") return yield* Effect.fail("no")
          yield* session.send("fine")
        }),
        {
          onError: (_, session, reason) =>
            Effect.sync(() => {
              failed.push(`${session.id} ${reason._tag}`)
            })
        }
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "fail")
      yield* settle
      assert.strictEqual(yield* exchange(client, server, "x"), "fine")
      assert.deepStrictEqual(failed, ["1 HandlerFailed"])
    }))

  for (const [overflow, kept] of [["dropNewest", "012"], ["dropOldest", "089"]] as const) {
    it.effect(`whose handler does not keep up loses packets beyond its mailbox, with ${overflow}, and knows how many`, () =>
      Effect.gen(function*() {
        const gate = Latch.makeUnsafe(false)
        const server = yield* start(
          Effect.fnUntraced(function*(session: Session.Session) {
            let all = text(yield* session.receive)
            yield* gate.await
            for (let i = 0; i < 2; i++) all += text(yield* session.receive)
            yield* session.send(`${all} ${yield* session.dropped}`)
          }),
          { mailbox: { max: 2, overflow } }
        )
        const client = yield* MemoryTransport.bindDatagram()
        for (let i = 0; i < 10; i++) yield* client.send(server.address, `${i}`)
        yield* settle
        yield* gate.open
        assert.strictEqual(text((yield* client.receive).payload), `${kept} 7`)
        assert.strictEqual((yield* server.stats).dropped, 7)
      }))
  }
})

describe("a server of sessions", () => {
  it.effect("has at most `maxSessions`, and drops what others send", () =>
    Effect.gen(function*() {
      const server = yield* start(count, { maxSessions: 1 })
      const one = yield* MemoryTransport.bindDatagram()
      const two = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(one, server, "a"), "a 1")
      yield* two.send(server.address, "x")
      assert.strictEqual(yield* exchange(one, server, "b"), "b 2")
      assert.strictEqual((yield* server.stats).dropped, 1)
    }))

  it.effect("runs one session at a time under the serial strategy", () =>
    Effect.gen(function*() {
      const server = yield* start(count, { idleTimeout: "10 seconds" }, Dispatch.serial())
      const one = yield* MemoryTransport.bindDatagram()
      const two = yield* MemoryTransport.bindDatagram()
      assert.strictEqual(yield* exchange(one, server, "a"), "a 1")
      const waiting = yield* forkSettled(exchange(two, server, "b"))
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* exchange(one, server, "a"), "a 2")
      yield* two.send(server.address, "c")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* Fiber.join(waiting), "b 1")
      assert.strictEqual(text((yield* two.receive).payload), "c 2")
    }))

  it.effect("drains: sessions with nothing to do end, others take what has come first", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const server = yield* start((session) =>
        Effect.gen(function*() {
          for (let n = 1;; n++) {
            const payload = text(yield* session.receive)
            if (payload === "wait") yield* gate.await
            yield* session.send(`${payload} ${n}`)
          }
        })
      )
      const idle = yield* MemoryTransport.bindDatagram()
      const busy = yield* MemoryTransport.bindDatagram()
      yield* exchange(idle, server, "a")
      yield* busy.send(server.address, "wait")
      yield* busy.send(server.address, "more")
      yield* settle
      const drain = yield* forkSettled(server.drain())
      yield* busy.send(server.address, "too late")
      yield* settle
      yield* gate.open
      const { completed, idleClosed } = yield* Fiber.join(drain)
      const { bytesRead, dropped } = yield* server.stats
      assert.deepStrictEqual({ bytesRead, dropped }, { bytesRead: 9, dropped: 1 })
      assert.deepStrictEqual({ completed, idleClosed }, { completed: 1, idleClosed: 1 })
      assert.strictEqual(text((yield* busy.receive).payload), "wait 1")
      assert.strictEqual(text((yield* busy.receive).payload), "more 2")
    }))

  it.effect("loses nothing of a full mailbox to what comes during a drain", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const got: Array<string> = []
      const server = yield* start(
        (session) =>
          Effect.forever(Effect.andThen(session.receive, (payload) =>
            Effect.andThen(
              gate.await,
              Effect.sync(() => got.push(text(payload)))
            ))),
        { mailbox: { max: 2, overflow: "dropOldest" } }
      )
      const client = yield* MemoryTransport.bindDatagram()
      for (const packet of ["a", "b", "c"]) {
        yield* client.send(server.address, packet)
      }
      yield* settle
      const drain = yield* forkSettled(server.drain())
      yield* client.send(server.address, "too late")
      yield* settle
      yield* gate.open
      yield* Fiber.join(drain)
      assert.deepStrictEqual([got, (yield* server.stats).dropped], [["a", "b", "c"], 1])
    }))

  it.effect("asks admission steps about the packet that would begin a session", () =>
    Effect.gen(function*() {
      const server = Context.get(
        yield* Layer.build(
          MemoryTransport.datagram().pipe(
            Admission.verifyDatagram(({ payload }) => Effect.succeed(text(payload) === "hello")),
            Dispatch.fiberPerRequest(),
            Server.serveSessions(count)
          )
        ),
        Server.Server
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "who?")
      yield* settle
      assert.strictEqual(yield* exchange(client, server, "hello"), "hello 1")
      assert.strictEqual(yield* exchange(client, server, "anything"), "anything 2")
      assert.deepStrictEqual((yield* server.stats).refused, { verify: 1 })
    }))
})
