/** Servers that are replaced under load: every request is answered, and no client is refused. */
import { assert, describe, it } from "@effect/vitest"
import { type Cause, Data, Effect, Queue } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync, symlinkSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"

const program = join(import.meta.dirname, "../src/replace.ts")
const requests = 10_000

interface Generation {
  readonly pid: number
  readonly host: string
  readonly port: number
}

/** Starts a command, whose servers say one after the other that they listen. All of them are gone when the test ends. */
const start = (
  command: string,
  args: ReadonlyArray<string>,
  socket: number | undefined,
  env: Readonly<Record<string, string>> = {}
) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const child = spawn(command, args, {
          env: { ...process.env, ...env },
          stdio: ["ignore", "pipe", "pipe", ...(socket === undefined ? [] : [socket])]
        })
        const generations = Effect.runSync(Queue.unbounded<Generation, Cause.Done>())
        const errors = Effect.runSync(Queue.unbounded<string>())
        createInterface({ input: child.stderr! }).on("line", (line) => Queue.offerUnsafe(errors, line))
        const pids: Array<number> = [child.pid!]
        const output: Array<string> = []
        createInterface({ input: child.stdout! }).on("line", (line) => {
          output.push(line)
          const [, pid, host, port] = /^replace (\d+): nc (\S+) (\d+)$/.exec(line) ?? []
          if (pid === undefined) return
          pids.push(Number(pid))
          Queue.offerUnsafe(generations, { pid: Number(pid), host: host!, port: Number(port) })
        })
        // All of them have the same output, so it closes with the last of them.
        return { generations, errors, pids, output, closed: once(child, "close") }
      }),
      ({ pids }) =>
        Effect.sync(() => {
          for (const pid of pids) {
            try {
              process.kill(pid, "SIGKILL")
            } catch {
              // It has ended.
            }
          }
        })
    ),
    ({ closed, errors, generations, output, pids }) => ({
      pids,
      errors,
      output,
      next: Queue.take(generations),
      closed: Effect.promise(() => closed)
    })
  )

/** A request without its answer, or a connection that was refused. */
class Lost extends Data.TaggedError("Lost")<{ readonly cause: unknown }> {}

/** One connection: asks so many times, and gives the process that has answered. */
const converse = (target: Net.TcpNetConnectOpts, questions: ReadonlyArray<string>, onAnswer: (pid: number) => void) =>
  Effect.callback<void, Lost>((resume) => {
    const socket = Net.connect(target)
    let received = ""
    let asked = 0
    const ask = () => void socket.write(`${questions[asked++]}\n`)
    socket.setEncoding("utf8")
    socket.on("connect", ask)
    socket.on("error", (error) => resume(Effect.fail(new Lost({ cause: error }))))
    socket.on("data", (chunk: string) => {
      received += chunk
      if (!received.endsWith("\n")) return
      const [, pid, text] = /^(\d+) (.*)\n$/.exec(received) ?? []
      received = ""
      if (text !== questions[asked - 1]) return resume(Effect.fail(new Lost({ cause: `not the answer: ${text}` })))
      onAnswer(Number(pid))
      if (asked < questions.length) ask()
      else socket.end()
    })
    socket.on("end", () => {
      if (asked < questions.length) resume(Effect.fail(new Lost({ cause: "ended before its last answer" })))
    })
    socket.on("close", () => resume(Effect.void))
    return Effect.sync(() => socket.destroy())
  })

/**
 * Requests from 8 clients at a time, on connections of 1 to 20 requests, while the server is replaced twice: each time when it
 * has answered 2,000. It goes on until the third server has answered as many, and all of them 10,000. Any request that is not
 * answered, and any connection that is refused, fails it. Gives how many each process has answered.
 */
