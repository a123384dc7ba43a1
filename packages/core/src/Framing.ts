/**
 * A framing says where in a stream of bytes a message ends, and what the messages are: lines, length-prefixed blocks, JSON
 * documents. One value describes both directions, what a server is sent and what it answers, so a client is made of the same
 * value. Decoding is incremental, however the bytes are cut, and every frame is bounded.
 *
 * @since 0.1.0
 */
import { isReadonlyArrayNonEmpty, type NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Pull from "effect/Pull"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { FrameError, Incomplete, Invalid, Malformed, TooLong, Unencodable } from "./FrameError.ts"
import { messageOf } from "./internal/causes.ts"
import { FrameReader } from "./internal/frames.ts"
import { joinBytes } from "./internal/joinBytes.ts"
import * as Reads from "./internal/reads.ts"

const TypeId = "~@socketserver/core/Framing"

// ---- what a framing is

/**
 * What has arrived and was not taken yet, as a decoder sees it. Positions count from the next byte that was not taken.
 *
 * **Gotchas**
 *
 * Nothing is checked for speed's sake: look at `length` before you ask for bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Input {
  /** How many bytes there are. */
  readonly length: number
  /** The byte at `index`, which must be below `length`. */
  readonly at: (index: number) => number
  /** Where `byte` stands at or behind `from`; -1 where it does not. */
  readonly indexOf: (byte: number, from: number) => number
  /**
   * Where the next bytes lie: in `bytes`, from `offset` on, `length` of them. What lies before and behind is not to be looked at.
   * Valid until the input is used again. For decoders that look at most bytes: the same as `peek`, without an object for it.
   */
  readonly bytes: Uint8Array
  readonly offset: number
  /** The next `length` bytes as they lie. They stay there, and are valid until the input is used again. */
  readonly peek: (length: number) => Uint8Array
  /** Takes the next `length` bytes. They are the taker's for good. */
  readonly take: (length: number) => Uint8Array
  /** Takes the next `length` bytes as UTF-8; invalid bytes become U+FFFD. Cheaper than decoding what `take` gives. */
  readonly takeText: (length: number) => string
  /** Takes the next `length` bytes, and forgets them. */
  readonly skip: (length: number) => void
}

/**
 * Finds the messages in the input of one connection. It may keep state: each connection has its own.
 *
 * @category models
 * @since 0.1.0
 */
export interface Decoder<out A> {
  /**
   * Takes one message from the input; `undefined` where more bytes are needed, so a message is never `undefined`. What is
   * taken of a message that is not complete yet is the decoder's to remember. It must not look at the same bytes again each
   * time that a few more have come: a peer may send them one by one.
   */
  readonly read: (input: Input) => A | FrameError | undefined
  /**
   * The input has ended, and `read` found no more: a last message without an end of its own, if the format has that. Asked if
   * there is something left, and for packets.
   */
  readonly end?: ((input: Input) => A | FrameError | undefined) | undefined
}

/**
 * One direction: how messages are found in bytes, and made into bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Format<in out A> {
  /** A decoder for one connection. */
  readonly decoder: () => Decoder<A>
  /** The bytes of one frame; a string is UTF-8. Throws `FrameError` with reason `Unencodable` where there is no such frame. */
  readonly encode: (message: A) => Uint8Array | string
}

/**
 * Both directions of a protocol: the messages that a server gets, and the replies that it gives.
 *
 * @category models
 * @since 0.1.0
 */
export interface Framing<in out Message, in out Reply = Message> {
  readonly [TypeId]: typeof TypeId
  /** A name for people, such as `"lines"`. */
  readonly name: string
  readonly messages: Format<Message>
  readonly replies: Format<Reply>
}

/**
 * Is this a framing?
 *
 * @category guards
 * @since 0.1.0
 */
export const isFraming = (u: unknown): u is Framing<any, any> => typeof u === "object" && u !== null && TypeId in u

const make = <Message, Reply>(
  name: string,
  messages: Format<Message>,
  replies: Format<Reply>
): Framing<Message, Reply> => ({ [TypeId]: TypeId, name, messages, replies })

const symmetric = <A>(name: string, format: Format<A>): Framing<A> => make(name, format, format)

/**
 * The bound of one frame.
 *
 * @category options
 * @since 0.1.0
 */
export interface FramingOptions {
  /**
   * The most bytes that a received message may have, without what frames it. Default 65,536. One byte more is a `FrameError`
   * with reason `TooLong`, as soon as that is known. It does not bound what is sent.
   */
  readonly maxLength?: number | undefined
}

