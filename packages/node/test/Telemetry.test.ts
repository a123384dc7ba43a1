/** What a handler logs, counts and traces in a worker, as the server's loggers, registry and tracer see it. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Duration, Effect, Exit, Logger, Metric, Option, References, Tracer } from "effect"
import { MessageChannel } from "node:worker_threads"
import { vi } from "vitest"
import {
  CurrentRequest,
  encodeSpan,
  makeReceiver,
  makeReporter,
  type Receiver,
  type Report,
  type Reporter,
  reporterOptions
} from "../src/internal/telemetry.ts"

/** Remembers what it is told, as a tree of plain data. */
class Recorder {
  readonly spans: Array<Tracer.NativeSpan> = []
  readonly tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      this.spans.push(span)
      return span
    }
  })

  tree(parent?: Tracer.AnySpan): ReadonlyArray<unknown> {
    return this.spans.filter((span) => Option.getOrUndefined(span.parent) === parent).map((span) => ({
      name: span.name,
      kind: span.kind,
      attributes: Object.fromEntries(span.attributes),
      events: span.events.map(([name, , attributes]) => [name, attributes]),
      links: span.links.map(({ attributes, span }) => [span._tag === "Span" ? span.name : span.spanId, attributes]),
      exit: span.status._tag === "Ended" ? span.status.exit._tag : "Started",
      children: this.tree(span)
    }))
  }
}

const logged = () => {
  const entries: Array<Record<string, unknown>> = []
  const logger = Logger.make<unknown, void>(({ cause, date, fiber, logLevel, message }) => {
    entries.push({
      level: logLevel,
      message,
      cause: Cause.pretty(cause),
      annotations: fiber.getRef(References.CurrentLogAnnotations),
      spans: fiber.getRef(References.CurrentLogSpans).map(([label]) => label),
      span: fiber.cache.span?._tag === "Span" ? fiber.cache.span.name : fiber.cache.span?._tag,
      date: date.getTime()
    })
  })
  return { entries, loggers: Context.make(References.CurrentLoggers, new Set([logger])) }
}

interface Sides {
  readonly reporter: Reporter
  readonly receiver: Receiver
  readonly reports: Array<Report>
}

/** Both sides with a structured clone between them. */
const sides = (server: Context.Context<never>, contextOf = (_request: number | undefined) => server): Sides => {
  const receiver = makeReceiver(contextOf)
  const reports: Array<Report> = []
  const reporter = makeReporter(structuredClone(reporterOptions(server)), (report) => {
    reports.push(report)
    receiver.receive(structuredClone(report))
  })
  return { reporter, receiver, reports }
}

/** Runs a handler for request 1 as a worker would: in a context that has nothing of the server's. */
const runHandler = <E>(
  { receiver, reporter }: Sides,
  handler: Effect.Effect<unknown, E>,
  requestContext: Context.Context<never> = Context.empty()
): Exit.Exit<unknown, E> => {
  const context = reporter.context.pipe(
    Context.merge(reporter.spanContext(structuredClone(encodeSpan(requestContext)), 1)),
    Context.add(CurrentRequest, 1)
  )
  const exit = Effect.runSyncExitWith(context)(handler)
  reporter.flush()
  receiver.requestEnded(1, exit)
  return exit
}

const runInline = <E>(server: Context.Context<never>, handler: Effect.Effect<unknown, E>): Exit.Exit<unknown, E> =>
  Effect.runSyncExitWith(server)(handler)

const clockAt = (millis: number): Clock.Clock =>
  Object.create(Context.get(Context.empty(), Clock.Clock), {
    currentTimeMillisUnsafe: { value: () => millis },
    currentTimeNanosUnsafe: { value: () => BigInt(Math.floor(millis * 1_000_000)) }
  })

