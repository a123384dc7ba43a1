/** The DNS server: asked by the library that it reads with, by `dig`, and by packets that nobody should send. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Packet from "dns-packet"
import { Effect } from "effect"
import { Dns, dns, maxUdpSize, Rcode, type Records, type Zone } from "../src/dns.ts"
import { connectDatagram, digMissing, start, startExample, targetOf } from "./utils.ts"

const long = "x".repeat(300)

const zone: Zone = {
  name: "example.org",
  ttl: 300,
  soa: { mname: "ns.example.org", rname: "admin.example.org", serial: 7, refresh: 1, retry: 2, expire: 3, minimum: 60 },
  records: {
    "example.org": { A: ["192.0.2.1"] },
    "www.example.org": { A: ["192.0.2.2", "192.0.2.3"], AAAA: ["2001:db8::2"], TXT: ["hello", "two words"] },
    "long.example.org": { TXT: [long] },
    // Some 900 bytes, and some 3,000.
    "many.example.org": { A: Array.from({ length: 25 }, (_, n) => `192.0.2.${n}`) },
    "most.example.org": { A: Array.from({ length: 100 }, (_, n) => `192.0.2.${n}`) },
    "a.deep.example.org": { A: ["192.0.2.4"] }
  }
}

const InMemory = Dns(zone, MemoryTransport.datagram())
const OverUdp = Dns(zone, NodeTransport.udp({ host: "127.0.0.1", port: 0 }))

const edns = (size: number, version = 0): Packet.Answer => ({
  type: "OPT",
  name: ".",
  udpPayloadSize: size,
  extendedRcode: 0,
  ednsVersion: version,
  flags: 0,
  flag_do: false,
  options: []
})

const query = (
  name: string,
  type: string,
  options: { size?: number; version?: number; class?: string; id?: number } = {}
) =>
  Packet.encode({
    type: "query",
    id: options.id ?? 1234,
    flags: Packet.RECURSION_DESIRED,
    questions: [{ name, type, class: options.class ?? "IN" } as Packet.Question],
    additionals: options.size === undefined ? [] : [edns(options.size, options.version)]
  })

/** Sends one packet from a client of its own, and reads the answer. */
const exchange = Effect.fnUntraced(function*(packet: Uint8Array) {
  const client = yield* MemoryTransport.bindDatagram()
  yield* client.send((yield* Server.Server).address, packet)
  const bytes = Buffer.from((yield* client.receive).payload)
  return { ...Packet.decode(bytes), bytes, rcode: bytes.readUInt8(3) & 0xf }
}, Effect.scoped)

const ask = (...args: Parameters<typeof query>) => exchange(query(...args))

const dataOf = ({ answers = [] }: Packet.Packet) => answers.map((answer) => "data" in answer ? answer.data : undefined)
const typesOf = (records: ReadonlyArray<Packet.Answer> = []) => records.map(({ type }) => type)

/** Numbers from 0 to 1, the same ones every time. */
const randomOf = (seed: number) => () => {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
  return seed / 2 ** 32
}

