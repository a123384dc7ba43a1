/**
 * How a request ended, or what a task returned, on its way from a worker: an `Exit` as data for a structured clone. All
 * reasons of a failure arrive in their order, failures, defects and interruptions, with errors as `values.ts` rebuilds them:
 * `Cause.Done` and the errors of Effect and of this project as what they are, others as errors with their `_tag`, message,
 * stack, cause and fields. Only a schema can bring a user's error class back: with one, the failures that it covers are
 * encoded with it.
 */
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { decodeValue, type EncodedValue, encodeValue } from "./values.ts"

/** A codec of errors that needs no services. */
export type ErrorSchema = Schema.Codec<any, any>

/** A cause as data. `bySchema` has the places among its reasons of the failures that the schema has encoded. */
export interface EncodedCause {
  readonly cause: EncodedValue
  readonly bySchema: ReadonlyArray<number>
}

/** An exit as data. */
export type EncodedExit =
  | { readonly _tag: "Success"; readonly value: EncodedValue }
  | { readonly _tag: "Failure"; readonly cause: EncodedCause }

const withError = (reason: Cause.Fail<unknown>, error: unknown): Cause.Reason<unknown> =>
  Cause.makeFailReason(error).annotate(Cause.reasonAnnotations(reason))

export const encodeCause = (cause: Cause.Cause<unknown>, errorSchema?: ErrorSchema): EncodedCause => {
  if (errorSchema === undefined || !Cause.hasFails(cause)) return { cause: encodeValue(cause), bySchema: [] }
  const encodeError = Schema.encodeUnknownExit(errorSchema)
  const bySchema: Array<number> = []
  const reasons = cause.reasons.map((reason, i) => {
    if (!Cause.isFailReason(reason)) return reason
    // Not all failures need be of the schema's: reads of the connection fail too.
    const encoded = attempt(() =>
      Exit.map(
        encodeError(reason.error),
        (error) => ({ error, stack: reason.error instanceof Error && reason.error.stack })
      )
    )
    if (Exit.isFailure(encoded)) return reason
    bySchema.push(i)
    return withError(reason, encoded.value)
  })
  return { cause: encodeValue(Cause.fromReasons(reasons)), bySchema }
}

/** A failure that its schema does not decode again is a defect. */
export const decodeCause = ({ bySchema, cause }: EncodedCause, errorSchema?: ErrorSchema): Cause.Cause<unknown> => {
  const decoded: Cause.Cause<any> = decodeValue(cause)
  if (errorSchema === undefined || bySchema.length === 0) return decoded
  const decodeError = Schema.decodeUnknownExit(errorSchema)
  return Cause.fromReasons(decoded.reasons.flatMap((reason, i): ReadonlyArray<Cause.Reason<unknown>> => {
    if (!Cause.isFailReason(reason) || !bySchema.includes(i)) return [reason]
    const { error, stack } = reason.error
    const exit = attempt(() => decodeError(error))
    if (Exit.isFailure(exit)) return Cause.die(Cause.squash(exit.cause)).reasons
    if (exit.value instanceof Error && typeof stack === "string") exit.value.stack = stack
    return [withError(reason, exit.value)]
  }))
}

/** Schemas fail as they should; the user's code in them may throw. */
const attempt = <A>(evaluate: () => Exit.Exit<A, unknown>): Exit.Exit<A, unknown> => {
  try {
    return evaluate()
  } catch (error) {
    return Exit.die(error)
  }
}

/** Never throws, whatever the exit has. */
export const encodeExit = (exit: Exit.Exit<unknown, unknown>, errorSchema?: ErrorSchema): EncodedExit =>
  Exit.isSuccess(exit)
    ? { _tag: "Success", value: encodeValue(exit.value) }
    : { _tag: "Failure", cause: encodeCause(exit.cause, errorSchema) }

export const decodeExit = (encoded: EncodedExit, errorSchema?: ErrorSchema): Exit.Exit<unknown, unknown> =>
  encoded._tag === "Success"
    ? Exit.succeed(decodeValue(encoded.value))
    : Exit.failCause(decodeCause(encoded.cause, errorSchema))
