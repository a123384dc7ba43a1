/** Commands as servers: real processes, real sockets. What is waited for is a line, an end, or the end of a process. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Server } from "@socketserver/core"
import { Exec, NodeTransport } from "@socketserver/node"
import { Cause, Context, Effect, Exit, Fiber, Layer, Logger, References, Scope } from "effect"
import { NetAddress } from "effect/net"
import { spawnSync } from "node:child_process"
import * as Net from "node:net"
import { join } from "node:path"
import { ExecServer, type ServeOptions } from "../src/exec.ts"
import { connect, startExample, targetIn, targetOf, temporaryDirectory, withEachClient } from "./utils.ts"

/** A server, what it logs, and how to end it. */
const serve = Effect.fnUntraced(function*(command: string, args: ReadonlyArray<string>, options?: ServeOptions) {
  const logs: Array<{ readonly level: string; readonly text: string; readonly command: unknown }> = []
  const logger = Logger.make(({ cause, fiber, logLevel, message }) => {
    const { command, server } = fiber.getRef(References.CurrentLogAnnotations)
    // Of the server's own lines, only failures matter here.
    if (server !== undefined && logLevel !== "Error") return
    const text = [message, ...cause.reasons.length > 0 ? [Cause.pretty(cause)] : []].flat().map(String).join(" ")
    logs.push({ level: logLevel, text, command })
  })
  const context = yield* Layer.build(
    Layer.fresh(ExecServer(0, command, args, options)).pipe(
      Layer.provide([Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "Debug")])
    )
  )
  const server = Context.get(context, Server.Server)
  return { server, target: targetOf(server.address), logs, logged: () => logs.map(({ text }) => text) }
})

/** Looks again and again: there is no event for these. The test's time limit is the only one. */
const until = (holds: () => boolean) =>
  Effect.repeat(
    Effect.andThen(
      Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void))),
      () => Effect.sync(holds)
    ),
    {
      until: (held) => held
    }
  )

/** A number that does not change any more, while the event loop has gone round so many times. */
const settled = Effect.fnUntraced(function*(count: () => number) {
  let before = -1
  let turns = 0
  yield* until(() => {
    turns = count() === before ? turns + 1 : 0
    before = count()
    return before > 0 && turns > 5_000
  })
  return before
})

/** Is anybody left of this process and what it has started? Who has ended, and only waits to be noticed, is not. */
const isAlive = (group: number): boolean => {
  try {
    process.kill(-group, 0)
  } catch {
    return false
  }
  const { stdout } = spawnSync("ps", ["-A", "-o", "pgid=,stat="], { encoding: "utf8" })
  return new RegExp(`^ *${group} +[^Z\\s]`, "m").test(stdout)
}

const isGone = (group: number) => until(() => !isAlive(group))

/** The process of the only connection. */
const pidOf = (server: Server.Server["Service"]) =>
  Effect.map(
    Effect.repeat(Effect.tap(server.connections.list, () => Effect.yieldNow), {
      until: ([connection]) => connection?.annotations.has("pid") === true
    }),
    ([connection]) => connection!.annotations.get("pid") as number
  )

