/**
 * What a server of messages must do, as a suite of tests, over whatever transport its bytes come and wherever its handlers run:
 * one reply behind the other, no more under way than was agreed, an answer to what is no message, and nothing left of clients
 * that go. Ours pass it on every transport and under every strategy; whoever writes another of these can hold it to the same.
 *
 * @since 0.1.0
 */
import { assert, describe, it } from "@effect/vitest"
import type { CloseReason } from "@socketserver/core/CloseReason"
import type { DatagramTransport } from "@socketserver/core/DatagramTransport"
import * as Dispatch from "@socketserver/core/Dispatch"
import * as Framing from "@socketserver/core/Framing"
import type { MessageTransport } from "@socketserver/core/MessageTransport"
import * as Server from "@socketserver/core/Server"
import type { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Transport from "@socketserver/core/Transport"
import type { WorkerDispatch } from "@socketserver/core/WorkerDispatch"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { DatagramTestClient } from "./DatagramTestClient.ts"
import { cutAtRandom } from "./internal/bytes.ts"
import { type Gate, makeGate } from "./internal/gate.ts"
import { obey } from "./internal/messageHandlers.ts"
import { promptly, standstill } from "./internal/waiting.ts"
import type { Client, ClientError } from "./TestClient.ts"

/**
 * Where the suite's messages come from.
 *
 * @category models
 * @since 0.1.0
 */
export type Messages = Layer.Layer<MessageTransport<string, string>, unknown>

/**
 * How the handlers are to run.
 *
 * @category options
 * @since 0.1.0
 */
export interface DispatchOptions {
  /**
   * Makes the strategy's step of the pipe, which must let at most `maxInFlight` messages run, and more wait. One that has a
   * number of its own, as a serial one has, ignores `maxInFlight`, and says so with the option of that name. Default:
   * `Dispatch.fiberPerRequest`.
   */
  readonly dispatch?:
    | ((options: { readonly maxInFlight: number }) => (messages: Messages) =>
      | Layer.Layer<MessageTransport<string, string> | Dispatch.Dispatch, unknown>
      | Layer.Layer<MessageTransport<string, string> | WorkerDispatch, unknown>)
    | undefined
  /** How many messages may run at a time: 3 or more, or the strategy's own number. Default 3. */
  readonly maxInFlight?: number | undefined
  /** Has each message a worker to itself, with which it may end? Default `false`. */
  readonly isolated?: boolean | undefined
  /** How long a test may take, in milliseconds. Default 20,000. */
  readonly timeout?: number | undefined
}

/**
 * Connections, how they are made, and how the handlers of their messages are to run.
 *
 * @category options
 * @since 0.1.0
 */
export interface SuiteOptions extends DispatchOptions {
  /** Makes the transport, for each server anew. */
  readonly layer: () => Layer.Layer<StreamTransport, unknown>
  /** Connects a client, most likely `TestClient.node`. */
  readonly connect: (address: SocketAddress) => Effect.Effect<Client, ClientError, Scope.Scope>
}

/**
 * Packets, who sends them, and how the handlers of their messages are to run.
 *
 * @category options
 * @since 0.1.0
 */
export interface PacketSuiteOptions extends DispatchOptions {
  /** Makes the transport, for each server anew. */
  readonly layer: () => Layer.Layer<DatagramTransport, unknown>
  /** Binds a client, most likely one of `DatagramTestClient`. */
  readonly client: Effect.Effect<DatagramTestClient, unknown, Scope.Scope>
}

const maxLength = 100_000

/** Lines; those that begin with a question mark are lines, but no messages. */
const framing = Framing.schema(Framing.lines({ maxLength }), {
  request: Schema.String.check(Schema.isPattern(/^(?!\?)/)),
  reply: Schema.String
})

const hooks: Server.MessageOptions<string, string, any> = {
  onError: (_, { payload }, { _tag }) => Effect.succeed(payload.startsWith("!") ? undefined : `${payload}: ${_tag}`),
  onInvalid: (error) => Effect.succeed(error.isRecoverable ? "no message" : undefined),
  shutdown: { grace: "5 seconds", kill: "1 second" }
}

const linesOf = (...lines: ReadonlyArray<string>): string => lines.map((line) => `${line}\n`).join("")

/** What all servers of the suites are made with, and what must hold of each when it has closed. */
const rig = ({ dispatch, maxInFlight: places = 3, timeout = 20_000 }: DispatchOptions) => {
  const step = dispatch?.({ maxInFlight: places }) ??
    ((messages: Messages) => messages.pipe(Dispatch.fiberPerRequest({ maxInFlight: places })))
  return {
    places,
    test: <A, E>(
      title: string,
      body: () => Effect.Effect<A, E, Scope.Scope>,
      { when = true }: { readonly when?: boolean } = {}
    ) => it.live.runIf(when)(title, body, timeout),
    start: (messages: Messages, options?: Server.MessageOptions<string, string, any>) =>
      Effect.gen(function*() {
        const scope = yield* Effect.scope
        let server: Server.Server["Service"] | undefined
        yield* Effect.addFinalizer(() =>
          Effect.gen(function*() {
            if (server === undefined) return
            const stats = yield* server.stats
            assert.deepStrictEqual([stats.open, stats.queued, stats.inFlight], [0, 0, 0], "left of the server")
            assert.isUndefined(stats.closed.Killed, "a connection had to be cut")
          })
        )
        const layer = Server.serveMessage(obey, { ...hooks, ...options })(
          step(messages) as Layer.Layer<MessageTransport<string, string> | Dispatch.Dispatch, unknown>
        )
        return server = Context.get(yield* Layer.buildWithScope(layer, scope), Server.Server)
      })
  }
}

/**
 * Registers the suite for connections, as a `describe` of that name. Its handlers are portable ones of this package, and do what
 * their messages say; under worker dispatch, workers must be on this machine.
 *
 * **Example** (A transport of one's own, and workers)
 *
 * ```ts
 * import { NodeDispatch, NodeTransport } from "@socketserver/node"
 * import { MessageSuite, TestClient } from "@socketserver/testing"
 *
 * const tcp = {
 *   layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
 *   connect: TestClient.node
 * }
 *
 * MessageSuite.suite("messages over tcp", tcp)
 *
 * MessageSuite.suite("messages over tcp, in threads", {
 *   ...tcp,
 *   dispatch: ({ maxInFlight }) => NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: maxInFlight }),
 *   isolated: true
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const suite = (name: string, options: SuiteOptions): void => {
  const { connect: connectTo, isolated = false, layer } = options
  const { places, start: startWith, test } = rig(options)
  const parallel = { when: places > 1 }

  const start = (more?: Server.MessageOptions<string, string, any>) =>
    startWith(layer().pipe(Transport.framed(framing)), more)

  const connect = (server: Server.Server["Service"]) =>
    Effect.map(connectTo(server.address), (client) => ({
      ...client,
      /** Says these lines. */
      say: (...lines: ReadonlyArray<string>) => client.write(linesOf(...lines)),
      /** Hears these lines next. */
      hear: (...lines: ReadonlyArray<string>) =>
        promptly(() => lines.join(", "))(Effect.gen(function*() {
          for (const line of lines) assert.strictEqual(yield* client.readLine, line)
        })),
      /** Hears these lines, and then the end; and finishes, too. */
      hearLast: (...lines: ReadonlyArray<string>) =>
        promptly(() => `the end behind ${lines.join(", ")}`)(
          Effect.flatMap(client.readAll, (all) => {
            assert.strictEqual(new TextDecoder().decode(all), linesOf(...lines))
            return client.end
          })
        )
    }))
  type Talker = Effect.Success<ReturnType<typeof connect>>

  /** When it is done, what was said before it on other connections has had its chance. */
  const roundTrip = (client: Talker) => Effect.andThen(client.say("ping"), client.hear("PING"))

  const reaches = (server: Server.Server["Service"], what: string, holds: (stats: Server.Stats) => boolean) =>
    promptly(what)(
      Effect.repeat(Effect.yieldNow.pipe(Effect.andThen(server.stats), Effect.map(holds)), { until: (is) => is })
    )

  /** How the only connection has closed. */
  const closedAs = (server: Server.Server["Service"]) =>
    promptly("the connection is released")(
      Effect.andThen(
        server.awaitIdle,
        Effect.map(server.stats, ({ closed }) => Object.keys(closed) as Array<CloseReason["_tag"]>)
      )
    )

  const hold = (gate: Gate, ...names: ReadonlyArray<string>) => names.map((name) => `hold ${gate.port} ${name}`)

  describe(name, () => {
    test("answers a message with what its handler returns: a reply, none, or many", () =>
      Effect.gen(function*() {
        const server = yield* start()
        const client = yield* connect(server)
        yield* client.say("a", "", "nothing", "stream 3", "early")
        yield* client.hear("A", "", "1", "2", "3", "early", "earlier than the last", "last")
        yield* client.write("no end\r\nand none")
        yield* client.end
        yield* client.hearLast("NO END", "AND NONE")
        assert.deepStrictEqual(yield* closedAs(server), ["Completed"])
      }))

    test("answers all in order, however the bytes are cut", () =>
      Effect.gen(function*() {
        const count = isolated ? 300 : 5_000
        const server = yield* start()
        const client = yield* connect(server)
        const lines = Array.from(
          { length: count },
          (_, n) => `${n % 3 === 0 ? "later" : ""} ${n} ${"ä".repeat(n % 97)}`
        )
        const pieces = yield* cutAtRandom(new TextEncoder().encode(linesOf(...lines)))
        const writing = yield* Effect.forkChild(Effect.forEach(pieces, client.write, { discard: true }))
        yield* client.hear(...lines.map((line) => line.startsWith("later") ? line : line.toUpperCase()))
        yield* Fiber.join(writing)
        const byBytes = new TextEncoder().encode(linesOf("ä", "one byte", "at a time"))
        yield* Effect.forEach(byBytes, (byte) => client.write(Uint8Array.of(byte)), { discard: true })
        yield* client.hear("Ä", "ONE BYTE", "AT A TIME")
      }))

    test("keeps the order of the messages, whichever handler ends first", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const server = yield* start()
        const client = yield* connect(server)
        yield* client.say("before", ...hold(gate, "slow", "quick"))
        yield* client.hear("BEFORE")
        yield* gate.awaitBegan(2)
        yield* gate.open("quick")
        yield* reaches(server, "the quick one has ended", ({ inFlight }) => inFlight === 1)
        yield* client.say("stream 2", "early", "after")
        yield* gate.open("slow")
        yield* client.hear("slow", "quick", "1", "2", "early", "earlier than the last", "last", "AFTER")
      }), parallel)

    test("lets replies leave as they come with `order: \"unordered\"`", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const server = yield* start({ order: "unordered" })
        const client = yield* connect(server)
        yield* client.say(...hold(gate, "one", "two"), "three")
        yield* client.hear("THREE")
        yield* gate.awaitBegan(2)
        yield* gate.open("two")
        yield* client.hear("two")
        yield* gate.open("one")
        yield* client.hear("one")
      }), parallel)

    test("has no more messages of a connection under way than `maxPipelined`", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const server = yield* start({ maxPipelined: 2 })
        const client = yield* connect(server)
        const other = yield* connect(server)
        const pass = standstill(() => gate.began.length, Effect.repeat(roundTrip(other), { times: 20 }))
        yield* client.say(...hold(gate, "a", "b", "c", "d"))
        yield* gate.awaitBegan(2)
        assert.strictEqual(yield* pass, 2)
        // It is answered, but not its turn to be.
        yield* gate.open("b")
        assert.strictEqual(yield* pass, 2)
        yield* gate.open("a")
        yield* client.hear("a", "b")
        yield* gate.awaitBegan(4)
        yield* gate.open("c")
        yield* gate.open("d")
        yield* client.hear("c", "d")
        assert.deepStrictEqual([...gate.began].toSorted(), ["a", "b", "c", "d"])
      }), parallel)

    test("runs as many messages as the strategy has places, over all connections, and one of each may wait", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const server = yield* start()
        const one = yield* connect(server)
        const two = yield* connect(server)
        const names = Array.from({ length: places }, (_, i) => `one-${i}`)
        yield* one.say(...hold(gate, ...names))
        yield* gate.awaitBegan(places)
        yield* two.say(...hold(gate, "two-1", "two-2"))
        yield* reaches(server, "one waits", ({ queued }) => queued === 1)
        assert.deepStrictEqual([(yield* server.stats).inFlight, gate.began.length], [places, places])
        for (const [i, name] of names.entries()) {
          yield* gate.open(name)
          yield* one.hear(name)
          yield* gate.awaitBegan(Math.min(places + i + 1, places + 2))
        }
        yield* gate.open("two-1")
        yield* gate.awaitBegan(places + 2)
        yield* gate.open("two-2")
        yield* two.hear("two-1", "two-2")
      }))

    test("waits with a stream of replies for a client that does not read", () =>
      Effect.gen(function*() {
        const server = yield* start()
        const client = yield* connect(server)
        const other = yield* connect(server)
        const [count, length] = [256, 65_535]
        yield* client.say(`flood ${count} ${length}`)
        yield* client.hear("1 ".padEnd(length, "x"))
        const written = () => Effect.runSync(server.stats).bytesWritten
        // Where one message runs at a time, it is this one.
        const turn = places > 1 ? roundTrip(other) : Effect.yieldNow
        const before = yield* standstill(() => Math.floor(written() / length), Effect.repeat(turn, { times: 50 }))
        assert.isBelow(before, count)
        for (let n = 2; n <= count; n++) yield* client.hear(`${n} `.padEnd(length, "x"))
        yield* roundTrip(client)
      }))

    test("gives a handler its services, and a scope that ends before its reply leaves", () =>
      Effect.gen(function*() {
        const server = yield* start()
        const client = yield* connect(server)
        yield* client.say("greet")
        yield* client.hear("finalized", "hello")
      }))

    describe("a handler that fails", () => {
      test("has the answer of `onError`, and its connection goes on", () =>
        Effect.gen(function*() {
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say("a", "fail", "die", "unencodable", "b")
          yield* client.hear("A", "fail: HandlerFailed", "die: HandlerFailed", "unencodable: HandlerFailed", "B")
        }))

      test("without an answer closes its connection, behind the replies before, and no other", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say("a", ...hold(gate, "before"), "!fail", "after")
          yield* gate.awaitBegan(1)
          yield* gate.open("before")
          yield* client.hearLast("A", "before")
          assert.deepStrictEqual(yield* closedAs(server), ["HandlerFailed"])
          yield* roundTrip(yield* connect(server))
        }))

      test("with its worker fails alone", () =>
        Effect.gen(function*() {
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say("a", "exit", "b")
          yield* client.hear("A", "exit: WorkerCrashed", "B")
        }), { when: isolated })
    })

    describe("what is no message", () => {
      test("but a frame is answered by `onInvalid`, and the connection goes on", () =>
        Effect.gen(function*() {
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say("a", "? what", "b")
          yield* client.hear("A", "no message", "B")
        }))

      for (const [what, input] of [["too long", `${"x".repeat(maxLength + 1)}\nb\n`], ["no frame", "?"]] as const) {
        test(`because it is ${what} closes the connection, behind the replies before`, () =>
          Effect.gen(function*() {
            const server = yield* start({ onInvalid: () => Effect.void })
            const client = yield* connect(server)
            yield* client.say("a", "later b")
            yield* client.write(input)
            yield* client.end
            yield* client.hearLast("A", "later b")
            assert.deepStrictEqual(yield* closedAs(server), ["InvalidFrame"])
            yield* roundTrip(yield* connect(server))
          }))
      }
    })

    test("lets a handler send to its client without being asked, and note something of it", () =>
      Effect.gen(function*() {
        const server = yield* start()
        const client = yield* connect(server)
        yield* client.say("push it")
        yield* client.hear("pushed it")
        const [info] = yield* server.connections.list
        yield* client.hear(String(info!.id))
        assert.deepStrictEqual([...info!.annotations], [["pushed", "it"]])
      }))

    test("lets a handler close its connection, behind the replies to what was asked before", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const server = yield* start()
        const client = yield* connect(server)
        // Where handlers run elsewhere, what comes behind it may have begun by the time that it closes.
        yield* client.say("a", ...hold(gate, "b"), "quit", ...isolated ? [] : ["ignored"])
        yield* gate.awaitBegan(1)
        yield* gate.open("b")
        yield* client.hearLast("A", "b", "bye")
        assert.deepStrictEqual(yield* closedAs(server), ["Completed"])
      }))

    describe("a client that leaves", () => {
      test("is answered, where it has only finished", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say(...hold(gate, "a"), "b")
          yield* client.end
          yield* gate.awaitBegan(1)
          yield* gate.open("a")
          yield* client.hearLast("a", "B")
          assert.deepStrictEqual(yield* closedAs(server), ["Completed"])
        }))

      test("lets its handlers end, and gives back all that they had", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          const names = Array.from({ length: places + 1 }, (_, i) => `a-${i}`)
          yield* client.say(...hold(gate, ...names))
          yield* gate.awaitBegan(places)
          yield* client.reset
          for (const [i, name] of names.entries()) {
            yield* gate.awaitBegan(i + 1)
            yield* gate.open(name)
          }
          yield* promptly("the connection is released")(server.awaitIdle)
          const { inFlight, open, queued } = yield* server.stats
          assert.deepStrictEqual([open, inFlight, queued], [0, 0, 0])
          yield* roundTrip(yield* connect(server))
        }))

      test("interrupts them with `interruptOnDisconnect`", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start({ interruptOnDisconnect: "end" })
          const client = yield* connect(server)
          const names = Array.from({ length: places }, (_, i) => `a-${i}`)
          yield* client.say(...hold(gate, ...names))
          yield* gate.awaitBegan(places)
          yield* client.reset
          yield* gate.awaitLeft(...names)
          yield* promptly("the connection is released")(server.awaitIdle)
          yield* roundTrip(yield* connect(server))
        }))
    })

    describe("a drain", () => {
      test("ends idle connections at once", () =>
        Effect.gen(function*() {
          const server = yield* start()
          const clients = [yield* connect(server), yield* connect(server)]
          for (const client of clients) yield* roundTrip(client)
          const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
          for (const client of clients) yield* client.hearLast()
          const { completed, idleClosed, interrupted } = yield* promptly("the drain is over")(Fiber.join(draining))
          assert.deepStrictEqual([idleClosed, completed, interrupted], [2, 0, 0])
          assert.deepStrictEqual((yield* server.stats).closed, { Drained: 2 })
        }))

      test("lets messages end that are under way or wait, and their replies arrive", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          const names = Array.from({ length: places + 1 }, (_, i) => `a-${i}`)
          yield* client.say(...hold(gate, ...names))
          yield* gate.awaitBegan(places)
          const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
          assert.strictEqual(yield* server.status, "draining")
          for (const [i, name] of names.entries()) {
            yield* gate.awaitBegan(i + 1)
            yield* gate.open(name)
          }
          yield* client.hearLast(...names)
          const { interrupted, refused } = yield* promptly("the drain is over")(Fiber.join(draining))
          assert.deepStrictEqual([interrupted, refused], [0, 0])
        }))

      test("tells handlers that it has begun, and waits for the rest of a message", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say(`draining ${gate.port}`)
          yield* gate.awaitBegan(1)
          yield* client.write("half a ")
          const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
          yield* gate.open("draining")
          yield* client.hear("draining")
          yield* client.write("message\n")
          yield* client.hearLast("HALF A MESSAGE")
          const { interrupted } = yield* promptly("the drain is over")(Fiber.join(draining))
          assert.strictEqual(interrupted, 0)
        }))

      test("interrupts handlers when its grace is over", () =>
        Effect.gen(function*() {
          const gate = yield* makeGate
          const server = yield* start()
          const client = yield* connect(server)
          yield* client.say("a", ...hold(gate, "b", "c"))
          yield* gate.awaitBegan(Math.min(places, 2))
          const draining = yield* Effect.forkChild(server.drain({ grace: "100 millis" }), { startImmediately: true })
          yield* client.hearLast("A")
          yield* gate.awaitLeft(...gate.began)
          const { interrupted } = yield* promptly("the drain is over")(Fiber.join(draining))
          assert.strictEqual(interrupted, 1)
        }))
    })

    test("leaves nothing when its scope closes, with messages under way and waiting", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const scope = yield* Scope.make()
        const server = yield* Scope.provide(start({ shutdown: { grace: 0, kill: "1 second" } }), scope)
        const client = yield* connect(server)
        const names = Array.from({ length: places + 2 }, (_, i) => `a-${i}`)
        yield* client.say(...hold(gate, ...names))
        yield* gate.awaitBegan(places)
        yield* reaches(server, "one waits", ({ queued }) => queued === 1)
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* client.hearLast()
        yield* promptly("the scope is closed")(Fiber.join(closing))
        yield* gate.awaitLeft(...gate.began)
        assert.strictEqual(gate.began.length, places)
      }))
  })
}

