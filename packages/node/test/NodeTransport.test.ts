/** TCP and unix sockets: options, bad input, and what only real sockets do. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Framing, MemoryTransport, Server, type StreamTransport, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Option, Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { AsyncLocalStorage } from "node:async_hooks"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { syncBuiltinESMExports } from "node:module"
import * as Net from "node:net"
import Os from "node:os"
import { dirname, join } from "node:path"
import { inetAddress } from "../src/internal/address.ts"
import { connect, directory, eventLoopTurn, once, portOf, receiveAll, start } from "./utils.ts"

const local = { host: "127.0.0.1", port: 0 }
const echo: Server.StreamHandler<any, never> = (connection) => Stream.run(connection.bytes, connection.sink)

const failure = (transport: Parameters<typeof start>[0]) =>
  Effect.map(Effect.flip(start(transport, echo)), (error) => ({ tag: error.reason._tag, message: error.message }))

describe("tcp", () => {
  it.live("resolves port 0 in the server's address, and tells the descriptor", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp(local), echo)
      assert.isAbove(portOf(server), 0)
      const info = yield* server.info
      assert.strictEqual(info.transport, "tcp")
      assert.isAbove(info.descriptor!, 2)
    }))

  it.live("tells the peer's and its own address to the handler, IPv4 as IPv4 on a dual-stack listener", () =>
    Effect.gen(function*() {
      const seen = Deferred.makeUnsafe<readonly [string, string]>()
      const server = yield* start(
        NodeTransport.tcp({ port: 0 }),
        (c) => Deferred.succeed(seen, [String(c.peer), String(c.local)])
      )
      const client = yield* connect(NetAddress.inetAddressFromIpStringUnsafe("127.0.0.1", portOf(server)))
      assert.deepStrictEqual(yield* Deferred.await(seen), [
        `127.0.0.1:${client.localPort}`,
        `127.0.0.1:${portOf(server)}`
      ])
    }))

  it.live("has an address for a client on a link where the system does not tell of links", () =>
    Effect.gen(function*() {
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const before = Os.networkInterfaces
          Os.networkInterfaces = () => {
            throw new Error("uv_interface_addresses returned EAFNOSUPPORT")
          }
          syncBuiltinESMExports()
          return before
        }),
        (before) =>
          Effect.sync(() => {
            Os.networkInterfaces = before
            syncBuiltinESMExports()
          })
      )
      assert.strictEqual(String(inetAddress("fe80::1%eth0", 7)), "[fe80::1]:7")
    }))

  it("has an address for a client on a link that is gone", () => {
    const [name = "lo"] = Object.keys(Os.networkInterfaces())
    assert.strictEqual(String(inetAddress("fe80::1%gone", 7)), "[fe80::1]:7")
    assert.strictEqual(String(inetAddress("fe80::1%3", 7)), "[fe80::1%3]:7")
    assert.strictEqual(inetAddress(`fe80::1%${name}`, 7).port, 7)
  })

  it.live("comes back at the same port after suspend and resume, also where the port was 0", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp(local), echo)
      const port = portOf(server)
      const kept = yield* connect(server.address)
      yield* server.suspend
      assert.strictEqual((yield* Effect.flip(connect(server.address))).code, "ECONNREFUSED")
      assert.strictEqual((yield* server.info).descriptor, undefined)
      yield* server.resume
      assert.strictEqual(portOf(server), port)
      for (const client of [kept, yield* connect(server.address)]) {
        client.end("hello")
        assert.strictEqual(yield* receiveAll(client), "hello")
      }
    }))

  it.live("can be bound again at once after its server has closed, with a connection just ended", () =>
    Effect.gen(function*() {
      const first = yield* Scope.make()
      const server = yield* Scope.provide(start(NodeTransport.tcp(local), echo), first)
      const client = yield* connect(server.address)
      client.write("x")
      yield* once(client, "data")
      const ended = yield* Effect.forkChild(once(client, "end"), { startImmediately: true })
      const closing = yield* Effect.forkChild(Scope.close(first, Exit.void), { startImmediately: true })
      yield* Fiber.join(ended)
      client.end()
      yield* Fiber.join(closing)
      yield* start(NodeTransport.tcp({ ...local, port: portOf(server) }), echo)
    }))

  it.live("lets two servers share a port with `reusePort`", () =>
    Effect.gen(function*() {
      const first = yield* start(NodeTransport.tcp({ ...local, reusePort: true }), echo)
      const second = yield* start(NodeTransport.tcp({ ...local, port: portOf(first), reusePort: true }), echo)
      assert.strictEqual(portOf(second), portOf(first))
      for (let i = 0; i < 8; i++) {
        const client = yield* connect(first.address)
        client.end("shared")
        assert.strictEqual(yield* receiveAll(client), "shared")
      }
      assert.strictEqual((yield* first.stats).accepted + (yield* second.stats).accepted, 8)
    }))

  it.live("listens with several sockets on one port with `acceptors`, closes all, and comes back with all", () =>
    Effect.gen(function*() {
      const transport = NodeTransport.tcp({ ...local, acceptors: 4 })
      const server = yield* start(transport, echo)
      const exchange = Effect.gen(function*() {
        const client = yield* connect(server.address)
        client.end("hello")
        assert.strictEqual(yield* receiveAll(client), "hello")
      })
      const listening = () => process.getActiveResourcesInfo().filter((name) => name === "TCPServerWrap").length
      // One that was closed just now counts for a turn more.
      yield* eventLoopTurn
      assert.strictEqual(listening(), 4)
      yield* Effect.all(Array.from({ length: 64 }, () => exchange), { concurrency: 8 })
      yield* server.suspend
      assert.strictEqual((yield* Effect.flip(connect(server.address))).code, "ECONNREFUSED")
      yield* server.resume
      assert.strictEqual(listening(), 4)
      yield* Effect.all(Array.from({ length: 64 }, () => exchange), { concurrency: 8 })
      assert.strictEqual((yield* server.stats).accepted, 128)
    }))

  it.live("leaves IPv4 out with `ipv6Only`", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp({ host: "::", port: 0, ipv6Only: true }), echo)
      const refused = yield* Effect.flip(
        connect(NetAddress.inetAddressFromIpStringUnsafe("127.0.0.1", portOf(server)))
      )
      assert.strictEqual(refused.code, "ECONNREFUSED")
      const client = yield* connect(NetAddress.inetAddressFromIpStringUnsafe("::1", portOf(server)))
      client.end("six")
      assert.strictEqual(yield* receiveAll(client), "six")
    }))

  it.live("takes keep-alive as a switch or a delay", () =>
    Effect.gen(function*() {
      for (const keepAlive of [true, false, "30 seconds"] as const) {
        const server = yield* start(NodeTransport.tcp({ ...local, keepAlive, noDelay: false }), echo)
        const client = yield* connect(server.address)
        client.end("x")
        assert.strictEqual(yield* receiveAll(client), "x")
      }
    }))

  it.live("ends the output with the input where half-open is not allowed", () =>
    Effect.gen(function*() {
      const error = Deferred.makeUnsafe<string>()
      const server = yield* start(NodeTransport.tcp({ ...local, allowHalfOpen: false }), (c) =>
        Effect.gen(function*() {
          yield* c.readAll()
          const { reason } = yield* Effect.flip(Effect.forever(c.write("too late")))
          yield* Deferred.succeed(error, reason._tag)
        }))
      const client = yield* connect(server.address)
      client.end("x")
      assert.strictEqual(yield* receiveAll(client), "")
      assert.strictEqual(yield* Deferred.await(error), "Reset")
    }))
})

describe("unix", () => {
  it.live("removes its file when it closes", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      yield* Effect.scoped(Effect.gen(function*() {
        const server = yield* start(NodeTransport.unix({ path }), echo)
        assert.isTrue(statSync(path).isSocket())
        const client = yield* connect(server.address)
        client.end("hello")
        assert.strictEqual(yield* receiveAll(client), "hello")
      }))
      assert.isFalse(existsSync(path))
    }))

  it.live("has the mode that was asked for, and leaves the process's umask alone", () =>
    Effect.gen(function*() {
      const umask = process.umask()
      for (const mode of [0o600, 0o660, 0o666]) {
        const path = join(yield* directory, "s.sock")
        yield* start(NodeTransport.unix({ path, mode }), echo)
        assert.strictEqual(statSync(path).mode & 0o777, mode)
      }
      assert.strictEqual(process.umask(), umask)
    }))

  it.live("gives clients without a path the empty one", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      const peer = Deferred.makeUnsafe<NetAddress.SocketAddress>()
      const server = yield* start(NodeTransport.unix({ path }), (c) => Deferred.succeed(peer, c.peer))
      yield* connect(server.address)
      assert.deepStrictEqual(yield* Deferred.await(peer), NetAddress.unixPathAddress(""))
    }))

  it.live("takes the place of a socket file that a crashed server left behind", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      // A listener that is not closed by its process leaves its file: made here by renaming it away before the close.
      yield* leaveStale(path)
      assert.isTrue(statSync(path).isSocket())
      assert.deepStrictEqual((yield* failure(NodeTransport.unix({ path, unlinkStale: false }))).tag, "AddressInUse")
      const server = yield* start(NodeTransport.unix({ path }), echo)
      const client = yield* connect(server.address)
      client.end("taken over")
      assert.strictEqual(yield* receiveAll(client), "taken over")
    }))

  it.live("does not take the place of a server that answers, nor of a file", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      const server = yield* start(NodeTransport.unix({ path }), echo)
      assert.strictEqual((yield* failure(NodeTransport.unix({ path }))).tag, "AddressInUse")
      const client = yield* connect(server.address)
      client.end("still there")
      assert.strictEqual(yield* receiveAll(client), "still there")

      const file = join(yield* directory, "notes.txt")
      writeFileSync(file, "precious")
      const { message, tag } = yield* failure(NodeTransport.unix({ path: file }))
      assert.strictEqual(tag, "AddressNotAvailable")
      assert.match(message, /a file that is not a socket is there/)
      assert.isTrue(existsSync(file))
    }))

  it.live.skipIf(process.platform !== "linux")(
    "listens on an abstract name, which has no file",
    () =>
      Effect.gen(function*() {
        const path = `\0socketserver-test-${process.pid}`
        const server = yield* start(NodeTransport.unix({ path }), echo)
        const client = yield* connect(server.address)
        client.end("abstract")
        assert.strictEqual(yield* receiveAll(client), "abstract")
        const { message, tag } = yield* failure(NodeTransport.unix({ path }))
        assert.strictEqual(tag, "AddressInUse")
        assert.match(message, /unix:\/\/@socketserver-test/)
        assert.strictEqual((yield* failure(NodeTransport.unix({ path, mode: 0o600 }))).tag, "InvalidOption")
      })
  )

  it.live("takes that place once, where two servers start at the same time", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      yield* leaveStale(path)
      const starting = Array.from({ length: 2 }, () => Effect.exit(start(NodeTransport.unix({ path }), echo)))
      const exits = yield* Effect.all(starting, { concurrency: "unbounded" })
      assert.deepStrictEqual(exits.filter(Exit.isSuccess).length, 1)
      const client = yield* connect(NetAddress.unixPathAddress(path))
      client.end("hello")
      assert.strictEqual(yield* receiveAll(client), "hello")
    }))

  it.live("leaves its file alone when it is another's by the time that it closes", () =>
    Effect.gen(function*() {
      const folder = yield* directory
      const path = join(folder, "s.sock")
      const scope = yield* Scope.make()
      yield* Scope.provide(start(NodeTransport.unix({ path }), echo), scope)
      renameSync(path, `${path}.old`)
      yield* start(NodeTransport.unix({ path }), echo)
      yield* Scope.close(scope, Exit.void)
      const client = yield* connect(NetAddress.unixPathAddress(path))
      client.end("hello")
      assert.strictEqual(yield* receiveAll(client), "hello")
      assert.deepStrictEqual(readdirSync(folder).toSorted(), ["s.sock", "s.sock.old"])
    }))
})

/** Leaves a socket file that nobody listens on. */
const leaveStale = (path: string) =>
  Effect.callback<void>((resume) => {
    const child = Net.createServer().listen(path, () => {
      // Closing removes the file by its name: with another name at that moment, it stays.
      const elsewhere = `${path}.kept`
      renameSync(path, elsewhere)
      child.close(() => {
        renameSync(elsewhere, path)
        resume(Effect.void)
      })
    })
  })

