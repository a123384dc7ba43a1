/** The server as a scoped resource, and what can be asked of it. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Logging, MemoryTransport, Server, StreamTransport, Transport } from "@socketserver/core"
import type { ServerEvent } from "@socketserver/core"
import { Cause, Context, Duration, Effect, Exit, Fiber, Layer, Logger, Option, Schedule, Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { forkSettled, settle, start, startSerial, startWith } from "./utils.ts"

const echo: Server.StreamHandler<any, never> = (connection) => Stream.run(connection.bytes, connection.sink)

/** Collects events from here on; what it gives is the list so far. */
const collectEvents = (server: Server.Server["Service"]) =>
  Effect.gen(function*() {
    const events: Array<ServerEvent.ServerEvent> = []
    const fiber = yield* Effect.forkChild(
      Stream.runForEach(server.events, (event) => Effect.sync(() => events.push(event))),
      { startImmediately: true }
    )
    return { events, fiber }
  })

describe("a server's layer", () => {
  it.effect("binds after what its handler needs was built, and drains before any of that is released", () =>
    Effect.gen(function*() {
      class Store extends Context.Service<Store, string>()("test/Store") {}
      const log: Array<string> = []
      const StoreLive = Layer.effect(
        Store,
        Effect.acquireRelease(
          Effect.sync(() => {
            log.push("store built")
            return "stored"
          }),
          () => Effect.sync(() => log.push("store released"))
        )
      )
      const scope = yield* Scope.make()
      const context = yield* MemoryTransport.stream({ name: "ordered" }).pipe(
        Dispatch.serial(),
        Server.serveStream((connection) =>
          Effect.gen(function*() {
            yield* connection.write(`${yield* Store}\n`)
            yield* connection.draining
            log.push("handler done")
          })
        ),
        Layer.provide(StoreLive),
        Layer.tap(() => Effect.sync(() => log.push("server built"))),
        Layer.build,
        Scope.provide(scope)
      )
      const client = yield* MemoryTransport.connect(Context.get(context, Server.Server).address)
      assert.strictEqual(yield* client.readLine(), "stored")
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(log, ["store built", "server built", "handler done", "store released"])
    }))

  it.effect("fails with `AddressInUse` where another server listens, and leaves that one alone", () =>
    Effect.gen(function*() {
      const serve = MemoryTransport.stream({ name: "taken" }).pipe(
        Dispatch.serial(),
        Server.serveStream(echo),
        Layer.build
      )
      yield* serve
      const error = yield* Effect.flip(serve)
      assert.strictEqual(error.reason._tag, "AddressInUse")
      assert.match(error.message, /taken.* is already in use/)
      yield* MemoryTransport.connect(NetAddress.unixPathAddress("taken"))
    }))

  it.effect("that cannot bind tells of nothing: it has neither begun nor stopped", () =>
    Effect.gen(function*() {
      const name = "memory:told of nothing"
      const serving = MemoryTransport.stream({ name }).pipe(Dispatch.serial(), Server.serveStream(() => Effect.void))
      yield* Layer.build(serving)
      const told: Array<string> = []
      const log = Logging.layer({ debug: true, log: (event) => Effect.sync(() => told.push(event._tag)) })
      yield* Effect.flip(Effect.scoped(Effect.provide(Layer.build(Layer.fresh(serving)), log)))
      assert.deepStrictEqual(told, [])
    }))

  it.effect("can be built, closed and built again at the same address", () =>
    Effect.gen(function*() {
      for (let i = 0; i < 3; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const server = yield* Effect.map(
            Layer.build(
              MemoryTransport.stream({ name: "again" }).pipe(Dispatch.serial(), Server.serveStream(echo))
            ),
            Context.get(Server.Server)
          )
          const client = yield* MemoryTransport.connect(server.address)
          yield* client.write("x\n")
          assert.strictEqual(yield* client.readLine(), "x")
        }))
      }
    }))

  it.effect("closes without ever having served, and at once after its start, twenty times over", () =>
    Effect.gen(function*() {
      for (let i = 0; i < 20; i++) {
        yield* Effect.scoped(start(echo))
        const scope = yield* Scope.make()
        const server = yield* Scope.provide(start(echo), scope)
        const client = yield* MemoryTransport.connect(server.address)
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
        assert.strictEqual((yield* server.stats).open, 0)
      }
    }))

  it.effect("names an option that is out of its range, before anything is bound", () =>
    Effect.gen(function*() {
      const cases: ReadonlyArray<[Effect.Effect<unknown, any, Scope.Scope>, string]> = [
        [start(echo, { idleTimeout: "-1 seconds" as any }), "idleTimeout"],
        [start(echo, { idleTimeout: "soon" as any }), "idleTimeout"],
        [start(echo, { shutdown: { grace: -1 } }), "shutdown.grace"],
        [start(echo, { shutdown: { kill: Number.NaN } }), "shutdown.kill"],
        [startWith(Dispatch.fiberPerRequest({ maxInFlight: 0 }))(echo), "maxInFlight"],
        [startWith(Dispatch.serial({ queue: { max: -1 } }))(echo), "queue.max"],
        [startWith(Dispatch.serial({ queue: { max: 1.5 } }))(echo), "queue.max"]
      ]
      for (const [effect, option] of cases) {
        const error = yield* Effect.flip(effect)
        assert.strictEqual(error._tag, "ListenError")
        assert.strictEqual(error.reason._tag, "InvalidOption")
        assert.match(error.message, new RegExp(`^option \`${option.replace(".", "\\.")}\` is .*: expected `))
      }
    }))

  it.effect("can be given a tag of its own, so that one program runs several", () =>
    Effect.gen(function*() {
      class Loud extends Server.Service<Loud>()("test/Loud") {}
      class Quiet extends Server.Service<Quiet>()("test/Quiet") {}
      const serve = (answer: string) =>
        MemoryTransport.stream().pipe(Dispatch.serial(), Server.serveStream((c) => c.write(answer)))
      const context = yield* Layer.build(
        Layer.merge(serve("HELLO\n").pipe(Server.as(Loud)), serve("hello\n").pipe(Server.as(Quiet)))
      )
      for (
        const [server, answer] of [[Context.get(context, Loud), "HELLO"], [
          Context.get(context, Quiet),
          "hello"
        ]] as const
      ) {
        const client = yield* MemoryTransport.connect(server.address)
        assert.strictEqual(yield* client.readLine(), answer)
      }
    }))

  it.effect("is an effect as well", () =>
    Effect.gen(function*() {
      const server = yield* Server.makeStream((connection) => connection.write("made\n"), { name: "by hand" }).pipe(
        Effect.provide(MemoryTransport.stream().pipe(Dispatch.serial()))
      )
      const client = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* client.readLine(), "made")
      assert.strictEqual((yield* server.info).name, "by hand")
    }))
})

