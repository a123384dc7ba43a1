/** The syslog sink: what it makes of messages, and messages from `logger`. */
import { assert, describe, it } from "@effect/vitest"
import { MemoryTransport, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { UnixDatagram } from "@socketserver/unix-datagram"
import { Deferred, Effect, Layer, Queue } from "effect"
import { readdirSync } from "node:fs"
import { join } from "node:path"
import { type Message, parse, Syslog } from "../src/syslog.ts"
import { connectDatagram, loggerMissing, start, startExample, targetOf, temporaryDirectory } from "./utils.ts"

const examples: ReadonlyArray<readonly [packet: string, facility: string, severity: string, message: string]> = [
  // From the RFCs.
  ["<34>Oct 11 22:14:15 mymachine su: 'su root' failed", "auth", "crit", "su: 'su root' failed"],
  ["<0>Oct  1 22:14:15 mymachine panic", "kern", "emerg", "panic"],
  ["<34>1 2003-10-11T22:14:15.003Z host su - ID47 - \uFEFF'su root' failed", "auth", "crit", "'su root' failed"],
  ["<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 p 8710 - - %% time", "local4", "notice", "%% time"],
  ["<165>1 2003-10-11T22:14:15.003Z host p - ID47 [a@1 b=\"3\"][c@1 d=\"\\\"]\\\\\"] text", "local4", "notice", "text"],
  ["<165>1 - - - - - [a@1 b=\"3\"]", "local4", "notice", ""],
  // As programs send them.
  ["<13>Nov  1 10:41:00 cron[17]: no host", "user", "notice", "cron[17]: no host"],
  ["<13>no time, no host", "user", "notice", "no time, no host"],
  ["<191>a line\r\n\0", "local7", "debug", "a line"],
  ["<13>1 - - - - - - Oct 11 22:14:15 is a time", "user", "notice", "Oct 11 22:14:15 is a time"],
  ["<13>", "user", "notice", ""],
  // No priority: a user's notice, as it is.
  ["<192>no such facility", "user", "notice", "<192>no such facility"],
  ["<1", "user", "notice", "<1"],
  ["<>x", "user", "notice", "<>x"],
  ["<013>x", "user", "notice", "<013>x"],
  ["<-1>x", "user", "notice", "<-1>x"],
  ["hello", "user", "notice", "hello"],
  ["", "user", "notice", ""]
]

/** A server that puts what it gets into a queue. */
const collect = Effect.fnUntraced(function*(transport: Parameters<typeof Syslog>[1]) {
  const messages = yield* Queue.unbounded<Message>()
  const context = yield* Layer.build(Syslog((message) => Queue.offer(messages, message), transport))
  const server = yield* Effect.provideContext(Server.Server, context)
  return { server, next: Queue.take(messages) }
})

describe("syslog", () => {
  for (const [packet, facility, severity, message] of examples) {
    it(`reads ${JSON.stringify(packet)}`, () => {
      assert.deepStrictEqual<unknown>(parse(packet), { facility, severity, message })
    })
  }

  it.effect("hands on all messages, in order, also those that are no text", () =>
    Effect.gen(function*() {
      const { next, server } = yield* collect(MemoryTransport.datagram())
      const client = yield* MemoryTransport.bindDatagram({ name: "" })
      yield* client.send(server.address, "<11>first")
      yield* client.send(server.address, Uint8Array.of(0x3c, 0x30, 0x3e, 0xff))
      yield* client.send(server.address, "<14>last")
      assert.deepStrictEqual(yield* next, { facility: "user", severity: "err", message: "first" })
      assert.deepStrictEqual(yield* next, { facility: "kern", severity: "emerg", message: "\uFFFD" })
      assert.deepStrictEqual(yield* next, { facility: "user", severity: "info", message: "last" })
    }))

  it.effect("hands on a message when the one before has been taken care of", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const began = yield* Queue.unbounded<string>()
      const ended = yield* Queue.unbounded<string>()
      const sink = ({ message }: Message) =>
        Effect.andThen(
          Queue.offer(began, message),
          Effect.andThen(Deferred.await(gate), Queue.offer(ended, message))
        )
      const context = yield* Layer.build(Syslog(sink, MemoryTransport.datagram()))
      const server = yield* Effect.provideContext(Server.Server, context)
      const client = yield* MemoryTransport.bindDatagram()
      for (const message of ["1", "2", "3"]) yield* client.send(server.address, `<13>${message}`)
      assert.strictEqual(yield* Queue.take(began), "1")
      assert.strictEqual(yield* Queue.size(began), 0)
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Queue.takeN(ended, 3), ["1", "2", "3"])
    }))

  const transports: Record<string, (directory: string) => Parameters<typeof Syslog>[1]> = {
    UDP: () => NodeTransport.udp({ host: "127.0.0.1", port: 0 }),
    "a unix datagram socket": (directory) => UnixDatagram.transport({ path: join(directory, "log.sock") })
  }
  for (const [name, transport] of Object.entries(transports)) {
    it.live.skipIf(loggerMissing !== undefined)(
      `reads what logger sends over ${name}${loggerMissing === undefined ? "" : ` (${loggerMissing})`}`,
      () =>
        Effect.gen(function*() {
          const { next, server } = yield* collect(transport(yield* temporaryDirectory))
          const target = targetOf(server.address)
          const to = "path" in target ? ["-u", target.path] : ["--udp", "-n", target.host, "-P", String(target.port)]
          const logger = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
            const program = yield* start("logger", [...to, "-d", "-t", "test", ...args])
            assert.deepStrictEqual(yield* program.errors, [])
            assert.strictEqual(yield* program.exitCode, 0)
            return yield* next
          })
          assert.deepStrictEqual(yield* logger("hello, world"), {
            facility: "user",
            severity: "notice",
            // On the socket of its own machine it is brief: time and program, and no host.
            message: "path" in target ? "test: hello, world" : "hello, world"
          })
          assert.deepStrictEqual(yield* logger("--rfc5424", "-p", "local3.err", "it [is] \"broken\""), {
            facility: "local3",
            severity: "err",
            message: "it [is] \"broken\""
          })
          assert.deepStrictEqual(yield* logger("--rfc3164", "-p", "daemon.debug", "it works"), {
            facility: "daemon",
            severity: "debug",
            message: "test: it works"
          })
        })
    )
  }

  it.live.skipIf(loggerMissing !== undefined)(
    `runs by itself on a unix datagram socket, and removes it${
      loggerMissing === undefined ? "" : ` (${loggerMissing})`
    }`,
    () =>
      Effect.gen(function*() {
        const directory = yield* temporaryDirectory
        const path = join(directory, "log.sock")
        const program = yield* startExample("syslog", { SOCKET: path })
        assert.strictEqual(yield* program.line, `syslog: logger -d -u ${path} hello`)
        const logger = yield* start("logger", ["-d", "-u", path, "-t", "test", "-p", "user.err", "hello"])
        assert.strictEqual(yield* logger.exitCode, 0)
        assert.strictEqual(yield* program.line, "user.err: test: hello")
        yield* program.signal("SIGINT")
        assert.match((yield* program.rest).join("\n"), /^syslog: drained in \d+ ms; .*$/)
        assert.strictEqual(yield* program.exitCode, 0)
        assert.deepStrictEqual(readdirSync(directory), [])
      })
  )

  it.live("runs by itself: prints messages without their control characters, and on SIGINT exits with 0", () =>
    Effect.gen(function*() {
      const program = yield* startExample("syslog", { PORT: "0" })
      const [, host, port] = /^syslog: logger --udp -d -n (\S+) -P (\d+) hello$/.exec(yield* program.line) ?? []
      const client = yield* connectDatagram(host!, Number(port))
      yield* client.send("<11>over \u001b[2Judp\n")
      assert.strictEqual(yield* program.line, "user.err: over [2Judp")
      yield* program.signal("SIGINT")
      assert.match((yield* program.rest).join("\n"), /^syslog: drained in \d+ ms; .*$/)
      assert.deepStrictEqual(yield* program.errors, [])
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