describe("bad input is one tagged error that names the address or option and says what to do", () => {
  const cases: ReadonlyArray<[string, Parameters<typeof start>[0], string, RegExp]> = [
    [
      "a negative port",
      NodeTransport.tcp({ port: -1 }),
      "InvalidOption",
      /`port` is -1: expected an integer from 0 to 65535/
    ],
    ["a port too large", NodeTransport.tcp({ port: 65_536 }), "InvalidOption", /`port` is 65536/],
    ["a port that is no number", NodeTransport.tcp({ port: "80" as any }), "InvalidOption", /`port` is "80"/],
    ["no port", NodeTransport.tcp({} as any), "InvalidOption", /`port` is missing/],
    ["an empty host", NodeTransport.tcp({ ...local, host: "" }), "InvalidOption", /`host` is ""/],
    [
      "an unknown host",
      NodeTransport.tcp({ ...local, host: "no.such.host.invalid" }),
      "AddressNotAvailable",
      /no\.such\.host\.invalid:0: the host name is not known/
    ],
    [
      "another machine's address",
      NodeTransport.tcp({ ...local, host: "192.0.2.1" }),
      "AddressNotAvailable",
      /192\.0\.2\.1:0: the address does not belong to this machine/
    ],
    ["no acceptors", NodeTransport.tcp({ ...local, acceptors: 0 }), "InvalidOption", /`acceptors` is 0/],
    ["a backlog of 0", NodeTransport.tcp({ ...local, backlog: 0 }), "InvalidOption", /`backlog` is 0/],
    [
      "a fractional high-water mark",
      NodeTransport.tcp({ ...local, highWaterMark: 1.5 }),
      "InvalidOption",
      /`highWaterMark` is 1.5/
    ],
    [
      "a keep-alive too short",
      NodeTransport.tcp({ ...local, keepAlive: "1 millis" }),
      "InvalidOption",
      /`keepAlive` is "1 millis": expected .*1 second or more/
    ],
    ["an empty path", NodeTransport.unix({ path: "" }), "InvalidOption", /`path` is ""/],
    [
      "a path too long",
      NodeTransport.unix({ path: `/tmp/${"x".repeat(200)}` }),
      "InvalidOption",
      /`path` is .*: expected 1 to 10[37] bytes/
    ],
    [
      "a directory that does not exist",
      NodeTransport.unix({ path: "/no/such/directory/s.sock" }),
      "AddressNotAvailable",
      /the directory \/no\/such\/directory does not exist/
    ],
    ["a mode out of range", NodeTransport.unix({ path: "/tmp/s.sock", mode: 0o1000 }), "InvalidOption", /`mode` is 512/]
  ]
  for (const [name, transport, tag, message] of cases) {
    it.live(name, () =>
      Effect.gen(function*() {
        const error = yield* failure(transport)
        assert.strictEqual(error.tag, tag)
        assert.match(error.message, message)
      }))
  }

  it.live("a port in use", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp(local), echo)
      const { message, tag } = yield* failure(NodeTransport.tcp({ ...local, port: portOf(server) }))
      assert.strictEqual(tag, "AddressInUse")
      assert.match(message, new RegExp(`^127\\.0\\.0\\.1:${portOf(server)} is already in use: stop the program`))
    }))

  const asNobody = Effect.acquireRelease(
    Effect.sync(() => process.getuid!() === 0 && process.seteuid!("nobody")),
    (changed) => Effect.sync(() => changed !== false && process.seteuid!(0))
  )

  it.live("no permission", () =>
    Effect.gen(function*() {
      const closed = yield* directory
      chmodSync(closed, 0o500)
      // Root may write everywhere: this process is nobody for the while.
      yield* asNobody
      const { message, tag } = yield* failure(NodeTransport.unix({ path: join(closed, "s.sock") }))
      assert.strictEqual(tag, "PermissionDenied")
      assert.match(
        message,
        /^no permission to listen on unix:.*s\.sock: choose a port above 1023, or a path in a directory/
      )
    }))

  it.live("a socket file that a crashed server has left, and that may not be removed", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      yield* leaveStale(path)
      chmodSync(path, 0o666)
      chmodSync(dirname(path), 0o555)
      yield* asNobody
      assert.strictEqual((yield* failure(NodeTransport.unix({ path }))).tag, "PermissionDenied")
    }))

  it.live("a directory in one that may not be entered is not said to be missing", () =>
    Effect.gen(function*() {
      const closed = yield* directory
      mkdirSync(join(closed, "within"))
      chmodSync(closed, 0o600)
      yield* asNobody
      assert.strictEqual(
        (yield* failure(NodeTransport.unix({ path: join(closed, "within", "s.sock") }))).tag,
        "PermissionDenied"
      )
    }))

  it.live("a link to nowhere", () =>
    Effect.gen(function*() {
      const path = join(yield* directory, "s.sock")
      symlinkSync("nowhere", path)
      assert.match((yield* failure(NodeTransport.unix({ path }))).message, /a file that is not a socket is there/)
    }))
})

