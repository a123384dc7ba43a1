/**
 * What every dispatch strategy must do, as a suite of tests: it is bounded, it gives back what it took, whatever happens to a
 * request, and nothing of it outlives its server. Strategies that run handlers inline are held to it on the memory transport
 * under a test clock, so every run is the same; those that run them in workers under the live clock, and on any transport.
 * The strategies of this project pass it; whoever writes another can hold it to the same.
 *
 * @since 0.1.0
 */
import { assert, describe, it } from "@effect/vitest"
import type { CloseReason } from "@socketserver/core/CloseReason"
import type * as Dispatch from "@socketserver/core/Dispatch"
import * as MemoryTransport from "@socketserver/core/MemoryTransport"
import * as Server from "@socketserver/core/Server"
import type { StreamTransport } from "@socketserver/core/StreamTransport"
import type { WorkerDispatch } from "@socketserver/core/WorkerDispatch"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import type { Ending } from "./internal/dispatchHandlers.ts"
import type { Deed } from "./internal/dispatchRig.ts"
import * as Rigs from "./internal/dispatchRig.ts"
import { Conditions, promptly } from "./internal/waiting.ts"
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

/**
 * A strategy that runs handlers in workers, what its author promises of it, and the transport to hold it to that on.
 *
 * @category options
 * @since 0.1.0
 */
export interface WorkerSuiteOptions extends Omit<SuiteOptions, "dispatch"> {
  /** Makes the strategy's step of the pipe: see `SuiteOptions`. Each server must have workers of its own. */
  readonly dispatch: (options: { readonly maxInFlight: number; readonly queue: number }) => (
    transport: Layer.Layer<StreamTransport>
  ) => Layer.Layer<StreamTransport | WorkerDispatch>
  /** Makes the transport, for each server anew. Default: the memory transport, whose connections travel as bytes. */
  readonly layer?: (() => Layer.Layer<StreamTransport, unknown>) | undefined
  /** Connects a client, most likely `TestClient.node`. Default: `TestClient.memory`. */
  readonly connect?:
    | ((address: SocketAddress) => Effect.Effect<TestClient.Client, TestClient.ClientError, Scope.Scope>)
    | undefined
  /** Has each request a worker to itself? Where others are with it, they end with it, and that is not tested. Default `true`. */
  readonly isolated?: boolean | undefined
  /** How long a test may take, in milliseconds. Default 20,000. */
  readonly timeout?: number | undefined
}

const queue = 4

/** Where others get something done: in several turns, as one fiber, or one message, hands on to the next. */
const turns = <E, R>(turn: Effect.Effect<void, E, R>) => Effect.repeat(turn, { times: 9 })

const liveTurn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const range = (from: number, to: number): ReadonlyArray<number> =>
  Array.from({ length: to - from + 1 }, (_, i) => from + i)

/** The ways of a handler to end. `kill` is the server's: it closes the connection by hand. */
const endings: ReadonlyArray<
  { readonly name: string; readonly how: Ending | "kill"; readonly reason: CloseReason["_tag"] }
> = [
  { name: "returns", how: "return", reason: "Completed" },
  { name: "fails", how: "fail", reason: "HandlerFailed" },
  { name: "dies", how: "die", reason: "HandlerFailed" },
  { name: "interrupts itself", how: "interrupt", reason: "HandlerFailed" },
  { name: "is killed", how: "kill", reason: "Killed" }
]

/** The ways that only workers have. */
const workerEndings: typeof endings = [{ name: "ends its worker", how: "exit", reason: "WorkerCrashed" }]

/** What a client was told by its request's handler, and by the server. */
class Visit {
  readonly id: number
  readonly client: TestClient.Client
  began: bigint | undefined
  ended: bigint | undefined
  closed: "Ended" | "Reset" | undefined
  computes = false
  /** Has its end begun? */
  told = false
  readonly violations: Array<string> = []

  constructor(id: number, client: TestClient.Client) {
    this.id = id
    this.client = client
  }

  get isRunning(): boolean {
    return this.began !== undefined && this.ended === undefined && this.closed === undefined
  }

