/** UDP: options, bad input, and what only real sockets do. */
import { assert, describe, it } from "@effect/vitest"
import { type Datagram, type DatagramError, DatagramTransport, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Context, Deferred, Effect, Exit, Fiber, Latch, Layer, Queue, Scope } from "effect"
import { NetAddress } from "effect/net"
import { execFile, spawnSync } from "node:child_process"
import * as Dgram from "node:dgram"
import { networkInterfaces } from "node:os"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { eventLoopTurn, portOf } from "./utils.ts"

const local = { host: "127.0.0.1", port: 0 }
const hasIpv6 = Object.values(networkInterfaces()).flat().some((one) => one?.address === "::1")
const isLinux = process.platform === "linux"
const hasPython = spawnSync("python3", ["--version"]).status === 0
const hasSs = isLinux && spawnSync("ss", ["-V"]).status === 0
const ifIpv6 = " (skipped where the machine has no ::1)"

const startWith =
  (step: ReturnType<typeof Dispatch.custom>) =>
  <E, R>(transport: Layer.Layer<DatagramTransport.DatagramTransport>, handler: Server.DatagramHandler<E, R>) =>
    transport.pipe(step, Server.serveDatagram(handler), Layer.build, Effect.map(Context.get(Server.Server)))

const start = startWith(Dispatch.fiberPerRequest())
const startSerial = startWith(Dispatch.serial())

const echo = ({ payload, reply }: Datagram.Datagram) => reply(payload)
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("utf8")

const bindRaw = (options: { readonly type: "udp4" | "udp6"; readonly host?: string; readonly port?: number }) =>
  Effect.acquireRelease(
    Effect.callback<Dgram.Socket, NodeJS.ErrnoException>((resume) => {
      const socket = Dgram.createSocket(options.type)
      socket.once("error", (error) => resume(Effect.fail(error)))
      socket.bind(options.port ?? 0, options.host, () => resume(Effect.succeed(socket)))
    }),
    closeRaw
  )

const closeRaw = (socket: Dgram.Socket) =>
  Effect.sync(() => {
    try {
      socket.close()
    } catch {
      // The test has closed it.
    }
  })

/** A client of `node:dgram` on the loopback interface, that keeps what it receives. */
const makeClient = Effect.fnUntraced(function*(
  type: "udp4" | "udp6" = "udp4",
  host = type === "udp4" ? "127.0.0.1" : "::1"
) {
  const socket = yield* bindRaw({ type, host })
  const received = yield* Queue.unbounded<Buffer>()
  socket.on("message", (message) => Queue.offerUnsafe(received, message))
  const { port } = socket.address()
  return {
    socket,
    address: NetAddress.inetAddressFromIpStringUnsafe(host, port),
    send: (to: NetAddress.SocketAddress | number, payload: Uint8Array | string, toHost = host) =>
      Effect.callback<void, Error>((resume) => {
        socket.send(payload, typeof to === "number" ? to : portOf({ address: to }), toHost, (error) => {
          resume(error === null ? Effect.void : Effect.fail(error))
        })
      }),
    receive: Queue.take(received)
  }
})

/** The port can be bound by another, so that nothing of a server is left there. */
const assertFree = (port: number) => Effect.scoped(bindRaw({ type: "udp4", host: "127.0.0.1", port }))

const freePort = Effect.scoped(Effect.map(bindRaw({ type: "udp4", host: "127.0.0.1" }), (raw) => raw.address().port))

const failure = (options: NodeTransport.UdpOptions) =>
  Effect.map(
    Effect.flip(start(NodeTransport.udp(options), echo)),
    (error) => ({ tag: error.reason._tag, message: error.message })
  )

/** How many bytes of payloads are held, here and anywhere in the process. */
const bytesHeld = () => {
  setFlagsFromString("--expose-gc")
  const collect: () => void = runInNewContext("gc")
  collect()
  collect()
  return process.memoryUsage().arrayBuffers
}

/** Lets the event loop turn until it has nothing more to tell. A packet on the loopback interface is there at once. */
const readAll = Effect.fnUntraced(function*(count: () => number) {
  let before = -1
  for (let same = 0; same < 20; same++) {
    yield* eventLoopTurn
    if (count() !== before) same = 0
    before = count()
  }
})