describe("what can be asked", () => {
  it.effect("info tells name, address, transport and strategy", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(echo)
      assert.deepStrictEqual(yield* server.info, {
        name: "memory",
        address: server.address,
        descriptor: undefined,
        transport: "memory",
        strategy: "serial",
        workers: undefined,
        limits: {}
      })
    }))

  it.effect("status is ready, saturated while requests wait, draining, stopped", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(() => Effect.sleep("1 second"))
      assert.strictEqual(yield* server.status, "ready")
      yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* server.status, "ready")
      yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* server.status, "saturated")
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* server.status, "ready")
      const draining = yield* forkSettled(server.drain())
      assert.strictEqual(yield* server.status, "draining")
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(draining)
      assert.strictEqual(yield* server.status, "stopped")
    }))

  it.effect("stats count connections, requests and bytes", () =>
    Effect.gen(function*() {
      const server = yield* startSerial((c) => Effect.andThen(c.readLine(), c.write("four")))
      const clients = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 3)
      yield* settle
      assert.deepStrictEqual(yield* server.stats, {
        accepted: 3,
        open: 3,
        queued: 2,
        inFlight: 1,
        closed: {},
        refused: {},
        bytesRead: 0,
        bytesWritten: 0,
        dropped: 0,
        truncated: 0
      })
      yield* Effect.forEach(clients, (client) => client.write("x\n"))
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* server.stats, {
        accepted: 3,
        open: 0,
        queued: 0,
        inFlight: 0,
        closed: { Completed: 3 },
        refused: {},
        bytesRead: 6,
        bytesWritten: 12,
        dropped: 0,
        truncated: 0
      })
    }))

  it.effect("connections are listed, found, annotated and closed, one at a time", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const server = yield* startWith(Dispatch.fiberPerRequest({ maxInFlight: 2 }))((connection) =>
        Effect.gen(function*() {
          yield* connection.annotate("user", `u${connection.id}`)
          yield* connection.write("hi\n")
          yield* connection.pull
        }).pipe(Effect.onInterrupt(() => Effect.sync(() => log.push(`${connection.id} interrupted`))))
      )
      const clients = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 3)
      yield* TestClock.adjust("5 seconds")
      const list = yield* server.connections.list
      assert.deepStrictEqual(list.map(({ id, state }) => [id, state]), [[1, "handling"], [2, "handling"], [
        3,
        "queued"
      ]])
      assert.strictEqual(yield* server.connections.annotate(1, "room", "lobby"), true)
      const found = Option.getOrThrow(yield* server.connections.find(1))
      assert.deepStrictEqual(found, {
        id: 1,
        peer: clients[0]!.local,
        local: server.address,
        state: "handling",
        age: Duration.seconds(5),
        bytesRead: 0,
        bytesWritten: 3,
        annotations: new Map([["user", "u1"], ["room", "lobby"]])
      })

      assert.strictEqual(yield* server.connections.close(1), true)
      assert.strictEqual(yield* clients[0]!.readLine(), "hi")
      assert.isTrue(Cause.isDone(yield* Effect.flip(clients[0]!.pull)))
      assert.deepStrictEqual(log, ["1 interrupted"])
      yield* settle
      assert.deepStrictEqual((yield* server.stats).closed, { Killed: 1 })
      assert.deepStrictEqual((yield* server.connections.list).map(({ id }) => id), [2, 3])

      assert.strictEqual(yield* server.connections.close(1), false)
      assert.strictEqual(yield* server.connections.annotate(1, "x", 1), false)
      assert.deepStrictEqual(yield* server.connections.find(99), Option.none())
    }))

  it.effect("all connections that a predicate chooses are closed, whatever they do, and counted", () =>
    Effect.gen(function*() {
      const server = yield* startSerial((c) => Effect.andThen(c.annotate("user", `u${c.id}`), c.pull))
      const clients = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 4)
      yield* settle
      // The first is with its handler, the others wait.
      const closed = yield* server.connections.closeWhere(({ annotations, id }) =>
        annotations.get("user") === "u1" || id === 3
      )
      assert.strictEqual(closed, 2)
      yield* settle
      assert.deepStrictEqual((yield* server.stats).closed, { Killed: 2 })
      assert.deepStrictEqual((yield* server.connections.list).map(({ id }) => id), [2, 4])
      assert.isTrue(Cause.isDone(yield* Effect.flip(clients[2]!.pull)))
      assert.strictEqual(yield* server.connections.closeWhere(() => false), 0)
    }))

  const closeItself = (onInterrupted: () => void) => ({ id }: { readonly id: number }) =>
    Effect.onInterrupt(
      Effect.andThen(Effect.flatMap(Server.Server, ({ connections }) => connections.close(id)), Effect.never),
      () => Effect.sync(onInterrupted)
    )
  const atOnce = { shutdown: { grace: 0 } }
  const sources = {
    connection: (onInterrupted: () => void) =>
      MemoryTransport.stream().pipe(Dispatch.fiberPerRequest(), Server.serveStream(closeItself(onInterrupted), atOnce)),
    packet: (onInterrupted: () => void) =>
      MemoryTransport.datagram().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveDatagram(closeItself(onInterrupted), atOnce)
      ),
    value: (onInterrupted: () => void) =>
      Transport.fromStream(Stream.concat(Stream.make(1), Stream.never)).pipe(
        Dispatch.fiberPerRequest(),
        Server.serveMessage(closeItself(onInterrupted), atOnce)
      )
  }
  for (const [what, serve] of Object.entries(sources)) {
    it.effect(`a ${what} can be closed by its own handler, which has not waited for anything yet`, () =>
      Effect.gen(function*() {
        let interrupted = 0
        const context = yield* Layer.build(serve(() => interrupted++))
        const server = Context.get(context, Server.Server)
        if (what === "connection") yield* MemoryTransport.connect(server.address)
        if (what === "packet") yield* (yield* MemoryTransport.bindDatagram()).send(server.address, "a")
        yield* settle
        assert.strictEqual(interrupted, 1)
        const { closed, inFlight, open } = yield* server.stats
        assert.deepStrictEqual({ closed, inFlight, open }, { closed: { Killed: 1 }, inFlight: 0, open: 0 })
      }))
  }

  it.effect("a connection that still waits can be closed too, and keeps no place", () =>
    Effect.gen(function*() {
      const server = yield* startSerial((c) => Effect.andThen(c.pull, c.write(`${c.id}\n`)))
      const [first, second, third] = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 3)
      assert.strictEqual(yield* server.connections.close(2), true)
      assert.isTrue(Cause.isDone(yield* Effect.flip(second!.pull)))
      yield* first!.write("x")
      assert.strictEqual(yield* first!.readLine(), "1")
      yield* third!.write("x")
      assert.strictEqual(yield* third!.readLine(), "3")
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Killed: 1, Completed: 2 })
    }))

  it.effect("events tell a server's whole life, ending with the drain's report", () =>
    Effect.gen(function*() {
      const server = yield* start((c) => Effect.andThen(c.readLine(), c.write("answer\n")))
      const { events, fiber } = yield* collectEvents(server)
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("ask\n")
      yield* TestClock.adjust("0 seconds")
      assert.strictEqual(yield* client.readLine(), "answer")
      yield* server.suspend
      yield* server.resume
      const report = yield* server.drain()
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(events, [
        { _tag: "Accepted", id: 1, peer: client.local },
        {
          _tag: "Closed",
          kind: "connection",
          id: 1,
          peer: client.local,
          reason: { _tag: "Completed" },
          duration: Duration.zero,
          bytesRead: 4,
          bytesWritten: 7
        },
        { _tag: "Suspended" },
        { _tag: "Listening", address: server.address, after: "suspended" },
        { _tag: "Draining" },
        { _tag: "Stopped", report }
      ])
      // A subscriber that comes too late is not left waiting.
      assert.deepStrictEqual(yield* Stream.runCollect(server.events), [])
    }))

  it.effect("awaitIdle completes when the last connection is closed", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.sleep("2 seconds"))
      yield* server.awaitIdle
      yield* MemoryTransport.connect(server.address)
      const waiting = yield* forkSettled(server.awaitIdle)
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(waiting)
    }))
})

