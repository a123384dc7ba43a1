/** The last line of a terminal, kept up to date while others write above it. */
import * as Effect from "effect/Effect"

/** What a server has moved, for its rates. */
export interface Moved {
  readonly accepted: number
  readonly bytesRead: number
  readonly bytesWritten: number
}

/** From one look to the next: how much a second. */
export const ratesSince = () => {
  const before = new Map<string, Moved & { readonly at: number }>()
  return (name: string, { accepted, bytesRead, bytesWritten }: Moved, at: number): Moved => {
    const last = before.get(name)
    before.set(name, { accepted, bytesRead, bytesWritten, at })
    const seconds = last === undefined ? 0 : (at - last.at) / 1000
    const rate = (now: number, then: number) => seconds > 0 ? Math.max(0, now - then) / seconds : 0
    return {
      accepted: rate(accepted, last?.accepted ?? 0),
      bytesRead: rate(bytesRead, last?.bytesRead ?? 0),
      bytesWritten: rate(bytesWritten, last?.bytesWritten ?? 0)
    }
  }
}

/** Is the output one that can write over what is there? */
export const isTerminal = (): boolean => process.stdout.isTTY && process.env["TERM"] !== "dumb"

const clear = "\r\u001b[2K"

/**
 * Shows a line below all that is written. Whoever writes, a handler by `console.log` too, writes where the line is: it goes
 * before, and comes again after.
 */
export const statusLine = Effect.gen(function*() {
  let text = ""
  let atLineStart = true
  const real = process.stdout.write.bind(process.stdout)
  const draw = () => {
    if (atLineStart && text !== "") real(`${clear}${text.slice(0, (process.stdout.columns || 80) - 1)}`)
  }
  const around =
    (write: typeof process.stdout.write): typeof process.stdout.write => (chunk: any, ...rest: Array<any>) => {
      if (atLineStart && text !== "") real(clear)
      const result = (write as any)(chunk, ...rest)
      atLineStart = typeof chunk === "string" ? chunk.endsWith("\n") : chunk[chunk.length - 1] === 10
      draw()
      return result
    }
  const hide = () => {
    if (text !== "" && atLineStart) real(clear)
    text = ""
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const error = process.stderr.write.bind(process.stderr)
      process.stdout.write = around(real)
      if (process.stderr.isTTY) process.stderr.write = around(error)
      return error
    }),
    (error) =>
      Effect.sync(() => {
        hide()
        process.stdout.write = real
        process.stderr.write = error
      })
  )
  return {
    show: (line: string) => {
      text = line
      draw()
    },
    hide
  }
})
