/** Headers of the PROXY protocol: what they say, how they are cut, what hostile ones can do; and the step that reads them. */
import { assert, describe, it } from "@effect/vitest"
import {
  Admission,
  type Connection,
  Dispatch,
  MemoryTransport,
  ProxyProtocol,
  Server,
  type StreamTransport
} from "@socketserver/core"
import { Context, Effect, Fiber, Layer, Logger, References, Result, Stream } from "effect"
import { IpNetwork, NetAddress } from "effect/net"
import { TestClock } from "effect/testing"
import { bytesOf, crc, header2, type Tlv, tlv } from "./proxyHeaders.ts"
import { forkSettled, settle } from "./utils.ts"

const decode = (bytes: Uint8Array | string, maxLength?: number) => {
  const result = ProxyProtocol.decode(bytesOf(bytes), { maxLength })
  return Result.isFailure(result) ? result.failure.reason : result.success._tag
}
const headerOf = (bytes: Uint8Array | string): ProxyProtocol.Header => {
  const decoded = Result.getOrThrow(ProxyProtocol.decode(bytesOf(bytes)))
  if (decoded._tag !== "Header") throw new Error(decoded._tag)
  return decoded.header
}
const ends = ({ destination, source, transport }: ProxyProtocol.Header) => [
  String(source),
  String(destination),
  transport
]

const tcp4 = Uint8Array.of(192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb)
const ipv6 = (last: number) =>
  Uint8Array.from({ length: 16 }, (_, i) => i === 0 ? 0x20 : i === 1 ? 1 : i === 15 ? last : 0)
const path = (text: string) => {
  const bytes = new Uint8Array(108)
  bytes.set(bytesOf(text))
  return bytes
}

describe("a header of version 1", () => {
  it("names the ends of a TCP connection", () => {
    assert.deepStrictEqual(ends(headerOf("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n")), [
      "192.168.0.1:56324",
      "192.168.0.11:443",
      "stream"
    ])
    assert.deepStrictEqual(ends(headerOf("PROXY TCP6 2001:DB8::1 ::1 0 65535\r\n")), [
      "[2001:db8::1]:0",
      "[::1]:65535",
      "stream"
    ])
    const mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert.strictEqual(decode(`PROXY TCP6 ${mask} ${mask} 65535 65535\r\n`), "Header")
    assert.strictEqual(decode("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"), "Header")
  })

  it("takes an IPv4 address that is written as IPv6 for what it is", () => {
    assert.strictEqual(ends(headerOf("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"))[0], "192.0.2.1:1")
  })

  it("names nobody when it says UNKNOWN, whatever follows", () => {
    const mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    const longest = `PROXY UNKNOWN ${mask} ${mask} 65535 65535\r\n`
    assert.strictEqual(longest.length, 107)
    for (const line of ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN whatever this is\r\n", longest]) {
      assert.deepStrictEqual([headerOf(line).source, headerOf(line).transport], [undefined, undefined])
    }
  })

  it("is refused where it is not exactly as it must be", () => {
    const wrong = [
      "PROXY \r\n",
      "PROXY TCP4\r\n",
      "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
      "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
      "PROXY UNKNOWNS\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
      "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
      "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
      "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
      "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
      "PROXY TCP4 ::1 ::1 1 2\r\n",
      "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
      "PROXY TCP6 1::2::3 ::1 1 2\r\n",
      "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
      "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rX",
      `PROXY UNKNOWN ${"x".repeat(92)}\r\n`,
      `PROXY ${"x".repeat(101)}`
    ]
    for (const line of wrong) assert.strictEqual(decode(line), "Invalid", JSON.stringify(line))
  })
})

