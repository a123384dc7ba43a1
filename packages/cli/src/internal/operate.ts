/** The commands on a program that runs: each asks its control, and prints what that says. */
import { type Control, ControlClient } from "@socketserver/node"
import { Clock, Console, Duration, Effect, Stream } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { find } from "./find.ts"
import * as flags from "./flags.ts"
import { failure, misuse, Problem } from "./problem.ts"
import { firstSignal } from "./signals.ts"
import { isTerminal, ratesSince } from "./status.ts"
import { age, bytes, drained, jsonLine, parseDuration, printable, table } from "./text.ts"

/** Whoever reads the output has enough of it, as `head` does: the exit code is that of SIGPIPE. */
const endUnread = () => process.exit(141)

/** The program, and those of its servers that are meant. */
const meant = Effect.fnUntraced(
  function*(config: { readonly control: string | undefined; readonly server: string | undefined }) {
    process.stdout.off("error", endUnread).on("error", endUnread)
    const path = yield* find(config.control)
    const all = yield* ControlClient.request(path, { do: "servers" })
    const servers = config.server === undefined ? all : all.filter(({ name }) => name === config.server)
    if (servers.length === 0) {
      return yield* failure(
        `there is no server "${config.server}" in this program, but ${all.map(({ name }) => name).join(", ")}`
      )
    }
    return { path, servers, names: servers.map(({ name }) => name) }
  }
)

/** `peer=127.0.0.1`, `state=queued`, `older=30s`; other names are those of annotations. */
const whereOf = (conditions: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const where: { -readonly [K in keyof Control.Where]: Control.Where[K] } = {}
    const annotations: Record<string, string> = {}
    for (const condition of conditions) {
      const [, key, value] = /^([^=]+)=(.*)$/.exec(condition) ?? []
      if (key === undefined || value === undefined) {
        return yield* misuse(`--where "${condition}": write NAME=VALUE, such as peer=127.0.0.1`)
      }
      switch (key) {
        case "peer":
          where.peer = value
          break
        case "state":
          if (value !== "admitting" && value !== "queued" && value !== "handling" && value !== "closing") {
            return yield* misuse(`--where ${condition}: a state is admitting, queued, handling or closing`)
          }
          where.state = value
          break
        case "older":
          where.olderThanMs = yield* Effect.try({
            try: () => Duration.toMillis(parseDuration(value)),
            catch: (error) => misuse(`--where ${condition}: expected ${(error as Error).message}`)
          })
          break
        default:
          annotations[key] = value
      }
    }
    return Object.keys(annotations).length === 0 ? where : { ...where, annotations }
  })

const where = Flag.String("where").pipe(
  Flag.withMetavar("NAME=VALUE"),
  Flag.withDescription(
    "Those for which this holds: peer=ADDRESS or a network, state=STATE, older=30s, or an annotation. May be repeated"
  ),
  Flag.atLeast(0)
)

const annotationsOf = (annotations: Readonly<Record<string, unknown>>): string =>
  printable(
    Object.entries(annotations).map(([key, value]) =>
      `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`
    ).join(" ")
  )

const connectionHeader = ["ID", "SERVER", "PEER", "STATE", "AGE", "IN", "OUT", "ANNOTATIONS"]

const connectionRow = (server: string, one: Control.ConnectionView): Array<string> => [
  String(one.id),
  server,
  one.peer === "unix:" ? "-" : printable(one.peer),
  one.state,
  age(one.ageMs),
  bytes(one.bytesRead),
  bytes(one.bytesWritten),
  annotationsOf(one.annotations)
]

export const connections = Command.make(
  "connections",
  { ...flags.running, where, json: flags.json },
  (config) =>
    Effect.gen(function*() {
      const holds = yield* whereOf(config.where)
      const { names, path } = yield* meant(config)
      const rows: Array<Array<string>> = []
      for (const server of names) {
        yield* Stream.runForEach(
          ControlClient.items(path, { do: "connections", server, where: holds }),
          (one) =>
            config.json
              ? Console.log(jsonLine({ server, ...one }))
              : Effect.sync(() => void rows.push(connectionRow(server, one)))
        )
      }
      if (!config.json) yield* Console.log(table([connectionHeader, ...rows]).join("\n"))
    })
).pipe(Command.withDescription("Lists the open connections of a running program"))

