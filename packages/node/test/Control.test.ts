/** The control of running servers, over its unix socket: by its client, by bare sockets, and by `nc`. */
import { assert, describe, it } from "@effect/vitest"
import { Admission, Dispatch, Logging, Server } from "@socketserver/core"
import { Control, ControlClient, NodeTransport } from "@socketserver/node"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Queue, Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { spawn } from "node:child_process"
import { existsSync, statSync, writeFileSync } from "node:fs"
import * as Net from "node:net"
import { connect, directory, portOf, receiveAll } from "./utils.ts"

/** A server of lines that notes who its clients are, and its control. */
const start = Effect.gen(function*() {
  const path = `${yield* directory}/control.sock`
  const context = yield* Layer.build(
    Control.layer({ path }).pipe(
      Layer.provideMerge(
        NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          Admission.maxConnections({ max: 100 }),
          Dispatch.fiberPerRequest(),
          Server.serveStream((connection) =>
            Effect.forever(Effect.gen(function*() {
              const line = yield* connection.readLine()
              yield* connection.annotate("user", line)
              if (line === "boom") return yield* Effect.die(new Error("so it goes\nindeed"))
              yield* connection.write(`${line.toUpperCase()}\n`)
            })), { shutdown: { grace: "100 millis", kill: "100 millis" } })
        )
      ),
      Layer.provide(Logging.off)
    )
  )
  return { path, server: Context.get(context, Server.Server) }
})

/** A client that has said who it is. */
const join = Effect.fnUntraced(function*(server: { readonly address: NetAddress.SocketAddress }, user: string) {
  const socket = yield* connect(server.address)
  const ended = new Promise<void>((resolve) => socket.once("close", () => resolve()))
  socket.on("end", () => socket.end())
  yield* Effect.callback<void>((resume) => {
    socket.once("data", () => resume(Effect.void))
    socket.write(`${user}\n`)
  })
  return { socket, ended: Effect.promise(() => ended) }
})

/** What the control says to this text, until it closes. */
const say = (path: string, text: string | Buffer) =>
  Effect.gen(function*() {
    const socket = yield* connect(NetAddress.unixPathAddress(path))
    socket.end(text)
    return (yield* receiveAll(socket)).trimEnd().split("\n").map((line) => JSON.parse(line) as Record<string, unknown>)
  }).pipe(Effect.scoped)

/** A program that takes requests, and answers when the test says so. */
const mute = Effect.gen(function*() {
  const path = `${yield* directory}/mute.sock`
  const asked = yield* Queue.unbounded<{ readonly line: string; readonly socket: Net.Socket }>()
  yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer((socket) => {
        socket.on("error", () => {}).once("data", (data) => {
          Queue.offerUnsafe(asked, { line: String(data), socket })
        })
      }).listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )
  return { path, asked: Queue.take(asked) }
})

const codeOf = (answer: Record<string, unknown> | undefined) => answer?.["code"]

