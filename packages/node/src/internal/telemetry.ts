/**
 * What a handler logs, counts and traces in a worker happens in the server's process, as if the handler ran there: with the
 * server's loggers, metric registry and tracer. In the worker a reporter stands for those three and posts what they are told,
 * in order; in the server a receiver tells it to the real ones, in the context of the request that it belongs to.
 *
 * Logs and the starts and ends of spans are posted at once, so that a worker that crashes leaves a trail. What is frequent,
 * metric updates and attributes and events of spans, waits for them, for `flush`, for a full batch or for a moment.
 *
 * Two things cannot be as inline. A span's id in the worker is not its original's, which the server's tracer has chosen later:
 * a handler that passes its span on to another service passes the right trace, but a span that nobody has. And a metric that
 * is read in a worker tells what that worker has counted.
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { decodeCause, decodeExit, encodeCause, type EncodedCause, type EncodedExit, encodeExit } from "./exits.ts"
import { describeMetric, freshHooks, type MetricDescription, metricOf } from "./metrics.ts"
import { decodeValue, type EncodedValue, encodeValue } from "./values.ts"

/** The request that a fiber in a worker works for, if it works for one. */
export const CurrentRequest = Context.Reference<number | undefined>("~socketserver/node/CurrentRequest", {
  defaultValue: () => undefined
})

/** A span as the other side knows it. `own` is there when handlers may annotate it: it is no external span. */
export interface EncodedSpan {
  readonly spanId: string
  readonly traceId: string
  readonly sampled: boolean
  readonly own?: { readonly name: string; readonly kind: Tracer.SpanKind; readonly startTime: bigint }
}

interface EncodedLink {
  readonly span: EncodedSpan
  readonly attributes: EncodedValue
}

interface LogEntry {
  readonly _tag: "Log"
  readonly request: number | undefined
  readonly time: bigint
  readonly date: number
  readonly level: LogLevel.LogLevel
  /** Where the handler has set another minimum than it was given: that one counts. */
  readonly minimumLevel: LogLevel.LogLevel | undefined
  readonly message: EncodedValue
  readonly cause: EncodedCause
  readonly annotations: EncodedValue
  readonly spans: ReadonlyArray<[label: string, timestamp: number]>
  readonly span: EncodedSpan | undefined
  readonly fiber: number
}

interface SpanStartEntry {
  readonly _tag: "SpanStart"
  readonly request: number | undefined
  readonly span: EncodedSpan
  readonly parent: EncodedSpan | undefined
  readonly root: boolean
  readonly name: string
  readonly kind: Tracer.SpanKind
  readonly startTime: bigint
  readonly links: ReadonlyArray<EncodedLink>
}

/** Something that a span is told while it is open. */
interface SpanEntry {
  readonly request: number | undefined
  readonly span: EncodedSpan
}

type Entry =
  | LogEntry
  | SpanStartEntry
  | SpanEntry & { readonly _tag: "SpanAttribute"; readonly key: string; readonly value: EncodedValue }
  | SpanEntry & {
    readonly _tag: "SpanEvent"
    readonly name: string
    readonly time: bigint
    readonly attributes: EncodedValue
  }
  | SpanEntry & { readonly _tag: "SpanLinks"; readonly links: ReadonlyArray<EncodedLink> }
  | SpanEntry & { readonly _tag: "SpanEnd"; readonly endTime: bigint; readonly exit: EncodedExit }
  | {
    readonly _tag: "Metric"
    readonly request: number | undefined
    /** One object for all updates of a report: a structured clone keeps it one. */
    readonly metric: MetricDescription
    readonly operation: "update" | "modify"
    readonly input: EncodedValue
  }

/** What a worker posts: some of what happened, in order. */
export type Report = ReadonlyArray<Entry>

/** What a worker has to know of the server's context before the first request. */
export interface ReporterOptions {
  /** Is there a tracer to report to? */
  readonly tracing: boolean
  /** The values of `inherited`. */
  readonly references: ReadonlyArray<any>
}

