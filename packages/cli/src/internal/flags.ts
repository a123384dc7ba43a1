/** The options that several commands have. */
import { Option } from "effect"
import { Argument, Flag } from "effect/cli"
import { parseDuration } from "./text.ts"

const message = (error: unknown): string => (error as Error).message

export const duration = (name: string) =>
  Flag.String(name).pipe(Flag.mapTryCatch(parseDuration, message), Flag.withMetavar("DURATION"))

const whole = (least: number, most: number) => (value: number): number => {
  if (value >= least && value <= most) return value
  throw new Error(most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`)
}

export const count = (name: string) =>
  Flag.Int(name).pipe(Flag.mapTryCatch(whole(1, Number.MAX_SAFE_INTEGER), message), Flag.withMetavar("N"))

export const port = (name: string) =>
  Flag.Int(name).pipe(Flag.mapTryCatch(whole(0, 65_535), message), Flag.withMetavar("PORT"))

/** `undefined` where it is not given. */
export const optional = <A>(flag: Flag.Flag<A>): Flag.Flag<A | undefined> =>
  Flag.map(Flag.optional(flag), Option.getOrUndefined)

export const optionalArgument = <A>(argument: Argument.Argument<A>): Argument.Argument<A | undefined> =>
  Argument.map(Argument.optional(argument), Option.getOrUndefined)

/** What both `serve` and `exec` take. */
export const serving = {
  tcp: port("tcp").pipe(
    Flag.withDescription("Listen on this TCP port; 0 picks a free one. May be repeated"),
    Flag.atLeast(0)
  ),
  unix: Flag.String("unix").pipe(
    Flag.withMetavar("PATH"),
    Flag.withDescription("Listen on this unix socket. May be repeated"),
    Flag.atLeast(0)
  ),
  host: Flag.String("host").pipe(
    Flag.withMetavar("HOST"),
    Flag.withDescription(
      "The address for --tcp and --udp; 0.0.0.0 or :: for all of the machine. Default 127.0.0.1"
    ),
    Flag.withDefault("127.0.0.1")
  ),
  tlsCert: optional(
    Flag.Path("tls-cert").pipe(
      Flag.withMetavar("FILE"),
      Flag.withDescription("TLS on --tcp, with this certificate (PEM)")
    )
  ),
  tlsKey: optional(
    Flag.Path("tls-key").pipe(Flag.withMetavar("FILE"), Flag.withDescription("The certificate's key (PEM)"))
  ),
  maxConnections: optional(
    count("max-connections").pipe(Flag.withDescription("So many connections a server, then new ones are refused"))
  ),
  idleTimeout: optional(
    duration("idle-timeout").pipe(Flag.withDescription("Closes connections that were silent for so long, such as 30s"))
  ),
  name: optional(
    Flag.String("name").pipe(
      Flag.withMetavar("NAME"),
      Flag.withDescription("What this program is called by the other commands")
    )
  ),
  control: optional(
    Flag.String("control").pipe(
      Flag.withMetavar("PATH"),
      Flag.withDescription(
        "Where it is controlled: a path, a name, or none. Default: by its name in the user's runtime directory"
      )
    )
  ),
  dashboard: optional(
    port("dashboard").pipe(
      Flag.withDescription(
        "A page that shows and operates the servers, on this port of this machine; 0 picks a free one"
      )
    )
  ),
  grace: optional(
    duration("grace").pipe(Flag.withDescription("How long requests may go on in a drain. Default 20s"))
  ),
  kill: optional(
    duration("kill").pipe(Flag.withDescription("How long, after that, they may take to end. Default 5s"))
  ),
  status: optional(
    Flag.Boolean("status").pipe(
      Flag.withDescription("A live status as the last line; --no-status for none. Default: in a terminal")
    )
  )
}

/** What all commands on a running program take. */
export const running = {
  control: optional(
    Flag.String("control").pipe(
      Flag.withMetavar("PATH"),
      Flag.withDescription(
        "The program that is meant, by its name or its control's path. Default: the only one that runs"
      )
    )
  ),
  server: optional(
    Flag.String("server").pipe(
      Flag.withMetavar("NAME"),
      Flag.withDescription("The server that is meant, such as tcp, where the program has several. Default: all")
    )
  )
}

export const json = Flag.Boolean("json").pipe(Flag.withDescription("A line of JSON for each"), Flag.withDefault(false))
