/**
 * What every dispatch strategy must do, as a suite of tests: it is bounded, it gives back what it took, whatever happens to a
 * request, and nothing of it outlives its server. The suite runs a server on the memory transport under a test clock, so
 * every run is the same. The strategies of this project pass it; whoever writes another can hold it to the same.
 *
 * @since 0.1.0
 */
import { assert, describe, it } from "@effect/vitest"
import type { CloseReason } from "@socketserver/core/CloseReason"
import * as Dispatch from "@socketserver/core/Dispatch"
import * as MemoryTransport from "@socketserver/core/MemoryTransport"
import * as Server from "@socketserver/core/Server"
import type { StreamTransport } from "@socketserver/core/StreamTransport"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as TestClient from "./TestClient.ts"

/**
 * A strategy, and what its author promises of it.
 *
 * @category options
 * @since 0.1.0
 */
export interface SuiteOptions {
  /**
   * Makes the strategy's step of the pipe, which must let at most `maxInFlight` requests run and at most `queue` wait. One
   * that has a number of its own, as a serial one has, ignores `maxInFlight`, and says so with the option of that name.
   */
  readonly dispatch: (options: { readonly maxInFlight: number; readonly queue: number }) => (
    transport: Layer.Layer<StreamTransport>
  ) => Layer.Layer<StreamTransport | Dispatch.Dispatch>
  /** How many requests may run at a time: 2 or more, or the strategy's own number. Default 3. */
  readonly maxInFlight?: number | undefined
  /** Which request is refused when one too many waits. Default `"refuseNewest"`. */
  readonly overflow?: "refuseNewest" | "refuseOldest" | undefined
  /** Do requests begin in the order of their arrival? Default `true`. */
  readonly ordered?: boolean | undefined
}

class Oops extends Error {
  readonly _tag = "Oops"
}

/** A service for handlers that need one. */
class Greeting extends Context.Service<Greeting, string>()("@socketserver/testing/Greeting") {}

/** What the strategy did with one request. */
interface Trace {
  handled: number
  refused: number
  exit: Exit.Exit<void> | undefined
}

const queue = 4

/** Lets everything that can run do so, without moving the clock; in several turns, as one fiber hands on to the next. */
const settle = Effect.repeat(TestClock.adjust(0), { times: 9 })

const range = (from: number, to: number): ReadonlyArray<number> =>
  Array.from({ length: to - from + 1 }, (_, i) => from + i)

/** The ways of a handler to end. `kill` is the server's: it closes the connection by hand. */
const endings: ReadonlyArray<
  { readonly name: string; readonly how: Effect.Effect<void, Oops> | "kill"; readonly reason: CloseReason["_tag"] }
> = [
  { name: "returns", how: Effect.void, reason: "Completed" },
  { name: "fails", how: Effect.fail(new Oops("typed")), reason: "HandlerFailed" },
  { name: "dies", how: Effect.die(new Error("defect")), reason: "HandlerFailed" },
  { name: "interrupts itself", how: Effect.interrupt, reason: "HandlerFailed" },
  { name: "is killed", how: "kill", reason: "Killed" }
]

