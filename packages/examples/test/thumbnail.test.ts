/**
 * The thumbnail server: images that Python has made, thumbnails that Python reads, and files that are none, lie, or bring the
 * decoder down.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { Effect, Fiber, Stream } from "effect"
import type { NetAddress } from "effect/net"
import { spawn, spawnSync } from "node:child_process"
import * as Net from "node:net"
import { fileURLToPath } from "node:url"
import { crc32, deflateSync } from "node:zlib"
import { maxBytes, side, Thumbnail } from "../src/thumbnail.ts"
import { netcatMissing, pythonMissing, startExample, type Target, targetOf } from "./utils.ts"

const Live = Thumbnail(0)

// ---- images

const chunk = (name: string, data: Uint8Array): Buffer => {
  const named = Buffer.concat([Buffer.from(name, "latin1"), data])
  const [length, checksum] = [Buffer.alloc(4), Buffer.alloc(4)]
  length.writeUInt32BE(data.length)
  checksum.writeUInt32BE(crc32(named))
  return Buffer.concat([length, named, checksum])
}

const signature = Buffer.from("\x89PNG\r\n\x1a\n", "latin1")

const header = (width: number, height: number, { interlace = 0, kind = 6 } = {}): Buffer => {
  const data = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, kind, 0, 0, interlace])
  data.writeUInt32BE(width)
  data.writeUInt32BE(height, 4)
  return chunk("IHDR", data)
}

const pixelsOf = (width: number, height: number): Buffer =>
  chunk("IDAT", deflateSync(Buffer.alloc(height * (4 * width + 1))))
const pixels = pixelsOf(100, 100)
const end = chunk("IEND", Buffer.alloc(0))
const file = (...chunks: ReadonlyArray<Uint8Array>): Buffer => Buffer.concat([signature, ...chunks])

/** An image of nothing but transparent pixels. */
const image = (width: number, height: number): Buffer => file(header(width, height), pixelsOf(width, height), end)
const small = image(100, 100)

const script = fileURLToPath(new URL("png.py", import.meta.url))
const python = (args: ReadonlyArray<string>, input?: Uint8Array): Buffer => {
  const { status, stderr, stdout } = spawnSync("python3", [script, ...args], { input, maxBuffer: 64 * 1024 * 1024 })
  if (status !== 0) throw new Error(stderr.toString())
  return stdout
}
const make = (kind: string, width: number, height: number) => python(["make", kind, String(width), String(height)])
const read = (bytes: Uint8Array): unknown => JSON.parse(python(["read"], bytes).toString())

// ---- clients: what they send are bytes, and what they get too

/** What comes until the end, or until the connection is reset. */
const exchangeAt = (target: Target, bytes: Uint8Array): Effect.Effect<Buffer> =>
  Effect.callback((resume) => {
    const received: Array<Buffer> = []
    const socket = Net.connect(target)
    socket.on("data", (chunk: Buffer) => received.push(chunk))
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(Buffer.concat(received))))
    socket.end(bytes)
    return Effect.sync(() => socket.destroy())
  })

