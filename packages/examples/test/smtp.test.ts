/** The mail server: its protocol in memory, TLS and its traps with `openssl`, and mails from `swaks`. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, MemoryTransport, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Array as Arr, Cause, Context, Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { execFileSync } from "node:child_process"
import * as Net from "node:net"
import { join } from "node:path"
import * as Tls from "node:tls"
import { Inbox, limits, type Mail, Smtp } from "../src/smtp.ts"
import { start, startExample, swaksMissing, targetOf, temporaryDirectory } from "./utils.ts"

const text = (mail: Mail) => new TextDecoder().decode(mail.content)

const InMemory = (capacity = 10) =>
  Smtp({ name: "mx.test", startTls: false }, MemoryTransport.stream()).pipe(
    Layer.provideMerge(Inbox.layer(capacity))
  )

/** Sends a line; gives the answer, whose lines but the last have a `-`. */
const say = Effect.fnUntraced(function*(client: Connection.Connection, line: string) {
  yield* client.write(`${line}\r\n`)
  return yield* answer(client)
})
const answer = Effect.fnUntraced(function*(client: Connection.Connection) {
  const lines = []
  do lines.push(yield* client.readLine())
  while (lines.at(-1)![3] === "-")
  return lines.join("\n")
})

/** A client that has been greeted. */
const connect = Effect.gen(function*() {
  const client = yield* MemoryTransport.connect((yield* Server.Server).address)
  assert.strictEqual(yield* client.readLine(), "220 mx.test ESMTP")
  return client
})
/** A client that has said who it is, whom the mail is from and for, and may send it. */
const begin = Effect.gen(function*() {
  const client = yield* connect
  for (const line of ["EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>"]) {
    assert.match(yield* say(client, line), /^250/)
  }
  assert.match(yield* say(client, "DATA"), /^354/)
  return client
})

const certificate = Effect.map(temporaryDirectory, (directory) => {
  const certFile = join(directory, "cert.pem")
  const keyFile = join(directory, "key.pem")
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
  const args = ["req", "-x509", ...curve, "-subj", "/CN=localhost", "-days", "2", "-keyout", keyFile, "-out", certFile]
  execFileSync("openssl", args, { stdio: "pipe" })
  return { certFile, keyFile }
})

/** A server on a port of this machine, with STARTTLS. */
const listen = Effect.gen(function*() {
  const transport = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
    NodeTransport.startTls(yield* certificate)
  )
  const context = yield* Layer.build(
    Layer.provideMerge(Smtp({ name: "mx.test", startTls: true }, transport), Inbox.layer(10))
  )
  const target = targetOf(Context.get(context, Server.Server).address)
  if (!("port" in target)) return yield* Effect.die("not a port")
  return { target, inbox: Context.get(context, Inbox) }
})

const words = (text: string) => text.split(" ")

/** Answers of a socket, one by one. */
const talk = (socket: Net.Socket) => {
  let received = ""
  const waiting: Array<() => void> = []
  socket.setEncoding("latin1").on("data", (text: string) => {
    received += text
    waiting.shift()?.()
  })
  const next = async (): Promise<string> => {
    while (true) {
      const found = /^(?:\d{3}-.*\r\n)*\d{3} .*\r\n/.exec(received)
      if (found !== null) {
        received = received.slice(found[0].length)
        return found[0].trimEnd()
      }
      await new Promise<void>((resolve, reject) => {
        waiting.push(resolve)
        socket.once("close", () => reject(new Error(`closed, after ${JSON.stringify(received)}`)))
      })
    }
  }
  return {
    answer: Effect.promise(next),
    say: (line: string) => Effect.promise(() => (socket.write(`${line}\r\n`), next()))
  }
}

const open = (target: Net.NetConnectOpts) =>
  Effect.acquireRelease(Effect.sync(() => Net.connect(target)), (socket) => Effect.sync(() => socket.destroy()))