describe("where a server is bound", () => {
  it.live("resolves port 0 in the server's address", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp(local), echo)
      assert.isAbove(portOf(server), 0)
      const info = yield* server.info
      assert.strictEqual(info.transport, "udp")
      assert.strictEqual(info.descriptor, undefined)
      const client = yield* makeClient()
      yield* client.send(server.address, "hello")
      assert.strictEqual(text(yield* client.receive), "hello")
    }))

  it.live.runIf(hasIpv6)(`can be IPv6${ifIpv6}`, () =>
    Effect.gen(function*() {
      const server = yield* start(
        NodeTransport.udp({ host: "::1", port: 0 }),
        ({ local, peer, reply }) => reply(`${String(local)} ${String(peer)}`)
      )
      const client = yield* makeClient("udp6")
      yield* client.send(server.address, "hello")
      assert.strictEqual(text(yield* client.receive), `[::1]:${portOf(server)} ${String(client.address)}`)
    }))

  it.live.runIf(hasIpv6)(
    `is both families by default, and an IPv4 peer is an IPv4 address${ifIpv6}`,
    () =>
      Effect.gen(function*() {
        const other = yield* makeClient()
        const server = yield* start(
          NodeTransport.udp({ port: 0 }),
          ({ peer, reply, send }) => Effect.andThen(reply(String(peer)), send(other.address, String(peer)))
        )
        assert.strictEqual(String(server.address), `[::]:${portOf(server)}`)
        for (const type of ["udp4", "udp6"] as const) {
          const client = yield* makeClient(type)
          yield* client.send(server.address, "who am I?")
          assert.strictEqual(text(yield* client.receive), String(client.address))
          assert.strictEqual(text(yield* other.receive), String(client.address))
        }
      })
  )

  it.live.runIf(hasIpv6)(`leaves IPv4 out with \`ipv6Only\`${ifIpv6}`, () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp({ port: 0, ipv6Only: true }), echo)
      yield* assertFree(portOf(server))
      const client = yield* makeClient("udp6")
      yield* client.send(server.address, "six")
      assert.strictEqual(text(yield* client.receive), "six")
    }))

  it.live("is IPv4 alone where the system has no IPv6", () =>
    Effect.gen(function*() {
      yield* withoutIpv6
      const server = yield* start(NodeTransport.udp({ port: 0 }), echo)
      assert.strictEqual(String(server.address), `0.0.0.0:${portOf(server)}`)
      const client = yield* makeClient()
      yield* client.send(server.address, "four")
      assert.strictEqual(text(yield* client.receive), "four")
      const { message, tag } = yield* failure({ port: 0, ipv6Only: true })
      assert.strictEqual(tag, "ListenFailed")
      assert.match(message, /\*:0: bind EAFNOSUPPORT/)
    }))

  it.live("can be told by name", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp({ host: "localhost", port: 0 }), echo)
      const client = yield* makeClient(NetAddress.isInetAddressV4(server.address) ? "udp4" : "udp6")
      yield* client.send(server.address, "named")
      assert.strictEqual(text(yield* client.receive), "named")
    }))

  it.live("can be shared with `reusePort` or `reuseAddress`", () =>
    Effect.gen(function*() {
      for (const share of [{ reusePort: true }, { reuseAddress: true }]) {
        const first = yield* start(NodeTransport.udp({ ...local, ...share }), echo)
        const second = yield* start(NodeTransport.udp({ ...local, ...share, port: portOf(first) }), echo)
        const client = yield* makeClient()
        for (let i = 0; i < 8; i++) {
          yield* client.send(second.address, `${i}`)
          assert.strictEqual(text(yield* client.receive), `${i}`)
        }
        // An answer is sent before its request counts as done, but a packet counts as accepted before that.
        assert.strictEqual((yield* first.stats).accepted + (yield* second.stats).accepted, 8)
      }
    }))
})

/** Binding an IPv6 socket fails, as on a machine without IPv6. */
const withoutIpv6 = Effect.acquireRelease(
  Effect.sync(() => {
    // oxlint-disable-next-line typescript/unbound-method -- it is put back where it was, and called with its socket
    const { bind } = Dgram.Socket.prototype
    Dgram.Socket.prototype.bind = function(this: Dgram.Socket & { readonly type: string }, ...options: Array<any>) {
      if (this.type === "udp4") return bind.apply(this, options as any)
      this.emit("error", Object.assign(new Error("bind EAFNOSUPPORT"), { code: "EAFNOSUPPORT" }))
      return this
    }
    return bind
  }),
  (bind) =>
    Effect.sync(() => {
      Dgram.Socket.prototype.bind = bind
    })
)

