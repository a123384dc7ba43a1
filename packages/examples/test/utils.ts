/**
 * The clients that talk to the examples: a plain socket of Node's, and programs that nobody here wrote. All of them send text
 * and receive lines, so one conversation can be held with each. Nothing here waits for time to pass, only for lines and ends.
 */
import { it } from "@effect/vitest"
import { type Cause, Effect, Queue, type Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { spawn, spawnSync } from "node:child_process"
import * as Dgram from "node:dgram"
import { mkdtempSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Readable, Writable } from "node:stream"
import { fileURLToPath } from "node:url"

/** Where to connect to. */
export type Target = { readonly host: string; readonly port: number } | { readonly path: string }

export const targetOf = (address: NetAddress.SocketAddress): Target =>
  NetAddress.isUnixPathAddress(address)
    ? { path: address.path }
    : { host: NetAddress.formatHost(address), port: address.port }

/** Finds the address in what a program has printed: `nc 127.0.0.1 9999`, `nc -U /tmp/upper.sock`. */
export const targetIn = (text: string): Target => {
  const [, path, host, port] = /nc (?:-U (\S+)|(\S+) (\d+))/.exec(text) ?? []
  if (path !== undefined) return { path }
  if (host !== undefined) return { host, port: Number(port) }
  throw new Error(`no address in: ${text}`)
}

export interface Talker {
  readonly send: (text: string) => Effect.Effect<void>
  /** Has nothing more to send. */
  readonly finish: Effect.Effect<void>
  /** The next line, or `Cause.Done`. */
  readonly line: Effect.Effect<string, Cause.Done>
  /** All lines that are still to come. */
  readonly rest: Effect.Effect<ReadonlyArray<string>>
}

const linesOf = (readable: Readable) => {
  const lines = Effect.runSync(Queue.unbounded<string, Cause.Done>())
  createInterface({ input: readable })
    .on("line", (line) => Queue.offerUnsafe(lines, line))
    .on("close", () => Queue.endUnsafe(lines))
  return { line: Queue.take(lines), rest: Stream.runCollect(Stream.fromQueue(lines)) }
}

const talker = (readable: Readable, writable: Writable): Talker => ({
  send: (text) => Effect.sync(() => void writable.write(text)),
  finish: Effect.sync(() => void writable.end()),
  ...linesOf(readable)
})

/** A client made of `node:net`. */
export const connect = (target: Target): Effect.Effect<Talker, Error, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, Error>((resume) => {
      const socket = Net.connect(target)
      socket.once("connect", () => resume(Effect.succeed(socket)))
      socket.on("error", (error) => resume(Effect.fail(error)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  ).pipe(Effect.map((socket) => talker(socket, socket)))

export interface Program extends Talker {
  readonly errors: Effect.Effect<ReadonlyArray<string>>
  readonly signal: (name: NodeJS.Signals) => Effect.Effect<void>
  /** The exit code, when the program has ended and all its output is there. */
  readonly exitCode: Effect.Effect<number | null>
}

/** Starts a program; it is killed if it still runs when the test ends. */
export const start = (
  command: string,
  args: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
): Effect.Effect<Program, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(command, args, { env: { ...process.env, ...env } })
      // Writing to a program that has ended is not what a test is about.
      child.stdin.on("error", () => {})
      return child
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.map((child) => {
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
    return {
      ...talker(child.stdout, child.stdin),
      errors: linesOf(child.stderr).rest,
      signal: (name) => Effect.sync(() => void child.kill(name)),
      exitCode: Effect.promise(() => ended)
    }
  }))

/** Starts one of the examples, as a user would. */
export const startExample = (
  name: string,
  env: Readonly<Record<string, string>>,
  args: ReadonlyArray<string> = []
) => start(process.execPath, [fileURLToPath(new URL(`../src/${name}.ts`, import.meta.url)), ...args], env)

/** Is `command` there, and is it the one that is meant? */
const installed = (command: string, version: string, expected: string): boolean => {
  const { stderr, stdout } = spawnSync(command, [version], { encoding: "utf8" })
  return `${stdout}${stderr}`.includes(expected)
}

interface Client {
  readonly name: string
  readonly missing?: string
  readonly open: (target: Target) => Effect.Effect<Talker, Error, Scope.Scope>
}

const external = (
  name: string,
  isInstalled: boolean,
  debianPackage: string,
  args: (target: Target) => Array<string>
): Client => ({
  name,
  ...isInstalled ? {} : { missing: `needs ${name}: apt-get install ${debianPackage}` },
  open: (target) => start(name, args(target))
})

const clients: ReadonlyArray<Client> = [
  { name: "node:net", open: connect },
  external(
    "nc",
    installed("nc", "-h", "OpenBSD"),
    "netcat-openbsd",
    (target) => "path" in target ? ["-N", "-U", target.path] : ["-N", target.host, String(target.port)]
  ),
  external("socat", installed("socat", "-V", "socat"), "socat", (target) => [
    // How long it waits for the answer, once it has nothing more to send.
    "-t",
    "20",
    "-",
    "path" in target ? `UNIX-CONNECT:${target.path}` : `TCP:${target.host}:${target.port}`
  ])
]

/** A test that is run once with each client. Clients that are not installed show as skipped, and say what to install. */
export const withEachClient = (
  behaviour: string,
  test: (open: Client["open"]) => Effect.Effect<unknown, unknown, Scope.Scope>
): void => {
  for (const { missing, name, open } of clients) {
    it.live.skipIf(missing !== undefined)(
      `${behaviour}, with ${name}${missing === undefined ? "" : ` (${missing})`}`,
      () => test(open)
    )
  }
}

export const netcatMissing = clients.find(({ name }) => name === "nc")?.missing
export const curlMissing = installed("curl", "--version", "curl") ? undefined : "needs curl: apt-get install curl"
export const digMissing = installed("dig", "-v", "DiG") ? undefined : "needs dig: apt-get install bind9-dnsutils"
/** The one that can send to a port. */
export const loggerMissing = installed("logger", "--help", "--udp")
  ? undefined
  : "needs logger: apt-get install bsdutils"
/** Its `scrypt` is there where it was built with OpenSSL. */
export const pythonMissing = installed("python3", "-cimport hashlib, zlib; print(hashlib.scrypt)", "scrypt")
  ? undefined
  : "needs python3: apt-get install python3"
export const swaksMissing = installed("swaks", "--version", "swaks") ? undefined : "needs swaks: apt-get install swaks"

export interface DatagramTalker {
  readonly send: (payload: Uint8Array | string) => Effect.Effect<void, Error>
  /** The next packet. */
  readonly receive: Effect.Effect<Buffer>
}

/** A client made of `node:dgram`. */
export const connectDatagram = (host: string, port: number): Effect.Effect<DatagramTalker, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => Dgram.createSocket("udp4")),
    (socket) => Effect.sync(() => socket.close())
  ).pipe(Effect.map((socket) => {
    const received = Effect.runSync(Queue.unbounded<Buffer>())
    socket.on("message", (packet) => Queue.offerUnsafe(received, packet))
    return {
      send: (payload) =>
        Effect.callback((resume) =>
          socket.send(payload, port, host, (error) => resume(error === null ? Effect.void : Effect.fail(error)))
        ),
      receive: Queue.take(received)
    }
  }))

/** A directory for a socket, removed with everything in it. */
export const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "examples-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)
