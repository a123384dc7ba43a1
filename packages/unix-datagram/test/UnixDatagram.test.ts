/** Unix datagrams: options, files, bad input, and what only real sockets do. */
import { assert, describe, it } from "@effect/vitest"
import { type Datagram, type DatagramError, DatagramTransport } from "@socketserver/core"
import { UnixDatagram } from "@socketserver/unix-datagram"
import { Context, Deferred, Effect, Exit, Latch, Layer, Queue, Schedule, Scope } from "effect"
import { NetAddress } from "effect/net"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { join } from "node:path"
import { Worker } from "node:worker_threads"
import { load, location, Socket } from "../src/internal/native.ts"
import { directory, eventLoopTurn, makeClient, needs, run, start, startSerial } from "./utils.ts"

const echo = ({ payload, reply }: Datagram.Datagram) => reply(payload)
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("utf8")
const modeOf = (path: string) => (Fs.statSync(path).mode & 0o777).toString(8)

/** A directory of its own, with a path for a server, and clients in it. */
const place = Effect.map(directory, (parent) => {
  let clients = 0
  return {
    parent,
    path: join(parent, "server.sock"),
    client: Effect.suspend(() => makeClient(join(parent, `client-${++clients}.sock`)))
  }
})

const assertEchoes = Effect.fnUntraced(function*(
  client: Effect.Success<ReturnType<typeof makeClient>>,
  server: { readonly address: NetAddress.SocketAddress },
  word = "hello"
) {
  yield* client.send(server.address, word)
  assert.strictEqual(text((yield* client.receive).payload), word)
})

const failure = (options: UnixDatagram.Options) =>
  Effect.map(
    Effect.flip(start(UnixDatagram.transport(options), echo)),
    (error) => ({ tag: error.reason._tag, message: error.message })
  )

/** A socket whose file stays when it is closed, as when a process was killed. */
const leaveStale = (path: string) =>
  new Socket(load(location), { path, mode: undefined, maxPacketSize: 1, onPacket: () => {} }).close()

const withUmask = (mask: number) =>
  Effect.acquireRelease(
    Effect.sync(() => process.umask(mask)),
    (before) => Effect.sync(() => process.umask(before))
  )

describe("a server", () => {
  for (const [name, begin] of Object.entries({ serial: startSerial, fiberPerRequest: start })) {
    it.live(`answers three clients in turn, under ${name}`, () =>
      Effect.gen(function*() {
        const { client, parent, path } = yield* place
        const scope = yield* Scope.make()
        const server = yield* Scope.provide(begin(UnixDatagram.transport({ path }), echo), scope)
        for (let i = 0; i < 3; i++) {
          yield* Effect.scoped(Effect.flatMap(client, (one) => assertEchoes(one, server, `hello world ${i}\n`)))
        }
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual(Fs.readdirSync(parent), [])
      }))
  }

  it.live("says what it is, and where", () =>
    Effect.gen(function*() {
      const { path } = yield* place
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      assert.strictEqual(String(server.address), String(NetAddress.unixPathAddress(path)))
      assert.strictEqual((yield* server.info).transport, "unix datagram")
    }))
})

