/**
 * Headers of the PROXY protocol, from bytes. One look at what has come so far, again whenever more has: nothing is parsed
 * before all of it is there, and what "all" is, is known and bounded from the first 16 bytes on.
 */
import * as NetAddress from "effect/net/NetAddress"
import * as Result from "effect/Result"
import type { Decoded, Header, Ssl, Tlv } from "../ProxyProtocol.ts"

export interface Failure {
  readonly reason: "Invalid" | "TooLong"
  readonly detail: string
}

const invalid = (detail: string) => Result.fail<Failure>({ reason: "Invalid", detail })
const incomplete = Result.succeed<Decoded>({ _tag: "Incomplete" })
const none = Result.succeed<Decoded>({ _tag: "None" })
const found = (header: Header, length: number) => Result.succeed<Decoded>({ _tag: "Header", header, length })

const signature1 = new TextEncoder().encode("PROXY ")
const signature2 = Uint8Array.of(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a)

export const decode = (bytes: Uint8Array, maxLength: number): Result.Result<Decoded, Failure> => {
  if (bytes.length === 0) return incomplete
  const signature = bytes[0] === signature1[0] ? signature1 : signature2
  const length = Math.min(bytes.length, signature.length)
  for (let i = 0; i < length; i++) if (bytes[i] !== signature[i]) return none
  if (length < signature.length) return incomplete
  return signature === signature1 ? decode1(bytes) : decode2(bytes, maxLength)
}

const nothing = {
  source: undefined,
  destination: undefined,
  transport: undefined,
  authority: undefined,
  alpn: undefined,
  uniqueId: undefined,
  netns: undefined,
  ssl: undefined,
  tlvs: []
}

// ---- version 1: a line

const maxLine = 107
const CR = 0x0d
const LF = 0x0a

const decode1 = (bytes: Uint8Array): Result.Result<Decoded, Failure> => {
  const end = Math.min(bytes.length, maxLine)
  let at = signature1.length
  while (at < end && bytes[at] !== CR && bytes[at] !== LF) at++
  if (at === maxLine) return invalid(`a line of version 1 has at most ${maxLine} bytes`)
  if (at === end) return incomplete
  if (bytes[at] === LF) return invalid("a line of version 1 ends with CR LF, not with LF alone")
  if (at + 1 === maxLine) return invalid(`a line of version 1 has at most ${maxLine} bytes`)
  if (at + 1 === end) return incomplete
  if (bytes[at + 1] !== LF) return invalid("a line of version 1 ends with CR LF, not with CR alone")
  const text = String.fromCharCode(...bytes.subarray(signature1.length, at))
  const words = text.split(" ")
  if (words[0] === "UNKNOWN") return found({ version: 1, command: "proxy", ...nothing }, at + 2)
  const parse = words[0] === "TCP4"
    ? NetAddress.ipv4FromString
    : words[0] === "TCP6"
    ? NetAddress.ipv6FromString
    : undefined
  if (parse === undefined) return invalid("version 1 knows TCP4, TCP6 and UNKNOWN")
  const source = parseAddress(parse, words[1], words[3])
  const destination = parseAddress(parse, words[2], words[4])
  if (source === undefined || destination === undefined || words.length !== 5) {
    return invalid(`${words[0]} is followed by two addresses and two ports, with one space before each`)
  }
  return found({ version: 1, command: "proxy", ...nothing, source, destination, transport: "stream" }, at + 2)
}

const parseAddress = (
  parse: (text: string) => Result.Result<NetAddress.IpAddress, unknown>,
  host = "",
  port = ""
): NetAddress.InetAddress | undefined => {
  const address = parse(host)
  if (Result.isFailure(address) || !/^(0|[1-9]\d{0,4})$/.test(port) || Number(port) > 65_535) return undefined
  return inet(address.success, Number(port))
}

/** As everywhere here, an IPv4 address that is written as IPv6 is an IPv4 address. */
const inet = (address: NetAddress.IpAddress, port: number): NetAddress.InetAddress =>
  NetAddress.toCanonical(NetAddress.inetAddressUnsafe(address, port))

// ---- version 2: binary

const fixed = 16
/** By address family: how many bytes one address has, and both addresses with their ports. */
const families: ReadonlyArray<{ readonly address: number; readonly block: number }> = [
  { address: 0, block: 0 },
  { address: 4, block: 12 },
  { address: 16, block: 36 },
  { address: 108, block: 216 }
]

