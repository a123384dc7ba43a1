/**
 * Messages: what a handler of them is given, and how a connection ends. What holds on every transport and under every strategy is
 * in the conformance suite.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  type ConnectionError,
  Dispatch,
  type FrameError,
  Framing,
  Logging,
  MemoryTransport,
  type Message,
  Server,
  Transport
} from "@socketserver/core"
import { Context, Deferred, Effect, Fiber, Latch, Layer, Queue, Schema, Stream } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, settle } from "./utils.ts"

type Text = Message.Message<string, string>

const startWith = <In, Out>(
  framing: Framing.Framing<In, Out>,
  step: ReturnType<typeof Dispatch.custom> = Dispatch.fiberPerRequest()
) =>
<E, R, EStream = never, RStream = never>(
  handler: Server.MessageHandler<In, Out, E, R, EStream, RStream>,
  options?: Server.MessageOptions<In, Out, any>
) =>
  Effect.map(
    Layer.build(
      MemoryTransport.stream().pipe(
        Transport.framed(framing),
        step,
        Server.serveMessage(handler, { shutdown: { grace: 0 }, ...options })
      )
    ),
    (context) => Context.get(context, Server.Server)
  )

const start = startWith(Framing.lines())

const connect = (server: Server.Server["Service"]) => MemoryTransport.connect(server.address)
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

/** All that the server sends until it closes. */
const rest = (client: Effect.Success<ReturnType<typeof connect>>) => Effect.map(client.readAll(), text)

/** Messages wait until they are let go, by their payload. */
const gate = () => {
  const latches = new Map<string, Latch.Latch>()
  const of = (name: string) => {
    const latch = latches.get(name) ?? Latch.makeUnsafe(false)
    latches.set(name, latch)
    return latch
  }
  const began: Array<string> = []
  return {
    began,
    pass: (name: string) =>
      Effect.suspend(() => {
        began.push(name)
        return of(name).await
      }),
    open: (name: string) => Effect.andThen(of(name).open, settle)
  }
}

const closedAs = (server: Server.Server["Service"]) =>
  Effect.map(Effect.andThen(settle, server.stats), ({ closed }) => closed)

describe("a message", () => {
  it.effect("is answered with what its handler returns, in one write for all that came together", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.succeed(payload.toUpperCase()))
      const client = yield* connect(server)
      yield* client.write("a\nb\r\n\nlast")
      assert.strictEqual(text(yield* client.pull), "A\nB\n\n")
      yield* client.end
      assert.strictEqual(yield* rest(client), "LAST\n")
      assert.deepStrictEqual(yield* closedAs(server), { Completed: 1 })
    }))

  it.effect("has its number, its peer, and the same sender as others of its connection", () =>
    Effect.gen(function*() {
      const seen: Array<Text> = []
      const server = yield* start((message) => {
        seen.push(message)
        return Effect.void
      })
      const one = yield* connect(server)
      const two = yield* connect(server)
      yield* one.write("a\nb\n")
      yield* settle
      yield* two.write("c\n")
      yield* settle
      assert.deepStrictEqual(seen.map(({ id, payload }) => [id, payload]), [[1, "a"], [2, "b"], [3, "c"]])
      assert.deepStrictEqual(seen.map(({ peer }) => peer), [one.local, one.local, two.local])
      assert.strictEqual(seen[0]!.sender, seen[1]!.sender)
      assert.notStrictEqual(seen[0]!.sender, seen[2]!.sender)
      assert.deepStrictEqual(seen.map(({ sender }) => sender.id), [1, 1, 2])
    }))

  it.effect("has a Scope of its own, closed before its reply leaves, and the Server", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const server = yield* start(({ payload }) =>
        Effect.gen(function*() {
          const { inFlight } = yield* (yield* Server.Server).stats
          log.push(`${payload} ${inFlight}`)
          if (payload !== "plain") {
            yield* Effect.addFinalizer(() =>
              Effect.andThen(Effect.yieldNow, Effect.sync(() => log.push(`end ${payload}`)))
            )
          }
          return payload
        })
      )
      const client = yield* connect(server)
      yield* client.write("a\nplain\nb\n")
      yield* client.end
      assert.strictEqual(yield* rest(client), "a\nplain\nb\n")
      assert.deepStrictEqual(
        log.toSorted(),
        ["a 1", "b 2", "b 3", "end a", "end b", "plain 2"].toSorted().filter((it) => it !== "b 3")
      )
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))

  it.effect("leaves nothing in its Scope that comes there late, behind its connection's end", () =>
    Effect.gen(function*() {
      let released = 0
      const late = Effect.delay(Effect.addFinalizer(() => Effect.sync(() => released++)), "1 second")
      const server = yield* start(({ payload }) => Effect.as(Effect.forkDetach(late), payload))
      const client = yield* connect(server)
      yield* client.write("a\nb\n")
      yield* TestClock.adjust("500 millis")
      yield* client.write("c\n")
      yield* TestClock.adjust("500 millis")
      yield* client.end
      assert.strictEqual(yield* rest(client), "a\nb\nc\n")
      yield* TestClock.adjust("1 second")
      assert.strictEqual(released, 3)
    }))

  it.effect("ends the fibers that its handler has forked", () =>
    Effect.gen(function*() {
      let interrupted = 0
      const server = yield* start(({ payload }) =>
        Effect.as(
          Effect.forkChild(Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++)), {
            startImmediately: true
          }),
          payload
        )
      )
      const client = yield* connect(server)
      yield* client.write("a\nb\n")
      assert.strictEqual(yield* client.readLine(), "a")
      assert.strictEqual(yield* client.readLine(), "b")
      assert.strictEqual(interrupted, 2)
    }))
})