describe("the socket's file", () => {
  it.live("has the given mode, whatever the umask, and by default what the umask leaves", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      yield* withUmask(0o027)
      for (const [mode, expected] of [[0o600, "600"], [0o666, "666"], [0, "0"], [undefined, "750"]] as const) {
        yield* Effect.scoped(Effect.gen(function*() {
          const server = yield* start(UnixDatagram.transport({ path, mode }), echo)
          assert.strictEqual(modeOf(path), expected)
          // The superuser may send wherever it wants to.
          if (mode !== 0) yield* assertEchoes(yield* client, server)
        }))
      }
    }))

  it.live("never lets anybody do more than the mode allows, from the moment that it is there", () =>
    Effect.gen(function*() {
      const { path } = yield* place
      yield* withUmask(0)
      // Before the transport sets the mode once more, as the umask may have taken from it.
      new Socket(load(location), { path, mode: 0o600, maxPacketSize: 1, onPacket: () => {} }).close()
      assert.strictEqual(modeOf(path), process.platform === "linux" ? "600" : "777")
    }))

  it.live("is removed when the server is suspended, comes back when it resumes, and is gone after it", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      yield* Effect.scoped(Effect.gen(function*() {
        const server = yield* start(UnixDatagram.transport({ path, mode: 0o640 }), echo)
        yield* server.suspend
        assert.isFalse(Fs.existsSync(path))
        yield* server.resume
        assert.strictEqual(modeOf(path), "640")
        yield* assertEchoes(yield* client, server)
      }))
      assert.isFalse(Fs.existsSync(path))
    }))

  it.live("is left alone when it is another's by the time that the server closes", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      const scope = yield* Scope.make()
      yield* Scope.provide(start(UnixDatagram.transport({ path }), echo), scope)
      Fs.renameSync(path, `${path}.old`)
      const other = yield* start(UnixDatagram.transport({ path }), echo)
      yield* Scope.close(scope, Exit.void)
      yield* assertEchoes(yield* client, other)
    }))

  it.live("of a server that was killed is replaced, unless that is not wanted", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      leaveStale(path)
      const { message, tag } = yield* failure({ path, unlinkStale: false })
      assert.strictEqual(tag, "AddressInUse")
      assert.include(message, `unix://${path} is already in use`)
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      yield* assertEchoes(yield* client, server)
    }))

  it.live("of a server that lives is not taken from it, be it for datagrams or streams", () =>
    Effect.gen(function*() {
      const { client, parent, path } = yield* place
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      assert.strictEqual((yield* failure({ path })).tag, "AddressInUse")
      yield* assertEchoes(yield* client, server)

      const streams = join(parent, "streams.sock")
      yield* Effect.acquireRelease(
        Effect.callback<Net.Server>((resume) => {
          const streamServer = Net.createServer().listen(streams, () => resume(Effect.succeed(streamServer)))
        }),
        (streamServer) => Effect.sync(() => streamServer.close())
      )
      assert.strictEqual((yield* failure({ path: streams })).tag, "AddressInUse")
      assert.isTrue(Fs.existsSync(streams))
    }))

  it.live("that is no socket stays, and is an error", () =>
    Effect.gen(function*() {
      const { path } = yield* place
      Fs.writeFileSync(path, "precious")
      const { message, tag } = yield* failure({ path })
      assert.strictEqual(tag, "AddressNotAvailable")
      assert.include(message, "a file that is not a socket is there")
      assert.strictEqual(Fs.readFileSync(path, "utf8"), "precious")
    }))
})

describe("a packet", () => {
  it.live("may be empty, and so may the answer", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      yield* assertEchoes(yield* client, server, "")
    }))

  it.live("is whole up to `maxPacketSize`, also beyond 64 KiB", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const server = yield* start(
        UnixDatagram.transport({ path, maxPacketSize: 150_000 }),
        ({ payload, reply, truncated }) => Effect.andThen(reply(payload), reply(`${truncated}`))
      )
      const client = yield* bind
      const large = Buffer.alloc(150_000, "abc")
      yield* client.send(server.address, large)
      assert.isTrue(large.equals((yield* client.receive).payload))
      assert.strictEqual(text((yield* client.receive).payload), "false")
    }))

  it.live("is cut beyond it, by default at 8,192 bytes, and takes no more memory than it has bytes", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const server = yield* start(
        UnixDatagram.transport({ path }),
        ({ payload, reply, truncated }) =>
          reply(`${payload.length} ${payload.buffer.byteLength} ${text(payload.subarray(-3))} ${truncated}`)
      )
      const client = yield* bind
      const large = Buffer.alloc(100_000, "a").fill("xyz", 8_189, 8_192)
      yield* client.send(server.address, large.subarray(0, 8_192))
      assert.strictEqual(text((yield* client.receive).payload), "8192 8192 xyz false")
      yield* client.send(server.address, large)
      assert.strictEqual(text((yield* client.receive).payload), "8192 8192 xyz true")
      assert.strictEqual((yield* server.stats).truncated, 1)
    }))

  it.live("of a client whose path is no UTF-8 is answered", () =>
    Effect.gen(function*() {
      const { parent, path } = yield* place
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      const received = yield* Queue.unbounded<string>()
      const socket = yield* Effect.acquireRelease(
        Effect.sync(() =>
          new Socket(load(location), {
            path: `${parent}/\xff\xfe`,
            mode: undefined,
            maxPacketSize: 100,
            onPacket: (payload) => void Queue.offerUnsafe(received, text(payload))
          })
        ),
        (socket) => Effect.sync(() => socket.close())
      )
      assert.strictEqual(socket.send(path, "hello"), 0)
      assert.strictEqual(yield* Queue.take(received), "hello")
      assert.strictEqual((yield* server.stats).accepted, 1)
    }))

  it.live("after another in its bundle is lost when the handler has closed the socket", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const { listen } = Context.get(
        yield* Layer.build(UnixDatagram.transport({ path })),
        DatagramTransport.DatagramTransport
      )
      const scope = yield* Scope.make()
      const seen: Array<string> = []
      const first = Deferred.makeUnsafe<void>()
      yield* Scope.provide(
        listen(({ payload }) => {
          seen.push(text(payload))
          Effect.runSync(Scope.close(scope, Exit.void))
          Deferred.doneUnsafe(first, Effect.void)
        }),
        scope
      )
      const client = yield* bind
      for (const word of ["1", "2", "3"]) yield* client.send(NetAddress.unixPathAddress(path), word)
      yield* Deferred.await(first)
      yield* eventLoopTurn
      assert.deepStrictEqual(seen, ["1"])
    }))
})