  /** Reads all that comes, and finishes when the server has. */
  listen(changed: () => void): Effect.Effect<void> {
    return Effect.forever(Effect.map(this.client.readLine, (line) => {
      this.hear(line)
      changed()
    })).pipe(Effect.catch((error) => {
      this.closed = error.reason === "UnexpectedEnd" ? "Ended" : "Reset"
      changed()
      return this.client.end
    }))
  }

  private hear(line: string): void {
    const [what, id, at] = line.split(" ")
    if (Number(id) !== this.id) this.violations.push(`the client of ${this.id} was told: ${line}`)
    if (what === "begun") {
      if (this.began !== undefined) this.violations.push(`the handler of ${this.id} ran twice`)
      this.began = BigInt(at!)
    } else if (what === "ended") this.ended = BigInt(at!)
    else this.computes = true
  }
}

/** How many handlers ran at a time, at most, by the times that they told. One that could not tell its end has none. */
const mostAtOnce = (visits: ReadonlyArray<Visit>): number => {
  const changes = visits.flatMap(({ began, ended }) =>
    began === undefined || ended === undefined ? [] : [{ at: began, by: 1 }, { at: ended, by: -1 }]
  )
  // At the same time, the end comes first.
  changes.sort((a, b) => a.at === b.at ? a.by - b.by : a.at < b.at ? -1 : 1)
  let now = 0
  let most = 0
  for (const { by } of changes) most = Math.max(most, now += by)
  return most
}

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
export const suite = (name: string, options: SuiteOptions): void =>
  register(name, options, {
    isLive: false,
    isolated: false,
    timeout: undefined,
    connect: TestClient.memory,
    makeRig: (bounds) => Rigs.inline(MemoryTransport.stream().pipe(options.dispatch(bounds)))
  })

/**
 * Registers the suite for a strategy that runs handlers in workers, as a `describe` of that name.
 *
 * **Details**
 *
 * The tests are those of {@link suite}, but for two that need handlers with their server at hand, and with some about workers
 * that end. They run under the live clock: what is expected is waited for, up to ten seconds. The handlers are portable ones
 * of this package, and are told what to do by their clients. Their bound is checked by the times that they tell, so workers
 * must be on this machine.
 *
 * **Example** (Workers, on the memory transport and on TCP)
 *
 * ```ts
 * import { NodeDispatch, NodeTransport } from "@socketserver/node"
 * import { DispatchSuite, TestClient } from "@socketserver/testing"
 *
 * const dispatch: DispatchSuite.WorkerSuiteOptions["dispatch"] = ({ maxInFlight, queue }) =>
 *   NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: maxInFlight, queue: { max: queue } })
 *
 * DispatchSuite.workerSuite("threads", { dispatch })
 *
 * DispatchSuite.workerSuite("threads, on TCP", {
 *   dispatch,
 *   layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
 *   connect: TestClient.node
 * })
 * ```
 *
 * @category suites
 * @since 0.1.0
 */
export const workerSuite = (name: string, options: WorkerSuiteOptions): void => {
  const { connect = TestClient.memory, dispatch, isolated = true, layer = MemoryTransport.stream, timeout = 20_000 } =
    options
  register(name, options, {
    isLive: true,
    isolated,
    timeout,
    connect,
    makeRig: (bounds, changed) => Rigs.workers(() => Layer.orDie(layer()), dispatch(bounds), changed)
  })
}

/** Inline, or in workers. */
interface Kind {
  readonly isLive: boolean
  /** Is it a worker of its own that a request ends? */
  readonly isolated: boolean
  readonly timeout: number | undefined
  readonly connect: NonNullable<WorkerSuiteOptions["connect"]>
  readonly makeRig: (
    bounds: { readonly maxInFlight: number; readonly queue: number },
    changed: () => void
  ) => Effect.Effect<Rigs.Rig, never, Scope.Scope>
}