describe("logs", () => {
  const handler = Effect.gen(function*() {
    yield* Effect.log("hello", { a: 1 }, Cause.fail("why"))
    yield* Effect.logDebug("quiet")
    yield* Effect.logError("failed", new Error("boom")).pipe(
      Effect.annotateLogs({ user: "ada", deep: { n: 1 } }),
      Effect.withLogSpan("inner"),
      Effect.withLogSpan("outer")
    )
  })

  const compare = (settings: Context.Context<never>, what: Effect.Effect<unknown, unknown>) => {
    const handler = Effect.provideService(what, Clock.Clock, clockAt(1_234))
    const inline = logged()
    runInline(Context.merge(settings, inline.loggers), handler)
    const remote = logged()
    runHandler(sides(Context.merge(settings, remote.loggers)), handler)
    assert.deepStrictEqual(remote.entries, inline.entries)
    return remote.entries
  }

  it("are the same as inline: level, message, cause, annotations, log spans, date", () => {
    const entries = compare(
      Context.make(References.CurrentLogAnnotations, { server: "x", user: "none" }).pipe(
        Context.add(References.CurrentLogSpans, [["server", 1]] as const)
      ),
      handler
    )
    assert.strictEqual(entries.length, 2)
    assert.strictEqual(entries[1]!.date, 1_234)
    assert.deepStrictEqual(entries[1]!.spans, ["inner", "outer", "server"])
  })

  it("honour the server's minimum log level, and the handler's own", () => {
    assert.strictEqual(compare(Context.make(References.MinimumLogLevel, "Error"), handler).length, 1)
    assert.strictEqual(compare(Context.make(References.MinimumLogLevel, "Debug"), handler).length, 3)
    assert.strictEqual(
      compare(
        Context.make(References.MinimumLogLevel, "Error"),
        Effect.provideService(handler, References.MinimumLogLevel, "All")
      ).length,
      3
    )
  })

  it("take the level that the server has set as the current one", () => {
    assert.deepStrictEqual(
      compare(Context.make(References.CurrentLogLevel, "Warn"), Effect.log("x")).map(({ level }) => level),
      ["Warn"]
    )
  })

  it("follow a minimum that was raised after the worker started", () => {
    const { entries, loggers } = logged()
    const worker = sides(loggers, () => Context.add(loggers, References.MinimumLogLevel, "Error"))
    runHandler(worker, Effect.andThen(Effect.log("info"), Effect.logError("error")))
    assert.deepStrictEqual(entries.map(({ message }) => message), [["error"]])
  })

  it("of a request are logged in its context, others in the server's", () => {
    const { entries, loggers } = logged()
    const worker = sides(
      loggers,
      (request) => Context.add(loggers, References.CurrentLogAnnotations, { request: request ?? "none" })
    )
    runHandler(worker, Effect.log("of a request"))
    Effect.runSyncWith(worker.reporter.context)(Effect.log("of the worker"))
    assert.deepStrictEqual(entries.map(({ annotations }) => annotations), [{ request: 1 }, { request: "none" }])
  })

  it("with parts that cannot be cloned are text there", () => {
    const { entries, loggers } = logged()
    runHandler(
      sides(loggers),
      Effect.log("x", () => 1, Symbol("s")).pipe(Effect.annotateLogs("socket", process.stdout))
    )
    const [{ annotations, message }] = entries as [any]
    assert.deepStrictEqual(message, ["x", "[Function (anonymous)]", "Symbol(s)"])
    assert.isString(annotations.socket)
  })

  it("have the id of the fiber in the worker, one for all its lines", () => {
    const ids: Array<number> = []
    const loggers = Context.make(References.CurrentLoggers, new Set([Logger.make(({ fiber }) => ids.push(fiber.id))]))
    const own = Effect.withFiber((fiber) => Effect.succeed(fiber.id))
    const exit = runHandler(sides(loggers), Effect.tap(own, () => Effect.andThen(Effect.log("a"), Effect.log("b"))))
    assert.deepStrictEqual(Exit.succeed(ids), Exit.map(exit, (id) => [id, id]) as any)
  })

  it("are events of the span that they were logged in", () => {
    const handler = Effect.andThen(Effect.log("in the request"), Effect.withSpan(Effect.log("in a span"), "inner"))
    const recorder = new Recorder()
    const root = new Tracer.NativeSpan({
      name: "request",
      parent: Option.none(),
      annotations: Context.empty(),
      links: [],
      startTime: 0n,
      kind: "server",
      sampled: true
    })
    const server = Context.make(Tracer.Tracer, recorder.tracer).pipe(
      Context.add(Tracer.ParentSpan, root),
      Context.add(References.CurrentLoggers, new Set([Logger.tracerLogger]))
    ) as Context.Context<never>
    runHandler(sides(server), Effect.provideService(handler, Clock.Clock, clockAt(5)), server)
    assert.deepStrictEqual(root.events.map(([name, time]) => [name, time]), [["in the request", 5_000_000n]])
    assert.deepStrictEqual(recorder.spans[0]!.events.map(([name, time]) => [name, time]), [["in a span", 5_000_000n]])
  })
})