const decode2 = (bytes: Uint8Array, maxLength: number): Result.Result<Decoded, Failure> => {
  if (bytes.length > 12 && bytes[12]! >> 4 !== 2) return invalid(`there is no version ${bytes[12]! >> 4}`)
  if (bytes.length < fixed) return incomplete
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const length = fixed + view.getUint16(14)
  if (length > maxLength) {
    return Result.fail<Failure>({
      reason: "TooLong",
      detail: `a header of ${length} bytes, more than ${maxLength}; raise \`maxLength\` if that is legitimate`
    })
  }
  const command = bytes[12]! & 0xf
  const family = bytes[13]! >> 4
  const transport = bytes[13]! & 0xf
  if (command > 1) return invalid(`there is no command ${command}`)
  if (family > 3 || transport > 2) return invalid(`there is no address family or transport 0x${hex(bytes[13]!)}`)
  const { address, block } = families[family]!
  // Of what is said of no address, nothing is believed. A proxy that speaks for itself need not even fill in the family.
  const isBare = command === 0 || family === 0 || transport === 0
  if (!isBare && length < fixed + block) return invalid(`${length - fixed} bytes are too few for two addresses`)
  if (bytes.length < length) return incomplete
  if (isBare) return found({ version: 2, command: command === 0 ? "local" : "proxy", ...nothing }, length)

  const at = (index: number) => bytes.subarray(fixed + index * address, fixed + (index + 1) * address)
  const addressAt = (index: number): NetAddress.SocketAddress => {
    if (family === 3) return NetAddress.unixPathAddress(pathOf(at(index)))
    const ip = family === 1 ? NetAddress.ipv4FromBytesUnsafe(at(index)) : NetAddress.ipv6FromBytesUnsafe(at(index))
    return inet(ip, view.getUint16(fixed + 2 * address + 2 * index))
  }
  const tlvs = decodeTlvs(bytes.subarray(fixed + block, length))
  if (tlvs === undefined) return invalid("what follows the addresses is cut off")
  let ssl: Ssl | undefined
  let isChecked = false
  for (const { type, value } of tlvs) {
    if (type === typeOf.crc32c) {
      if (value.length !== 4) return invalid("a CRC32C has 4 bytes")
      // Each costs a look at the whole header.
      if (isChecked) return invalid("there is one checksum at most")
      isChecked = true
      const expected = (value[0]! << 24 | value[1]! << 16 | value[2]! << 8 | value[3]!) >>> 0
      const start = value.byteOffset - bytes.byteOffset
      if (crc32c(bytes.subarray(0, length), start) !== expected) return invalid("the checksum is wrong")
    } else if (type === typeOf.uniqueId && value.length > 128) {
      return invalid("a unique id has at most 128 bytes")
    } else if (type === typeOf.ssl) {
      ssl = decodeSsl(value)
      if (ssl === undefined) return invalid("what it says about TLS is cut off")
    }
  }
  const kept = tlvs.filter(({ type }) => type !== typeOf.noop).map(own)
  return found({
    version: 2,
    command: "proxy",
    source: addressAt(0),
    destination: addressAt(1),
    transport: transport === 1 ? "stream" : "datagram",
    authority: textOf(kept, typeOf.authority),
    alpn: textOf(kept, typeOf.alpn),
    uniqueId: valueOf(kept, typeOf.uniqueId),
    netns: textOf(kept, typeOf.netns),
    ssl,
    tlvs: kept
  }, length)
}

const hex = (byte: number) => byte.toString(16).padStart(2, "0")

const typeOf = {
  alpn: 0x01,
  authority: 0x02,
  crc32c: 0x03,
  noop: 0x04,
  uniqueId: 0x05,
  ssl: 0x20,
  sslVersion: 0x21,
  sslCommonName: 0x22,
  sslCipher: 0x23,
  sslSignatureAlgorithm: 0x24,
  sslKeyAlgorithm: 0x25,
  netns: 0x30
} as const

/** Views into `bytes`; `undefined` where the last one is cut off. */
const decodeTlvs = (bytes: Uint8Array): ReadonlyArray<Tlv> | undefined => {
  const tlvs: Array<Tlv> = []
  let at = 0
  while (at < bytes.length) {
    if (at + 3 > bytes.length) return undefined
    const end = at + 3 + (bytes[at + 1]! << 8 | bytes[at + 2]!)
    if (end > bytes.length) return undefined
    tlvs.push({ type: bytes[at]!, value: bytes.subarray(at + 3, end) })
    at = end
  }
  return tlvs
}

const own = ({ type, value }: Tlv): Tlv => ({ type, value: new Uint8Array(value) })

const valueOf = (tlvs: ReadonlyArray<Tlv>, type: number): Uint8Array | undefined =>
  tlvs.find((tlv) => tlv.type === type)?.value

const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

const textOf = (tlvs: ReadonlyArray<Tlv>, type: number): string | undefined => {
  const value = valueOf(tlvs, type)
  return value === undefined ? undefined : decoder.decode(value)
}

const decodeSsl = (bytes: Uint8Array): Ssl | undefined => {
  const tlvs = bytes.length < 5 ? undefined : decodeTlvs(bytes.subarray(5))?.map(own)
  if (tlvs === undefined) return undefined
  const client = bytes[0]!
  const certificate = (client & 2) !== 0 ? "connection" : (client & 4) !== 0 ? "session" : undefined
  return {
    used: (client & 1) !== 0,
    certificate,
    // Zero says "verified" also where there was nothing to verify.
    verified: certificate !== undefined && bytes.subarray(1, 5).every((byte) => byte === 0),
    version: textOf(tlvs, typeOf.sslVersion),
    commonName: textOf(tlvs, typeOf.sslCommonName),
    cipher: textOf(tlvs, typeOf.sslCipher),
    signatureAlgorithm: textOf(tlvs, typeOf.sslSignatureAlgorithm),
    keyAlgorithm: textOf(tlvs, typeOf.sslKeyAlgorithm),
    tlvs
  }
}

/** Up to its NUL; an abstract name begins with one, and goes up to the padding. */
const pathOf = (bytes: Uint8Array): string => {
  let end = 0
  if (bytes[0] === 0) { for (end = bytes.length; end > 0 && bytes[end - 1] === 0;) end-- }
  else while (end < bytes.length && bytes[end] !== 0) end++
  return decoder.decode(bytes.subarray(0, end))
}

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? crc >>> 1 ^ 0x82f63b78 : crc >>> 1
  return crc
})

/** Of a header whose checksum, 4 bytes from `zeroes` on, counts as zeroes (RFC 4960, appendix B). */
const crc32c = (bytes: Uint8Array, zeroes: number): number => {
  let crc = 0xffffffff
  for (let i = 0; i < bytes.length; i++) {
    const byte = i >= zeroes && i < zeroes + 4 ? 0 : bytes[i]!
    crc = crcTable[(crc ^ byte) & 0xff]! ^ crc >>> 8
  }
  return (crc ^ 0xffffffff) >>> 0
}
