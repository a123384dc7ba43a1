/** Options are checked before anything is opened; what is wrong is a `ListenError` that names the option. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { InvalidOption, ListenError } from "../ListenError.ts"

export const invalidOption = (option: string, value: unknown, expected: string): ListenError =>
  new ListenError({ reason: new InvalidOption({ option, value, expected }) })

/** `undefined` passes: the option was not given. */
export const checkInteger = (
  option: string,
  value: number | undefined,
  least: number,
  most = Number.MAX_SAFE_INTEGER
): Effect.Effect<void, ListenError> =>
  value === undefined || (Number.isSafeInteger(value) && value >= least && value <= most)
    ? Effect.void
    : Effect.fail(
      invalidOption(
        option,
        value,
        most === Number.MAX_SAFE_INTEGER ? `an integer, ${least} or more` : `an integer from ${least} to ${most}`
      )
    )

/** In milliseconds. With one of 0, nobody could ever keep it: where 0 means none elsewhere, here it is a mistake. */
export const checkDeadline = (option: string, value: Duration.Input): Effect.Effect<number, ListenError> =>
  Effect.flatMap(checkDuration(option, value), (duration) =>
    Duration.isZero(duration)
      ? Effect.fail(invalidOption(option, value, "a duration of more than 0, such as \"20 seconds\""))
      : Effect.succeed(Duration.toMillis(duration)))

export const checkDuration = (
  option: string,
  value: Duration.Input
): Effect.Effect<Duration.Duration, ListenError> => {
  // `Duration` reads NaN as zero.
  const duration = Number.isNaN(value) ? Option.none() : Duration.fromInput(value)
  return Option.isSome(duration) && !Duration.isNegative(duration.value)
    ? Effect.succeed(duration.value)
    : Effect.fail(invalidOption(option, value, "a duration of 0 or more, such as \"20 seconds\""))
}