describe("closing", () => {
  it.live("does not let a reset destroy the answer when the client has sent more than was read", () =>
    Effect.gen(function*() {
      const answer = "x".repeat(300_000)
      const server = yield* start(NodeTransport.tcp(local), (c) => Effect.andThen(c.readLine(), c.write(answer)))
      for (let i = 0; i < 20; i++) {
        const client = yield* connect(server.address)
        client.write("request\n")
        client.write("y".repeat(500_000))
        assert.strictEqual((yield* receiveAll(client)).length, answer.length)
        client.destroy()
      }
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).closed.Completed, 20)
    }))

  it.live("flushes an answer that the system's buffers cannot take at once, and keeps it from a reset too", () =>
    Effect.gen(function*() {
      const answer = "x".repeat(16_000_000)
      const server = yield* start(
        NodeTransport.tcp(local),
        (c) => Effect.andThen(c.readLine(), Effect.forkDetach(c.write(answer), { startImmediately: true }))
      )
      const client = yield* connect(server.address)
      client.write("request\n")
      client.write("y".repeat(500_000))
      assert.strictEqual((yield* receiveAll(client)).length, answer.length)
    }))

  it.live("releases the connection of a client that does not close its side, within about a second", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp(local), (c) => c.write("bye"))
      const client = yield* connect(server.address)
      assert.strictEqual(yield* receiveAll(client), "bye")
      assert.strictEqual((yield* server.stats).open, 1)
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).closed.Completed, 1)
    }))

  it.live("frees the place of a request at once, whatever its client does with the connection", () =>
    Effect.gen(function*() {
      const server = yield* NodeTransport.tcp(local).pipe(
        Dispatch.serial(),
        Server.serveStream((c) => c.write(`${c.id}`)),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const rude = yield* connect(server.address)
      assert.strictEqual(yield* receiveAll(rude), "1")
      const next = yield* connect(server.address)
      assert.strictEqual(yield* receiveAll(next), "2")
      // Both are still open, the first does not hold up the second.
      assert.strictEqual((yield* server.stats).inFlight, 0)
    }))
})

