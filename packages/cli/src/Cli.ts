/**
 * The command `socketserver`: serves any handler module, runs a command for each connection, and operates programs that run. It
 * is an Effect `Command`, so that it can be part of another one.
 *
 * @since 0.1.0
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Logging from "@socketserver/core/Logging"
import { Cause, Console, Effect, Exit } from "effect"
import { CliConfig, CliError, CliOutput, Command, GlobalFlag } from "effect/cli"
import { readFileSync } from "node:fs"
import * as operate from "./internal/operate.ts"
import { oneLine, Problem } from "./internal/problem.ts"
import { exec, serve } from "./internal/serve.ts"

const subcommands = [
  serve,
  exec,
  operate.top,
  operate.connections,
  operate.kill,
  operate.drain,
  operate.suspend,
  operate.resume,
  operate.limits,
  operate.events
] as const

/**
 * The command, with all that it can do.
 *
 * @category commands
 * @since 0.1.0
 */
export const command = Command.make("socketserver").pipe(
  Command.withDescription("Serves sockets with Effect handlers, and operates the programs that do"),
  Command.withSubcommands(subcommands)
)

/** A wrong option is one line, and where to look; help is for who asks for it. */
const presenter: CliOutput.Presenter = {
  present: (event) => {
    if (event._tag !== "InvalidInvocation") return CliOutput.defaultPresenter.present(event)
    const [error] = event.errors
    return Console.error(
      `${oneLine(error)}\nTry: ${event.commandPath.join(" ")} --help`
    )
  }
}

/** What it prints of a failure, and what its exit code says. */
const exitCodeOf = (exit: Exit.Exit<void, unknown>): Effect.Effect<number> => {
  if (Exit.isSuccess(exit)) return Effect.succeed(0)
  if (Cause.hasInterruptsOnly(exit.cause)) return Effect.succeed(130)
  const error = Cause.squash(exit.cause)
  if (CliError.isCliError(error)) {
    return Effect.succeed(error._tag === "ShowHelp" && error.errors.length === 0 ? 0 : 2)
  }
  if (error instanceof Problem) {
    return Effect.as(error.message === "" ? Effect.void : Console.error(error.message), error.exitCode)
  }
  // A bug: where it is helps.
  if (Cause.hasDies(exit.cause)) return Effect.as(Console.error(Cause.pretty(exit.cause)), 1)
  return Effect.as(Console.error(oneLine(error)), 1)
}

/**
 * Runs the command with these arguments, and gives its exit code: 0 when all went well, 1 when something did not, 2 when it was
 * asked for in the wrong way, 127 when `exec` has no such command, 130 when it was interrupted. Messages for people go to the standard error.
 *
 * @category running
 * @since 0.1.0
 */
export const run = (args: ReadonlyArray<string>): Effect.Effect<number> =>
  Effect.suspend(() => {
    const { version }: { readonly version: string } = JSON.parse(
      readFileSync(new URL("../package.json", import.meta.url), "utf8")
    )
    return Command.runWith(command, { version })(args)
  }).pipe(
    Effect.provideService(CliOutput.Presenter, presenter),
    Effect.provideService(
      CliConfig.CliConfig,
      CliConfig.make({ builtIns: CliConfig.defaults.builtIns.filter((flag) => flag !== GlobalFlag.Wizard) })
    ),
    // What its servers do, the command says itself.
    Effect.provide([NodeServices.layer, Logging.quiet]),
    Effect.exit,
    Effect.flatMap(exitCodeOf)
  )
