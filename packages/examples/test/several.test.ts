/** Several servers in one program, as a user has it: a process that prints what to type, and drains when it is told to stop. */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { Effect } from "effect"
import { existsSync } from "node:fs"
import { join } from "node:path"
import { Echo } from "../src/echo.ts"
import { startExample, targetIn, targetOf, temporaryDirectory, withEachClient } from "./utils.ts"

const startDemo = Effect.gen(function*() {
  const socket = join(yield* temporaryDirectory, "upper.sock")
  const demo = yield* startExample("several", { UPPER_PORT: "0", CHAT_PORT: "0", UPPER_SOCKET: socket })
  const printed: Array<string> = []
  while (!printed.at(-1)?.includes("Ctrl-C")) printed.push(yield* demo.line)
  const [tcp, unix, room] = printed.filter((line) => line.includes("nc ")).map(targetIn)
  assert.deepStrictEqual(unix, { path: socket })
  return { demo, socket, tcp: tcp!, unix: unix!, room: room! }
})

const report = (name: string, idle: number) =>
  new RegExp(
    `^${name}: drained in \\d+ ms; idle connections ended: ${idle}, completed: 0, interrupted: 0, killed: 0, refused: 0$`
  )

describe("several servers", () => {
  withEachClient(
    "serves three addresses, and on SIGTERM drains, reports, and exits with 0",
    (open) =>
      Effect.gen(function*() {
        const { demo, room, socket, tcp, unix } = yield* startDemo

        const local = yield* open(unix)
        yield* local.send("over a unix socket\n")
        yield* local.finish
        assert.deepStrictEqual(yield* local.rest, ["OVER A UNIX SOCKET"])

        const alice = yield* open(room)
        assert.strictEqual(yield* alice.line, "Your name?")
        yield* alice.send("alice\n")
        assert.strictEqual(yield* alice.line, "* welcome, alice! Here: nobody yet")
        yield* alice.send("is anybody here?\n")
        yield* alice.finish
        assert.deepStrictEqual(yield* alice.rest, [])

        const idle = yield* open(tcp)
        yield* idle.send("over tcp\n")
        assert.strictEqual(yield* idle.line, "OVER TCP")

        yield* demo.signal("SIGTERM")
        const reports = [...(yield* demo.rest)]
        assert.strictEqual(reports.length, 4)
        // They drain at the same time, in no order; the connections that were closed before are not of the drain.
        assert.strictEqual(reports.filter((line) => report("upper case, TCP", 1).test(line)).length, 1)
        assert.strictEqual(reports.filter((line) => report("upper case, unix socket", 0).test(line)).length, 1)
        assert.strictEqual(reports.filter((line) => report("chat room, TCP", 0).test(line)).length, 1)
        assert.strictEqual(reports.at(-1), "lines served by all three: 3")
        assert.deepStrictEqual(yield* demo.errors, [])
        assert.strictEqual(yield* demo.exitCode, 0)
        assert.isFalse(existsSync(socket))
      })
  )

  for (const variable of ["UPPER_PORT", "CHAT_PORT"]) {
    it.live(`exits with 1 and one line that names the address, when ${variable} is taken`, () =>
      Effect.gen(function*() {
        const address = targetOf((yield* Server.Server).address)
        assert.isTrue("port" in address)
        const port = "port" in address ? address.port : 0
        const socket = join(yield* temporaryDirectory, "upper.sock")
        const demo = yield* startExample("several", {
          UPPER_PORT: "0",
          CHAT_PORT: "0",
          UPPER_SOCKET: socket,
          [variable]: String(port)
        })
        assert.deepStrictEqual(yield* demo.errors, [
          `127.0.0.1:${port} is already in use: stop the program that listens there, or choose another address (port 0 picks a free one)`
        ])
        assert.deepStrictEqual(yield* demo.rest, [])
        assert.strictEqual(yield* demo.exitCode, 1)
        assert.isFalse(existsSync(socket))
      }).pipe(Effect.provide(Echo(0))))
  }

  it.live("exits with 1 and one line that names the variable, when a port is not a number", () =>
    Effect.gen(function*() {
      const demo = yield* startExample("several", { UPPER_PORT: "many" })
      const errors = yield* demo.errors
      assert.strictEqual(errors.length, 1)
      assert.include(errors[0], "UPPER_PORT")
      assert.strictEqual(yield* demo.exitCode, 1)
    }))
})