describe("a peer that resets", () => {
  const reset = (client: Net.Socket) => Effect.sync(() => client.resetAndDestroy())
  const points: ReadonlyArray<
    [string, Server.StreamHandler<any, never>, (client: Net.Socket) => Effect.Effect<unknown>]
  > = [
    ["while the handler reads", (c) => c.pull, () => Effect.void],
    ["in the middle of a line", (c) => Effect.andThen(c.write("?"), c.readLine()), (client) => {
      client.write("hal")
      return once(client, "data")
    }],
    [
      "while the handler writes to a client that does not read",
      (c) => Effect.forever(c.write("x".repeat(65_536))),
      (client) => once(client, "readable")
    ],
    [
      "after it has finished sending",
      (c) => Effect.andThen(c.readAll(), Effect.forever(c.write("x".repeat(65_536)))),
      (client) => {
        client.end("all")
        return once(client, "readable")
      }
    ]
  ]
  for (const [name, handler, until] of points) {
    it.live(`${name}: the connection ends, and only that one`, () =>
      Effect.gen(function*() {
        const server = yield* start(NodeTransport.tcp(local), (c) => c.id === 1 ? echo(c) : handler(c), {
          onError: () => Effect.void
        })
        const bystander = yield* connect(server.address)
        const ended = yield* server.events.pipe(
          Stream.filter((event) => event._tag === "Closed" && event.id === 2),
          Stream.runHead,
          Effect.forkChild({ startImmediately: true })
        )
        const client = yield* connect(server.address)
        yield* until(client)
        yield* reset(client)
        const event = Option.getOrThrow(yield* Fiber.join(ended))
        assert.isTrue(event._tag === "Closed" && event.reason._tag === "PeerReset")
        bystander.end("unharmed")
        assert.strictEqual(yield* receiveAll(bystander), "unharmed")
      }))
  }

  it.live("before the handler reads is found out by its first read", () =>
    Effect.gen(function*() {
      const go = Deferred.makeUnsafe<void>()
      const server = yield* start(NodeTransport.tcp(local), (c) => Effect.andThen(Deferred.await(go), c.pull), {
        onError: () => Effect.void
      })
      const client = yield* connect(server.address)
      yield* reset(client)
      yield* Deferred.succeed(go, undefined)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { PeerReset: 1 })
    }))

  it.live("makes the next write fail at once, and every later one", () =>
    Effect.gen(function*() {
      const results = Deferred.makeUnsafe<ReadonlyArray<string>>()
      const server = yield* start(NodeTransport.tcp(local), (c) =>
        Effect.gen(function*() {
          yield* Effect.exit(c.pull)
          const failures: Array<string> = []
          for (let i = 0; i < 3; i++) {
            const error = yield* Effect.flip(c.write("anybody there?"))
            failures.push(error.reason._tag)
          }
          yield* Deferred.succeed(results, failures)
        }))
      const client = yield* connect(server.address)
      yield* reset(client)
      assert.deepStrictEqual(yield* Deferred.await(results), ["Reset", "Reset", "Reset"])
    }))
})

