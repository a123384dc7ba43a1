/** Sockets that another program has opened: by descriptor, and as systemd passes them. */
import { assert, describe, it } from "@effect/vitest"
import { NodeTransport } from "@socketserver/node"
import { type Cause, Effect, Fiber, Queue, Result, type Scope } from "effect"
import { NetAddress } from "effect/net"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import * as Dgram from "node:dgram"
import { closeSync, existsSync, openSync, renameSync } from "node:fs"
import * as Net from "node:net"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { connect, directory, receiveAll, start } from "./utils.ts"

const program = join(import.meta.dirname, "adopted/server.ts")

interface Started {
  /** What it says first: where it listens, or its error. */
  readonly hello: any
  readonly pid: number
  readonly order: (order: string) => Effect.Effect<any, Cause.Done>
  readonly end: Effect.Effect<void>
}

const linesOf = (child: ChildProcess) => {
  const lines = Effect.runSync(Queue.unbounded<any, Cause.Done>())
  createInterface({ input: child.stdout! })
    .on("line", (line) => Queue.offerUnsafe(lines, JSON.parse(line)))
    .on("close", () => Queue.endUnsafe(lines))
  return lines
}

/** Runs a command; it is killed if it still runs when the test ends. */
const run = (
  command: string,
  args: ReadonlyArray<string>,
  { sockets = [], stderr = "inherit" }: {
    readonly sockets?: ReadonlyArray<number>
    readonly stderr?: "inherit" | "pipe"
  } = {}
) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => spawn(command, args, { stdio: ["pipe", "pipe", stderr, ...sockets] })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    ),
    (child) => {
      const lines = linesOf(child)
      const ended = new Promise<void>((resolve) => child.once("close", () => resolve()))
      return {
        child,
        lines,
        order: (order: string) =>
          Effect.suspend(() => {
            child.stdin!.write(`${order}\n`)
            return Effect.map(Queue.take(lines), (answer) => answer[order])
          }),
        end: Effect.suspend(() => {
          child.stdin!.end()
          return Effect.promise(() => ended)
        })
      }
    }
  )

const startProgram = (
  command: string,
  args: ReadonlyArray<string>,
  sockets: ReadonlyArray<number>
): Effect.Effect<Started, Cause.Done, Scope.Scope> =>
  Effect.gen(function*() {
    const { child, end, lines, order } = yield* run(command, args, { sockets })
    return { hello: yield* Queue.take(lines), pid: child.pid!, order, end }
  })

const adopt = (kind: "fd" | "systemd", options: object, sockets: ReadonlyArray<number>) =>
  startProgram(process.execPath, [program, kind, JSON.stringify(options)], sockets)

/** As systemd starts it: the variables are set when the process is there already. */
const activate = (
  options: object,
  sockets: ReadonlyArray<number>,
  variables = `LISTEN_PID=$$ LISTEN_FDS=${sockets.length}`
) =>
  startProgram("sh", [
    "-c",
    `unset LISTEN_PID LISTEN_FDS LISTEN_FDNAMES; ${variables} exec "$@"`,
    "sh",
    process.execPath,
    program,
    "systemd",
    JSON.stringify(options)
  ], sockets)

const descriptorOf = (server: unknown): number => (server as { readonly _handle: { readonly fd: number } })._handle.fd

/** A listening socket of this process. */
const listening = (options: Net.ListenOptions) =>
  Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer()
      server.listen(options, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )

const addressOf = (server: Net.Server): NetAddress.SocketAddress => {
  const address = server.address()
  return typeof address === "string"
    ? NetAddress.unixPathAddress(address)
    : NetAddress.inetAddressFromIpStringUnsafe(address!.address, address!.port)
}

/** Closes this process's part of a socket. */
const giveAway = (server: Net.Server) =>
  Effect.sync(() => {
    const path = server.address()
    if (typeof path !== "string") return void server.close()
    // Node removes the file of what it has bound.
    renameSync(path, `${path}.kept`)
    server.close()
    renameSync(`${path}.kept`, path)
  })

/** A program on a socket that it has alone by now. */
const given = (
  options: Net.ListenOptions,
  give: (descriptor: number) => Effect.Effect<Started, Cause.Done, Scope.Scope>
) =>
  Effect.gen(function*() {
    const server = yield* listening(options)
    const address = addressOf(server)
    const started = yield* give(descriptorOf(server))
    yield* giveAway(server)
    return { ...started, address }
  })