export const kill = Command.make("kill", {
  id: Argument.variadic(
    Argument.Int("id").pipe(Argument.withDescription("The connections' numbers, as `connections` shows them"))
  ),
  where,
  all: Flag.Boolean("all").pipe(Flag.withDescription("All connections"), Flag.withDefault(false)),
  ...flags.running
}, (config) =>
  Effect.gen(function*() {
    const chosen = Number(config.id.length > 0) + Number(config.where.length > 0) + Number(config.all)
    if (chosen !== 1) {
      return yield* misuse("which connections? Name either their numbers, or --where NAME=VALUE, or --all")
    }
    const holds = yield* whereOf(config.where)
    const { names, path } = yield* meant(config)
    if (config.id.length > 0 && names.length > 1) {
      return yield* misuse(
        `each server counts its own connections: choose one by --server ${names.join(", --server ")}`
      )
    }
    let closed = 0
    const gone: Array<number> = []
    for (const id of config.id) {
      const one = yield* ControlClient.request(path, { do: "close", server: names[0]!, id })
      closed += one
      if (one === 0) gone.push(id)
    }
    if (config.id.length === 0) {
      for (const server of names) closed += yield* ControlClient.request(path, { do: "close", server, where: holds })
    }
    yield* Console.log(closed === 1 ? "1 connection closed" : `${closed} connections closed`)
    if (gone.length > 0) return yield* failure(`there is no connection ${gone.join(", ")}`)
  })).pipe(Command.withDescription("Closes connections of a running program: their handlers are interrupted"))

const forEach = (
  name: string,
  description: string,
  act: (path: string, server: string) => Effect.Effect<unknown, ControlClient.ControlError>,
  done: string
) =>
  Command.make(name, flags.running, (config) =>
    Effect.gen(function*() {
      const { names, path } = yield* meant(config)
      for (const server of names) {
        yield* act(path, server)
        yield* Console.log(`${server}: ${done}`)
      }
    })).pipe(Command.withDescription(description))

export const suspend = forEach(
  "suspend",
  "Stops accepting: new clients are refused, connections go on",
  (path, server) => ControlClient.request(path, { do: "suspend", server }),
  "suspended"
)

export const resume = forEach(
  "resume",
  "Accepts again, at the same address",
  (path, server) => ControlClient.request(path, { do: "resume", server }),
  "resumed"
)

export const drain = Command.make("drain", {
  ...flags.running,
  grace: flags.optional(
    flags.duration("grace").pipe(Flag.withDescription("How long requests may go on. Default: the server's own"))
  ),
  kill: flags.optional(
    flags.duration("kill").pipe(
      Flag.withDescription("How long, after that, they may take to end. Default: the server's own")
    )
  )
}, (config) =>
  Effect.gen(function*() {
    const { names, path } = yield* meant(config)
    yield* Effect.forEach(names, (server) =>
      ControlClient.request(path, {
        do: "drain",
        server,
        ...config.grace === undefined ? {} : { graceMs: Duration.toMillis(config.grace) },
        ...config.kill === undefined ? {} : { killMs: Duration.toMillis(config.kill) }
      }).pipe(Effect.flatMap((report) => Console.log(drained(server, report)))), {
      concurrency: "unbounded",
      discard: true
    })
  })).pipe(Command.withDescription("Drains a running program, which then ends; prints the report"))

export const limits = Command.make("limits", {
  name: flags.optionalArgument(
    Argument.String("name").pipe(Argument.withDescription("A limit, such as maxConnections"))
  ),
  value: flags.optionalArgument(Argument.Int("value").pipe(Argument.withDescription("What it is to be from now on"))),
  ...flags.running
}, (config) =>
  Effect.gen(function*() {
    const { name, value } = config
    const { names, path } = yield* meant(config)
    let found = false
    const existing = new Set<string>()
    for (const server of names) {
      const list = yield* ControlClient.request(path, { do: "limits", server })
      for (const key of Object.keys(list)) existing.add(key)
      if (name !== undefined && !Object.hasOwn(list, name)) continue
      found = true
      if (name !== undefined && value !== undefined) {
        yield* ControlClient.request(path, { do: "limit", server, name, value })
        yield* Console.log(`${server}: ${name} ${value}`)
      } else {
        for (const [key, current] of Object.entries(list)) {
          if (name === undefined || key === name) yield* Console.log(`${server}: ${key} ${current}`)
        }
      }
    }
    if (found && (name !== undefined || existing.size > 0)) return
    const there = existing.size === 0
      ? "this program has no limits: admission steps such as --max-connections have"
      : `there is no limit "${name}", but ${Array.from(existing).join(", ")}`
    return yield* failure(there)
  })).pipe(Command.withDescription("Shows the limits of a running program, or changes one"))

