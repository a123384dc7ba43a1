/** Framing: where messages end, however the bytes are cut, and whatever a hostile peer sends. */
import { assert, describe, it } from "@effect/vitest"
import { FrameError, Framing } from "@socketserver/core"
import { Effect, Exit, Schema, Stream } from "effect"

const encoder = new TextEncoder()
const bytes = (text: string) => encoder.encode(text)
const text = (value: Uint8Array) => new TextDecoder().decode(value)

/** mulberry32: the same numbers every time. */
const randomOf = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296
}

const concat = (parts: ReadonlyArray<Uint8Array | string>): Uint8Array =>
  Uint8Array.from(parts.flatMap((part) => [...(typeof part === "string" ? bytes(part) : part)]))

/** All that a reader gives for these chunks; an error ends it, unless it is recoverable. */
const readAll = <M>(framing: Framing.Framing<M, any>, chunks: ReadonlyArray<Uint8Array>): ReadonlyArray<unknown> => {
  const reader = Framing.reader(framing)
  const found: Array<unknown> = []
  let isOver = false
  const take = (message: M | FrameError.FrameError | undefined) => {
    if (message === undefined || isOver) return false
    if (!(message instanceof FrameError.FrameError)) return found.push(message) > 0
    found.push(message.reason._tag)
    isOver = !message.isRecoverable
    return true
  }
  for (const chunk of chunks) {
    reader.push(new Uint8Array(chunk))
    while (take(reader.next()));
  }
  take(reader.end())
  return found
}

const cut = (input: Uint8Array, random: () => number, most: number): ReadonlyArray<Uint8Array> => {
  const chunks: Array<Uint8Array> = []
  for (let i = 0; i < input.length;) {
    const size = 1 + Math.floor(random() * most)
    chunks.push(input.subarray(i, i + size))
    i += size
  }
  return chunks
}

const oneByOne = (input: Uint8Array) => Array.from(input, (byte) => Uint8Array.of(byte))

const randomBytes = (random: () => number, most: number, from = 0) =>
  Uint8Array.from({ length: Math.floor(random() * most) }, () => from + Math.floor(random() * (256 - from)))

const randomText = (random: () => number) =>
  Array.from(
    { length: Math.floor(random() * 30) },
    () => "abcXYZ 019-:,äöü€𝄞\t\u0000".at(Math.floor(random() * 20)) ?? "z"
  ).join("").replaceAll(/[\ud800-\udfff]/g, "?")

const format: Framing.Format<readonly [string, Uint8Array]> = {
  // A name, a line of its own, then two bytes: it takes the name before it has the rest.
  decoder: () => {
    let name: string | undefined
    let searched = 0
    return {
      read: (input) => {
        if (name === undefined) {
          const end = input.indexOf(10, searched)
          if (end === -1) {
            searched = input.length
            return undefined
          }
          searched = 0
          name = input.takeText(end)
          input.skip(1)
        }
        if (input.length < 2) return undefined
        const message = [name, input.take(2)] as const
        name = undefined
        return message
      }
    }
  },
  encode: ([name, body]) => concat([name, "\n", body])
}

/** A byte that says how many follow, read where they lie. */
const inPlace: Framing.Format<string> = {
  decoder: () => ({
    read: (input) => {
      if (input.length === 0 || input.length <= input.at(0)) return undefined
      const { bytes, offset } = input
      const length = bytes[offset]!
      const message = String.fromCharCode(...bytes.subarray(offset + 1, offset + 1 + length))
      input.skip(1 + length)
      return message
    }
  }),
  encode: (message) => Uint8Array.of(message.length, ...Array.from(message, (character) => character.charCodeAt(0)))
}

