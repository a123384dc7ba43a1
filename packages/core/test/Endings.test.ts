/**
 * How a request ends: the order of what happens, who closes the connection, and what the ending is called.
 */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Logging, MemoryTransport, Server } from "@socketserver/core"
import type { Connection, ServerEvent } from "@socketserver/core"
import { Cause, Context, Data, Effect, Fiber, Layer, Logger, References, Stream } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { settle, start } from "./utils.ts"

class Oops extends Data.TaggedError("Oops")<{ readonly what: string }> {}

type Client = (client: Connection.Connection) => Effect.Effect<unknown, any>

/** The end of the first connection of a server. */
const firstEnd = (server: Server.Server["Service"]) =>
  server.events.pipe(
    Stream.filter((event) => event._tag === "Closed"),
    Stream.map((event) => event.reason),
    Stream.runHead,
    Effect.flatMap(Effect.fromOption),
    Effect.forkChild({ startImmediately: true })
  )

/** Serves one client, and gives what its connection ended with. The client must see the connection closed. */
const endOf = <E>(
  handler: (connection: Connection.Connection) => Effect.Effect<unknown, E>,
  options?: Server.ServerOptions<E> & { readonly client?: Client }
) =>
  Effect.scoped(Effect.gen(function*() {
    const server = yield* start(handler, { onError: () => Effect.void, ...options })
    const ended = yield* firstEnd(server)
    const client = yield* MemoryTransport.connect(server.address)
    // A handler may be gone before its client has said anything.
    if (options?.client !== undefined) yield* Effect.exit(options.client(client))
    yield* Effect.exit(client.readAll())
    const reason = yield* Fiber.join(ended)
    assert.strictEqual((yield* server.stats).open, 0)
    return reason
  }))

describe("the connection is closed, whatever the handler does", () => {
  const paths: ReadonlyArray<[string, (connection: Connection.Connection) => Effect.Effect<unknown, any>, string]> = [
    ["returns without reading or writing", () => Effect.void, "Completed"],
    ["returns without reading", (c) => c.write("x"), "Completed"],
    ["returns without writing", (c) => c.readLine(), "Completed"],
    ["fails", () => Effect.fail(new Oops({ what: "typed" })), "HandlerFailed"],
    ["dies", () => Effect.die(new Error("defect")), "HandlerFailed"],
    ["throws instead of returning an effect", () => {
      throw new Error("thrown")
    }, "HandlerFailed"],
    ["interrupts itself", () => Effect.interrupt, "HandlerFailed"],
    ["lets end of input through", (c) => Effect.forever(c.readLine()), "Completed"],
    ["closes by itself", (c) => c.close, "Completed"],
    ["closes and then reads", (c) => Effect.andThen(c.close, c.pull), "TransportFailed"],
    ["ends its output and returns", (c) => c.end, "Completed"],
    ["resets", (c) => c.reset, "Completed"],
    ["lets a limit through", (c) => c.readLine({ maxLength: 1 }), "TransportFailed"]
  ]
  for (const [name, handler, reason] of paths) {
    it.effect(`it ${name}`, () =>
      Effect.gen(function*() {
        const client: Client = (client) => Effect.andThen(client.write("line\n"), client.end)
        assert.strictEqual((yield* endOf(handler, { client }))._tag, reason)
      }))
  }

  it.effect("the peer resets while the handler reads", () =>
    Effect.gen(function*() {
      const client: Client = (client) => Effect.andThen(settle, client.reset)
      assert.strictEqual((yield* endOf((c) => c.pull, { client }))._tag, "PeerReset")
    }))

  it.effect("the peer resets while the handler is blocked in a write", () =>
    Effect.gen(function*() {
      const client: Client = (client) => Effect.andThen(settle, client.reset)
      assert.strictEqual(
        (yield* endOf((c) => Effect.forever(c.write("x".repeat(100_000))), { client }))._tag,
        "PeerReset"
      )
    }))

  it.effect("the peer resets and the handler recovers", () =>
    Effect.gen(function*() {
      const client: Client = (client) => Effect.andThen(settle, client.reset)
      assert.strictEqual((yield* endOf((c) => Effect.ignore(c.pull), { client }))._tag, "PeerReset")
    }))

  it.effect("a failure that is another connection's is the handler's own", () =>
    Effect.gen(function*() {
      const upstream = yield* start((c) => c.reset)
      const proxy = endOf(() =>
        Effect.scoped(Effect.gen(function*() {
          const client = yield* MemoryTransport.connect(upstream.address)
          yield* client.pull
        }))
      )
      assert.strictEqual((yield* proxy)._tag, "HandlerFailed")
    }))
})