describe("a packet", () => {
  it.live("may be empty, and so may the answer", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp(local), echo)
      const client = yield* makeClient()
      yield* client.send(server.address, "")
      assert.strictEqual((yield* client.receive).length, 0)
    }))

  it.live("is whole up to `maxPacketSize`", () =>
    Effect.gen(function*() {
      const server = yield* start(
        NodeTransport.udp({ ...local, maxPacketSize: 65_507 }),
        ({ payload, reply, truncated }) => Effect.andThen(reply(payload), reply(`${truncated}`))
      )
      const client = yield* makeClient()
      const large = Buffer.alloc(65_507, "abc")
      yield* client.send(server.address, large)
      assert.isTrue(large.equals(yield* client.receive))
      assert.strictEqual(text(yield* client.receive), "false")
    }))

  it.live("is cut beyond it, by default at 8,192 bytes", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp(local), ({ payload, reply, truncated }) =>
        reply(`${payload.length} ${payload.buffer.byteLength} ${text(payload.subarray(-3))} ${truncated}`))
      const client = yield* makeClient()
      const large = Buffer.alloc(65_507, "a").fill("xyz", 8_189, 8_192)
      yield* client.send(server.address, large.subarray(0, 8_192))
      assert.strictEqual(text(yield* client.receive), "8192 8192 xyz false")
      yield* client.send(server.address, large)
      assert.strictEqual(text(yield* client.receive), "8192 8192 xyz true")
      assert.strictEqual((yield* server.stats).truncated, 1)
    }))

  it.live.runIf(isLinux)(
    "can be sent to a broadcast address only where that was asked for (skipped elsewhere than on Linux)",
    () =>
      Effect.gen(function*() {
        const receiver = yield* makeClient("udp4", "0.0.0.0")
        const everybody = NetAddress.inetAddressFromIpStringUnsafe(
          "127.255.255.255",
          receiver.socket.address().port
        )
        const outcome = Effect.fnUntraced(function*(broadcast: boolean) {
          const seen = Deferred.makeUnsafe<Exit.Exit<void, DatagramError.DatagramError>>()
          const server = yield* start(
            NodeTransport.udp({ ...local, broadcast }),
            ({ send }) =>
              Effect.flatMap(
                Effect.exit(send(everybody, `broadcast ${broadcast}`)),
                (exit) => Deferred.succeed(seen, exit)
              )
          )
          yield* (yield* makeClient()).send(server.address, "x")
          return yield* Deferred.await(seen)
        })
        const refused = yield* outcome(false)
        assert.isTrue(Exit.isFailure(refused))
        assert.match(String(refused), /EACCES/)
        assert.deepStrictEqual(yield* outcome(true), Exit.void)
        // The first that arrives is the one that was allowed.
        assert.strictEqual(text(yield* receiver.receive), "broadcast true")
      })
  )
})

