/** Options are checked before anything is opened; what is wrong is a `ListenError` that names the option. */
import { InvalidOption, ListenError } from "@socketserver/core/ListenError"
import * as Effect from "effect/Effect"

export const invalid = (option: string, value: unknown, expected: string) =>
  Effect.fail(new ListenError({ reason: new InvalidOption({ option, value, expected }) }))

export const checkInteger = (option: string, value: number | undefined, least: number, most: number) =>
  value === undefined || (Number.isInteger(value) && value >= least && value <= most)
    ? Effect.void
    : invalid(option, value, `an integer from ${least} to ${most}`)

/** Without the keys whose value is `undefined`: Node takes those for wrong values. */
export const defined = <A extends object>(options: A): { [K in keyof A]?: Exclude<A[K], undefined> } =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as any