describe("a header of version 2", () => {
  it("names the ends of connections of each family, and of datagrams", () => {
    assert.deepStrictEqual(ends(headerOf(header2({ family: 0x11, block: tcp4 }))), [
      "192.0.2.1:56324",
      "198.51.100.7:443",
      "stream"
    ])
    const tcp6 = Uint8Array.from([...ipv6(1), ...ipv6(2), 0, 7, 0, 9])
    assert.deepStrictEqual(ends(headerOf(header2({ family: 0x21, block: tcp6 }))), [
      "[2001::1]:7",
      "[2001::2]:9",
      "stream"
    ])
    assert.deepStrictEqual(ends(headerOf(header2({ family: 0x12, block: tcp4 })))[2], "datagram")
    const unix = headerOf(header2({ family: 0x31, block: Uint8Array.from([...path("/run/a"), ...path("\0abstract")]) }))
    assert.deepStrictEqual([unix.source, unix.destination], [
      NetAddress.unixPathAddress("/run/a"),
      NetAddress.unixPathAddress("\0abstract")
    ])
  })

  it("names nobody when it is local or of no family, and what else it holds is ignored", () => {
    for (const [command, family] of [[0, 0], [0, 0x11], [0, 0x21], [1, 0], [1, 0x10], [1, 0x01]] as const) {
      for (const block of [[], tcp4, [1, 255, 255], new Uint8Array(300)]) {
        const header = headerOf(header2({ command, family, block: Uint8Array.from(block) }))
        assert.deepStrictEqual([header.command, header.source, header.tlvs], [
          command === 0 ? "local" : "proxy",
          undefined,
          []
        ])
      }
    }
  })

  it("carries typed values: known ones by name, unknown ones as they came, padding not at all", () => {
    const ssl = tlv(
      0x20,
      Uint8Array.from([
        0b011,
        0,
        0,
        0,
        0,
        ...tlv(0x21, "TLSv1.3"),
        ...tlv(0x22, "client.example"),
        ...tlv(0x23, "ECDHE-RSA-AES128-GCM-SHA256"),
        ...tlv(0x24, "SHA256"),
        ...tlv(0x25, "RSA2048"),
        ...tlv(0x2f, "new")
      ])
    )
    const header = headerOf(header2({
      family: 0x11,
      block: tcp4,
      tlvs: [
        tlv(0x01, "h2"),
        tlv(0x02, "example.org"),
        tlv(0x04, new Uint8Array(9)),
        tlv(0x05, Uint8Array.of(1, 2, 3)),
        tlv(0x30, "blue"),
        ssl,
        tlv(0xea, "vpce-1234")
      ]
    }))
    assert.deepStrictEqual(
      [header.alpn, header.authority, header.uniqueId, header.netns],
      ["h2", "example.org", Uint8Array.of(1, 2, 3), "blue"]
    )
    const { tlvs, ...said } = header.ssl!
    assert.deepStrictEqual(said, {
      used: true,
      certificate: "connection",
      verified: true,
      version: "TLSv1.3",
      commonName: "client.example",
      cipher: "ECDHE-RSA-AES128-GCM-SHA256",
      signatureAlgorithm: "SHA256",
      keyAlgorithm: "RSA2048"
    })
    assert.deepStrictEqual(tlvs.at(-1), { type: 0x2f, value: bytesOf("new") })
    assert.deepStrictEqual(header.tlvs.map(({ type }) => type), [0x01, 0x02, 0x05, 0x30, 0x20, 0xea])
    assert.deepStrictEqual(header.tlvs.at(-1)!.value, bytesOf("vpce-1234"))
  })

  it("does not call a client verified that showed no certificate", () => {
    const ssl = (client: number, verify: number) =>
      headerOf(header2({ family: 0x11, block: tcp4, tlvs: [tlv(0x20, Uint8Array.of(client, 0, 0, 0, verify))] })).ssl!
    assert.deepStrictEqual([ssl(1, 0), ssl(7, 0), ssl(5, 0), ssl(3, 1)].map((s) => [s.certificate, s.verified]), [
      [undefined, false],
      ["connection", true],
      ["session", true],
      ["connection", false]
    ])
  })

  it("has its checksum checked, where there is one", () => {
    // RFC 3720, B.4: 32 bytes of zeroes.
    assert.strictEqual(crc(new Uint8Array(32)), 0x8a9136aa)
    const tlvs = [tlv(0x02, "example.org"), tlv(0x03, new Uint8Array(4)), tlv(0xe0, "x")]
    const header = header2({ family: 0x11, block: tcp4, tlvs })
    const at = 16 + 12 + 3 + 11 + 3
    new DataView(header.buffer).setUint32(at, crc(header))
    assert.strictEqual(decode(header), "Header")
    for (let i = 16; i < header.length; i++) {
      const wrong = header.slice()
      wrong[i]! ^= 0x10
      assert.strictEqual(decode(wrong) === "Header" && i !== at - 3, false, `byte ${i}`)
    }
    assert.strictEqual(decode(header2({ family: 0x11, block: tcp4, tlvs: [tlv(0x03, "abc")] })), "Invalid")
    const twice = header2({ family: 0x11, block: tcp4, tlvs: [tlv(0x03, new Uint8Array(4)), ...tlvs] })
    new DataView(twice.buffer).setUint32(16 + 12 + 3, crc(twice))
    const refused = ProxyProtocol.decode(twice)
    assert.include(Result.isFailure(refused) ? refused.failure.message : "", "one checksum at most")
  })

  it("is refused where it is not exactly as it must be", () => {
    const cutOff = (tlvs: Array<Tlv>) => decode(header2({ family: 0x11, block: tcp4, tlvs }))
    assert.strictEqual(decode(header2({ version: 1, family: 0x11, block: tcp4 })), "Invalid")
    assert.strictEqual(decode(header2({ version: 3, family: 0x11, block: tcp4 })), "Invalid")
    assert.strictEqual(decode(header2({ command: 2, family: 0x11, block: tcp4 })), "Invalid")
    assert.strictEqual(decode(header2({ family: 0x41, block: tcp4 })), "Invalid")
    assert.strictEqual(decode(header2({ family: 0x13, block: tcp4 })), "Invalid")
    for (const [family, length] of [[0x11, 11], [0x21, 35], [0x31, 215]] as const) {
      assert.strictEqual(decode(header2({ family, block: new Uint8Array(length) })), "Invalid")
    }
    assert.strictEqual(cutOff([Uint8Array.of(1)]), "Invalid")
    assert.strictEqual(cutOff([Uint8Array.of(1, 0)]), "Invalid")
    assert.strictEqual(cutOff([Uint8Array.of(1, 0, 2, 65)]), "Invalid")
    assert.strictEqual(cutOff([tlv(0x05, new Uint8Array(129))]), "Invalid")
    assert.strictEqual(cutOff([tlv(0x20, new Uint8Array(4))]), "Invalid")
    assert.strictEqual(cutOff([tlv(0x20, Uint8Array.of(1, 0, 0, 0, 0, 0x21, 0, 9))]), "Invalid")
  })

  it("that announces more than may be is refused before more of it has come", () => {
    const header = header2({ family: 0x11, block: new Uint8Array(4_081) })
    assert.strictEqual(decode(header.subarray(0, 15)), "Incomplete")
    assert.strictEqual(decode(header.subarray(0, 16)), "TooLong")
    assert.strictEqual(decode(header.subarray(0, 16), 4_097), "Incomplete")
    assert.strictEqual(decode(header2({ family: 0, block: new Uint8Array(65_535) }), 65_551), "Header")
  })
})

