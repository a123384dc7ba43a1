import * as Context from "effect/Context"
export type Report = { readonly _tag: "None" }
export type EncodedSpan = { readonly spanId: string }
export const CurrentRequest = Context.Reference<number | undefined>("@socketserver/node/CurrentRequest", {
  defaultValue: () => undefined
})
export const makeReporter = (_options: unknown, _post: (report: Report) => void) => ({
  context: Context.empty(),
  flush: () => {}
})
export const makeReceiver = (_contextOf: (id: number | undefined) => Context.Context<never>) => (_report: Report) => {}
export const encodeSpan = (_context: Context.Context<never>): EncodedSpan | undefined => undefined
export const spanContext = (_span: EncodedSpan): Context.Context<never> => Context.empty()
export const reporterSettings = (_context: Context.Context<never>) => ({ minimumLogLevel: "Info", tracing: false })
