/**
 * How every example runs when it is the program: it says where it listens, serves until Ctrl-C or SIGTERM, lets the servers
 * drain, says how that went, and exits with 0. What keeps it from starting is one line, and exit code 1.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { type ListenError, Logging, Server, type ServerEvent } from "@socketserver/core"
import { Cause, Config, Console, Data, Duration, Effect, Exit, Layer, Runtime } from "effect"
import { NetAddress } from "effect/net"
import { realpathSync } from "node:fs"

/** Is this module the program, or was it imported by one? `import.meta.main` would say so from Node 24 on. */
export const isMain = (meta: ImportMeta): boolean =>
  process.argv[1] !== undefined && realpathSync(process.argv[1]) === meta.filename

/** What a user types to talk to a server. */
export const netcat = (address: NetAddress.SocketAddress): string =>
  NetAddress.isUnixPathAddress(address)
    ? `nc -U ${address.path}`
    : `nc ${NetAddress.formatHost(address)} ${address.port}`

const describe = (name: string, report: ServerEvent.DrainReport): string =>
  `${name}: drained in ${Duration.toMillis(report.elapsed)} ms; idle connections ended: ${report.idleClosed}, ` +
  `completed: ${report.completed}, interrupted: ${report.interrupted}, killed: ${report.killed}, refused: ${report.refused}`

/**
 * When the scope closes, drains all these servers at the same time, and prints a report for each. The servers would drain by
 * themselves, when their layers are released; asking first is how to see the report.
 */
export const reportDrains = (servers: Readonly<Record<string, Server.Server["Service"]>>) =>
  Effect.addFinalizer(() =>
    Effect.forEach(
      Object.entries(servers),
      ([name, server]) => Effect.flatMap(server.drain(), (report) => Console.log(describe(name, report))),
      { concurrency: "unbounded", discard: true }
    )
  )

/** The failure has been printed: it is only the exit code that is still missing. */
class Reported extends Data.TaggedError("Reported") {
  override readonly [Runtime.errorReported] = false
}

/** Node's errors are in the `cause` of some that have no message of their own. */
const oneLine = (error: { readonly message: string; readonly cause?: unknown }): string =>
  (error.message || String(error.cause)).replaceAll(/\s+/g, " ")

/** Runs a program as the whole process. */
export const run = <A, E extends { readonly message: string }>(program: Effect.Effect<A, E>): void =>
  program.pipe(
    // The program says itself when it listens, and how it ended.
    Effect.provide(Logging.quiet),
    Effect.catch((error) => Effect.andThen(Console.error(oneLine(error)), new Reported())),
    NodeRuntime.runMain({
      // Being asked to stop is not a failure; by default it would be exit code 130.
      teardown: (exit, onExit) =>
        Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? onExit(0) : Runtime.defaultTeardown(exit, onExit)
    })
  )

/** Runs one server, on the port that the environment variable PORT names, or else on this one; says how to talk to it. */
export const runServer = (
  name: string,
  defaultPort: number,
  server: (port: number) => Layer.Layer<Server.Server, ListenError.ListenError | Config.ConfigError>,
  client: (address: NetAddress.SocketAddress) => string = netcat
): void =>
  Layer.effectDiscard(Effect.gen(function*() {
    const running = yield* Server.Server
    yield* Console.log(`${name}: ${client(running.address)}`)
    yield* reportDrains({ [name]: running })
  })).pipe(
    Layer.provide(Layer.unwrap(Effect.map(Config.Int("PORT").pipe(Config.withDefault(defaultPort)), server))),
    Layer.launch,
    run
  )
