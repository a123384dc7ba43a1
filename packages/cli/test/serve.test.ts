/** `socketserver serve` and `exec`, as a user has them: processes, and clients that nobody here wrote. */
import { assert, describe, it } from "@effect/vitest"
import { Framing } from "@socketserver/core"
import { Effect, Schedule } from "effect"
import { spawnSync } from "node:child_process"
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import * as Net from "node:net"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { named } from "../src/internal/framings.ts"
import { ask, bin, commands, connect, directory, handlers, messages, start } from "./utils.ts"

/** A directory in which modules find the workspace's packages. */
const workspace = Effect.map(directory, (folder) => {
  symlinkSync(fileURLToPath(new URL("../node_modules", import.meta.url)), join(folder, "node_modules"))
  writeFileSync(join(folder, "package.json"), "{\"type\":\"module\"}")
  return folder
})

/** A certificate for this machine, and its key. */
const certificate = (folder: string) => {
  const [cert, key] = [join(folder, "cert.pem"), join(folder, "key.pem")]
  const { status } = spawnSync("openssl", [
    ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost".split(" "),
    "-keyout",
    key,
    "-out",
    cert
  ])
  assert.strictEqual(status, 0, "needs openssl: apt-get install openssl")
  return { cert, key }
}

const eventLoopTurn = Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))

const isGone = (report: RegExp) => (lines: ReadonlyArray<string>) => lines.some((line) => report.test(line))