describe("replies", () => {
  it.effect("that come before their turn all have it, also behind the end of their handler", () =>
    Effect.gen(function*() {
      const { open, pass } = gate()
      const late: Array<Fiber.Fiber<void, unknown>> = []
      const server = yield* start(({ payload, reply }) =>
        Effect.gen(function*() {
          if (payload === "first") return yield* Effect.as(pass(payload), "1")
          if (payload === "both") return yield* Effect.all([reply("a"), reply("b")], { concurrency: 2, discard: true })
          late.push(yield* Effect.forkDetach(reply("late"), { startImmediately: true }))
        })
      )
      const client = yield* connect(server)
      yield* client.write("first\nboth\nlate\n")
      yield* settle
      yield* open("first")
      assert.strictEqual((yield* server.stats).inFlight, 0)
      assert.isDefined(late[0]!.pollUnsafe())
      yield* client.end
      assert.strictEqual(yield* rest(client), "1\na\nb\nlate\n")
    }))

  it.effect("of a stream are sent as they come, and wait for a peer that does not read", () =>
    Effect.gen(function*() {
      let sent = 0
      const server = yield* start(() =>
        Effect.succeed(
          Stream.range(1, 1_000).pipe(
            Stream.rechunk(1),
            Stream.map((n) => `${n} ${"x".repeat(1_000)}`),
            Stream.tap(() => Effect.sync(() => sent++))
          )
        )
      )
      const client = yield* connect(server)
      yield* client.write("a\n")
      yield* settle
      assert.isBelow(sent, 200)
      assert.isAbove(sent, 1)
      yield* client.end
      assert.strictEqual((yield* client.readAll({ maxLength: 2_000_000 })).filter((byte) => byte === 10).length, 1_000)
    }))

  it.effect("that are framed as nothing are not kept", () =>
    Effect.gen(function*() {
      let asked = 0
      class Nothing extends Uint8Array {
        // Whoever joins it with others asks.
        override get length() {
          asked++
          return 0
        }
      }
      const framing = Framing.custom<string, string>({
        name: "often nothing",
        decoder: Framing.lines().messages.decoder,
        encode: (reply) => reply === "" ? new Nothing(0) : new TextEncoder().encode(reply)
      })
      const server = yield* startWith(framing)(({ payload }) => Effect.succeed(payload))
      const client = yield* connect(server)
      yield* client.write("\n".repeat(1_000))
      yield* settle
      asked = 0
      yield* client.write("a\n")
      assert.strictEqual(text(yield* client.pull), "a")
      assert.strictEqual(asked, 0)
    }))

  it.effect("that cannot be framed are the handler's failure", () =>
    Effect.gen(function*() {
      const errors: Array<string> = []
      const server = yield* start(({ payload }) => Effect.succeed(payload === "bad" ? "a\nb" : payload), {
        onError: (cause, message) => Effect.sync(() => void errors.push(`${message.payload}: ${String(cause)}`))
      })
      const client = yield* connect(server)
      yield* client.write("a\nbad\nc\n")
      assert.strictEqual(yield* rest(client), "a\n")
      assert.strictEqual(errors.length, 1)
      assert.match(errors[0]!, /bad: .*line end/s)
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
    }))
})

describe("pipelining", () => {
  it.effect("of a peer that does not read its replies stops, and goes on when it does", () =>
    Effect.gen(function*() {
      let handled = 0
      const server = yield* start(({ payload }) => {
        handled++
        return Effect.succeed(payload.repeat(100))
      })
      const client = yield* connect(server)
      const lines = 2_000
      const writing = yield* forkSettled(client.write(`${"x".repeat(10)}\n`.repeat(lines)))
      assert.isBelow(handled, lines)
      const received = yield* client.lines().pipe(Stream.take(lines), Stream.runCount)
      assert.strictEqual(received, lines)
      assert.strictEqual(handled, lines)
      yield* Fiber.join(writing)
    }))
})