/** A socket that does not read until it is told to. */
const dial = (target: ReturnType<typeof targetOf>) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket>((resume) => {
      const socket = Net.connect({ ...target, allowHalfOpen: true })
      socket.on("error", () => {})
      socket.once("connect", () => resume(Effect.succeed(socket)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

const receiveAll = (socket: Net.Socket) =>
  Effect.callback<Buffer, string>((resume) => {
    const chunks: Array<Buffer> = []
    socket.on("data", (chunk: Buffer) => void chunks.push(chunk))
    socket.once("end", () => resume(Effect.succeed(Buffer.concat(chunks))))
    socket.once("close", () => resume(Effect.fail("closed without an end")))
  })

describe("exec", () => {
  withEachClient(
    "makes a server of a command: what it prints after the client has finished arrives",
    (open) =>
      Effect.gen(function*() {
        const { target } = yield* serve("sort", [])
        const client = yield* open(target)
        yield* client.send("pear\napple\n")
        yield* client.send("fig\n")
        yield* client.finish
        assert.deepStrictEqual(yield* client.rest, ["apple", "fig", "pear"])
      })
  )

  withEachClient("lets a conversation go back and forth, a process for each client", (open) =>
    Effect.gen(function*() {
      const { target } = yield* serve("cat", [])
      const one = yield* open(target)
      const other = yield* open(target)
      yield* one.send("one\n")
      assert.strictEqual(yield* one.line, "one")
      yield* other.send("other\n")
      assert.strictEqual(yield* other.line, "other")
      yield* one.send("one again\n")
      yield* one.finish
      assert.deepStrictEqual(yield* one.rest, ["one again"])
    }))

  it.live("carries megabytes both ways, byte by byte the same", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("cat", [])
      const sent = Buffer.alloc(8 * 1024 * 1024 + 7)
      for (let i = 0, n = 1; i < sent.length; i++) sent[i] = (n = n * 48_271 % 2_147_483_647) >> 8
      const client = yield* dial(target)
      client.end(sent)
      assert.isTrue(sent.equals(yield* receiveAll(client)))
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.live("stops a process that writes when its client does not read, and lets it go on", () =>
    Effect.gen(function*() {
      // Tells of every 64 KiB that it has written.
      const { logged, target } = yield* serve("sh", ["-c", "while printf %065536d 0; do echo . >&2; done"])
      const written = () => logged().filter((line) => line === ".").length * 65_536
      const client = yield* dial(target)
      const stopped = yield* settled(written)
      // The system's buffers are some megabytes.
      assert.isBelow(stopped, 32 * 1024 * 1024)
      let received = 0
      client.on("data", ({ length }: Buffer) => void (received += length))
      yield* until(() => received > stopped + 1024 * 1024)
    }))

  it.live("stops reading from a client whose process does not read", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("sleep", ["1000"])
      const client = yield* dial(target)
      const chunk = Buffer.alloc(65_536)
      const write = () => {
        while (client.write(chunk)) { /* there is room */ }
      }
      client.on("drain", write)
      write()
      const pid = yield* pidOf(server)
      const sent = yield* settled(() => client.bytesWritten)
      assert.isBelow(sent, 32 * 1024 * 1024)
      assert.isBelow((yield* server.stats).bytesRead, 1024 * 1024)
      process.kill(pid)
      yield* server.awaitIdle
    }))

  it.live("closes when the process ends, though the client would go on", () =>
    Effect.gen(function*() {
      const { logged, server, target } = yield* serve("head", ["-n", "1"])
      const client = yield* connect(target)
      yield* client.send("first\nsecond\n")
      assert.deepStrictEqual(yield* client.rest, ["first"])
      yield* server.awaitIdle
      assert.deepStrictEqual(logged(), ["exit code 0"])
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.live("closes when the process ends without having read, and says how it ended in the log", () =>
    Effect.gen(function*() {
      const { logs, server, target } = yield* serve("sh", ["-c", "exit 3"])
      const client = yield* dial(target)
      const flood = setInterval(() => client.write(Buffer.alloc(65_536)), 0)
      yield* Effect.addFinalizer(() => Effect.sync(() => clearInterval(flood)))
      assert.strictEqual((yield* receiveAll(client)).length, 0)
      yield* server.awaitIdle
      assert.deepStrictEqual(logs, [{ level: "Debug", text: "exit code 3", command: "sh" }])
    }))

  it.live("ends the output with the process's, and lets it read on", () =>
    Effect.gen(function*() {
      const { logged, server, target } = yield* serve("sh", ["-c", "echo hello; exec >&-; wc -c >&2"])
      const client = yield* dial(target)
      assert.strictEqual(String(yield* receiveAll(client)), "hello\n")
      client.end("12345")
      yield* server.awaitIdle
      assert.deepStrictEqual(logged().map((line) => line.trim()), ["5", "exit code 0"])
    }))

  it.live("kills the process, and what that has started, when the client resets", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("sh", ["-c", "sleep 1000 & echo; sleep 1000"])
      const client = yield* dial(target)
      const pid = yield* pidOf(server)
      yield* Effect.callback<void>((resume) => void client.once("data", () => resume(Effect.void)))
      assert.isTrue(isAlive(pid))
      client.resetAndDestroy()
      yield* isGone(pid)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
    }))

  it.live("kills a process that writes for ever when its client resets without reading", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("yes", [])
      const client = yield* dial(target)
      const pid = yield* pidOf(server)
      client.resetAndDestroy()
      yield* isGone(pid)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
    }))

  it.live("notices a reset also where the process has closed its input", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("sh", ["-c", "exec <&-; echo; exec sleep 1000"])
      const client = yield* dial(target)
      const pid = yield* pidOf(server)
      yield* Effect.callback<void>((resume) => void client.once("data", () => resume(Effect.void)))
      const sent = 1024 * 1024
      client.write(Buffer.alloc(sent))
      yield* Effect.repeat(Effect.tap(server.stats, () => Effect.yieldNow), { until: (s) => s.bytesRead === sent })
      client.resetAndDestroy()
      yield* isGone(pid)
    }))

  it.live("does not take a reset for the end of the input", () =>
    Effect.gen(function*() {
      const { logged, server, target } = yield* serve("sh", ["-c", "trap '' TERM; cat; echo whole >&2"], {
        killAfter: "100 millis"
      })
      const client = yield* dial(target)
      client.write("half")
      yield* Effect.callback<void>((resume) => void client.once("data", () => resume(Effect.void)))
      client.resetAndDestroy()
      yield* server.awaitIdle
      assert.notInclude(logged(), "whole")
    }))

  it.live("fails the connection whose command does not exist, once in the log, and goes on", () =>
    Effect.gen(function*() {
      const { logs, server, target } = yield* serve("no-such-command", ["-x"])
      for (const n of [1, 2]) {
        const client = yield* connect(target)
        assert.deepStrictEqual(yield* client.rest, [])
        yield* server.awaitIdle
        assert.deepStrictEqual((yield* server.stats).closed, { HandlerFailed: n })
        assert.deepStrictEqual(logs.map(({ level }) => level), Array<string>(n).fill("Error"))
        assert.match(logs[n - 1]!.text, /CannotStart: cannot start no-such-command: NotFound/)
      }
    }))

  it.live("logs standard error by lines, bounded, and without control characters", () =>
    Effect.gen(function*() {
      const script = "printf 'one\\ntw\\033o\\n' >&2; printf %0300000d 0 >&2; printf '\\nlast' >&2"
      const { logged, logs, server, target } = yield* serve("sh", ["-c", script])
      const client = yield* connect(target)
      assert.deepStrictEqual(yield* client.rest, [])
      yield* server.awaitIdle
      assert.deepStrictEqual(logged(), ["one", "two", "0".repeat(Exec.maxLogged), "last", "exit code 0"])
      assert.isTrue(logs.every(({ command, level }) => level === "Debug" && command === "sh"))
    }))

  it.live("tells the process who its client is", () =>
    Effect.gen(function*() {
      process.env["TCPREMOTEHOST"] = "somebody.else"
      yield* Effect.addFinalizer(() => Effect.sync(() => delete process.env["TCPREMOTEHOST"]))
      const variables = ["PROTO", "TCPREMOTEIP", "TCPREMOTEPORT", "TCPLOCALIP", "TCPLOCALPORT"]
      const script = `echo ${variables.map((name) => `$${name}`).join(" ")} \${TCPREMOTEHOST-none}`
      const { server, target } = yield* serve("sh", ["-c", script])
      const client = yield* dial(target)
      const { localPort } = client
      assert(NetAddress.isInetAddress(server.address))
      assert.strictEqual(
        String(yield* receiveAll(client)),
        `TCP 127.0.0.1 ${localPort} 127.0.0.1 ${server.address.port} none\n`
      )
    }))

  it.live("serves a unix socket, too", () =>
    Effect.gen(function*() {
      const path = join(yield* temporaryDirectory, "exec.sock")
      yield* Effect.gen(function*() {
        const client = yield* connect({ path })
        assert.deepStrictEqual(yield* client.rest, ["UNIX none"])
      }).pipe(
        Effect.scoped,
        Effect.provide(
          NodeTransport.unix({ path }).pipe(
            Dispatch.serial(),
            Server.serveStream(Exec.exec("sh", ["-c", "echo $PROTO ${TCPREMOTEIP-none}"])),
            Layer.provide(NodeServices.layer)
          )
        )
      )
    }))

  it.live("runs so many processes at a time, and the next when one has ended", () =>
    Effect.gen(function*() {
      const { server, target } = yield* serve("sh", ["-c", "echo $$; cat"], { maxInFlight: 1 })
      const one = yield* connect(target)
      const other = yield* connect(target)
      const pid = Number(yield* one.line)
      const waiting = yield* Effect.forkChild(other.line)
      yield* Effect.repeat(Effect.tap(server.stats, () => Effect.yieldNow), { until: ({ queued }) => queued === 1 })
      assert.strictEqual((yield* server.stats).inFlight, 1)
      yield* one.finish
      assert.notStrictEqual(Number(yield* Fiber.join(waiting)), pid)
      assert.isFalse(isAlive(pid))
    }))

  describe("in a drain", () => {
    it.live("ends the input, and what the process says to that arrives", () =>
      Effect.gen(function*() {
        const { server, target } = yield* serve("sh", ["-c", "cat; echo goodbye"])
        const client = yield* connect(target)
        yield* client.send("hello\n")
        assert.strictEqual(yield* client.line, "hello")
        const report = yield* server.drain()
        assert.deepStrictEqual(yield* client.rest, ["goodbye"])
        assert.deepStrictEqual([report.idleClosed, report.interrupted], [1, 0])
      }))

    it.live("after the grace sends SIGTERM, and what the process says to that arrives", () =>
      Effect.gen(function*() {
        // Not a shell: it would lose a signal that comes while it starts something.
        const script = `process.on("SIGTERM", () => { console.log("terminated"); process.exit() })
          console.log("ready"); setInterval(() => {}, 1000)`
        const { logged, server, target } = yield* serve(process.execPath, ["-e", script])
        const client = yield* connect(target)
        assert.strictEqual(yield* client.line, "ready")
        const pid = yield* pidOf(server)
        const report = yield* server.drain({ grace: "10 millis", kill: "10 seconds" })
        assert.deepStrictEqual(yield* client.rest, ["terminated"])
        assert.deepStrictEqual([report.interrupted, report.killed], [1, 0])
        assert.isFalse(isAlive(pid))
        assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1 })
        assert.strictEqual(logged().at(-1), "exit code 0")
      }))

    it.live("kills a process that does not mind SIGTERM, and what that has started, before the scope has closed", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const script = "trap '' TERM; echo ready; sleep 1000"
        const options = { grace: "10 millis", killAfter: "100 millis" } as const
        const { logged, server, target } = yield* Scope.provide(serve("sh", ["-c", script], options), scope)
        const client = yield* connect(target)
        assert.strictEqual(yield* client.line, "ready")
        const pid = yield* pidOf(server)
        yield* Scope.close(scope, Exit.void)
        assert.isFalse(isAlive(pid))
        assert.deepStrictEqual(yield* client.rest, [])
        assert.deepStrictEqual((yield* server.stats).closed, { Drained: 1 })
        assert.include(logged().at(-1), "SIGKILL")
      }))
  })

  it.live("runs by itself, shows its log if asked to, and on SIGINT ends its processes and exits with 0", () =>
    Effect.gen(function*() {
      const args = ["sh", "-c", "echo note >&2; cat; echo goodbye"]
      const program = yield* startExample("exec", { PORT: "0", LOG_LEVEL: "Debug" }, args)
      const client = yield* connect(targetIn(yield* program.line))
      yield* client.send("hello\n")
      assert.strictEqual(yield* client.line, "hello")
      yield* program.signal("SIGINT")
      assert.deepStrictEqual(yield* client.rest, ["goodbye"])
      const output = (yield* program.rest).join("\n")
      assert.match(output, /note/)
      assert.match(output, /exit code 0/)
      assert.match(output, /^exec: drained in \d+ ms; /m)
      assert.strictEqual(yield* program.exitCode, 0)
    }))

  it.live("asks for a command", () =>
    Effect.gen(function*() {
      const program = yield* startExample("exec", { PORT: "0" })
      assert.match((yield* program.errors).join("\n"), /^exec: which command\? .*$/)
      assert.strictEqual(yield* program.exitCode, 1)
    }))
})