/** Each framing, and messages for it. */
const framings: ReadonlyArray<readonly [string, Framing.Framing<any>, (random: () => number) => unknown]> = [
  ["lines", Framing.lines(), randomText],
  ["lines with \\r\\n", Framing.lines({ lineEnd: "\r\n" }), randomText],
  ["delimiter", Framing.delimiter("\u0000"), (random) => randomBytes(random, 40, 1)],
  [
    "delimiter of many bytes",
    Framing.delimiter("aab"),
    (random) => bytes("aa".repeat(Math.floor(random() * 5)) + "xb")
  ],
  ["fixed", Framing.fixed(7), (random) =>
    randomBytes(() => Math.max(random(), 0.0001), 1).length === 0
      ? Uint8Array.from({ length: 7 }, () => Math.floor(random() * 256))
      : new Uint8Array(7)],
  ["1 byte", Framing.lengthPrefixed({ bytes: 1 }), (random) => randomBytes(random, 256)],
  ["2 bytes", Framing.lengthPrefixed({ bytes: 2 }), (random) => randomBytes(random, 400)],
  ["2 bytes, little", Framing.lengthPrefixed({ bytes: 2, endian: "little" }), (random) => randomBytes(random, 400)],
  ["4 bytes", Framing.lengthPrefixed({ bytes: 4 }), (random) => randomBytes(random, 400)],
  ["4 bytes, little", Framing.lengthPrefixed({ bytes: 4, endian: "little" }), (random) => randomBytes(random, 400)],
  ["varint", Framing.lengthPrefixed({ bytes: "varint" }), (random) => randomBytes(random, 400)],
  ["netstring", Framing.netstring(), (random) => randomBytes(random, 200)],
  ["text of netstrings", Framing.text(Framing.netstring()), randomText],
  [
    "custom",
    Framing.custom({ name: "custom", ...format, client: format }),
    (random) => [randomText(random).replaceAll("\n", ""), Uint8Array.of(random() * 256, random() * 256)]
  ],
  [
    "custom, looked at in place",
    Framing.custom({ name: "in place", ...inPlace, client: inPlace }),
    (random) => String.fromCharCode(...randomBytes(random, 200))
  ],
  [
    "ndjson",
    Framing.ndjson({ request: Schema.Array(Schema.String), reply: Schema.Array(Schema.String) }),
    (random) => [randomText(random), `\n${randomText(random)}`]
  ]
]

describe("every framing", () => {
  for (const [name, framing, message] of framings) {
    it(`${name}: what is encoded is decoded, however it is cut`, () => {
      for (let seed = 1; seed <= 30; seed++) {
        const random = randomOf(seed)
        const messages = Array.from({ length: 1 + Math.floor(random() * 40) }, () => message(random))
        const input = concat(messages.map((it) => framing.messages.encode(it)))
        for (const chunks of [[input], oneByOne(input), cut(input, random, 5), cut(input, random, 300)]) {
          assert.deepStrictEqual(readAll(framing, chunks), messages)
        }
      }
    })

    it(`${name}: bytes by chance, however they are cut, are the same messages and errors`, () => {
      for (let seed = 1; seed <= 60; seed++) {
        const random = randomOf(seed)
        const noise = randomBytes(random, 300)
        const input = seed % 2 === 0 ? noise : Uint8Array.from(noise, (byte) => 44 + byte % 16)
        const whole = readAll(framing, [input])
        assert.deepStrictEqual(readAll(framing, oneByOne(input)), whole)
        assert.deepStrictEqual(readAll(framing, cut(input, random, 7)), whole)
      }
    })

    it(`${name}: gives the same as a stream`, () => {
      const random = randomOf(7)
      const messages = Array.from({ length: 20 }, () => message(random))
      const program = Stream.fromArray(messages).pipe(
        Stream.rechunk(3),
        Framing.encode(framing),
        Framing.decode(Framing.swap(framing)),
        Stream.runCollect
      )
      assert.deepStrictEqual(Effect.runSync(program), messages)
    })
  }
})