describe("a strategy", () => {
  it.effect("runs messages: `serial` one at a time, over all connections", () =>
    Effect.gen(function*() {
      const gates = gate()
      const server = yield* startWith(Framing.lines(), Dispatch.serial())(({ payload }) =>
        Effect.as(gates.pass(payload), payload)
      )
      const one = yield* connect(server)
      const two = yield* connect(server)
      yield* one.write("a1\na2\na3\n")
      yield* settle
      yield* two.write("b1\nb2\n")
      yield* settle
      assert.deepStrictEqual(gates.began, ["a1"])
      const { inFlight, open, queued } = yield* server.stats
      assert.deepStrictEqual([open, inFlight, queued], [2, 1, 2])
      assert.strictEqual(yield* server.status, "saturated")
      yield* gates.open("a1")
      yield* gates.open("a2")
      yield* gates.open("b1")
      assert.deepStrictEqual(gates.began, ["a1", "a2", "b1", "a3"])
      yield* gates.open("a3")
      yield* gates.open("b2")
      assert.strictEqual(yield* two.readLine(), "b1")
      assert.strictEqual(yield* two.readLine(), "b2")
      assert.strictEqual((yield* server.stats).queued, 0)
      assert.strictEqual(yield* server.status, "ready")
    }))

  it.effect("that refuses a message closes its connection, behind the replies before", () =>
    Effect.gen(function*() {
      const gates = gate()
      const server = yield* startWith(Framing.lines(), Dispatch.fiberPerRequest({ maxInFlight: 2, queue: { max: 0 } }))(
        (
          { payload }
        ) => Effect.as(gates.pass(payload), payload)
      )
      const client = yield* connect(server)
      yield* client.write("a\nb\nc\n")
      yield* settle
      const replies = yield* forkSettled(rest(client))
      yield* gates.open("b")
      assert.isUndefined(replies.pollUnsafe())
      yield* gates.open("a")
      assert.strictEqual(yield* Fiber.join(replies), "a\nb\n")
      const { closed, refused } = yield* server.stats
      assert.deepStrictEqual([closed, refused], [{ Refused: 1 }, { queue: 1 }])
    }))

  it.effect("of one's own runs them, too", () =>
    Effect.gen(function*() {
      const ids: Array<number> = []
      const custom = Dispatch.custom({
        name: "mine",
        make: Effect.succeed((request) =>
          Effect.suspend(() => {
            ids.push(request.id)
            return request.id === 3 ? request.refuse("odd") : request.handle
          })
        )
      })
      const server = yield* startWith(Framing.lines(), custom)(({ payload }) => Effect.succeed(payload))
      const client = yield* connect(server)
      yield* client.write("a\nb\nc\nd\n")
      assert.strictEqual(yield* rest(client), "a\nb\n")
      assert.deepStrictEqual(ids, [1, 2, 3])
      assert.deepStrictEqual((yield* server.stats).refused, { odd: 1 })
    }))

  it.effect("that refuses a message too late does nothing to it", () =>
    Effect.gen(function*() {
      const { open, pass } = gate()
      const custom = Dispatch.custom({
        name: "late",
        make: Effect.sync(() => {
          let latest: Dispatch.Request | undefined
          return (request) =>
            Effect.suspend(() => {
              const refusal = latest?.refuse("late") ?? Effect.void
              latest = request
              return Effect.andThen(refusal, request.handle)
            })
        })
      })
      const server = yield* startWith(Framing.lines(), custom)(({ payload }) => Effect.as(pass(payload), payload))
      const client = yield* connect(server)
      yield* client.write("a\nb\n")
      yield* settle
      yield* open("a")
      yield* open("b")
      yield* client.end
      assert.strictEqual(yield* rest(client), "a\nb\n")
      assert.deepStrictEqual(yield* closedAs(server), { Completed: 1 })
    }))

  it.effect("that drops a message, or fails, ends its connection", () =>
    Effect.gen(function*() {
      const of = (effect: Effect.Effect<void>) =>
        startWith(Framing.lines(), Dispatch.custom({ name: "mine", make: Effect.succeed(() => effect) }))(
          () => Effect.void,
          {
            onError: () => Effect.void
          }
        )
      const dropping = yield* of(Effect.void)
      const one = yield* connect(dropping)
      yield* one.write("a\n")
      assert.strictEqual(yield* rest(one), "")
      assert.deepStrictEqual((yield* dropping.stats).refused, { dispatch: 1 })
      const throws = Effect.suspend((): Effect.Effect<void> => {
        throw new Error("no")
      })
      for (const failing of [Effect.die("no"), throws]) {
        const dying = yield* of(failing)
        const two = yield* connect(dying)
        yield* two.write("a\n")
        assert.strictEqual(yield* rest(two), "")
        assert.deepStrictEqual(yield* closedAs(dying), { HandlerFailed: 1 })
      }
    }))

  it.effect("that throws ends the connection, too", () =>
    Effect.gen(function*() {
      const throws = Dispatch.custom({
        name: "throws",
        make: Effect.succeed(() => {
          throw new Error("no")
        })
      })
      const server = yield* startWith(Framing.lines(), throws)(() => Effect.void, { onError: () => Effect.void })
      const client = yield* connect(server)
      yield* client.write("a\n")
      assert.strictEqual(yield* rest(client), "")
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
      assert.strictEqual((yield* server.stats).queued, 0)
    }))
})