describe("a flood", () => {
  it.live("is handled whole, in order, while the receive queue has room, and its sender waits for the rest", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const seen: Array<number> = []
      const server = yield* startSerial(
        UnixDatagram.transport({ path }),
        ({ payload }) => Effect.sync(() => seen.push(Number(text(payload))))
      )
      const client = yield* bind
      for (let i = 0; i < 20_000; i++) yield* client.send(server.address, `${i}`)
      yield* Effect.repeat(eventLoopTurn, { until: () => seen.length === 20_000 })
      assert.deepStrictEqual(seen, Array.from({ length: 20_000 }, (_, i) => i))
      assert.strictEqual((yield* server.stats).dropped, 0)
    }))

  it.live("beyond the receive queue is dropped, and counted", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const gate = yield* Latch.make(false)
      const server = yield* startSerial(
        UnixDatagram.transport({ path, receiveQueue: { maxPackets: 10 } }),
        () => gate.await
      )
      const client = yield* bind
      for (let i = 0; i < 1_000; i++) yield* client.send(server.address, `${i}`)
      yield* gate.open
      yield* server.awaitIdle
      const handled = Effect.map(server.stats, ({ accepted, dropped }) => ({ accepted, dropped }))
      // The last of them may be on their way.
      const { accepted, dropped } = yield* Effect.repeat(Effect.andThen(eventLoopTurn, handled), {
        until: ({ accepted, dropped }) => accepted + dropped === 1_000
      })
      assert.isAbove(accepted, 10)
      assert.isAbove(dropped, 900)
    }))
})

