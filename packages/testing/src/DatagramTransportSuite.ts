/**
 * What every datagram transport must do, as a suite of tests: clients send packets to real servers, under both strategies, and
 * everything that a handler may rely on is checked, from one request for each packet to addresses that are free again. The
 * transports of this project pass it; whoever writes another can hold it to the same.
 *
 * @since 0.1.0
 */
import { assert, describe, it } from "@effect/vitest"
import type { Datagram } from "@socketserver/core/Datagram"
import { DatagramError } from "@socketserver/core/DatagramError"
import { DatagramTransport } from "@socketserver/core/DatagramTransport"
import * as Dispatch from "@socketserver/core/Dispatch"
import * as Server from "@socketserver/core/Server"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { DatagramTestClient } from "./DatagramTestClient.ts"
import { assertSameBytes, pattern } from "./internal/bytes.ts"
import { promptly } from "./internal/waiting.ts"

/**
 * A transport, how to reach it, and what it cannot do.
 *
 * @category options
 * @since 0.1.0
 */
export interface SuiteOptions {
  /**
   * Makes the transport, for each test and each server anew, with its defaults, and bound to an address that clients can send
   * to as it stands (not `0.0.0.0`). One with a fixed address may use it again: the tests run one by one.
   */
  readonly layer: () => Layer.Layer<DatagramTransport, unknown>
  /** Binds a client, most likely one of `DatagramTestClient`. */
  readonly client: Effect.Effect<DatagramTestClient, unknown, Scope.Scope>
  /** Makes a client without an address, where the kind of socket has such. */
  readonly anonymous?: Effect.Effect<Pick<DatagramTestClient, "send">, unknown, Scope.Scope> | undefined
  /**
   * Do a hundred small packets arrive that are sent at once? Then some tests do that. Default `false`: no packet is sent before
   * the one before it has arrived.
   */
  readonly lossless?: boolean | undefined
  /** A number of bytes that a packet cannot have. Default 100,000. */
  readonly tooLarge?: number | undefined
  /** How long a test may take, in milliseconds. Default 20,000. */
  readonly timeout?: number | undefined
}

const decoder = new TextDecoder()
const encoder = new TextEncoder()
const text = (bytes: Uint8Array): string => decoder.decode(bytes)

/** What a transport takes of a packet if it is not told otherwise. */
const maxPacketSize = 8_192

type Step = (
  transport: Layer.Layer<DatagramTransport, unknown>
) => Layer.Layer<DatagramTransport | Dispatch.Dispatch, unknown>

const strategies: { readonly [name: string]: Step } = {
  serial: Dispatch.serial(),
  fiberPerRequest: Dispatch.fiberPerRequest()
}

const echo = ({ payload, reply }: Datagram) => reply(payload)