describe("a handler that fails", () => {
  it.effect("closes its connection with HandlerFailed, behind the replies before; what came after is interrupted", () =>
    Effect.gen(function*() {
      const gates = gate()
      const interrupted: Array<string> = []
      const server = yield* start(({ payload }) =>
        Effect.onInterrupt(
          Effect.andThen(gates.pass(payload), payload === "b" ? Effect.fail("no") : Effect.succeed(payload)),
          () => Effect.sync(() => interrupted.push(payload))
        ), { onError: () => Effect.void })
      const client = yield* connect(server)
      const replies = yield* forkSettled(rest(client))
      yield* client.write("a\nb\nc\n")
      yield* settle
      yield* gates.open("b")
      assert.isUndefined(replies.pollUnsafe())
      yield* client.write("d\n")
      yield* settle
      assert.deepStrictEqual(gates.began, ["a", "b", "c"])
      yield* gates.open("a")
      assert.strictEqual(yield* Fiber.join(replies), "a\n")
      assert.deepStrictEqual(interrupted, ["c"])
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))

  it.effect("is told, where what `onError` replies is none", () =>
    Effect.gen(function*() {
      const problems: Array<string> = []
      const log = Logging.layer({
        log: (event) => Effect.sync(() => event._tag === "Problem" && problems.push(`${event.level}: ${event.message}`))
      })
      const server = yield* start(() => Effect.fail("no"), { onError: () => Effect.succeed("two\nlines") }).pipe(
        Effect.provide(log)
      )
      const client = yield* connect(server)
      yield* client.write("a\n")
      assert.strictEqual(yield* rest(client), "")
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
      assert.deepStrictEqual(problems, ["Error: encoding the reply of a hook failed for a message"])
    }))

  it.effect("waits for the replies to the messages before, with `order: \"unordered\"`, too", () =>
    Effect.gen(function*() {
      const { open, pass } = gate()
      const server = yield* start(
        ({ payload }) => payload === "fail" ? Effect.fail("no") : Effect.as(pass(payload), payload),
        { order: "unordered", onError: () => Effect.void }
      )
      const client = yield* connect(server)
      yield* client.write("slow\nslower\nfail\n")
      yield* settle
      yield* open("slower")
      assert.strictEqual(yield* client.readLine(), "slower")
      yield* open("slow")
      assert.strictEqual(yield* rest(client), "slow\n")
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
    }))

  it.effect("by throwing is no other", () =>
    Effect.gen(function*() {
      const server = yield* start((): Effect.Effect<string> => {
        throw new Error("thrown")
      }, { onError: (cause) => Effect.succeed(/thrown/.test(String(cause)) ? "sorry" : undefined) })
      const client = yield* connect(server)
      yield* client.write("a\n")
      assert.strictEqual(yield* client.readLine(), "sorry")
    }))

  it.effect("may be its framing's: a decoder that throws ends its connection only, behind the replies before", () =>
    Effect.gen(function*() {
      const { messages: { decoder }, replies: { encode } } = Framing.lines()
      const throwing = Framing.custom<string>({
        name: "throwing",
        decoder: () => {
          const { read } = decoder()
          return {
            read: (input) => {
              const line = read(input)
              if (line === "throw") throw new Error("thrown")
              return line
            }
          }
        },
        encode
      })
      const server = yield* startWith(throwing)(({ payload }) => Effect.succeed(payload))
      const other = yield* connect(server)
      yield* other.write("a\n")
      assert.strictEqual(yield* other.readLine(), "a")
      for (const before of ["", "a\n"]) {
        const client = yield* connect(server)
        yield* client.write(before)
        yield* settle
        yield* client.write("b\nthrow\nc\n")
        assert.strictEqual(yield* rest(client), `${before}b\n`)
      }
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 2 })
      yield* other.write("b\n")
      assert.strictEqual(yield* other.readLine(), "b")
    }))

  it.effect("after a stream has begun closes the connection behind what was sent", () =>
    Effect.gen(function*() {
      const server = yield* start(
        () => Effect.succeed(Stream.concat(Stream.make("1", "2"), Stream.fail("no"))),
        { onError: () => Effect.void }
      )
      const client = yield* connect(server)
      yield* client.write("a\nb\n")
      assert.strictEqual(yield* rest(client), "1\n2\n")
    }))
})

describe("what is no frame", () => {
  it.effect("closes the connection with InvalidFrame, behind the replies before", () =>
    Effect.gen(function*() {
      const gates = gate()
      const server = yield* startWith(Framing.lines({ maxLength: 4 }))(({ payload }) =>
        Effect.as(gates.pass(payload), payload)
      )
      const client = yield* connect(server)
      const replies = yield* forkSettled(rest(client))
      yield* client.write("a\nlonger\nb\n")
      yield* settle
      assert.isUndefined(replies.pollUnsafe())
      yield* gates.open("a")
      assert.strictEqual(yield* Fiber.join(replies), "a\n")
      assert.deepStrictEqual(gates.began, ["a"])
      assert.deepStrictEqual(yield* closedAs(server), { InvalidFrame: 1 })
    }))

  it.effect("is told to `onInvalid`, whose answer is the last word", () =>
    Effect.gen(function*() {
      const errors: Array<FrameError.FrameError> = []
      const server = yield* startWith(Framing.lines({ maxLength: 4 }))(({ payload }) => Effect.succeed(payload), {
        onInvalid: (error, sender) => {
          errors.push(error)
          return Effect.succeed(`ERR ${error.reason._tag} ${sender.id}`)
        }
      })
      const client = yield* connect(server)
      yield* client.write("a\nlonger\nb\n")
      assert.strictEqual(yield* rest(client), "a\nERR TooLong 1\n")
      assert.deepStrictEqual(yield* closedAs(server), { InvalidFrame: 1 })
      assert.strictEqual(errors.length, 1)
    }))

  it.effect("but whole can be answered, and the connection goes on", () =>
    Effect.gen(function*() {
      const framing = Framing.ndjson({
        request: Schema.Struct({ add: Schema.Array(Schema.Number) }),
        reply: Schema.Union([Schema.Struct({ sum: Schema.Number }), Schema.Struct({ error: Schema.String })])
      })
      const server = yield* startWith(framing)(
        ({ payload }) => Effect.succeed({ sum: payload.add.reduce((a, b) => a + b, 0) }),
        { onInvalid: (error) => error.isRecoverable ? Effect.succeed({ error: "what?" }) : Effect.void }
      )
      const client = yield* connect(server)
      yield* client.write("{\"add\":[1,2]}\n{\"add\":\"x\"}\nnonsense\n{\"add\":[]}\n")
      yield* client.end
      assert.strictEqual(
        yield* rest(client),
        "{\"sum\":3}\n{\"error\":\"what?\"}\n{\"error\":\"what?\"}\n{\"sum\":0}\n"
      )
      assert.deepStrictEqual(yield* closedAs(server), { Completed: 1 })
    }))

  it.effect("but breaks its decoder ends the connection alone, behind the replies before", () =>
    Effect.gen(function*() {
      const { open, pass } = gate()
      const framing = Framing.custom<string, string>({
        name: "letters",
        decoder: () => ({
          read: (input) => {
            if (input.length === 0) return undefined
            const letter = input.takeText(1)
            if (letter === "!") throw new Error("no letter")
            return letter
          }
        }),
        encode: (reply) => reply
      })
      const server = yield* startWith(framing)(({ payload }) => Effect.as(pass(payload), payload.toUpperCase()))
      const client = yield* connect(server)
      yield* client.write("a!")
      yield* settle
      yield* open("a")
      assert.strictEqual(yield* rest(client), "A")
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
    }))

  it.effect("of which a decoder takes more than there is ends the connection alone", () =>
    Effect.gen(function*() {
      const framing = Framing.custom<string, string>({
        name: "greedy",
        decoder: () => ({
          read: (input) => {
            input.skip(4)
            return undefined
          }
        }),
        encode: (reply) => reply
      })
      const server = yield* startWith(framing)(() => Effect.void)
      yield* connect(server)
      assert.deepStrictEqual(yield* closedAs(server), { HandlerFailed: 1 })
      const other = yield* start(({ payload }) => Effect.succeed(payload))
      const client = yield* connect(other)
      yield* client.write("as it was\n")
      assert.strictEqual(yield* client.readLine(), "as it was")
    }))

  it.effect("because the input ended in the middle is InvalidFrame, too", () =>
    Effect.gen(function*() {
      const server = yield* startWith(Framing.text(Framing.netstring()))(({ payload }) => Effect.succeed(payload))
      const client = yield* connect(server)
      yield* client.write("1:a,5:hel")
      yield* client.end
      assert.strictEqual(yield* rest(client), "1:a,")
      assert.deepStrictEqual(yield* closedAs(server), { InvalidFrame: 1 })
    }))
})