describe("a packet that cannot be sent", () => {
  const failing = Effect.fnUntraced(function*(
    send: (datagram: Datagram.Datagram, parent: string) => Effect.Effect<unknown, DatagramError.DatagramError>
  ) {
    const { client: bind, parent, path } = yield* place
    const failed = Deferred.makeUnsafe<DatagramError.DatagramError>()
    const server = yield* start(
      UnixDatagram.transport({ path }),
      (datagram) =>
        text(datagram.payload) === "echo"
          ? echo(datagram)
          : Effect.tapError(send(datagram, parent), (error) => Deferred.succeed(failed, error))
    )
    const client = yield* bind
    yield* client.send(server.address, "fail")
    const error = yield* Deferred.await(failed)
    yield* assertEchoes(client, server, "echo")
    return { error, client }
  })

  it.live("because the sender has no address fails typed, and stops nothing", () =>
    Effect.gen(function*() {
      const { client, path } = yield* place
      const failed = Deferred.makeUnsafe<DatagramError.DatagramError>()
      const peers: Array<NetAddress.SocketAddress> = []
      const server = yield* start(UnixDatagram.transport({ path }), (datagram) => {
        peers.push(datagram.peer)
        return Effect.tapError(echo(datagram), (error) => Deferred.succeed(failed, error))
      })
      yield* (yield* makeClient("")).send(server.address, "who am I?")
      const { peer, reason } = yield* Deferred.await(failed)
      assert.strictEqual(reason._tag, "NoReturnAddress")
      assert.deepStrictEqual([peer, ...peers], Array.from({ length: 2 }, () => NetAddress.unixPathAddress("")))
      yield* assertEchoes(yield* client, server)
    }))

  it.live("because nobody is at the path, or a stream socket is, fails typed", () =>
    Effect.gen(function*() {
      const sends: Record<string, (parent: string) => void> = {
        ENOENT: () => {},
        ECONNREFUSED: (parent) => leaveStale(join(parent, "peer.sock"))
      }
      for (const [code, prepare] of Object.entries(sends)) {
        const { error } = yield* failing(({ send }, parent) => {
          prepare(parent)
          return send(NetAddress.unixPathAddress(join(parent, "peer.sock")), "x")
        })
        assert(error.reason._tag === "Unreachable")
        assert.propertyVal(error.reason.cause, "code", code)
      }
      const { path: streams } = yield* place
      const listening = Effect.acquireRelease(
        Effect.callback<Net.Server>((resume) => {
          const server = Net.createServer().listen(streams, () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      yield* listening
      const { error } = yield* failing(({ send }) => send(NetAddress.unixPathAddress(streams), "x"))
      assert.strictEqual(error.reason._tag, "Unreachable")
    }))

  it.live("because it is too large fails typed", () =>
    Effect.gen(function*() {
      const { client, error } = yield* failing(({ reply }) => reply("é".repeat(4_000_000)))
      assert.strictEqual(error.reason._tag, "TooLarge")
      assert.strictEqual(String(error.peer), String(client.address))
      assert.match(error.message, /a packet of 8000000 bytes is too large/)
    }))

  it.live("to an address of another kind, or to none, fails typed", () =>
    Effect.gen(function*() {
      const inet = NetAddress.inetAddressFromIpStringUnsafe("127.0.0.1", 9)
      const { error } = yield* failing(({ send }) => send(inet, "x"))
      assert.strictEqual(error.reason._tag, "Unreachable")
      assert.match(error.message, /not by a unix datagram socket/)
      const none = yield* failing(({ send }) => send(NetAddress.unixPathAddress(""), "x"))
      assert.strictEqual(none.error.reason._tag, "NoReturnAddress")
      const long = yield* failing(({ send }) => send(NetAddress.unixPathAddress("/".padEnd(200, "x")), "x"))
      assert.strictEqual(long.error.reason._tag, "Failed")
      assert.match(long.error.message, /ENAMETOOLONG/)
    }))

  it.live("because its receiver does not keep up fails typed, without a wait, and what was taken arrives", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const outcome = Deferred.makeUnsafe<readonly [number, DatagramError.DatagramError]>()
      const server = yield* start(UnixDatagram.transport({ path }), ({ reply }) =>
        Effect.gen(function*() {
          // Nothing here gives the event loop a turn, so the client cannot read.
          for (let taken = 0;; taken++) {
            const sent = yield* Effect.exit(reply(`${taken}`))
            if (Exit.isFailure(sent)) {
              const error = yield* Effect.flip(sent)
              return yield* Deferred.succeed(outcome, [taken, error] as const)
            }
          }
        }))
      const client = yield* bind
      yield* client.send(server.address, "x")
      const [taken, { reason }] = yield* Deferred.await(outcome)
      assert(reason._tag === "Unreachable")
      assert.propertyVal(reason.cause, "code", "EAGAIN")
      assert.isAbove(taken, 0)
      for (let i = 0; i < taken; i++) assert.strictEqual(text((yield* client.receive).payload), `${i}`)
    }))

  it.live("because its receiver does not keep up can be tried again, until it does", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const server = yield* start(UnixDatagram.transport({ path }), ({ reply }) =>
        Effect.forEach(
          Array.from({ length: 3_000 }, (_, i) => `${i}`),
          (answer) => Effect.retry(reply(answer), Schedule.spaced("1 millis")),
          { discard: true }
        ))
      const client = yield* bind
      yield* client.send(server.address, "x")
      for (let i = 0; i < 3_000; i++) assert.strictEqual(text((yield* client.receive).payload), `${i}`)
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
    }))

  it.live("because the socket is closed fails typed", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const scope = yield* Scope.make()
      const { listen } = Context.get(
        yield* Layer.build(UnixDatagram.transport({ path })),
        DatagramTransport.DatagramTransport
      )
      const packets = yield* Queue.unbounded<DatagramTransport.Packet>()
      const listener = yield* Scope.provide(listen((packet) => Queue.offerUnsafe(packets, packet)), scope)
      const client = yield* bind
      yield* client.send(listener.address, "x")
      const packet = yield* Queue.take(packets)
      yield* Scope.close(scope, Exit.void)
      for (const send of [packet.reply("late"), listener.send(client.address, "late")]) {
        const error = yield* Effect.flip(send)
        assert.strictEqual(error.reason._tag, "Closed")
        assert.strictEqual(String(error.peer), String(client.address))
      }
    }))
})

