/**
 * Thumbnails: a client sends a PNG and finishes, and a smaller PNG comes back. What strangers send is decoded in a process of
 * its own. What can be known beforehand is refused beforehand, such as a small file that claims to be a large image; where a
 * file gets the better of the decoder all the same, its process is what ends, and the next client gets another one.
 *
 * `nc -N 127.0.0.1 7015 <photo.png >thumbnail.png`
 */
import { type Connection, Handler, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Data, Effect } from "effect"
import type { NetAddress } from "effect/net"
import { PNG } from "pngjs"
import { isMain, netcat, runServer } from "./run.ts"

/** A thumbnail fits into a square of this side. */
export const side = 128
export const maxBytes = 8 * 1024 * 1024
/** 4096 × 4096: 64 MiB once they are decoded. */
export const maxPixels = 4096 * 4096

/** The message is for the client. */
class BadImage extends Data.TaggedError("BadImage")<{ readonly message: string }> {}

const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])
/** Length and name of the first chunk: "every PNG begins with an IHDR of 13 bytes". */
const headerBegin = Buffer.from("\0\0\0\rIHDR", "latin1")

/**
 * Looks at what the image claims to be, before anything is decoded: the decoder takes memory for what the header says. It
 * also takes a second header, and the memory for that one; and of an interlaced image all that its data inflates to.
 */
const checkHeader = (bytes: Buffer): BadImage | undefined => {
  if (!bytes.subarray(0, 8).equals(signature)) return new BadImage({ message: "this is not a PNG" })
  if (!bytes.subarray(8, 16).equals(headerBegin) || bytes.length < 33) {
    return new BadImage({ message: "the PNG has no header" })
  }
  const width = bytes.readUInt32BE(16)
  const height = bytes.readUInt32BE(20)
  if (width === 0 || height === 0) return new BadImage({ message: "the image has no pixels" })
  if (width * height > maxPixels) {
    return new BadImage({ message: `the image has ${width} × ${height} pixels, and may have ${maxPixels} in all` })
  }
  if (bytes[28] !== 0) return new BadImage({ message: "the image is interlaced: save it without that" })
  // Of each chunk its length, its name, its data, and a checksum.
  for (let at = 33; at + 8 <= bytes.length; at += 12 + bytes.readUInt32BE(at)) {
    if (bytes.toString("latin1", at + 4, at + 8) === "IHDR") {
      return new BadImage({ message: "the PNG has two headers" })
    }
  }
  return undefined
}

/** Each pixel of the result is the mean of the pixels that it stands for, and those that are transparent count less. */
const shrink = ({ data, height, width }: PNG): PNG => {
  const scale = Math.max(width, height, side) / side
  const small = new PNG({
    width: Math.max(1, Math.round(width / scale)),
    height: Math.max(1, Math.round(height / scale))
  })
  for (let y = 0; y < small.height; y++) {
    const top = Math.floor(y * height / small.height)
    const bottom = Math.floor((y + 1) * height / small.height)
    for (let x = 0; x < small.width; x++) {
      const left = Math.floor(x * width / small.width)
      const right = Math.floor((x + 1) * width / small.width)
      let [red, green, blue, opacity] = [0, 0, 0, 0]
      for (let row = top; row < bottom; row++) {
        for (let at = 4 * (row * width + left); at < 4 * (row * width + right); at += 4) {
          const alpha = data[at + 3]!
          red += data[at]! * alpha
          green += data[at + 1]! * alpha
          blue += data[at + 2]! * alpha
          opacity += alpha
        }
      }
      const at = 4 * (y * small.width + x)
      if (opacity > 0) {
        small.data[at] = Math.round(red / opacity)
        small.data[at + 1] = Math.round(green / opacity)
        small.data[at + 2] = Math.round(blue / opacity)
      }
      small.data[at + 3] = Math.round(opacity / ((bottom - top) * (right - left)))
    }
  }
  return small
}

const shrinkBytes = Effect.fnUntraced(function*(bytes: Buffer) {
  const refusal = checkHeader(bytes)
  if (refusal !== undefined) return yield* refusal
  return yield* Effect.try({
    try: () => PNG.sync.write(shrink(PNG.sync.read(bytes))),
    catch: () => new BadImage({ message: "the PNG cannot be read: it is damaged, or of a kind that is not known here" })
  })
})

export const thumbnail = Handler.portable(
  import.meta.url,
  "thumbnail",
  (connection: Connection.Connection) =>
    connection.readAll({ maxLength: maxBytes }).pipe(
      Effect.flatMap((bytes) => shrinkBytes(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length))),
      Effect.flatMap((png) => connection.write(png)),
      Effect.catchTag("BadImage", ({ message }) => connection.write(`ERROR ${message}\n`)),
      Effect.catchReason(
        "ConnectionError",
        "LimitExceeded",
        ({ limit }) => connection.write(`ERROR an image has at most ${limit} bytes\n`)
      )
    )
)

export const Thumbnail = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    NodeDispatch.workerPerRequest({
      kind: "process",
      timeout: "20 seconds",
      // Pixels are not in this heap; what a decoder builds besides is.
      resourceLimits: { maxOldGenerationSizeMb: 64 }
    }),
    Server.serveStream(thumbnail, { idleTimeout: "5 seconds" })
  )

/** As `netcat` has it, with files; `-N` says that the image is complete. */
const client = (address: NetAddress.SocketAddress): string =>
  `${netcat(address).replace(/^nc/, "nc -N")} <photo.png >thumbnail.png`

if (isMain(import.meta)) runServer("thumbnail", 7015, Thumbnail, client)