describe("a sender", () => {
  it.effect("can be sent to without being asked, and longer than its message lasts", () =>
    Effect.gen(function*() {
      const members = new Set<Text["sender"]>()
      const server = yield* start(({ payload, sender }) => {
        members.add(sender)
        return Effect.forEach([...members].filter((it) => it !== sender), (it) => it.send(payload), { discard: true })
      })
      const one = yield* connect(server)
      const two = yield* connect(server)
      yield* one.write("hello\n")
      yield* settle
      yield* two.write("hi\nall\n")
      assert.strictEqual(yield* one.readLine(), "hi")
      assert.strictEqual(yield* one.readLine(), "all")
    }))

  it.effect("that is gone fails typed, and completes `closed`", () =>
    Effect.gen(function*() {
      const first = yield* Deferred.make<Text["sender"]>()
      const server = yield* start(({ sender }) => Effect.asVoid(Deferred.succeed(first, sender)))
      const client = yield* connect(server)
      yield* client.write("a\n")
      const sender = yield* Deferred.await(first)
      const closed = yield* forkSettled(sender.closed)
      assert.isUndefined(closed.pollUnsafe())
      yield* client.close
      yield* Fiber.join(closed)
      const error = yield* Effect.flip(sender.send("x"))
      assert.strictEqual(error._tag, "ConnectionError")
      assert.strictEqual((error as ConnectionError.ConnectionError).reason._tag, "Closed")
      assert.strictEqual((yield* server.stats).open, 0)
    }))

  it.effect("that is closed by a handler has its replies first", () =>
    Effect.gen(function*() {
      for (const order of ["ordered", "unordered"] as const) {
        const gates = gate()
        const server = yield* start(({ payload, sender }) =>
          payload === "quit" ? Effect.as(sender.close, "bye") : Effect.as(gates.pass(payload), payload), { order })
        const client = yield* connect(server)
        const replies = yield* forkSettled(rest(client))
        yield* client.write("a\nquit\nignored\n")
        yield* settle
        assert.isUndefined(replies.pollUnsafe())
        yield* gates.open("a")
        assert.strictEqual(yield* Fiber.join(replies), order === "ordered" ? "a\nbye\n" : "bye\na\n")
        assert.deepStrictEqual(gates.began, ["a"])
        assert.deepStrictEqual(yield* closedAs(server), { Completed: 1 })
      }
    }))

  it.effect("that is closed by a handler before it has answered has that reply, too, and nothing behind it is handled", () =>
    Effect.gen(function*() {
      for (const order of ["ordered", "unordered"] as const) {
        const handled: Array<string> = []
        const server = yield* start(({ payload, sender }) => {
          handled.push(payload)
          if (payload === "quit") Effect.runFork(sender.close)
          return Effect.succeed(payload)
        }, { order })
        const one = yield* connect(server)
        yield* one.write("a\nquit\nignored\n")
        assert.strictEqual(yield* rest(one), "a\nquit\n")
        const two = yield* connect(server)
        // Its reader waits already.
        yield* two.write("b\n")
        assert.strictEqual(yield* two.readLine(), "b")
        yield* two.write("quit\nignored\n")
        assert.strictEqual(yield* rest(two), "quit\n")
        const three = yield* connect(server)
        yield* three.write("quit")
        yield* three.end
        assert.strictEqual(yield* rest(three), "quit\n")
        assert.deepStrictEqual(handled, ["a", "quit", "b", "quit", "quit"])
        assert.deepStrictEqual(yield* closedAs(server), { Completed: 3 })
      }
    }))

  it.effect("shows what it was annotated with", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload, sender }) => Effect.as(sender.annotate("user", payload), "ok"))
      const client = yield* connect(server)
      yield* client.write("alice\n")
      yield* client.readLine()
      const [info] = yield* server.connections.list
      assert.deepStrictEqual([...info!.annotations], [["user", "alice"]])
      assert.strictEqual(info!.state, "handling")
    }))
})

