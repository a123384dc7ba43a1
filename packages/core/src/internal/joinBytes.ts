/** Chunks of output behind each other, as bytes; strings are UTF-8. Text that is nothing but text is encoded in one go. */
const encoder = new TextEncoder()

export const joinBytes = (chunks: ReadonlyArray<Uint8Array | string>): Uint8Array => {
  const bytes = chunks.every((chunk) => typeof chunk === "string")
    ? [encoder.encode(chunks.join(""))]
    : chunks.map((chunk) => typeof chunk === "string" ? encoder.encode(chunk) : chunk)
  if (bytes.length === 1) return bytes[0]!
  const joined = new Uint8Array(bytes.reduce((length, chunk) => length + chunk.length, 0))
  let offset = 0
  for (const chunk of bytes) {
    joined.set(chunk, offset)
    offset += chunk.length
  }
  return joined
}
