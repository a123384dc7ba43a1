/** What keeps a command from what it was asked to do: one line for people, and the exit code. */
import * as Data from "effect/Data"

export class Problem extends Data.TaggedError("Problem")<{
  readonly message: string
  /** 1: it did not work. 2: it was not asked for in the right way. 127: there is no such command to run. */
  readonly exitCode: number
}> {}

export const failure = (message: string): Problem => new Problem({ message, exitCode: 1 })

export const misuse = (message: string): Problem => new Problem({ message, exitCode: 2 })

/** Node's errors are in the `cause` of some that have no message of their own. */
export const oneLine = (error: unknown): string => {
  const { cause, message } = error instanceof Error ? error : { message: String(error), cause: undefined }
  return (message || (cause instanceof Error ? cause.message : String(cause))).replaceAll(/\s+/g, " ").trim()
}