describe("64 MiB through a slow reader", () => {
  it.live("arrive whole, and never more than a bound of them are in memory", () =>
    Effect.gen(function*() {
      const size = 64 * 1024 * 1024
      const chunk = new Uint8Array(1024 * 1024)
      for (let i = 0; i < chunk.length; i++) chunk[i] = i % 251
      let written = 0
      const server = yield* start(NodeTransport.tcp(local), (c) =>
        Effect.gen(function*() {
          for (let sent = 0; sent < size; sent += chunk.length) {
            yield* c.write(chunk)
            written += chunk.length
          }
        }))
      const client = yield* connect(server.address)
      let received = 0
      let ahead = 0
      let wrong = 0
      client.pause()
      const done = yield* Effect.forkChild(once(client, "end"), { startImmediately: true })
      client.on("data", (data) => {
        for (let i = 0; i < data.length; i += 4_099) if (data[i] !== ((received + i) % chunk.length) % 251) wrong++
        received += data.length
        ahead = Math.max(ahead, written - received)
        client.pause()
        setImmediate(() => client.resume())
      })
      client.resume()
      yield* Fiber.join(done)
      assert.strictEqual(received, size)
      assert.strictEqual(wrong, 0)
      // What the system holds in both socket buffers, and one write: the rest waits in the handler.
      assert.isBelow(ahead, 24 * 1024 * 1024)
    }), 30_000)
})