const replaceUnderLoad = (first: Generation, replace: (latest: Generation) => Effect.Effect<Generation, unknown>) =>
  Effect.gen(function*() {
    const answered = new Map<number, number>()
    let total = 0
    let finished = false
    let whenAnswered = (_pid: number, _count: number): void => {}
    const onAnswer = (pid: number) => {
      const count = (answered.get(pid) ?? 0) + 1
      answered.set(pid, count)
      total++
      whenAnswered(pid, count)
    }
    const hasAnswered = (server: Generation) =>
      Effect.callback<void>((resume) => {
        whenAnswered = (pid, count) => {
          if (pid === server.pid && count >= 2_000) resume(Effect.void)
        }
      })
    const generations = Effect.gen(function*() {
      yield* hasAnswered(first)
      const second = yield* replace(first)
      yield* hasAnswered(second)
      const third = yield* replace(second)
      yield* hasAnswered(third)
      finished = true
      return [first, second, third] as const
    })
    const goesOn = () => !finished || total < requests
    const client = Effect.gen(function*() {
      for (let size = 1; goesOn(); size = size % 20 + 1) {
        yield* converse(first, Array.from({ length: size }, (_, i) => `request ${total} ${i}`), onAnswer)
      }
    })
    const [servers] = yield* Effect.all([
      generations,
      Effect.all(Array.from({ length: 8 }, () => client), {
        concurrency: "unbounded"
      })
    ], { concurrency: "unbounded" })
    assert.isAtLeast(total, requests)
    assert.sameMembers([...answered.keys()], servers.map(({ pid }) => pid))
    return servers
  })

describe("10,000 requests and more, none lost and none refused,", () => {
  it.live("across two hand-overs of the socket to a successor", () =>
    Effect.gen(function*() {
      const { closed, next, output } = yield* start(process.execPath, [program], undefined, { PORT: "0" })
      const servers = yield* replaceUnderLoad(yield* next, ({ pid }) =>
        Effect.suspend(() => {
          process.kill(pid, "SIGHUP")
          return next
        }))
      assert.strictEqual(servers[2].port, servers[0].port)
      process.kill(servers[2].pid, "SIGTERM")
      yield* closed
      assert.strictEqual(output.filter((line) => line.includes("interrupted: 0, killed: 0, refused: 0")).length, 3)
    }), 60_000)

  it.live("across two restarts by a manager that keeps the socket", () =>
    Effect.gen(function*() {
      const opener = Net.createServer().listen({ host: "127.0.0.1", port: 0 })
      yield* Effect.promise(() => once(opener, "listening"))
      // As systemd does it: it has the socket, and starts the service again whenever it has ended.
      const manager = `for i in 1 2 3; do sh -c 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"' sh "$@"; done`
      const descriptor = (opener as unknown as { readonly _handle: { readonly fd: number } })._handle.fd
      const { closed, next } = yield* start("sh", ["-c", manager, "sh", process.execPath, program], descriptor)
      opener.close()
      const servers = yield* replaceUnderLoad(yield* next, ({ pid }) =>
        Effect.suspend(() => {
          process.kill(pid, "SIGTERM")
          return next
        }))
      process.kill(servers[2].pid, "SIGTERM")
      yield* closed
    }), 60_000)
})

describe("a server whose successor does not start", () => {
  it.live("goes on, and says why", () =>
    Effect.gen(function*() {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "socketserver-"))),
        (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
      )
      // By the name that it was started with, the program cannot be started again.
      const link = join(directory, "replace.ts")
      symlinkSync(program, link)
      const servers = yield* start(process.execPath, [link], undefined, { PORT: "0" })
      const server = yield* servers.next
      rmSync(link)
      const told = Queue.take(servers.errors).pipe(
        Effect.repeat({ until: (line) => line.startsWith(`replace ${server.pid}`) })
      )
      process.kill(server.pid, "SIGHUP")
      assert.strictEqual(yield* told, `replace ${server.pid}: no successor: it ended with 1`)
      yield* converse(server, ["still there?"], (pid) => assert.strictEqual(pid, server.pid))
      process.kill(server.pid, "SIGTERM")
      yield* servers.closed
    }))
})
