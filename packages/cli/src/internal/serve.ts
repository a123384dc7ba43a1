/** `serve` and `exec`: from what was typed to what is served. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Exec } from "@socketserver/node"
import { Duration, Effect, Layer } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as Fs from "node:fs"
import { basename, extname, join } from "node:path"
import * as flags from "./flags.ts"
import { names } from "./framings.ts"
import { type PlainHandler, UserModule } from "./modules.ts"
import { misuse, Problem } from "./problem.ts"
import { isStream, type Listen, serving } from "./serving.ts"

const listens = (config: {
  readonly tcp: ReadonlyArray<number>
  readonly unix: ReadonlyArray<string>
  readonly udp?: ReadonlyArray<number>
  readonly unixDatagram?: ReadonlyArray<string>
}): Array<Listen> => [
  ...config.tcp.map((at) => ({ transport: "tcp", at }) as const),
  ...config.unix.map((at) => ({ transport: "unix", at }) as const),
  ...(config.udp ?? []).map((at) => ({ transport: "udp", at }) as const),
  ...(config.unixDatagram ?? []).map((at) => ({ transport: "unix-datagram", at }) as const)
]

const tlsOf = (certFile: string | undefined, keyFile: string | undefined, tcp: ReadonlyArray<number>) => {
  if (certFile === undefined && keyFile === undefined) return Effect.succeed(undefined)
  if (certFile === undefined || keyFile === undefined) return misuse("--tls-cert and --tls-key go together")
  if (tcp.length === 0) return misuse("--tls-cert is for --tcp: there is no TCP port")
  return Effect.succeed({ certFile, keyFile })
}

/** Names become those of files. `--control` may be a path, too. */
const nameOf = (
  { control, name }: { readonly name: string | undefined; readonly control: string | undefined },
  otherwise: string
) => {
  const given = [["--name", name], ["--control", control?.includes("/") === true ? undefined : control]] as const
  for (const [option, value] of given) {
    if (value !== undefined && !/^[\w.-]{1,64}$/.test(value)) {
      return misuse(`${option} "${value}": use up to 64 letters, digits, dots, dashes and underscores`)
    }
  }
  return Effect.succeed(name ?? otherwise.replaceAll(/[^\w.-]/g, "-"))
}

export const serve = Command.make(
  "serve",
  {
    module: Argument.Path("module").pipe(
      Argument.withDescription("The module that exports the handler, such as ./handler.ts")
    ),
    ...flags.serving,
    udp: flags.port("udp").pipe(
      Flag.withDescription("Take packets on this UDP port. May be repeated"),
      Flag.atLeast(0)
    ),
    unixDatagram: Flag.String("unix-datagram").pipe(
      Flag.withMetavar("PATH"),
      Flag.withDescription("Take packets on this unix datagram socket. May be repeated"),
      Flag.atLeast(0)
    ),
    handler: flags.optional(
      Flag.String("handler").pipe(
        Flag.withMetavar("EXPORT"),
        Flag.withDescription("The export that is the handler. Default: the default export")
      )
    ),
    datagramHandler: flags.optional(
      Flag.String("datagram-handler").pipe(
        Flag.withMetavar("EXPORT"),
        Flag.withDescription(
          "The handler for packets. Default: the export `datagram`, or else, without connections, the handler"
        )
      )
    ),
    framing: flags.optional(
      Flag.String("framing").pipe(
        Flag.withMetavar("FRAMING"),
        Flag.withDescription(
          `The handler is one of messages: ${names}, or an export of the module. Default: the export \`framing\`, if there is one; \`none\` for none`
        )
      )
    ),
    dispatch: Flag.Literals("dispatch", ["serial", "fiber", "thread", "process"]).pipe(
      Flag.withMetavar("STRATEGY"),
      Flag.withDescription("How requests run: one at a time, together, or each in a worker of a kind. Default fiber"),
      Flag.withDefault("fiber" as const)
    ),
    maxInFlight: flags.optional(
      flags.count("max-in-flight").pipe(
        Flag.withDescription("So many requests at a time, under --dispatch fiber; others wait. Default 16384")
      )
    ),
    maxWorkers: flags.optional(
      flags.count("max-workers").pipe(
        Flag.withDescription("So many workers a server. Default: as many as there are processors")
      )
    ),
    watch: Flag.Boolean("watch").pipe(
      Flag.withDescription("Loads the module again when it changes: new requests get the new handler"),
      Flag.withDefault(false)
    )
  },
  Effect.fnUntraced(function*(config) {
    const { dispatch, maxConnections, maxInFlight, maxWorkers, module } = config
    const listen = listens(config)
    const hasStream = listen.some(isStream)
    const portable = dispatch === "thread" || dispatch === "process"
    if (listen.length === 0) {
      return yield* misuse(
        "where shall it listen? Name at least one of --tcp PORT, --unix PATH, --udp PORT, --unix-datagram PATH"
      )
    }
    if (maxInFlight !== undefined && dispatch !== "fiber") {
      return yield* misuse(
        `--max-in-flight is for --dispatch fiber${
          portable ? `; under ${dispatch} it is --max-workers` : "; serial runs one at a time"
        }`
      )
    }
    if (maxWorkers !== undefined && !portable) return yield* misuse("--max-workers is for --dispatch thread or process")
    for (
      const [option, value] of [["--max-connections", maxConnections], ["--idle-timeout", config.idleTimeout]] as const
    ) {
      if (value !== undefined && !hasStream) {
        return yield* misuse(`${option} is for --tcp and --unix: packets have no connections`)
      }
    }
    const name = yield* nameOf(config, basename(module, extname(module)))
    yield* serving({
      ...config,
      name,
      listen,
      tls: yield* tlsOf(config.tlsCert, config.tlsKey, config.tcp)
    }, {
      module: new UserModule(module),
      watch: config.watch,
      wanted: {
        stream: config.handler,
        datagram: config.datagramHandler,
        framing: config.framing,
        hasStream,
        hasDatagram: listen.some((one) => !isStream(one)),
        dispatch,
        portable
      }
    })
  })
).pipe(
  Command.withDescription(
    "Serves a handler: a module's default export, a function from a connection, a packet or a message to an Effect"
  ),
  Command.withShortDescription("Serves a handler from a module"),
  Command.withExamples([
    {
      command: "socketserver serve ./handler.ts --tcp 9999",
      description: "Connections on TCP port 9999 of this machine"
    },
    {
      command: "socketserver serve ./handler.ts --tcp 9999 --unix /tmp/x.sock --watch",
      description: "Two transports, loaded again on change"
    },
    {
      command: "socketserver serve ./hash.ts --tcp 9999 --dispatch thread --max-workers 4",
      description: "In worker threads"
    },
    {
      command: "socketserver serve ./upper.ts --tcp 9999 --udp 9999 --framing lines",
      description: "A function from line to line"
    }
  ])
)