describe("a drain", () => {
  it.effect("ends a connection at once that is idle again, whatever its replies had to wait for", () =>
    Effect.gen(function*() {
      const { open, pass } = gate()
      const server = yield* start(({ payload }) =>
        payload === "first" ? Effect.as(pass(payload), payload) : Effect.succeed(Stream.make(payload, payload))
      )
      const client = yield* connect(server)
      yield* client.write("first\nsecond\nthird\n")
      yield* settle
      yield* open("first")
      for (let i = 0; i < 5; i++) yield* client.readLine()
      const { idleClosed } = yield* server.drain({ grace: "1 minute" })
      assert.strictEqual(idleClosed, 1)
    }))

  it.effect("waits for the rest of a message until `grace`", () =>
    Effect.gen(function*() {
      const format: Framing.Format<string> = {
        // It takes the first byte before it has the second.
        decoder: () => {
          let first: string | undefined
          return {
            read: (input) => {
              if (input.length === 0) return undefined
              if (first === undefined) first = input.takeText(1)
              if (input.length === 0) return undefined
              const message = first + input.takeText(1)
              first = undefined
              return message
            }
          }
        },
        encode: (message) => message
      }
      for (const framing of [Framing.lines(), Framing.custom({ name: "pairs", ...format })]) {
        const server = yield* startWith(framing)(({ payload }) => Effect.succeed(payload))
        const one = yield* connect(server)
        const two = yield* connect(server)
        yield* one.write("a")
        yield* two.write("a")
        yield* settle
        const draining = yield* forkSettled(server.drain({ grace: "5 seconds" }))
        yield* TestClock.adjust("4 seconds")
        assert.isUndefined(draining.pollUnsafe())
        yield* one.write(framing.name === "lines" ? "b\n" : "b")
        assert.match(yield* rest(one), /^ab\n?$/)
        yield* TestClock.adjust("1 second")
        const { interrupted } = yield* Fiber.join(draining)
        assert.strictEqual(interrupted, 1)
        assert.strictEqual(yield* rest(two), "")
      }
    }))

  it.effect("interrupts handlers after `grace`, and their finalizers run", () =>
    Effect.gen(function*() {
      const finalized: Array<string> = []
      const server = yield* startWith(Framing.lines(), Dispatch.fiberPerRequest({ maxInFlight: 2 }))(({ payload }) =>
        Effect.andThen(
          Effect.addFinalizer(() => Effect.andThen(Effect.yieldNow, Effect.sync(() => finalized.push(payload)))),
          Effect.never
        )
      )
      const client = yield* connect(server)
      yield* client.write("a\nb\nc\n")
      yield* settle
      const draining = yield* forkSettled(server.drain({ grace: "5 seconds" }))
      yield* TestClock.adjust("5 seconds")
      const { interrupted } = yield* Fiber.join(draining)
      assert.strictEqual(interrupted, 1)
      assert.deepStrictEqual(finalized.toSorted(), ["a", "b"])
      const { inFlight, queued } = yield* server.stats
      assert.deepStrictEqual([inFlight, queued], [0, 0])
    }))

  it.effect("can be asked for by a message's handler", () =>
    Effect.gen(function*() {
      const server = yield* start(() =>
        Effect.gen(function*() {
          yield* (yield* Server.Server).drain({ grace: "20 seconds" })
          return "drained"
        })
      )
      const client = yield* connect(server)
      yield* client.write("stop\n")
      assert.strictEqual(yield* rest(client), "drained\n")
      yield* settle
      assert.strictEqual(yield* server.status, "stopped")
    }))
})