const register = (
  name: string,
  promises: Omit<SuiteOptions, "dispatch">,
  { connect, isLive, isolated, makeRig, timeout }: Kind
): void => {
  const { maxInFlight: places = 3, ordered = true, overflow = "refuseNewest" } = promises
  const test = isLive ? it.live : it.effect
  /** Lets everything that can run do so, without moving the clock. */
  const someTurns = isLive ? turns(liveTurn) : turns(TestClock.adjust(0))

  /** The rig, and the conditions that are asked again whenever something has changed. */
  const rigged = Effect.suspend(() => {
    const conditions = new Conditions()
    let asking = false
    // When whoever changes something is done with it.
    const changed = () => {
      if (asking) return
      asking = true
      setImmediate(() => {
        asking = false
        conditions.check()
      })
    }
    return Effect.map(makeRig({ maxInFlight: places, queue }, changed), (rig) => ({ rig, conditions, changed }))
  })

  /** Waits for what is expected: inline, it is so when all have had their turns. */
  const untilOf =
    (conditions: Conditions) => (what: string | (() => string), holds: () => boolean): Effect.Effect<void> =>
      isLive ? conditions.until(what, holds) : Effect.asVoid(someTurns)

  /**
   * A server whose handlers end when they are told to, or else when it drains. When the test is over and the server is closed,
   * nothing of it may be left, and no request may have been handled or refused twice.
   */
  const startWith = Effect.fnUntraced(function*({ heedDrain }: { readonly heedDrain: boolean }) {
    const { changed, conditions, rig } = yield* rigged
    const { begun, traces } = rig
    const visits: Array<Visit> = []
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
        yield* someTurns
        const stats = yield* server.stats
        assert.deepStrictEqual([stats.open, stats.queued, stats.inFlight], [0, 0, 0])
        assert.strictEqual(Object.values(stats.closed).reduce((sum, count) => sum + count, 0), stats.accepted)
        assert.strictEqual(fibers.active, 0, "fibers outlive the server")
        const { workers } = yield* server.info
        if (workers !== undefined) {
          assert.deepStrictEqual(
            [workers.starting, workers.busy, workers.idle],
            [0, 0, 0],
            "workers outlive the server"
          )
        }
        assert.isAtMost(mostAtOnce(visits), places, "requests in flight")
        assert.deepStrictEqual(visits.flatMap(({ violations }) => violations), [])
        for (const [id, trace] of traces) {
          assert.isDefined(trace.exit, `request ${id}: the strategy still holds it`)
          assert.isAtMost(trace.handled + trace.refused, 1, `request ${id}: handled or refused more than once`)
        }
      })
    )
    server = yield* countFibers(rig.serve(heedDrain))
    const { address, awaitIdle, connections, drain, events, stats } = server
    if (isLive) {
      yield* Effect.forkScoped(Stream.runForEach(events, () => Effect.sync(changed)), { startImmediately: true })
    }
    const until = untilOf(conditions)

    const stateOf = (id: number) => Option.getOrUndefined(Effect.runSync(connections.find(id)))?.state
    const isGone = ({ closed, id }: Visit) => closed !== undefined && traces.has(id) && stateOf(id) === undefined
    /** The requests on whose account something is still to happen: the others wait in line, run, or are gone altogether. */
    const underWay = (): ReadonlyArray<string> =>
      visits.flatMap((visit) => {
        const { began, id, told } = visit
        const state = stateOf(id)
        const waitsOrRuns = !told && (state === "queued" || state === "handling" && began !== undefined)
        return waitsOrRuns || isGone(visit)
          ? []
          : [`${id}: ${state}${began === undefined ? "" : ", has begun"}${told ? ", is to end" : ""}`]
      })
    /** Waits until nothing happens any more by itself. */
    const settle: Effect.Effect<void> = isLive
      ? until(() => `all requests at rest; ${underWay().join("; ")}`, () => underWay().length === 0).pipe(
        Effect.andThen(someTurns),
        Effect.flatMap(() => underWay().length === 0 ? Effect.void : settle)
      )
      : Effect.asVoid(someTurns)

    const tell = (id: number, how: Ending | Deed) =>
      Effect.suspend(() => {
        const visit = visits[id - 1]!
        visit.told = true
        return rig.tell(id, visit.client, how)
      })
    const closeNow = (id: number) =>
      Effect.suspend(() => {
        visits[id - 1]!.told = true
        return connections.close(id)
      })
    const release = Effect.suspend(() => {
      rig.over()
      return Effect.forEach(visits, ({ closed, id }) => closed === undefined ? tell(id, "return") : Effect.void, {
        discard: true
      })
    })
    if (!heedDrain) yield* Effect.addFinalizer(() => release)

    return {
      server,
      stats,
      drain,
      traces,
      begun,
      until,
      settle,
      /** How many handlers run, as their clients know. */
      running: () => visits.filter(({ isRunning }) => isRunning).length,
      most: () => mostAtOnce(visits),
      /** Lets all handlers return, also those that begin from now on, until no request is left. */
      release: Effect.andThen(release, promptly("the server is idle")(awaitIdle)),
      /** As many clients, one after the other. */
      connect: (count: number) =>
        Effect.gen(function*() {
          for (let i = 0; i < count; i++) {
            const visit = new Visit(visits.length + 1, yield* connect(address))
            visits.push(visit)
            yield* Effect.forkScoped(visit.listen(changed), { startImmediately: true })
          }
          yield* settle
        }),
      /** How the server has closed the connection, if it has. */
      closed: (id: number) => visits[id - 1]!.closed,
      /** Has it ended, to the server and to its client? */
      isGone: (id: number) => isGone(visits[id - 1]!),
      /** Without a turn for anybody else. */
      finishNow: (id: number) => tell(id, "return"),
      /** It does not hear of anything any more. */
      compute: (id: number) =>
        Effect.andThen(tell(id, "compute"), until("a handler computes", () => visits[id - 1]!.computes)),
      finish: (id: number, how: Ending | "kill" | Deed = "return") =>
        Effect.andThen(how === "kill" ? closeNow(id) : tell(id, how), settle),
      closeNow,
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
      assert.strictEqual(running(), places, "all places can be taken")
      yield* connect(queue)
      const full = yield* stats
      assert.deepStrictEqual([full.inFlight, full.queued], [places, queue], "the others can wait")
      assert.deepStrictEqual(full.refused, before.refused)
      yield* release
    })

  describe(name, timeout === undefined ? {} : { timeout }, () => {
    test("begins at once with a request that finds a place", () =>
      Effect.gen(function*() {
        const { begun, connect, finish } = yield* start
        for (let id = 1; id <= 3 * places; id++) {
          yield* connect(1)
          assert.strictEqual(begun.at(-1), id)
          yield* finish(id)
        }
      }))

    test("runs as many requests as it has places, and the next when one has ended", () =>
      Effect.gen(function*() {
        const { begun, connect, finish, most, running, stats } = yield* start
        const all = places + queue
        yield* connect(all)
        for (let ended = 0; ended < all; ended++) {
          const { inFlight, queued } = yield* stats
          assert.deepStrictEqual([inFlight, queued], [Math.min(places, all - ended), Math.max(0, queue - ended)])
          assert.strictEqual(running(), inFlight)
          yield* finish(begun[ended]!)
        }
        assert.strictEqual(most(), places)
        assert.deepStrictEqual((yield* stats).closed, { Completed: all })
      }))

    test("lets only so many wait, and refuses one for each beyond", () =>
      Effect.gen(function*() {
        const { closed, connect, open, release, stats } = yield* start
        const full = places + queue
        yield* connect(full + 5)
        const { queued, refused } = yield* stats
        assert.strictEqual(queued, queue)
        assert.deepStrictEqual(refused, { queue: 5 })
        const first = overflow === "refuseNewest" ? full + 1 : places + 1
        const turnedAway = range(first, first + 4)
        assert.deepStrictEqual(yield* open, range(1, full + 5).filter((id) => !turnedAway.includes(id)))
        for (const id of turnedAway) assert.strictEqual(closed(id), "Ended")
        yield* release
        assert.deepStrictEqual((yield* stats).closed, { Completed: full, Refused: 5 })
      }))

    test("handles or refuses every request, exactly once", () =>
      Effect.gen(function*() {
        const { begun, connect, finish, running, stats, traces } = yield* start
        let ended = 0
        for (let round = 0; round < 5; round++) {
          yield* connect(2 * (places + queue))
          // Leaves some at work for the next round to meet.
          while (running() > round % places) yield* finish(begun[ended++]!)
        }
        while (running() > 0) yield* finish(begun[ended++]!)
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

    test.runIf(ordered)(
      "begins requests in the order of their arrival, also where some leave the line",
      () =>
        Effect.gen(function*() {
          const { begun, connect, finish, release, waiting } = yield* start
          yield* connect(places + queue)
          const line = yield* waiting
          yield* finish(line[1]!, "kill")
          yield* connect(1)
          assert.strictEqual((yield* waiting).length, queue)
          yield* release
          assert.deepStrictEqual(begun, range(1, places + queue + 1).filter((id) => id !== line[1]))
        })
    )

    for (const { how, name, reason } of isolated ? [...endings, ...workerEndings] : endings) {
      test(`goes on, and has its place back, when a handler ${name}`, () =>
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

      test(`begins with the next in line when a handler ${name}`, () =>
        Effect.gen(function*() {
          const started = yield* start
          const { begun, connect, finish, stats } = started
          yield* connect(places + queue)
          for (let ended = 0; ended < places + queue; ended++) yield* finish(begun[ended]!, how)
          assert.deepStrictEqual((yield* stats).closed, { [reason]: places + queue })
          yield* hasAllPlaces(started)
        }))
    }

    test.runIf(isolated)(
      "goes on, and has its place back, when a handler that computes for ever is killed",
      () =>
        Effect.gen(function*() {
          const started = yield* start
          const { begun, compute, connect, finish, stats } = started
          yield* connect(places + 1)
          yield* compute(begun[0]!)
          yield* finish(begun[0]!, "kill")
          assert.strictEqual(begun.length, places + 1)
          for (const id of begun.slice(1)) yield* finish(id)
          assert.deepStrictEqual((yield* stats).closed, { Killed: 1, Completed: places })
          yield* hasAllPlaces(started)
        })
    )

    test("has a place in the queue back when the connection of a request that waits is closed", () =>
      Effect.gen(function*() {
        const started = yield* start
        const { begun, connect, finish, stats, traces, waiting } = started
        yield* connect(places + queue)
        for (let i = 0; i < 3 * queue; i++) {
          const line = yield* waiting
          const id = line[i % queue]!
          yield* finish(id, "kill")
          assert.deepStrictEqual([(yield* stats).queued, traces.get(id)!.handled], [queue - 1, 0])
          yield* connect(1)
          assert.strictEqual((yield* stats).queued, queue)
        }
        for (let ended = 0; ended < places + queue; ended++) yield* finish(begun[ended]!)
        assert.deepStrictEqual((yield* stats).closed, { Killed: 3 * queue, Completed: places + queue })
        yield* hasAllPlaces(started)
      }))

    for (const closesFirst of [true, false]) {
      test(`loses no place when a request is closed right ${closesFirst ? "before" : "after"} its turn comes`, () =>
        Effect.gen(function*() {
          for (let index = 0; index < queue; index++) {
            const { begun, closeNow, connect, finishNow, release, settle, stats, waiting } = yield* start
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

    test("lets go of the requests that wait when its server drains", () =>
      Effect.gen(function*() {
        const { closed, connect, drain, isGone, release, running, stats, traces, until, waiting } = yield* start
        yield* connect(places + queue)
        const line = yield* waiting
        const draining = yield* Effect.forkChild(drain(), { startImmediately: true })
        yield* until("the line is gone", () => line.every(isGone))
        for (const id of line) {
          const { exit, handled } = traces.get(id)!
          assert.strictEqual(handled, 0)
          assert.isTrue(
            exit !== undefined && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause),
            "interrupted"
          )
          assert.strictEqual(closed(id), "Ended")
        }
        const during = yield* stats
        assert.deepStrictEqual([during.queued, during.refused], [0, { draining: queue }])
        assert.strictEqual(running(), places)
        yield* release
        const report = yield* Fiber.join(draining)
        assert.deepStrictEqual([report.completed, report.refused], [places, queue])
      }))

    test("lets its handlers be interrupted when the grace of a drain is over", () =>
      Effect.gen(function*() {
        const { connect, drain, running, until } = yield* start
        yield* connect(places + queue)
        const grace = isLive ? "100 millis" : "1 minute"
        const draining = yield* Effect.forkChild(drain({ grace }), { startImmediately: true })
        if (!isLive) yield* TestClock.adjust(grace)
        const report = yield* promptly("the drain is over")(Fiber.join(draining))
        assert.deepStrictEqual([report.interrupted, report.refused], [places, queue])
        yield* until("all clients know", () => running() === 0)
        assert.strictEqual(running(), 0)
      }))

    test.runIf(isolated)("ends a drain though handlers compute for ever", () =>
      Effect.gen(function*() {
        const { compute, connect, drain, isGone, until } = yield* start
        yield* connect(places)
        for (const id of range(1, places)) yield* compute(id)
        const report = yield* promptly("the drain is over")(drain({ grace: "100 millis" }))
        assert.strictEqual(report.interrupted, places)
        yield* until("all clients know", () => range(1, places).every(isGone))
      }))

    test.runIf(!isLive)(
      "lets a drain complete that a handler asks for, while others run and wait",
      () =>
        Effect.gen(function*() {
          const { closed, connect, drain, finish, release, stats } = yield* start
          const report = yield* Deferred.make<number>()
          yield* connect(places + queue)
          yield* finish(1, Effect.flatMap(drain(), ({ refused }) => Effect.asVoid(Deferred.succeed(report, refused))))
          yield* release
          assert.strictEqual(yield* Deferred.await(report), queue)
          assert.strictEqual(closed(places + queue), "Ended")
          assert.deepStrictEqual((yield* stats).closed, { Completed: places, Refused: queue })
        })
    )

    test("leaves nothing behind when its server's scope closes, with requests at work and in the queue", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { connect, stats } = yield* Scope.provide(startWith({ heedDrain: true }), scope)
        yield* connect(places + queue)
        yield* promptly("the scope is closed")(Scope.close(scope, Exit.void))
        assert.deepStrictEqual((yield* stats).closed, { Completed: places, Refused: queue })
      }))

    test("has places of its own for each server", () =>
      Effect.gen(function*() {
        const { changed, conditions, rig } = yield* rigged
        const visits: Array<Visit> = []
        for (const server of [yield* rig.serve(true), yield* rig.serve(true)]) {
          for (let id = 1; id <= places; id++) {
            const visit = new Visit(id, yield* connect(server.address))
            visits.push(visit)
            yield* Effect.forkScoped(visit.listen(changed), { startImmediately: true })
          }
        }
        const allRun = () => visits.every(({ isRunning }) => isRunning)
        yield* untilOf(conditions)("all requests run", allRun)
        assert.isTrue(allRun())
      }))

    test("gives a handler its services, and a scope that ends before the connection", () =>
      Effect.gen(function*() {
        const { rig } = yield* rigged
        const server = yield* rig.serveGreeting
        const client = yield* connect(server.address)
        const heard = Effect.all([client.readLine, client.readLine, client.closed])
        assert.deepStrictEqual(yield* promptly("a greeting")(heard), ["hello", "finalized", "Ended"])
      }))

    test.runIf(!isLive)("gives a handler its server", () =>
      Effect.gen(function*() {
        const { connect, finish } = yield* start
        const inFlight = yield* Deferred.make<number>()
        yield* connect(1)
        yield* finish(
          1,
          Effect.gen(function*() {
            const { stats } = yield* Server.Server
            yield* Deferred.succeed(inFlight, (yield* stats).inFlight)
          })
        )
        assert.strictEqual(yield* Deferred.await(inFlight), 1)
      }))
  })
}