const defaultMaxLength = 65_536

const checkedLength = (option: string, length: number, least: number, most = 2 ** 31 - 1): number => {
  if (Number.isSafeInteger(length) && length >= least && length <= most) return length
  throw new RangeError(`${option} is ${length}: expected a number of bytes, ${least} to ${most}`)
}

const maxLengthOf = (options: FramingOptions | undefined, most?: number): number =>
  checkedLength("maxLength", options?.maxLength ?? Math.min(defaultMaxLength, most ?? Infinity), 0, most)

// ---- errors of a framing

const errorsOf = (framing: string) => ({
  tooLong: (limit: number) => new FrameError({ framing, reason: new TooLong({ limit }) }),
  malformed: (detail: string) => new FrameError({ framing, reason: new Malformed({ detail }) }),
  incomplete: (received: number) => new FrameError({ framing, reason: new Incomplete({ received }) }),
  unencodable: (detail: string) => new FrameError({ framing, reason: new Unencodable({ detail }) })
})

const encoder = new TextEncoder()
const carriageReturn = 13

// ---- constructors

/**
 * Lines of text, UTF-8. Read, they end with `\n` or `\r\n`, and a last one needs no end; invalid bytes become U+FFFD. Written,
 * they end with `lineEnd`.
 *
 * **Gotchas**
 *
 * A message with a `\n` in it, or a `\r` at its end, cannot be written: it would be two lines, or another one. Reply with
 * several lines as a stream of them.
 *
 * **Example** (A server of upper-case lines)
 *
 * ```ts
 * import { NodeTransport } from "@socketserver/node"
 * import { Dispatch, Framing, Server, Transport } from "@socketserver/core"
 * import { Effect } from "effect"
 *
 * const Upper = NodeTransport.tcp({ port: 9999 }).pipe(
 *   Transport.framed(Framing.lines()),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveMessage(({ payload }) => Effect.succeed(payload.toUpperCase()))
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const lines = (
  options?: FramingOptions & {
    /** What ends a line that is written. Default `"\n"`. */
    readonly lineEnd?: "\n" | "\r\n" | undefined
  }
): Framing<string> => {
  const max = maxLengthOf(options)
  const lineEnd = options?.lineEnd ?? "\n"
  const errors = errorsOf("lines")
  const { step } = Reads.line(max)
  const decoder: Decoder<string> = {
    read: (input) => {
      const line = step(input as Parameters<typeof step>[0])
      return typeof line === "string" || line === undefined ? line : errors.tooLong(max)
    },
    end: (input) =>
      input.length === 0 ? undefined : input.length > max ? errors.tooLong(max) : input.takeText(input.length)
  }
  return symmetric("lines", {
    decoder: () => decoder,
    encode: (line) => {
      if (line.includes("\n") || line.charCodeAt(line.length - 1) === carriageReturn) {
        throw errors.unencodable("a line with a line end in it cannot be written: reply with a stream of lines")
      }
      return line + lineEnd
    }
  })
}

/**
 * Bytes that end with `delimiter`. Input that ends without it is `Incomplete`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const delimiter = (delimiter: string | Uint8Array, options?: FramingOptions): Framing<Uint8Array> => {
  const max = maxLengthOf(options)
  const mark = typeof delimiter === "string" ? encoder.encode(delimiter) : new Uint8Array(delimiter)
  checkedLength("the length of the delimiter", mark.length, 1)
  const errors = errorsOf("delimiter")
  return symmetric("delimiter", {
    decoder: () => {
      let searched = 0
      return {
        read: (input) => {
          const index = Reads.find(input, mark, searched)
          if (index === -1) {
            searched = Math.max(0, input.length - mark.length + 1)
            return searched > max ? errors.tooLong(max) : undefined
          }
          if (index > max) return errors.tooLong(max)
          searched = 0
          const message = input.take(index)
          input.skip(mark.length)
          return message
        },
        end: incompleteWith(errors)
      }
    },
    encode: (message) => {
      const frame = new Uint8Array(message.length + mark.length)
      frame.set(message)
      frame.set(mark, message.length)
      // One that stands across the end of the message would be found before the real one.
      if (indexOf(frame, mark) !== message.length) {
        throw errors.unencodable("a message with the delimiter in it cannot be written")
      }
      return frame
    }
  })
}

const indexOf = (bytes: Uint8Array, mark: Uint8Array): number => {
  let index = bytes.indexOf(mark[0]!)
  while (index !== -1 && !mark.every((byte, i) => bytes[index + i] === byte)) index = bytes.indexOf(mark[0]!, index + 1)
  return index
}

const incompleteWith = ({ incomplete }: ReturnType<typeof errorsOf>) => (input: Input): FrameError | undefined =>
  input.length === 0 ? undefined : incomplete(input.length)

/**
 * Blocks of `length` bytes each, at least 1.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fixed = (length: number): Framing<Uint8Array> => {
  checkedLength("length", length, 1)
  const errors = errorsOf("fixed")
  const decoder: Decoder<Uint8Array> = {
    read: (input) => input.length < length ? undefined : input.take(length),
    end: incompleteWith(errors)
  }
  return symmetric("fixed", {
    decoder: () => decoder,
    encode: (message) => {
      if (message.length !== length) {
        throw errors.unencodable(`a block has ${length} bytes, this one has ${message.length}`)
      }
      return message
    }
  })
}

/**
 * Bytes behind their length: an unsigned integer of 1, 2 or 4 bytes, or a `"varint"` (LEB128, as in Protocol Buffers) of at
 * most 5. A length above `maxLength` is `TooLong` before any of it is waited for.
 *
 * @category constructors
 * @since 0.1.0
 */
