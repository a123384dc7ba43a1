/** What a server logs, at which level, and how that is replaced. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Logging, MemoryTransport, Server, type ServerEvent } from "@socketserver/core"
import { Cause, Context, Effect, Layer, Logger, Option, References, Schedule, Stream, SubscriptionRef } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { settle, start } from "./utils.ts"

interface Line {
  readonly level: string
  readonly text: string
  readonly annotations: Readonly<Record<string, unknown>>
  readonly cause: Cause.Cause<unknown>
}

const collected = (minimum?: "Debug") => {
  const lines: Array<Line> = []
  const logger = Logger.make<unknown, void>(({ cause, fiber, logLevel, message }) => {
    const text = Array.isArray(message) ? String(message[0]) : String(message)
    lines.push({ level: logLevel, text, annotations: fiber.getRef(References.CurrentLogAnnotations), cause })
  })
  const loggers = Logger.layer([logger])
  return {
    lines,
    texts: () => lines.map(({ level, text }) => `${level} ${text}`.replace(/memory:\d+/g, "memory")),
    layer: minimum === undefined ? loggers : Layer.merge(loggers, Layer.succeed(References.MinimumLogLevel, minimum))
  }
}

const built = <E, R>(layer: Layer.Layer<Server.Server, E, R>) =>
  Effect.map(Layer.build(layer), Context.get(Server.Server))

describe("without anything said", () => {
  it.effect("a client's path is part of one line, whatever is in it", () =>
    Effect.gen(function*() {
      const { layer, lines } = collected()
      const server = yield* Effect.provide(start(() => Effect.fail("no")), layer)
      for (const path of ["a\nERROR b\u001b[2J\u0000\u0085", "a\\x0a"]) {
        yield* MemoryTransport.connect(server.address, { from: NetAddress.unixPathAddress(path) })
        yield* server.awaitIdle
      }
      const peers = lines.filter(({ level }) => level === "Error").map(({ annotations }) => annotations.peer)
      assert.deepStrictEqual(peers, ["a\\x0aERROR b\\x1b[2J\\x00\\x85", "a\\\\x0a"])
    }))

  it.effect("a server's life is a line each at Info, and nothing else is", () =>
    Effect.gen(function*() {
      const { layer, lines, texts } = collected()
      const server = yield* Effect.provide(start((c) => c.readLine(), { name: "lines" }), layer)
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("a\n")
      yield* server.awaitIdle
      yield* server.suspend
      yield* server.resume
      yield* server.drain()
      assert.deepStrictEqual(texts(), [
        "Info listening on memory",
        "Info suspended: no client is accepted until it is resumed",
        "Info listening on memory",
        "Info draining",
        "Info stopped"
      ])
      assert.deepStrictEqual(lines.map(({ annotations }) => annotations.server), Array(5).fill("lines"))
      assert.deepStrictEqual(lines[4]!.annotations, {
        server: "lines",
        elapsed: "0",
        idleClosed: 0,
        completed: 0,
        interrupted: 0,
        killed: 0,
        refused: 0
      })
    }))

  it.effect("a handler's failure is a line at Error, with cause, connection, peer and annotations", () =>
    Effect.gen(function*() {
      const { layer, lines } = collected()
      const server = yield* Effect.provide(
        start((c) => Effect.andThen(c.annotate("user", "ann"), Effect.fail("no"))),
        layer
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      const [line, ...more] = lines.filter(({ level }) => level === "Error")
      assert.deepStrictEqual(more, [])
      assert.match(line!.text, /^connection 1 from memory:\d+: HandlerFailed$/)
      assert.deepStrictEqual(Cause.findErrorOption(line!.cause), Option.some("no"))
      assert.deepStrictEqual(line!.annotations, {
        server: "memory",
        connection: 1,
        peer: String(client.local),
        user: "ann"
      })
    }))

  it.effect("at Debug, each connection is one more line, with its reason and its bytes", () =>
    Effect.gen(function*() {
      const { layer, lines, texts } = collected("Debug")
      const server = yield* Effect.provide(start((c) => Effect.andThen(c.readLine(), c.write("abc"))), layer)
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("2 seconds")
      yield* client.write("a\n")
      yield* server.awaitIdle
      assert.deepStrictEqual(texts(), [
        "Info listening on memory",
        "Debug connection 1 from memory closed: Completed"
      ])
      assert.deepStrictEqual(lines[1]!.annotations, {
        server: "memory",
        connection: 1,
        peer: String(client.local),
        reason: "Completed",
        duration: "2s",
        bytesRead: 2,
        bytesWritten: 3
      })
    }))

  it.effect("what clients do to a limit is at Debug, even that the server listens again", () =>
    Effect.gen(function*() {
      const { layer, texts } = collected("Debug")
      const server = yield* MemoryTransport.stream().pipe(
        Admission.maxConnections({ max: 1, overflow: Admission.pauseListening }),
        Dispatch.fiberPerRequest(),
        Server.serveStream((c) => c.readLine()),
        built,
        Effect.provide(layer)
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      yield* client.write("a\n")
      yield* server.awaitIdle
      yield* settle
      const [first, ...others] = texts()
      assert.strictEqual(first, "Info listening on memory")
      assert.include(others, "Debug listening on memory")
      assert.deepStrictEqual(others.filter((line) => !line.startsWith("Debug")), [])
    }))

  it.effect("a hook that fails is told at Error, but at Debug where it could not speak with its peer", () =>
    Effect.gen(function*() {
      for (
        const [onError, level] of [
          [() => Effect.die("mine"), "Error"],
          [(_: unknown, c: any) => c.write("sorry"), "Debug"]
        ] as const
      ) {
        const { layer, texts } = collected("Debug")
        const server = yield* Effect.provide(
          start((c) => Effect.andThen(Effect.exit(c.pull), Effect.fail("no")), { onError }),
          layer
        )
        const client = yield* MemoryTransport.connect(server.address)
        yield* settle
        yield* client.reset
        yield* server.awaitIdle
        assert.include(texts(), `${level} onError failed for connection 1`)
      }
    }))

  it.effect("a limit that cannot be changed is told, in the log and in the events", () =>
    Effect.gen(function*() {
      const { layer, texts } = collected()
      const max = yield* SubscriptionRef.make(1)
      const server = yield* MemoryTransport.stream().pipe(
        Admission.maxConnections({ max }),
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.never),
        built,
        Effect.provide(layer)
      )
      const events: Array<ServerEvent.LifecycleEvent> = []
      yield* Effect.forkScoped(
        Stream.runForEach(server.lifecycle, (event) => Effect.sync(() => events.push(event))),
        { startImmediately: true }
      )
      yield* SubscriptionRef.set(max, -1)
      yield* settle
      assert.include(texts(), "Error a limit was not changed, the one before it stays")
      assert.deepStrictEqual(events.map(({ _tag }) => _tag), ["Problem"])
    }))

  it.effect("so is an effect of `Server.every` that fails", () =>
    Effect.gen(function*() {
      const { layer, texts } = collected()
      yield* MemoryTransport.stream().pipe(
        Dispatch.serial(),
        Server.serveStream(() => Effect.void),
        Server.every(Schedule.spaced("1 minute"), Effect.fail("no")),
        built,
        Effect.provide(layer)
      )
      yield* settle
      assert.include(texts(), "Error Server.every: the effect failed")
    }))

  it.effect("one request without a server is no life to tell of, but its failure is told", () =>
    Effect.gen(function*() {
      const { layer, texts } = collected()
      yield* Effect.gen(function*() {
        const listener = yield* Server.listen
        yield* MemoryTransport.connect(listener.address)
        yield* Server.handleOne(listener, () => Effect.fail("no"))
      }).pipe(Effect.provide(Layer.merge(layer, MemoryTransport.stream())))
      assert.deepStrictEqual(texts(), ["Error connection 1 from memory: HandlerFailed"])
    }))
})

describe("Logging.layer", () => {
  it.effect("gets every event that deserves its level, and connections' if it asks for them", () =>
    Effect.gen(function*() {
      const run = (debug: boolean | undefined) =>
        Effect.gen(function*() {
          const tags: Array<string> = []
          const server = yield* MemoryTransport.stream().pipe(
            Dispatch.fiberPerRequest(),
            Server.serveStream(() => Effect.fail("no"), { name: "mine" }),
            Layer.provide(Logging.layer({
              debug,
              log: (event, server) => Effect.sync(() => tags.push(`${server} ${event._tag}`))
            })),
            built
          )
          yield* MemoryTransport.connect(server.address)
          yield* server.awaitIdle
          return tags
        })
      assert.deepStrictEqual(yield* run(undefined), ["mine Listening", "mine Failed"])
      assert.deepStrictEqual(yield* run(true), ["mine Listening", "mine Accepted", "mine Failed", "mine Closed"])
    }))

  it.effect("that throws hurts nobody", () =>
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.void),
        Layer.provide(Logging.layer({
          debug: true,
          log: () => {
            throw new Error("broken")
          }
        })),
        built
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.effect("may be `off`", () =>
    Effect.gen(function*() {
      const { layer, texts } = collected("Debug")
      const server = yield* MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.fail("no")),
        Layer.provide(Logging.off),
        built,
        Effect.provide(layer)
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.deepStrictEqual(texts(), [])
    }))
})