describe("a DNS server", () => {
  it.effect("answers with all addresses of a name, under the id of the question, as the authority", () =>
    Effect.gen(function*() {
      const answer = yield* ask("www.example.org", "A")
      assert.deepStrictEqual(dataOf(answer), ["192.0.2.2", "192.0.2.3"])
      assert.deepStrictEqual(answer.questions, [{ name: "www.example.org", type: "A", class: "IN" }])
      assert.strictEqual(answer.id, 1234)
      assert.strictEqual(answer.rcode, Rcode.NOERROR)
      assert.strictEqual(answer.answers?.[0]?.name, "www.example.org")
      assert.isTrue(answer.flag_qr && answer.flag_aa && answer.flag_rd)
      assert.isFalse(answer.flag_tc || answer.flag_ra)
      assert.deepStrictEqual(answer.additionals, [])
      assert.deepStrictEqual(dataOf(yield* ask("www.example.org", "AAAA")), ["2001:db8::2"])
      assert.deepStrictEqual(dataOf(yield* ask("example.org", "A")), ["192.0.2.1"])
      assert.deepStrictEqual(typesOf((yield* ask("example.org", "SOA")).answers), ["SOA"])
    }).pipe(Effect.provide(InMemory)))

  it.effect("answers with texts, long ones in pieces", () =>
    Effect.gen(function*() {
      const short = yield* ask("www.example.org", "TXT")
      assert.deepStrictEqual(dataOf(short), [[Buffer.from("hello")], [Buffer.from("two words")]])
      const pieces = yield* ask("long.example.org", "TXT")
      assert.deepStrictEqual(dataOf(pieces), [[Buffer.from(long.slice(0, 255)), Buffer.from(long.slice(255))]])
    }).pipe(Effect.provide(InMemory)))

  it.effect("does not mind the case of a name, and leaves it as it was asked", () =>
    Effect.gen(function*() {
      const answer = yield* ask("wWw.Example.ORG", "AAAA")
      assert.deepStrictEqual(dataOf(answer), ["2001:db8::2"])
      assert.strictEqual(answer.questions?.[0]?.name, "wWw.Example.ORG")
      assert.strictEqual(answer.answers?.[0]?.name, "wWw.Example.ORG")
    }).pipe(Effect.provide(InMemory)))

  it.effect("says that a name does not exist, or that it has no such record, and for how long", () =>
    Effect.gen(function*() {
      for (
        const [name, type, rcode] of [
          ["nobody.example.org", "A", Rcode.NXDOMAIN],
          ["a.www.example.org", "A", Rcode.NXDOMAIN],
          ["example.org", "TXT", Rcode.NOERROR],
          ["www.example.org", "MX", Rcode.NOERROR],
          ["www.example.org", "UNKNOWN_4711", Rcode.NOERROR],
          // There is nothing at this name, but there is a name below it.
          ["deep.example.org", "A", Rcode.NOERROR]
        ] as const
      ) {
        const answer = yield* ask(name, type)
        assert.strictEqual(answer.rcode, rcode, `${name} ${type}`)
        assert.isTrue(answer.flag_aa)
        assert.deepStrictEqual(answer.answers, [])
        assert.deepStrictEqual(typesOf(answer.authorities), ["SOA"])
      }
    }).pipe(Effect.provide(InMemory)))

  it.effect("gives something to who asks for anything", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(dataOf(yield* ask("www.example.org", "ANY")), ["192.0.2.2", "192.0.2.3"])
    }).pipe(Effect.provide(InMemory)))

  it.effect("refuses what is not in its zone, and does not know other operations than queries", () =>
    Effect.gen(function*() {
      for (const name of ["example.com", "org", ".", "myexample.org", "constructor", "__proto__"]) {
        assert.strictEqual((yield* ask(name, "A")).rcode, Rcode.REFUSED, name)
      }
      assert.strictEqual((yield* ask("www.example.org", "TXT", { class: "CH" })).rcode, Rcode.REFUSED)
      const update = query("www.example.org", "SOA")
      update[2] = 5 << 3
      const answer = yield* exchange(update)
      assert.strictEqual(answer.rcode, Rcode.NOTIMP)
      assert.strictEqual(answer.bytes[2], 0x80 | 5 << 3)
    }).pipe(Effect.provide(InMemory)))

  it.effect("sends no more than the client takes: 512 bytes, or what its EDNS record says, up to a limit", () =>
    Effect.gen(function*() {
      for (
        const [name, size, records] of [
          ["many.example.org", undefined, 0],
          ["many.example.org", 1, 0],
          ["many.example.org", 512, 0],
          ["many.example.org", 800, 0],
          ["many.example.org", 1232, 25],
          ["many.example.org", 65_535, 25],
          ["most.example.org", 1232, 0],
          ["most.example.org", 65_535, 0],
          // Less than 512 means 512.
          ["www.example.org", 50, 2]
        ] as const
      ) {
        const answer = yield* ask(name, "A", size === undefined ? {} : { size })
        const which = `${name} ${size}`
        assert.strictEqual(answer.answers?.length, records, which)
        assert.strictEqual(answer.flag_tc, records === 0, which)
        assert.isAtMost(answer.bytes.length, Math.min(Math.max(size ?? 0, 512), maxUdpSize), which)
        // Who speaks EDNS is answered with it.
        assert.deepStrictEqual(typesOf(answer.additionals), size === undefined ? [] : ["OPT"], which)
      }
    }).pipe(Effect.provide(InMemory)))

  it.effect("sends an answer that fits to the byte, and not one that does not", () =>
    Effect.gen(function*() {
      const { bytes } = yield* ask("many.example.org", "A", { size: 1232 })
      assert.isFalse((yield* ask("many.example.org", "A", { size: bytes.length })).flag_tc)
      assert.isTrue((yield* ask("many.example.org", "A", { size: bytes.length - 1 })).flag_tc)
    }).pipe(Effect.provide(InMemory)))

  it.effect("knows one version of EDNS, and says so", () =>
    Effect.gen(function*() {
      const answer = yield* ask("www.example.org", "A", { size: 1232, version: 1 })
      assert.strictEqual(answer.rcode, 0)
      const [record] = answer.additionals ?? []
      assert.strictEqual(record?.type === "OPT" ? record.extendedRcode : undefined, 1)
      assert.deepStrictEqual(answer.answers, [])
    }).pipe(Effect.provide(InMemory)))

  it("is not made from a zone with an address that is none", () => {
    const broken = (records: Records): Zone => ({ ...zone, records: { "www.example.org": records } })
    assert.throws(
      () => dns(broken({ A: ["2001:db8::2"] })),
      "www.example.org: 2001:db8::2 is not an address of its kind"
    )
    assert.throws(() => dns(broken({ AAAA: ["nowhere"] })), "www.example.org: nowhere is not an address of its kind")
  })
})

