/** The command as a user has it: a process, its lines, its exit code. Nothing here waits for time to pass. */

import { type Cause, Console, Effect, Queue, type Scope, Stream } from "effect"
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import { run } from "../src/Cli.ts"

const linesOf = (readable: Readable) => {
  const lines = Effect.runSync(Queue.unbounded<string, Cause.Done>())
  createInterface({ input: readable })
    .on("line", (line) => Queue.offerUnsafe(lines, line))
    .on("close", () => Queue.endUnsafe(lines))
  const line = Queue.take(lines)
  return {
    line,
    /** The first line that is meant, and none before it any more. */
    lineWith: (pattern: RegExp): Effect.Effect<RegExpExecArray> =>
      Effect.gen(function*() {
        const seen: Array<string> = []
        while (true) {
          const next = yield* Effect.catch(
            line,
            () => Effect.die(new Error(`no ${pattern} in:\n${seen.join("\n")}`))
          )
          const found = pattern.exec(next)
          if (found !== null) return found
          seen.push(next)
        }
      }),
    rest: Effect.map(Stream.runCollect(Stream.fromQueue(lines)), (all) => all as ReadonlyArray<string>)
  }
}

/** What a terminal was sent, as it is: lines that are written over each other too. */
const screenOf = (readable: Readable) => {
  let all = ""
  const waiting = new Set<() => void>()
  readable.setEncoding("utf8").on("data", (chunk: string) => {
    all += chunk
    for (const look of waiting) look()
  })
  return {
    all: () => all,
    /** Waits until this is there, and this behind it. */
    shows: (text: string, next = /^/) =>
      Effect.callback<void>((resume) => {
        const look = () => {
          const at = all.indexOf(text)
          if (at !== -1 && next.test(all.slice(at + text.length))) resume(Effect.void)
        }
        waiting.add(look)
        look()
        return Effect.sync(() => waiting.delete(look))
      })
  }
}

