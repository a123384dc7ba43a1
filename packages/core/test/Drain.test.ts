/** What a drain does to connections in every state, under a test clock. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server, type ServerEvent } from "@socketserver/core"
import { Cause, Context, Deferred, Duration, Effect, Exit, Fiber, Layer, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { forkSettled, joinAfter, settle, start, startSerial, startWith } from "./utils.ts"

const echo: Server.StreamHandler<any, never> = (connection) => Stream.run(connection.bytes, connection.sink)

const counts = ({ elapsed: _, ...counts }: { readonly elapsed: Duration.Duration }) => counts

const none = { idleClosed: 0, completed: 0, interrupted: 0, killed: 0, refused: 0 }

describe("drain", () => {
  it.effect("ends an idle echo connection at once, as if its client had finished", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("hello\n")
      assert.strictEqual(yield* client.readLine(), "hello")

      const report = yield* server.drain()

      assert.deepStrictEqual(report, { ...none, idleClosed: 1, elapsed: Duration.zero })
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1 })
      assert.strictEqual(yield* server.status, "stopped")
    }))

  it.effect("ends a connection that has never sent anything", () =>
    Effect.gen(function*() {
      const server = yield* start(echo)
      yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.deepStrictEqual(counts(yield* server.drain()), { ...none, idleClosed: 1 })
    }))

  it.effect("lets a handler in mid-request finish, and its answer arrives whole", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) =>
        Effect.gen(function*() {
          while (true) {
            const line = yield* connection.readLine()
            yield* Effect.sleep("5 seconds")
            yield* connection.write(line.repeat(50_000) + "\n")
          }
        })
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("ab\n")
      yield* settle
      const draining = yield* forkSettled(server.drain())
      assert.strictEqual(yield* server.status, "draining")
      yield* TestClock.adjust("5 seconds")

      assert.strictEqual(yield* client.readLine({ maxLength: 1_000_000 }), "ab".repeat(50_000))
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.readLine())))
      assert.deepStrictEqual(yield* Fiber.join(draining), {
        ...none,
        // The handler's next read found the connection idle.
        idleClosed: 1,
        elapsed: Duration.seconds(5)
      })
    }))

  it.effect("counts a handler that returns by itself as completed", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Effect.andThen(Effect.sleep("1 second"), connection.write("done")))
      const client = yield* MemoryTransport.connect(server.address)
      const draining = yield* forkSettled(server.drain())
      const report = yield* joinAfter(draining, "1 second")
      assert.deepStrictEqual(counts(report), { ...none, completed: 1 })
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "done")
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.effect("does not take a request that is only half there for idleness", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) =>
        Effect.flatMap(connection.readLine(), (line) => connection.write(line.toUpperCase()))
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("hal")
      yield* settle
      const draining = yield* forkSettled(server.drain())
      assert.isUndefined(draining.pollUnsafe())
      yield* client.write("f\n")
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "HALF")
      assert.deepStrictEqual(counts(yield* Fiber.join(draining)), { ...none, completed: 1 })
    }))

  it.effect("does not take a read within `busy` for idleness", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) =>
        Effect.gen(function*() {
          const length = Number(yield* connection.readLine())
          const body = yield* connection.readExactly(length)
          yield* connection.write(body)
        }).pipe(connection.busy)
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("4\n")
      yield* settle
      const draining = yield* forkSettled(server.drain())
      assert.isUndefined(draining.pollUnsafe())
      yield* client.write("body")
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "body")
      assert.deepStrictEqual(counts(yield* Fiber.join(draining)), { ...none, completed: 1 })
    }))

  it.effect("interrupts a handler that overstays `grace`, with its finalizers run and its output flushed", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const server = yield* start((connection) =>
        Effect.gen(function*() {
          yield* Effect.addFinalizer(() => Effect.sync(() => log.push("finalizer")))
          yield* connection.write("partial")
          return yield* Effect.never
        })
      )
      const client = yield* MemoryTransport.connect(server.address)
      const draining = yield* forkSettled(server.drain({ grace: "10 seconds", kill: "5 seconds" }))
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual(log, [])
      assert.isUndefined(draining.pollUnsafe())
      const report = yield* joinAfter(draining, "1 millis")
      assert.deepStrictEqual(report, { ...none, interrupted: 1, elapsed: Duration.seconds(10) })
      assert.deepStrictEqual(log, ["finalizer"])
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "partial")
      assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1 })
    }))

  it.effect("cuts a handler that cannot be interrupted at `kill`", () =>
    Effect.gen(function*() {
      const stuck = Deferred.makeUnsafe<void>()
      const server = yield* start(() => Effect.uninterruptible(Deferred.await(stuck)))
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      const draining = yield* forkSettled(server.drain({ grace: "10 seconds", kill: "5 seconds" }))
      yield* TestClock.adjust("14999 millis")
      assert.isUndefined(draining.pollUnsafe())
      const report = yield* joinAfter(draining, "1 millis")
      assert.deepStrictEqual(report, { ...none, killed: 1, elapsed: Duration.seconds(15) })
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      const stats = yield* server.stats
      assert.deepStrictEqual(stats.closed, { Killed: 1 })
      assert.strictEqual(stats.open, 0)

      // When it does end in the end, nothing is counted twice.
      Deferred.doneUnsafe(stuck, Effect.void)
      yield* settle
      assert.deepStrictEqual((yield* server.stats).closed, { Killed: 1 })
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))

  it.effect("refuses requests that have not begun, and counts them", () =>
    Effect.gen(function*() {
      const server = yield* startSerial(() => Effect.sleep("1 second"))
      yield* MemoryTransport.connect(server.address)
      const waiting = yield* MemoryTransport.connect(server.address)
      yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.strictEqual(yield* server.status, "saturated")
      const draining = yield* forkSettled(server.drain())
      assert.isTrue(Cause.isDone(yield* Effect.flip(waiting.pull)))
      const report = yield* joinAfter(draining, "1 second")
      assert.deepStrictEqual(counts(report), { ...none, completed: 1, refused: 2 })
      const stats = yield* server.stats
      assert.deepStrictEqual(stats.refused, { draining: 2 })
      assert.strictEqual(stats.queued, 0)
    }))

  it.effect("counts each kind of ending in one report", () =>
    Effect.gen(function*() {
      const kinds: Record<string, (connection: any) => Effect.Effect<unknown, any, Scope.Scope>> = {
        idle: (connection) => connection.pull,
        slow: () => Effect.sleep("1 second"),
        late: () => Effect.never,
        stuck: () => Effect.uninterruptible(Effect.never)
      }
      const server = yield* startWith(Dispatch.fiberPerRequest({ maxInFlight: 6 }))((connection) =>
        Effect.flatMap(connection.readLine(), (kind) => kinds[kind]!(connection))
      )
      for (const kind of ["idle", "idle", "slow", "late", "late", "stuck", "refused", "refused", "refused"]) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write(`${kind}\n`)
      }
      yield* settle
      const draining = yield* forkSettled(server.drain({ grace: "2 seconds", kill: "1 second" }))
      const report = yield* joinAfter(draining, "3 seconds")
      assert.deepStrictEqual(report, {
        idleClosed: 2,
        completed: 1,
        interrupted: 2,
        killed: 1,
        refused: 3,
        elapsed: Duration.seconds(3)
      })
    }))

  it.effect("joins a drain that is under way, whatever its options", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.never)
      yield* MemoryTransport.connect(server.address)
      const first = yield* forkSettled(server.drain({ grace: "4 seconds" }))
      const second = yield* forkSettled(server.drain({ grace: "1 hour" }))
      yield* TestClock.adjust("4 seconds")
      const report = yield* Fiber.join(first)
      assert.strictEqual(yield* Fiber.join(second), report)
      assert.strictEqual(yield* server.drain(), report)
      assert.strictEqual(report.interrupted, 1)
    }))

  it.effect("goes on when the fiber that asked for it is interrupted", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.never)
      yield* MemoryTransport.connect(server.address)
      const asking = yield* forkSettled(server.drain({ grace: "4 seconds" }))
      yield* Fiber.interrupt(asking)
      const joined = yield* forkSettled(server.drain())
      assert.strictEqual((yield* joinAfter(joined, "4 seconds")).interrupted, 1)
    }))

  it.effect("from inside a handler completes when all other requests are done", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const server = yield* start((connection) =>
        Effect.gen(function*() {
          const line = yield* connection.readLine()
          if (line !== "shutdown") return yield* Effect.sleep("3 seconds")
          const server = yield* Server.Server
          const report = yield* server.drain()
          seen.push(report)
          yield* connection.write(`completed ${report.completed}\n`)
        })
      )
      const worker = yield* MemoryTransport.connect(server.address)
      yield* worker.write("work\n")
      const admin = yield* MemoryTransport.connect(server.address)
      yield* admin.write("shutdown\n")
      yield* settle
      assert.deepStrictEqual(seen, [])
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(yield* admin.readLine(), "completed 1")
      assert.deepStrictEqual(counts(yield* server.drain()), { ...none, completed: 2 })
    }))

  it.effect("from inside a serial handler, and from two handlers at once, does not deadlock", () =>
    Effect.gen(function*() {
      const drainIt = Effect.flatMap(Server.Server, (server) => server.drain())
      const serial = yield* startSerial(() => drainIt)
      yield* MemoryTransport.connect(serial.address)
      yield* settle
      assert.deepStrictEqual(counts(yield* serial.drain()), { ...none, completed: 1 })

      const two = yield* start((connection) => Effect.andThen(connection.readLine(), drainIt))
      const clients = yield* Effect.replicateEffect(MemoryTransport.connect(two.address), 2)
      yield* Effect.forEach(clients, (client) => client.write("\n"))
      assert.deepStrictEqual(counts(yield* two.drain()), { ...none, completed: 2 })
    }))

  it.effect("from what a handler has left behind waits for all that is open", () =>
    Effect.gen(function*() {
      const draining: Array<Fiber.Fiber<ServerEvent.DrainReport>> = []
      const server = yield* start((connection) =>
        Effect.gen(function*() {
          if (connection.id > 1) return yield* Effect.asVoid(connection.busy(connection.pull))
          const { drain } = yield* Server.Server
          draining.push(yield* Effect.forkDetach(Effect.delay(drain(), "1 second")))
        })
      )
      yield* MemoryTransport.connect(server.address)
      const other = yield* MemoryTransport.connect(server.address)
      yield* TestClock.adjust("2 seconds")
      assert.isUndefined(draining[0]!.pollUnsafe())
      yield* other.write("done")
      assert.strictEqual((yield* Fiber.join(draining[0]!)).completed, 1)
    }))

  it.effect("is the ending of a handler whose last words it does not hear of, as its client is gone", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) => Effect.onInterrupt(Effect.never, () => connection.write("bye")))
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.reset
      yield* server.drain({ grace: 0 })
      assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1 })
    }))

  it.effect("completes `connection.draining`, for handlers that wait for other things than input", () =>
    Effect.gen(function*() {
      const server = yield* start((connection) =>
        Effect.andThen(connection.draining, connection.write("the server is going down\n"))
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      const report = yield* server.drain()
      assert.strictEqual(yield* client.readLine(), "the server is going down")
      assert.deepStrictEqual(counts(report), { ...none, completed: 1 })
    }))

  it.effect("is what closing the server's scope does, with the server's own deadlines", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const ended: Array<string> = []
      const context = yield* MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream(() => Effect.onInterrupt(Effect.never, () => Effect.sync(() => ended.push("interrupted"))), {
          shutdown: { grace: "7 seconds" }
        }),
        Layer.build,
        Scope.provide(scope)
      )
      const server = Context.get(context, Server.Server)
      yield* MemoryTransport.connect(server.address)
      const closing = yield* forkSettled(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("6999 millis")
      assert.deepStrictEqual(ended, [])
      yield* joinAfter(closing, "1 millis")
      assert.deepStrictEqual(ended, ["interrupted"])
      assert.strictEqual(yield* server.status, "stopped")
    }))

  it.effect("needs no time with `grace` and `kill` of 0, so a test clock need not be moved", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(
        start((c) => c.id === 1 ? Effect.never : Effect.uninterruptible(Effect.never), {
          shutdown: { grace: 0, kill: 0 }
        }),
        scope
      )
      yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 2)
      yield* settle
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1, Killed: 1 })
    }))

  it.effect("has 20 seconds of grace and 5 more before the cut, by default", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.uninterruptible(Effect.never))
      yield* MemoryTransport.connect(server.address)
      const draining = yield* forkSettled(server.drain())
      yield* TestClock.adjust("24999 millis")
      assert.isUndefined(draining.pollUnsafe())
      assert.strictEqual((yield* joinAfter(draining, "1 millis")).killed, 1)
    }))

  it.effect("refuses new clients while it runs, and afterwards", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.sleep("1 second"))
      yield* MemoryTransport.connect(server.address)
      const draining = yield* forkSettled(server.drain())
      const refused = yield* Effect.flip(MemoryTransport.connect(server.address))
      assert.strictEqual(refused._tag, "ConnectionRefused")
      yield* joinAfter(draining, "1 second")
      yield* Effect.flip(MemoryTransport.connect(server.address))
      assert.strictEqual((yield* server.stats).accepted, 1)
    }))
})