export const lengthPrefixed = (
  options: FramingOptions & {
    /** How many bytes the length has. */
    readonly bytes: 1 | 2 | 4 | "varint"
    /** Which of them comes first: the highest (`"big"`, the default, network order) or the lowest. */
    readonly endian?: "big" | "little" | undefined
  }
): Framing<Uint8Array> => {
  const { bytes, endian } = options
  if (bytes !== 1 && bytes !== 2 && bytes !== 4 && bytes !== "varint") {
    throw new RangeError(`bytes is ${String(bytes)}: expected 1, 2, 4 or "varint"`)
  }
  const most = bytes === "varint" ? 2 ** 31 - 1 : Math.min(2 ** (8 * bytes) - 1, 2 ** 31 - 1)
  const max = maxLengthOf(options, most)
  const errors = errorsOf("lengthPrefixed")
  const { read, write } = bytes === "varint" ? varint : integer(bytes, endian === "little")
  const decoder: Decoder<Uint8Array> = {
    read: (input) => {
      const header = read(input)
      if (header === undefined) return undefined
      if (header === "malformed") return errors.malformed("the length has more than 5 bytes")
      if (header.length > max) return errors.tooLong(max)
      if (input.length < header.size + header.length) return undefined
      input.skip(header.size)
      return input.take(header.length)
    },
    end: incompleteWith(errors)
  }
  return symmetric("lengthPrefixed", {
    decoder: () => decoder,
    encode: (message) => {
      if (message.length > most) {
        throw errors.unencodable(`${message.length} bytes are more than the length can say: ${most}`)
      }
      return write(message)
    }
  })
}

/** How a length stands before its bytes. */
interface Prefix {
  /** The length and how many bytes say it; `undefined` where they are not all there. */
  readonly read: (input: Input) => { readonly length: number; readonly size: number } | "malformed" | undefined
  readonly write: (message: Uint8Array) => Uint8Array
}

const integer = (size: number, isLittle: boolean): Prefix => ({
  read: (input) => {
    if (input.length < size) return undefined
    let length = 0
    for (let i = 0; i < size; i++) length = length * 256 + input.at(isLittle ? size - 1 - i : i)
    return { length, size }
  },
  write: (message) => {
    const frame = new Uint8Array(size + message.length)
    let left = message.length
    for (let i = 0; i < size; i++) {
      frame[isLittle ? i : size - 1 - i] = left % 256
      left = Math.floor(left / 256)
    }
    frame.set(message, size)
    return frame
  }
})

const varint: Prefix = {
  read: (input) => {
    let length = 0
    for (let size = 1, scale = 1; size <= 5; size++, scale *= 128) {
      if (input.length < size) return undefined
      const byte = input.at(size - 1)
      length += (byte & 127) * scale
      if (byte < 128) return { length, size }
    }
    return "malformed"
  },
  write: (message) => {
    const prefix: Array<number> = []
    let left = message.length
    for (; left >= 128; left = Math.floor(left / 128)) prefix.push(128 + left % 128)
    prefix.push(left)
    const frame = new Uint8Array(prefix.length + message.length)
    frame.set(prefix)
    frame.set(message, prefix.length)
    return frame
  }
}