/** Starts a program; it is killed if it still runs when the test ends. */
export const start = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly env?: Readonly<Record<string, string>>; readonly cwd?: string } = {}
) =>
  Effect.acquireRelease(
    Effect.callback<ReturnType<typeof spawn>, Error>((resume) => {
      const child = spawn(command, args, { ...options, env: { ...process.env, ...options.env } })
      child.once("error", (error) => resume(Effect.fail(error)))
      child.once("spawn", () => resume(Effect.succeed(child)))
      // Writing to a program that has ended is not what a test is about.
      child.stdin.on("error", () => {})
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.map((child) => {
    const ended = new Promise<number | string | null>((resolve) =>
      child.once("close", (code, signal) => resolve(code ?? signal))
    )
    return {
      out: linesOf(child.stdout!),
      errors: linesOf(child.stderr!),
      send: (text: string) => Effect.sync(() => void child.stdin!.write(text)),
      finish: Effect.sync(() => void child.stdin!.end()),
      /** Closes the pipes that it writes to. */
      unread: Effect.sync(() => {
        child.stdout!.destroy()
        child.stderr!.destroy()
      }),
      signal: (name: NodeJS.Signals) => Effect.sync(() => void child.kill(name)),
      /** The exit code, or the signal, when the program has ended and all its output is there. */
      exitCode: Effect.promise(() => ended)
    }
  }))

/** Starts the command in a terminal of its own, in the place of the shell: a shell that waits can turn Ctrl-C into its own exit code. */
export const startInTerminal = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>>) =>
  Effect.acquireRelease(
    Effect.sync(() =>
      spawn("script", ["-qefc", ["exec", process.execPath, bin, ...args].join(" "), "/dev/null"], {
        env: { ...process.env, SHELL: "/bin/sh", TERM: "xterm", ...env }
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.map((child) => {
    const ended = new Promise<number | null>((resolve, reject) => child.once("close", resolve).once("error", reject))
    return {
      screen: screenOf(child.stdout),
      interrupt: Effect.sync(() => void child.stdin.write("\u0003")),
      exitCode: Effect.promise(() => ended)
    }
  }))

export const directory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "socketserver-cli-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

export const bin = fileURLToPath(new URL("../src/internal/bin.ts", import.meta.url))
export const handlers = fileURLToPath(new URL("./handlers/upper.ts", import.meta.url))

export const messages = fileURLToPath(new URL("./handlers/messages.ts", import.meta.url))

/** The command, in a runtime directory of the test's own. */
export const commands = Effect.map(directory, (runtime) => {
  const env = { XDG_RUNTIME_DIR: runtime, NO_COLOR: "1" }
  const spawned = (args: ReadonlyArray<string>) => start(process.execPath, [bin, ...args], { env })
  return {
    runtime,
    env,
    /** Starts it. */
    spawned,
    /** Runs it to its end, as a process. */
    runProcess: (...args: ReadonlyArray<string>) =>
      Effect.gen(function*() {
        const program = yield* spawned(args)
        yield* program.finish
        const [out, errors, code] = yield* Effect.all([program.out.rest, program.errors.rest, program.exitCode])
        return { out, errors, code }
      }).pipe(Effect.scoped),
    /** Runs it to its end, in this process: what it prints, and what the exit code would be. */
    run: (...args: ReadonlyArray<string>) =>
      Effect.gen(function*() {
        const out: Array<string> = []
        const errors: Array<string> = []
        const keep = (lines: Array<string>) => (...texts: ReadonlyArray<unknown>) =>
          void lines.push(...texts.join(" ").split("\n"))
        const console: Console.Console = { ...globalThis.console, log: keep(out), error: keep(errors) }
        const before = process.env["XDG_RUNTIME_DIR"]
        process.env["XDG_RUNTIME_DIR"] = runtime
        const code = yield* run(args).pipe(
          Effect.provideService(Console.Console, console),
          Effect.ensuring(Effect.sync(() => {
            if (before === undefined) delete process.env["XDG_RUNTIME_DIR"]
            else process.env["XDG_RUNTIME_DIR"] = before
          }))
        )
        return { out, errors, code }
      }),
    /** Starts a server, and gives what it listens on by the names of its servers. */
    serve: (...args: ReadonlyArray<string>) =>
      Effect.gen(function*() {
        const program = yield* spawned(args)
        const at: Record<string, string> = {}
        while (true) {
          const line = yield* Effect.catch(program.out.line, () =>
            Effect.flatMap(program.errors.rest, (errors) =>
              Effect.die(new Error(`it did not start: ${errors.join("\n")}`))))
          const [, address, name] = /listening on (\S+) \(([\w-]+)\): /.exec(line) ?? []
          if (address !== undefined && name !== undefined) {
            at[name] = address
          }
          if (line.startsWith("Ctrl-C")) {
            return { ...program, at }
          }
        }
      })
  }
})

const hostPort = (address: string): [string, string] => {
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(address)!
  return [host!, port!]
}

/** A client that stays, made of `node:net`. `nc` and `socat` do not end when their server closes. */
export const connect = (address: string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, Error>((resume) => {
      const [host, port] = address.startsWith("/") ? [] : hostPort(address)
      const socket = Net.connect(port === undefined ? { path: address } : { host: host!, port: Number(port) })
      socket.once("connect", () => resume(Effect.succeed(socket)))
      socket.on("error", (error) => resume(Effect.fail(error)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  ).pipe(Effect.map((socket) => ({
    send: (text: string) => Effect.sync(() => void socket.write(text)),
    finish: Effect.sync(() => void socket.end()),
    out: linesOf(socket)
  })))

/** `nc` to an address that was printed. */
const netcat = (address: string) =>
  start("nc", address.startsWith("/") ? ["-N", "-U", address] : ["-N", ...hostPort(address)])

/** What a client hears to this, until the server closes. */
export const ask = (address: string, text: string) =>
  Effect.gen(function*() {
    const nc = yield* netcat(address)
    yield* nc.send(text)
    yield* nc.finish
    return yield* nc.out.rest
  }).pipe(Effect.scoped)