/** Settings of the server that decide in the handler's fiber what is logged and traced, and how it is counted. */
const inherited: ReadonlyArray<Context.Reference<any>> = [
  References.CurrentLogLevel,
  References.MinimumLogLevel,
  References.UnhandledLogLevel,
  References.CurrentTraceLevel,
  References.MinimumTraceLevel,
  References.TracerEnabled,
  References.TracerTimingEnabled,
  Metric.CurrentMetricAttributes
]

/** In the server's process: the options for the reporters of its workers. */
export const reporterOptions = (context: Context.Context<never>): ReporterOptions => ({
  tracing: Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer,
  references: inherited.map((reference) => Context.get(context, reference))
})

/** The span that spans which are started under `context` become children of. */
const parentSpan = (context: Context.Context<never>): Tracer.AnySpan | undefined => {
  let span: Tracer.AnySpan | undefined = Context.getOrUndefined(context, Tracer.ParentSpan)
  while (span !== undefined && Context.get(span.annotations, Tracer.DisablePropagation)) {
    span = span._tag === "Span" ? Option.getOrUndefined(span.parent) : undefined
  }
  return span
}

const idsOf = ({ sampled, spanId, traceId }: Tracer.AnySpan): EncodedSpan => ({ spanId, traceId, sampled })

/** In the server's process: the span of the request whose context it is, if there is one, for `spanContext` of its worker. */
export const encodeSpan = (context: Context.Context<never>): EncodedSpan | undefined => {
  const span = parentSpan(context)
  if (span?._tag !== "Span") return span && idsOf(span)
  return { ...idsOf(span), own: { name: span.name, kind: span.kind, startTime: span.status.startTime } }
}

/** A batch is posted when it has so many entries, or is so many milliseconds old. */
const batchSize = 1_000
const batchAge = 100

class Outbox {
  private batch: Array<Entry> = []
  private timer: NodeJS.Timeout | undefined
  private readonly post: (report: Report) => void

  constructor(post: (report: Report) => void) {
    this.post = post
  }

  add(entry: Entry): void {
    this.batch.push(entry)
    if (this.batch.length >= batchSize) this.flush()
    else this.timer ??= setTimeout(() => this.flush(), batchAge).unref()
  }

  send(entry: Entry): void {
    this.batch.push(entry)
    this.flush()
  }

  flush(): void {
    clearTimeout(this.timer)
    this.timer = undefined
    if (this.batch.length === 0) return
    const { batch } = this
    this.batch = []
    this.post(batch)
  }
}

const encodeLinks = (links: ReadonlyArray<Tracer.SpanLink>): ReadonlyArray<EncodedLink> =>
  links.map(({ attributes, span }) => ({ span: idsOf(span), attributes: encodeValue(attributes) }))

type SpanOptions = Parameters<Tracer.Tracer["span"]>[0]

/** A span of the server's process, in the worker: what it is told, its original is told. It is ended where it was started. */
class RemoteSpan extends Tracer.NativeSpan {
  protected readonly outbox: Outbox | undefined
  readonly request: number | undefined

  constructor(options: SpanOptions, request: number | undefined, outbox: Outbox | undefined) {
    super(options)
    this.request = request
    this.outbox = outbox
  }

  protected get entry(): SpanEntry {
    return { request: this.request, span: idsOf(this) }
  }

  override end(_endTime: bigint, _exit: Exit.Exit<unknown, unknown>): void {}

  override attribute(key: string, value: unknown): void {
    if (this.status._tag === "Ended") return
    super.attribute(key, value)
    this.outbox?.add({ _tag: "SpanAttribute", ...this.entry, key, value: encodeValue(value) })
  }

  override event(name: string, time: bigint, attributes?: Record<string, unknown>): void {
    if (this.status._tag === "Ended") return
    this.outbox?.add({ _tag: "SpanEvent", ...this.entry, name, time, attributes: encodeValue(attributes) })
  }

  override addLinks(links: ReadonlyArray<Tracer.SpanLink>): void {
    if (this.status._tag === "Ended") return
    super.addLinks(links)
    this.outbox?.add({ _tag: "SpanLinks", ...this.entry, links: encodeLinks(links) })
  }
}