/**
 * Netstrings: `5:hello,` ([the format](https://cr.yp.to/proto/netstrings.txt)). A length with a leading zero, or with more
 * digits than `maxLength` has, is not waited for.
 *
 * @category constructors
 * @since 0.1.0
 */
export const netstring = (options?: FramingOptions): Framing<Uint8Array> => {
  const max = maxLengthOf(options)
  const maxDigits = String(max).length
  const errors = errorsOf("netstring")
  const decoder: Decoder<Uint8Array> = {
    read: (input) => {
      let length = 0
      for (let i = 0; i < input.length; i++) {
        const byte = input.at(i)
        if (byte === colon && i > 0) {
          if (length > max) return errors.tooLong(max)
          if (input.length < i + length + 2) return undefined
          if (input.at(i + 1 + length) !== comma) return errors.malformed("no comma behind the string")
          input.skip(i + 1)
          const message = input.take(length)
          input.skip(1)
          return message
        }
        if (byte < zero || byte > zero + 9) return errors.malformed("the length is no number")
        if (i > 0 && length === 0) return errors.malformed("the length has a leading zero")
        if (i === maxDigits) return errors.tooLong(max)
        length = length * 10 + byte - zero
      }
      return undefined
    },
    end: incompleteWith(errors)
  }
  return symmetric("netstring", {
    decoder: () => decoder,
    encode: (message) => {
      const prefix = encoder.encode(`${message.length}:`)
      const frame = new Uint8Array(prefix.length + message.length + 1)
      frame.set(prefix)
      frame.set(message, prefix.length)
      frame[frame.length - 1] = comma
      return frame
    }
  })
}

const zero = 48
const colon = 58
const comma = 44

/**
 * All that a peer sends until it finishes is one message; of a datagram transport, a packet is. A peer that finishes without
 * a byte has sent none, unless that was an empty packet.
 *
 * @category constructors
 * @since 0.1.0
 */
export const whole = (options?: FramingOptions): Framing<Uint8Array> => {
  const max = maxLengthOf(options)
  const { tooLong } = errorsOf("whole")
  const decoder: Decoder<Uint8Array> = {
    read: (input) => input.length > max ? tooLong(max) : undefined,
    end: (input) => input.take(input.length)
  }
  return symmetric("whole", { decoder: () => decoder, encode: (message) => message })
}

/**
 * A framing of one's own.
 *
 * **Details**
 *
 * `decoder` makes what finds messages in a connection's input, `encode` makes a frame of a reply. The same for the other side,
 * `client`, is needed only by {@link swap}; give the same two if both directions look alike.
 *
 * `maxLength` bounds all bytes of one frame, those that were taken of it included.
 *
 * **Example** (A type byte, then a block of 4 bytes)
 *
 * ```ts
 * import { Framing } from "@socketserver/core"
 *
 * interface Event {
 *   readonly type: number
 *   readonly body: Uint8Array
 * }
 *
 * const format: Framing.Format<Event> = {
 *   decoder: () => ({
 *     read: (input) => {
 *       if (input.length < 5) return undefined
 *       const type = input.at(0)
 *       input.skip(1)
 *       return { type, body: input.take(4) }
 *     }
 *   }),
 *   encode: ({ body, type }) => Uint8Array.of(type, ...body)
 * }
 *
 * export const events = Framing.custom<Event>({ name: "events", ...format, client: format })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const custom = <Message, Reply = Message>(
  options: FramingOptions & {
    /** For people: it stands in errors. */
    readonly name: string
    readonly decoder: () => Decoder<Message>
    readonly encode: (reply: Reply) => Uint8Array | string
    readonly client?: {
      readonly decoder: () => Decoder<Reply>
      readonly encode: (message: Message) => Uint8Array | string
    } | undefined
  }
): Framing<Message, Reply> => {
  const { client, decoder, encode, name } = options
  const max = maxLengthOf(options)
  const missing = () => {
    throw new Error(`framing "${name}": its option \`client\` is missing, without which nobody can be its client`)
  }
  return make<Message, Reply>(
    name,
    { decoder: () => bounded(decoder(), max, name), encode: client?.encode ?? missing },
    { decoder: client === undefined ? missing : () => bounded(client.decoder(), max, name), encode }
  )
}