/**
 * Registers the suite, as a `describe` of that name.
 *
 * **Example** (Holding a strategy of one's own to the suite)
 *
 * ```ts
 * import { Dispatch } from "@socketserver/core"
 * import { DispatchSuite } from "@socketserver/testing"
 *
 * DispatchSuite.suite("fiberPerRequest", {
 *   dispatch: ({ maxInFlight, queue }) => Dispatch.fiberPerRequest({ maxInFlight, queue: { max: queue } })
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const suite = (name: string, options: SuiteOptions): void => {
  const { maxInFlight: places = 3, ordered = true, overflow = "refuseNewest" } = options

  /** The strategy behind a transport, and a trace of what it does with every request. */
  const watched = Effect.gen(function*() {
    const context = yield* Layer.build(MemoryTransport.stream().pipe(options.dispatch({ maxInFlight: places, queue })))
    const inner = Context.get(context, Dispatch.Dispatch)
    const traces = new Map<number, Trace>()
    const dispatch: Dispatch.Dispatch["Service"] = {
      ...inner,
      make: Effect.map(inner.make, (strategy): Dispatch.Strategy => (request) => {
        const trace: Trace = { handled: 0, refused: 0, exit: undefined }
        traces.set(request.id, trace)
        return Effect.onExit(
          strategy({
            id: request.id,
            handle: Effect.suspend(() => {
              trace.handled++
              return request.handle
            }),
            refuse: (policy) =>
              Effect.suspend(() => {
                trace.refused++
                return request.refuse(policy)
              })
          }),
          (exit) =>
            Effect.sync(() => {
              trace.exit = exit
            })
        )
      })
    }
    return { context: Context.add(context, Dispatch.Dispatch, dispatch), traces }
  })

  /**
   * A server whose handlers end when they are told to, or else when it drains. When the test is over and the server is closed,
   * nothing of it may be left, and no request may have been handled or refused twice.
   */
  const startWith = Effect.fnUntraced(function*({ heedDrain }: { readonly heedDrain: boolean }) {
    const { context, traces } = yield* watched
    const begun: Array<number> = []
    const ends = new Map<number, Deferred.Deferred<Effect.Effect<void, Oops>>>()
    const running = { now: 0, most: 0 }
    let over = false
    const handler: Server.StreamHandler<Oops, never> = ({ draining, id }) =>
      Effect.suspend(() => {
        const end = Deferred.makeUnsafe<Effect.Effect<void, Oops>>()
        ends.set(id, end)
        begun.push(id)
        running.most = Math.max(running.most, ++running.now)
        if (over) return Effect.void
        const told = Effect.flatten(Deferred.await(end))
        return heedDrain ? Effect.raceFirst(told, draining) : told
      }).pipe(Effect.ensuring(Effect.sync(() => running.now--)))

    const fibers = { active: 0 }
    const countFibers = Effect.provideService(Metric.FiberRuntimeMetrics, {
      recordFiberStart: () => {
        fibers.active++
      },
      recordFiberEnd: () => {
        fibers.active--
      }
    })
    let server: Server.Server["Service"] | undefined
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        if (server === undefined) return
        yield* settle
        const stats = yield* server.stats
        assert.deepStrictEqual([stats.open, stats.queued, stats.inFlight], [0, 0, 0])
        assert.strictEqual(Object.values(stats.closed).reduce((sum, count) => sum + count, 0), stats.accepted)
        assert.strictEqual(fibers.active, 0, "fibers outlive the server")
        assert.isAtMost(running.most, places, "requests in flight")
        for (const [id, trace] of traces) {
          assert.isDefined(trace.exit, `request ${id}: the strategy still holds it`)
          assert.isAtMost(trace.handled + trace.refused, 1, `request ${id}: handled or refused more than once`)
        }
      })
    )
    server = yield* Server.makeStream(handler, { onError: () => Effect.void }).pipe(
      countFibers,
      Effect.provideContext(context)
    )
    const { address, connections, drain, stats } = server
    const release = Effect.suspend(() => {
      over = true
      return Effect.forEach(ends.values(), (end) => Deferred.succeed(end, Effect.void), { discard: true })
    })
    if (!heedDrain) yield* Effect.addFinalizer(() => release)

    const clients: Array<TestClient.Client> = []
    return {
      server,
      stats,
      drain,
      traces,
      begun,
      running,
      /** Lets all handlers return, also those that begin from now on, until no request is left. */
      release: Effect.andThen(release, server.awaitIdle),
      /** As many clients, one after the other. */
      connect: (count: number) =>
        Effect.gen(function*() {
          for (let i = 0; i < count; i++) clients.push(yield* TestClient.memory(address))
          yield* settle
        }),
      client: (id: number) => clients[id - 1]!,
      /** Without a turn for anybody else. */
      finishNow: (id: number, how: Effect.Effect<void, Oops> = Effect.void) =>
        Effect.sync(() => Deferred.doneUnsafe(ends.get(id)!, Effect.succeed(how))),
      finish: (id: number, how: Effect.Effect<void, Oops> | "kill" = Effect.void) =>
        Effect.andThen(
          how === "kill" ? connections.close(id) : Deferred.succeed(ends.get(id)!, how),
          settle
        ),
      closeNow: connections.close,
      open: Effect.map(connections.list, (list) => list.map(({ id }) => id)),
      waiting: Effect.map(
        connections.list,
        (list) => list.filter(({ state }) => state === "queued").map(({ id }) => id)
      )
    }
  })

  const start = startWith({ heedDrain: false })
  type Started = Effect.Success<typeof start>

  /** All places can be taken, and one more request has to wait: none was lost, none was given away twice. */
  const hasAllPlaces = ({ connect, release, running, stats }: Started) =>
    Effect.gen(function*() {
      const before = yield* stats
      assert.deepStrictEqual([before.inFlight, before.queued], [0, 0])
      yield* connect(places)
      assert.strictEqual(running.now, places, "all places can be taken")
      yield* connect(queue)
      const full = yield* stats
      assert.deepStrictEqual([full.inFlight, full.queued], [places, queue], "the others can wait")
      assert.deepStrictEqual(full.refused, before.refused)
      yield* release
    })

  describe(name, () => {
    it.effect("begins at once with a request that finds a place", () =>
      Effect.gen(function*() {
        const { begun, connect, finish } = yield* start
        for (let id = 1; id <= 3 * places; id++) {
          yield* connect(1)
          assert.strictEqual(begun.at(-1), id)
          yield* finish(id)
        }
      }))

    it.effect("runs as many requests as it has places, and the next when one has ended", () =>
      Effect.gen(function*() {
        const { begun, connect, finish, running, stats } = yield* start
        const all = places + queue
        yield* connect(all)
        for (let ended = 0; ended < all; ended++) {
          const { inFlight, queued } = yield* stats
          assert.deepStrictEqual([inFlight, queued], [Math.min(places, all - ended), Math.max(0, queue - ended)])
          assert.strictEqual(running.now, inFlight)
          yield* finish(begun[ended]!)
        }
        assert.strictEqual(running.most, places)
        assert.deepStrictEqual((yield* stats).closed, { Completed: all })
      }))

    it.effect("lets only so many wait, and refuses one for each beyond", () =>
      Effect.gen(function*() {
        const { client, connect, open, release, stats } = yield* start
        const full = places + queue
        yield* connect(full + 5)
        const { queued, refused } = yield* stats
        assert.strictEqual(queued, queue)
        assert.deepStrictEqual(refused, { queue: 5 })
        const first = overflow === "refuseNewest" ? full + 1 : places + 1
        const turnedAway = range(first, first + 4)
        assert.deepStrictEqual(yield* open, range(1, full + 5).filter((id) => !turnedAway.includes(id)))
        for (const id of turnedAway) assert.strictEqual(yield* client(id).closed, "Ended")
        yield* release
        assert.deepStrictEqual((yield* stats).closed, { Completed: full, Refused: 5 })
      }))

    it.effect("handles or refuses every request, exactly once", () =>
      Effect.gen(function*() {
        const { begun, connect, finish, running, stats, traces } = yield* start
        let ended = 0
        for (let round = 0; round < 5; round++) {
          yield* connect(2 * (places + queue))
          // Leaves some at work for the next round to meet.
          while (running.now > round % places) yield* finish(begun[ended++]!)
        }
        while (running.now > 0) yield* finish(begun[ended++]!)
        const { accepted, closed, open, refused } = yield* stats
        assert.strictEqual(open, 0)
        assert.strictEqual(accepted, 10 * (places + queue))
        assert.deepStrictEqual(closed, { Completed: begun.length, Refused: refused.queue! })
        assert.strictEqual(begun.length, new Set(begun).size)
        assert.deepStrictEqual(
          Array.from(traces.values(), ({ handled, refused }) => handled + refused),
          Array.from({ length: accepted }, () => 1)
        )
      }))

    it.effect.runIf(ordered)(
      "begins requests in the order of their arrival, also where some leave the line",
      () =>
        Effect.gen(function*() {
          const { begun, closeNow, connect, release, waiting } = yield* start
          yield* connect(places + queue)
          const line = yield* waiting
          yield* closeNow(line[1]!)
          yield* settle
          yield* connect(1)
          assert.strictEqual((yield* waiting).length, queue)
          yield* release
          assert.deepStrictEqual(begun, range(1, places + queue + 1).filter((id) => id !== line[1]))
        })
    )

    for (const { how, name, reason } of endings) {
      it.effect(`goes on, and has its place back, when a handler ${name}`, () =>
        Effect.gen(function*() {
          const started = yield* start
          const { begun, connect, finish, stats } = started
          for (let ended = 0; ended < 3 * places; ended++) {
            yield* connect(1)
            yield* finish(begun[ended]!, how)
          }
          assert.deepStrictEqual((yield* stats).closed, { [reason]: 3 * places })
          yield* hasAllPlaces(started)
        }))

      it.effect(`begins with the next in line when a handler ${name}`, () =>
        Effect.gen(function*() {
          const started = yield* start
          const { begun, connect, finish, stats } = started
          yield* connect(places + queue)
          for (let ended = 0; ended < places + queue; ended++) yield* finish(begun[ended]!, how)
          assert.deepStrictEqual((yield* stats).closed, { [reason]: places + queue })
          yield* hasAllPlaces(started)
        }))
    }

    it.effect("has a place in the queue back when the connection of a request that waits is closed", () =>
      Effect.gen(function*() {
        const started = yield* start
        const { begun, closeNow, connect, finish, stats, traces, waiting } = started
        yield* connect(places + queue)
        for (let i = 0; i < 3 * queue; i++) {
          const line = yield* waiting
          const id = line[i % queue]!
          yield* closeNow(id)
          yield* settle
          assert.deepStrictEqual([(yield* stats).queued, traces.get(id)!.handled], [queue - 1, 0])
          yield* connect(1)
          assert.strictEqual((yield* stats).queued, queue)
        }
        for (let ended = 0; ended < places + queue; ended++) yield* finish(begun[ended]!)
        assert.deepStrictEqual((yield* stats).closed, { Killed: 3 * queue, Completed: places + queue })
        yield* hasAllPlaces(started)
      }))

    for (const closesFirst of [true, false]) {
      it.effect(`loses no place when a request is closed right ${closesFirst ? "before" : "after"} its turn comes`, () =>
        Effect.gen(function*() {
          for (let index = 0; index < queue; index++) {
            const { begun, closeNow, connect, finishNow, release, stats, waiting } = yield* start
            yield* connect(places + queue)
            const close = closeNow((yield* waiting)[index]!)
            const finish = finishNow(begun[0]!)
            yield* closesFirst ? Effect.andThen(close, finish) : Effect.andThen(finish, close)
            yield* settle
            const { closed, inFlight, open, queued } = yield* stats
            assert.strictEqual(inFlight, places)
            assert.strictEqual(inFlight + queued, open)
            assert.deepStrictEqual(closed, { Completed: 1, Killed: 1 })
            yield* release
            assert.deepStrictEqual((yield* stats).closed, { Completed: places + queue - 1, Killed: 1 })
          }
        }))
    }

    it.effect("lets go of the requests that wait when its server drains", () =>
      Effect.gen(function*() {
        const { client, connect, drain, release, running, stats, traces, waiting } = yield* start
        yield* connect(places + queue)
        const line = yield* waiting
        const draining = yield* Effect.forkChild(drain(), { startImmediately: true })
        yield* settle
        for (const id of line) {
          const { exit, handled } = traces.get(id)!
          assert.strictEqual(handled, 0)
          assert.isTrue(
            exit !== undefined && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause),
            "interrupted"
          )
          assert.strictEqual(yield* client(id).closed, "Ended")
        }
        const during = yield* stats
        assert.deepStrictEqual([during.queued, during.refused], [0, { draining: queue }])
        assert.strictEqual(running.now, places)
        yield* release
        const report = yield* Fiber.join(draining)
        assert.deepStrictEqual([report.completed, report.refused], [places, queue])
      }))

    it.effect("lets its handlers be interrupted when the grace of a drain is over", () =>
      Effect.gen(function*() {
        const { connect, drain, running } = yield* start
        yield* connect(places + queue)
        const draining = yield* Effect.forkChild(drain({ grace: "1 minute" }), { startImmediately: true })
        yield* TestClock.adjust("1 minute")
        const report = yield* Fiber.join(draining)
        assert.deepStrictEqual([report.interrupted, report.refused], [places, queue])
        assert.strictEqual(running.now, 0)
      }))

    it.effect("lets a drain complete that a handler asks for, while others run and wait", () =>
      Effect.gen(function*() {
        const { client, connect, drain, finish, release, stats } = yield* start
        const report = yield* Deferred.make<number>()
        yield* connect(places + queue)
        yield* finish(1, Effect.flatMap(drain(), ({ refused }) => Effect.asVoid(Deferred.succeed(report, refused))))
        yield* release
        assert.strictEqual(yield* Deferred.await(report), queue)
        assert.strictEqual(yield* client(places + queue).closed, "Ended")
        assert.deepStrictEqual((yield* stats).closed, { Completed: places, Refused: queue })
      }))

    it.effect("leaves nothing behind when its server's scope closes, with requests at work and in the queue", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { connect, stats } = yield* Scope.provide(startWith({ heedDrain: true }), scope)
        yield* connect(places + queue)
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual((yield* stats).closed, { Completed: places, Refused: queue })
      }))

    it.effect("has places of its own for each server", () =>
      Effect.gen(function*() {
        const { context } = yield* watched
        let running = 0
        const serve = Server.makeStream((connection) =>
          Effect.suspend(() => {
            running++
            return connection.draining
          })
        ).pipe(Effect.provideContext(context))
        for (const server of [yield* serve, yield* serve]) {
          yield* Effect.replicateEffect(TestClient.memory(server.address), places)
        }
        yield* settle
        assert.strictEqual(running, 2 * places)
      }))

    it.effect("gives a handler its services, its server, and a scope that ends before the connection", () =>
      Effect.gen(function*() {
        const { context } = yield* watched
        const server = yield* Server.makeStream((connection) =>
          Effect.gen(function*() {
            yield* Effect.addFinalizer(() => Effect.ignore(connection.write("finalized\n")))
            const { inFlight } = yield* (yield* Server.Server).stats
            yield* connection.write(`${yield* Greeting}, ${inFlight} in flight\n`)
          })
        ).pipe(Effect.provideContext(context), Effect.provideService(Greeting, "hello"))
        const client = yield* TestClient.memory(server.address)
        assert.strictEqual(yield* client.readLine, "hello, 1 in flight")
        assert.strictEqual(yield* client.readLine, "finalized")
        assert.strictEqual(yield* client.closed, "Ended")
      }))
  })
}