describe("suspend and resume", () => {
  it.effect("suspend refuses new clients and keeps the others; resume binds the same address", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      const { address } = server
      const client = yield* MemoryTransport.connect(address)
      yield* server.suspend
      yield* server.suspend
      assert.strictEqual(yield* server.status, "suspended")
      assert.strictEqual((yield* Effect.flip(MemoryTransport.connect(address)))._tag, "ConnectionRefused")
      yield* client.write("still here\n")
      assert.strictEqual(yield* client.readLine(), "still here")
      yield* server.resume
      yield* server.resume
      assert.strictEqual(yield* server.status, "ready")
      assert.strictEqual(server.address, address)
      const second = yield* MemoryTransport.connect(address)
      yield* second.write("back\n")
      assert.strictEqual(yield* second.readLine(), "back")
    }))

  it.effect("resume fails where somebody else has taken the address, and can be tried again", () =>
    Effect.gen(function*() {
      const serve = MemoryTransport.stream({ name: "contended" }).pipe(Dispatch.serial(), Server.serveStream(echo))
      const server = Context.get(yield* Layer.build(serve), Server.Server)
      yield* server.suspend
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Layer.build(Layer.fresh(serve))
        assert.strictEqual((yield* Effect.flip(server.resume)).reason._tag, "AddressInUse")
        assert.strictEqual(yield* server.status, "suspended")
      }))
      yield* server.resume
      assert.strictEqual(yield* server.status, "ready")
    }))

  it.effect("a drain that comes while a slow resume binds waits for it, and closes what it bound", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const slow = Layer.succeed(StreamTransport.StreamTransport, {
        name: "slow",
        steps: [],
        listen: () =>
          Effect.acquireRelease(
            Effect.as(Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => log.push("bound"))), {
              address: NetAddress.unixPathAddress("slow")
            }),
            () => Effect.sync(() => log.push("closed"))
          )
      })
      const building = yield* slow.pipe(
        Dispatch.serial(),
        Server.serveStream(echo),
        Layer.build,
        Effect.map(Context.get(Server.Server)),
        Effect.forkChild({ startImmediately: true })
      )
      yield* TestClock.adjust("1 second")
      const server = yield* Fiber.join(building)
      yield* server.suspend
      const resuming = yield* forkSettled(server.resume)
      const draining = yield* forkSettled(server.drain())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(resuming)
      yield* Fiber.join(draining)
      assert.deepStrictEqual(log, ["bound", "closed", "bound", "closed"])
      assert.strictEqual(yield* server.status, "stopped")
    }))

  it.effect("a suspended server drains, and a drained one does not resume", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      yield* MemoryTransport.connect(server.address)
      yield* server.suspend
      assert.strictEqual((yield* server.drain()).idleClosed, 1)
      yield* server.resume
      assert.strictEqual(yield* server.status, "stopped")
    }))
})

