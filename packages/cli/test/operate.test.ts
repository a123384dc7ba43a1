/** The commands on a running program, from another process. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Queue } from "effect"
import { TestClock } from "effect/testing"
import { mkdirSync, writeFileSync } from "node:fs"
import * as Net from "node:net"
import { join } from "node:path"
import { jsonLine, printable } from "../src/internal/text.ts"
import { ask, commands, connect, handlers, start, startInTerminal } from "./utils.ts"

/** A client that is in, and has said its name. */
const enter = Effect.fnUntraced(function*(address: string, name: string) {
  const client = yield* connect(address)
  yield* client.send(`${name}\n`)
  assert.strictEqual(yield* client.out.line, name.toUpperCase())
  return client
})

describe("a running program", () => {
  it.live("is found by itself, lists its connections, and closes those that are named", () =>
    Effect.gen(function*() {
      const { run, serve } = yield* commands
      const server = yield* serve("serve", handlers, "--tcp", "0")
      const address = server.at["tcp"]!
      const clients = yield* Effect.forEach(["alice", "bob", "carol"], (name) => enter(address, name))
      const list = yield* run("connections")
      assert.match(list.out[0]!, /^ID +SERVER +PEER +STATE +AGE +IN +OUT +ANNOTATIONS$/)
      assert.match(list.out[1]!, /^1 +tcp +127\.0\.0\.1:\d+ +handling +\d+s +6 B +6 B +last=alice$/)
      assert.strictEqual(list.out.length, 4)
      const json = yield* run("connections", "--json", "--where", "last=bob", "--where", "peer=127.0.0.0/8")
      assert.deepStrictEqual(json.out.map((line) => JSON.parse(line).id), [2])

      assert.deepStrictEqual((yield* run("kill", "1")).out, ["1 connection closed"])
      assert.deepStrictEqual(yield* clients[0]!.out.rest, [])
      assert.deepStrictEqual((yield* run("kill", "--where", "last=carol")).out, ["1 connection closed"])
      assert.deepStrictEqual(yield* clients[2]!.out.rest, [])
      assert.deepStrictEqual((yield* run("kill", "--all")).code, 0)
      assert.deepStrictEqual(yield* clients[1]!.out.rest, [])

      const gone = yield* run("kill", "99")
      assert.deepStrictEqual([gone.errors, gone.code], [["there is no connection 99"], 1])
      assert.strictEqual((yield* run("kill")).code, 2)
      assert.strictEqual((yield* run("kill", "1", "--all")).code, 2)
      assert.strictEqual((yield* run("kill", "--where", "nonsense")).code, 2)
      assert.strictEqual((yield* run("kill", "--where", "state=tired")).code, 2)
    }))

  it.live("is suspended, resumed, limited, and drained, and says so", () =>
    Effect.gen(function*() {
      const { run, runtime, serve } = yield* commands
      const path = join(runtime, "x.sock")
      const server = yield* serve("serve", handlers, "--tcp", "0", "--unix", path, "--max-connections", "5")
      const address = server.at["tcp"]!
      const client = yield* enter(address, "alice")

      assert.deepStrictEqual((yield* run("suspend")).out, ["tcp: suspended", "unix: suspended"])
      assert.deepStrictEqual(yield* ask(address, "x\n"), [])
      assert.deepStrictEqual((yield* run("resume", "--server", "tcp")).out, ["tcp: resumed"])
      assert.deepStrictEqual(yield* ask(address, "x\n"), ["X"])

      assert.deepStrictEqual((yield* run("limits")).out, ["tcp: maxConnections 5", "unix: maxConnections 5"])
      const changed = yield* run("limits", "maxConnections", "1", "--server", "tcp")
      assert.deepStrictEqual(changed.out, ["tcp: maxConnections 1"])
      assert.deepStrictEqual(yield* ask(address, "x\n"), [])
      const unknown = yield* run("limits", "rate", "1")
      assert.deepStrictEqual([unknown.errors, unknown.code], [["there is no limit \"rate\", but maxConnections"], 1])
      const wrong = yield* run("limits", "--server", "tcp", "maxConnections", "--", "-1")
      assert.match(wrong.errors.join("\n"), /expected an integer, 0 or more/)
      assert.strictEqual(wrong.code, 1)

      const drained = yield* run("drain", "--grace", "5s")
      assert.strictEqual(drained.code, 0)
      assert.match(drained.out.toSorted()[0]!, /^tcp: drained in \d+ ms; idle connections ended: 1, completed: 0/)
      assert.deepStrictEqual(yield* client.out.rest, [])
      yield* client.finish
      const said = yield* server.out.rest
      assert.deepStrictEqual(said.slice(0, 3), ["tcp: suspended", "unix: suspended", "tcp: listening again"])
      assert.strictEqual(said.filter((line) => / drained in /.test(line)).length, 2)
      assert.strictEqual(said.length, 5)
      assert.strictEqual(yield* server.exitCode, 0)
      const gone = yield* run("connections")
      assert.match(gone.errors[0]!, /^no running server found in .*: start one by `socketserver serve`/)
      assert.strictEqual(gone.code, 1)
    }), 60_000)

  it.live(
    "is chosen by its name or its path, where several run; one of the same name gets another",
    () =>
      Effect.gen(function*() {
        const { run, runtime, serve } = yield* commands
        const path = join(runtime, "own.sock")
        yield* serve("serve", handlers, "--tcp", "0")
        const second = yield* serve("serve", handlers, "--tcp", "0")
        const third = yield* serve("serve", handlers, "--tcp", "0", "--control", path)
        const which = yield* run("connections")
        assert.match(which.errors[0]!, /^several programs run: upper(-\d+)?, upper-?\d*; choose one by --control NAME$/)
        assert.strictEqual(which.code, 2)
        assert.deepStrictEqual((yield* run("drain", "--control", path)).code, 0)
        assert.strictEqual(yield* third.exitCode, 0)
        const named = which.errors[0]!.match(/upper-\d+/)![0]
        assert.deepStrictEqual((yield* run("drain", "--control", named)).code, 0)
        assert.strictEqual(yield* second.exitCode, 0)
        assert.strictEqual((yield* run("suspend")).code, 0)
        const absent = yield* run("top", "--control", "nobody")
        assert.match(absent.errors[0]!, /^no server is controlled at .*nobody\.sock$/)
        assert.strictEqual(absent.code, 1)
      }),
    60_000
  )

  it.live("cannot be reached where it has no control, and its socket is no other's", () =>
    Effect.gen(function*() {
      const { run, serve } = yield* commands
      const server = yield* serve(
        "serve",
        handlers,
        "--unix",
        join((yield* commands).runtime, "x.sock"),
        "--control",
        "none"
      )
      assert.strictEqual((yield* run("suspend")).code, 1)
      const other = yield* run("suspend", "--control", server.at["unix"]!)
      assert.match(other.errors.join("\n"), /is not a server's control$/)
      assert.strictEqual(other.code, 1)
    }))

  it.effect(
    "that never answers is not waited for, and no other one is meant instead of it",
    () =>
      Effect.gen(function*() {
        const { run, runtime, serve } = yield* commands
        const path = join(runtime, "socketserver", "mute.sock")
        mkdirSync(join(runtime, "socketserver"), { mode: 0o700 })
        const asked = yield* Queue.unbounded<void>()
        yield* Effect.acquireRelease(
          Effect.callback<Net.Server>((resume) => {
            const server = Net.createServer((socket) => {
              socket.on("error", () => {}).once("data", () => Queue.offerUnsafe(asked, undefined))
            }).listen(path, () => resume(Effect.succeed(server)))
          }),
          (server) => Effect.sync(() => server.close())
        )
        const alone = yield* Effect.forkScoped(run("connections"))
        // It is looked for, and then asked.
        yield* Queue.take(asked)
        yield* TestClock.adjust("2 seconds")
        yield* Queue.take(asked)
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(yield* Fiber.join(alone), {
          out: [],
          errors: [`${path} has not answered for 10 seconds: the program that listens there may be stopped, or busy`],
          code: 1
        })

        yield* serve("serve", handlers, "--unix", join(runtime, "x.sock"), "--name", "other")
        const both = yield* Effect.forkScoped(run("drain"))
        yield* Queue.take(asked)
        yield* TestClock.adjust("2 seconds")
        assert.deepStrictEqual(yield* Fiber.join(both), {
          out: [],
          errors: ["several programs run: mute, other; choose one by --control NAME"],
          code: 2
        })
      }),
    60_000
  )

  it.live("that has as many clients as its control takes says so, and is found", () =>
    Effect.gen(function*() {
      const { run, runtime, serve } = yield* commands
      yield* serve("serve", handlers, "--tcp", "0", "--name", "full")
      yield* Effect.replicateEffect(connect(join(runtime, "socketserver", "full.sock")), 32)
      assert.deepStrictEqual(yield* run("connections"), {
        out: [],
        errors: ["this control has 32 clients already"],
        code: 1
      })
    }))

  it.live("is followed event by event", () =>
    Effect.gen(function*() {
      const { run, serve, spawned } = yield* commands
      const server = yield* serve("serve", handlers, "--tcp", "0")
      const following = yield* spawned(["events"])
      // Until the first line the subscription may not be there yet.
      const first = yield* Effect.forkScoped(following.out.line)
      yield* Effect.repeat(ask(server.at["tcp"]!, "x\n"), { until: () => first.pollUnsafe() !== undefined })
      yield* run("drain")
      const events = (yield* following.out.rest).map((line) => JSON.parse(line))
      assert.strictEqual(events.at(-1).event, "Stopped")
      assert.strictEqual(events.at(-1).server, "tcp")
      assert.strictEqual(yield* following.exitCode, 0)
    }), 60_000)
})

describe("what clients bring", () => {
  it("tells a terminal nothing, in text and in JSON", () => {
    const text = "a\u001b[31m\u009b1m\u007f\u202e"
    assert.strictEqual(printable(text), "a?[31m?1m??")
    assert.strictEqual(jsonLine({ text }), `{"text":"a\\u001b[31m\\u009b1m\\u007f\u202e"}`)
    assert.deepStrictEqual(JSON.parse(jsonLine({ text })), { text })
  })
})

describe("top", () => {
  it.live("shows servers and connections, once, or again and again", () =>
    Effect.gen(function*() {
      const { run, serve, spawned } = yield* commands
      const server = yield* serve("serve", handlers, "--tcp", "0")
      yield* enter(server.at["tcp"]!, "alice")
      const once = yield* run("top", "--once")
      assert.match(once.out[0]!, /^SERVER +ADDRESS +STATUS +OPEN/)
      assert.match(once.out[1]!, /^tcp +127\.0\.0\.1:\d+ +ready +1 +1 +0 /)
      assert.match(once.out[4]!, /last=alice$/)
      const following = yield* spawned(["top", "--every", "100ms"])
      for (let i = 0; i < 3; i++) yield* following.out.lineWith(/^SERVER /)
      yield* following.signal("SIGINT")
      assert.strictEqual(yield* following.exitCode, 130)
      assert.deepStrictEqual(yield* following.errors.rest, [])
    }))

  it.live("takes the terminal's whole screen, and gives it back", () =>
    Effect.gen(function*() {
      const { env, serve } = yield* commands
      yield* serve("serve", handlers, "--tcp", "0")
      const { exitCode, interrupt, screen } = yield* startInTerminal(["top", "--every", "100ms"], env)
      yield* screen.shows("\u001b[?1049h\u001b[?25l\u001b[HSERVER ", /tcp +127/)
      yield* interrupt
      assert.strictEqual(yield* exitCode, 130)
      assert.isTrue(screen.all().trimEnd().endsWith("\u001b[?25h\u001b[?1049l"))
    }))
})

describe("in a terminal", () => {
  it.live("serve keeps a status as the last line, below what is written, and takes it away in the end", () =>
    Effect.gen(function*() {
      const { env, runtime } = yield* commands
      const path = join(runtime, "x.sock")
      const { exitCode, interrupt, screen } = yield* startInTerminal(
        ["serve", handlers, "--unix", path, "--handler", "promise"],
        env
      )
      const status = "\r\u001b[2Kunix ready: "
      yield* screen.shows(status, /0 open, 0 in flight, \d+\/s, in [^|]*\/s, out [^|]*\/s/)
      yield* ask(path, "x\n")
      // A line of the log takes the status's place, which comes again below.
      yield* screen.shows("\r\u001b[2K[", /ERROR/)
      yield* screen.shows(`\n${status}`)
      yield* interrupt
      assert.strictEqual(yield* exitCode, 0)
      assert.match(screen.all(), /unix: drained in/)
      assert.isTrue(screen.all().endsWith("\r\u001b[2K"))
    }))

  const plain = [["where it is told to", "xterm", ["--no-status"]], [
    "in a terminal that has nothing else",
    "dumb",
    []
  ]] as const
  for (const [title, TERM, options] of plain) {
    it.live(`serve writes plain lines ${title}`, () =>
      Effect.gen(function*() {
        const { env, runtime } = yield* commands
        const path = join(runtime, "x.sock")
        const { exitCode, interrupt, screen } = yield* startInTerminal(
          ["serve", handlers, "--unix", path, ...options],
          { ...env, TERM }
        )
        yield* screen.shows("Ctrl-C drains")
        yield* interrupt
        assert.strictEqual(yield* exitCode, 0)
        assert.notInclude(screen.all(), "\u001b")
      }))
  }
})

describe("the command", () => {
  it.live("helps, names its version, completes, and knows what it does not know", () =>
    Effect.gen(function*() {
      const { run, runProcess } = yield* commands
      const help = yield* run("--help")
      assert.strictEqual(help.code, 0)
      for (
        const name of ["serve", "exec", "top", "connections", "kill", "drain", "suspend", "resume", "limits", "events"]
      ) {
        assert.isTrue(help.out.some((line) => line.trim().startsWith(`${name} `)), name)
        const own = yield* run(name, "--help")
        assert.strictEqual(own.code, 0)
        assert.include(own.out.join("\n"), "USAGE")
      }
      assert.match((yield* runProcess("--version")).out.join(""), /^socketserver v\d+\.\d+\.\d+$/)
      for (const shell of ["bash", "zsh", "fish"]) {
        const { code, out } = yield* run("--completions", shell)
        assert.strictEqual(code, 0)
        assert.include(out.join("\n"), "max-in-flight")
      }
      const unknown = yield* runProcess("srve")
      assert.match(unknown.errors.join("\n"), /Unknown subcommand "srve".*serve/s)
      assert.deepStrictEqual([unknown.code, unknown.out], [2, []])
    }))

  it.live("its completions are a script that bash takes, and complete commands, options, their values, and files", () =>
    Effect.gen(function*() {
      const { runProcess, runtime } = yield* commands
      const [script, module] = [join(runtime, "completions.bash"), join(runtime, "handler.ts")]
      writeFileSync(script, (yield* runProcess("--completions", "bash")).out.join("\n"))
      writeFileSync(module, "")
      // What bash does at the Tab key: it sets the words, and calls the function with the command, the last, and the one before.
      const press = `set -eu
        source "$1"
        read -r -a tabs <<< "$(complete -p socketserver)"
        complete() {
          COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=\${#COMP_LINE} COMPREPLY=()
          "\${tabs[2]}" "$1" "\${@: -1}" "\${@: -2:1}"
          echo "\${COMPREPLY[*]}"
        }
        compopt() { :; }
        complete socketserver se
        complete socketserver serve --max-i
        complete socketserver serve --dispatch t
        complete socketserver serve --tcp 9999 "$2"
        complete socketserver connections --w`
      const bash = yield* start("bash", ["--norc", "-c", press, "bash", script, module.slice(0, -3)])
      yield* bash.finish
      assert.deepStrictEqual(yield* Effect.all([bash.out.rest, bash.errors.rest, bash.exitCode]), [
        ["serve", "--max-in-flight", "thread", module, "--where"],
        [],
        0
      ])
    }))
})