/** A span that was started in the worker. */
class ReportedSpan extends RemoteSpan {
  constructor(options: SpanOptions, request: number | undefined, outbox: Outbox) {
    super(options, request, outbox)
    const { kind, name, parent, root, startTime } = options
    outbox.send({
      _tag: "SpanStart",
      ...this.entry,
      parent: Option.getOrUndefined(Option.map(parent, idsOf)),
      root,
      name,
      kind,
      startTime,
      links: encodeLinks(options.links)
    })
  }

  override end(endTime: bigint, exit: Exit.Exit<unknown, unknown>): void {
    if (this.status._tag === "Ended") return
    this.status = { _tag: "Ended", startTime: this.status.startTime, endTime, exit }
    // Tracers look at failures only, and what has succeeded may be anything, of any size.
    this.outbox?.send({ _tag: "SpanEnd", ...this.entry, endTime, exit: encodeExit(Exit.asVoid(exit)) })
  }
}

const tracerOf = (outbox: Outbox): Tracer.Tracer =>
  Tracer.make({
    span: (options) =>
      options.sampled
        // A tracer is not told for whom it starts a span, but it is called by the fiber that does.
        ? new ReportedSpan(options, Fiber.getCurrent()?.getRef(CurrentRequest), outbox)
        : Tracer.nativeTracer.span(options)
  })

const loggerOf = (outbox: Outbox, minimum: LogLevel.LogLevel): Logger.Logger<unknown, void> =>
  Logger.make(({ cause, date, fiber, logLevel, message }) => {
    const minimumHere = fiber.getRef(References.MinimumLogLevel)
    outbox.send({
      _tag: "Log",
      request: fiber.getRef(CurrentRequest),
      time: fiber.getRef(Clock.Clock).currentTimeNanosUnsafe(),
      date: date.getTime(),
      level: logLevel,
      minimumLevel: minimumHere === minimum ? undefined : minimumHere,
      message: encodeValue(message),
      cause: encodeCause(cause),
      annotations: encodeValue(fiber.getRef(References.CurrentLogAnnotations)),
      spans: fiber.getRef(References.CurrentLogSpans),
      span: fiber.cache.span && idsOf(fiber.cache.span),
      fiber: fiber.id
    })
  })

/** Metrics are counted here too, so that a handler reads what its worker has counted. */
class ReportingRegistry extends Map<string, Metric.Metric.Metadata<any, any>> {
  private readonly outbox: Outbox

  constructor(outbox: Outbox) {
    super()
    this.outbox = outbox
  }

  /** A metric registers itself by this, and then goes on with the hooks of the very object that it has passed. */
  override set(key: string, metadata: Metric.Metric.Metadata<any, any>): this {
    const metric = describeMetric(metadata)
    if (metric === undefined) return super.set(key, metadata)
    const hooks = freshHooks(metric)
    const reporting = (operation: "update" | "modify") => (input: unknown, context: Context.Context<never>) => {
      hooks[operation](input, context)
      const request = Context.get(context, CurrentRequest)
      this.outbox.add({ _tag: "Metric", request, metric, operation, input: encodeValue(input) })
    }
    const update = reporting("update")
    const modify = reporting("modify")
    return super.set(key, Object.assign(metadata, { hooks: { get: hooks.get, update, modify } }))
  }
}

/** The worker's side. */
export interface Reporter {
  /** To be merged into the context that handlers run in. */
  readonly context: Context.Context<never>
  /** The span of a request, as its parent span. A request without one has an empty context. */
  readonly spanContext: (span: EncodedSpan | undefined, request: number | undefined) => Context.Context<never>
  /** Posts what still waits. Due before a request's result is posted. */
  readonly flush: () => void
}