const patched = (change: (packet: Buffer) => void) => {
  const packet = query("www.example.org", "A", { size: 1232 })
  change(packet)
  return packet
}

const malformed: Record<string, Uint8Array> = {
  "an id and a flag, and no more": Buffer.from([4, 210, 0]),
  "a header that is cut": query("www.example.org", "A").subarray(0, 11),
  "a header alone": Buffer.concat([query("www.example.org", "A").subarray(0, 12)]),
  "a question that is cut": query("www.example.org", "A").subarray(0, -1),
  "no question": Packet.encode({ type: "query", id: 1234 }),
  "two questions": Packet.encode({
    type: "query",
    id: 1234,
    questions: [{ name: "www.example.org", type: "A" }, { name: "example.org", type: "A" }]
  }),
  "an answer beside the question": Packet.encode({
    type: "query",
    id: 1234,
    questions: [{ name: "www.example.org", type: "A" }],
    answers: [{ name: "www.example.org", type: "A", data: "192.0.2.9" }]
  }),
  "two EDNS records": Packet.encode({
    type: "query",
    id: 1234,
    questions: [{ name: "www.example.org", type: "A" }],
    additionals: [edns(512), edns(1232)]
  }),
  "numbers that promise 65,535 questions": patched((packet) => packet.writeUInt16BE(65_535, 4)),
  "numbers that promise 65,535 more records": patched((packet) => packet.writeUInt16BE(65_535, 10)),
  "a label that goes beyond the end": patched((packet) => packet.writeUInt8(63, 12)),
  "a label of a kind that does not exist": patched((packet) => packet.writeUInt8(0x80, 12)),
  "a name that points at itself": patched((packet) => packet.writeUInt16BE(0xc00c, 12)),
  "a name that points into the header": patched((packet) => packet.writeUInt16BE(0xc004, 12)),
  "a name that points behind the end": patched((packet) => packet.writeUInt16BE(0xffff, 12)),
  "a label with a dot in it": patched((packet) => packet.write(".", 14)),
  "a label that is no text": patched((packet) => packet.writeUInt8(0xff, 14)),
  "an EDNS record that is longer than the packet": patched((packet) => packet.writeUInt16BE(500, packet.length - 2))
}