describe("metrics", () => {
  const counter = Metric.counter("c", { description: "a counter", attributes: { a: "1" } })
  const bigCounter = Metric.counter("big", { bigint: true })
  const incremental = Metric.counter("inc", { incremental: true })
  const gauge = Metric.gauge("g")
  const bigGauge = Metric.gauge("bg", { bigint: true })
  const frequency = Metric.frequency("f", { preregisteredWords: ["never", "once"] })
  const histogram = Metric.histogram("h", { boundaries: Metric.linearBoundaries({ start: 0, width: 10, count: 4 }) })
  const summary = Metric.summary("s", { maxAge: "90 seconds", maxSize: 7, quantiles: [0.9, 0.1, 0.5] })
  const timer = Metric.timer("t", { description: "time" })

  const handler = Effect.gen(function*() {
    yield* Metric.update(counter, 2)
    yield* Metric.modify(counter, -0.5)
    yield* Metric.update(Metric.withAttributes(counter, { b: "2" }), 1)
    yield* Metric.update(bigCounter, 2n ** 70n)
    yield* Metric.update(incremental, 3)
    yield* Metric.update(incremental, -5)
    yield* Metric.update(gauge, 10)
    yield* Metric.modify(gauge, -3)
    yield* Metric.update(bigGauge, 10n)
    yield* Metric.modify(bigGauge, 5n)
    yield* Metric.update(frequency, "once")
    yield* Metric.update(frequency, "other")
    for (const value of [1, 10, 11, 1_000]) yield* Metric.update(histogram, value)
    for (let i = 0; i < 10; i++) yield* Metric.update(summary, i)
    yield* Metric.update(timer, Duration.millis(12))
  }).pipe(Effect.provideService(Clock.Clock, clockAt(1_000)))

  const registryWith = (settings: Context.Context<never>) =>
    Context.add(settings, Metric.MetricRegistry, new Map()).pipe(Context.add(Clock.Clock, clockAt(60_000)))

  const compare = (settings: Context.Context<never>) => {
    const inline = registryWith(settings)
    runInline(inline, handler)
    const remote = registryWith(settings)
    runHandler(sides(remote), handler)
    assert.deepStrictEqual(Metric.snapshotUnsafe(remote), Metric.snapshotUnsafe(inline))
    runHandler(sides(remote), handler)
    runInline(inline, handler)
    assert.deepStrictEqual(Metric.snapshotUnsafe(remote), Metric.snapshotUnsafe(inline))
    return Metric.snapshotUnsafe(remote)
  }

  it("are the same as inline, of every type", () => {
    assert.strictEqual(compare(Context.empty()).length, 10)
  })

  it("have the attributes that the server adds to all metrics", () => {
    const snapshot = compare(
      Context.make(Metric.CurrentMetricAttributes, { a: "of the server", b: "too", region: "eu" })
    )
    assert.deepStrictEqual(snapshot[0]!.attributes, { a: "of the server", b: "too", region: "eu" })
    assert.deepStrictEqual(snapshot[1]!.attributes, { a: "of the server", b: "2", region: "eu" })
    assert.strictEqual(snapshot[0]!.description, "a counter")
  })

  it("of the server itself are updated, not replaced", () => {
    const server = registryWith(Context.empty())
    incremental.updateUnsafe(10, server)
    runHandler(sides(server), handler)
    assert.strictEqual(incremental.valueUnsafe(server).count, 13)
  })

  it("summaries keep their size and their age, whatever they are", () => {
    for (
      const [maxAge, maxSize] of [
        ["1 millis", 1],
        [0, 3],
        [0.75, 2],
        ["3 days", 1_000],
        [Duration.infinity, 5],
        ["1 minute", 0]
      ] as const
    ) {
      const observed = Metric.summaryWithTimestamp("s", { maxAge, maxSize, quantiles: [0, 0.5, 1] })
      const observe = Effect.forEach(
        Array.from({ length: 10 }, (_, i) => i),
        (i) => Metric.update(observed, [i, i * 0.25])
      )
      for (const now of [0, 2.25, 3, 3.25, 60_002.25, 259_202, 259_200_002.25, 259_200_002.5, 1e300]) {
        const [inline, remote] = [1, 2].map(() => Context.add(registryWith(Context.empty()), Clock.Clock, clockAt(0)))
        runInline(inline!, observe)
        runHandler(sides(remote!), observe)
        const at = (context: Context.Context<never>) =>
          observed.valueUnsafe(Context.add(context, Clock.Clock, clockAt(now)))
        assert.deepStrictEqual(at(remote!), at(inline!))
      }
    }
  })

  it("read in a worker tell what it has counted", () => {
    const exit = runHandler(sides(registryWith(Context.empty())), Effect.andThen(handler, Metric.value(summary)))
    assert.strictEqual(Exit.isSuccess(exit) && (exit.value as any).count, 10)
  })

  it("are posted together", () => {
    const worker = sides(registryWith(Context.empty()))
    runHandler(worker, handler)
    assert.strictEqual(worker.reports.length, 1)
    assert.strictEqual(new Set(structuredClone(worker.reports[0]!).map((entry: any) => entry.metric)).size, 10)
    runHandler(worker, Effect.forEach(Array.from({ length: 2_500 }), () => Metric.update(counter, 1)))
    assert.deepStrictEqual(worker.reports.slice(1).map((report) => report.length), [1_000, 1_000, 500])
  })

  it("of a handler that goes on are posted after a moment", () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] })
    try {
      const server = registryWith(Context.empty())
      const { reporter } = sides(server)
      gauge.updateUnsafe(5, reporter.context)
      assert.strictEqual(gauge.valueUnsafe(server).value, 0)
      vi.advanceTimersByTime(100)
      assert.strictEqual(gauge.valueUnsafe(server).value, 5)
    } finally {
      vi.useRealTimers()
    }
  })

  it("that are computed when asked for stay in the worker", () => {
    const worker = sides(registryWith(Context.empty()))
    Metric.registerUnsafe(gauge, worker.reporter.context, {
      get: () => ({ value: 42 }),
      update: () => {},
      modify: () => {}
    })
    assert.strictEqual(gauge.valueUnsafe(worker.reporter.context).value, 42)
    assert.strictEqual(worker.reports.length, 0)
  })
})

