/** Headers of the PROXY protocol, built byte by byte, so that they can be wrong in every way. */
const encoder = new TextEncoder()
export const bytesOf = (bytes: Uint8Array | string): Uint8Array<ArrayBuffer> =>
  typeof bytes === "string" ? encoder.encode(bytes) : new Uint8Array(bytes)

export type Tlv = Uint8Array

export const tlv = (type: number, value: Uint8Array | string): Tlv => {
  const bytes = bytesOf(value)
  return Uint8Array.from([type, bytes.length >> 8, bytes.length & 255, ...bytes])
}

export const header2 = ({ block = new Uint8Array(0), command = 1, family, tlvs = [], version = 2 }: {
  readonly version?: number
  readonly command?: number
  readonly family: number
  readonly block?: Uint8Array
  readonly tlvs?: ReadonlyArray<Tlv>
}): Uint8Array<ArrayBuffer> => {
  const rest = [...block, ...tlvs.flatMap((bytes) => [...bytes])]
  return Uint8Array.from([
    ...bytesOf("\r\n\r\n\0\r\nQUIT\n"),
    version << 4 | command,
    family,
    rest.length >> 8,
    rest.length & 255,
    ...rest
  ])
}

/** CRC32C bit by bit, as RFC 3720 defines it. */
export const crc = (bytes: Uint8Array): number => {
  let value = 0xffffffff
  for (const byte of bytes) {
    value ^= byte
    for (let bit = 0; bit < 8; bit++) value = (value & 1) === 1 ? value >>> 1 ^ 0x82f63b78 : value >>> 1
  }
  return ~value >>> 0
}
