/**
 * Headers of the PROXY protocol, right ones, wrong ones and noise. What is made of a beginning must not change when more comes:
 * first it is incomplete, then it is what it is. A right line is a header of its length. A header lies within what has come and
 * within its bound, and shares no memory with it.
 */
import { ProxyProtocol } from "@socketserver/core"
import * as Result from "effect/Result"
import { inspect } from "node:util"
import { proofOf } from "./fuzzing.ts"
import type { Random } from "./random.ts"

const encoder = new TextEncoder()
const signature2 = encoder.encode("\r\n\r\n\0\r\nQUIT\n")
const maxLength = 1_024

/** The last one is longer than a line may be. */
const lines = [
  "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
  "PROXY TCP6 2001:db8::1 ::ffff:198.51.100.1 65535 0\r\n",
  "PROXY UNKNOWN\r\n",
  "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
  `PROXY UNKNOWN ${"x".repeat(110)}\r\n`
].map((line) => encoder.encode(line))

const tlv = (random: Random): ReadonlyArray<number> => {
  const type = random.pick([0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x21, 0x22, 0x30, 0xe0, random.integer(256)])
  // An SSL one has others inside.
  const value = type === 0x20
    ? [...random.bytes(5), ...(random.chance(0.5) ? tlv(random) : [])]
    : [...random.bytes(random.pick([0, 1, 4, 4, 20, 130, 300]))]
  return [type, value.length >> 8, value.length & 255, ...value]
}

const header2 = (random: Random): Uint8Array => {
  const family = random.integer(4)
  const content = [...random.bytes([0, 12, 36, 216][family]!)]
  for (let tlvs = random.integer(5); tlvs > 0; tlvs--) content.push(...tlv(random))
  const length = random.chance(0.9) ? content.length : random.integer(65_536)
  return Uint8Array.from([
    ...signature2,
    0x20 | random.integer(2),
    family << 4 | random.integer(3),
    length >> 8,
    length & 255,
    ...content
  ])
}

const mutate = (random: Random, header: Uint8Array): Uint8Array => {
  const bytes = [...header]
  for (let changes = random.integer(3); changes > 0; changes--) {
    const at = random.integer(random.chance(0.5) ? bytes.length : Math.min(bytes.length, 20))
    if (random.chance(0.6)) bytes[at] = random.integer(256)
    else if (random.chance(0.5)) bytes.splice(at, random.integer(4))
    else bytes.splice(at, 0, ...random.bytes(random.integer(4)))
  }
  return Uint8Array.from(bytes)
}

const outcomeOf = (bytes: Uint8Array): { readonly text: string; readonly length: number } => {
  const mine = new Uint8Array(bytes)
  const result = ProxyProtocol.decode(mine, { maxLength })
  const show = () =>
    Result.isFailure(result) ? `failure ${result.failure.reason}` : inspect(result.success, { depth: null })
  const text = show()
  mine.fill(0x21)
  if (show() !== text) throw new Error("what was decoded shares memory with the input")
  return {
    text,
    length: Result.isSuccess(result) && result.success._tag === "Header" ? result.success.length : 0
  }
}

export const fuzzProxy = proofOf({
  name: "fuzz-proxy",
  claim: "headers of the PROXY protocol are read the same however they come, or refused",
  short: 5_000,
  lanes: 1,
  generate: (random) => {
    const header = random.chance(0.05)
      ? random.bytes(random.integer(300))
      : mutate(random, random.chance(0.4) ? random.pick(lines) : header2(random))
    return Buffer.concat([header, random.bytes(random.integer(30))])
  },
  start: async () => ({
    run: (input) => {
      let decided: string | undefined
      // Every beginning of what is short, and some of what is long.
      const step = Math.max(1, Math.floor(input.length / 40))
      for (let end = 0; end < input.length + step; end += step) {
        const beginning = input.subarray(0, end)
        const { length, text } = outcomeOf(beginning)
        if (decided !== undefined && text !== decided) {
          return `of ${end - step} bytes it was ${decided}, of ${end} it is ${text}`
        }
        if (length > beginning.length || length > maxLength) return `a header of ${length} bytes in ${end}`
        if (!text.includes("Incomplete")) decided = text
        else if (beginning.length >= maxLength) return `of ${beginning.length} bytes it is still incomplete`
      }
      const line = lines.slice(0, -1).find((line) => line.every((byte, at) => input[at] === byte))
      const { length } = outcomeOf(input)
      return line === undefined || length === line.length ? undefined : `a line is a header of ${length} bytes`
    },
    end: async () => {}
  })
})