describe("a packet that cannot be sent", () => {
  const failing = Effect.fnUntraced(function*(
    options: NodeTransport.UdpOptions,
    send: (datagram: Datagram.Datagram) => Effect.Effect<void, DatagramError.DatagramError>
  ) {
    const failed = Deferred.makeUnsafe<DatagramError.DatagramError>()
    const server = yield* start(
      NodeTransport.udp(options),
      (datagram) =>
        text(datagram.payload) === "echo"
          ? echo(datagram)
          : Effect.tapError(send(datagram), (error) => Deferred.succeed(failed, error))
    )
    const client = yield* makeClient()
    yield* client.send(server.address, "fail")
    const error = yield* Deferred.await(failed)
    yield* client.send(server.address, "echo")
    assert.strictEqual(text(yield* client.receive), "echo")
    return { error, client }
  })

  it.live("because it is too large fails typed, and stops nothing", () =>
    Effect.gen(function*() {
      const { client, error } = yield* failing(local, ({ reply }) => reply(Buffer.alloc(70_000)))
      assert.strictEqual(error.reason._tag, "TooLarge")
      assert.strictEqual(String(error.peer), String(client.address))
      assert.match(error.message, /a packet of 70000 bytes is too large/)
      const wide = yield* failing(local, ({ reply }) => reply("é".repeat(40_000)))
      assert.match(wide.error.message, /a packet of 80000 bytes is too large/)
    }))

  it.live("to an address of another kind fails typed", () =>
    Effect.gen(function*() {
      for (const to of [NetAddress.inetAddressFromIpStringUnsafe("::1", 9), NetAddress.unixPathAddress("/x")]) {
        const { error } = yield* failing(local, ({ send }) => send(to, "x"))
        assert.strictEqual(error.reason._tag, "Unreachable")
        assert.match(error.message, /not by a UDP socket that is bound to an IPv4 address/)
      }
    }))

  it.live("to a port that there is not fails typed", () =>
    Effect.gen(function*() {
      const nowhere = NetAddress.inetAddressFromIpStringUnsafe("127.0.0.1", 0)
      const { error } = yield* failing(local, ({ send }) => send(nowhere, "x"))
      assert.strictEqual(error.reason._tag, "Failed")
    }))

  it.live("because the socket is closed fails typed", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { listen } = Context.get(
        yield* Layer.build(NodeTransport.udp(local)),
        DatagramTransport.DatagramTransport
      )
      const packets = yield* Queue.unbounded<DatagramTransport.Packet>()
      const listener = yield* Scope.provide(listen((packet) => Queue.offerUnsafe(packets, packet)), scope)
      const client = yield* makeClient()
      yield* client.send(listener.address, "x")
      const packet = yield* Queue.take(packets)
      yield* Scope.close(scope, Exit.void)
      yield* Scope.close(scope, Exit.void)
      for (const send of [packet.reply("late"), listener.send(client.address, "late")]) {
        const error = yield* Effect.flip(send)
        assert.strictEqual(error.reason._tag, "Closed")
        assert.strictEqual(String(error.peer), String(client.address))
      }
    }))

  it.live("because its client is gone stops nothing: nobody tells a server, whose socket is not connected, of that", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const begun = Deferred.makeUnsafe<void>()
      const replies: Array<Exit.Exit<void, DatagramError.DatagramError>> = []
      const server = yield* start(
        NodeTransport.udp(local),
        (datagram) =>
          text(datagram.payload) === "echo" ? echo(datagram) : Effect.gen(function*() {
            yield* Deferred.succeed(begun, undefined)
            yield* gate.await
            for (let i = 0; i < 10; i++) {
              replies.push(yield* Effect.exit(datagram.reply("nobody there")))
              // The answer of the system, "port unreachable", comes in between.
              yield* eventLoopTurn
            }
          })
      )
      const gone = yield* makeClient()
      yield* gone.send(server.address, "x")
      yield* Deferred.await(begun)
      gone.socket.close()
      yield* gate.open
      yield* server.awaitIdle
      assert.strictEqual(replies.length, 10)
      if (isLinux) assert.deepStrictEqual(replies, replies.map(() => Exit.void))
      for (let i = 0; i < 3; i++) {
        const client = yield* makeClient()
        yield* client.send(server.address, "echo")
        assert.strictEqual(text(yield* client.receive), "echo")
      }
      yield* server.awaitIdle
      assert.strictEqual(yield* server.status, "ready")
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 4 })
    }))
})