/** A decoder that may not have more than so many bytes of one frame, taken or not. */
const bounded = <A>(decoder: Decoder<A>, max: number, name: string): Decoder<A> => {
  const errors = errorsOf(name)
  let taken = 0
  return {
    read: (input) => {
      const before = input.length
      const message = decoder.read(input)
      if (input.length < 0) {
        // An input that holds nothing is that of others, too.
        input.skip(input.length)
        throw new Error(
          `framing "${name}": its decoder has taken more bytes than there are; it must look at \`length\` first`
        )
      }
      if (message === undefined) {
        taken += before - input.length
        return taken + input.length > max ? errors.tooLong(max) : undefined
      }
      const length = taken + before - input.length
      taken = 0
      return length > max ? errors.tooLong(max) : message
    },
    end: (input) =>
      taken + input.length === 0
        ? undefined
        : decoder.end === undefined
        ? errors.incomplete(taken + input.length)
        : decoder.end(input)
  }
}

// ---- combinators

/**
 * A framing of bytes as one of text, UTF-8. Invalid bytes become U+FFFD.
 *
 * @category combinators
 * @since 0.1.0
 */
export const text = (framing: Framing<Uint8Array>): Framing<string> => {
  return make(framing.name, textOf(framing.messages), textOf(framing.replies))
}

const textOf = (inner: Format<Uint8Array>): Format<string> =>
  mapFormat(inner, (bytes) => decoder.decode(bytes), (text) => encoder.encode(text))

// A BOM is data here; the decoder's default would drop one.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

const mapRead = <A, B>(
  message: A | FrameError | undefined,
  decode: (a: A) => B | FrameError
): B | FrameError | undefined =>
  message === undefined || message instanceof FrameError ? message as FrameError | undefined : decode(message)

const mapFormat = <A, B>(
  inner: Format<A>,
  decode: (a: A) => B | FrameError,
  encode: (b: B) => A
): Format<B> => ({
  decoder: () => {
    const { end, read } = inner.decoder()
    return { read: (input) => mapRead(read(input), decode), end: end && ((input) => mapRead(end(input), decode)) }
  },
  encode: (message) => inner.encode(encode(message))
})

/**
 * What a message can be: anything but `undefined`.
 *
 * @category models
 * @since 0.1.0
 */
export type Value = object | string | number | bigint | boolean | symbol | null

/**
 * Types both directions by schemas, whose encoded sides are what the framing has.
 *
 * **Details**
 *
 * A frame that does not decode is a `FrameError` with reason `Invalid`; the frames behind it can still be read. A reply that
 * does not encode is `Unencodable`. Schemas must decode and encode at once: one that waits, or needs a service, cannot.
 *
 * **Example** (Numbers, as lines)
 *
 * ```ts
 * import { Framing } from "@socketserver/core"
 * import { Schema } from "effect"
 *
 * const framing = Framing.schema(Framing.lines(), {
 *   request: Schema.NumberFromString,
 *   reply: Schema.NumberFromString
 * })
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const schema = <
  Message,
  Reply,
  Request extends Value,
  Answer extends Value
>(
  framing: Framing<Message, Reply>,
  schemas: {
    /** What the server gets. */
    readonly request: Schema.Codec<Request, Message>
    /** What the server answers. */
    readonly reply: Schema.Codec<Answer, Reply>
  }
): Framing<Request, Answer> => {
  const { name } = framing
  const format = <A, I>(inner: Format<I>, codec: Schema.Codec<A, I>): Format<A> => {
    const decode = Schema.decodeUnknownExit(codec)
    const encode = Schema.encodeUnknownExit(codec)
    return mapFormat(
      inner,
      (encoded) => {
        const exit = decode(encoded)
        if (Exit.isSuccess(exit)) return exit.value
        return new FrameError({ framing: name, reason: new Invalid({ cause: Cause.squash(exit.cause) }) })
      },
      (message) => {
        const exit = encode(message)
        if (Exit.isSuccess(exit)) return exit.value
        throw errorsOf(name).unencodable(
          `a message that its schema does not allow: ${messageOf(Cause.squash(exit.cause))}`
        )
      }
    )
  }
  return make(name, format(framing.messages, schemas.request), format(framing.replies, schemas.reply))
}