/**
 * Registers the suite for packets, as a `describe` of that name. Packets must not be lost: they are sent one by one, most of
 * them.
 *
 * **Example** (Packets in memory)
 *
 * ```ts
 * import { MemoryTransport } from "@socketserver/core"
 * import { DatagramTestClient, MessageSuite } from "@socketserver/testing"
 *
 * MessageSuite.packetSuite("messages in packets", {
 *   layer: () => MemoryTransport.datagram(),
 *   client: DatagramTestClient.memory()
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const packetSuite = (name: string, options: PacketSuiteOptions): void => {
  const { client: bind, isolated = false, layer } = options
  const { places, start: startWith, test } = rig(options)

  const start = (more?: Server.MessageOptions<string, string, any>) =>
    Effect.gen(function*() {
      const server = yield* startWith(layer().pipe(Transport.framed(framing)), more)
      const client = yield* Effect.orDie(bind)
      const send = (packet: string) => client.send(server.address, packet)
      const hear = (...packets: ReadonlyArray<string>) =>
        promptly(() => packets.join(", "))(Effect.gen(function*() {
          for (const packet of packets) {
            assert.strictEqual(new TextDecoder().decode((yield* client.receive).payload), `${packet}\n`)
          }
        }))
      return {
        server,
        send,
        hear,
        ask: (packet: string, ...replies: ReadonlyArray<string>) => Effect.andThen(send(packet), hear(...replies)),
        closed: Effect.andThen(server.awaitIdle, Effect.map(server.stats, ({ closed }) => closed))
      }
    })

  describe(name, () => {
    test("has a message of each packet, and a packet of each reply", () =>
      Effect.gen(function*() {
        const { ask, closed, send } = yield* start()
        yield* ask("a", "A")
        yield* ask("a line\r\n", "A LINE")
        yield* ask("\n", "")
        yield* send("nothing")
        yield* ask("stream 3", "1", "2", "3")
        yield* ask("early", "early", "earlier than the last", "last")
        yield* ask("push it", "pushed it", "7")
        yield* ask("greet", "finalized", "hello")
        assert.deepStrictEqual(yield* closed, { Completed: 8 })
      }))

    test("answers the failure of a handler by `onError`, and what is no message by `onInvalid`", () =>
      Effect.gen(function*() {
        const { ask, closed } = yield* start()
        yield* ask("fail", "fail: HandlerFailed")
        yield* ask("die", "die: HandlerFailed")
        yield* ask("? what", "no message")
        yield* ask("a", "A")
        assert.deepStrictEqual(yield* closed, { HandlerFailed: 2, Completed: 2 })
      }))

    test("drops what is no frame, or more than one", () =>
      Effect.gen(function*() {
        const { ask, closed, send } = yield* start({ onInvalid: () => Effect.void })
        yield* send("one\ntwo\n")
        yield* send("? what")
        yield* send("")
        yield* ask("a", "A")
        assert.deepStrictEqual(yield* closed, { InvalidFrame: 3, Completed: 1 })
      }))

    test("loses nobody else's packet when a handler ends its worker", () =>
      Effect.gen(function*() {
        const { ask, closed } = yield* start()
        yield* ask("exit", "exit: WorkerCrashed")
        yield* ask("a", "A")
        assert.deepStrictEqual(yield* closed, { WorkerCrashed: 1, Completed: 1 })
      }), { when: isolated })

    test("in a drain lets messages end that are under way or wait, and sends their replies", () =>
      Effect.gen(function*() {
        const gate = yield* makeGate
        const { hear, send, server } = yield* start()
        const names = Array.from({ length: places + 1 }, (_, i) => `a-${i}`)
        for (const name of names) yield* send(`hold ${gate.port} ${name}`)
        yield* gate.awaitBegan(places)
        yield* promptly("one waits")(
          Effect.repeat(Effect.andThen(Effect.yieldNow, server.stats), { until: ({ queued }) => queued === 1 })
        )
        const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
        for (const [i, name] of names.entries()) {
          yield* gate.awaitBegan(i + 1)
          yield* gate.open(name)
          yield* hear(name)
        }
        const { interrupted, refused } = yield* promptly("the drain is over")(Fiber.join(draining))
        assert.deepStrictEqual([interrupted, refused], [0, 0])
      }))
  })
}