describe("a server", () => {
  for (const [strategy, startIt] of [["serial", startSerial], ["fiberPerRequest", start]] as const) {
    it.live(`answers many clients under \`${strategy}\``, () =>
      Effect.gen(function*() {
        const server = yield* startIt(NodeTransport.udp(local), (datagram) =>
          Effect.andThen(eventLoopTurn, echo(datagram)))
        yield* Effect.forEach(
          Array.from({ length: 10 }, (_, i) =>
            i),
          Effect.fnUntraced(function*(i) {
            const client = yield* makeClient()
            for (let n = 0; n < 20; n++) {
              yield* client.send(server.address, `${i} ${n}`)
              assert.strictEqual(text(yield* client.receive), `${i} ${n}`)
            }
          }),
          { concurrency: "unbounded", discard: true }
        )
        yield* server.awaitIdle
        assert.deepStrictEqual((yield* server.stats).closed, { Completed: 200 })
      }))
  }

  it.live("that is suspended has no socket, and comes back at the same port, also where it was 0", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp(local), echo)
      const port = portOf(server)
      const client = yield* makeClient()
      yield* server.suspend
      yield* assertFree(port)
      yield* server.resume
      assert.strictEqual(portOf(server), port)
      assert.strictEqual((yield* Effect.flip(assertFree(port))).code, "EADDRINUSE")
      yield* client.send(port, "back")
      assert.strictEqual(text(yield* client.receive), "back")
    }))

  it.live("that drains gives a session what the system has received for it, and nobody has read yet", () =>
    Effect.gen(function*() {
      const seen: Array<string> = []
      const layer = NodeTransport.udp(local).pipe(
        Dispatch.fiberPerRequest(),
        Server.serveSessions((session) =>
          Effect.forever(Effect.map(session.receive, (payload) => void seen.push(text(payload))))
        )
      )
      const server = Context.get(yield* Layer.build(layer), Server.Server)
      const client = yield* bindRaw({ type: "udp4", host: local.host })
      yield* Effect.callback<void>((resume) => client.connect(portOf(server), local.host, () => resume(Effect.void)))
      client.send("0")
      while (seen.length === 0) yield* eventLoopTurn
      // One that is connected sends at once: no turn of the event loop has passed when the drain begins.
      client.send("1")
      client.send("2")
      yield* server.drain()
      assert.deepStrictEqual(seen, ["0", "1", "2"])
    }))

  it.live("that drains serves what it has received, and closes its socket", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      const server = yield* startSerial(NodeTransport.udp(local), (datagram) =>
        Effect.andThen(gate.await, echo(datagram)))
      const client = yield* makeClient()
      for (let i = 0; i < 3; i++) {
        yield* client.send(server.address, `${i}`)
      }
      while ((yield* server.stats).accepted + (yield* server.stats).queued < 3) {
        yield* eventLoopTurn
      }
      const drain = yield* Effect.forkChild(server.drain(), { startImmediately: true })
      yield* gate.open
      assert.strictEqual((yield* Fiber.join(drain)).completed, 3)
      for (let i = 0; i < 3; i++) {
        assert.strictEqual(text(yield* client.receive), `${i}`)
      }
      yield* assertFree(portOf(server))
    }))

  it.live("whose handler is held by a flood keeps what its queue holds, counts the rest, and goes on", () =>
    Effect.gen(function*() {
      const gate = Latch.makeUnsafe(false)
      let arrived = 0
      let served = 0
      const counted = Layer.effect(
        DatagramTransport.DatagramTransport,
        Effect.map(DatagramTransport.DatagramTransport, (transport) => ({
          ...transport,
          listen: (onPacket, at) =>
            transport.listen((packet) => {
              arrived++
              onPacket(packet)
            }, at)
        } satisfies DatagramTransport.DatagramTransport["Service"]))
      ).pipe(Layer.provide(NodeTransport.udp({ ...local, receiveQueue: { maxPackets: 100 } })))
      const server = yield* startSerial(counted, (datagram) =>
        Effect.andThen(
          gate.await,
          text(datagram.payload) === "next" ? echo(datagram) : Effect.sync(() => {
            served++
          })
        ))
      // A server that waits for its handler would hide why the test fails.
      yield* Effect.addFinalizer(() => gate.open)
      const client = yield* makeClient()
      const payload = Buffer.alloc(4_096)
      const before = bytesHeld()
      for (let i = 1; i <= 20_000; i++) {
        client.socket.send(payload, portOf(server), "127.0.0.1")
        if (i % 16 === 0) yield* eventLoopTurn
      }
      yield* readAll(() => arrived)
      // 80 MB were sent; the queue may hold 4 of them.
      assert.isBelow(bytesHeld() - before, 16 * 2 ** 20)
      assert.isAbove(arrived, 10_000)
      const { dropped, inFlight, queued } = yield* server.stats
      assert.isBelow(queued, 102)
      assert.strictEqual(dropped + inFlight + queued, arrived)
      yield* gate.open
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).dropped + served, arrived)
      yield* client.send(server.address, "next")
      assert.strictEqual(text(yield* client.receive), "next")
    }))
})