describe("serve", () => {
  it.live("serves one module over TCP, a unix socket and UDP, and on SIGTERM drains, reports, and exits with 0", () =>
    Effect.gen(function*() {
      const { runtime, serve } = yield* commands
      const path = join(runtime, "x.sock")
      const server = yield* serve("serve", handlers, "--tcp", "0", "--unix", path, "--udp", "0")
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "over tcp\n"), ["OVER TCP"])
      assert.deepStrictEqual(yield* ask(path, "over unix\n"), ["OVER UNIX"])
      const udp = yield* start("socat", ["-", `UDP:${server.at["udp"]}`])
      yield* udp.send("a packet\n")
      assert.strictEqual(yield* udp.out.line, "A PACKET")

      const idle = yield* connect(server.at["tcp"]!)
      yield* idle.send("stays\n")
      assert.strictEqual(yield* idle.out.line, "STAYS")
      yield* server.signal("SIGTERM")
      assert.deepStrictEqual(yield* idle.out.rest, [])
      yield* idle.finish
      const report = yield* server.out.rest
      assert.strictEqual(report.length, 3)
      assert.isTrue(isGone(/^tcp: drained in \d+ ms; idle connections ended: 1, completed: 0, interrupted: 0/)(report))
      assert.deepStrictEqual(yield* server.errors.rest, [])
      assert.strictEqual(yield* server.exitCode, 0)
      assert.isFalse(existsSync(path))
    }))

  it.live("has a page to be operated by, with --dashboard, behind a token of its making or yours", () =>
    Effect.gen(function*() {
      const { env, spawned } = yield* commands
      const args = ["serve", handlers, "--tcp", "0", "--control", "none", "--dashboard", "0"]
      const ask = (url: string, token: string, body?: string) =>
        Effect.promise(() =>
          fetch(url, {
            headers: { authorization: `Bearer ${token}` },
            ...body === undefined ? {} : { method: "POST", body }
          }).then(async (answer) => [answer.status, await answer.text()] as const)
        )

      const own = yield* spawned(args)
      const [, url, made] = yield* own.out.lineWith(
        /dashboard at (http:\/\/127\.0\.0\.1:\d+\/dashboard)#token=(.{32})$/
      )
      assert.strictEqual((yield* ask(`${url}/data`, "another token of tests"))[0], 401)
      const [status, text] = yield* ask(`${url}/data`, made!)
      assert.strictEqual(status, 200)
      assert.include(text, `"latency":{"bounds":[]`)
      const [, report] = yield* ask(`${url}/do`, made!, `{"do":"drain"}`)
      assert.isTrue(JSON.parse(report).ok)
      assert.strictEqual(yield* own.exitCode, 0)

      const given = yield* start(process.execPath, [bin, ...args], {
        env: { ...env, SOCKETSERVER_DASHBOARD_TOKEN: "a token of the tests" }
      })
      const [, page] = yield* given.out.lineWith(/dashboard at (\S+)$/)
      assert.notInclude(page, "token")
      assert.strictEqual((yield* ask(`${page}/data`, "a token of the tests"))[0], 200)

      const short = yield* start(process.execPath, [bin, ...args], {
        env: { ...env, SOCKETSERVER_DASHBOARD_TOKEN: "secret" }
      })
      assert.strictEqual(yield* short.exitCode, 1)
      const errors = (yield* short.errors.rest).join("\n")
      assert.strictEqual(errors, "no dashboard: SOCKETSERVER_DASHBOARD_TOKEN has to have at least 16 characters")
    }))

  it.live("ends, with a page, also while somebody has sent half a request to that, and logs nothing of it", () =>
    Effect.gen(function*() {
      const { spawned } = yield* commands
      const server = yield* spawned(["serve", handlers, "--tcp", "0", "--control", "none", "--dashboard", "0"])
      const [, at] = yield* server.out.lineWith(/dashboard at http:\/\/(\S+)\/dashboard/)
      yield* server.out.lineWith(/^Ctrl-C/)
      const whole = yield* connect(at!)
      yield* whole.send("GET /other HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
      assert.match((yield* whole.out.rest)[0]!, /404/)
      const half = yield* connect(at!)
      yield* half.send("GET /dashboard HTTP/1.1\r\nHost: loc")
      // It has the half of it when it answers the next one.
      const another = yield* connect(at!)
      yield* another.send("GET /dashboard HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
      yield* another.out.rest
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 0)
      const report = yield* server.out.rest
      assert.strictEqual(report.length, 1, report.join("\n"))
    }))

  for (const dispatch of ["serial", "fiber", "thread", "process"]) {
    it.live(`runs requests as --dispatch ${dispatch} says`, () =>
      Effect.gen(function*() {
        const { serve } = yield* commands
        const server = yield* serve("serve", handlers, "--tcp", "0", "--handler", "where", "--dispatch", dispatch)
        const [first] = yield* ask(server.at["tcp"]!, "")
        const [pid, isMainThread] = first!.split(" ")
        assert.strictEqual(isMainThread, String(dispatch !== "thread"))
        assert.isAbove(Number(pid), 0)
        yield* server.signal("SIGINT")
        assert.strictEqual(yield* server.exitCode, 0)
      }))
  }

  it.live("speaks TLS with a certificate and its key", () =>
    Effect.gen(function*() {
      const { runtime, serve } = yield* commands
      const { cert, key } = certificate(runtime)
      const server = yield* serve("serve", handlers, "--tcp", "0", "--tls-cert", cert, "--tls-key", key)
      const client = yield* start("openssl", ["s_client", "-quiet", "-CAfile", cert, "-connect", server.at["tcp"]!])
      yield* client.send("secret\n")
      assert.strictEqual(yield* client.out.line, "SECRET")
    }))

  it.live("refuses connections beyond --max-connections, and ends silent ones after --idle-timeout", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const server = yield* serve("serve", handlers, "--tcp", "0", "--max-connections", "1", "--idle-timeout", "3s")
      const first = yield* connect(server.at["tcp"]!)
      yield* first.send("first\n")
      assert.strictEqual(yield* first.out.line, "FIRST")
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "second\n"), [])
      assert.deepStrictEqual(yield* first.out.rest, [])
    }))

  it.live("ends though its module would keep the process", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const module = join(yield* workspace, "busy.ts")
      writeFileSync(module, "setInterval(() => {}, 1000)\nexport default (c: any) => c.write(\"hi\\n\")\n")
      const server = yield* serve("serve", module, "--tcp", "0")
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 0)
    }))

  it.live("ends with the code of the signal where that comes before it serves", () =>
    Effect.gen(function*() {
      const { spawned } = yield* commands
      const module = join(yield* workspace, "slow.ts")
      writeFileSync(
        module,
        "console.log(\"loading\")\nawait new Promise(() => setInterval(() => {}, 1000))\nexport default () => {}\n"
      )
      const server = yield* spawned(["serve", module, "--tcp", "0"])
      yield* server.out.lineWith(/^loading$/)
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 143)
    }))

  it.live("goes on when nobody reads what it prints any more, neither its output nor its errors", () =>
    Effect.gen(function*() {
      const { spawned } = yield* commands
      const module = join(yield* workspace, "loud.ts")
      writeFileSync(
        module,
        "export default (c: any) => { process.stdout.write(\"a\\n\"); process.stderr.write(\"b\\n\"); return c.write(\"hi\\n\") }\n"
      )
      const server = yield* spawned(["serve", module, "--tcp", "0", "--control", "none"])
      const [, at] = yield* server.out.lineWith(/listening on (\S+) /)
      yield* server.out.lineWith(/^Ctrl-C/)
      yield* server.unread
      for (let i = 0; i < 3; i++) assert.deepStrictEqual(yield* ask(at!, ""), ["hi"])
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 0)
    }))

  it.live("ends at once, with the code of the signal, at the second one", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const folder = yield* workspace
      // A handler that takes no notice of a drain, nor of an interruption.
      writeFileSync(
        join(folder, "deaf.ts"),
        "import { Effect } from \"effect\"\nexport default (c: any) => Effect.uninterruptible(Effect.andThen(c.write(\"hi\\n\"), Effect.never))\n"
      )
      const server = yield* serve("serve", join(folder, "deaf.ts"), "--tcp", "0")
      const client = yield* connect(server.at["tcp"]!)
      assert.strictEqual(yield* client.out.line, "hi")
      yield* server.signal("SIGTERM")
      // The drain has begun when nobody listens any more.
      const [, port] = server.at["tcp"]!.split(":")
      const refused = Effect.callback<boolean>((resume) => {
        const socket = Net.connect(Number(port), "127.0.0.1")
        socket.once("connect", () => (socket.destroy(), resume(Effect.succeed(false))))
        socket.once("error", () => resume(Effect.succeed(true)))
      })
      yield* Effect.repeat(refused, { until: (is) => is })
      yield* server.signal("SIGINT")
      assert.strictEqual(yield* server.exitCode, 130)
    }))

  it.live(
    "loads a module again when it changes: who is in stays with the old one; a broken one changes nothing",
    () =>
      Effect.gen(function*() {
        const { serve } = yield* commands
        const folder = yield* workspace
        const [module, word] = [join(folder, "handler.ts"), join(folder, "word.ts")]
        writeFileSync(
          module,
          `import { Effect, Stream } from "effect"
        import { word } from "./word.ts"
        export default (c: any) => c.lines().pipe(Stream.map((line) => word + " " + line + "\\n"), Stream.run(c.sink))\n`
        )
        writeFileSync(word, "export const word: string = \"one\"\n")
        const server = yield* serve("serve", module, "--tcp", "0", "--watch")
        const old = yield* connect(server.at["tcp"]!)
        yield* old.send("a\n")
        assert.strictEqual(yield* old.out.line, "one a")

        // A module that the handler imports, not the handler's own.
        writeFileSync(word, "export const word: string = \"two\"\n")
        yield* server.out.lineWith(/loaded again/)
        assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "b\n"), ["two b"])
        yield* old.send("c\n")
        assert.strictEqual(yield* old.out.line, "one c")

        writeFileSync(word, "export const word: string = \"thr\n")
        yield* server.errors.lineWith(/not loaded, the handler from before goes on: .*word\.ts/)
        assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "d\n"), ["two d"])

        writeFileSync(word, "export const word: string = \"three\"\n")
        yield* server.out.lineWith(/loaded again/)
        assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "e\n"), ["three e"])
        yield* old.send("f\n")
        assert.strictEqual(yield* old.out.line, "one f")
      }),
    60_000
  )

  it.live("loads a module again when a file comes that it had asked for in vain", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const folder = yield* workspace
      const module = join(folder, "changing.ts")
      const text = (word: string, from: string) => `${from}export default (c: any) => c.write(${word} + "\\n")\n`
      writeFileSync(module, text("\"first\"", ""))
      const server = yield* serve("serve", module, "--tcp", "0", "--watch")
      writeFileSync(module, text("word", "import { word } from \"./word.ts\"\n"))
      yield* server.errors.lineWith(/not loaded, the handler from before goes on: .*Cannot find module.*word\.ts/)
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, ""), ["first"])
      writeFileSync(join(folder, "word.ts"), "export const word = \"second\"\n")
      yield* server.out.lineWith(/loaded again/)
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, ""), ["second"])
    }))

  it.live("says so where files cannot be watched", () =>
    Effect.gen(function*() {
      const { env, runtime } = yield* commands
      const preload = join(runtime, "preload.mjs")
      writeFileSync(
        preload,
        "import fs from \"node:fs\"\nimport { syncBuiltinESMExports } from \"node:module\"\n" +
          "fs.watch = () => { throw new Error(\"ENOSPC: System limit for number of file watchers reached\") }\n" +
          "syncBuiltinESMExports()\n"
      )
      const server = yield* start(
        process.execPath,
        ["--import", preload, bin, "serve", handlers, "--tcp", "0", "--control", "none", "--watch"],
        { env }
      )
      assert.strictEqual(
        yield* server.errors.line,
        `cannot watch ${
          dirname(handlers)
        }, changes there go unnoticed: ENOSPC: System limit for number of file watchers reached`
      )
      const [, at] = yield* server.out.lineWith(/listening on (\S+) /)
      assert.deepStrictEqual(yield* ask(at!, "still here\n"), ["STILL HERE"])
    }))

  for (const kind of ["thread", "process"]) {
    it.live(
      `loads a module again in its workers, too, and ends the old ones when their connections have: ${kind}`,
      () =>
        Effect.gen(function*() {
          const { serve } = yield* commands
          const folder = yield* workspace
          const [module, word] = [join(folder, "handler.ts"), join(folder, "word.ts")]
          // It is a module that the handler's imports which changes; and when a worker ends, it leaves a note.
          writeFileSync(
            module,
            `import { Handler } from "@socketserver/core"
          import { Effect, Layer, Stream } from "effect"
          import { writeFileSync } from "node:fs"
          import { threadId } from "node:worker_threads"
          import { word } from "./word.ts"
          const note = new URL("./ended " + word, import.meta.url)
          const Note = Layer.effectDiscard(Effect.addFinalizer(() => Effect.sync(() => writeFileSync(note, ""))))
          export default Handler.portable(import.meta.url, "default", (c: any) =>
            c.lines().pipe(
              Stream.map((line) => [word, process.pid, threadId, line].join(" ") + "\\n"),
              Stream.run(c.sink)
            ), { layer: Note })\n`
          )
          const write = (text: string) => writeFileSync(word, `export const word: string = "${text}"\n`)
          write("one")
          const server = yield* serve(
            "serve",
            module,
            "--tcp",
            "0",
            "--watch",
            "--dispatch",
            kind,
            "--max-workers",
            "1"
          )
          const old = yield* connect(server.at["tcp"]!)
          yield* old.send("a\n")
          const [, place] = /^one (\d+ \d+) a$/.exec(yield* old.out.line)!
          assert.strictEqual(place!.endsWith(" 0"), kind === "process")
          write("two")
          yield* server.out.lineWith(/loaded again/)
          assert.match((yield* ask(server.at["tcp"]!, "b\n"))[0]!, /^two \d+ \d+ b$/)
          yield* old.send("c\n")
          assert.strictEqual(yield* old.out.line, `one ${place} c`)
          assert.isFalse(existsSync(join(folder, "ended one")))
          yield* old.finish
          yield* old.out.rest
          yield* Effect.repeat(eventLoopTurn, { until: () => existsSync(join(folder, "ended one")) })
          assert.isFalse(existsSync(join(folder, "ended two")))
        }),
      60_000
    )
  }

  for (const dispatch of ["fiber", "thread"]) {
    it.live(
      `loads a module again for packets: the next one gets the new handler, under ${dispatch}`,
      () =>
        Effect.gen(function*() {
          const { serve } = yield* commands
          const folder = yield* workspace
          const module = join(folder, "handler.ts")
          const write = (word: string) =>
            writeFileSync(
              module,
              `import { Handler } from "@socketserver/core"
            export default Handler.portable(import.meta.url, "default", ({ payload, reply }: any) =>
              reply("${word} " + new TextDecoder().decode(payload)))\n`
            )
          write("one")
          const server = yield* serve("serve", module, "--udp", "0", "--watch", "--dispatch", dispatch)
          const client = yield* start("socat", ["-", `UDP:${server.at["udp"]}`])
          yield* client.send("a\n")
          assert.strictEqual(yield* client.out.line, "one a")
          write("two")
          yield* server.out.lineWith(/loaded again/)
          yield* client.send("b\n")
          assert.strictEqual(yield* client.out.line, "two b")
        }),
      60_000
    )
  }

  it.live("builds what handlers need once, for all servers of the command", () =>
    Effect.gen(function*() {
      const { runtime, serve } = yield* commands
      const folder = yield* workspace
      writeFileSync(
        join(folder, "count.ts"),
        `import { Handler } from "@socketserver/core"
        import { Context, Effect, Layer } from "effect"
        class Count extends Context.Service<Count, { n: number }>()("Count") {}
        export default Handler.portable(import.meta.url, "default", (c: any) =>
          Count.use((count) => c.write(++count.n + "\\n")), { layer: Layer.sync(Count, () => ({ n: 0 })) })\n`
      )
      const path = join(runtime, "x.sock")
      const server = yield* serve("serve", join(folder, "count.ts"), "--tcp", "0", "--unix", path)
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, ""), ["1"])
      assert.deepStrictEqual(yield* ask(path, ""), ["2"])
    }))

  it.live("says that a handler has given something that is no Effect, and goes on", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      for (const [handler, given] of [["promise", "a promise"], ["nothing", "undefined"]] as const) {
        const server = yield* serve("serve", handlers, "--tcp", "0", "--handler", handler)
        assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "x\n"), [])
        yield* server.out.lineWith(new RegExp(`the handler \`${handler}\` has returned ${given}, not an Effect`))
        assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "x\n"), [])
      }
    }))
})