const overTls = (socket: Net.Socket) =>
  Effect.callback<Tls.TLSSocket, Error>((resume) => {
    const tls = Tls.connect({ socket, rejectUnauthorized: false })
    tls.once("secureConnect", () => resume(Effect.succeed(tls)))
    tls.on("error", (error) => resume(Effect.fail(error)))
  })

describe("smtp", () => {
  it.effect("takes a mail, undoes its dots, and keeps it", () =>
    Effect.gen(function*() {
      const client = yield* begin
      assert.match(yield* say(client, "Subject: hello\r\n\r\n..\r\n..leading\r\nbody\r\n."), /^250/)
      const mail = yield* Inbox.use((inbox) => inbox.take)
      assert.deepStrictEqual({ ...mail, content: text(mail) }, {
        helo: "me",
        encrypted: false,
        from: "a@b.c",
        to: ["d@e.f"],
        content: "Subject: hello\r\n\r\n.\r\n.leading\r\nbody\r\n"
      })
      assert.strictEqual(yield* say(client, "QUIT"), "221 2.0.0 bye")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.readLine())))
    }).pipe(Effect.provide(InMemory())))

  it.effect("takes an empty mail, and one from nobody, with a route and quotes", () =>
    Effect.gen(function*() {
      const client = yield* begin
      assert.match(yield* say(client, "."), /^250/)
      assert.match(yield* say(client, "mail from:<> SIZE=10 BODY=8BITMIME"), /^250/)
      assert.match(yield* say(client, "rcpt to:<@x,@y:\"a > b\"@c.d>"), /^250/)
      assert.match(yield* say(client, "data"), /^354/)
      assert.match(yield* say(client, "x\r\n."), /^250/)
      const inbox = yield* Inbox
      assert.strictEqual((yield* inbox.take).content.length, 0)
      const { from, to } = yield* inbox.take
      assert.deepStrictEqual({ from, to }, { from: "", to: ["\"a > b\"@c.d"] })
    }).pipe(Effect.provide(InMemory())))

  it.effect("answers a session that comes in one piece, command by command", () =>
    Effect.gen(function*() {
      const client = yield* connect
      yield* client.write("EHLO me\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\nhello\r\n.\r\nNOOP\r\nQUIT\r\n")
      const codes = []
      for (let i = 0; i < 7; i++) codes.push((yield* answer(client)).slice(0, 3))
      assert.deepStrictEqual(codes, ["250", "250", "250", "354", "250", "250", "221"])
    }).pipe(Effect.provide(InMemory())))

  const orders: ReadonlyArray<readonly [before: ReadonlyArray<string>, line: string, code: string]> = [
    [[], "MAIL FROM:<a@b.c>", "503"],
    [["HELO me"], "RCPT TO:<a@b.c>", "503"],
    [["HELO me"], "DATA", "503"],
    [["HELO me", "MAIL FROM:<a@b.c>"], "DATA", "554"],
    [["HELO me", "MAIL FROM:<a@b.c>"], "MAIL FROM:<a@b.c>", "503"],
    [["HELO me", "MAIL FROM:<a@b.c>", "RSET"], "RCPT TO:<a@b.c>", "503"],
    [["HELO me", "MAIL FROM:<a@b.c>", "EHLO me"], "RCPT TO:<a@b.c>", "503"],
    [["HELO me"], "MAIL FROM:a@b.c", "501"],
    [["HELO me"], "MAIL <a@b.c>", "501"],
    [["HELO me"], `MAIL FROM:<a@b.c> SIZE=${limits.size + 1}`, "552"],
    [["HELO me"], "MAIL FROM:<a@b.c> RET=FULL", "555"],
    [["HELO me", "MAIL FROM:<a@b.c>"], "RCPT TO:<>", "501"],
    [["HELO me", "MAIL FROM:<a@b.c>"], "RCPT TO:<a@b.c> NOTIFY=NEVER", "555"],
    [[], "HELO", "501"],
    [[], "STARTTLS", "454"],
    [[], "VRFY me", "252"],
    [[], "EXPN all", "502"],
    [[], "GET / HTTP/1.1", "500"],
    [[], "NOOP\u0000", "500"],
    [[], "NOOP\nNOOP", "500"],
    [[], "", "500"],
    [[], `NOOP ${"x".repeat(limits.command)}`, "500"],
    [[], `NOOP ${"x".repeat(100_000)}`, "500"],
    [[], `NOOP ${"x".repeat(limits.command - 5)}`, "250"]
  ]
  for (const [before, line, code] of orders) {
    it.effect(`answers ${[...before, line].map((line) => JSON.stringify(line.slice(0, 40))).join(", ")} with ${code}`, () =>
      Effect.gen(function*() {
        const client = yield* connect
        for (const line of before) assert.match(yield* say(client, line), /^250/)
        assert.strictEqual((yield* say(client, line)).slice(0, 3), code)
        // It goes on.
        assert.match(yield* say(client, "NOOP"), /^250/)
      }).pipe(Effect.provide(InMemory())))
  }

  it.effect("takes as many recipients as it says, and says so to the next", () =>
    Effect.gen(function*() {
      const client = yield* connect
      for (const line of ["HELO me", "MAIL FROM:<a@b.c>"]) yield* say(client, line)
      for (let i = 0; i < limits.recipients; i++) assert.match(yield* say(client, `RCPT TO:<${i}@b.c>`), /^250/)
      assert.match(yield* say(client, "RCPT TO:<one@too.many>"), /^452/)
    }).pipe(Effect.provide(InMemory())))

  const line = (length: number) => `${"x".repeat(length)}\r\n`
  const lines = (count: number) => line(998).repeat(count)
  const contents: ReadonlyArray<readonly [name: string, content: string, code: string]> = [
    ["a line of 1000 bytes", line(998), "250"],
    ["a line of 1001 bytes", line(999), "554"],
    ["a line of 1000 bytes and a dot more", `.${line(998)}`.replace("x", "."), "250"],
    ["a line of 1001 bytes and a dot more", `.${line(999)}`.replace("x", "."), "554"],
    ["one line of a megabyte", line(1_048_576), "554"],
    ["as many bytes as are allowed", lines(1048) + line(574), "250"],
    ["one byte more than is allowed", lines(1048) + line(575), "552"],
    ["three times as much as is allowed", lines(3145), "552"],
    ["an LF without its CR", "a\nb\r\n", "554"],
    ["a CR without its LF", "a\rb\r\n", "554"],
    ["a dot between LFs, and commands behind it", "a\n.\nMAIL FROM:<evil@b.c>\r\n", "554"],
    ["a dot behind a bare LF, and commands behind it", "a\n.\r\nMAIL FROM:<evil@b.c>\r\n", "554"]
  ]
  for (const [name, content, code] of contents) {
    it.effect(`answers a mail with ${name} once, with ${code}`, () =>
      Effect.gen(function*() {
        const client = yield* begin
        const sending = yield* Effect.forkChild(client.write(`${content}.\r\nNOOP\r\n`))
        assert.strictEqual((yield* answer(client)).slice(0, 3), code)
        assert.match(yield* answer(client), /^250 2.0.0 here/)
        yield* Fiber.join(sending)
      }).pipe(Effect.provide(InMemory())))
  }

  it.effect("tells senders to come back when the inbox is full, and has room when a mail is taken", () =>
    Effect.gen(function*() {
      const inbox = yield* Inbox
      const send = (content: string) => Effect.scoped(Effect.flatMap(begin, (client) => say(client, `${content}\r\n.`)))
      assert.match(yield* send("1"), /^250/)
      assert.match(yield* send("2"), /^452/)
      assert.strictEqual(text(yield* inbox.take), "1\r\n")
      assert.match(yield* send("3"), /^250/)
    }).pipe(Effect.provide(InMemory(1))))

  it.effect("closes on a client that speaks another protocol", () =>
    Effect.gen(function*() {
      const client = yield* connect
      yield* client.write("Some-Header: value\r\n".repeat(30))
      for (let i = 0; i < limits.errors; i++) assert.match(yield* answer(client), /^500/)
      assert.match(yield* answer(client), /^421/)
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.readLine())))
    }).pipe(Effect.provide(InMemory())))

  it.effect("says goodbye to a client that is silent, and to one that is slow", () =>
    Effect.gen(function*() {
      const silent = yield* connect
      const slow = yield* begin
      for (let minute = 0; minute < 4; minute++) {
        yield* slow.write("x")
        yield* TestClock.adjust("1 minute")
      }
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* silent.readLine(), "421 4.4.2 mx.test too silent")
      for (let minute = 0; minute < 4; minute++) {
        yield* slow.write("x")
        yield* TestClock.adjust("1 minute")
      }
      yield* slow.write("x")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* slow.readLine(), "421 4.4.2 mx.test too slow")
      const server = yield* Server.Server
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { IdleTimeout: 1, Completed: 1 })
    }).pipe(Effect.provide(InMemory())))

  it.effect("does not wait for ever for a client that does not read its answers", () =>
    Effect.gen(function*() {
      const client = yield* connect
      const server = yield* Server.Server
      yield* Effect.forkChild(Effect.ignore(client.write("NOOP\r\n".repeat(100_000))))
      // Until the answers do not fit any more, a long way from all of them.
      for (let written = 0, before = -1; written > before;) {
        before = written
        for (let turns = 0; turns < 1_000; turns++) yield* Effect.yieldNow
        written = (yield* server.stats).bytesWritten
      }
      assert.isBelow((yield* server.stats).bytesWritten, 200_000)
      yield* TestClock.adjust("11 minutes")
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).open, 0)
    }).pipe(Effect.provide(InMemory())))

  it.effect("drains: waits for the rest of a mail, and tells the others", () =>
    Effect.gen(function*() {
      const sender = yield* begin
      const idle = yield* connect
      yield* sender.write("first line\r\n")
      const server = yield* Server.Server
      const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      assert.match(yield* idle.readLine(), /^421 4.3.2/)
      assert.match(yield* say(sender, "last line\r\n."), /^250/)
      assert.match(yield* sender.readLine(), /^421 4.3.2/)
      yield* Fiber.join(draining)
      const mail = yield* Inbox.use((inbox) => inbox.take)
      assert.strictEqual(text(mail), "first line\r\nlast line\r\n")
    }).pipe(Effect.provide(InMemory())))

  it.live("discards commands that came in clear behind STARTTLS, and what was said before", () =>
    Effect.gen(function*() {
      const { inbox, target } = yield* listen
      const socket = yield* open(target)
      const clear = talk(socket)
      yield* clear.answer
      assert.match(yield* clear.say("EHLO me"), /250 STARTTLS$/)
      assert.match(yield* clear.say("MAIL FROM:<victim@b.c>"), /^250/)
      // In one segment: the client's request, and what somebody in between has put behind it.
      const injected = "MAIL FROM:<evil@b.c>\r\nRCPT TO:<evil@b.c>\r\nDATA\r\nstolen: "
      assert.match(yield* clear.say(`STARTTLS\r\nEHLO evil\r\n${injected}`), /^220/)
      socket.removeAllListeners("data")
      const tls = talk(yield* overTls(socket))
      assert.match(yield* tls.say("MAIL FROM:<a@b.c>"), /^503/)
      const greeting = yield* tls.say("EHLO me")
      assert.match(greeting, /^250-mx.test/)
      assert.notInclude(greeting, "STARTTLS")
      assert.match(yield* tls.say("STARTTLS"), /^503/)
      assert.match(yield* tls.say("RCPT TO:<d@e.f>"), /^503/)
      assert.match(yield* tls.say("MAIL FROM:<a@b.c>"), /^250/)
      assert.match(yield* tls.say("RCPT TO:<d@e.f>"), /^250/)
      assert.match(yield* tls.say("DATA"), /^354/)
      assert.match(yield* tls.say("hello\r\n."), /^250/)
      const mail = yield* inbox.take
      assert.deepStrictEqual({ ...mail, content: text(mail) }, {
        helo: "me",
        encrypted: true,
        from: "a@b.c",
        to: ["d@e.f"],
        content: "hello\r\n"
      })
    }))

  for (const version of ["-tls1_2", "-tls1_3"]) {
    it.live(`talks with openssl s_client -starttls smtp ${version}`, () =>
      Effect.gen(function*() {
        const { inbox, target } = yield* listen
        const client = yield* start("openssl", [
          "s_client",
          "-starttls",
          "smtp",
          "-quiet",
          "-crlf",
          version,
          "-connect",
          `${target.host}:${target.port}`
        ])
        for (const [line, code] of [["EHLO me", "250"], ["MAIL FROM:<a@b.c>", "250"], ["RCPT TO:<d@e.f>", "250"]]) {
          yield* client.send(`${line}\n`)
          let reply = ""
          do reply = yield* client.line
          while (reply[3] === "-")
          assert.strictEqual(reply.slice(0, 3), code)
        }
        yield* client.send("DATA\n")
        assert.match(yield* client.line, /^354/)
        yield* client.send("..dots\n.\n")
        assert.match(yield* client.line, /^250/)
        const mail = yield* inbox.take
        assert.deepStrictEqual([mail.encrypted, text(mail)], [true, ".dots\r\n"])
        // A lower-case one: openssl takes a Q at the beginning of a line for its own.
        yield* client.send("quit\n")
        assert.match(yield* client.line, /^221/)
        yield* client.exitCode
      }))
  }

  const senders: ReadonlyArray<readonly [name: string, args: ReadonlyArray<string>, encrypted: boolean]> = [
    ["swaks", [], false],
    ["swaks --tls", ["--tls"], true],
    ["swaks --pipeline", ["--pipeline"], false],
    ["swaks --tls --pipeline", ["--tls", "--pipeline"], true]
  ]
  for (const [name, args, encrypted] of senders) {
    it.live(`takes the mail of ${name}`, () =>
      Effect.gen(function*() {
        assert.isUndefined(swaksMissing)
        const { inbox, target } = yield* listen
        const swaks = yield* start("swaks", [
          ...words(`--server ${target.host}:${target.port} --helo me --from a@b.c --to d@e.f,g@h.i`),
          ...args,
          "--body",
          "one\\n.\\n..two\\nthree"
        ])
        const transcript = (yield* swaks.rest).join("\n")
        assert.strictEqual(yield* swaks.exitCode, 0, transcript)
        const mail = yield* inbox.take
        assert.deepStrictEqual([mail.encrypted, mail.helo, mail.from, mail.to], [
          encrypted,
          "me",
          "a@b.c",
          ["d@e.f", "g@h.i"]
        ])
        assert.include(text(mail), "\r\n\r\none\r\n.\r\n..two\r\nthree\r\n")
      }))
  }

  it.live("runs by itself: prints mails without their control characters, and on SIGINT exits with 0", () =>
    Effect.gen(function*() {
      assert.isUndefined(swaksMissing)
      const { certFile, keyFile } = yield* certificate
      const program = yield* startExample("smtp", { PORT: "0", CERT_FILE: certFile, KEY_FILE: keyFile })
      const [, server] = /^smtp: swaks --server (\S+) --to me@example.org$/.exec(yield* program.line) ?? []
      const swaks = yield* start("swaks", [
        ...words(`--server ${server} --tls --helo me --from a@b.c --to d@e.f`),
        "--data",
        "Subject: hi\\n\\n\u001b[2Jhello"
      ])
      const transcript = (yield* swaks.rest).join("\n")
      assert.strictEqual(yield* swaks.exitCode, 0, transcript)
      assert.deepStrictEqual(yield* Effect.all(Arr.makeBy(4, () => program.line)), [
        "mail from <a@b.c> to <d@e.f>, by me over TLS:",
        "Subject: hi",
        "",
        "[2Jhello"
      ])
      yield* program.signal("SIGINT")
      assert.match((yield* program.rest).at(-1)!, /^smtp: drained in \d+ ms; .*$/)
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