describe("a connection of messages", () => {
  it.effect("ends with IdleTimeout when it is silent, and not while a message is under way", () =>
    Effect.gen(function*() {
      const gates = gate()
      const server = yield* start(({ payload }) => Effect.as(gates.pass(payload), undefined), {
        idleTimeout: "10 seconds"
      })
      const client = yield* connect(server)
      yield* client.write("a\n")
      yield* TestClock.adjust("25 seconds")
      assert.deepStrictEqual(yield* closedAs(server), {})
      yield* gates.open("a")
      yield* TestClock.adjust("9 seconds")
      assert.deepStrictEqual(yield* closedAs(server), {})
      yield* TestClock.adjust("6 seconds")
      assert.deepStrictEqual(yield* closedAs(server), { IdleTimeout: 1 })
    }))

  it.effect("that is lost interrupts its handlers with `interruptOnDisconnect`", () =>
    Effect.gen(function*() {
      let interrupted = 0
      const server = yield* start(
        () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++)),
        { interruptOnDisconnect: "reset" }
      )
      const client = yield* connect(server)
      yield* client.write("a\nb\n")
      yield* settle
      yield* client.reset
      yield* settle
      assert.strictEqual(interrupted, 2)
      assert.deepStrictEqual(yield* closedAs(server), { PeerReset: 1 })
    }))

  it.effect("can be closed by the server's hand, with Killed", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.never)
      const client = yield* connect(server)
      yield* client.write("a\n")
      yield* settle
      assert.isTrue(yield* server.connections.close(1))
      assert.strictEqual(yield* rest(client), "")
      assert.deepStrictEqual(yield* closedAs(server), { Killed: 1 })
    }))

  it.effect("is one of at least one", () =>
    Effect.gen(function*() {
      const { reason } = yield* Effect.flip(start(() => Effect.void, { maxConnections: 0 }))
      assert.strictEqual(reason._tag === "InvalidOption" && reason.option, "maxConnections")
    }))

  it.effect("can be closed by one of its own messages: those that came with it are answered", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload, sender }) => {
        if (payload === "close") Effect.runFork(server.connections.close(sender.id))
        return Effect.succeed(payload)
      })
      for (let i = 1; i <= 2; i++) {
        const client = yield* connect(server)
        yield* client.write("a\n")
        assert.strictEqual(yield* client.readLine(), "a")
        yield* client.write("close\nb\n")
        assert.strictEqual(yield* rest(client), "close\nb\n")
        assert.deepStrictEqual(yield* closedAs(server), { Killed: i })
        assert.strictEqual((yield* server.stats).inFlight, 0)
      }
    }))

  it.effect("that is closed by its own message interrupts what that has left to do, at whichever stage it is", () =>
    Effect.gen(function*() {
      const gates = gate()
      let interrupted = 0
      let server!: Server.Server["Service"]
      const closeAndStay = ({ sender }: Text) =>
        Effect.onInterrupt(
          Effect.andThen(Effect.suspend(() => server.connections.close(sender.id)), Effect.never),
          () => Effect.sync(() => interrupted++)
        )
      const handlers: Record<string, (message: Text) => Effect.Effect<Stream.Stream<string>, string>> = {
        handler: closeAndStay,
        stream: (message) => Effect.succeed(Stream.fromEffect(closeAndStay(message))),
        onError: () => Effect.fail("no")
      }
      server = yield* start(
        (message: Text) =>
          Effect.andThen(gates.pass(message.payload), Effect.suspend(() => handlers[message.payload]!(message))),
        {
          onError: (_, message) => closeAndStay(message)
        }
      )
      for (const [i, stage] of Object.keys(handlers).entries()) {
        const client = yield* connect(server)
        yield* client.write(`${stage}\n`)
        yield* settle
        yield* gates.open(stage)
        assert.deepStrictEqual(yield* closedAs(server), { Killed: i + 1 }, stage)
        assert.strictEqual(interrupted, i + 1, stage)
        assert.strictEqual((yield* server.stats).inFlight, 0)
      }
    }))

  it.effect("of `maxConnections` waits for another to end", () =>
    Effect.gen(function*() {
      const server = yield* start(({ payload }) => Effect.succeed(payload), { maxConnections: 1 })
      const one = yield* connect(server)
      const two = yield* connect(server)
      yield* two.write("b\n")
      yield* settle
      assert.strictEqual((yield* server.stats).queued, 1)
      yield* one.close
      assert.strictEqual(yield* two.readLine(), "b")
    }))

  it.effect("whose message lets that of another one end, and so on, ends where a thousand do", () =>
    Effect.gen(function*() {
      const count = 1_000
      const gates = Array.from({ length: count + 1 }, () => Latch.makeUnsafe(false))
      const server = yield* start(({ payload }) => {
        const [verb, n] = payload.split(" ")
        const latch = gates[Number(n)]!
        if (verb === "wait") return Effect.as(latch.await, payload)
        latch.openUnsafe()
        return Effect.succeed(payload)
      }, { maxPipelined: 1 })
      const clients = yield* Effect.forEach(
        Array.from({ length: count }, (_, n) => n),
        (n) => Effect.tap(connect(server), (client) => client.write(`wait ${n}\nopen ${n + 1}\n`))
      )
      yield* settle
      yield* (yield* connect(server)).write("open 0\n")
      for (const [n, client] of clients.entries()) {
        assert.strictEqual(yield* client.readLine(), `wait ${n}`)
        assert.strictEqual(yield* client.readLine(), `open ${n + 1}`)
      }
    }))

  it.effect("may send a hundred thousand empty lines, and others have their turn meanwhile", () =>
    Effect.gen(function*() {
      let handled = 0
      const server = yield* start(() => {
        handled++
        return Effect.void
      })
      const client = yield* connect(server)
      const writing = yield* forkSettled(client.write("\n".repeat(100_000)))
      yield* Fiber.join(writing)
      yield* client.end
      assert.strictEqual(yield* rest(client), "")
      assert.strictEqual(handled, 100_000)
    }))
})

describe("packets", () => {
  const startPackets =
    <In, Out>(framing: Framing.Framing<In, Out>, options?: Parameters<typeof MemoryTransport.datagram>[0]) =>
    <E, R>(
      handler: Server.MessageHandler<In, Out, E, R, any, any>,
      messageOptions?: Server.MessageOptions<In, Out, any>
    ) =>
      Effect.map(
        Layer.build(
          MemoryTransport.datagram(options).pipe(
            Transport.framed(framing),
            Dispatch.fiberPerRequest(),
            Server.serveMessage(handler, messageOptions)
          )
        ),
        (context) => Context.get(context, Server.Server)
      )

  /** Sends them, and gives the first `count` replies. */
  const exchange = (server: Server.Server["Service"], packets: ReadonlyArray<string>, count: number) =>
    Effect.gen(function*() {
      const client = yield* MemoryTransport.bindDatagram()
      for (const packet of packets) yield* client.send(server.address, packet)
      const received = yield* Effect.forEach(Array.from({ length: count }), () => client.receive)
      return received.map(({ payload }) => text(payload))
    })

  it.effect("are messages as they are with `Framing.whole`, empty ones too", () =>
    Effect.gen(function*() {
      const server = yield* startPackets(Framing.whole())(({ payload }) => Effect.succeed(payload))
      assert.deepStrictEqual(yield* exchange(server, ["a", "", "b\nc"], 3), ["a", "", "b\nc"])
    }))

  it.effect("that are no frame, or more than one, are dropped with InvalidFrame, or answered by `onInvalid`", () =>
    Effect.gen(function*() {
      const framing = Framing.text(Framing.netstring())
      const dropping = yield* startPackets(framing, { maxPacketSize: 8 })(({ payload }) => Effect.succeed(payload))
      assert.deepStrictEqual(yield* exchange(dropping, ["1:a,", "1:a,1:b,", "1:a", "", "9:123456789,", "1:b,"], 2), [
        "1:a,",
        "1:b,"
      ])
      assert.deepStrictEqual(yield* closedAs(dropping), { Completed: 2, InvalidFrame: 4 })
      const answering = yield* startPackets(framing)(({ payload }) => Effect.succeed(payload), {
        onInvalid: (error) => Effect.succeed(error.reason._tag)
      })
      assert.deepStrictEqual(
        yield* exchange(answering, ["1:a", "x"], 2),
        ["10:Incomplete,", "9:Malformed,"].map((it) => it)
      )
    }))

  it.effect("have a sender that is gone when their handler has ended, and not before", () =>
    Effect.gen(function*() {
      const waiting: Array<Fiber.Fiber<void>> = []
      const { open, pass } = gate()
      const server = yield* startPackets(Framing.lines())(({ payload, sender }) =>
        Effect.gen(function*() {
          waiting.push(yield* Effect.forkDetach(sender.closed, { startImmediately: true }))
          yield* pass(payload)
        })
      )
      const client = yield* MemoryTransport.bindDatagram()
      yield* client.send(server.address, "a")
      yield* settle
      assert.isUndefined(waiting[0]!.pollUnsafe())
      yield* open("a")
      assert.isDefined(waiting[0]!.pollUnsafe())
    }))
})

