/**
 * An authoritative DNS server for one zone, which is data. Every packet is read by a library that throws at what it cannot
 * read; the handler makes an answer of that too, so whatever is sent to it, it does not fail. Try
 * `dig @127.0.0.1 -p 5300 www.example.org`.
 */
import { type Datagram, type DatagramTransport, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Packet from "dns-packet"
import { Effect, type Layer } from "effect"
import { NetAddress } from "effect/net"
import { isIPv4, isIPv6 } from "node:net"
import { isMain, netcat, runServer } from "./run.ts"

export interface Records {
  readonly A?: ReadonlyArray<string>
  readonly AAAA?: ReadonlyArray<string>
  readonly TXT?: ReadonlyArray<string>
}

export interface Zone {
  readonly name: string
  /** In seconds. */
  readonly ttl: number
  /** What resolvers are told with every "no", and how long they may remember that: `minimum`. */
  readonly soa: Readonly<Packet.SoaData>
  /** By full name, without the dot at the end. */
  readonly records: Readonly<Record<string, Records>>
}

export const Rcode = { NOERROR: 0, FORMERR: 1, NXDOMAIN: 3, NOTIMP: 4, REFUSED: 5 } as const

/** The most that is sent at once, whatever a client takes: larger packets are cut to pieces on the way, and get lost. */
export const maxUdpSize = 1232

/** The sets of records of each name. Names that only others are below have none, but they exist. */
const tableOf = ({ name: zoneName, records, soa }: Zone) => {
  const table = new Map<string, Map<string, ReadonlyArray<unknown>>>()
  for (const [name, { A = [], AAAA = [], TXT = [] }] of Object.entries<Records>({ [zoneName]: {}, ...records })) {
    // The library would send something else.
    const wrong = A.find((address) => !isIPv4(address)) ?? AAAA.find((address) => !isIPv6(address))
    if (wrong !== undefined) throw new Error(`${name}: ${wrong} is not an address of its kind`)
    // A text is sent in pieces of up to 255 bytes.
    const texts = TXT.map((text) => {
      const bytes = Buffer.from(text)
      return Array.from(
        { length: Math.ceil(bytes.length / 255) || 1 },
        (_, n) => bytes.subarray(n * 255, n * 255 + 255)
      )
    })
    const sets = Object.entries({ A, AAAA, TXT: texts, SOA: name === zoneName ? [soa] : [] })
    table.set(name.toLowerCase(), new Map(sets.filter(([, set]) => set.length > 0)))
  }
  for (const name of table.keys()) {
    for (let above = name; above.includes("."); above = above.slice(above.indexOf(".") + 1)) {
      if (!table.has(above)) table.set(above, new Map())
    }
  }
  return table
}

/** The question, and the client's EDNS record; `undefined` if there is no making sense of the packet. */
const parse = (query: Buffer) => {
  if (query.length < 12) return undefined
  // One question, no answers, and little beside it: what the numbers announce, the library would try to read.
  if (query.readUInt16BE(4) !== 1 || query.readUInt32BE(6) !== 0 || query.readUInt16BE(10) > 2) return undefined
  try {
    const { additionals = [], questions = [] } = Packet.decode(query)
    // Names are bytes, and the library makes text of them. One that would come back as another is not for this server.
    const question = Packet.encode({ questions }).subarray(12)
    if (!query.subarray(12, 12 + question.length).equals(question)) return undefined
    const edns = additionals.filter((record) => record.type === "OPT")
    return edns.length > 1 ? undefined : { question: questions[0]!, edns: edns[0] }
  } catch {
    return undefined
  }
}

/** What to answer: one packet, or nothing. */
const answerTo = (zone: Zone) => {
  const table = tableOf(zone)
  const zoneName = zone.name.toLowerCase()

  const record = (name: string, type: string) => (data: unknown) =>
    // The table's data is of the table's type; the compiler knows only the two together.
    ({ name, type, ttl: zone.ttl, data }) as Packet.Answer
  const no = [record(zone.name, "SOA")(zone.soa)]

  const lookUp = ({ class: space, name, type }: Packet.Question) => {
    const key = name.toLowerCase()
    const inZone = key === zoneName || key.endsWith(`.${zoneName}`)
    if (!inZone || space !== "IN") return { rcode: Rcode.REFUSED }
    const sets = table.get(key)
    if (sets === undefined) return { rcode: Rcode.NXDOMAIN, flags: Packet.AUTHORITATIVE_ANSWER, authorities: no }
    // Who asks for anything gets something (RFC 8482).
    const asked = (type as string) === "ANY" ? [...sets.keys()][0] ?? type : type
    const answers = (sets.get(asked) ?? []).map(record(name, asked))
    return {
      rcode: Rcode.NOERROR,
      flags: Packet.AUTHORITATIVE_ANSWER,
      answers,
      authorities: answers.length === 0 ? no : []
    }
  }

  return (query: Buffer): Buffer | undefined => {
    // Without an id nobody knows what it would be the answer to. The byte after it tells answers from questions; a server
    // that answers answers can be made to talk with another one for ever.
    if (query.length < 3 || (query[2]! & 0x80) !== 0) return undefined
    const id = query.readUInt16BE(0)
    // The opcode, and whether recursion is desired, go back as they came.
    const echoed = (query[2]! & 0x79) << 8
    const failed = (rcode: number) => Packet.encode({ type: "response", id, flags: echoed | rcode })
    if (query.length >= 12 && (query[2]! & 0x78) !== 0) return failed(Rcode.NOTIMP)
    const parsed = parse(query)
    if (parsed === undefined) return failed(Rcode.FORMERR)

    const { edns, question } = parsed
    const encode = (
      { flags = 0, rcode, ...sections }: Packet.Packet & { readonly rcode: number },
      extendedRcode: number = 0
    ) =>
      Packet.encode({
        type: "response",
        id,
        flags: echoed | flags | rcode,
        questions: [question],
        ...sections,
        additionals: edns === undefined ? [] : [{
          type: "OPT",
          name: ".",
          udpPayloadSize: maxUdpSize,
          extendedRcode,
          ednsVersion: 0,
          flags: 0,
          flag_do: false,
          options: []
        }]
      })
    // BADVERS, 16, does not fit into a header: its upper bits are in the EDNS record.
    if (edns !== undefined && edns.ednsVersion !== 0) return encode({ rcode: 0 }, 1)
    const found = lookUp(question)
    const whole = encode(found)
    const fits = Math.min(Math.max(edns?.udpPayloadSize ?? 0, 512), maxUdpSize)
    if (whole.length <= fits) return whole
    return encode({ rcode: found.rcode, flags: Packet.AUTHORITATIVE_ANSWER | Packet.TRUNCATED_RESPONSE })
  }
}

export const dns = (zone: Zone) => {
  const answer = answerTo(zone)
  return ({ payload, reply }: Datagram.Datagram) => {
    const packet = answer(Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength))
    return packet === undefined ? Effect.void : reply(packet)
  }
}

export const Dns = (zone: Zone, transport: Layer.Layer<DatagramTransport.DatagramTransport>) =>
  transport.pipe(
    Dispatch.fiberPerRequest({ maxInFlight: 256 }),
    Server.serveDatagram(dns(zone))
  )

export const example: Zone = {
  name: "example.org",
  ttl: 300,
  soa: {
    mname: "ns.example.org",
    rname: "hostmaster.example.org",
    serial: 1,
    refresh: 3600,
    retry: 600,
    expire: 86_400,
    minimum: 60
  },
  records: {
    "example.org": { A: ["192.0.2.1"], TXT: ["v=spf1 -all"] },
    "www.example.org": { A: ["192.0.2.2", "192.0.2.3"], AAAA: ["2001:db8::2"] }
  }
}

if (isMain(import.meta)) {
  runServer(
    "dns",
    5300,
    (port) => Dns(example, NodeTransport.udp({ host: "127.0.0.1", port })),
    (address) =>
      NetAddress.isUnixPathAddress(address)
        ? netcat(address)
        : `dig @${NetAddress.formatHost(address)} -p ${address.port} www.example.org`
  )
}