const netcatAt = (target: Target, bytes: Uint8Array): Effect.Effect<Buffer> =>
  Effect.callback((resume) => {
    assert("host" in target)
    const received: Array<Buffer> = []
    const child = spawn("nc", ["-N", target.host, String(target.port)])
    child.stdout.on("data", (chunk: Buffer) => received.push(chunk))
    child.stdin.on("error", () => {})
    child.on("close", () => resume(Effect.succeed(Buffer.concat(received))))
    child.stdin.end(bytes)
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const at = (address: NetAddress.SocketAddress, bytes: Uint8Array) => exchangeAt(targetOf(address), bytes)
const exchange = (bytes: Uint8Array) => Effect.flatMap(Server.Server, ({ address }) => at(address, bytes))
const exchangeText = (bytes: Uint8Array) => Effect.map(exchange(bytes), (answer) => answer.toString())

const isThumbnail = (answer: Buffer, width: number, height: number) =>
  assert.deepStrictEqual(
    [
      answer.toString("latin1", 0, 8),
      answer.toString("latin1", 12, 16),
      answer.readUInt32BE(16),
      answer.readUInt32BE(20)
    ],
    [signature.toString("latin1"), "IHDR", width, height]
  )

const red = [255, 0, 0, 255]
const blue = [0, 0, 255, 255]

describe("the thumbnail server", () => {
  it.live.skipIf(pythonMissing !== undefined)(
    `makes thumbnails of all kinds of PNGs, for Python${pythonMissing === undefined ? "" : ` (${pythonMissing})`}`,
    () =>
      Effect.gen(function*() {
        for (
          const [kind, width, height, left, right, bottom] of [
            ["rgba", 512, 256, red, blue, [0, 0, 0, 0]],
            ["rgba16", 400, 400, red, blue, [0, 0, 0, 0]],
            ["palette", 256, 512, red, blue, [0, 0, 0, 0]],
            ["rgb", 130, 129, red, blue, [0, 255, 0, 255]],
            ["grey", 256, 256, [255, 255, 255, 255], [0, 0, 0, 255], [0, 0, 0, 255]],
            ["rgba", 1000, 4, red, blue, [255, 0, 0, 191]]
          ] as const
        ) {
          const thumbnail = read(yield* exchange(make(kind, width, height)))
          const scale = side / Math.max(width, height)
          const size = { width: Math.round(width * scale), height: Math.max(1, Math.round(height * scale)) }
          const pixels = size.height === 1 ? { left: bottom, right: [0, 0, 255, 191], bottom } : { left, right, bottom }
          assert.deepStrictEqual(thumbnail, { ...size, ...pixels }, `${kind} ${width} ${height}`)
        }
      }).pipe(Effect.provide(Live)),
    60_000
  )

  it.live.skipIf(netcatMissing !== undefined)(
    `answers nc${netcatMissing === undefined ? "" : ` (${netcatMissing})`}`,
    () =>
      Effect.gen(function*() {
        const { address } = yield* Server.Server
        isThumbnail(yield* netcatAt(targetOf(address), image(400, 25)), 128, 8)
      }).pipe(Effect.provide(Live))
  )

  it.live("does not make a small image larger", () =>
    Effect.gen(function*() {
      isThumbnail(yield* exchange(small), 100, 100)
    }).pipe(Effect.provide(Live)))

  it.live("serves many clients at once, each its own", () =>
    Effect.gen(function*() {
      yield* Effect.forEach(
        [10, 20, 30, 40, 50, 60, 70, 80],
        (height) => Effect.map(exchange(image(100, height)), (answer) => isThumbnail(answer, 100, height)),
        { concurrency: "unbounded" }
      )
    }).pipe(Effect.provide(Live)))

  it.live("refuses an image that claims to be too large, before it takes the memory for it", () =>
    Effect.gen(function*() {
      for (const [width, height] of [[50_000, 50_000], [4097, 4096], [0xffff_ffff, 0xffff_ffff]] as const) {
        assert.strictEqual(
          yield* exchangeText(file(header(width, height), pixels, end)),
          `ERROR the image has ${width} × ${height} pixels, and may have 16777216 in all\n`
        )
      }
      // Where only the second header counts.
      assert.strictEqual(
        yield* exchangeText(file(header(100, 100), header(50_000, 50_000), pixels, end)),
        "ERROR the PNG has two headers\n"
      )
      // Where the header tells nothing of what its data inflates to.
      const bomb = chunk("IDAT", deflateSync(Buffer.alloc(64 * 1024 * 1024)))
      assert.strictEqual(
        yield* exchangeText(file(header(1, 1, { interlace: 1 }), bomb, end)),
        "ERROR the image is interlaced: save it without that\n"
      )
      // All of it by one worker, that is still there.
      const { workers } = yield* (yield* Server.Server).info
      assert.deepStrictEqual([workers?.started, workers?.crashed, workers?.killed], [1, 0, 0])
    }).pipe(Effect.provide(Live)))

  it.live("says so where a file is no PNG, or damaged, and goes on", () =>
    Effect.gen(function*() {
      const unreadable = "ERROR the PNG cannot be read: it is damaged, or of a kind that is not known here\n"
      const flipped = Buffer.from(small)
      flipped[60]! ^= 1
      for (
        const [bytes, answer] of [
          [Buffer.alloc(0), "ERROR this is not a PNG\n"],
          [Buffer.from("GIF89a"), "ERROR this is not a PNG\n"],
          [Buffer.alloc(100_000, "\x89PNG"), "ERROR this is not a PNG\n"],
          [signature, "ERROR the PNG has no header\n"],
          [file(pixels, header(100, 100), end), "ERROR the PNG has no header\n"],
          [small.subarray(0, 30), "ERROR the PNG has no header\n"],
          [file(header(0, 100), pixels, end), "ERROR the image has no pixels\n"],
          [small.subarray(0, 33), unreadable],
          [small.subarray(0, -20), unreadable],
          [file(header(100, 100), end), unreadable],
          [file(header(100, 100, { kind: 5 }), pixels, end), unreadable],
          [file(header(100, 100, { kind: 3 }), pixels, end), unreadable],
          [flipped, unreadable]
        ] as const
      ) {
        assert.strictEqual(yield* exchangeText(bytes), answer)
      }
      isThumbnail(yield* exchange(small), 100, 100)
    }).pipe(Effect.provide(Live)))

  it.live("reads no more than a file may have, and says so", () =>
    Effect.gen(function*() {
      assert.strictEqual(
        yield* exchangeText(Buffer.concat([small, Buffer.alloc(maxBytes)])),
        `ERROR an image has at most ${maxBytes} bytes\n`
      )
    }).pipe(Effect.provide(Live)))

  it.live("loses one request, and not more, to an image that brings the decoder down", () =>
    Effect.gen(function*() {
      const server = yield* Server.Server
      const ends = yield* Stream.runCollect(
        server.events.pipe(
          Stream.filter((event) => event._tag === "WorkerEnded" || event._tag === "Closed"),
          Stream.take(3)
        )
      ).pipe(Effect.forkChild({ startImmediately: true }))
      // Two million colours: each becomes an object, and together they are more than a worker may have.
      const palette = chunk("PLTE", Buffer.alloc(6 * 1024 * 1024))
      const answer = yield* exchange(file(header(100, 100, { kind: 3 }), palette, pixels, end))
      assert.strictEqual(answer.length, 0)
      isThumbnail(yield* exchange(small), 100, 100)
      assert.deepStrictEqual(
        (yield* Fiber.join(ends)).map((event) =>
          event._tag === "Closed" ? event.reason._tag : event._tag === "WorkerEnded" ? event.how : ""
        ).toSorted(),
        ["Completed", "Crashed", "WorkerCrashed"]
      )
    }).pipe(Effect.provide(Live)), 60_000)

  it.live("runs by itself, and on SIGINT drains, reports, and exits with 0", () =>
    Effect.gen(function*() {
      const program = yield* startExample("thumbnail", { PORT: "0" })
      const [, host, port] = /^thumbnail: nc -N (\S+) (\d+) <photo\.png >thumbnail\.png$/.exec(yield* program.line) ??
        []
      isThumbnail(yield* exchangeAt({ host: host!, port: Number(port) }, small), 100, 100)
      yield* program.signal("SIGINT")
      assert.match((yield* program.rest).join("\n"), /^thumbnail: drained in \d+ ms; .*$/)
      assert.deepStrictEqual(yield* program.errors, [])
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
