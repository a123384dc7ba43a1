/**
 * A limit that every process has: how many descriptors it may have open. Node hides it. Beyond the limit it accepts clients and
 * closes them at once, without an event; and a handler that opens a file fails for no fault of its own. So sockets are
 * counted, and some way before the limit clients are refused where it can be seen.
 */
import type { Gate, Step } from "@socketserver/core/Admission"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"

let open = 0
let most = Number.POSITIVE_INFINITY
const gates = new Set<Gate>()

/** One of them is with another process now. */
export const movedAway = (): void => closed()

/** What was moved away has come to its end, and will be counted as closed. */
export const movedBack = (): void => opened()

const opened = (): void => {
  if (++open === most) tell(true)
}

const closed = (): void => {
  if (open-- === most) tell(false)
}

const tell = (isSaturated: boolean): void => {
  for (const gate of gates) gate.setSaturated(isSaturated)
}

/**
 * What is left for sockets: the limit, without what is open for other purposes now, and without a reserve of a sixteenth, 16 to
 * 1,024, for what handlers will open.
 */
const budget = (): number => {
  const limit = softLimit()
  if (limit === undefined) return Number.POSITIVE_INFINITY
  const reserve = Math.min(Math.max(Math.ceil(limit / 16), 16), 1_024)
  return Math.max(limit - otherDescriptors() - reserve, 1)
}

/** Node has raised it to the hard limit when it started. Only Linux tells it without native code. */
const softLimit = (): number | undefined => {
  const limit = Number(/^Max open files +(\d+)/m.exec(readText("/proc/self/limits"))?.[1])
  return Number.isInteger(limit) ? limit : undefined
}

const readText = (path: string): string => {
  try {
    return Fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const otherDescriptors = (): number => {
  try {
    return Math.max(Fs.readdirSync("/proc/self/fd").length - open, 0)
  } catch {
    return 0
  }
}

/** For every transport that accepts sockets: one budget for all of them. */
export const step: Step = {
  policy: "descriptors",
  check: (_, ticket) => {
    if (open >= most) return refused
    opened()
    ticket.whenReleased(closed)
    return true
  },
  start: (gate) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        gates.add(gate)
        most = budget()
        tell(open >= most)
      }),
      () => Effect.sync(() => gates.delete(gate))
    )
}

const refused = { farewell: undefined }