describe("multicast", () => {
  const group = "239.255.77.77"

  it.live("receives what is sent to its groups, or says why it cannot join", () =>
    Effect.gen(function*() {
      const started = yield* Effect.result(start(
        NodeTransport.udp({
          port: 0,
          multicast: { groups: [group], interface: "127.0.0.1", ttl: 0, loopback: true }
        }),
        echo
      ))
      if (started._tag === "Failure") return assert.strictEqual(started.failure.reason._tag, "ListenFailed")
      const server = started.success
      assert.strictEqual(String(server.address), `0.0.0.0:${portOf(server)}`)
      const client = yield* makeClient()
      client.socket.setMulticastInterface("127.0.0.1")
      yield* client.send(server.address, "to all", group)
      assert.strictEqual(text(yield* client.receive), "to all")
    }))

  const link = Object.entries(networkInterfaces()).find(([, all]) => all?.some((one) => one.scopeid))?.[0]

  it.live.runIf(link !== undefined)(
    "joins IPv6 groups, too (skipped where no interface has a link-local address)",
    () =>
      Effect.gen(function*() {
        const multicast = { groups: ["ff12::77"], interface: `::%${link}` }
        const server = yield* start(
          NodeTransport.udp({ port: 0, multicast }),
          // A link-local address means nothing without its interface, which `send` has to give to the system.
          ({ peer, reply, send }) => Effect.andThen(reply("reply"), send(peer, "send"))
        )
        const client = yield* makeClient("udp6", "::")
        client.socket.setMulticastInterface(multicast.interface)
        yield* client.send(server.address, "to all", `ff12::77%${link}`)
        assert.strictEqual(text(yield* client.receive), "reply")
        assert.strictEqual(text(yield* client.receive), "send")
      })
  )

  it.live("that cannot be joined leaves nothing open", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      const { message, tag } = yield* failure({
        host: "127.0.0.1",
        port,
        multicast: { groups: [group, group], interface: "127.0.0.1" }
      })
      assert.strictEqual(tag, "ListenFailed")
      assert.match(message, /127\.0\.0\.1:\d+: addMembership/)
      yield* assertFree(port)
    }))
})

describe("bad input is one tagged error that names the address or option and says what to do", () => {
  const invalid: ReadonlyArray<[string, NodeTransport.UdpOptions, RegExp]> = [
    ["a negative port", { port: -1 }, /`port` is -1: expected an integer from 0 to 65535/],
    ["a port too large", { port: 65_536 }, /`port` is 65536/],
    ["no port", {} as any, /`port` is missing/],
    ["an empty host", { ...local, host: "" }, /`host` is ""/],
    ["a ttl of 0", { ...local, ttl: 0 }, /`ttl` is 0: expected an integer from 1 to 255/],
    ["a packet size of 0", { ...local, maxPacketSize: 0 }, /`maxPacketSize` is 0: expected .* 1 to 65535/],
    ["a packet size too large", { ...local, maxPacketSize: 65_536 }, /`maxPacketSize` is 65536/],
    ["a fractional receive buffer", { ...local, receiveBufferSize: 1.5 }, /`receiveBufferSize` is 1.5/],
    ["an empty send buffer", { ...local, sendBufferSize: 0 }, /`sendBufferSize` is 0/],
    ["a group of one", { ...local, multicast: { groups: ["10.0.0.1"] } }, /`multicast.groups` is "10.0.0.1": expected/],
    ["a group by name", { ...local, multicast: { groups: ["all"] } }, /`multicast.groups` is "all"/],
    [
      "an interface by name",
      { ...local, multicast: { groups: [], interface: "eth0" } },
      /`multicast.interface` is "eth0": expected an address/
    ],
    ["a multicast ttl too large", { ...local, multicast: { groups: [], ttl: 256 } }, /`multicast.ttl` is 256/],
    ["a negative queue", { ...local, receiveQueue: { maxPackets: -1 } }, /`receiveQueue.maxPackets` is -1/]
  ]
  for (const [name, options, expected] of invalid) {
    it.live(name, () =>
      Effect.gen(function*() {
        const { message, tag } = yield* failure(options)
        assert.strictEqual(tag, "InvalidOption")
        assert.match(message, expected)
      }))
  }

  it.live("a port that is taken", () =>
    Effect.gen(function*() {
      const server = yield* start(NodeTransport.udp(local), echo)
      const { message, tag } = yield* failure({ ...local, port: portOf(server) })
      assert.strictEqual(tag, "AddressInUse")
      assert.include(message, `127.0.0.1:${portOf(server)} is already in use`)
    }))

  it.live("an unknown host, and another machine's address", () =>
    Effect.gen(function*() {
      const unknown = yield* failure({ ...local, host: "no.such.host.invalid" })
      assert.strictEqual(unknown.tag, "AddressNotAvailable")
      assert.match(unknown.message, /no\.such\.host\.invalid:0: the host name is not known/)
      const others = yield* failure({ ...local, host: "192.0.2.1" })
      assert.strictEqual(others.tag, "AddressNotAvailable")
      assert.match(others.message, /192\.0\.2\.1:0: the address does not belong to this machine/)
    }))
})