describe("spans", () => {
  const server = (recorder: Recorder, settings: Context.Context<never> = Context.empty()): Context.Context<never> =>
    settings.pipe(
      Context.add(Tracer.Tracer, recorder.tracer),
      Context.add(References.CurrentLoggers, new Set([Logger.tracerLogger]))
    )

  /** A request's span, and the handler in it, as the server runs it. */
  const requestSpan = (context: Context.Context<never>, run: (context: Context.Context<never>) => void) =>
    Effect.runSyncWith(context)(
      Effect.withSpan(Effect.withFiber((fiber) => Effect.sync(() => run(fiber.context))), "request", { kind: "server" })
    )

  const compare = (handler: Effect.Effect<unknown, unknown>, settings?: Context.Context<never>) => {
    const inline = new Recorder()
    requestSpan(server(inline, settings), (context) => runInline(context, handler))
    const remote = new Recorder()
    requestSpan(server(remote, settings), (context) => runHandler(sides(context), handler, context))
    const withoutFibers = (tree: unknown) =>
      JSON.parse(JSON.stringify(tree, (key, value) => key === "effect.fiberId" ? "a fiber" : value))
    assert.deepStrictEqual(withoutFibers(remote.tree()), withoutFibers(inline.tree()))
    return remote
  }

  it("make the same tree as inline: attributes, events, links, exits, logs", () => {
    const recorder = compare(Effect.gen(function*() {
      yield* Effect.annotateCurrentSpan("of the request", 1)
      const first = yield* Effect.withSpan(Effect.currentSpan, "first", {
        attributes: { a: [1, { b: 2 }] },
        kind: "client"
      })
      yield* Effect.gen(function*() {
        yield* Effect.log("hello")
        yield* Effect.annotateCurrentSpan({ c: 1n.toString() })
        const span = yield* Effect.currentSpan
        span.event("happened", 7n, { d: 1 })
        span.addLinks([{ span: first, attributes: { late: true } }])
        yield* Effect.withSpan(Effect.fail("no"), "failing").pipe(Effect.ignore)
        yield* Effect.withSpan(Effect.void, "child of an ended one", { parent: first })
      }).pipe(Effect.withSpan("second", { links: [{ span: first, attributes: { why: "x" } }] }))
      yield* Effect.withSpan(Effect.void, "other root", { root: true })
    }))
    assert.strictEqual(recorder.spans.length, 6)
    assert.strictEqual(recorder.tree().length, 2)
  })

  it("have the server's span annotations and links, and obey its levels", () => {
    const other = new Recorder().tracer.span({
      name: "other",
      parent: Option.none(),
      annotations: Context.empty(),
      links: [],
      startTime: 0n,
      kind: "internal",
      root: true,
      sampled: true
    })
    const settings = Context.make(References.TracerSpanAnnotations, { region: "eu", zone: 1 }).pipe(
      Context.add(References.TracerSpanLinks, [{ span: other, attributes: {} }])
    )
    compare(Effect.withSpan(Effect.void, "a", { attributes: { region: "us" } }), settings)
    compare(Effect.withSpan(Effect.void, "a"), Context.make(References.TracerEnabled, false))
  })

  it("have the worker's times, and its failures", () => {
    const recorder = new Recorder()
    const handler = Effect.withSpan(Effect.die(new TypeError("x")), "a")
    runHandler(sides(server(recorder)), Effect.provideService(handler, Clock.Clock, clockAt(3)))
    const status: any = recorder.spans[0]!.status
    assert.deepStrictEqual([status.startTime, status.endTime], [3_000_000n, 3_000_000n])
    assert.instanceOf(Cause.squash(status.exit.cause), TypeError)
  })

  it("are seen in the server when they start", () => {
    const recorder = new Recorder()
    const names = Effect.sync(() => recorder.spans.map((span) => [span.name, span.status._tag]))
    const exit = runHandler(sides(server(recorder)), Effect.withSpan(names, "a"))
    assert.deepStrictEqual(exit, Exit.succeed([["a", "Started"]]))
  })

  it("continue the trace of a client whose span the server only knows by its ids", () => {
    const recorder = new Recorder()
    const external = Tracer.externalSpan({ spanId: "b".repeat(16), traceId: "a".repeat(32) })
    const context = Context.add(server(recorder), Tracer.ParentSpan, external) as Context.Context<never>
    runHandler(sides(context), Effect.withSpan(Effect.void, "a"), context)
    assert.strictEqual(recorder.spans[0]!.traceId, external.traceId)
    assert.strictEqual(Option.getOrUndefined(recorder.spans[0]!.parent), external)
  })

  it("cost no message without a tracer, or where they are not sampled", () => {
    const handler = Effect.withSpan(Effect.annotateCurrentSpan("a", 1), "a")
    const untraced = sides(Context.empty())
    requestSpan(
      Context.empty(),
      (context) => runHandler(untraced, Effect.andThen(Effect.annotateCurrentSpan("b", 1), handler), context)
    )
    assert.strictEqual(untraced.reports.length, 0)
    const unsampled = sides(server(new Recorder(), Context.make(References.MinimumTraceLevel, "None")))
    runHandler(unsampled, handler)
    assert.strictEqual(unsampled.reports.length, 0)
  })

  it("know the request's trace even without a tracer", () => {
    requestSpan(Context.empty(), (context) => {
      const { traceId } = Context.get(context as Context.Context<Tracer.ParentSpan>, Tracer.ParentSpan)
      const exit = runHandler(sides(context), Effect.withSpan(Effect.currentSpan, "a"), context)
      assert.deepStrictEqual(Exit.map(exit, (span: any) => span.traceId), Exit.succeed(traceId))
    })
  })

  it("that a request leaves open are ended with it, and forgotten", () => {
    const recorder = new Recorder()
    const worker = sides(server(recorder))
    const open = (name: string, request: number) =>
      Effect.runSyncWith(Context.add(worker.reporter.context, CurrentRequest, request))(Effect.makeSpan(name))
    open("of 1", 1)
    const other = open("of 2", 2)
    worker.receiver.requestEnded(1, Exit.die("crashed"))
    assert.deepStrictEqual(recorder.spans.map(({ status }) => status._tag), ["Ended", "Started"])
    assert.deepStrictEqual((recorder.spans[0]!.status as any).exit, Exit.die("crashed"))
    other.end(5n, Exit.void)
    assert.deepStrictEqual(recorder.spans[1]!.status, {
      _tag: "Ended",
      startTime: other.status.startTime,
      endTime: 5n,
      exit: Exit.void
    })
  })

  it("are bounded: the oldest of too many open ones is ended", () => {
    const recorder = new Recorder()
    const worker = sides(server(recorder))
    Effect.runSyncWith(worker.reporter.context)(
      Effect.forEach(Array.from({ length: 10_001 }), () => Effect.makeSpan("a"))
    )
    assert.strictEqual(recorder.spans.filter(({ status }) => status._tag === "Ended").length, 1)
    assert.strictEqual(recorder.spans[0]!.status._tag, "Ended")
  })

  it("with attributes that cannot be cloned have text there", () => {
    const recorder = new Recorder()
    runHandler(
      sides(server(recorder)),
      Effect.withSpan(Effect.void, "a", { attributes: { socket: process.stdout, f: () => 1, n: 1 } })
    )
    const { attributes } = recorder.spans[0]!
    assert.isString(attributes.get("socket"))
    assert.isString(attributes.get("f"))
    assert.strictEqual(attributes.get("n"), 1)
  })
})