describe("lines", () => {
  it("end with LF or CRLF, and the last one needs no end", () => {
    assert.deepStrictEqual(readAll(Framing.lines(), [bytes("a\r\nb\n\nc\rd\r\ne")]), ["a", "b", "", "c\rd", "e"])
  })

  it("are written with the line end that is asked for", () => {
    assert.strictEqual(Framing.lines().replies.encode("a"), "a\n")
    assert.strictEqual(Framing.lines({ lineEnd: "\r\n" }).replies.encode("a"), "a\r\n")
  })

  it("that a peer would read as others are not written", () => {
    for (const line of ["a\nb", "a\n", "a\r"]) {
      assert.throws(() => Framing.lines().replies.encode(line), /line end in it/)
    }
    assert.strictEqual(Framing.lines().replies.encode("a\rb"), "a\rb\n")
  })

  it("may have exactly `maxLength` bytes, and no more", () => {
    const framing = Framing.lines({ maxLength: 4 })
    for (const input of ["abcd\n", "abcd\r\n", "abcd"]) {
      assert.deepStrictEqual(readAll(framing, [bytes(input)]), ["abcd"])
      assert.deepStrictEqual(readAll(framing, oneByOne(bytes(input))), ["abcd"])
    }
    assert.deepStrictEqual(readAll(framing, [bytes("ab\nabcde\n")]), ["ab", "TooLong"])
    assert.deepStrictEqual(readAll(framing, [bytes("abcdef")]), ["TooLong"])
    assert.deepStrictEqual(readAll(framing, [bytes("ääa\n")]), ["TooLong"])
  })
})

describe("a delimiter", () => {
  it("may have many bytes, and look like the end of a message", () => {
    assert.deepStrictEqual(
      readAll(Framing.delimiter("\r\n.\r\n"), oneByOne(bytes("a\r\n.\r\r\n.\r\n\r\n.\r\n"))).map((it) =>
        text(it as Uint8Array)
      ),
      ["a\r\n.\r", ""]
    )
  })

  it("in a message, or across its end, is not written", () => {
    const { encode } = Framing.delimiter("aba").replies
    assert.throws(() => encode(bytes("xabay")), /delimiter in it/)
    assert.throws(() => encode(bytes("ab")), /delimiter in it/)
    assert.strictEqual(text(encode(bytes("xb")) as Uint8Array), "xbaba")
  })

  it("that does not come is TooLong, or Incomplete", () => {
    const framing = Framing.delimiter("--", { maxLength: 3 })
    assert.deepStrictEqual(readAll(framing, oneByOne(bytes("abc--abcd--"))), [bytes("abc"), "TooLong"])
    assert.deepStrictEqual(readAll(framing, [bytes("abc-")]), ["Incomplete"])
  })
})

describe("a length", () => {
  it("stands in the order that is asked for", () => {
    const message = new Uint8Array(258)
    const prefix = (
      options: Parameters<typeof Framing.lengthPrefixed>[0],
      size: number
    ) => [...(Framing.lengthPrefixed(options).replies.encode(message) as Uint8Array).subarray(0, size)]
    assert.deepStrictEqual(prefix({ bytes: 2 }, 2), [1, 2])
    assert.deepStrictEqual(prefix({ bytes: 2, endian: "little" }, 2), [2, 1])
    assert.deepStrictEqual(prefix({ bytes: 4 }, 4), [0, 0, 1, 2])
    assert.deepStrictEqual(prefix({ bytes: 4, endian: "little" }, 4), [2, 1, 0, 0])
    assert.deepStrictEqual(prefix({ bytes: "varint" }, 2), [130, 2])
  })

  it("that lies is an error before anything is waited for", () => {
    const four = Framing.lengthPrefixed({ bytes: 4, maxLength: 1_000 })
    assert.deepStrictEqual(readAll(four, [Uint8Array.of(255, 255, 255, 255)]), ["TooLong"])
    assert.deepStrictEqual(readAll(four, [Uint8Array.of(0, 0, 3, 233)]), ["TooLong"])
    assert.deepStrictEqual(readAll(four, [Uint8Array.of(0, 0, 3, 232)]), ["Incomplete"])
    const varint = Framing.lengthPrefixed({ bytes: "varint" })
    assert.deepStrictEqual(readAll(varint, [new Uint8Array(5).fill(255)]), ["Malformed"])
    assert.deepStrictEqual(readAll(varint, [new Uint8Array(4).fill(255)]), ["Incomplete"])
    assert.deepStrictEqual(readAll(varint, [Uint8Array.of(255, 255, 255, 255, 15)]), ["TooLong"])
  })

  it("counts more than a message may have where its bytes cannot", () => {
    assert.throws(() => Framing.lengthPrefixed({ bytes: 1 }).replies.encode(new Uint8Array(256)), /256 bytes/)
    assert.throws(() => Framing.fixed(3).replies.encode(new Uint8Array(2)), /3 bytes/)
  })
})

