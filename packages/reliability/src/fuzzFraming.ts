/**
 * Framings: what is found in a stream of bytes must be the same however it is cut, within its bound, and itself again when it is
 * written and read. An input says which framing, how the bytes are cut, and the bytes.
 */
import { type FrameError, Framing } from "@socketserver/core"
import { inspect } from "node:util"
import { proofOf } from "./fuzzing.ts"

const maxLength = 40

const framings: ReadonlyArray<Framing.Framing<string> | Framing.Framing<Uint8Array>> = [
  Framing.lines({ maxLength }),
  Framing.delimiter("\r\n", { maxLength }),
  Framing.delimiter("aab", { maxLength }),
  Framing.fixed(7),
  Framing.lengthPrefixed({ bytes: 1, maxLength }),
  Framing.lengthPrefixed({ bytes: 2, maxLength }),
  Framing.lengthPrefixed({ bytes: 4, maxLength, endian: "little" }),
  Framing.lengthPrefixed({ bytes: "varint", maxLength }),
  Framing.netstring({ maxLength }),
  Framing.whole({ maxLength })
]

const parts = ["\n", "\r\n", "\r", "a", "aab", "é", "😀", "3:abc,", "0:,", "40:", "\0", "\u0001x", "\u0002"]
  .map((text) => new TextEncoder().encode(text))

const isError = (value: unknown): value is FrameError.FrameError =>
  typeof value === "object" && value !== null && "_tag" in value

/** All that comes of these pieces: messages, and at the end an error if there is one. */
const read = (
  framing: Framing.Framing<any>,
  pieces: ReadonlyArray<Uint8Array>
): { readonly messages: ReadonlyArray<string | Uint8Array>; readonly error: string | undefined } => {
  const reader = Framing.reader(framing)
  const messages: Array<string | Uint8Array> = []
  const drain = (next: () => unknown): string | undefined => {
    for (let turns = 0; turns < 10_000; turns++) {
      const found = next()
      if (found === undefined) return undefined
      if (isError(found)) return found.reason._tag
      messages.push(found as string | Uint8Array)
    }
    return "no end of it"
  }
  for (const piece of pieces) {
    reader.push(new Uint8Array(piece))
    const error = drain(() => reader.next())
    if (error !== undefined) return { messages, error }
  }
  return { messages, error: drain(() => reader.next() ?? reader.end()) }
}

const written = (framing: Framing.Framing<any>, message: string | Uint8Array): Uint8Array | undefined => {
  try {
    const frame = framing.messages.encode(message)
    return typeof frame === "string" ? new TextEncoder().encode(frame) : frame
  } catch (error) {
    if (isError(error) && error.reason._tag === "Unencodable") return undefined
    throw error
  }
}

export const fuzzFraming = proofOf({
  name: "fuzz-framing",
  claim: "framings find the same messages however the bytes are cut, and write what they read",
  short: 5_000,
  lanes: 1,
  generate: (random) => {
    const sizes = random.integer(10)
    const input = [
      random.integer(256),
      sizes,
      ...Array.from({ length: sizes }, () => random.integer(random.pick([2, 5, 40])))
    ]
    for (let left = random.integer(60); left > 0; left--) {
      if (random.chance(0.7)) input.push(...random.pick(parts))
      else input.push(random.integer(random.pick([8, 64, 256])))
    }
    return Uint8Array.from(input)
  },
  start: async () => ({
    run: (input) => {
      const framing = framings[(input[0] ?? 0) % framings.length]!
      const count = (input[1] ?? 0) % 10
      const content = input.subarray(2 + count)
      const pieces: Array<Uint8Array> = []
      let from = 0
      for (const size of input.subarray(2, 2 + count)) pieces.push(content.subarray(from, from += size))
      pieces.push(content.subarray(from))
      const whole = read(framing, [content])
      const cut = read(framing, pieces)
      const bytewise = read(framing, Array.from(content, (byte) => Uint8Array.of(byte)))
      for (const other of [cut, bytewise]) {
        if (inspect(other) !== inspect(whole)) {
          return `${framing.name}: in one piece ${inspect(whole)}, cut ${inspect(other)}`
        }
      }
      for (const message of whole.messages) {
        if (Buffer.byteLength(message) > maxLength && typeof message !== "string") {
          return `${framing.name}: a message of ${message.length} bytes`
        }
        const frame = written(framing, message)
        if (frame === undefined) continue
        const again = read(framing, [frame])
        if (inspect(again) !== inspect({ messages: [message], error: undefined }) && typeof message !== "string") {
          return `${framing.name}: ${inspect(message)} was written, and read as ${inspect(again)}`
        }
      }
      return undefined
    },
    end: async () => {}
  })
})
