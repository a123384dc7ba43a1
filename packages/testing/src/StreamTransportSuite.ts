/**
 * What every stream transport must do, as a suite of tests: clients connect over the transport to real servers and to bare
 * listeners, and everything that a handler may rely on is checked, from bytes in order to resets, from half-close to
 * backpressure. The transports of this project pass it; whoever writes another can hold it to the same.
 *
 * @since 0.1.0
 */
import { assert, describe, it } from "@effect/vitest"
import type { Connection } from "@socketserver/core/Connection"
import type { ConnectionError } from "@socketserver/core/ConnectionError"
import * as Dispatch from "@socketserver/core/Dispatch"
import * as Server from "@socketserver/core/Server"
import { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { assertSameBytes, concat, cutAtRandom, pattern } from "./internal/bytes.ts"
import { Probe } from "./internal/probe.ts"
import { promptly, standstill } from "./internal/waiting.ts"
import type { Client, ClientError } from "./TestClient.ts"

/**
 * A transport, how to reach it, and what it cannot do.
 *
 * @category options
 * @since 0.1.0
 */
export interface SuiteOptions {
  /** Makes the transport, for each test anew. One with a fixed address may use it again: the tests run one by one. */
  readonly layer: () => Layer.Layer<StreamTransport, unknown>
  /** Connects a client, most likely `TestClient.node`. */
  readonly connect: (address: SocketAddress) => Effect.Effect<Client, ClientError, Scope.Scope>
  /**
   * Does a server learn that its client has reset the connection, as `Reset`, and not merely that it is gone? Default `true`.
   * Unix sockets, for instance, have no resets.
   */
  readonly seesResets?: boolean | undefined
  /** Does a client learn of `Connection.reset` as a reset, and not merely as an end? Default `true`. */
  readonly sendsResets?: boolean | undefined
  /** Does a second listener on an address in use fail with `AddressInUse`? Default `true`. */
  readonly addressInUse?: boolean | undefined
  /** Are clients refused once the listener is closed? Default `true`. */
  readonly refuses?: boolean | undefined
  /**
   * The most bytes that may be on their way in one direction of a connection, in the transport and in the system below it,
   * when nobody reads them. Default 8 MiB, below 16 MiB: Linux lets a TCP connection have about 4.
   */
  readonly maxBuffered?: number | undefined
  /** How long a test may take, in milliseconds. Default 20,000. */
  readonly timeout?: number | undefined
}

const KiB = 1_024
const MiB = 1_024 * KiB
const block = 64 * KiB
/** More than any buffer between two programs holds. */
const flood = 16 * MiB

/** What one connection's input may be ahead of what its handler asked for: its own read-ahead, and the transport's chunk. */
const maxReadAhead = 512 * KiB

const echo: Server.StreamHandler<ConnectionError, never> = (connection) => Stream.run(connection.bytes, connection.sink)

const echoLines: Server.StreamHandler<ConnectionError, never> = (connection) =>
  Stream.run(Stream.map(connection.lines(), (line) => `${line}\n`), connection.sink)

/** A full round trip: when it is done, what was sent before it on other connections has had its chance to arrive. */
const roundTrip = (client: Client) =>
  Effect.gen(function*() {
    yield* client.write("ping\n")
    assert.strictEqual(yield* client.readLine, "ping")
  })

/** Writes 16 MiB. `count.bytes` is what has been accepted so far. */
const writeFlood = <E>(write: (chunk: Uint8Array) => Effect.Effect<void, E>, count: { bytes: number }) =>
  Effect.suspend(() =>
    Effect.tap(write(pattern(block, count.bytes)), () =>
      Effect.sync(() => {
        count.bytes += block
      }))
  ).pipe(Effect.repeat({ while: () => count.bytes < flood }))

/**
 * Registers the suite, as a `describe` of that name.
 *
 * **Example** (Holding a transport of one's own to the suite)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { StreamTransportSuite, TestClient } from "@socketserver/testing"
 *
 * StreamTransportSuite.suite("tcp", {
 *   layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
 *   connect: TestClient.node
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const suite = (name: string, options: SuiteOptions): void => {
  const { addressInUse = true, connect, maxBuffered = 8 * MiB, refuses = true, seesResets = true, sendsResets = true } =
    options
  const { timeout = 20_000 } = options

  const test = <A, E>(
    title: string,
    body: () => Effect.Effect<A, E, Scope.Scope>,
    { when = true }: { readonly when?: boolean } = {}
  ) => it.live.runIf(when)(title, body, timeout)

  /** A server with that handler. When the test is over and the server is closed, nothing may be open. */
  const serve = <E>(handler: Server.StreamHandler<E, never>) =>
    Effect.gen(function*() {
      const scope = yield* Effect.scope
      let server: Server.Server["Service"] | undefined
      yield* Effect.addFinalizer(() =>
        Effect.suspend(() => server === undefined ? Effect.void : Effect.map(server.stats, assertNothingLeft))
      )
      const context = yield* options.layer().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(handler, { shutdown: { grace: "5 seconds", kill: "1 second" } }),
        Layer.buildWithScope(scope)
      )
      return server = Context.get(context, Server.Server)
    })

  const assertNothingLeft = (stats: Server.Stats): void => {
    assert.deepStrictEqual([stats.open, stats.queued, stats.inFlight], [0, 0, 0])
    assert.strictEqual(Object.values(stats.closed).reduce((sum, count) => sum + count, 0), stats.accepted)
    assert.isUndefined(stats.closed.Killed, "a connection had to be cut")
  }

  /** A server that echoes to one client, with which time can be passed, and gives the others to the handler. */
  const serveBesideEcho = <E>(handler: Server.StreamHandler<E, never>) =>
    Effect.gen(function*() {
      const server = yield* serve((connection) =>
        Effect.flatMap(connection.readLine(), (first): Effect.Effect<unknown, E | ConnectionError> =>
          first === "echo" ? echo(connection) : handler(connection))
      )
      const other = yield* connect(server.address)
      yield* other.write("echo\n")
      const client = yield* connect(server.address)
      yield* client.write("handle me\n")
      return { server, client, passTime: Effect.repeat(roundTrip(other), { times: 20 }) }
    })

  /** A bare listener, without a server above. Its wires report to probes, whose findings are checked in the end. */
  const listen = Effect.gen(function*() {
    const transport = Context.get(yield* Layer.build(options.layer()), StreamTransport)
    const arrivals = yield* Queue.unbounded<Probe>()
    const probes: Array<Probe> = []
    const listenAt = (at?: SocketAddress) =>
      transport.listen((wire) => {
        const probe = new Probe(wire)
        probes.push(probe)
        Queue.offerUnsafe(arrivals, probe)
      }, at)
    const scope = yield* Scope.make()
    const { address } = yield* Scope.provide(listenAt(), scope)
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        yield* Scope.close(scope, Exit.void)
        for (const probe of probes) {
          probe.wire.destroy(false)
          yield* probe.closed
          assert.deepStrictEqual(probe.violations, [])
        }
      })
    )
    const openAt = (address: SocketAddress) =>
      Effect.gen(function*() {
        // Some transports find out whether an address is in use by connecting to it: those clients are not ours.
        yield* Queue.clear(arrivals)
        const client = yield* connect(address)
        const probe = yield* promptly("the listener accepts a client")(Queue.take(arrivals))
        return { client, probe, wire: probe.wire }
      })
    const other = yield* openAt(address)
    other.probe.resume()
    const passTime = Effect.repeat(exchange(other), { times: 20 })
    return { address, open: openAt(address), openAt, listenAt, close: Scope.close(scope, Exit.void), passTime }
  })

  /** A byte there and a byte back, over a bare wire. */
  const exchange = ({ client, probe }: { readonly client: Client; readonly probe: Probe }) =>
    Effect.gen(function*() {
      const before = probe.received
      yield* client.write("?")
      yield* probe.until("a byte arrives", () => probe.received > before)
      probe.wire.write("!")
      yield* client.readExactly(1)
    })

  const exchangeWith = <E, R>(open: Effect.Effect<{ readonly client: Client; readonly probe: Probe }, E, R>) =>
    Effect.flatMap(open, (opened) => {
      opened.probe.resume()
      return exchange(opened)
    })

  describe(name, () => {
    describe("serves", () => {
      test("three clients, one after the other, at the address that the server tells", () =>
        Effect.gen(function*() {
          const server = yield* serve(echoLines)
          for (const word of ["one", "two", "three"]) {
            yield* Effect.scoped(Effect.gen(function*() {
              const client = yield* connect(server.address)
              yield* client.write(`${word}\n`)
              assert.strictEqual(yield* client.readLine, word)
            }))
          }
          yield* promptly("the clients are released")(server.awaitIdle)
          assert.strictEqual((yield* server.stats).accepted, 3)
        }))

      test("fifty clients at once", () =>
        Effect.gen(function*() {
          const all = yield* Deferred.make<void>()
          let arrived = 0
          const server = yield* serve((connection) =>
            Effect.gen(function*() {
              const line = yield* connection.readLine()
              if (++arrived === 50) yield* Deferred.succeed(all, undefined)
              yield* Deferred.await(all)
              yield* connection.write(`${line}\n`)
            })
          )
          const answers = yield* Effect.forEach(
            Array.from({ length: 50 }, (_, i) => `client ${i}`),
            (line) =>
              Effect.scoped(Effect.gen(function*() {
                const client = yield* connect(server.address)
                yield* client.write(`${line}\n`)
                return line === (yield* client.readLine)
              })),
            { concurrency: "unbounded" }
          )
          assert.deepStrictEqual(answers, Array.from({ length: 50 }, () => true))
        }))

      test("the next client, when others have connected and gone away at once", () =>
        Effect.gen(function*() {
          const server = yield* serve(echoLines)
          yield* Effect.replicateEffect(Effect.scoped(connect(server.address)), 10)
          yield* Effect.replicateEffect(Effect.scoped(Effect.flatMap(connect(server.address), (c) => c.reset)), 10)
          const client = yield* connect(server.address)
          yield* roundTrip(client)
          yield* client.end
          yield* promptly("the clients are released")(server.awaitIdle)
        }))

      test("strings as UTF-8, and counts bytes", () =>
        Effect.gen(function*() {
          const text = "é€😀\n"
          const server = yield* serve((connection) =>
            Effect.flatMap(connection.readLine(), (line) => connection.writeAll([line, "\n"]))
          )
          const client = yield* connect(server.address)
          yield* client.write(text)
          yield* client.end
          assert.strictEqual(new TextDecoder().decode(yield* client.readAll), text)
          yield* promptly("the client is released")(server.awaitIdle)
          const { bytesRead, bytesWritten } = yield* server.stats
          assert.deepStrictEqual([bytesRead, bytesWritten], [10, 10])
        }))
    })

    describe("carries", () => {
      for (const size of [1, 65_535, 65_536, MiB]) {
        test(`${size} bytes, cut at random, intact and in order, both ways`, () =>
          Effect.gen(function*() {
            const bytes = pattern(size)
            const pieces = yield* cutAtRandom(bytes)
            const server = yield* serve((connection) =>
              Effect.gen(function*() {
                const received = yield* connection.readExactly(size, { maxLength: size })
                for (const piece of yield* cutAtRandom(received)) yield* connection.write(piece)
              })
            )
            const client = yield* connect(server.address)
            yield* Effect.forEach(pieces, client.write, { discard: true })
            assertSameBytes(yield* client.readAll, bytes)
            yield* client.end
          }))
      }

      test("both directions at a time", () =>
        Effect.gen(function*() {
          const bytes = pattern(MiB)
          const server = yield* serve(echo)
          const client = yield* connect(server.address)
          const writing = yield* Effect.forkChild(
            Effect.andThen(Effect.forEach(yield* cutAtRandom(bytes), client.write, { discard: true }), client.end)
          )
          assertSameBytes(yield* client.readAll, bytes)
          yield* Fiber.join(writing)
        }))
    })

    describe("half-close:", () => {
      test("the answer to a client that has finished sending arrives", () =>
        Effect.gen(function*() {
          const server = yield* serve((connection) =>
            Effect.flatMap(connection.readAll(), (all) => connection.write(`${all.length} bytes\n`))
          )
          const client = yield* connect(server.address)
          yield* client.write("question")
          yield* client.end
          assert.strictEqual(yield* client.readLine, "8 bytes")
          assert.strictEqual(yield* client.closed, "Ended")
        }))

      test("a client sees the server finish, and goes on sending", () =>
        Effect.gen(function*() {
          const received = yield* Deferred.make<string>()
          const server = yield* serve((connection) =>
            Effect.gen(function*() {
              yield* connection.write("last words")
              yield* connection.end
              yield* Deferred.succeed(received, new TextDecoder().decode(yield* connection.readAll()))
            })
          )
          const client = yield* connect(server.address)
          assert.strictEqual(new TextDecoder().decode(yield* client.readAll), "last words")
          yield* client.write("more, ")
          yield* client.write("and more")
          yield* client.end
          assert.strictEqual(yield* promptly("the input ends")(Deferred.await(received)), "more, and more")
        }))
    })

    describe("backpressure:", () => {
      test("a write waits for a slow reader, and all of 16 MiB arrives", () =>
        Effect.gen(function*() {
          const written = { bytes: 0 }
          const { client, passTime, server } = yield* serveBesideEcho((connection) =>
            writeFlood(connection.write, written)
          )
          yield* standstill(() => written.bytes, passTime)
          assert.isBelow(written.bytes, maxBuffered)
          assert.isBelow((yield* server.stats).bytesWritten, maxBuffered)

          for (let read = 0; read < flood; read += block) {
            assertSameBytes(yield* client.readExactly(block), pattern(block, read))
          }
          assert.strictEqual(yield* client.closed, "Ended")
          assert.strictEqual(written.bytes, flood)
        }))

      test("a handler that reads no more lets its client push only so far", () =>
        Effect.gen(function*() {
          const { client, passTime, server } = yield* serveBesideEcho((connection) => connection.draining)
          const pushed = { bytes: 0 }
          const pushing = yield* Effect.forkChild(writeFlood(client.write, pushed))
          yield* standstill(() => pushed.bytes, passTime)
          assert.isBelow(pushed.bytes, maxBuffered)
          assert.isBelow((yield* server.stats).bytesRead, maxReadAhead)
          assert.isUndefined(pushing.pollUnsafe(), "the client's write waits")
        }))
    })

    describe("a client that is gone", () => {
      test("ends a read that waits, and is released", () =>
        Effect.gen(function*() {
          const ended = yield* Deferred.make<ConnectionError | Cause.Done>()
          const server = yield* serve((connection) =>
            Effect.gen(function*() {
              yield* connection.write("ready\n")
              yield* Deferred.succeed(ended, yield* Effect.flip(connection.pull))
            })
          )
          const client = yield* connect(server.address)
          yield* client.readLine
          yield* client.reset
          const failure = yield* promptly("the read fails")(Deferred.await(ended))
          if (seesResets) assert.strictEqual(Cause.isDone(failure) ? "Done" : failure.reason._tag, "Reset")
          yield* promptly("the connection is released")(server.awaitIdle)
          if (seesResets) assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
        }))

      test("fails a write that waits", () =>
        Effect.gen(function*() {
          const ended = yield* Deferred.make<ConnectionError>()
          const written = { bytes: 0 }
          const { client, passTime } = yield* serveBesideEcho((connection) =>
            Effect.flatMap(
              Effect.flip(writeFlood(connection.write, written)),
              (error) => Deferred.succeed(ended, error)
            )
          )
          yield* standstill(() => written.bytes, passTime)
          yield* client.reset
          const failure = yield* promptly("the write fails")(Deferred.await(ended))
          if (seesResets) assert.strictEqual(failure.reason._tag, "Reset")
        }))

      test("fails the writes that come later", () =>
        Effect.gen(function*() {
          const gone = yield* Deferred.make<void>()
          const ended = yield* Deferred.make<ConnectionError>()
          const server = yield* serve((connection) =>
            Effect.gen(function*() {
              yield* connection.write("ready\n")
              yield* Deferred.await(gone)
              // The first one may succeed: it is what finds out.
              yield* Deferred.succeed(ended, yield* Effect.flip(Effect.forever(connection.write("anybody there?"))))
            })
          )
          yield* Effect.scoped(Effect.flatMap(connect(server.address), (client) => client.readLine))
          yield* Deferred.succeed(gone, undefined)
          const failure = yield* promptly("a write fails")(Deferred.await(ended))
          assert.strictEqual(failure._tag, "ConnectionError")
          yield* promptly("the connection is released")(server.awaitIdle)
        }))
    })

    describe("a handler", () => {
      test("that closes the connection has everything sent that it wrote", () =>
        Effect.gen(function*() {
          const bytes = pattern(flood)
          const after = yield* Deferred.make<ConnectionError>()
          const server = yield* serve((connection) =>
            Effect.gen(function*() {
              // Not waited for: it is the close that must flush.
              yield* Effect.forkChild(connection.write(bytes), { startImmediately: true })
              yield* connection.close
              yield* Deferred.succeed(after, yield* Effect.flip(connection.write("too late")))
            })
          )
          const client = yield* connect(server.address)
          assertSameBytes(yield* client.readAll, bytes)
          yield* client.end
          assert.strictEqual((yield* Deferred.await(after)).reason._tag, "Closed")
        }))

      test("that resets the connection is seen to have done so", () =>
        Effect.gen(function*() {
          const server = yield* serve((connection) => Effect.andThen(connection.readLine(), connection.reset))
          const client = yield* connect(server.address)
          yield* client.write("reset me\n")
          const end = yield* promptly("the client hears of it")(client.closed)
          if (sendsResets) assert.strictEqual(end, "Reset")
          yield* promptly("the connection is released")(server.awaitIdle)
        }))
    })

    describe("a server's scope", () => {
      test("leaves nothing open, whatever its handlers do when it closes", () =>
        Effect.gen(function*() {
          const handlers: Record<
            string,
            (connection: Connection) => Effect.Effect<unknown, ConnectionError | Cause.Done>
          > = {
            reads: (connection) => connection.pull,
            writes: (connection) => Effect.andThen(connection.draining, connection.write("goodbye\n")),
            ends: (connection) => Effect.andThen(connection.end, connection.pull),
            closes: (connection) => Effect.andThen(connection.close, connection.draining)
          }
          const scope = yield* Scope.make()
          const server = yield* Scope.provide(
            serve((connection) =>
              Effect.flatMap(
                connection.readLine(),
                (kind) => Effect.andThen(connection.write("ready\n"), handlers[kind]!(connection))
              )
            ),
            scope
          )
          const ends = yield* Effect.forEach(Object.keys(handlers), (kind) =>
            Effect.gen(function*() {
              const client = yield* connect(server.address)
              yield* client.write(`${kind}\n`)
              yield* client.readLine
              return yield* Effect.forkChild(Effect.tap(client.closed, () => client.end))
            }))
          yield* promptly("the server's scope closes")(Scope.close(scope, Exit.void))
          assert.strictEqual((yield* server.stats).open, 0)
          assert.deepStrictEqual(yield* Fiber.joinAll(ends), ["Ended", "Ended", "Ended", "Ended"])
        }))
    })

    describe("a wire", () => {
      test("delivers nothing before `resume`, and takes only so much from the client", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { client, probe } = yield* open
          const pushed = { bytes: 0 }
          const pushing = yield* Effect.forkChild(writeFlood(client.write, pushed))
          yield* standstill(() => pushed.bytes, passTime)
          assert.deepStrictEqual(probe.log, [])
          assert.isBelow(pushed.bytes, maxBuffered)
          assert.isAtMost(probe.wire.bytesRead, 2 * block)

          probe.resume()
          yield* probe.until("all of it arrives", () => probe.received === flood)
          yield* Fiber.join(pushing)
          assertSameBytes(concat(probe.chunks), pattern(flood))
          assert.strictEqual(probe.wire.bytesRead, flood)
        }))

      test("makes at most one more delivery after `pause`, and the others after the next `resume`", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { client, probe } = yield* open
          const bytes = pattern(MiB)
          // Some of it first in small pieces, each on its own.
          for (let i = 0; i < 20; i++) {
            yield* client.write(bytes.subarray(i, i + 1))
            yield* passTime
          }
          const pushing = yield* Effect.forkChild(client.write(bytes.subarray(20)))
          while (probe.received < bytes.length) {
            const before = probe.chunks.length
            probe.onNextData = () => probe.pause()
            probe.resume()
            yield* probe.until("a delivery", () => probe.chunks.length > before)
            yield* passTime
            assert.isAtMost(probe.chunks.length - before, 2)
          }
          yield* Fiber.join(pushing)
          assertSameBytes(concat(probe.chunks), bytes)
        }))

      test("reports the end of input once, behind the input, and goes on writing", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { client, probe, wire } = yield* open
          yield* client.write("all")
          yield* client.end
          yield* passTime
          probe.resume()
          yield* probe.until("the input ends", () => probe.has("end"))
          yield* passTime
          assert.strictEqual(probe.received, 3)
          assert.strictEqual(probe.log.filter((event) => event !== "data").join(), "end")
          wire.write("still here\n")
          assert.strictEqual(yield* client.readLine, "still here")
        }))

      test("takes everything that is written, and reports when there is room again", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { client, probe, wire } = yield* open
          let written = 0
          const writeBlock = () => {
            const roomLeft = wire.write(pattern(block, written))
            written += block
            return roomLeft
          }
          while (writeBlock()) assert.isBelow(written, maxBuffered)
          for (let i = 0; i < 128; i++) writeBlock()
          yield* passTime
          for (let read = 0; read < written; read += block) {
            assertSameBytes(yield* client.readExactly(block), pattern(block, read))
          }
          yield* probe.until("there is room again", () => probe.has("drain"))
          assert.strictEqual(wire.bytesWritten, written)
        }))

      test("flushes what was written before `end`, and goes on reading", () =>
        Effect.gen(function*() {
          const { open } = yield* listen
          const { client, probe, wire } = yield* open
          wire.write(pattern(flood))
          wire.end()
          assertSameBytes(yield* client.readAll, pattern(flood))
          probe.resume()
          yield* client.write("thanks")
          yield* probe.until("input arrives", () => probe.received === 6)
          assert.isFalse(probe.has("close"))
        }))

      test("flushes what was written before `close`, and is released when the client finishes too", () =>
        Effect.gen(function*() {
          const { open } = yield* listen
          const { client, probe, wire } = yield* open
          wire.write(pattern(flood))
          wire.close()
          assertSameBytes(yield* client.readAll, pattern(flood))
          yield* client.end
          yield* probe.closed
          assert.isFalse(probe.has("error"))
        }))

      test("loses nothing of its output when it is closed on unread input", () =>
        Effect.gen(function*() {
          const { open } = yield* listen
          const { client, wire } = yield* open
          yield* client.write(pattern(KiB))
          wire.write(pattern(MiB))
          wire.close()
          assertSameBytes(yield* client.readAll, pattern(MiB))
        }))

      test("is released after `close`, though the client leaves its side open", () =>
        Effect.gen(function*() {
          const { open } = yield* listen
          const { client, probe, wire } = yield* open
          wire.close()
          assert.strictEqual(yield* client.closed, "Ended")
          yield* probe.closed
        }))

      for (const reset of [false, true]) {
        test(`is released after \`destroy(${reset})\`, with output unsent and input unread`, () =>
          Effect.gen(function*() {
            const { open, passTime } = yield* listen
            const { client, probe, wire } = yield* open
            yield* client.write("unread")
            for (let i = 0; i < 128; i++) wire.write(pattern(block))
            yield* passTime
            wire.destroy(reset)
            yield* probe.closed
            yield* promptly("the client hears of it")(client.closed)
          }))
      }

      test("reports how it was lost, then that it is closed", () =>
        Effect.gen(function*() {
          const { open } = yield* listen
          const { client, probe } = yield* open
          probe.resume()
          yield* client.reset
          yield* probe.closed
          assert.deepStrictEqual(probe.log, ["error", "close"])
          assert.deepStrictEqual(probe.failure, { _tag: "Reset" })
        }), { when: seesResets })

      test("finds out by writing that its client is gone, though it does not read", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { probe, wire } = yield* Effect.scoped(open)
          yield* Effect.andThen(Effect.sync(() => wire.write("anybody there?")), passTime).pipe(
            Effect.repeat({ until: () => probe.has("close") }),
            promptly("the wire is lost")
          )
          assert.deepStrictEqual(probe.log.filter((event) => event !== "drain"), ["error", "close"])
        }))

      const calls: ReadonlyArray<[string, (probe: Probe) => void]> = [
        ["end", ({ wire }) => wire.end()],
        ["close", ({ wire }) => wire.close()],
        ["destroy(false)", ({ wire }) => wire.destroy(false)],
        ["destroy(true)", ({ wire }) => wire.destroy(true)],
        ["write", ({ wire }) => void wire.write("x")],
        ["resume", (probe) => probe.resume()],
        ["pause", (probe) => probe.pause()]
      ]
      const callAll = (probe: Probe) => {
        for (const [, call] of calls) call(probe)
        assert.isAtLeast(probe.wire.bytesRead + probe.wire.bytesWritten, 0)
      }

      for (const [title, call] of calls.slice(0, 4)) {
        test(`takes every call after \`${title}\`, and is released once`, () =>
          Effect.gen(function*() {
            const { open, passTime } = yield* listen
            const { probe } = yield* open
            call(probe)
            callAll(probe)
            yield* probe.closed
            callAll(probe)
            yield* passTime
            assert.strictEqual(probe.log.filter((event) => event === "close").length, 1)
            assert.strictEqual(probe.log.at(-1), "close")
          }))
      }

      test("takes every call after the client is gone, and is released once", () =>
        Effect.gen(function*() {
          const { open, passTime } = yield* listen
          const { probe } = yield* Effect.scoped(open)
          yield* passTime
          callAll(probe)
          yield* probe.closed
          callAll(probe)
          yield* passTime
          assert.strictEqual(probe.log.at(-1), "close")
        }))
    })

    describe("a listener", () => {
      test("tells the wire that its local address is the listener's", () =>
        Effect.gen(function*() {
          const { address, open } = yield* listen
          const { wire } = yield* open
          assert.strictEqual(String(wire.local), String(address))
        }))

      test("has its address for itself", () =>
        Effect.gen(function*() {
          const { address, listenAt, open, passTime } = yield* listen
          const error = yield* Effect.flip(listenAt(address))
          assert.strictEqual(error.reason._tag, "AddressInUse")
          yield* passTime
          yield* exchangeWith(open)
        }), { when: addressInUse })

      test("refuses clients when its scope is closed", () =>
        Effect.gen(function*() {
          const { address, close } = yield* listen
          yield* close
          const error = yield* Effect.flip(connect(address))
          assert.strictEqual(error.reason, "Refused")
        }), { when: refuses })

      test("leaves the connections that it has accepted alone when its scope is closed", () =>
        Effect.gen(function*() {
          const { close, open, passTime } = yield* listen
          const accepted = yield* open
          accepted.probe.resume()
          yield* close
          yield* exchange(accepted)
          yield* passTime
        }))

      test("can be opened again at its address, and again", () =>
        Effect.gen(function*() {
          const { address, close, listenAt, openAt } = yield* listen
          yield* close
          for (let i = 0; i < 2; i++) {
            yield* Effect.scoped(Effect.gen(function*() {
              const again = yield* listenAt(address)
              assert.strictEqual(String(again.address), String(address))
              yield* exchangeWith(openAt(again.address))
            }))
          }
        }))
    })
  })
}