const asFd = (options: object = {}) => (descriptor: number) => adopt("fd", { fd: 3, ...options }, [descriptor])

/** Says something, and tells the answer. */
const ask = (address: NetAddress.SocketAddress) =>
  Effect.scoped(Effect.gen(function*() {
    const client = yield* connect(address)
    client.end("hello\n")
    return yield* receiveAll(client)
  }))

const local = { host: "127.0.0.1", port: 0 }

describe("a descriptor", () => {
  it.live("of a TCP socket is served, its address is known, and children do not inherit it", () =>
    Effect.gen(function*() {
      const { address, hello, pid } = yield* given(local, asFd())
      assert.deepStrictEqual(hello, {
        pid,
        address: String(address),
        transport: "fd",
        descriptor: 3,
        closesOnExec: true
      })
      assert.strictEqual(yield* ask(address), `${pid} hello\n`)
    }))

  it.live("brings the clients that came before it was adopted", () =>
    Effect.gen(function*() {
      const server = yield* listening(local)
      const address = addressOf(server)
      const { child, lines } = yield* run(process.execPath, [program, "fd", `{ "fd": 3 }`], {
        sockets: [descriptorOf(server)]
      })
      yield* giveAway(server)
      assert.strictEqual(yield* ask(address), `${child.pid} hello\n`)
      assert.strictEqual((yield* Queue.take(lines)).address, String(address))
    }))

  const unixSockets = [["a unix socket is served, and its file stays", ""], ["an abstract name is served", "\0"]]
  for (const [kind, abstract] of unixSockets) {
    it.live.runIf(abstract === "" || process.platform === "linux")(`of ${kind}`, () =>
      Effect.gen(function*() {
        const path = `${abstract}${join(yield* directory, "with a space.sock")}`
        const { address, end, hello, order, pid } = abstract === ""
          ? yield* given({ path }, asFd())
          : yield* Effect.gen(function*() {
            const server = yield* listening({ path })
            const started = yield* asFd()(descriptorOf(server))
            server.close()
            return { ...started, address: NetAddress.unixPathAddress(path) }
          })
        if (process.platform === "linux") assert.strictEqual(hello.address, String(address))
        assert.strictEqual(yield* ask(address), `${pid} hello\n`)
        yield* order("close")
        yield* end
        if (abstract === "") assert.isTrue(existsSync(path))
        assert.strictEqual((yield* Effect.flip(connect(address))).code, "ECONNREFUSED")
      }))
  }

  it.live("stays open while the server is suspended, and clients wait for it to resume", () =>
    Effect.gen(function*() {
      const { address, order, pid } = yield* given(local, asFd())
      yield* order("suspend")
      const asked = yield* Effect.forkScoped(ask(address), { startImmediately: true })
      const second = yield* connect(address)
      second.end("second\n")
      assert.strictEqual(yield* order("accepted"), 0)
      assert.strictEqual(yield* order("status"), "suspended")
      yield* order("suspend")
      yield* order("resume")
      assert.strictEqual(yield* order("status"), "ready")
      assert.strictEqual(yield* Fiber.join(asked), `${pid} hello\n`)
      assert.strictEqual(yield* receiveAll(second), `${pid} second\n`)
      assert.strictEqual(yield* ask(address), `${pid} hello\n`)
    }))

  it.live("holds 511 clients back at most, resets more, and all when the server drains", () =>
    Effect.gen(function*() {
      const { address, end, order, pid } = yield* given(local, asFd())
      const visit = Effect.map(Effect.result(ask(address)), (result) => Result.getOrElse(result, () => "reset"))
      for (const outcome of ["resume", "drain"]) {
        yield* order("suspend")
        const answers = yield* Queue.unbounded<string>()
        yield* Effect.forkScoped(Effect.all(
          Array.from({ length: 520 }, () => Effect.flatMap(visit, (answer) => Queue.offer(answers, answer))),
          { concurrency: "unbounded" }
        ))
        for (let i = 0; i < 9; i++) assert.strictEqual(yield* Queue.take(answers), "reset")
        yield* order(outcome)
        for (let i = 0; i < 511; i++) {
          assert.strictEqual(yield* Queue.take(answers), outcome === "resume" ? `${pid} hello\n` : "reset")
        }
      }
      yield* end
    }))

  it.live("is closed by `suspend` with `release`, its clients go to who else has it, and `resume` fails", () =>
    Effect.gen(function*() {
      const server = yield* listening(local)
      const address = addressOf(server)
      const first = yield* asFd({ onSuspend: "release" })(descriptorOf(server))
      const second = yield* asFd()(descriptorOf(server))
      yield* giveAway(server)
      yield* first.order("suspend")
      for (let i = 0; i < 20; i++) assert.strictEqual(yield* ask(address), `${second.pid} hello\n`)
      assert.match(yield* first.order("resume"), /option `fd` is 3: .*; it was adopted before/)
    }))

  it.live("is closed by the drain, and not adopted again", () =>
    Effect.gen(function*() {
      const { address, order } = yield* given(local, asFd())
      yield* order("drain")
      assert.strictEqual((yield* Effect.flip(connect(address))).code, "ECONNREFUSED")
      assert.match(yield* order("again"), /option `fd` is 3: .*; it (was adopted before|is not open)/)
    }))

  it.live("that cannot listen is a `ListenError` that names it", () =>
    Effect.gen(function*() {
      const failure = (fd: number) =>
        Effect.map(Effect.flip(start(NodeTransport.fd({ fd }), () => Effect.void)), ({ message, reason }) => {
          assert.strictEqual(reason._tag, "InvalidOption")
          return message
        })
      const file = yield* Effect.acquireRelease(
        Effect.sync(() => openSync(import.meta.filename, "r")),
        (file) => Effect.sync(() => closeSync(file))
      )
      assert.strictEqual(
        yield* failure(file),
        `option \`fd\` is ${file}: expected the descriptor of a listening TCP or unix socket; it is a file`
      )
      assert.match(yield* failure(100_000), /is 100000: .*; it is not open/)
      assert.match(yield* failure(-1), /is -1: expected an integer from 0/)
      assert.match(yield* failure(1.5), /is 1.5: expected an integer from 0/)
      assert.match(yield* failure(undefined as never), /is missing: expected the descriptor/)
      const server = yield* listening(local)
      assert.match(yield* failure(descriptorOf(server)), /; this process uses it already/)
      const connected = yield* connect(addressOf(server))
      const packets = yield* Effect.acquireRelease(
        Effect.callback<Dgram.Socket>((resume) => {
          const socket = Dgram.createSocket("udp4")
          socket.bind({ address: "127.0.0.1", port: 0 }, () => resume(Effect.succeed(socket)))
        }),
        (socket) => Effect.sync(() => socket.close())
      )
      const handle = Object.getOwnPropertySymbols(packets).map((symbol) => (packets as any)[symbol].handle).find(
        Boolean
      )
      for (const descriptor of [descriptorOf(connected), handle.fd as number]) {
        const { hello } = yield* asFd()(descriptor)
        assert.match(hello.error, /option `fd` is 3: .*; it is a socket that cannot listen/)
      }
    }))

  it.live("with a wrong `onSuspend` is a `ListenError`, and is left alone", () =>
    Effect.gen(function*() {
      const transport = NodeTransport.fd({ fd: 0, onSuspend: "keep" as never })
      const { message } = yield* Effect.flip(start(transport, () => Effect.void))
      assert.strictEqual(message, "option `onSuspend` is \"keep\": expected \"hold\" or \"release\"")
    }))
})