export const events = Command.make("events", flags.running, (config) =>
  Effect.gen(function*() {
    const { names, path } = yield* meant(config)
    yield* Effect.forEach(names, (server) =>
      Stream.runForEach(
        ControlClient.items(path, { do: "events", server }),
        (event) => Console.log(jsonLine({ server, ...event }))
      ), { concurrency: "unbounded", discard: true })
  })).pipe(Command.withDescription("Follows what happens in a running program: a line of JSON for each event"))

// ---- top

/** So many connections are asked for one by one, to show those that move most. */
const mostConnections = 1_000

const closings = (stats: Control.TopView["servers"][number]["stats"]): string =>
  [
    ...Object.entries(stats.closed).filter(([reason]) => reason !== "Refused"),
    ...Object.entries(stats.refused).map(([policy, count]) => [`refused(${policy})`, count] as const)
  ].map(([reason, count]) => `${reason} ${count}`).join(", ")

const screenful = (path: string, rates: ReturnType<typeof ratesSince>, view: Control.TopView, rows: number) =>
  Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const servers = table([
      ["SERVER", "ADDRESS", "STATUS", "OPEN", "RUN", "WAIT", "NEW/s", "IN/s", "OUT/s", "ENDED"],
      ...view.servers.map(({ address, name, stats, status }) => {
        const rate = rates(name, stats, now)
        return [
          name,
          address,
          status,
          String(stats.open),
          String(stats.inFlight),
          String(stats.queued),
          rate.accepted.toFixed(0),
          bytes(rate.bytesRead),
          bytes(rate.bytesWritten),
          closings(stats)
        ]
      })
    ])
    const moving: Array<{ readonly row: Array<string>; readonly rate: number }> = []
    for (const { name, stats } of view.servers) {
      if (rows <= servers.length + 3 || stats.open === 0 || stats.open > mostConnections) continue
      yield* Stream.runForEach(
        ControlClient.items(path, { do: "connections", server: name }),
        (one) =>
          Effect.sync(() => {
            const rate = rates(`${name} ${one.id}`, { accepted: 0, ...one }, now)
            moving.push({ row: connectionRow(name, one), rate: rate.bytesRead + rate.bytesWritten })
          })
      )
    }
    const shown = moving.toSorted((a, b) => b.rate - a.rate).slice(0, Math.max(0, rows - servers.length - 3))
    return shown.length === 0 ? servers : [...servers, "", ...table([connectionHeader, ...shown.map(({ row }) => row)])]
  })

export const top = Command.make("top", {
  ...flags.running,
  every: flags.duration("every").pipe(
    Flag.withDescription("How often, 100ms to 1h. Default 1s"),
    Flag.withDefault(Duration.seconds(1))
  ),
  once: Flag.Boolean("once").pipe(Flag.withDescription("Once, and no more"), Flag.withDefault(false))
}, (config) =>
  Effect.gen(function*() {
    const everyMs = Duration.toMillis(config.every)
    if (everyMs < 100 || everyMs > 3_600_000) return yield* misuse("--every is 100ms to 1h")
    const { names, path } = yield* meant(config)
    const { stdout } = process
    const full = isTerminal() && !config.once
    const restore = () => {
      if (full) stdout.write("\u001b[?25h\u001b[?1049l")
    }
    const asked = yield* firstSignal(restore)
    yield* Effect.acquireRelease(
      Effect.sync(() => void (full && stdout.write("\u001b[?1049h\u001b[?25l"))),
      () => Effect.sync(restore)
    )
    const rates = ratesSince()
    const show = ControlClient.items(path, { do: "top", everyMs }).pipe(
      Stream.take(config.once ? 1 : Number.MAX_SAFE_INTEGER),
      Stream.runForEach(({ servers }) =>
        Effect.gen(function*() {
          const view = { servers: servers.filter(({ name }) => names.includes(name)) }
          const lines = yield* screenful(path, rates, view, full ? stdout.rows || 24 : Number.MAX_SAFE_INTEGER)
          const cut = full ? lines.map((line) => line.slice(0, stdout.columns || 80)) : lines
          if (full) stdout.write(`\u001b[H${cut.map((line) => `${line}\u001b[K`).join("\r\n")}\u001b[J`)
          else yield* Console.log(cut.join("\n"))
        })
      )
    )
    // The shell is told that it was interrupted, as of any program that shows something until then.
    const code = yield* Effect.raceFirst(Effect.as(show, 0), asked)
    if (code !== 0) return yield* new Problem({ message: "", exitCode: code })
  }).pipe(Effect.scoped)).pipe(
    Command.withDescription("Shows what a running program does, again and again, until Ctrl-C")
  )