describe("a failing handler", () => {
  it.effect("goes to `onError` with its cause, for typed failures and defects; interruption and end of input do not", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const onError: NonNullable<Server.ServerOptions<any>["onError"]> = (cause, connection, reason) =>
        Effect.sync(() => {
          const error: any = Cause.squash(cause)
          seen.push(`${connection.id} ${error._tag ?? error.message} ${reason._tag}`)
        })
      yield* endOf(() => Effect.fail(new Oops({ what: "typed" })), { onError })
      yield* endOf(() => Effect.die(new Error("defect")), { onError })
      yield* endOf((c) => c.readLine({ maxLength: 1 }), { onError, client: (client) => client.write("long\n") })
      yield* endOf(() => Effect.interrupt, { onError })
      yield* endOf((c) => c.pull, { onError, client: (client) => client.end })
      assert.deepStrictEqual(seen, [
        "1 Oops HandlerFailed",
        "1 defect HandlerFailed",
        "1 ConnectionError TransportFailed"
      ])
    }))

  it.effect("can be answered by `onError`, before the connection closes", () =>
    Effect.gen(function*() {
      const server = yield* start(() => Effect.fail(new Oops({ what: "it" })), {
        onError: (cause, connection) =>
          connection.write(`ERR ${cause.reasons.filter(Cause.isFailReason).map(({ error }) => error.what).join()}\n`)
      })
      const client = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* client.readLine(), "ERR it")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
    }))

  it.effect("runs its finalizers, and a failing finalizer is reported too (Python loses the first)", () =>
    Effect.gen(function*() {
      const causes: Array<Cause.Cause<unknown>> = []
      const server = yield* start(
        () =>
          Effect.gen(function*() {
            yield* Effect.addFinalizer(() => Effect.die("finish"))
            return yield* new Oops({ what: "handle" })
          }),
        { onError: (cause) => Effect.sync(() => causes.push(cause)) }
      )
      const ended = yield* firstEnd(server)
      yield* MemoryTransport.connect(server.address)
      assert.strictEqual((yield* Fiber.join(ended))._tag, "HandlerFailed")
      assert.strictEqual(causes.length, 1)
      assert.deepStrictEqual(
        causes[0]!.reasons.map((reason) =>
          Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : undefined
        ),
        [new Oops({ what: "handle" }), "finish"]
      )
    }))

  it.effect("releases what its setup has acquired (Python does not call `finish` then)", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const server = yield* start(
        () =>
          Effect.gen(function*() {
            yield* Effect.acquireRelease(
              Effect.sync(() => log.push("acquired")),
              () => Effect.sync(() => log.push("released"))
            )
            return yield* Effect.die("setup failed")
          }),
        { onError: () => Effect.sync(() => log.push("onError")) }
      )
      yield* MemoryTransport.connect(server.address)
      yield* server.awaitIdle
      assert.deepStrictEqual(log, ["acquired", "released", "onError"])
    }))

  it.effect("never stops the next one", () =>
    Effect.gen(function*() {
      const endings = [
        Effect.fail(new Oops({ what: "typed" })),
        Effect.die("defect"),
        Effect.interrupt,
        Effect.void
      ]
      const server = yield* MemoryTransport.stream().pipe(
        Dispatch.serial(),
        Server.serveStream(
          (connection) =>
            Effect.andThen(connection.write("served\n"), Effect.suspend(() => endings[connection.id % 4]!)),
          { onError: () => Effect.die("onError fails as well") }
        ),
        Layer.build,
        Effect.map(Context.get(Server.Server)),
        Effect.provide(Logger.layer([]))
      )
      for (let i = 0; i < 12; i++) {
        const client = yield* MemoryTransport.connect(server.address)
        assert.strictEqual(yield* client.readLine(), "served")
        assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      }
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 3, HandlerFailed: 9 })
    }))
})