describe("bad input is one tagged error that names the option and says what to do", () => {
  const invalid: ReadonlyArray<[string, UnixDatagram.Options, RegExp]> = [
    ["no path", { path: "" }, /`path` is "": expected 1 to 10\d bytes/],
    ["a path too long", { path: "/".padEnd(200, "x") }, /`path` is .*: expected 1 to 10\d bytes/],
    ["a path too long in UTF-8", { path: `/${"é".repeat(54)}` }, /`path` is/],
    ["a mode beyond 0o777", { path: "/tmp/x", mode: 0o1000 }, /`mode` is 512: expected an integer from 0 to 511/],
    ["a mode for an abstract name", { path: "\0x", mode: 0o600 }, /`mode` is 384: expected no mode/],
    ["a packet size of 0", { path: "/tmp/x", maxPacketSize: 0 }, /`maxPacketSize` is 0/],
    ["a packet size too large", { path: "/tmp/x", maxPacketSize: 1_048_577 }, /`maxPacketSize` is 1048577/],
    ["a fractional packet size", { path: "/tmp/x", maxPacketSize: 1.5 }, /`maxPacketSize` is 1.5/],
    ["a negative queue", { path: "/tmp/x", receiveQueue: { maxPackets: -1 } }, /`receiveQueue.maxPackets` is -1/]
  ]
  for (const [name, options, expected] of invalid) {
    it.live(name, () =>
      Effect.gen(function*() {
        const { message, tag } = yield* failure(options)
        assert.strictEqual(tag, "InvalidOption")
        assert.match(message, expected)
      }))
  }

  it.live("a directory that does not exist", () =>
    Effect.gen(function*() {
      const { message, tag } = yield* failure({ path: "/no/such/directory/s.sock" })
      assert.strictEqual(tag, "AddressNotAvailable")
      assert.include(message, "the directory /no/such/directory does not exist; create it first")
    }))

  it.live("but the longest path is taken", () =>
    Effect.gen(function*() {
      const { client, parent } = yield* place
      const path = join(parent, "x".repeat((process.platform === "linux" ? 107 : 103) - parent.length - 1))
      const server = yield* start(UnixDatagram.transport({ path }), echo)
      yield* assertEchoes(yield* client, server)
    }))
})

/** How many descriptors the process has, where the system tells them. */
const descriptors = () => Fs.existsSync("/proc/self/fd") ? Fs.readdirSync("/proc/self/fd").length : 0