describe("serve, with a framing", () => {
  it.live("has one handler of messages over TCP, a unix socket, UDP and unix datagrams", () =>
    Effect.gen(function*() {
      const { runtime, serve } = yield* commands
      const [path, packets] = [join(runtime, "x.sock"), join(runtime, "d.sock")]
      const where = ["--tcp", "0", "--unix", path, "--udp", "0", "--unix-datagram", packets]
      const server = yield* serve("serve", messages, ...where, "--framing", "lines", "--handler", "upper")
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "a\nb"), ["A", "B"])
      assert.deepStrictEqual(yield* ask(path, "c\n"), ["C"])
      for (const target of [`UDP:${server.at["udp"]}`, `UNIX-SENDTO:${packets},bind=${packets}.client`]) {
        const client = yield* start("socat", ["-", target])
        yield* client.send("d")
        assert.strictEqual(yield* client.out.line, "D")
      }
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 0)
    }))

  it.live("takes messages over TLS, too", () =>
    Effect.gen(function*() {
      const { runtime, serve } = yield* commands
      const { cert, key } = certificate(runtime)
      const args = ["--framing", "lines", "--handler", "upper", "--tls-cert", cert, "--tls-key", key]
      const server = yield* serve("serve", messages, "--tcp", "0", ...args)
      const client = yield* start("openssl", ["s_client", "-quiet", "-CAfile", cert, "-connect", server.at["tcp"]!])
      yield* client.send("secret\n")
      assert.strictEqual(yield* client.out.line, "SECRET")
    }))

  it.live("reads with the module's own, by default its export `framing`", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const sums = yield* serve("serve", messages, "--tcp", "0")
      assert.deepStrictEqual(yield* ask(sums.at["tcp"]!, "{\"add\":[1,2]}\n{\"add\":\"x\"}\n"), ["{\"sum\":3}"])
      const other = yield* serve("serve", messages, "--tcp", "0", "--framing", "semicolons", "--handler", "upper")
      assert.deepStrictEqual(yield* ask(other.at["tcp"]!, "a;b;"), ["A;B;"])
    }))

  for (const dispatch of ["serial", "fiber", "thread", "process"]) {
    it.live(`runs messages as --dispatch ${dispatch} says, with the services of their handler`, () =>
      Effect.gen(function*() {
        const { serve } = yield* commands
        const args = ["--tcp", "0", "--framing", "lines", "--handler", "where", "--dispatch", dispatch]
        const server = yield* serve("serve", messages, ...args)
        const [place, greeting, ...others] = yield* ask(server.at["tcp"]!, "you\nthey\n")
        assert.strictEqual(place!.split(" ")[1], String(dispatch !== "thread"))
        assert.strictEqual(greeting, "hello hello you")
        assert.strictEqual(others[1], "hello hello they")
        yield* server.signal("SIGINT")
        assert.strictEqual(yield* server.exitCode, 0)
      }))
  }

  it.live("that has a name: frames as its name says, and has replies of its type", () =>
    Effect.sync(() => {
      const bytes = (text: string) => new TextEncoder().encode(text)
      const both: ReadonlyArray<readonly [name: string, payload: unknown, frame: string, other: unknown]> = [
        ["lines", "a", "a\n", 1],
        ["ndjson", { a: [1, null] }, "{\"a\":[1,null]}\n", undefined],
        ["netstring", bytes("a"), "1:a,", "a"],
        ["length-prefixed", bytes("a"), "\0\0\0\u0001a", "a"],
        ["length-prefixed:1", bytes("a"), "\u0001a", "a"],
        ["length-prefixed:2", bytes("a"), "\0\u0001a", ["a"]],
        ["length-prefixed:4", bytes("a"), "\0\0\0\u0001a", null],
        ["length-prefixed:varint", bytes("a"), "\u0001a", "a"],
        ["whole", bytes("a"), "a", "a"]
      ]
      for (const [name, payload, frame, other] of both) {
        const framing = named(name)!
        const reader = Framing.reader(framing)
        reader.push(bytes(frame))
        assert.deepStrictEqual(reader.next() ?? reader.end(), payload, name)
        const encoded = framing.replies.encode(payload)
        assert.strictEqual(typeof encoded === "string" ? encoded : new TextDecoder().decode(encoded), frame)
        if (other !== undefined) assert.throws(() => framing.replies.encode(other), `under --framing ${name}, not a`)
      }
      for (const none of ["", "length-prefixed:3", "toString"]) assert.isUndefined(named(none))
    }))

  it.live("says of a reply of another type what it should be, and goes on", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const server = yield* serve("serve", messages, "--tcp", "0", "--framing", "netstring", "--handler", "where")
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "1:a,"), [])
      yield* server.out.lineWith(/a reply is a Uint8Array under --framing netstring, not a string/)
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, "1:a,"), [])
    }))

  for (const dispatch of ["fiber", "thread"]) {
    it.live(
      `loads handler and framing again: the next message of a connection has both, under ${dispatch}`,
      () =>
        Effect.gen(function*() {
          const { serve } = yield* commands
          const folder = yield* workspace
          const module = join(folder, "handler.ts")
          const write = (word: string, end: string) =>
            writeFileSync(
              module,
              `import { Framing, Handler } from "@socketserver/core"
            import { Effect, Stream } from "effect"
            export const framing = Framing.text(Framing.delimiter(${JSON.stringify(end)}))
            export default Handler.portable(import.meta.url, "default", ({ payload }: any) =>
              Effect.succeed(Stream.make("${word} " + payload + "\\n")))\n`
            )
          write("one", ";")
          const args = ["--tcp", "0", "--udp", "0", "--watch", "--dispatch", dispatch]
          const server = yield* serve("serve", module, ...args)
          const client = yield* connect(server.at["tcp"]!)
          yield* client.send("a;")
          assert.strictEqual(yield* client.out.line, "one a")
          const packets = yield* start("socat", ["-", `UDP:${server.at["udp"]}`])
          yield* packets.send("a;")
          assert.strictEqual(yield* packets.out.line, "one a")
          // The beginning of a message belongs to the framing that reads the rest of it.
          yield* client.send("b")
          write("two", "!")
          yield* server.out.lineWith(/loaded again; new requests get the new handler/)
          yield* client.send("!c!")
          // What ends a reply comes before the next one.
          assert.strictEqual(yield* client.out.line, ";two b")
          assert.strictEqual(yield* client.out.line, "!two c")
          yield* packets.send("b!")
          assert.strictEqual(yield* packets.out.line, ";two b")
          writeFileSync(module, "export default () => {}\nexport const datagram = () => {}")
          yield* server.errors.lineWith(/not loaded.*cannot take each other's place|not loaded.*is a plain function/)
          yield* client.send("d!")
          assert.strictEqual(yield* client.out.line, "!two d")
        }),
      60_000
    )
  }
})