describe("the order of a request", () => {
  it.effect("is verify, handler, finalizers, onError, close, as Python has it", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const note = (what: string) => Effect.sync(() => log.push(what))
      const server = yield* MemoryTransport.stream().pipe(
        Admission.verify(() => Effect.as(note("verify"), true)),
        Dispatch.serial(),
        Server.serveStream(
          () =>
            Effect.gen(function*() {
              yield* note("handle")
              yield* Effect.addFinalizer(() => note("finish"))
              return yield* Effect.fail("no")
            }),
          { onError: () => note("handle_error") }
        ),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const watching = yield* server.events.pipe(
        Stream.filter((event) => event._tag === "Accepted" || event._tag === "Closed"),
        Stream.tap((event) => note(event._tag)),
        Stream.take(2),
        Stream.runDrain,
        Effect.forkChild({ startImmediately: true })
      )
      yield* MemoryTransport.connect(server.address)
      yield* Fiber.join(watching)
      assert.deepStrictEqual(log.filter((what) => what !== "Accepted"), [
        "verify",
        "handle",
        "finish",
        "handle_error",
        "Closed"
      ])
    }))
})

describe("Admission.verify", () => {
  const verified = (check: Effect.Effect<boolean, unknown>, onError: () => Effect.Effect<void> = () => Effect.void) =>
    Effect.gen(function*() {
      const handled: Array<number> = []
      const server = yield* MemoryTransport.stream().pipe(
        Admission.verify(() => check),
        Dispatch.serial(),
        Server.serveStream((connection) => Effect.sync(() => handled.push(connection.id)), { onError }),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const ended = yield* firstEnd(server)
      const client = yield* MemoryTransport.connect(server.address)
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
      const reason = yield* Fiber.join(ended)
      return { reason, handled, stats: yield* server.stats }
    })

  it.effect("lets a client in", () =>
    Effect.gen(function*() {
      const { handled, reason } = yield* verified(Effect.succeed(true))
      assert.deepStrictEqual([reason._tag, handled], ["Completed", [1]])
    }))

  it.effect("closes a refused client exactly once, and counts it", () =>
    Effect.gen(function*() {
      const { handled, reason, stats } = yield* verified(Effect.succeed(false))
      assert.deepStrictEqual(reason, { _tag: "Refused", policy: "verify" })
      assert.deepStrictEqual(handled, [])
      assert.deepStrictEqual([stats.closed, stats.refused, stats.open], [{ Refused: 1 }, { verify: 1 }, 0])
    }))

  it.effect("refuses when the check fails or dies, closes, and reports it (Python leaves the client hanging)", () =>
    Effect.gen(function*() {
      for (const check of [Effect.fail("typed"), Effect.die("defect")]) {
        let reports = 0
        const { handled, reason } = yield* verified(check, () => Effect.sync(() => void reports++))
        assert.deepStrictEqual([reason._tag, handled, reports], ["Refused", [], 1])
      }
    }))

  it.effect("runs in the connection's own fiber: a slow check delays nobody else", () =>
    Effect.gen(function*() {
      const server = yield* MemoryTransport.stream().pipe(
        Admission.verify((connection) =>
          connection.id === 1 ? Effect.as(Effect.sleep("1 hour"), true) : Effect.succeed(true)
        ),
        Dispatch.serial(),
        Server.serveStream((connection) => connection.write(`${connection.id}\n`)),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const slow = yield* MemoryTransport.connect(server.address)
      const quick = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* quick.readLine(), "2")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* slow.readLine(), "1")
    }))

  it.effect("sees the peer's address and uses the services of its own layer", () =>
    Effect.gen(function*() {
      class Allowed extends Context.Service<Allowed, ReadonlyArray<string>>()("test/Allowed") {}
      const server = yield* MemoryTransport.stream().pipe(
        Admission.verify((connection) => Effect.map(Allowed, (allowed) => allowed.includes(String(connection.peer)))),
        Dispatch.serial(),
        Server.serveStream((connection) => connection.write("in\n")),
        Layer.provide(Layer.succeed(Allowed, ["memory:friend"])),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const friend = yield* MemoryTransport.connect(server.address, {
        from: NetAddress.unixPathAddress("memory:friend")
      })
      const stranger = yield* MemoryTransport.connect(server.address)
      assert.strictEqual(yield* friend.readLine(), "in")
      assert.isTrue(Cause.isDone(yield* Effect.flip(stranger.pull)))
    }))
})

describe("without an `onError`", () => {
  const logged = (handler: Server.StreamHandler<any, never>, client: Client) =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => lines.push(`${logLevel} ${String(message)}`))
      const server = yield* Effect.provide(
        start(handler),
        Layer.merge(Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "All"))
      )
      yield* client(yield* MemoryTransport.connect(server.address))
      yield* server.awaitIdle
      // After the one of the server's start.
      return lines.filter((line) => !line.startsWith("Info listening on memory:"))
    })

  it.effect("the handler's own failure is logged as an error", () =>
    Effect.gen(function*() {
      const [line, ...more] = yield* logged(() => Effect.fail("no"), () => Effect.void)
      assert.match(line!, /^Error connection 1 from memory:\d+: HandlerFailed/)
      assert.lengthOf(more, 1)
      assert.match(more[0]!, /^Debug connection 1 from memory:\d+ closed: HandlerFailed/)
    }))

  it.effect("so is that of an admission check, and of a strategy", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => {
        if (logLevel !== "Info") lines.push(`${logLevel} ${String(message)}`)
      })
      const broken = Dispatch.custom({ name: "broken", make: Effect.succeed(() => Effect.die("no strategy")) })
      const serving = [
        MemoryTransport.stream().pipe(Admission.verify(() => Effect.fail("no check")), Dispatch.serial()),
        MemoryTransport.stream().pipe(broken)
      ]
      for (const layer of serving) {
        const server = yield* layer.pipe(
          Server.serveStream(() => Effect.void),
          Layer.build,
          Effect.map(Context.get(Server.Server)),
          Effect.provide(Logger.layer([logger]))
        )
        const client = yield* MemoryTransport.connect(server.address)
        assert.isTrue(Cause.isDone(yield* Effect.flip(client.pull)))
        yield* server.awaitIdle
      }
      assert.match(lines[0]!, /^Error connection 1 from memory:\d+: Refused/)
      assert.match(lines[1]!, /^Error connection 1 from memory:\d+: HandlerFailed/)
    }))

  it.effect("what a client can cause is never above debug", () =>
    Effect.gen(function*() {
      const [reset] = yield* logged((c) => c.pull, (client) => Effect.andThen(settle, client.reset))
      assert.match(reset!, /^Debug connection 1 .*: PeerReset/)
      const [limit] = yield* logged((c) => c.readLine({ maxLength: 1 }), (client) => client.write("too long\n"))
      assert.match(limit!, /^Debug connection 1 .*: TransportFailed/)
    }))

  it.effect("also where an admission check reads, and whatever the client does then", () =>
    Effect.gen(function*() {
      const events: Array<ServerEvent.ServerEvent> = []
      const log = Logging.layer({ debug: true, log: (event) => Effect.sync(() => events.push(event)) })
      const clients: ReadonlyArray<Client> = [
        (client) => client.reset,
        (client) => client.end,
        (client) => client.write("x".repeat(70_000)),
        () => Effect.void
      ]
      const server = yield* MemoryTransport.stream().pipe(
        Admission.verify((connection) => Effect.as(connection.readLine(), true)),
        Dispatch.serial(),
        Server.serveStream(() => Effect.void),
        Layer.build,
        Effect.map(Context.get(Server.Server)),
        Effect.provide(log)
      )
      for (const act of clients) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* settle
        yield* act(client)
        yield* settle
      }
      // One that waits still.
      assert.strictEqual((yield* server.stats).open, 1)
      yield* server.drain()
      assert.deepStrictEqual((yield* server.stats).refused, { verify: 3, draining: 1 })
      assert.deepStrictEqual(events.filter((event) => Logging.level(event) === "Error"), [])
      assert.lengthOf(events.filter((event) => event._tag === "Failed"), 3)
    }))

  it.effect("also in a hook that hears its client go", () =>
    Effect.gen(function*() {
      const problems: Array<string> = []
      const log = Logging.layer({
        debug: true,
        log: (event) => Effect.sync(() => event._tag === "Problem" && problems.push(event.level))
      })
      const server = yield* start(() => Effect.fail("no"), { onError: (_, c) => c.pull }).pipe(Effect.provide(log))
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.end
      yield* server.awaitIdle
      assert.deepStrictEqual(problems, ["Debug"])
    }))

  it.effect("an end without failure is a line at debug, and no more", () =>
    Effect.gen(function*() {
      const [line, ...more] = yield* logged((c) => c.pull, (client) => client.end)
      assert.match(line!, /^Debug connection 1 from memory:\d+ closed: Completed/)
      assert.deepStrictEqual(more, [])
    }))
})