/** What a command prints; it fails with what it complains of. */
const output = (command: string, args: ReadonlyArray<string>) =>
  Effect.callback<string, Error>((resume) => {
    const child = execFile(command, args, { timeout: 15_000 }, (error, stdout) => {
      resume(error === null ? Effect.succeed(stdout) : Effect.fail(error))
    })
    return Effect.sync(() => child.kill())
  })

/** Asks once, and prints the answer and how many routers it might have passed still, as its packet says. */
const askForTtl = `
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(10)
client.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVTTL", 12), 1)
client.bind(("127.0.0.1" if len(sys.argv) == 2 else "", 0))
if len(sys.argv) > 2:
    membership = socket.inet_aton(sys.argv[2]) + socket.inet_aton("127.0.0.1")
    client.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
client.sendto(str(client.getsockname()[1]).encode(), ("127.0.0.1", int(sys.argv[1])))
answer, ancillary, _, _ = client.recvmsg(100, 100)
print(answer.decode(), int.from_bytes(ancillary[0][2], sys.byteorder))
`

describe("what is set on the socket is what the system has", () => {
  it.live.runIf(hasSs)("the sizes of its buffers (skipped where there is no `ss`)", () =>
    Effect.gen(function*() {
      const sizes = (options: Partial<NodeTransport.UdpOptions>) =>
        Effect.gen(function*() {
          const server = yield* start(NodeTransport.udp({ ...local, ...options }), echo)
          const shown = yield* output("ss", ["-uamn", `sport = :${portOf(server)}`])
          const match = /skmem:\(r\d+,rb(\d+),t\d+,tb(\d+)/.exec(shown)
          assert.isNotNull(match, shown)
          return { receive: Number(match[1]), send: Number(match[2]) }
        })
      // Linux takes twice as much, for its own books.
      assert.deepStrictEqual(yield* sizes({ receiveBufferSize: 65_536, sendBufferSize: 32_768 }), {
        receive: 131_072,
        send: 65_536
      })
      const { receive, send } = yield* sizes({})
      assert.notStrictEqual(receive, 131_072)
      assert.notStrictEqual(send, 65_536)
    }))

  it.live.runIf(isLinux && hasPython)(
    "its ttl (skipped where there is no Python, or no Linux)",
    () =>
      Effect.gen(function*() {
        for (const ttl of [1, 3, 255]) {
          const server = yield* start(NodeTransport.udp({ ...local, ttl }), ({ reply }) => reply("ttl"))
          assert.strictEqual(yield* output("python3", ["-c", askForTtl, `${portOf(server)}`]), `ttl ${ttl}\n`)
        }
      })
  )

  it.live.runIf(isLinux && hasPython)(
    "its ttl for groups, which is not its other one (skipped where there is no Python, or no Linux)",
    () =>
      Effect.gen(function*() {
        const group = "239.255.77.78"
        for (const ttl of [0, 7]) {
          const server = yield* start(
            NodeTransport.udp({
              ...local,
              ttl: 33,
              multicast: { groups: [], interface: "127.0.0.1", ttl, loopback: true }
            }),
            ({ payload, send }) => send(NetAddress.inetAddressFromIpStringUnsafe(group, Number(text(payload))), "group")
          )
          assert.strictEqual(
            yield* output("python3", ["-c", askForTtl, `${portOf(server)}`, group]),
            `group ${ttl}\n`
          )
        }
      })
  )
})