/**
 * JSON documents, one a line ([NDJSON](https://github.com/ndjson/ndjson-spec)), typed by schemas. `maxLength` is in bytes of
 * JSON.
 *
 * **Example** (Sums)
 *
 * ```ts
 * import { Framing } from "@socketserver/core"
 * import { Schema } from "effect"
 *
 * export const sums = Framing.ndjson({
 *   request: Schema.Struct({ add: Schema.Array(Schema.Finite) }),
 *   reply: Schema.Union([Schema.Struct({ sum: Schema.Finite }), Schema.Struct({ error: Schema.String })])
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const ndjson = <Request extends Value, Answer extends Value>(
  options: FramingOptions & {
    readonly request: Schema.Codec<Request, any>
    readonly reply: Schema.Codec<Answer, any>
  }
): Framing<Request, Answer> => ({
  ...schema(lines(options), {
    request: Schema.fromJsonString(options.request) as Schema.Codec<Request, string>,
    reply: Schema.fromJsonString(options.reply) as Schema.Codec<Answer, string>
  }),
  name: "ndjson"
})

/**
 * The framing as the other side has it: what a server gets is what its client sends.
 *
 * @category combinators
 * @since 0.1.0
 */
export const swap = <Message, Reply>(framing: Framing<Message, Reply>): Framing<Reply, Message> =>
  make(framing.name, framing.replies, framing.messages)

// ---- without a server

/**
 * Finds messages in chunks, step by step.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reader<out Message> {
  /** Adds what has arrived. The bytes belong to the reader from then on. */
  readonly push: (chunk: Uint8Array) => void
  /**
   * The next message; `undefined` where there is no whole one. A `FrameError` that is not recoverable is what every later call
   * gives, too.
   */
  readonly next: () => Message | FrameError | undefined
  /** The input has ended, and `next` has none: a last message, `undefined`, or `Incomplete`. */
  readonly end: () => Message | FrameError | undefined
}

/**
 * Reads what a server with this framing gets, chunk by chunk, without a server or a stream. For the replies that a client gets,
 * give it {@link swap} of the framing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const reader = <Message, Reply>(framing: Framing<Message, Reply>): Reader<Message> => new FrameReader(framing)

/**
 * From chunks of bytes to messages. Fails with `FrameError` behind the messages that came before; end of input in the middle
 * of a frame is one, with reason `Incomplete`.
 *
 * **Example** (The client's side of a server of lines)
 *
 * ```ts
 * import { Framing, MemoryTransport, Server } from "@socketserver/core"
 * import { Effect, Stream } from "effect"
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* Server.Server
 *   const client = yield* MemoryTransport.connect(server.address)
 *   const framing = Framing.swap(Framing.lines())
 *   yield* Stream.make("one", "two").pipe(Framing.encode(framing), Stream.run(client.sink))
 *   return yield* client.bytes.pipe(Framing.decode(framing), Stream.take(2), Stream.runCollect)
 * })
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const decode =
  <Message, Reply>(framing: Framing<Message, Reply>) =>
  <E, R>(self: Stream.Stream<Uint8Array, E, R>): Stream.Stream<Message, E | FrameError, R> =>
    Stream.transformPull(self, (pull) =>
      Effect.sync(() => {
        const reader = new FrameReader(framing)
        let failure: FrameError | undefined
        let ended = false
        const next: Pull.Pull<NonEmptyReadonlyArray<Message>, E | FrameError> = Effect.suspend(() => {
          if (failure !== undefined) return Effect.fail(failure)
          const messages: Array<Message> = []
          for (;;) {
            const message = reader.next() ?? (ended ? reader.end() : undefined)
            if (message === undefined) break
            if (message instanceof FrameError) {
              failure = message
              break
            }
            messages.push(message)
          }
          if (isReadonlyArrayNonEmpty(messages)) return Effect.succeed(messages)
          if (failure !== undefined) return Effect.fail(failure)
          if (ended) return Cause.done()
          return Effect.flatMap(more, () => next)
        })
        const more = Pull.catchDone(
          Effect.map(pull, (chunks) => chunks.forEach((chunk) => reader.push(chunk))),
          () =>
            Effect.sync(() => {
              ended = true
            })
        )
        return next
      }))

/**
 * From replies to chunks of bytes, as a server with this framing sends them; for what a client sends, give it {@link swap} of
 * the framing. What the stream has at once becomes one chunk. A reply that cannot be framed is a defect.
 *
 * @category combinators
 * @since 0.1.0
 */
export const encode =
  <Message, Reply>(framing: Framing<Message, Reply>) =>
  <E, R>(self: Stream.Stream<Reply, E, R>): Stream.Stream<Uint8Array, E, R> =>
    Stream.mapArray(self, (replies) => [joinBytes(replies.map(framing.replies.encode))])