describe("nothing is left", () => {
  it.live("of 500 servers and their clients, neither a descriptor nor a file", () =>
    Effect.gen(function*() {
      const { client, parent, path } = yield* place
      const once = Effect.scoped(Effect.gen(function*() {
        const server = yield* start(UnixDatagram.transport({ path }), echo)
        yield* assertEchoes(yield* client, server)
      }))
      yield* once
      const before = descriptors()
      for (let i = 0; i < 500; i++) yield* once
      assert.isAtMost(descriptors(), before)
      assert.deepStrictEqual(Fs.readdirSync(parent), [])
    }))

  it.live("of 500 servers that could not bind", () =>
    Effect.gen(function*() {
      const { parent, path } = yield* place
      yield* start(UnixDatagram.transport({ path }), echo)
      const failures = [path, "/no/such/directory/s.sock", "x".repeat(200), parent]
      yield* failure({ path })
      const before = descriptors()
      for (let i = 0; i < 500; i++) yield* failure({ path: failures[i % 4]! })
      assert.isAtMost(descriptors(), before)
      assert.deepStrictEqual(Fs.readdirSync(parent), ["server.sock"])
    }))

  it.live("of a socket in a thread that was terminated", () =>
    Effect.gen(function*() {
      const { client: bind, path } = yield* place
      const client = yield* bind
      const inThread = Effect.callback<void>((resume) => {
        const worker = new Worker(
          `const native = require(${JSON.stringify(location)})
           const memory = new Uint8Array(native.packets + 100)
           const socket = native.open(${JSON.stringify(path)}, -1, 100, memory, () => {
             native.send(socket, ${
            JSON.stringify((client.address as NetAddress.UnixPathAddress).path)
          }, memory.subarray(native.packets), 5)
           })`,
          { eval: true }
        )
        worker.on("exit", () => resume(Effect.void))
        worker.on("online", () =>
          Effect.runFork(Effect.gen(function*() {
            yield* Effect.repeat(eventLoopTurn, { until: () => Fs.existsSync(path) })
            yield* assertEchoes(client, { address: NetAddress.unixPathAddress(path) })
            yield* Effect.promise(() => worker.terminate())
          })))
      })
      yield* inThread
      Fs.rmSync(path)
      const before = descriptors()
      for (let i = 0; i < 5; i++) {
        yield* inThread
        Fs.rmSync(path)
      }
      assert.isAtMost(descriptors(), before)
    }))
})

describe("clients that others wrote", () => {
  const talk = Effect.fnUntraced(function*(
    command: string,
    argumentsFor: (path: string, own: string) => ReadonlyArray<string>
  ) {
    const { parent, path } = yield* place
    yield* start(UnixDatagram.transport({ path }), ({ payload, reply }) => reply(text(payload).toUpperCase()))
    const program = yield* run(command, argumentsFor(path, join(parent, "own.sock")))
    for (const word of ["one", "two", "three"]) {
      yield* program.send(`${word}\n`)
      assert.strictEqual(yield* program.line, word.toUpperCase())
    }
    yield* program.kill
  })

  const socat = needs("socat", "-V", "socat")
  it.live.runIf(socat.runIf)(
    `are answered: socat${socat.note}`,
    () => talk("socat", (path, own) => ["-", `UNIX-SENDTO:${path},bind=${own}`])
  )

  const nc = needs("nc", "-h", "netcat-openbsd")
  it.live.runIf(nc.runIf)(`are answered: nc${nc.note}`, () => talk("nc", (path, own) => ["-u", "-U", "-s", own, path]))

  const python = needs("python3", "--version", "python3")
  it.live.runIf(python.runIf)(`are answered: Python${python.note}`, () =>
    talk("python3", (path, own) => [
      "-c",
      `import socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.bind(sys.argv[2])
for line in sys.stdin:
    client.sendto(line.encode(), sys.argv[1])
    print(client.recv(100).decode(), end="", flush=True)
`,
      path,
      own
    ]))

  it.live.runIf(python.runIf)(
    `may send faster than the server handles: Python waits${python.note}`,
    () =>
      Effect.gen(function*() {
        const { path } = yield* place
        const seen: Array<number> = []
        yield* startSerial(
          UnixDatagram.transport({ path }),
          ({ payload }) => Effect.andThen(eventLoopTurn, Effect.sync(() => seen.push(Number(text(payload)))))
        )
        const program = yield* run("python3", [
          "-c",
          `import socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for i in range(500):
    client.sendto(str(i).encode(), sys.argv[1])
`,
          path
        ])
        assert.deepStrictEqual(yield* program.end, [0, []])
        yield* Effect.repeat(eventLoopTurn, { until: () => seen.length === 500 })
        assert.deepStrictEqual(seen, Array.from({ length: 500 }, (_, i) => i))
      })
  )
})