describe("a netstring", () => {
  it("with a leading zero, without a number, or without a comma is malformed", () => {
    for (const input of ["05:hello,", "00:,", ":,", "x", "-1:", "5 :", "5:hello;", "+5:hello,"]) {
      assert.deepStrictEqual(readAll(Framing.netstring(), [bytes(input)]), ["Malformed"], input)
      assert.deepStrictEqual(readAll(Framing.netstring(), oneByOne(bytes(input))), ["Malformed"], input)
    }
    assert.deepStrictEqual(readAll(Framing.netstring(), [bytes("0:,")]), [bytes("")])
  })

  it("with a number of digits without an end is TooLong", () => {
    assert.deepStrictEqual(readAll(Framing.netstring({ maxLength: 999 }), oneByOne(bytes("9999"))), ["TooLong"])
    assert.deepStrictEqual(readAll(Framing.netstring({ maxLength: 998 }), [bytes("999:")]), ["TooLong"])
  })
})

describe("the whole input", () => {
  it("is one message, if there is any", () => {
    assert.deepStrictEqual(readAll(Framing.whole(), [bytes("a"), bytes("b")]), [bytes("ab")])
    assert.deepStrictEqual(readAll(Framing.whole(), []), [])
    assert.deepStrictEqual(readAll(Framing.whole({ maxLength: 1 }), [bytes("ab")]), ["TooLong"])
  })
})

describe("a framing of one's own", () => {
  const framing = Framing.custom({ name: "mine", maxLength: 8, ...format, client: format })

  it("is bounded, what was taken included", () => {
    assert.deepStrictEqual(readAll(framing, [bytes("abcde\nxy")]), [["abcde", bytes("xy")]])
    assert.deepStrictEqual(readAll(framing, oneByOne(bytes("abcdef\nxy"))), ["TooLong"])
    assert.deepStrictEqual(readAll(framing, [bytes("abcdef\nxy")]), ["TooLong"])
    assert.deepStrictEqual(readAll(framing, oneByOne(bytes("abcdefghi"))), ["TooLong"])
  })

  it("knows of a message that is half taken when the input ends", () => {
    assert.deepStrictEqual(readAll(framing, [bytes("abc\n")]), ["Incomplete"])
  })

  it("without a client's side says so", () => {
    const server = Framing.custom<string, number>({
      name: "half",
      decoder: Framing.lines().messages.decoder,
      encode: String
    })
    assert.throws(() => Framing.swap(server).replies.encode("a"), /`client` is missing/)
    assert.throws(() => Framing.reader(Framing.swap(server)), /`client` is missing/)
  })
})

describe("a schema", () => {
  const framing = Framing.schema(Framing.lines(), {
    request: Schema.NumberFromString,
    reply: Schema.Literals(["yes", "no"])
  })

  it("types both directions, and the client's side has them the other way round", () => {
    assert.deepStrictEqual(readAll(framing, [bytes("1\n2.5\n")]), [1, 2.5])
    assert.strictEqual(framing.replies.encode("yes"), "yes\n")
    assert.deepStrictEqual(readAll(Framing.swap(framing), [bytes("no\n")]), ["no"])
    assert.strictEqual(Framing.swap(framing).replies.encode(7), "7\n")
  })

  it("that a frame does not fit leaves the frames behind it", () => {
    const ndjson = Framing.ndjson({ request: Schema.Struct({ a: Schema.Int }), reply: Schema.Null })
    assert.deepStrictEqual(
      readAll(ndjson, [bytes(`{"a":1}\n{"a":"1"}\n{\n\n{"a":2}`)]),
      [{ a: 1 }, "Invalid", "Invalid", "Invalid", { a: 2 }]
    )
  })

  it("that a reply does not fit refuses to write it", () => {
    assert.throws(() => framing.replies.encode("maybe" as "yes"), /schema does not allow/)
  })
})