/** Reports to `post` what the fibers of its `context` log, count and trace. */
export const makeReporter = (options: ReporterOptions, post: (report: Report) => void): Reporter => {
  const outbox = new Outbox(post)
  let context = Context.make(Metric.MetricRegistry, new ReportingRegistry(outbox))
  inherited.forEach((reference, i) => {
    context = Context.add(context, reference, options.references[i])
  })
  const logger = loggerOf(outbox, Context.get(context, References.MinimumLogLevel))
  context = Context.add(context, References.CurrentLoggers, new Set([logger]))
  if (options.tracing) context = Context.add(context, Tracer.Tracer, tracerOf(outbox))
  return {
    context,
    spanContext: (span, request) => {
      if (span === undefined) return Context.empty()
      if (span.own === undefined) return parentContext(Tracer.externalSpan(span))
      const remote = new RemoteSpan(
        {
          ...span.own,
          parent: Option.none(),
          annotations: Context.empty(),
          links: [],
          root: false,
          sampled: span.sampled
        },
        request,
        options.tracing && span.sampled ? outbox : undefined
      )
      remote._spanId = span.spanId
      remote._traceId = span.traceId
      return parentContext(remote)
    },
    flush: () => outbox.flush()
  }
}

/** A parent span is a service by its type, but one that fibers look for without requiring it. */
const parentContext = (span: Tracer.AnySpan): Context.Context<never> =>
  Context.make(Tracer.ParentSpan, span) as Context.Context<never>

/** Open spans beyond this many are ended, the oldest first; of ended ones, which others may refer to, fewer are kept. */
const maxOpenSpans = 10_000
const maxEndedSpans = 256

interface ReceivedSpan {
  readonly span: Tracer.Span
  readonly request: number | undefined
}

/** The server's side. */
export interface Receiver {
  readonly receive: (report: Report) => void
  /** Ends the spans that a request (or, with `undefined`, the worker itself) has left open, because of a crash mostly. */
  readonly requestEnded: (request: number | undefined, exit: Exit.Exit<unknown, unknown>) => void
}

/**
 * Logs, counts and traces what the reporters of workers report. `contextOf` gives the context of the server's fiber that
 * waits for a request, or of the server for what no request has caused. Requests have ids of their own among all workers
 * of a receiver.
 */
export const makeReceiver = (
  contextOf: (request: number | undefined) => Context.Context<never>
): Receiver => {
  /** By the span's id in the worker: its original has another one. */
  const open = new Map<string, ReceivedSpan>()
  const ended = new Map<string, ReceivedSpan>()

  const end = (spanId: string, received: ReceivedSpan, endTime: bigint, exit: Exit.Exit<unknown, unknown>): void => {
    open.delete(spanId)
    if (ended.size >= maxEndedSpans) ended.delete(firstKey(ended)!)
    ended.set(spanId, received)
    received.span.end(endTime, exit)
  }

  const now = (request: number | undefined): bigint => {
    const context = contextOf(request)
    const timing = Context.get(context, References.TracerTimingEnabled)
    return timing ? Context.get(context, Clock.Clock).currentTimeNanosUnsafe() : 0n
  }

  const spanOf = (span: EncodedSpan, context: Context.Context<never>): Tracer.AnySpan => {
    const received = open.get(span.spanId) ?? ended.get(span.spanId)
    if (received !== undefined) return received.span
    const parent = parentSpan(context)
    return parent?.spanId === span.spanId ? parent : Tracer.externalSpan(span)
  }

  const linksOf = (links: ReadonlyArray<EncodedLink>, context: Context.Context<never>): Array<Tracer.SpanLink> =>
    links.map(({ attributes, span }) => ({ span: spanOf(span, context), attributes: decodeValue(attributes) }))

  const startSpan = (entry: SpanStartEntry, context: Context.Context<never>): void => {
    const span = Context.get(context, Tracer.Tracer).span({
      name: entry.name,
      parent: Option.map(Option.fromUndefinedOr(entry.parent), (parent) => spanOf(parent, context)),
      annotations: Context.empty(),
      links: [...Context.get(context, References.TracerSpanLinks), ...linksOf(entry.links, context)],
      startTime: entry.startTime,
      kind: entry.kind,
      root: entry.root,
      sampled: entry.span.sampled
    })
    const annotations = Context.get(context, References.TracerSpanAnnotations)
    for (const key of Object.keys(annotations)) span.attribute(key, annotations[key])
    if (open.size >= maxOpenSpans) {
      const oldest = firstKey(open)!
      const received = open.get(oldest)!
      end(oldest, received, now(received.request), Exit.interrupt())
    }
    open.set(entry.span.spanId, { span, request: entry.request })
  }

  const receive = (entry: Entry): void => {
    const context = contextOf(entry.request)
    switch (entry._tag) {
      case "Log":
        return log(entry, context, entry.span && spanOf(entry.span, context))
      case "Metric":
        // The attributes of the context are among the metric's already.
        return metricOf(entry.metric)[entry.operation === "update" ? "updateUnsafe" : "modifyUnsafe"](
          decodeValue(entry.input),
          Context.add(context, Metric.CurrentMetricAttributes, noAttributes)
        )
      case "SpanStart":
        return startSpan(entry, context)
    }
    if (entry._tag === "SpanEnd") {
      const received = open.get(entry.span.spanId)
      return received && end(entry.span.spanId, received, entry.endTime, decodeExit(entry.exit))
    }
    const span = spanOf(entry.span, context)
    if (span._tag !== "Span") return
    switch (entry._tag) {
      case "SpanAttribute":
        return span.attribute(entry.key, decodeValue(entry.value))
      case "SpanEvent":
        return span.event(entry.name, entry.time, decodeValue(entry.attributes))
      case "SpanLinks":
        return span.addLinks(linksOf(entry.links, context))
    }
  }

  return {
    receive: (report) => report.forEach(receive),
    requestEnded: (request, exit) => {
      // Children first, as they would end inline.
      for (const [spanId, received] of Array.from(open).toReversed()) {
        if (received.request === request) end(spanId, received, now(request), exit)
      }
      for (const [spanId, received] of ended) {
        if (received.request === request) ended.delete(spanId)
      }
    }
  }
}

