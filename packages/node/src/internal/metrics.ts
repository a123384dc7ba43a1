/**
 * A metric as data: what it takes to have the same one in another process. A registry only has a metric's name and its
 * `hooks`, which hide how it was made; but hooks that were never updated tell it by their state.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import { constVoid } from "effect/Function"
import * as Metric from "effect/Metric"
import { encodeValue } from "./values.ts"

/** How a metric is called, and made. */
export type MetricDescription =
  & {
    readonly id: string
    readonly description: string | undefined
    readonly attributes: Metric.Metric.AttributeSet | undefined
  }
  & (
    | { readonly type: "Counter"; readonly bigint: boolean; readonly incremental: boolean }
    | { readonly type: "Gauge"; readonly bigint: boolean }
    | { readonly type: "Frequency"; readonly preregisteredWords: ReadonlyArray<string> }
    | { readonly type: "Histogram"; readonly boundaries: ReadonlyArray<number> }
    | {
      readonly type: "Summary"
      readonly maxAge: number
      readonly maxSize: number
      readonly quantiles: ReadonlyArray<number>
    }
  )

type Hooks = Metric.Metric.Hooks<any, any>

/** `undefined` for a metric whose value is computed when it is asked for: it is never updated. */
export const describeMetric = (
  { attributes, description, hooks, id, type }: Metric.Metric.Metadata<any, any>
): MetricDescription | undefined => {
  if (hooks.update === constVoid) return undefined
  const state = hooks.get(Context.empty())
  const name = { id, description, attributes: encodeValue(attributes) as typeof attributes }
  switch (type) {
    case "Counter":
      return { ...name, type, bigint: typeof state.count === "bigint", incremental: state.incremental }
    case "Gauge":
      return { ...name, type, bigint: typeof state.value === "bigint" }
    case "Frequency":
      return { ...name, type, preregisteredWords: Array.from(state.occurrences.keys()) }
    case "Histogram":
      return { ...name, type, boundaries: state.buckets.map(([boundary]: [number, number]) => boundary) }
    case "Summary": {
      const quantiles: ReadonlyArray<number> = state.quantiles.map(([quantile]: [number, unknown]) => quantile)
      return { ...name, type, quantiles, maxSize: probeMaxSize(hooks), maxAge: probeMaxAge(hooks) }
    }
  }
}

/** A summary keeps the last `maxSize` observations, and compares the time of each with the clock when it is read. */
const probeMaxSize = (hooks: Hooks): number => {
  let seen = 0
  // `NaN` is of no age: such an observation is in no quantile.
  const timestamp = {
    valueOf: () => {
      seen++
      return Number.NaN
    }
  }
  let observations = 0
  do {
    for (const count = Math.max(1, observations * 2); observations < count; observations++) {
      hooks.update([0, timestamp], Context.empty())
    }
    seen = 0
    hooks.get(Context.empty())
  } while (seen === observations)
  return seen
}

/** The highest age at which an observation still counts: found by halving, to the last bit. */
const probeMaxAge = (hooks: Hooks): number => {
  hooks.update([0, 0], Context.empty())
  const counts = (age: number): boolean => {
    const clock: Clock.Clock = Object.create(Context.get(Context.empty(), Clock.Clock), {
      currentTimeMillisUnsafe: { value: () => age }
    })
    return hooks.get(Context.make(Clock.Clock, clock)).quantiles.some(([, value]: [number, unknown]) =>
      value !== undefined
    )
  }
  if (counts(Number.POSITIVE_INFINITY)) return Number.POSITIVE_INFINITY
  let most = 0
  let tooMuch = 1
  while (counts(tooMuch)) {
    most = tooMuch
    tooMuch *= 2
  }
  for (let age = most;;) {
    age = most + (tooMuch - most) / 2
    if (age === most || age === tooMuch) return most
    if (counts(age)) most = age
    else tooMuch = age
  }
}

const make = (description: MetricDescription): Metric.Metric<any, any> => {
  switch (description.type) {
    case "Counter":
      return Metric.counter(description.id, description as any)
    case "Gauge":
      return Metric.gauge(description.id, description as any)
    case "Frequency":
      return Metric.frequency(description.id, description)
    case "Histogram":
      return Metric.histogram(description.id, description)
    case "Summary":
      return Metric.summaryWithTimestamp(description.id, description)
  }
}

const made = new WeakMap<MetricDescription, Metric.Metric<any, any>>()

/** The metric that is described. A summary's input is the one of `Metric.summaryWithTimestamp`. */
export const metricOf = (description: MetricDescription): Metric.Metric<any, any> => {
  let metric = made.get(description)
  if (metric === undefined) {
    metric = make(description)
    made.set(description, metric)
  }
  return metric
}

/** Hooks of the metric's that were never updated: describing it may have updated its own. */
export const freshHooks = (description: MetricDescription): Hooks => {
  const registry: Metric.MetricRegistry = new Map()
  make(description).valueUnsafe(Context.make(Metric.MetricRegistry, registry))
  return Array.from(registry.values())[0]!.hooks
}