const samples = [
  "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n",
  "PROXY UNKNOWN\r\n",
  header2({ family: 0x11, block: tcp4 }),
  header2({ command: 0, family: 0 }),
  header2({ family: 0x21, block: new Uint8Array(36), tlvs: [tlv(0x02, "example.org"), tlv(0xe0, new Uint8Array(40))] })
].map(bytesOf)

describe("any beginning of a header", () => {
  it("is incomplete, and nothing that differs from one by its first bytes is", () => {
    for (const sample of samples) {
      for (let length = 0; length < sample.length; length++) {
        assert.strictEqual(decode(sample.subarray(0, length)), "Incomplete")
      }
    }
    for (const other of ["G", "PROX ", "PROXY\r\n", "\r\n\r\n\r", "\r\n\r\n\0\r\nQUIT\r", "\x16\x03\x01"]) {
      assert.strictEqual(decode(other), "None")
    }
  })
})

// ---- the step

const client = NetAddress.inetAddressFromIpStringUnsafe("10.0.0.1", 4_711)
const echoPeer = (connection: Connection.Connection) =>
  Effect.gen(function*() {
    yield* connection.write(
      `${String(connection.peer)} ${String(connection.local)} ${connection.proxy?.version ?? "-"}\n`
    )
    while (true) yield* connection.write(yield* connection.pull)
  })