/** Always the same, by which metrics know that their key is still the same. */
const noAttributes: Metric.Metric.AttributeSet = {}

const firstKey = <K>(map: ReadonlyMap<K, unknown>): K | undefined => {
  for (const key of map.keys()) return key
  return undefined
}

/** Calls the loggers of `context` as the runtime does, from a fiber that has what they look for: annotations, spans, time. */
const log = (entry: LogEntry, context: Context.Context<never>, span: Tracer.AnySpan | undefined): void => {
  const minimum = entry.minimumLevel ?? Context.get(context, References.MinimumLogLevel)
  if (LogLevel.isGreaterThan(minimum, entry.level)) return
  const cause: Cause.Cause<unknown> = decodeCause(entry.cause)
  const message: unknown = decodeValue(entry.message)
  const annotations: Record<string, unknown> = decodeValue(entry.annotations)
  const fiberContext = context.pipe(
    Context.add(References.CurrentLogAnnotations, {
      ...Context.get(context, References.CurrentLogAnnotations),
      ...annotations
    }),
    Context.add(References.CurrentLogSpans, [...entry.spans, ...Context.get(context, References.CurrentLogSpans)]),
    Context.add(Clock.Clock, clockAt(Context.get(context, Clock.Clock), entry)),
    // A fiber that only carries a context is none of those that are counted.
    Context.add(Metric.FiberRuntimeMetrics, undefined),
    span === undefined ? (context) => context : Context.merge(parentContext(span))
  )
  Effect.runForkWith(fiberContext)(Effect.withFiber((self) => {
    // Lines of one fiber have one id, as inline.
    const fiber = Object.create(self, { id: { value: entry.fiber } })
    for (const logger of Context.get(context, References.CurrentLoggers)) {
      logger.log({ message, logLevel: entry.level, cause, fiber, date: new Date(entry.date) })
    }
    return Effect.void
  }))
}

/** Loggers that ask for the time, as the one that makes events of spans does, mean the time of the log call. */
const clockAt = (clock: Clock.Clock, { date, time }: LogEntry): Clock.Clock =>
  Object.create(clock, {
    currentTimeMillisUnsafe: { value: () => date },
    currentTimeNanosUnsafe: { value: () => time }
  })