it.live("all of it passes a real port, in order", () =>
  Effect.gen(function*() {
    const { port1, port2 } = new MessageChannel()
    yield* Effect.addFinalizer(() => Effect.sync(() => port1.close()))
    const recorder = new Recorder()
    const { entries, loggers } = logged()
    const server = loggers.pipe(
      Context.add(Tracer.Tracer, recorder.tracer),
      Context.add(Metric.MetricRegistry, new Map())
    )
    const receiver = makeReceiver(() => server)
    const reporter = makeReporter(structuredClone(reporterOptions(server)), (report) => port1.postMessage(report))
    const metric = Metric.counter("x", { bigint: true })
    yield* Effect.withSpan(Effect.andThen(Metric.update(metric, 2n), Effect.log("hello", new Error("x"))), "a").pipe(
      Effect.provideContext(reporter.context)
    )
    reporter.flush()
    port1.postMessage("end")
    yield* Effect.callback<void>((resume) => {
      port2.on("message", (message: Report | "end") => {
        if (message === "end") resume(Effect.void)
        else receiver.receive(message)
      })
    })
    assert.strictEqual(entries[0]!.span, "a")
    assert.instanceOf((entries[0]!.message as ReadonlyArray<unknown>)[1], Error)
    assert.strictEqual(metric.valueUnsafe(server).count, 2n)
    assert.strictEqual(recorder.spans[0]!.status._tag, "Ended")
  }))
