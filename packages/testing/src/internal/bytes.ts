/** Test data: bytes whose position shows in their value, cut into pieces at random, and a comparison that is quick on megabytes. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"

/** `length` bytes of which no stretch repeats within 16 MiB, so that a lost, doubled or moved piece shows. */
export const pattern = (length: number, offset = 0): Uint8Array => {
  const words = new Uint32Array(Math.ceil(length / 4) + 1)
  // Multiplying by an odd number permutes the words: each stands for its position.
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(offset / 4 + i, 0x9e3779b1)
  return new Uint8Array(words.buffer, 0, length)
}

export const concat = (chunks: ReadonlyArray<Uint8Array>): Uint8Array => new Uint8Array(Buffer.concat(chunks))

export const assertSameBytes = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length, "number of bytes")
  if (Buffer.compare(actual, expected) === 0) return
  assert.fail(`the bytes differ from position ${expected.findIndex((byte, i) => byte !== actual[i])} on`)
}

/** Cuts into pieces of 1 byte to a third of the whole. The same cuts in every run. */
export const cutAtRandom = (bytes: Uint8Array): Effect.Effect<Array<Uint8Array>> =>
  Effect.gen(function*() {
    const pieces: Array<Uint8Array> = []
    let offset = 0
    while (offset < bytes.length) {
      const length = yield* Random.nextIntBetween(1, Math.ceil(bytes.length / 3) + 1)
      pieces.push(bytes.subarray(offset, offset + length))
      offset += length
    }
    return pieces
  }).pipe(Random.withSeed("cuts"))