describe("systemd's sockets", () => {
  it.live("the only one needs no name", () =>
    Effect.gen(function*() {
      const { address, hello, pid } = yield* given(local, (descriptor) => activate({}, [descriptor]))
      assert.strictEqual(hello.transport, "systemd")
      assert.strictEqual(hello.address, String(address))
      assert.strictEqual(yield* ask(address), `${pid} hello\n`)
    }))

  it.live("several are told apart by name, and those of one name by index", () =>
    Effect.gen(function*() {
      const servers = yield* Effect.all([listening(local), listening(local), listening(local)])
      const sockets = servers.map(descriptorOf)
      const variables = "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=web:admin:web"
      for (
        const [options, expected] of [[{ name: "admin" }, 1], [{ name: "web", index: 1 }, 2], [
          { index: 0 },
          0
        ]] as const
      ) {
        const { hello } = yield* activate(options, sockets, variables)
        assert.strictEqual(hello.address, String(addressOf(servers[expected])))
        assert.strictEqual(hello.descriptor, 3 + expected)
      }
      for (
        const [options, expected] of [
          [{}, /a socket of systemd: there are 3 sockets, named web, admin; choose one/],
          [{ name: "web" }, /systemd's socket web: there are 2 sockets of that name; choose one/],
          [{ name: "web", index: 2 }, /there is no socket 2: it has 2/],
          [{ name: "other" }, /systemd's socket other: there is no socket of that name, only: web, admin/],
          [{ index: -1 }, /option `index` is -1/]
        ] as const
      ) {
        const { hello } = yield* activate(options, sockets, variables)
        assert.match(hello.error, expected)
      }
    }), 60_000)

  it.live("a process that was not given any says so", () =>
    Effect.gen(function*() {
      for (
        const [variables, expected] of [
          ["", /LISTEN_FDS is not set, so this process was not started with sockets; start it by a socket unit/],
          ["LISTEN_FDS=1", /LISTEN_PID is not set/],
          [
            "LISTEN_PID=1 LISTEN_FDS=1",
            /LISTEN_PID is 1, and this process is \d+: the sockets are for another process/
          ],
          ["LISTEN_PID=$$ LISTEN_FDS=0", /LISTEN_FDS is "0", and has to be/],
          ["LISTEN_PID=$$ LISTEN_FDS=x", /LISTEN_FDS is "x", and has to be/],
          ["LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a:b", /LISTEN_FDNAMES has 2 names, and LISTEN_FDS says 1/],
          ["LISTEN_PID=$$ LISTEN_FDS=1", /descriptor 3 is not the one of a listening stream socket: it is a/]
        ] as const
      ) {
        const file = openSync(import.meta.filename, "r")
        const { hello } = yield* activate({}, [file], variables)
        closeSync(file)
        assert.match(hello.error, expected)
      }
    }), 60_000)

  it.live("the variables are read when the server starts, not before", () =>
    Effect.gen(function*() {
      const transport = NodeTransport.systemd()
      const before = process.env["LISTEN_FDS"]
      process.env["LISTEN_FDS"] = "1"
      const { message } = yield* Effect.flip(start(transport, () => Effect.void))
      if (before === undefined) delete process.env["LISTEN_FDS"]
      else process.env["LISTEN_FDS"] = before
      assert.match(message, /LISTEN_PID/)
    }))

  const command = "systemd-socket-activate"
  const isThere = spawnSync(command, ["--version"]).error === undefined
  const note = isThere ? "" : ` (needs ${command}: apt-get install systemd)`

  /** It starts the program for the first client. */
  const socketActivate = (listen: ReadonlyArray<string>, options: object) =>
    Effect.gen(function*() {
      const { child, lines, ...rest } = yield* run(command, [
        ...listen.map((address) => `--listen=${address}`),
        "--fdname=first:second",
        process.execPath,
        program,
        "systemd",
        JSON.stringify(options)
      ], { stderr: "pipe" })
      const told = createInterface({ input: child.stderr! })
      yield* Effect.callback<void>((resume) => {
        let missing = listen.length
        told.on("line", (line) => {
          if (line.startsWith("Listening on") && --missing === 0) resume(Effect.void)
        })
      })
      return { ...rest, pid: child.pid!, hello: Queue.take(lines) }
    })

  it.live.runIf(isThere)(
    `\`${command}\` starts the server for its first client, TCP and unix${note}`,
    () =>
      Effect.gen(function*() {
        const path = join(yield* directory, "s.sock")
        const free = yield* listening(local)
        const tcp = addressOf(free)
        yield* giveAway(free)
        const unix = NetAddress.unixPathAddress(path)
        for (const [name, address] of [["first", tcp], ["second", unix]] as const) {
          const { end, hello, order, pid } = yield* socketActivate([String(tcp), path], { name })
          assert.strictEqual(yield* ask(address), `${pid} hello\n`)
          const { descriptor, ...told } = yield* hello
          assert.strictEqual(descriptor, name === "first" ? 3 : 4)
          assert.strictEqual(told.address, String(address))
          yield* order("suspend")
          yield* order("resume")
          assert.strictEqual(yield* ask(address), `${pid} hello\n`)
          yield* end
        }
      })
  )
})