describe("decoding a stream", () => {
  it("gives what came before an error, then the error", () => {
    const messages: Array<string> = []
    const exit = Effect.runSyncExit(
      Stream.make(bytes("a\nb\nlong"), bytes("er\n")).pipe(
        Framing.decode(Framing.lines({ maxLength: 3 })),
        Stream.runForEach((message) => Effect.sync(() => messages.push(message)))
      )
    )
    assert.deepStrictEqual(messages, ["a", "b"])
    assert.isTrue(Exit.isFailure(exit) && /lines: more than 3 bytes/.test(String(exit.cause)))
  })

  it("fails where the input ends in the middle of a frame", () => {
    const error = Effect.runSync(
      Stream.make(bytes("5:hel")).pipe(Framing.decode(Framing.netstring()), Stream.runDrain, Effect.flip)
    )
    assert.deepStrictEqual([error.reason._tag, error.message], [
      "Incomplete",
      "netstring: the input ended after 5 bytes of a frame"
    ])
  })
})

describe("options", () => {
  it("that make no sense throw, and say what is expected", () => {
    assert.throws(() => Framing.lines({ maxLength: -1 }), /maxLength is -1/)
    assert.throws(() => Framing.lines({ maxLength: NaN }), /maxLength is NaN/)
    assert.throws(() => Framing.fixed(0), /length is 0/)
    assert.throws(() => Framing.delimiter(""), /delimiter is 0/)
    assert.throws(() => Framing.lengthPrefixed({ bytes: 3 as 4 }), /bytes is 3/)
    assert.throws(() => Framing.lengthPrefixed({ bytes: 1, maxLength: 256 }), /maxLength is 256/)
  })
})

describe("a hostile peer", () => {
  /** How many bytes are searched and copied while a reader gets these one by one: what costs time where there are many. */
  const workOf = (framing: Framing.Framing<any>, input: Uint8Array): number => {
    const { prototype } = Uint8Array
    const indexOf: (this: Uint8Array, byte: number, from: number) => number = Reflect.get(prototype, "indexOf")
    const set: (this: Uint8Array, source: ArrayLike<number>, offset?: number) => void = Reflect.get(prototype, "set")
    let work = 0
    Object.assign(prototype, {
      indexOf(this: Uint8Array, byte: number, from = 0) {
        const index = indexOf.call(this, byte, from)
        work += (index === -1 ? this.length : index) - from
        return index
      },
      set(this: Uint8Array, source: ArrayLike<number>, offset?: number) {
        work += source.length
        set.call(this, source, offset)
      }
    })
    try {
      const reader = Framing.reader(framing)
      for (const byte of input) {
        reader.push(Uint8Array.of(byte))
        reader.next()
      }
    } finally {
      Object.assign(prototype, { indexOf, set })
    }
    return work
  }
  const size = 2 ** 14
  const body = new Uint8Array(8 * size).fill(97)
  const cases: ReadonlyArray<readonly [string, Framing.Framing<any>, (length: number) => Uint8Array]> = [
    ["lines", Framing.lines({ maxLength: 8 * size }), (length) => body.subarray(0, length)],
    ["delimiter", Framing.delimiter("aaaaaaab", { maxLength: 8 * size }), (length) => body.subarray(0, length)],
    [
      "lengthPrefixed",
      Framing.lengthPrefixed({ bytes: 4, maxLength: 2 ** 24 }),
      (length) => concat([Uint8Array.of(0, 255, 255, 255), body.subarray(0, length)])
    ],
    ["whole", Framing.whole({ maxLength: 8 * size }), (length) => body.subarray(0, length)]
  ]
  for (const [name, framing, input] of cases) {
    it(`${name}: one byte at a time, each is searched and copied a few times, however many there are`, () => {
      for (const length of [size, 8 * size]) assert.isBelow(workOf(framing, input(length)) / length, 32)
    })
  }
})