describe("the values of a stream", () => {
  const startValues =
    <A>(stream: Stream.Stream<A>, step = Dispatch.fiberPerRequest()) =>
    <E, R>(handler: Server.MessageHandler<A, never, E, R>, options?: Server.MessageOptions<A, never, any>) =>
      Effect.map(
        Layer.build(
          Transport.fromStream(stream).pipe(step, Server.serveMessage(handler, { shutdown: { grace: 0 }, ...options }))
        ),
        (context) => Context.get(context, Server.Server)
      )

  it.effect("are messages, and the server stops when all are done", () =>
    Effect.gen(function*() {
      const gates = gate()
      const server = yield* startValues(Stream.make("a", "b", "c"), Dispatch.fiberPerRequest({ maxInFlight: 2 }))((
        { payload }
      ) => gates.pass(payload))
      const stopped = yield* forkSettled(Stream.runDrain(server.events))
      assert.deepStrictEqual(gates.began, ["a", "b"])
      yield* gates.open("a")
      assert.deepStrictEqual(gates.began, ["a", "b", "c"])
      yield* gates.open("b")
      assert.isUndefined(stopped.pollUnsafe())
      // Longer than any grace: rows that take their time are not interrupted.
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(stopped.pollUnsafe())
      yield* gates.open("c")
      yield* Fiber.join(stopped)
      assert.strictEqual(yield* server.status, "stopped")
      const { accepted, closed } = yield* server.stats
      assert.deepStrictEqual([accepted, closed], [3, { Completed: 3 }])
    }))

  it.effect("are taken when there is a place, and one more waits", () =>
    Effect.gen(function*() {
      const gates = gate()
      let taken = 0
      const stream = Stream.range(1, 100).pipe(Stream.rechunk(1), Stream.tap(() => Effect.sync(() => taken++)))
      const server = yield* startValues(stream, Dispatch.serial())(({ payload }) => gates.pass(String(payload)))
      yield* settle
      assert.strictEqual(taken, 2)
      yield* gates.open("1")
      assert.strictEqual(taken, 3)
      const { inFlight, queued } = yield* server.stats
      assert.deepStrictEqual([inFlight, queued], [1, 1])
    }))

  it.effect("whose handler fails go to `onError`, and the next one comes", () =>
    Effect.gen(function*() {
      const failed: Array<unknown> = []
      const server = yield* startValues(Stream.make(1, 2, 3), Dispatch.serial())(
        ({ payload }) => payload === 2 ? Effect.fail("no") : Effect.void,
        { onError: (_, { payload }) => Effect.sync(() => void failed.push(payload)) }
      )
      yield* Stream.runDrain(server.events)
      assert.deepStrictEqual(failed, [2])
      assert.deepStrictEqual(yield* closedAs(server), { Completed: 2, HandlerFailed: 1 })
    }))

  it.effect("stop with a drain, which interrupts what takes too long", () =>
    Effect.gen(function*() {
      let begun = 0
      const server = yield* startValues(Stream.range(1, 100), Dispatch.fiberPerRequest({ maxInFlight: 3 }))(() => {
        begun++
        return Effect.never
      })
      yield* settle
      const draining = yield* forkSettled(server.drain({ grace: "1 second" }))
      yield* TestClock.adjust("1 second")
      const { interrupted, refused } = yield* Fiber.join(draining)
      assert.deepStrictEqual([begun, interrupted, refused], [3, 3, 1])
    }))

  it.effect("wait while the server is suspended", () =>
    Effect.gen(function*() {
      const seen: Array<number> = []
      const source = yield* Queue.unbounded<number>()
      const server = yield* startValues(Stream.fromQueue(source))(({ payload }) =>
        Effect.sync(() => void seen.push(payload))
      )
      yield* Queue.offer(source, 1)
      yield* settle
      yield* server.suspend
      yield* Queue.offer(source, 2)
      yield* settle
      assert.deepStrictEqual(seen, [1])
      yield* server.resume
      yield* settle
      assert.deepStrictEqual(seen, [1, 2])
    }))
})