describe("what keeps serve from serving", () => {
  const refused = (
    what: string,
    args: ReadonlyArray<string>,
    code: number,
    message: RegExp
  ) =>
    it.live(what, () =>
      Effect.gen(function*() {
        const { run } = yield* commands
        const result = yield* run("serve", ...args)
        assert.match(result.errors.join("\n"), message)
        assert.deepStrictEqual(result.out, [])
        assert.strictEqual(result.code, code)
      }))

  refused("no module", ["--tcp", "0"], 2, /^Missing required argument: module\nTry: socketserver serve --help$/)
  refused("no transport", [handlers], 2, /^where shall it listen\? Name at least one of --tcp PORT/)
  refused(
    "a file that is not there",
    ["./none.ts", "--tcp", "0"],
    1,
    /^cannot find \.\/none\.ts: there is no such file$/
  )
  refused("a directory", [dirname(handlers), "--tcp", "0"], 1, /is a directory: name the module in it/)
  refused(
    "an export that is not there",
    [handlers, "--tcp", "0", "--handler", "nope"],
    1,
    /has no export `nope`: choose a handler by --handler: .*upper/
  )
  refused(
    "an export that is no handler",
    [handlers, "--tcp", "0", "--handler", "number"],
    1,
    /`number` is a number, not a handler/
  )
  refused(
    "a plain handler under workers",
    [handlers, "--tcp", "0", "--dispatch", "thread"],
    1,
    /`default` is a plain function, which cannot travel there: make it by Handler\.portable/
  )
  refused("an option that there is not", [handlers, "--tcp", "0", "--port", "1"], 2, /^Unrecognized flag: --port/)
  refused("a port that is none", [handlers, "--tcp", "65536"], 2, /--tcp.*65536.*0 to 65535/)
  refused("a strategy that is none", [handlers, "--tcp", "0", "--dispatch", "worker"], 2, /--dispatch/)
  refused(
    "a duration that is none",
    [handlers, "--tcp", "0", "--grace", "soon"],
    2,
    /^Invalid value for flag --grace: "soon"\. Expected: a duration, such as 500ms/
  )
  refused(
    "a certificate without its key",
    [handlers, "--tcp", "0", "--tls-cert", "x"],
    2,
    /^--tls-cert and --tls-key go together$/
  )
  refused(
    "a certificate that is not there",
    [handlers, "--tcp", "0", "--tls-cert", "/no/c", "--tls-key", "/no/k"],
    1,
    /^option `--tls-cert` is "\/no\/c": expected a file that can be read/
  )
  refused(
    "a bound for another strategy",
    [handlers, "--tcp", "0", "--dispatch", "serial", "--max-in-flight", "2"],
    2,
    /is for --dispatch fiber/
  )
  refused(
    "workers under fibers",
    [handlers, "--tcp", "0", "--max-workers", "2"],
    2,
    /^--max-workers is for --dispatch thread or process$/
  )
  refused(
    "a timeout of no time",
    [handlers, "--tcp", "0", "--idle-timeout", "0s"],
    1,
    /^option `--idle-timeout` is 0 millis: expected a duration of more than 0/
  )
  refused("connections of packets", [handlers, "--udp", "0", "--idle-timeout", "1s"], 2, /packets have no connections/)
  refused(
    "a framing that is none",
    [messages, "--tcp", "0", "--framing", "json"],
    1,
    /^--framing json: .* has no export `json`, and these have a name: lines, ndjson, netstring, length-prefixed\[/
  )
  refused(
    "an export that is no framing",
    [messages, "--tcp", "0", "--framing", "upper"],
    1,
    /`upper` is a function, not a framing: it is what Framing\.lines\(\) and its like make$/
  )
  refused(
    "a handler for packets beside a framing",
    [messages, "--tcp", "0", "--udp", "0", "--datagram-handler", "echo"],
    2,
    /--datagram-handler is for packets without a framing/
  )
  refused(
    "a plain handler of messages under workers",
    [messages, "--tcp", "0", "--dispatch", "process"],
    1,
    /`default` is a plain function, which cannot travel there/
  )
  refused("a name that is no file's", [handlers, "--tcp", "0", "--name", "a/b"], 2, /^--name "a\/b"/)
  refused(
    "a control's name that is no file's",
    [handlers, "--tcp", "0", "--control", ""],
    2,
    /^--control "": use up to/
  )
  refused(
    "a path that is too long",
    [handlers, "--unix", `/tmp/${"x".repeat(200)}`],
    1,
    /^option `--unix` is "\/tmp\/x+": expected 1 to 10\d bytes/
  )
  refused(
    "a control's path that is too long",
    [handlers, "--tcp", "0", "--control", `/tmp/${"x".repeat(200)}`],
    1,
    /^option `--control` is "\/tmp\/x+": expected 1 to 10\d bytes/
  )
  refused(
    "an address of another machine",
    [handlers, "--tcp", "0", "--host", "192.0.2.1"],
    1,
    /^cannot listen on 192\.0\.2\.1:0: the address does not belong/
  )
  refused(
    "a directory that is not there",
    [handlers, "--unix", "/no/x.sock"],
    1,
    /^cannot listen on unix:\/\/\/no\/x\.sock/
  )

  it.live("a port that is taken: says which, what to do, and leaves nothing", () =>
    Effect.gen(function*() {
      const { run, runtime, serve } = yield* commands
      const server = yield* serve("serve", handlers, "--tcp", "0", "--name", "first")
      const port = server.at["tcp"]!.split(":")[1]!
      const path = join(runtime, "x.sock")
      const second = yield* run("serve", handlers, "--unix", path, "--tcp", port)
      assert.deepStrictEqual(second, {
        out: [],
        errors: [
          `127.0.0.1:${port} is already in use: stop the program that listens there, or choose another address (port 0 picks a free one)`
        ],
        code: 1
      })
      assert.isFalse(existsSync(path))
    }))

  it.live("a module that cannot be loaded: says why, and where", () =>
    Effect.gen(function*() {
      const { runProcess } = yield* commands
      const folder = yield* workspace
      const cases: ReadonlyArray<readonly [string, RegExp]> = [
        ["export default (", /^cannot load .*\.ts: /],
        ["throw new Error(\"no\\nway\")", /^cannot load .*\.ts: no way$/],
        ["import \"not-installed\"", /^cannot load .*\.ts: Cannot find package 'not-installed'/],
        ["export const x = 1", /has no default export: it exports no handler at all/]
      ]
      for (const [index, [text, message]] of cases.entries()) {
        const module = join(folder, `m${index}.ts`)
        writeFileSync(module, text)
        const { code, errors } = yield* runProcess("serve", module, "--tcp", "0")
        assert.strictEqual(errors.length, 1, errors.join("\n"))
        assert.match(errors[0]!, message)
        assert.strictEqual(code, 1)
      }
    }), 60_000)

  it.live("packets beside connections, without a handler of their own", () =>
    Effect.gen(function*() {
      const { run } = yield* commands
      const folder = yield* workspace
      const module = join(folder, "m.ts")
      writeFileSync(module, "export default () => {}")
      const { code, errors } = yield* run("serve", module, "--tcp", "0", "--udp", "0")
      assert.match(errors.join("\n"), /export the one for packets as `datagram`, or name it by --datagram-handler$/)
      assert.strictEqual(code, 2)
    }))

  it.live("no permission", () =>
    Effect.gen(function*() {
      const { env, runtime } = yield* commands
      const folder = join(runtime, "closed")
      mkdirSync(folder, { mode: 0o500 })
      const args = [bin, "serve", handlers, "--unix", join(folder, "x.sock"), "--control", "none"]
      // To root, no directory is closed, unless it may not override.
      const program = process.getuid!() === 0
        ? yield* start("setpriv", ["--bounding-set=-dac_override,-dac_read_search", process.execPath, ...args], { env })
        : yield* start(process.execPath, args, { env })
      assert.deepStrictEqual(yield* program.errors.rest, [
        `no permission to listen on unix://${folder}/x.sock: choose a port above 1023, or a path in a directory that this user may write to`
      ])
      assert.strictEqual(yield* program.exitCode, 1)
    }))
})

describe("exec", () => {
  it.live("runs a command for each connection, whose options are its own", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const server = yield* serve("exec", "--tcp", "0", "--", "sort", "-r")
      const answers = yield* Effect.all([ask(server.at["tcp"]!, "a\nb\n"), ask(server.at["tcp"]!, "c\nd\n")], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(answers, [["b", "a"], ["d", "c"]])
      yield* server.signal("SIGTERM")
      assert.strictEqual(yield* server.exitCode, 0)
    }))

  it.live("in a drain ends the input of the commands, and waits for what they still say", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const server = yield* serve("exec", "--tcp", "0", "--", "sh", "-c", "cat; echo goodbye")
      const client = yield* connect(server.at["tcp"]!)
      yield* client.send("hello\n")
      assert.strictEqual(yield* client.out.line, "hello")
      yield* server.signal("SIGTERM")
      assert.deepStrictEqual(yield* client.out.rest, ["goodbye"])
      assert.strictEqual(yield* server.exitCode, 0)
    }))

  it.live("leaves no process behind where a second signal ends it at once", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const server = yield* serve("exec", "--tcp", "0", "--", "sh", "-c", "echo $$; exec sleep 600")
      const client = yield* connect(server.at["tcp"]!)
      const pid = yield* client.out.line
      yield* server.signal("SIGTERM")
      yield* server.signal("SIGHUP")
      assert.include([129, 143], yield* server.exitCode)
      // Gone, or only waiting for somebody to notice it.
      const isAlive = Effect.sync(() =>
        existsSync(`/proc/${pid}/stat`) && !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"))
      )
      yield* Effect.repeat(isAlive, { until: (is) => !is, schedule: Schedule.spaced("10 millis") })
    }))

  it.live("of a command that is not there says so at the start, and exits with 127", () =>
    Effect.gen(function*() {
      const { run } = yield* commands
      const folder = yield* directory
      writeFileSync(join(folder, "text"), "", { mode: 0o644 })
      const notInPath = yield* run("exec", "--tcp", "0", "--", "no-such-command", "-x")
      assert.deepStrictEqual(notInPath, {
        out: [],
        errors: [`cannot run "no-such-command": no such program is in PATH`],
        code: 127
      })
      for (const path of [join(folder, "none"), join(folder, "text"), join(folder, "text", "below"), folder]) {
        const { code, errors } = yield* run("exec", "--tcp", "0", "--", path)
        assert.deepStrictEqual(errors, [`cannot run "${path}": there is no such file that can be run`])
        assert.strictEqual(code, 127)
      }
    }))

  it.live("finds a command by a path, also one that is not in PATH", () =>
    Effect.gen(function*() {
      const { serve } = yield* commands
      const folder = yield* directory
      const script = join(folder, "greet")
      writeFileSync(script, "#!/bin/sh\necho hello\n", { mode: 0o755 })
      const server = yield* serve("exec", "--tcp", "0", "--", script)
      assert.deepStrictEqual(yield* ask(server.at["tcp"]!, ""), ["hello"])
    }))

  it.live("asks for a command, and for where to listen", () =>
    Effect.gen(function*() {
      const { run } = yield* commands
      const none = yield* run("exec", "--tcp", "0")
      assert.match(none.errors[0]!, /command/)
      assert.strictEqual(none.code, 2)
      const nowhere = yield* run("exec", "--", "cat")
      assert.match(nowhere.errors[0]!, /--tcp PORT/)
      assert.strictEqual(nowhere.code, 2)
    }))
})