describe("close reasons", () => {
  it.effect("are one for each accepted connection", () =>
    Effect.gen(function*() {
      const server = yield* start((c) => Effect.andThen(c.readLine(), Effect.fail("no")), {
        onError: () => Effect.void
      })
      for (const line of ["x\n", "", "x\n"]) {
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.write(line)
        yield* client.end
      }
      yield* server.awaitIdle
      const stats = yield* server.stats
      assert.deepStrictEqual(stats.closed, { HandlerFailed: 2, Completed: 1 })
      assert.strictEqual(stats.accepted, stats.open + Object.values(stats.closed).reduce((a, b) => a + b, 0))
    }))
})

describe("interruptOnDisconnect", () => {
  const busy = (interrupted: Array<number>) => (connection: Connection.Connection) =>
    Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted.push(connection.id)))
  const ends = {
    reset: (client: Connection.Connection) => client.reset,
    end: (client: Connection.Connection) => client.end
  }

  for (
    const [option, client, reason] of [
      ["reset", "reset", "PeerReset"],
      ["end", "reset", "PeerReset"],
      ["end", "end", "PeerReset"],
      ["reset", "end", undefined],
      [undefined, "reset", undefined],
      [undefined, "end", undefined]
    ] as const
  ) {
    it.effect(`${option ?? "left out"}: a ${client} ${reason === undefined ? "leaves a handler be" : "ends a handler"} that does not read`, () =>
      Effect.gen(function*() {
        const interrupted: Array<number> = []
        const server = yield* start(busy(interrupted), {
          interruptOnDisconnect: option,
          shutdown: { grace: 0 }
        })
        yield* Effect.flatMap(MemoryTransport.connect(server.address), ends[client])
        yield* settle
        assert.deepStrictEqual(interrupted, reason === undefined ? [] : [1])
        assert.deepStrictEqual((yield* server.stats).closed, reason === undefined ? {} : { [reason]: 1 })
      }))
  }

  it.effect("takes a client that is gone out of the line", () =>
    Effect.gen(function*() {
      const server = yield* Layer.build(
        MemoryTransport.stream().pipe(
          Dispatch.serial(),
          Server.serveStream(() => Effect.never, { interruptOnDisconnect: "reset", shutdown: { grace: 0 } })
        )
      ).pipe(Effect.map(Context.get(Server.Server)))
      yield* MemoryTransport.connect(server.address)
      const waiting = yield* MemoryTransport.connect(server.address)
      yield* settle
      assert.strictEqual((yield* server.stats).queued, 1)
      yield* waiting.reset
      yield* settle
      assert.deepStrictEqual([(yield* server.stats).queued, (yield* server.stats).closed], [0, { PeerReset: 1 }])
    }))

  it.effect("loses no input that was read ahead", () =>
    Effect.gen(function*() {
      const server = yield* start(
        (connection) => Effect.andThen(settle, Stream.run(connection.bytes, connection.sink)),
        {
          interruptOnDisconnect: "reset"
        }
      )
      const client = yield* MemoryTransport.connect(server.address)
      yield* client.write("early ")
      yield* settle
      yield* client.write("and late")
      yield* client.end
      assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), "early and late")
    }))
})