describe("idleTimeout", () => {
  it.effect("ends a connection whose client is silent for that long, from the last thing that happened", () =>
    Effect.gen(function*() {
      const server = yield* start(echo, { idleTimeout: "10 seconds" })
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("9 seconds")
      yield* client.write("x")
      yield* client.pull
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
    }))

  it.effect("does not count the time in which the handler computes", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (c) =>
          Effect.gen(function*() {
            yield* c.readLine()
            yield* Effect.sleep("1 minute")
            yield* c.write("slow\n")
            yield* c.readLine()
          }),
        { idleTimeout: "10 seconds" }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("x\n")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* client.readLine(), "slow")
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
    }))

  it.effect("counts what the server sends as activity", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (c) => Effect.race(Effect.forever(Effect.andThen(Effect.sleep("9 seconds"), c.write("tick"))), c.pull),
        { idleTimeout: "10 seconds" }
      )
      yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* server.connections.close(1)
    }))

  it.effect("fails the read, so that a handler can say goodbye, and stays passed", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (c) =>
          c.readLine().pipe(
            Effect.catchReason("ConnectionError", "Timeout", ({ deadline }) => c.write(`bye: ${deadline}\n`)),
            Effect.andThen(c.pull)
          ),
        { idleTimeout: "10 seconds" }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* client.readLine(), "bye: idleTimeout")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
    }))

  it.effect("runs `onTimeout` before, and logs its failure", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => {
        if (logLevel === "Error") lines.push(String(message))
      })
      const server = yield* start((c) => c.pull, {
        idleTimeout: "10 seconds",
        onTimeout: (c) => Effect.andThen(c.write("too slow\n"), Effect.fail("and that failed"))
      }).pipe(Effect.provide(Logger.layer([logger])))
      const client = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* client.readLine(), "too slow")
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1 })
      assert.match(lines[0]!, /onTimeout failed for connection 1/)
    }))

  it.effect("leaves no timer behind a connection that ended before", () =>
    Effect.gen(function*() {
      const server = yield* start((c) => c.readLine(), { idleTimeout: "10 seconds" })
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("x\n")
      yield* server.awaitIdle
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))
})

describe("every", () => {
  it.effect("runs an effect on a schedule while the server runs, whatever it fails with", () =>
    Effect.gen(function*() {
      let runs = 0
      const scope = yield* Scope.make()
      yield* MemoryTransport.stream().pipe(
        Dispatch.serial(),
        Server.serveStream(echo),
        Server.every(
          Schedule.spaced("1 minute"),
          Effect.gen(function*() {
            runs++
            assert.strictEqual(yield* Effect.flatMap(Server.Server, (server) => server.status), "ready")
            if (runs % 2 === 0) return yield* Effect.fail("every second time")
          })
        ),
        Layer.build,
        Scope.provide(scope),
        Effect.provide(Logger.layer([]))
      )
      yield* settle
      assert.strictEqual(runs, 1)
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual(runs, 6)
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual(runs, 6)
    }))
})
