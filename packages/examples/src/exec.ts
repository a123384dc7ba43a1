/**
 * A process for each connection, as inetd and tcpserver have it: a command's input and output are the connection. Any program
 * that reads and writes becomes a server, such as `node packages/examples/src/exec.ts bc -q`. What it writes to its standard
 * error is logged, at Debug. LOG_LEVEL=Debug shows that, and how each process ended.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Dispatch, Server } from "@socketserver/core"
import { Exec, NodeTransport } from "@socketserver/node"
import { Config, Data, Duration, Effect, Layer, References } from "effect"
import { isMain, run, runServer } from "./run.ts"

export interface ServeOptions extends Exec.ExecOptions {
  /** How many processes at a time; more clients wait. Default 40, which is also tcpserver's. */
  readonly maxInFlight?: number | undefined
  /** How long, in a drain, processes may go on after the end of their input, before SIGTERM. Default 20 seconds. */
  readonly grace?: Duration.Input | undefined
}

export const ExecServer = (port: number, command: string, args?: ReadonlyArray<string>, options: ServeOptions = {}) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Dispatch.fiberPerRequest({ maxInFlight: options.maxInFlight ?? 40 }),
    Server.serveStream(Exec.exec(command, args, options), {
      shutdown: {
        grace: options.grace,
        // Nobody waits for a handler after this: it must be longer than what it takes to have killed the process.
        kill: Duration.sum(Duration.fromInputUnsafe(options.killAfter ?? "3 seconds"), Duration.seconds(2))
      }
    }),
    Layer.provide(NodeServices.layer)
  )

class NoCommand extends Data.TaggedError("NoCommand") {
  override readonly message = "exec: which command? For example: node packages/examples/src/exec.ts bc -q"
}

if (isMain(import.meta)) {
  const [command, ...args] = process.argv.slice(2)
  if (command === undefined) run(new NoCommand())
  else {
    const LogLevel = Layer.effect(
      References.MinimumLogLevel,
      Config.LogLevel("LOG_LEVEL").pipe(Config.withDefault("Info"), Effect.orDie)
    )
    runServer("exec", 7001, (port) => Layer.provide(ExecServer(port, command, args), LogLevel))
  }
}