describe("Control", () => {
  it.live("says what a server is, does, and has as connections", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      const alice = yield* join(server, "alice")
      const view = yield* ControlClient.request(path, { do: "info" })
      assert.deepStrictEqual(view, {
        name: "tcp",
        address: `127.0.0.1:${portOf(server)}`,
        transport: "tcp",
        strategy: "fiberPerRequest",
        status: "ready",
        limits: { maxConnections: 100 },
        pid: process.pid
      })
      assert.deepStrictEqual(yield* ControlClient.request(path, { do: "servers" }), [view])
      const stats = yield* ControlClient.request(path, { do: "stats" })
      assert.deepStrictEqual(stats, yield* server.stats)
      const [found] = yield* Stream.runCollect(ControlClient.items(path, { do: "connections" }))
      assert.isAtLeast(found!.ageMs, 0)
      assert.deepStrictEqual({ ...found, ageMs: 0 }, {
        id: 1,
        peer: `127.0.0.1:${alice.socket.localPort}`,
        local: view.address,
        state: "handling",
        ageMs: 0,
        bytesRead: 6,
        bytesWritten: 6,
        annotations: { user: "alice" }
      })
    }))

  it.live("closes one connection by its id, and those for which all holds that is said", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      const clients = yield* Effect.forEach(["alice", "bob", "carol", "dave"], (user) => join(server, user))
      const left = () =>
        Effect.map(server.connections.list, (list) => list.map(({ annotations }) => annotations.get("user")))
      const close = (where: Control.Where) => ControlClient.request(path, { do: "close", where })

      assert.strictEqual(yield* ControlClient.request(path, { do: "close", id: 2 }), 1)
      yield* clients[1]!.ended
      assert.strictEqual(yield* ControlClient.request(path, { do: "close", id: 2 }), 0)
      assert.strictEqual(yield* close({ peer: "127.0.0.1", annotations: { user: "carol" } }), 1)
      yield* clients[2]!.ended
      for (
        const where of [
          { peer: "10.0.0.0/8" },
          { peer: "127.0.0.2" },
          { state: "queued" },
          { olderThanMs: 3_600_000 },
          { annotations: { user: "bob" } },
          { annotations: { other: "undefined" } }
        ] as ReadonlyArray<Control.Where>
      ) {
        assert.strictEqual(yield* close(where), 0)
      }
      assert.deepStrictEqual(yield* left(), ["alice", "dave"])
      assert.strictEqual(yield* close({ peer: `127.0.0.1:${clients[0]!.socket.localPort}` }), 1)
      yield* clients[0]!.ended
      assert.strictEqual(yield* close({ peer: "127.0.0.0/8", state: "handling" }), 1)
      yield* clients[3]!.ended
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Killed: 4 })
    }))

  it.live("suspends and resumes", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      const alice = yield* join(server, "alice")
      yield* ControlClient.request(path, { do: "suspend" })
      assert.strictEqual(yield* server.status, "suspended")
      assert.strictEqual((yield* Effect.flip(connect(server.address))).code, "ECONNREFUSED")
      assert.isFalse(alice.socket.destroyed)
      yield* ControlClient.request(path, { do: "resume" })
      yield* join(server, "bob")
    }))

  it.live("changes limits, and says what there is for one that is not, and what is wrong with a value", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      yield* ControlClient.request(path, { do: "limit", name: "maxConnections", value: 1 })
      assert.deepStrictEqual(yield* ControlClient.request(path, { do: "limits" }), { maxConnections: 1 })
      yield* join(server, "alice")
      yield* Effect.exit(receiveAll(yield* connect(server.address)))
      yield* Effect.repeat(Effect.tap(server.stats, () => Effect.yieldNow), {
        until: ({ refused }) => refused["maxConnections"] === 1
      })
      const unknown = yield* Effect.flip(ControlClient.request(path, { do: "limit", name: "rate", value: 1 }))
      assert.deepStrictEqual([unknown.code, unknown.message], [
        "UnknownLimit",
        "there is no limit \"rate\": there are maxConnections"
      ])
      const wrong = yield* Effect.flip(ControlClient.request(path, { do: "limit", name: "maxConnections", value: -1 }))
      assert.strictEqual(wrong.code, "InvalidValue")
      assert.match(wrong.message, /^limit "maxConnections" is -1: expected an integer, 0 or more$/)
    }))

  it.live("drains, with deadlines of one's own, and gives the report to all who ask for it", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      const alice = yield* join(server, "alice")
      const [report, other] = yield* Effect.all([
        ControlClient.request(path, { do: "drain", graceMs: 5_000, killMs: 0 }),
        ControlClient.request(path, { do: "drain" })
      ], { concurrency: "unbounded" })
      assert.deepStrictEqual({ ...report, elapsedMs: 0 }, {
        idleClosed: 1,
        completed: 0,
        interrupted: 0,
        killed: 0,
        refused: 0,
        elapsedMs: 0
      })
      assert.deepStrictEqual(other, report)
      yield* alice.ended
      assert.strictEqual((yield* ControlClient.request(path, { do: "info" })).status, "stopped")
    }))

  it.live("tells what happens, until the server has stopped", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      const seen: Array<Control.EventView> = []
      const following = yield* Effect.forkChild(
        Stream.runForEach(ControlClient.items(path, { do: "events" }), (event) => Effect.sync(() => seen.push(event)))
      )
      // Whether the subscription is there shows by what it tells: something happens until it does.
      while (seen.length === 0) {
        yield* server.suspend
        yield* server.resume
        yield* Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))
      }
      const alice = yield* join(server, "alice")
      const peer = `127.0.0.1:${alice.socket.localPort}`
      yield* ControlClient.request(path, { do: "close", id: 1 })
      yield* alice.ended
      yield* server.awaitIdle
      const bomber = yield* connect(server.address)
      const other = `127.0.0.1:${bomber.localPort}`
      bomber.write("boom\n")
      yield* receiveAll(bomber)
      yield* server.awaitIdle
      yield* server.drain()
      yield* Fiber.join(following)
      const interesting = seen.filter(({ event }) => event !== "Suspended" && event !== "Listening")
      assert.deepStrictEqual(
        interesting.map(({ durationMs: _, report: __, ...event }) => event),
        [
          { event: "Accepted", id: 1, peer },
          { event: "Closed", kind: "connection", id: 1, peer, reason: "Killed", bytesRead: 6, bytesWritten: 6 },
          { event: "Accepted", id: 2, peer: other },
          {
            event: "Failed",
            level: "Error",
            kind: "connection",
            id: 2,
            peer: other,
            reason: "HandlerFailed",
            cause: "so it goes; indeed",
            annotations: { user: "boom" }
          },
          {
            event: "Closed",
            kind: "connection",
            id: 2,
            peer: other,
            reason: "HandlerFailed",
            cause: "so it goes; indeed",
            bytesRead: 5,
            bytesWritten: 0
          },
          { event: "Draining" },
          { event: "Stopped" }
        ]
      )
    }))

  it.live("shows all servers again and again, until the client has seen enough", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      yield* join(server, "alice")
      const views = yield* ControlClient.items(path, { do: "top", everyMs: 100 }).pipe(
        Stream.take(3),
        Stream.runCollect
      )
      assert.deepStrictEqual(views.map(({ servers }) => servers.map(({ name, stats }) => [name, stats.open])), [
        [["tcp", 1]],
        [["tcp", 1]],
        [["tcp", 1]]
      ])
    }))

  it.live("addresses several servers by their names, and asks which where none is named", () =>
    Effect.gen(function*() {
      class Echo extends Server.Service<Echo>()("test/Echo") {}
      class Other extends Server.Service<Other>()("test/Other") {}
      const path = `${yield* directory}/control.sock`
      const server = (name: string) =>
        NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          Dispatch.serial(),
          Server.serveStream((connection) => connection.pull, { name })
        )
      const context = yield* Layer.build(
        Control.layer({ path, servers: [Echo, Other] }).pipe(
          Layer.provideMerge(Layer.mergeAll(Server.as(Echo)(server("echo")), Server.as(Other)(server("echo"))))
        )
      )
      const names = (yield* ControlClient.request(path, { do: "servers" })).map(({ name }) => name)
      assert.deepStrictEqual(names, ["echo", "echo-2"])
      yield* ControlClient.request(path, { do: "suspend", server: "echo-2" })
      assert.strictEqual(yield* Context.get(context, Other).status, "suspended")
      assert.strictEqual(yield* Context.get(context, Echo).status, "ready")
      const which = yield* Effect.flip(ControlClient.request(path, { do: "suspend" }))
      assert.deepStrictEqual([which.code, which.message], ["WhichServer", "name one `server` of echo, echo-2"])
      const unknown = yield* Effect.flip(ControlClient.request(path, { do: "stats", server: "constructor" }))
      assert.strictEqual(unknown.code, "UnknownServer")
    }))

  it.live("is a socket that only its user may open, and gone with its scope, as are those that follow it", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { path } = yield* Scope.provide(start, scope)
      assert.strictEqual(statSync(path).mode & 0o777, 0o600)
      const started = yield* Deferred.make<void>()
      const following = yield* Effect.forkChild(
        Stream.runForEach(ControlClient.items(path, { do: "top" }), () => Deferred.succeed(started, undefined))
      )
      yield* Deferred.await(started)
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(following)
      assert.isFalse(existsSync(path))
      const gone = yield* Effect.flip(ControlClient.request(path, { do: "servers" }))
      assert.deepStrictEqual([gone.code, gone.message], ["NotRunning", `no server is controlled at ${path}`])
    }))

  it.live("talks with nc: several requests on one connection, answered in order", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      yield* join(server, "alice")
      const output = yield* Effect.callback<string, Error>((resume) => {
        const nc = spawn("nc", ["-N", "-U", path])
        let text = ""
        nc.on("error", (error) => resume(Effect.fail(error)))
        nc.stdout.setEncoding("utf8").on("data", (chunk: string) => void (text += chunk))
        nc.on("close", () => resume(Effect.succeed(text)))
        nc.stdin.end("{\"do\":\"connections\"}\n{\"do\":\"limits\"}\n{\"do\":\"events\"}\n")
      })
      const answers = output.trimEnd().split("\n").map((line) => JSON.parse(line))
      assert.deepStrictEqual(answers[0].item.annotations, { user: "alice" })
      // What goes on for as long as the client wants ends with its input.
      assert.deepStrictEqual(answers.slice(1), [
        { ok: true, value: 1 },
        { ok: true, value: { maxConnections: 100 } },
        { ok: true, value: null }
      ])
    }))

  it.live("answers what it cannot understand, and goes on", () =>
    Effect.gen(function*() {
      const { path } = yield* start
      const lines = [
        "hello",
        "[]",
        "null",
        "{\"do\":\"constructor\"}",
        "{\"do\":\"close\"}",
        "{\"do\":\"close\",\"id\":1,\"where\":{}}",
        "{\"do\":\"close\",\"were\":{}}",
        "{\"do\":\"close\",\"where\":{\"peer\":\"10.0.0.0/99\"}}",
        "{\"do\":\"close\",\"id\":\"1\"}",
        "{\"do\":\"drain\",\"graceMs\":-1}",
        "{\"do\":\"drain\",\"graceMs\":1e300}",
        "{\"do\":\"limit\",\"name\":\"__proto__\",\"value\":1}",
        "{\"do\":\"top\",\"everyMs\":0}",
        "",
        "{\"do\":\"limits\"}"
      ]
      const answers = yield* say(path, lines.join("\n"))
      assert.deepStrictEqual(answers.map(codeOf), [
        ...Array.from({ length: 11 }, () => "InvalidRequest"),
        "UnknownLimit",
        "InvalidRequest",
        "InvalidRequest",
        undefined
      ])
      assert.include(String(answers[3]?.["error"]), "servers, info, stats")
    }))

  it.live("refuses a request that is too long, and bytes that are no text, and serves the next client", () =>
    Effect.gen(function*() {
      const { path } = yield* start
      const long = yield* say(path, `{"do":"${"x".repeat(70_000)}`)
      assert.deepStrictEqual(long.map(codeOf), ["InvalidRequest"])
      const noise = yield* say(path, Buffer.from([0xff, 0xfe, 0, 10, 0x80, 10]))
      assert.deepStrictEqual(noise.map(codeOf), ["InvalidRequest", "InvalidRequest"])
      assert.strictEqual((yield* ControlClient.request(path, { do: "servers" })).length, 1)
    }))

  it.live("takes so many clients at a time, and tells one more", () =>
    Effect.gen(function*() {
      const { path } = yield* start
      const idle = yield* Effect.replicateEffect(connect(NetAddress.unixPathAddress(path)), 32)
      const busy = yield* Effect.flip(ControlClient.request(path, { do: "servers" }))
      assert.strictEqual(busy.code, "Busy")
      idle[0]!.end()
      yield* receiveAll(idle[0]!)
      const servers = ControlClient.request(path, { do: "servers" })
      const found = yield* Effect.retry(servers, { while: ({ code }) => code === "Busy" })
      assert.strictEqual(found.length, 1)
    }))

  it.live("shows annotations that JSON has nothing for", () =>
    Effect.gen(function*() {
      const { path, server } = yield* start
      yield* join(server, "alice")
      const circular: Record<string, unknown> = {}
      circular["self"] = circular
      const values = { circular, big: 1n, none: undefined, long: "x".repeat(10_000), object: { a: [1] } }
      for (const [key, value] of Object.entries(values)) yield* server.connections.annotate(1, key, value)
      const [found] = yield* Stream.runCollect(ControlClient.items(path, { do: "connections" }))
      assert.deepStrictEqual(found!.annotations, {
        user: "alice",
        circular: "an object that JSON has nothing for",
        big: "1",
        none: "undefined",
        long: "x".repeat(1_000),
        object: { a: [1] }
      })
    }))

  it.live("says what is wrong with the path", () =>
    Effect.gen(function*() {
      const folder = yield* directory
      writeFileSync(`${folder}/file`, "")
      const file = yield* Effect.flip(ControlClient.request(`${folder}/file`, { do: "servers" }))
      assert.strictEqual(file.code, "NotRunning")
      const server = yield* start
      const taken = yield* Effect.flip(Control.make({ path: server.path, servers: {} }))
      assert.strictEqual(taken.reason._tag, "AddressInUse")
      assert.strictEqual(
        taken.message,
        `unix://${server.path} is already in use: stop the program that listens there, or choose another path`
      )
    }))

  it.effect("gives up on a program that is silent for 10 seconds, before its answer or between two items of it", () =>
    Effect.gen(function*() {
      const { asked, path } = yield* mute
      const request = yield* Effect.forkScoped(Effect.flip(ControlClient.request(path, { do: "stats" })))
      yield* asked
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(request.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const error = yield* Fiber.join(request)
      assert.strictEqual(error.code, "NoAnswer")
      assert.strictEqual(
        error.message,
        `${path} has not answered for 10 seconds: the program that listens there may be stopped, or busy`
      )

      const seen = yield* Queue.unbounded<unknown>()
      const items = yield* ControlClient.items(path, { do: "connections" }).pipe(
        Stream.runForEach((item) => Queue.offer(seen, item)),
        Effect.flip,
        Effect.forkScoped
      )
      const { socket } = yield* asked
      yield* TestClock.adjust("9 seconds")
      socket.write("{\"item\":1}\n{\"it")
      assert.strictEqual(yield* Queue.take(seen), 1)
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(items.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual((yield* Fiber.join(items)).code, "NoAnswer")
    }))

  it.effect("waits for a drain, and for events, as long as they take", () =>
    Effect.gen(function*() {
      const { asked, path } = yield* mute
      const report = { idleClosed: 1, completed: 0, interrupted: 0, killed: 0, refused: 0, elapsedMs: 3_600_000 }
      const drain = yield* Effect.forkScoped(ControlClient.request(path, { do: "drain" }))
      const { socket } = yield* asked
      const events = yield* Effect.forkScoped(Stream.runHead(ControlClient.items(path, { do: "events" })))
      const follower = yield* asked
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(drain.pollUnsafe())
      assert.isUndefined(events.pollUnsafe())
      socket.write(`${JSON.stringify({ ok: true, value: report })}\n`)
      assert.deepStrictEqual(yield* Fiber.join(drain), report)
      follower.socket.write("{\"item\":{\"event\":\"Stopped\"}}\n")
      assert.isTrue((yield* Fiber.join(events))._tag === "Some")
    }))
})