describe("a handler that reads a little and then no more", () => {
  it.live("has a bounded amount read ahead for it", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.tcp(local), (c) => Effect.andThen(c.readLine(), c.draining))
      const client = yield* connect(server.address)
      // 64 MiB do not fit into the system's buffers: the rest of them must stay with the client.
      let written = false
      client.write(Buffer.alloc(64 * 1024 * 1024, "line\n"), () => {
        written = true
      })
      let read = -1
      // The server has stopped to read when its count stands still over many turns of the event loop.
      for (let still = 0; still < 200;) {
        yield* eventLoopTurn
        const { bytesRead } = yield* server.stats
        still = bytesRead === read && bytesRead > 0 ? still + 1 : 0
        read = bytesRead
      }
      assert.isBelow(read, 256 * 1024)
      assert.isFalse(written)
      client.destroy()
    }))
})

describe("strategies and transports are chosen independently", () => {
  const askOverSocket = (address: NetAddress.SocketAddress, text: string) =>
    Effect.gen(function*() {
      const client = yield* connect(address)
      client.write(text)
      return yield* receiveAll(client)
    })
  const askInMemory = (address: NetAddress.SocketAddress, text: string) =>
    Effect.gen(function*() {
      const client = yield* MemoryTransport.connect(address)
      yield* client.write(text)
      return new TextDecoder().decode(yield* client.readAll())
    })
  type Transport = Effect.Effect<Layer.Layer<StreamTransport.StreamTransport>, never, Scope.Scope>
  const transports: ReadonlyArray<[string, Transport]> = [
    ["tcp", Effect.succeed(NodeTransport.tcp(local))],
    ["unix", Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s.sock") }))],
    ["memory", Effect.succeed(MemoryTransport.stream())]
  ]
  const strategies: ReadonlyArray<[string, ReturnType<typeof Dispatch.custom>]> = [
    ["serial", Dispatch.serial()],
    ["fiberPerRequest", Dispatch.fiberPerRequest()]
  ]
  for (const [transportName, transport] of transports) {
    for (const [strategyName, strategy] of strategies) {
      it.live(`${strategyName} over ${transportName} answers three clients in turn`, () =>
        Effect.gen(function*() {
          const layer = yield* transport
          const server = yield* layer.pipe(
            strategy,
            Server.serveStream((c) => Effect.flatMap(c.readLine(), (line) => c.write(`${line}\n`))),
            Layer.build,
            Effect.map(Context.get(Server.Server))
          )
          const ask = transportName === "memory" ? askInMemory : askOverSocket
          for (let i = 0; i < 3; i++) {
            assert.strictEqual(yield* Effect.scoped(ask(server.address, "hello world\n")), "hello world\n")
          }
          yield* server.awaitIdle
          const info = yield* server.info
          assert.deepStrictEqual([info.transport, info.strategy], [transportName, strategyName])
          assert.deepStrictEqual((yield* server.stats).closed, { Completed: 3 })
          yield* server.drain()
          assert.strictEqual((yield* server.info).descriptor, undefined)
          assert.isTrue(Exit.isFailure(yield* Effect.exit(ask(server.address, "anybody there?\n"))))
        }))
    }
  }
})

describe("messages", () => {
  it.live("are handled in their server's asynchronous context, also where their bytes arrive", () =>
    Effect.gen(function*() {
      const storage = new AsyncLocalStorage<string>()
      const started = Deferred.makeUnsafe<Server.Server["Service"]>()
      const serving = NodeTransport.tcp(local).pipe(
        Transport.framed(Framing.lines()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(({ payload }) => {
          const atOnce = `${payload} ${storage.getStore()}`
          return payload === "late"
            ? Effect.map(Effect.yieldNow, () => `${atOnce}, ${storage.getStore()}`)
            : Effect.succeed(atOnce)
        }),
        Layer.build,
        Effect.andThen((context) => Deferred.succeed(started, Context.get(context, Server.Server))),
        Effect.andThen(Effect.never),
        Effect.scoped
      )
      yield* Effect.acquireRelease(
        Effect.sync(() => storage.run("its own", () => Effect.runFork(serving))),
        Fiber.interrupt
      )
      const client = yield* connect((yield* Deferred.await(started)).address)
      const all = yield* Effect.forkChild(receiveAll(client), { startImmediately: true })
      // One by one: their reader waits then.
      for (const line of ["first", "late", "last"]) {
        const answered = yield* Effect.forkChild(once(client, "data"), { startImmediately: true })
        client.write(`${line}\n`)
        yield* Fiber.join(answered)
      }
      client.end("behind\n")
      assert.strictEqual(yield* Fiber.join(all), "first its own\nlate its own, its own\nlast its own\nbehind its own\n")
    }))
})

describe("a server that is shut down right after its start", () => {
  it.live("ends, twenty times over", () =>
    Effect.gen(function*() {
      for (let i = 0; i < 20; i++) yield* Effect.scoped(start(NodeTransport.tcp(local), echo))
    }))
})

describe("handleOne", () => {
  it.live("takes the clients of a bound port one by one, and gives up at its timeout", () =>
    Effect.gen(function*() {
      const listener = yield* Server.listen
      const clients = yield* Effect.replicateEffect(connect(listener.address), 2)
      for (const client of clients) {
        client.end("one")
        yield* Server.handleOne(listener, echo)
        assert.strictEqual(yield* receiveAll(client), "one")
      }
      assert.deepStrictEqual(yield* Server.handleOne(listener, echo, { timeout: "10 millis" }), Option.none())
    }).pipe(Effect.provide(NodeTransport.tcp(local))))
})