describe("a DNS server that is sent what is no question", () => {
  for (const [what, packet] of Object.entries(malformed)) {
    it.effect(`says so: ${what}`, () =>
      Effect.gen(function*() {
        const { bytes, id, rcode } = yield* exchange(packet)
        assert.deepStrictEqual([bytes.length, id, rcode], [12, 1234, Rcode.FORMERR])
      }).pipe(Effect.provide(InMemory)))
  }

  it.effect("says so of a packet that is too long", () =>
    Effect.gen(function*() {
      const { rcode } = yield* exchange(new Uint8Array(8193))
      assert.strictEqual(rcode, Rcode.FORMERR)
    }).pipe(Effect.provide(InMemory)))

  it.effect("is silent where there is no id, and to answers: nobody answers those", () =>
    Effect.gen(function*() {
      const { address, awaitIdle } = yield* Server.Server
      const client = yield* MemoryTransport.bindDatagram()
      const answer = Packet.encode({ type: "response", id: 1, questions: [{ name: "www.example.org", type: "A" }] })
      for (const packet of [[], [1], [1, 2], answer, [1, 2, 0x80]]) {
        yield* client.send(address, Uint8Array.from(packet))
      }
      yield* client.send(address, query("www.example.org", "A", { id: 99 }))
      assert.strictEqual(Packet.decode(Buffer.from((yield* client.receive).payload)).id, 99)
      yield* awaitIdle
    }).pipe(Effect.provide(InMemory)))

  it.effect("fails at none of 100,000 random and mutated packets, and answers the next good question", () => {
    const errors: Array<unknown> = []
    const Fuzzed = MemoryTransport.datagram().pipe(
      Dispatch.fiberPerRequest({ maxInFlight: 256 }),
      Server.serveDatagram(dns(zone), { onError: (cause) => Effect.sync(() => void errors.push(cause)) })
    )
    const random = randomOf(20_240_607)
    const below = (n: number) => Math.floor(random() * n)
    const noise = (length: number) => Uint8Array.from({ length }, () => below(256))
    const seeds = [
      query("www.example.org", "A"),
      query("www.example.org", "TXT", { size: 1232 }),
      query("many.example.org", "ANY", { size: 4096 }),
      query("nobody.example.org", "AAAA", { size: 512 }),
      ...Object.values(malformed).map((packet) => Buffer.from(packet)),
      // Every kind of record that the library reads, where a question has its EDNS record.
      ...[1, 2, 5, 6, 10, 12, 13, 15, 16, 17, 18, 28, 33, 35, 39, 41, 43, 44, 46, 47, 48, 50, 52, 257, 4711].map((
        type
      ) => patched((packet) => packet.writeUInt16BE(type, packet.length - 10)))
    ]
    const mutations: ReadonlyArray<(packet: Uint8Array) => Uint8Array> = [
      (packet) => {
        for (let n = below(8); n >= 0; n--) packet[below(packet.length)] = below(256)
        return packet
      },
      (packet) => {
        packet[below(packet.length)]! ^= 1 << below(8)
        return packet
      },
      (packet) => packet.subarray(0, below(packet.length + 1)),
      (packet) => Buffer.concat([packet, noise(below(40))]),
      (packet) => {
        const [from, to] = [below(packet.length), below(packet.length)]
        return Buffer.concat([packet.subarray(0, from), packet.subarray(to)])
      },
      () => noise(below(64)),
      // A header as it should be, and noise.
      (packet) => Buffer.concat([packet.subarray(0, 12), noise(below(200))])
    ]
    const next = () => {
      const packet = mutations[below(mutations.length)]!(Uint8Array.from(seeds[below(seeds.length)]!))
      // Most of what has an answer's bit would be thrown away at once.
      if (packet.length > 2 && below(8) > 0) packet[2]! &= 0x01
      return packet
    }
    return Effect.gen(function*() {
      const server = yield* Server.Server
      const client = yield* MemoryTransport.bindDatagram()
      const good = query("www.example.org", "AAAA", { id: 1 })
      const rcodes = new Map<number, number>()
      for (let batch = 0; batch < 200; batch++) {
        for (let n = 0; n < 500; n++) yield* client.send(server.address, next())
        // The answers come in the order of the questions: with this one, all others are there.
        yield* client.send(server.address, good)
        for (;;) {
          const bytes = Buffer.from((yield* client.receive).payload)
          const answer = Packet.decode(bytes)
          assert.isTrue(answer.flag_qr)
          assert.isAtMost(bytes.length, maxUdpSize)
          rcodes.set(bytes[3]! & 0xf, (rcodes.get(bytes[3]! & 0xf) ?? 0) + 1)
          if (answer.id === 1 && dataOf(answer)[0] === "2001:db8::2") break
        }
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(errors, [])
      const stats = yield* server.stats
      assert.deepStrictEqual([stats.accepted, stats.closed, stats.dropped], [100_200, { Completed: 100_200 }, 0])
      // The packets came far enough to be worth the time.
      for (const rcode of Object.values(Rcode)) assert.isAbove(rcodes.get(rcode) ?? 0, 100, `rcode ${rcode}`)
    }).pipe(Effect.provide(Fuzzed))
  }, 60_000)
})

describe("a DNS server over UDP", () => {
  it.live("answers a socket of Node's", () =>
    Effect.gen(function*() {
      const target = targetOf((yield* Server.Server).address)
      assert(!("path" in target))
      const client = yield* connectDatagram(target.host, target.port)
      yield* client.send(query("www.example.org", "A"))
      assert.deepStrictEqual(dataOf(Packet.decode(yield* client.receive)), ["192.0.2.2", "192.0.2.3"])
    }).pipe(Effect.provide(OverUdp)))

  it.live.skipIf(digMissing !== undefined)(
    `answers dig${digMissing === undefined ? "" : ` (${digMissing})`}`,
    () =>
      Effect.gen(function*() {
        const target = targetOf((yield* Server.Server).address)
        assert(!("path" in target))
        const dig = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
          const program = yield* start("dig", [
            `@${target.host}`,
            "-p",
            String(target.port),
            "+tries=1",
            "+time=15",
            ...args
          ])
          const lines = yield* program.rest
          assert.strictEqual(yield* program.exitCode, 0)
          return lines
        })
        const short = (...args: ReadonlyArray<string>) => dig("+short", ...args)
        assert.deepStrictEqual(yield* short("www.example.org", "A"), ["192.0.2.2", "192.0.2.3"])
        assert.deepStrictEqual(yield* short("www.example.org", "AAAA"), ["2001:db8::2"])
        assert.deepStrictEqual(yield* short("www.example.org", "TXT"), ["\"hello\"", "\"two words\""])

        const missing = (yield* dig("nobody.example.org", "A")).join("\n")
        assert.match(missing, /status: NXDOMAIN/)
        assert.match(missing, /flags: qr aa rd;/)
        assert.match(missing, /SOA\s+ns\.example\.org\. admin\.example\.org\. 7 1 2 3 60/)
        assert.notInclude(missing, "malformed")

        const small = (yield* dig("+ignore", "+bufsize=512", "many.example.org", "A")).join("\n")
        assert.match(small, /flags: qr aa tc rd; QUERY: 1, ANSWER: 0, /)
        const large = (yield* dig("+ignore", "+bufsize=1232", "many.example.org", "A")).join("\n")
        assert.match(large, /flags: qr aa rd; QUERY: 1, ANSWER: 25, /)
        assert.match(large, /EDNS: version: 0, flags:; udp: 1232/)
        const without = (yield* dig("+ignore", "+noedns", "many.example.org", "A")).join("\n")
        assert.match(without, /flags: qr aa tc rd; QUERY: 1, ANSWER: 0, AUTHORITY: 0, ADDITIONAL: 0/)
        const future = (yield* dig("+edns=1", "+noednsnegotiation", "www.example.org", "A")).join("\n")
        assert.match(future, /status: BADVERS/)
      }).pipe(Effect.provide(OverUdp))
  )

  it.live("runs by itself, and on SIGINT drains, reports, and exits with 0", () =>
    Effect.gen(function*() {
      const program = yield* startExample("dns", { PORT: "0" })
      const [, host, port] = /^dns: dig @(\S+) -p (\d+) www\.example\.org$/.exec(yield* program.line) ?? []
      const client = yield* connectDatagram(host!, Number(port))
      yield* client.send(query("www.example.org", "AAAA"))
      assert.deepStrictEqual(dataOf(Packet.decode(yield* client.receive)), ["2001:db8::2"])
      yield* program.signal("SIGINT")
      assert.match((yield* program.rest).join("\n"), /^dns: drained in \d+ ms; .*$/)
      assert.deepStrictEqual(yield* program.errors, [])
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