/**
 * Registers the suite, as a `describe` of that name.
 *
 * **Example** (Holding a transport of one's own to the suite)
 *
 * ```ts
 * import { MemoryTransport } from "@socketserver/core"
 * import { DatagramTestClient, DatagramTransportSuite } from "@socketserver/testing"
 *
 * DatagramTransportSuite.suite("memory", {
 *   layer: () => MemoryTransport.datagram(),
 *   client: DatagramTestClient.memory(),
 *   anonymous: DatagramTestClient.memory({ name: "" }),
 *   lossless: true
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const suite = (name: string, options: SuiteOptions): void => {
  const { anonymous, client: bind, lossless = false, timeout = 20_000, tooLarge = 100_000 } = options

  describe(name, () => {
    for (const [strategy, step] of Object.entries(strategies)) {
      describe(`under ${strategy}`, () => register(step))
    }
  })

  function register(step: Step): void {
    const test = <A, E>(title: string, body: () => Effect.Effect<A, E, Scope.Scope>) => it.live(title, body, timeout)

    /**
     * A server with that handler, and what sends to it. When the test is over and the server is closed, as many packets must
     * have arrived as were sent with `send` and `burst`, nothing may be at work, and no handler may have failed that was not
     * meant to.
     */
    const serve = <E>(
      handler: Server.DatagramHandler<E, never>,
      { at, mayFail = false }: { readonly at?: SocketAddress; readonly mayFail?: boolean } = {}
    ) =>
      Effect.gen(function*() {
        const scope = yield* Effect.scope
        const arrivals = yield* Queue.unbounded<void>()
        const failures: Array<string> = []
        let sent = 0
        let arrived = 0
        let server: Server.Server["Service"] | undefined
        yield* Effect.addFinalizer(() =>
          Effect.gen(function*() {
            if (server === undefined) return
            const { accepted, closed, inFlight, open, queued } = yield* server.stats
            assert.deepStrictEqual(failures, [])
            assert.strictEqual(arrived, sent, "packets arrived, of those that were sent")
            assert.deepStrictEqual([open, queued, inFlight], [0, 0, 0])
            assert.strictEqual(Object.values(closed).reduce((sum, count) => sum + count, 0), accepted)
          })
        )
        const watched = Layer.effect(
          DatagramTransport,
          Effect.map(DatagramTransport, (transport): DatagramTransport["Service"] => ({
            ...transport,
            listen: (onPacket, again) =>
              transport.listen((packet) => {
                arrived++
                onPacket(packet)
                Queue.offerUnsafe(arrivals, undefined)
              }, again ?? at)
          }))
        )
        const context = yield* watched.pipe(
          Layer.provide(options.layer()),
          step,
          Server.serveDatagram(handler, {
            shutdown: { grace: "5 seconds", kill: "1 second" },
            onError: (cause) =>
              Effect.sync(() => {
                if (!mayFail) failures.push(Cause.pretty(cause))
              })
          }),
          Layer.buildWithScope(scope)
        )
        const { address } = server = Context.get(context, Server.Server)

        const emit = (client: Pick<DatagramTestClient, "send">, payload: Uint8Array | string) =>
          Effect.suspend(() => {
            sent++
            return client.send(address, payload)
          })
        const arrival = promptly("a packet arrives at the server")(Queue.take(arrivals))
        /** Sends, and waits until the packet has arrived. */
        const send = (client: Pick<DatagramTestClient, "send">, payload: Uint8Array | string) =>
          Effect.andThen(emit(client, payload), arrival)
        /** Sends all at once if none is lost by that. */
        const burst = (
          packets: ReadonlyArray<readonly [client: DatagramTestClient, payload: Uint8Array | string]>
        ) =>
          lossless
            ? Effect.andThen(
              Effect.forEach(packets, ([client, payload]) => emit(client, payload), { discard: true }),
              Effect.replicateEffect(arrival, packets.length)
            )
            : Effect.forEach(packets, ([client, payload]) => send(client, payload), { discard: true })
        /** Sends, and expects the next packet that comes from the server to be that answer. */
        const exchange = (client: DatagramTestClient, request: string, answer = request) =>
          Effect.gen(function*() {
            yield* send(client, request)
            yield* expectAnswer(client, answer)
          })
        const expectAnswer = (client: DatagramTestClient, answer: string) =>
          Effect.gen(function*() {
            const { payload, peer } = yield* receive(client)
            assert.strictEqual(text(payload), answer)
            assert.strictEqual(String(peer), String(address), "the sender of the answer")
          })
        return { server, send, burst, exchange, expectAnswer }
      })

    const receive = (client: DatagramTestClient) => promptly("a packet arrives at the client")(client.receive)

    describe("carries", () => {
      test("a packet to the handler and its answer back, and tells both sides who the other is", () =>
        Effect.gen(function*() {
          const seen: Array<ReadonlyArray<string | boolean>> = []
          const { exchange, server } = yield* serve((datagram) => {
            seen.push([String(datagram.peer), String(datagram.local), text(datagram.payload), datagram.truncated])
            return datagram.reply("answer: é€😀")
          })
          const client = yield* bind
          yield* exchange(client, "request: é€😀", "answer: é€😀")
          assert.deepStrictEqual(seen, [
            [String(client.address), String(server.address), "request: é€😀", false]
          ])
        }))

      test("one packet as one request, not joined with another and not split, of 0, 1, 512 and 8,192 bytes", () =>
        Effect.gen(function*() {
          const seen: Array<readonly [Uint8Array, boolean]> = []
          const { send } = yield* serve((datagram) => {
            seen.push([datagram.payload, datagram.truncated])
            return echo(datagram)
          })
          const client = yield* bind
          const requests = [0, 1, 512, maxPacketSize, 0, maxPacketSize, 512, 1, 0].map((size, i) =>
            pattern(size, 4 * i)
          )
          for (const request of requests) {
            yield* send(client, request)
            assertSameBytes((yield* receive(client)).payload, request)
          }
          assert.strictEqual(seen.length, requests.length)
          for (const [i, [payload, truncated]] of seen.entries()) {
            assertSameBytes(payload, requests[i]!)
            assert.isFalse(truncated)
          }
        }))

      test("fifty packets of two clients as fifty requests, however close they follow each other", () =>
        Effect.gen(function*() {
          const seen: Array<string> = []
          const { burst, server } = yield* serve((datagram) => {
            seen.push(text(datagram.payload))
            return Effect.void
          })
          const [first, second] = [yield* bind, yield* bind]
          const requests = Array.from({ length: 50 }, (_, i) => [i % 2 ? first : second, `request ${i}`] as const)
          yield* burst(requests)
          yield* promptly("all are handled")(server.awaitIdle)
          assert.deepStrictEqual(seen.toSorted(), requests.map(([, request]) => request).toSorted())
          assert.strictEqual((yield* server.stats).accepted, 50)
        }))

      test("empty packets in and out", () =>
        Effect.gen(function*() {
          const lengths: Array<number> = []
          const { exchange, send } = yield* serve(({ payload, reply }) => {
            lengths.push(payload.length)
            return Effect.andThen(reply(new Uint8Array(0)), reply(payload.length === 0 ? "" : payload))
          })
          const client = yield* bind
          yield* send(client, new Uint8Array(0))
          yield* send(client, "")
          for (let i = 0; i < 4; i++) assert.strictEqual((yield* receive(client)).payload.length, 0)
          yield* exchange(client, "last", "")
          assert.strictEqual(text((yield* receive(client)).payload), "last")
          assert.deepStrictEqual(lengths, [0, 0, 4])
        }))

      test("the first 8,192 bytes of a longer packet, tells that it is cut, and the next packet whole", () =>
        Effect.gen(function*() {
          const seen: Array<readonly [Uint8Array, boolean]> = []
          const { send, server } = yield* serve((datagram) => {
            seen.push([datagram.payload, datagram.truncated])
            return datagram.reply(`${datagram.payload.length}`)
          })
          const client = yield* bind
          const sizes = [maxPacketSize, maxPacketSize + 1, 9_000, 1]
          for (const size of sizes) {
            yield* send(client, pattern(size))
            assert.strictEqual(text((yield* receive(client)).payload), `${Math.min(size, maxPacketSize)}`)
          }
          assert.deepStrictEqual(seen.map(([, truncated]) => truncated), sizes.map((size) => size > maxPacketSize))
          for (const [i, [payload]] of seen.entries()) {
            assertSameBytes(payload, pattern(Math.min(sizes[i]!, maxPacketSize)))
          }
          assert.strictEqual((yield* server.stats).truncated, 2)
        }))

      test("several answers to one packet, in order", () =>
        Effect.gen(function*() {
          const { exchange, expectAnswer } = yield* serve(({ reply }) =>
            Effect.forEach(["one", "two", "three"], (answer) => reply(answer))
          )
          const client = yield* bind
          for (let i = 0; i < 2; i++) {
            yield* exchange(client, "request", "one")
            yield* expectAnswer(client, "two")
            yield* expectAnswer(client, "three")
          }
        }))
    })

    describe("answers", () => {
      test("each of two clients, at a time, with its own", () =>
        Effect.gen(function*() {
          const { send } = yield* serve(({ payload, peer, reply }) => reply(`${text(payload)} for ${String(peer)}`))
          const clients = [yield* bind, yield* bind]
          yield* Effect.forEach(clients, (client) =>
            Effect.gen(function*() {
              for (let i = 0; i < 20; i++) {
                yield* send(client, `${i}`)
                assert.strictEqual(text((yield* receive(client)).payload), `${i} for ${String(client.address)}`)
              }
            }), { concurrency: "unbounded" })
        }))

      test("the sender of each packet, also after packets of others have come", () =>
        Effect.gen(function*() {
          const kept: Array<Datagram> = []
          const { expectAnswer, send } = yield* serve((datagram) => {
            kept.push(datagram)
            return kept.length < 3 ? Effect.void : Effect.forEach(kept.toReversed(), echo)
          })
          const clients = [yield* bind, yield* bind, yield* bind]
          for (const [i, client] of clients.entries()) yield* send(client, `client ${i}`)
          for (const [i, client] of clients.entries()) yield* expectAnswer(client, `client ${i}`)
        }))

      test("a third party with `send`, from the server's address, and the sender of the packet not at all", () =>
        Effect.gen(function*() {
          const other = yield* bind
          const { exchange, expectAnswer, send } = yield* serve((datagram) =>
            text(datagram.payload) === "relay" ? datagram.send(other.address, "relayed") : echo(datagram)
          )
          const client = yield* bind
          yield* send(client, "relay")
          yield* expectAnswer(other, "relayed")
          yield* exchange(client, "last")
          yield* exchange(other, "last")
        }))

      test("nobody without `reply`", () =>
        Effect.gen(function*() {
          const { exchange, send, server } = yield* serve((datagram) =>
            text(datagram.payload) === "silent" ? Effect.succeed("not an answer") : echo(datagram)
          )
          const client = yield* bind
          for (let i = 0; i < 3; i++) yield* send(client, "silent")
          yield* promptly("all are handled")(server.awaitIdle)
          yield* exchange(client, "last")
        }))

      test("nobody after a failure, a defect or an interruption of a handler, and goes on", () =>
        Effect.gen(function*() {
          const endings: Record<string, Effect.Effect<never, string>> = {
            fail: Effect.fail("no"),
            die: Effect.die(new Error("defect")),
            interrupt: Effect.interrupt
          }
          const { exchange, send, server } = yield* serve(
            (datagram): Effect.Effect<void, string | DatagramError> =>
              endings[text(datagram.payload)] ?? echo(datagram),
            { mayFail: true }
          )
          const client = yield* bind
          for (const ending of Object.keys(endings)) {
            yield* send(client, ending)
            yield* promptly("the handler ends")(server.awaitIdle)
            yield* exchange(client, `after ${ending}`)
          }
          assert.deepStrictEqual((yield* server.stats).closed, { HandlerFailed: 3, Completed: 3 })
        }))

      test("others, when a client is gone before its answer", () =>
        Effect.gen(function*() {
          const gone = yield* Deferred.make<void>()
          const { exchange, send, server } = yield* serve((datagram) =>
            text(datagram.payload) === "bye"
              // Sockets tell, or not: what is sent to nobody may be lost without a word.
              ? Effect.andThen(Deferred.await(gone), Effect.ignore(echo(datagram)))
              : echo(datagram)
          )
          yield* Effect.scoped(Effect.flatMap(bind, (client) => send(client, "bye")))
          yield* Deferred.succeed(gone, undefined)
          yield* promptly("the answer is sent")(server.awaitIdle)
          const client = yield* bind
          for (let i = 0; i < 3; i++) yield* exchange(client, `${i}`)
        }))

      if (step === strategies.serial) {
        test("the packets of each client in order", () =>
          Effect.gen(function*() {
            const seen = new Map<string, Array<string>>()
            const { burst, server } = yield* serve(({ payload, peer }) =>
              // A handler that takes longer for some than for others.
              Effect.andThen(
                Effect.repeat(Effect.yieldNow, { times: payload.length % 3 }),
                Effect.sync(() => {
                  const packets = seen.get(String(peer)) ?? []
                  seen.set(String(peer), [...packets, text(payload)])
                })
              )
            )
            const clients = [yield* bind, yield* bind]
            const order = Array.from({ length: 50 }, (_, i) => `${"x".repeat(i * 7 % 5)} ${i}`)
            yield* burst(order.flatMap((payload) => clients.map((client) => [client, payload] as const)))
            yield* promptly("all are handled")(server.awaitIdle)
            for (const { address } of clients) assert.deepStrictEqual(seen.get(String(address)), order)
          }))
      }
    })

    describe("a payload", () => {
      const requests = Array.from({ length: 50 }, (_, i) => pattern(1 + (i * 1_237) % maxPacketSize, 4 * i))

      test("is the handler's for good: it stays as it is when later packets come", () =>
        Effect.gen(function*() {
          const kept: Array<Uint8Array> = []
          const { send } = yield* serve((datagram) => {
            kept.push(datagram.payload)
            return echo(datagram)
          })
          const client = yield* bind
          for (const request of requests) {
            yield* send(client, request)
            assertSameBytes((yield* receive(client)).payload, request)
          }
          assert.strictEqual(kept.length, requests.length)
          for (const [i, payload] of kept.entries()) assertSameBytes(payload, requests[i]!)
        }))

      test("is nobody else's: a handler that writes to it changes no other, and not what the sender has", () =>
        Effect.gen(function*() {
          const kept: Array<Uint8Array> = []
          const copies: Array<Uint8Array> = []
          const { send } = yield* serve((datagram) => {
            copies.push(new Uint8Array(datagram.payload))
            // Every other one is overwritten; those between them must not be.
            if (kept.push(datagram.payload) % 2 === 0) return echo(datagram)
            datagram.payload.fill(0xee)
            return echo(datagram)
          })
          const client = yield* bind
          for (const [i, request] of requests.entries()) {
            const original = new Uint8Array(request)
            yield* send(client, request)
            const { payload } = yield* receive(client)
            assertSameBytes(payload, i % 2 === 1 ? original : new Uint8Array(original.length).fill(0xee))
            assertSameBytes(request, original)
          }
          for (const [i, payload] of kept.entries()) {
            assertSameBytes(copies[i]!, requests[i]!)
            assertSameBytes(payload, i % 2 === 1 ? requests[i]! : new Uint8Array(requests[i]!.length).fill(0xee))
          }
        }))

      test("that was sent may be written to once `reply` is complete", () =>
        Effect.gen(function*() {
          const output = new Uint8Array(4)
          const { exchange } = yield* serve(({ payload, reply }) => {
            encoder.encodeInto(text(payload), output)
            return Effect.andThen(reply(output), Effect.sync(() => output.fill(0)))
          })
          const client = yield* bind
          for (const request of ["1234", "abcd", "wxyz"]) yield* exchange(client, request)
        }))
    })

    describe("fails, typed, and goes on", () => {
      test(`with TooLarge, when an answer has ${tooLarge} bytes`, () =>
        Effect.gen(function*() {
          const failed = yield* Deferred.make<ReadonlyArray<unknown>>()
          const large = new Uint8Array(tooLarge)
          const { exchange, send, server } = yield* serve((datagram) =>
            text(datagram.payload) === "large"
              ? Effect.tapError(datagram.reply(large), (byReply) =>
                Effect.flatMap(
                  Effect.flip(datagram.send(datagram.peer, large)),
                  (bySend) => Deferred.succeed(failed, [byReply, bySend])
                ))
              : echo(datagram), { mayFail: true })
          const client = yield* bind
          yield* send(client, "large")
          for (const error of yield* promptly("the answer is refused")(Deferred.await(failed))) {
            assert.instanceOf(error, DatagramError)
            assert.strictEqual(String(error.peer), String(client.address))
            assert(error.reason._tag === "TooLarge", error.message)
            assert.strictEqual(error.reason.length, tooLarge)
          }
          yield* exchange(client, "last")
          yield* promptly("the handlers end")(server.awaitIdle)
          assert.deepStrictEqual((yield* server.stats).closed, { TransportFailed: 1, Completed: 1 })
        }))

      if (anonymous !== undefined) {
        test("with NoReturnAddress, when the sender has no address", () =>
          Effect.gen(function*() {
            const failed = yield* Deferred.make<readonly [string, DatagramError]>()
            const { exchange, send } = yield* serve((datagram) =>
              Effect.tapError(echo(datagram), (error) => Deferred.succeed(failed, [text(datagram.payload), error])), {
              mayFail: true
            })
            yield* send(yield* anonymous, "who am I?")
            const [request, error] = yield* promptly("the answer is refused")(Deferred.await(failed))
            assert.strictEqual(request, "who am I?")
            assert.instanceOf(error, DatagramError)
            assert.strictEqual(error.reason._tag, "NoReturnAddress")
            yield* exchange(yield* bind, "last")
          }))
      }
    })

    describe("an address", () => {
      test("is bound again when a suspended server resumes, and what came meanwhile is lost", () =>
        Effect.gen(function*() {
          const { exchange, server } = yield* serve(echo)
          const client = yield* bind
          const address = String(server.address)
          for (let i = 0; i < 3; i++) {
            yield* exchange(client, `before ${i}`)
            yield* server.suspend
            yield* Effect.ignore(client.send(server.address, "lost"))
            yield* server.resume
            assert.strictEqual(String(server.address), address)
            yield* exchange(client, `after ${i}`)
          }
        }))

      test("is free for another server while its server is suspended", () =>
        Effect.gen(function*() {
          const { exchange, server } = yield* serve(echo)
          const client = yield* bind
          yield* server.suspend
          yield* Effect.scoped(Effect.gen(function*() {
            const other = yield* serve(({ reply }) => reply("other"), { at: server.address })
            yield* other.exchange(client, "request", "other")
            assert.strictEqual((yield* Effect.flip(server.resume)).reason._tag, "AddressInUse")
          }))
          yield* server.resume
          yield* exchange(client, "last")
        }))

      test("stays bound in a drain until what was received is answered, and is free after it", () =>
        Effect.gen(function*() {
          const { send, server } = yield* serve((datagram) => Effect.andThen(datagram.draining, echo(datagram)))
          const client = yield* bind
          for (let i = 0; i < 3; i++) yield* send(client, `${i}`)
          const { completed, interrupted, killed, refused } = yield* promptly("the drain completes")(server.drain())
          assert.deepStrictEqual({ completed, interrupted, killed, refused }, {
            completed: 3,
            interrupted: 0,
            killed: 0,
            refused: 0
          })
          const answers = yield* Effect.replicateEffect(receive(client), 3)
          assert.deepStrictEqual(answers.map(({ payload }) => text(payload)).toSorted(), ["0", "1", "2"])
          const next = yield* serve(echo, { at: server.address })
          yield* next.exchange(client, "last")
        }))

      test("can be bound at once by a new server when the scope of the old one is closed, and again", () =>
        Effect.gen(function*() {
          const client = yield* bind
          const serveOnce = (word: string, at?: SocketAddress) =>
            Effect.scoped(Effect.gen(function*() {
              const { exchange, server } = yield* serve(({ reply }) => reply(word), at === undefined ? {} : { at })
              if (at !== undefined) assert.strictEqual(String(server.address), String(at))
              yield* exchange(client, "request", word)
              return server.address
            }))
          const address = yield* serveOnce("first")
          yield* serveOnce("second", address)
          yield* serveOnce("third", address)
        }))

      test("in use is an error, AddressInUse, and its server is left alone", () =>
        Effect.gen(function*() {
          const { exchange, server } = yield* serve(echo)
          const error = yield* Effect.flip(Effect.scoped(serve(echo, { at: server.address })))
          assert.propertyVal(error, "_tag", "ListenError")
          assert.nestedPropertyVal(error, "reason._tag", "AddressInUse")
          yield* exchange(yield* bind, "last")
        }))
    })
  }
}