const start = (
  options: Partial<ProxyProtocol.Options> = {},
  handler: Server.StreamHandler<any, never> = echoPeer,
  serverOptions?: Server.ServerOptions<any>
) =>
  Effect.gen(function*() {
    const server = yield* Effect.map(
      Layer.build(
        MemoryTransport.stream({ name: "proxied" }).pipe(
          ProxyProtocol.accept({ trusted: ["10.0.0.0/8", "2001:db8::7"], ...options }),
          Dispatch.fiberPerRequest(),
          Server.serveStream(handler, serverOptions)
        )
      ),
      Context.get(Server.Server)
    )
    return {
      server,
      connect: (from: NetAddress.SocketAddress = client) => MemoryTransport.connect(server.address, { from })
    }
  })

const closed = (server: Server.Server["Service"]) => Effect.map(server.stats, (stats) => stats.closed)

describe("the step", () => {
  it.effect("gives the handler the client's addresses, and all that came behind the header, cut anywhere", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start()
      const seen = [
        "192.0.2.1:56324 198.51.100.7:443 1",
        `${String(client)} proxied 1`,
        "192.0.2.1:56324 198.51.100.7:443 2",
        `${String(client)} proxied 2`,
        "[::]:0 [::]:0 2"
      ]
      for (const [index, sample] of samples.entries()) {
        const input = Uint8Array.from([...sample, ...bytesOf("hello\n")])
        for (let cut = 0; cut <= input.length; cut++) {
          const connection = yield* connect()
          yield* connection.write(input.subarray(0, cut))
          yield* settle
          yield* connection.write(input.subarray(cut))
          yield* connection.end
          assert.strictEqual(
            new TextDecoder().decode(yield* connection.readAll()),
            `${seen[index]}\nhello\n`,
            `${index}: ${cut}`
          )
        }
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(Object.keys(yield* closed(server)), ["Completed"])
    }))

  it.effect("takes a header byte by byte", () =>
    Effect.gen(function*() {
      const { connect } = yield* start()
      for (const sample of samples) {
        const connection = yield* connect()
        for (const byte of sample) {
          yield* connection.write(Uint8Array.of(byte))
          yield* settle
        }
        assert.match(yield* connection.readLine(), / [12]$/)
      }
    }))

  it.effect("refuses who may not send a header, unread, and who sends none; with reasons, and quietly", () =>
    Effect.gen(function*() {
      const reasons: Array<unknown> = []
      const levels: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel }) => void levels.push(logLevel))
      const { connect, server } = yield* start().pipe(
        Effect.provide(Logger.layer([logger])),
        Effect.provideService(References.MinimumLogLevel, "All")
      )
      yield* Effect.forkScoped(
        Stream.runForEach(server.events, (event) =>
          Effect.sync(() => {
            if (event._tag === "Closed" && event.reason._tag === "HandshakeFailed") {
              reasons.push((event.reason.cause as ProxyProtocol.ProxyProtocolError).reason)
            }
          })),
        { startImmediately: true }
      )
      const strangers = ["11.0.0.1", "2001:db8::8"].map((ip) => NetAddress.inetAddressFromIpStringUnsafe(ip, 1))
      for (const from of [...strangers, NetAddress.unixPathAddress("/run/somebody")]) {
        const connection = yield* connect(from)
        yield* Effect.ignore(connection.write(samples[0]!))
        yield* Effect.exit(connection.readAll())
      }
      for (const input of ["GET / HTTP/1.1\r\n", "P", "PROXY nonsense\r\n"]) {
        const connection = yield* connect()
        yield* connection.write(input)
        yield* connection.end
        yield* Effect.exit(connection.readAll())
      }
      yield* settle
      assert.deepStrictEqual(reasons, ["Untrusted", "Untrusted", "Untrusted", "Missing", "Missing", "Invalid"])
      assert.deepStrictEqual(levels.filter((level) => level !== "Debug" && level !== "Trace"), ["Info"])
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 6 })
      const trusted = yield* connect(NetAddress.inetAddressFromIpStringUnsafe("2001:db8::7", 1))
      yield* trusted.write(samples[1]!)
      assert.match(yield* trusted.readLine(), / 1$/)
    }))

  it.effect("lets everything else pass untouched where a header is not required", () =>
    Effect.gen(function*() {
      const { connect } = yield* start({ required: false })
      const stranger = NetAddress.inetAddressFromIpStringUnsafe("11.0.0.1", 1)
      for (
        const [from, input] of [
          [stranger, "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nhello"],
          [client, "hello"],
          [client, "PROX"],
          [client, ""],
          [client, "PROXIES\r\n"]
        ] as const
      ) {
        const connection = yield* connect(from)
        yield* connection.write(input)
        yield* settle
        yield* connection.end
        assert.strictEqual(
          new TextDecoder().decode(yield* connection.readAll()),
          `${String(from)} proxied -\n${input}`
        )
      }
      const proxied = yield* connect()
      yield* proxied.write(samples[0]!)
      assert.match(yield* proxied.readLine(), /^192/)
      const broken = yield* connect()
      yield* broken.write("PROXY TCP4 nonsense\r\n")
      assert.strictEqual((yield* broken.readAll()).length, 0)
    }))

  it.effect("stands where IPv4 peers of a dual-stack listener count as IPv4, and networks as objects count too", () =>
    Effect.gen(function*() {
      const { connect } = yield* start({ trusted: [IpNetwork.fromStringUnsafe("10.0.0.0/8"), "unix"] })
      for (
        const from of [
          NetAddress.inetAddressFromIpStringUnsafe("::ffff:10.1.2.3", 1),
          NetAddress.unixPathAddress("/run/somebody")
        ]
      ) {
        const connection = yield* connect(from)
        yield* connection.write(samples[0]!)
        assert.match(yield* connection.readLine(), /^192/)
      }
    }))

  describe("shows the client to the steps behind it, and the proxy to those before it:", () => {
    type Step = ReturnType<typeof Admission.allow>
    const proxied = ProxyProtocol.accept({ trusted: ["10.0.0.0/8"] })
    const serving = (transport: Layer.Layer<StreamTransport.StreamTransport, never, never>) =>
      Effect.map(
        Layer.build(transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(echoPeer))),
        Context.get(Server.Server)
      )
    const before = (step: Step) => serving(MemoryTransport.stream().pipe(step, proxied))
    const behind = (step: Step) => serving(MemoryTransport.stream().pipe(proxied, step))
    /** Comes through the proxy, and says whether it was let in. */
    const come = (server: Server.Server["Service"], ip: string) =>
      Effect.gen(function*() {
        const connection = yield* MemoryTransport.connect(server.address, { from: client })
        yield* Effect.ignore(connection.write(`PROXY TCP4 ${ip} 198.51.100.7 56324 443\r\n`))
        const line = yield* Effect.exit(connection.readLine())
        return { connection, isIn: line._tag === "Success" && line.value.startsWith(`${ip}:`) }
      })
    const comeAll = (server: Server.Server["Service"], ...ips: ReadonlyArray<string>) =>
      Effect.forEach(ips, (ip) => Effect.map(come(server, ip), ({ isIn }) => isIn))

    it.effect("verify", () =>
      Effect.gen(function*() {
        const peers: Array<string> = []
        const note = Admission.verify(({ peer }) => Effect.sync(() => peers.push(String(peer)) > 0))
        const server = yield* serving(MemoryTransport.stream().pipe(note, proxied, note))
        assert.isTrue((yield* come(server, "192.0.2.1")).isIn)
        assert.deepStrictEqual(peers, ["10.0.0.1:4711", "192.0.2.1:56324"])
      }))

    it.effect("allow", () =>
      Effect.gen(function*() {
        const step = () => Admission.allow(["192.0.2.0/24"])
        assert.deepStrictEqual(yield* comeAll(yield* behind(step()), "192.0.2.1", "203.0.113.1"), [true, false])
        assert.deepStrictEqual(yield* comeAll(yield* before(step()), "192.0.2.1"), [false])
      }))

    it.effect("deny", () =>
      Effect.gen(function*() {
        const step = () => Admission.deny(["192.0.2.0/24"])
        assert.deepStrictEqual(yield* comeAll(yield* behind(step()), "192.0.2.1", "203.0.113.1"), [false, true])
        assert.deepStrictEqual(yield* comeAll(yield* before(step()), "192.0.2.1"), [true])
      }))

    it.effect("perPeer, which gives the client's place back when its connection ends", () =>
      Effect.gen(function*() {
        const step = () => Admission.perPeer({ max: 1 })
        const server = yield* behind(step())
        const first = yield* come(server, "192.0.2.1")
        assert.isTrue(first.isIn)
        assert.deepStrictEqual(yield* comeAll(server, "192.0.2.1", "192.0.2.2"), [false, true])
        yield* first.connection.close
        yield* settle
        assert.deepStrictEqual(yield* comeAll(server, "192.0.2.1"), [true])
        assert.deepStrictEqual(yield* comeAll(yield* before(step()), "192.0.2.1", "192.0.2.2"), [true, false])
      }))

    it.effect("rate", () =>
      Effect.gen(function*() {
        const step = () => Admission.rate({ limit: 1, per: "peer" })
        assert.deepStrictEqual(
          yield* comeAll(yield* behind(step()), "192.0.2.1", "192.0.2.1", "192.0.2.2"),
          [true, false, true]
        )
        assert.deepStrictEqual(yield* comeAll(yield* before(step()), "192.0.2.1", "192.0.2.2"), [true, false])
      }))
  })

  it.effect("shows the client wherever the server tells of its connections", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start()
      const connection = yield* connect()
      yield* connection.write(samples[0]!)
      yield* connection.readLine()
      const [info] = yield* server.connections.list
      assert.deepStrictEqual([String(info!.peer), String(info!.local)], ["192.0.2.1:56324", "198.51.100.7:443"])
    }))

  it.effect("has a time of its own: an idle timeout that is shorter begins with the handler", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start({ timeout: "3 seconds" }, echoPeer, { idleTimeout: "1 second" })
      const connection = yield* connect()
      yield* TestClock.adjust("2 seconds")
      yield* connection.write(samples[0]!)
      assert.match(yield* connection.readLine(), /^192/)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* closed(server), { IdleTimeout: 1 })
    }))

  it.effect("ends a connection whose header takes too long, byte by byte or not at all, and delays no other", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start({ timeout: "3 seconds" })
      const silent = yield* connect()
      const slow = yield* connect()
      const dripping = yield* Effect.forkChild(
        Effect.gen(function*() {
          for (const byte of samples[0]!) {
            yield* slow.write(Uint8Array.of(byte))
            yield* Effect.sleep("500 millis")
          }
        }).pipe(Effect.ignore)
      )
      yield* TestClock.adjust("2999 millis")
      const quick = yield* connect()
      yield* quick.write(samples[0]!)
      assert.match(yield* quick.readLine(), /^192/)
      assert.deepStrictEqual(yield* closed(server), {})
      yield* TestClock.adjust("1 millis")
      yield* Effect.exit(silent.readAll())
      yield* Effect.exit(slow.readAll())
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 2 })
      yield* Fiber.interrupt(dripping)
    }))

  it.effect("is interrupted by a drain, and nothing is left", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start()
      const connection = yield* connect()
      yield* connection.write(samples[0]!.subarray(0, 20))
      yield* settle
      const report = yield* server.drain()
      assert.deepStrictEqual([report.refused, (yield* server.stats).open], [1, 0])
      yield* Effect.exit(connection.readAll())
    }))

  it.effect("ends with a client that goes away in the middle of its header", () =>
    Effect.gen(function*() {
      const { connect, server } = yield* start()
      for (const leave of ["end", "reset"] as const) {
        const connection = yield* connect()
        yield* connection.write(samples[0]!.subarray(0, 20))
        yield* settle
        yield* connection[leave]
        yield* settle
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 2 })
    }))

  it.effect("replays no more than is read, behind a header with a long tail", () =>
    Effect.gen(function*() {
      const { connect } = yield* start({}, (connection) =>
        Effect.gen(function*() {
          for (let i = 0; i < 3; i++) yield* connection.write(`${yield* connection.readLine()}\n`)
          yield* connection.write(yield* connection.readAll())
        }))
      const connection = yield* connect()
      const writing = yield* forkSettled(connection.writeAll([samples[2]!, "a\nb\n", "c\nd\n"]))
      yield* Fiber.join(writing)
      yield* connection.end
      assert.strictEqual(new TextDecoder().decode(yield* connection.readAll()), "a\nb\nc\nd\n")
    }))

  it.effect("names options that are wrong when the server is built", () =>
    Effect.gen(function*() {
      for (
        const options of [
          { trusted: ["10.0.0.0/33"] },
          { trusted: ["everybody"] },
          { trusted: [], maxLength: 15 },
          { trusted: [], maxLength: 65_552 },
          { trusted: [], timeout: Number.NaN },
          { trusted: [], timeout: 0 },
          { trusted: [], timeout: Infinity }
        ]
      ) {
        const error = yield* Effect.flip(start(options))
        assert.strictEqual(error.reason._tag, "InvalidOption")
        assert.match(error.message, /proxyProtocol\./)
      }
    }))
})