/** Is there a file that can be run, where the system would look for it? */
const isCommand = (command: string): boolean => {
  const folders = command.includes("/") ? [""] : (process.env["PATH"] ?? "/bin:/usr/bin").split(":")
  return folders.some((folder) => {
    const path = join(folder, command)
    try {
      Fs.accessSync(path, Fs.constants.X_OK)
      return Fs.statSync(path).isFile()
    } catch {
      return false
    }
  })
}

export const exec = Command.make(
  "exec",
  {
    command: Argument.String("command").pipe(
      Argument.withDescription("The command, and its arguments: behind `--`, so that their options are theirs"),
      Argument.variadic({ min: 1 })
    ),
    ...flags.serving,
    maxInFlight: flags.count("max-in-flight").pipe(
      Flag.withDescription("So many processes at a time; more clients wait. Default 40"),
      Flag.withDefault(40)
    )
  },
  Effect.fnUntraced(function*(config) {
    const [command, ...args] = config.command
    const listen = listens(config)
    if (listen.length === 0) return yield* misuse("where shall it listen? Name at least one of --tcp PORT, --unix PATH")
    if (!isCommand(command!)) {
      const place = command!.includes("/") ? "there is no such file that can be run" : "no such program is in PATH"
      return yield* new Problem({ message: `cannot run "${command}": ${place}`, exitCode: 127 })
    }
    const name = yield* nameOf(config, basename(command!))
    const tls = yield* tlsOf(config.tlsCert, config.tlsKey, config.tcp)
    const context = yield* Layer.build(NodeServices.layer)
    // A server does not wait for a process beyond `kill`: by then it must be gone.
    const killAfter = Duration.min(Duration.seconds(3), Duration.times(config.kill ?? Duration.seconds(6), 0.5))
    const run = Exec.exec(command!, args, { killAfter })
    const handler: PlainHandler = (connection) => Effect.provideContext(run(connection as never), context)
    yield* serving(
      { ...config, name, listen, tls, dispatch: "fiber", maxWorkers: undefined },
      { handlers: { framing: undefined, stream: handler, datagram: undefined } }
    )
  }, Effect.scoped)
).pipe(
  Command.withDescription("Runs a command for each connection, which is its input and its output, as inetd does"),
  Command.withShortDescription("Runs a command for each connection"),
  Command.withExamples([
    { command: "socketserver exec --tcp 9999 -- bc -q", description: "A calculator for each client" }
  ])
)