describe("the runtime directory", () => {
  it.live("is the user's alone; one that is not is not used", () =>
    Effect.gen(function*() {
      const { run, runtime, serve } = yield* commands
      yield* serve("serve", handlers, "--tcp", "0")
      const folder = join(runtime, "socketserver")
      assert.strictEqual(statSync(folder).mode & 0o777, 0o700)
      assert.strictEqual(statSync(join(folder, "upper.sock")).mode & 0o777, 0o600)
      chmodSync(folder, 0o777)
      const { code, errors } = yield* run("serve", handlers, "--tcp", "0", "--name", "other")
      assert.match(errors.join("\n"), /is not a directory of this user's alone/)
      assert.strictEqual(code, 1)
      // Nor is anybody believed who answers there.
      for (const args of [["connections"], ["connections", "--control", "upper"]]) {
        const asked = yield* run(...args)
        assert.match(asked.errors.join("\n"), /^no running server found in /)
        assert.strictEqual(asked.code, 1)
      }
    }))

  it.live("that is no directory, or not there any more, is an error that says what to do, or left for another", () =>
    Effect.gen(function*() {
      const { env, run, runtime } = yield* commands
      writeFileSync(join(runtime, "socketserver"), "")
      assert.match((yield* run("connections")).errors.join("\n"), /^no running server found in /)
      const { errors } = yield* run("serve", handlers, "--tcp", "0")
      assert.match(errors.join("\n"), /name another place by --control PATH, or none by --control none$/)

      for (const XDG_RUNTIME_DIR of [join(runtime, "gone"), "relative", ""]) {
        const program = yield* start(process.execPath, [bin, "serve", handlers, "--tcp", "0"], {
          env: { ...env, XDG_RUNTIME_DIR, TMPDIR: runtime }
        })
        const [, path] = yield* program.out.lineWith(/controlled at (.*)$/)
        assert.strictEqual(path, join(runtime, `socketserver-${process.getuid!()}`, "upper.sock"))
        yield* program.out.lineWith(/^Ctrl-C/)
        yield* program.signal("SIGTERM")
        assert.strictEqual(yield* program.exitCode, 0)
      }
    }))
})