/** The same numbers every time, from a seed. */
const randomOf = (seed: number) => () => {
  seed = seed + 0x6d2b79f5 | 0
  let t = Math.imul(seed ^ seed >>> 15, 1 | seed)
  t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t
  return ((t ^ t >>> 14) >>> 0) / 4_294_967_296
}

const hostile = (random: () => number): Uint8Array => {
  const below = (n: number) => Math.floor(random() * n)
  const input = new Uint8Array(samples[below(samples.length)]!)
  const kind = below(4)
  if (kind === 0) return Uint8Array.from({ length: below(200) }, () => below(256))
  for (let i = below(6); i >= 0; i--) input[below(input.length)] = below(256)
  if (kind === 1) return input.subarray(0, below(input.length))
  if (kind === 2) return Uint8Array.from([...input, ...Array.from({ length: below(300) }, () => below(256))])
  return input
}

describe("thousands of hostile headers", () => {
  it("are decoded to something or refused, whatever they are; more input never changes a verdict", () => {
    const random = randomOf(1)
    for (let i = 0; i < 5_000; i++) {
      const input = hostile(random)
      const verdict = decode(input)
      const longer = decode(Uint8Array.from([...input, 0x20, 0x0d, 0x0a]))
      if (verdict !== "Incomplete") assert.strictEqual(longer, verdict, String(input))
    }
  })

  it("have no more bytes than have come, and keep none of them", () => {
    const random = randomOf(3)
    for (let i = 0; i < 5_000; i++) {
      const input = hostile(random)
      const decoded = ProxyProtocol.decode(input)
      if (Result.isFailure(decoded) || decoded.success._tag !== "Header") continue
      const { header, length } = decoded.success
      assert.isAtMost(length, input.length)
      const said = JSON.stringify(header)
      input.fill(0)
      assert.strictEqual(JSON.stringify(header), said)
    }
  })

  it.effect("end no connection but their own: the next client is served", () =>
    Effect.gen(function*() {
      const random = randomOf(2)
      const { connect, server } = yield* start()
      for (let i = 0; i < 500; i++) {
        const input = hostile(random)
        const cut = Math.floor(random() * input.length)
        yield* Effect.scoped(Effect.gen(function*() {
          const connection = yield* connect()
          yield* Effect.ignore(connection.write(input.subarray(0, cut)))
          if (random() < 0.5) yield* Effect.yieldNow
          yield* Effect.ignore(connection.write(input.subarray(cut)))
        }))
        if (i % 100 === 0) {
          const good = yield* connect()
          yield* good.write(samples[0]!)
          assert.match(yield* good.readLine(), /^192/)
          yield* good.close
        }
      }
      yield* settle
      assert.strictEqual((yield* server.stats).open, 0)
    }))
})
