/**
 * The protocol of Redis, [RESP](https://redis.io/docs/latest/develop/reference/protocol-spec/) version 2, as a framing. What a
 * server gets is a command, a list of arguments: an array of bulk strings, or a line that somebody has typed. What it answers is
 * a `Reply`.
 *
 * Arguments and values are bytes, and here strings of bytes: each character is one, 0 to 255, which Node calls `latin1`. They
 * cost no more than bytes, compare by value, and are keys of a `Map`.
 */
import { FrameError, Framing } from "@socketserver/core"

/** The name of a command, and what it is given. Who keeps an argument for longer keeps a copy: see `copyOf`. */
export type Command = ReadonlyArray<string>

/** A string is a bulk string, the only kind that may have any bytes; `null` is none. */
export type Reply = string | number | bigint | null | Status | Failure | ReadonlyArray<Reply>

/** A short text that says how it went, such as `OK`. The same few are sent again and again: each is encoded once. */
export class Status {
  readonly text: string
  readonly frame: Uint8Array | string
  constructor(text: string) {
    this.text = text
    this.frame = frameOf(line("+", text))
  }
}

/** What went wrong: a word in capitals, and a text for people. It can be thrown, and is a reply all the same. */
export class Failure extends Error {}

/** The bounds of what is received, in bytes where they are not counts. */
export interface Limits {
  /** One argument, `proto-max-bulk-len` of Redis. Default 16 MiB, where Redis has 512. */
  readonly maxBulkLength?: number | undefined
  /** The arguments of one command. Default 1,048,576, as Redis has it. */
  readonly maxArguments?: number | undefined
  /** One command with everything, or one reply. Default 64 MiB. */
  readonly maxLength?: number | undefined
}

/** A line that was typed, the text of a status, or the wrong end of something else. */
const maxLine = 65_536
/** Of `*1048576\r\n` and the like: what is longer is no number that we take. */
const maxDigits = 9
/** Arrays in arrays; only replies have them. */
const maxDepth = 32

/** Commands that came together are decoded together, so much at a time. */
const textLimit = 4_096
/** The arguments up to this length are slices of that. */
const maxSlice = 1_024
/** A list of this length is made before its arguments are there; a longer one grows. */
const fewArguments = 8

const carriageReturn = 13
const newline = 10
const dollar = 36
const star = 42
const minus = 45
const zero = 48
const nine = 57

const malformed = (detail: string) =>
  new FrameError.FrameError({ framing: "resp", reason: new FrameError.Malformed({ detail }) })
const unencodable = (detail: string) =>
  new FrameError.FrameError({ framing: "resp", reason: new FrameError.Unencodable({ detail }) })

// ---- bytes and strings of them

const textOf = (bytes: Uint8Array, from: number, to: number): string =>
  Buffer.prototype.latin1Slice.call(bytes, from, to)

/**
 * An argument that keeps nothing else alive. As it came, it may be a slice of a longer text. V8 makes one string of two when they
 * are searched, so what is found here is a slice of a copy. (A copy by way of bytes costs twice as much.)
 */
export const copyOf = (text: string): string => text.length > maxSlice ? text : `-${text}`.replace("-", "")

/** The same few short names come again and again: those that came last, by a hash of their bytes. */
const names = Array.from({ length: 256 }, () => "")
const maxName = 16

const nameOf = (bytes: Uint8Array, from: number, to: number): string => {
  if (to - from > maxName) return textOf(bytes, from, to)
  let hash = 0
  for (let i = from; i < to; i++) hash = (hash * 31 + bytes[i]!) & 255
  const name = names[hash]!
  if (name.length === to - from) {
    let i = 0
    while (i < name.length && name.charCodeAt(i) === bytes[from + i]) i++
    if (i === name.length) return name
  }
  return names[hash] = textOf(bytes, from, to)
}

const isAscii = (text: string): boolean => Buffer.byteLength(text) === text.length

/** A frame of characters that are bytes. As text it would be UTF-8, which is the same only for ASCII. */
const frameOf = (text: string): Uint8Array | string => {
  if (isAscii(text)) return text
  // oxlint-disable-next-line no-control-regex
  if (/[^\0-\xff]/.test(text)) throw unencodable("a character that is no byte cannot be written")
  return Buffer.from(text, "latin1")
}

/** There may be text of clients in it: a line end would be the end of the reply. */
const line = (type: string, text: string): string => `${type}${text.replaceAll(/[\r\n]/g, " ")}\r\n`

/** What stands before bulk strings of up to so many bytes, as Redis has it: made once. */
const bulkHeaders = Array.from({ length: 1_024 }, (_, length) => `$${length}\r\n`)

const bulk = (text: string): string => `${bulkHeaders[text.length] ?? `$${text.length}\r\n`}${text}\r\n`

const encodeCommand = (command: Command): Uint8Array | string =>
  frameOf(`*${command.length}\r\n${command.map(bulk).join("")}`)

const encodeReply = (reply: Reply): Uint8Array | string =>
  reply instanceof Status
    ? reply.frame
    : typeof reply === "string" && isAscii(reply)
    ? bulk(reply)
    : frameOf(encoded(reply))

const encoded = (reply: Reply): string => {
  if (typeof reply === "string") return bulk(reply)
  if (reply === null) return "$-1\r\n"
  if (typeof reply !== "object") return `:${reply}\r\n`
  if (reply instanceof Status) return line("+", reply.text)
  if (reply instanceof Failure) return line("-", reply.message)
  return `*${reply.length}\r\n${reply.map(encoded).join("")}`
}

// ---- commands

const none: Array<string> = []

/**
 * Arguments are taken as they are complete, so that nothing is looked at twice, and nothing is allocated because a peer has said
 * that it will come.
 */
const commandDecoder = (maxBulkLength: number, maxArguments: number): Framing.Decoder<Command> => {
  let args = none
  /** How many of them are there. */
  let count = 0
  /** How many are still to come; 0 where no array has begun. */
  let missing = 0
  /** Of the next one, if that has been read. */
  let length = -1
  /** How much of a line without an end is known to have none. */
  let searched = 0
  /** What was decoded together, and where it begins, counted from the next byte: below zero, most of the time. Not kept longer. */
  let text = ""
  let textAt = 0
  /** Where it reads. */
  let at = 0

  /** The number behind the type byte, with its line: `undefined` where that is not complete, NaN where it is none. */
  const readNumber = (bytes: Uint8Array, end: number): number | undefined => {
    const isNegative = at + 1 < end && bytes[at + 1] === minus
    const first = at + (isNegative ? 2 : 1)
    const last = Math.min(end, first + maxDigits)
    let value = 0
    let i = first
    for (; i < last && bytes[i]! >= zero && bytes[i]! <= nine; i++) value = value * 10 + bytes[i]! - zero
    if (i < end && (i === first || bytes[i] !== carriageReturn)) return Number.NaN
    if (i + 1 >= end) return undefined
    if (bytes[i + 1] !== newline) return Number.NaN
    at = i + 2
    return isNegative ? -value : value
  }

  const take = (input: Framing.Input, length: number): void => {
    input.skip(length)
    textAt -= length
  }

  /** The argument between `from` and `to` of the input that lies in `bytes`, from `offset` to `end`. */
  const argument = (bytes: Uint8Array, offset: number, from: number, to: number, end: number): string => {
    if (to - from > maxSlice) return textOf(bytes, from, to)
    if (to - offset > textAt + text.length) {
      text = textOf(bytes, from, Math.min(end, from + textLimit))
      textAt = from - offset
    }
    return text.slice(from - offset - textAt, to - offset - textAt)
  }

  return {
    read: (input) => {
      if (input.length < (length === -1 ? 1 : length + 2)) {
        text = ""
        return undefined
      }
      const { bytes, offset } = input
      const end = offset + input.length
      at = offset
      while (at < end) {
        if (missing > 0) {
          if (length === -1) {
            if (bytes[at] !== dollar) return malformed(`expected '$', got '${String.fromCharCode(bytes[at]!)}'`)
            const announced = readNumber(bytes, end)
            if (announced === undefined) break
            if (!(announced >= 0 && announced <= maxBulkLength)) return malformed("invalid bulk length")
            length = announced
          }
          const last = at + length
          if (last + 2 > end) break
          if (bytes[last] !== carriageReturn || bytes[last + 1] !== newline) {
            return malformed("no end behind a bulk string")
          }
          args[count] = count === 0 ? nameOf(bytes, at, last) : argument(bytes, offset, at, last, end)
          count++
          at = last + 2
          length = -1
          if (--missing > 0) continue
          take(input, at - offset)
          const command = args
          args = none
          return command
        }
        if (bytes[at] === star) {
          const announced = readNumber(bytes, end)
          if (announced === undefined) break
          if (!(announced <= maxArguments)) return malformed("invalid multibulk length")
          // An empty command is none, and has no reply.
          missing = Math.max(0, announced)
          // oxlint-disable-next-line unicorn/no-new-array -- `Array.from` would look for what is to be in it
          args = new Array<string>(Math.min(missing, fewArguments))
          count = 0
        } else {
          const last = bytes.subarray(0, end).indexOf(newline, at + searched)
          if ((last === -1 ? end : last) - at > maxLine) return malformed("too big inline request")
          searched = last === -1 ? end - at : 0
          if (last === -1) break
          const command = wordsOf(textOf(bytes, at, last))
          if (command === undefined) return malformed("unbalanced quotes in request")
          at = last + 1
          if (command.length === 0) continue
          take(input, at - offset)
          return command
        }
      }
      take(input, at - offset)
      text = ""
      return undefined
    }
  }
}

/** The words of a line, some of them in quotes; `undefined` where those do not match. */
const wordsOf = (line: string): Command | undefined => {
  const words: Array<string> = []
  const word = /\s*(?:"((?:[^"\\]|\\[^])*)"|'((?:[^'\\]|\\[^])*)'|([^\s"']+))(?=\s|$)/y
  const end = line.trimEnd().length
  while (word.lastIndex < end) {
    const match = word.exec(line)
    if (match === null) return undefined
    const [, double, single, plain] = match
    const text = double?.replaceAll(/\\(?:x([\da-f]{2})|([^]))/gi, unescaped) ?? single?.replaceAll("\\'", "'") ??
      plain!
    words.push(Buffer.from(text, "latin1").toString("latin1"))
  }
  return words
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", b: "\b", a: "\u0007" }

const unescaped = (_: string, hex: string | undefined, character: string): string =>
  hex === undefined ? escapes[character] ?? character : String.fromCharCode(Number.parseInt(hex, 16))

// ---- replies

/** An array that is not complete. */
interface Open {
  readonly items: Array<Reply>
  readonly count: number
}

const replyDecoder = (maxBulkLength: number): Framing.Decoder<Reply> => {
  const open: Array<Open> = []
  let length = -1
  let searched = 0

  /** The next line, without its end. */
  const readLine = (input: Framing.Input): string | FrameError.FrameError | undefined => {
    const end = input.indexOf(newline, searched)
    if ((end === -1 ? input.length : end) > maxLine) return malformed("too big line")
    searched = end === -1 ? input.length : 0
    if (end === -1) return undefined
    const bytes = input.peek(end)
    if (bytes[end - 1] !== carriageReturn) return malformed("a line without its end")
    const line = textOf(bytes, 0, end - 1)
    input.skip(end + 1)
    return line
  }

  /** The next reply that is no array, or the beginning of one. */
  const readPart = (input: Framing.Input): Reply | Open | FrameError.FrameError | undefined => {
    if (length === -1) {
      const read = readLine(input)
      if (typeof read !== "string") return read
      const text = read.slice(1)
      if (read[0] === "+") return new Status(text)
      if (read[0] === "-") return new Failure(text)
      if (!/^-?\d{1,19}$/.test(text)) return malformed(`not a reply: ${read.slice(0, 32)}`)
      const number = Number(text)
      if (read[0] === ":") return Number.isSafeInteger(number) ? number : BigInt(text)
      if (read[0] === "*") return number === -1 ? null : number === 0 ? [] : { items: [], count: number }
      if (read[0] !== "$") return malformed(`not a reply: ${read.slice(0, 32)}`)
      if (number === -1) return null
      if (number < 0 || number > maxBulkLength) return malformed("invalid bulk length")
      length = number
    }
    if (input.length < length + 2) return undefined
    const bytes = input.peek(length + 2)
    if (bytes[length] !== carriageReturn || bytes[length + 1] !== newline) {
      return malformed("no end behind a bulk string")
    }
    const text = textOf(bytes, 0, length)
    input.skip(length + 2)
    length = -1
    return text
  }

  return {
    read: (input) => {
      for (;;) {
        let part = readPart(input)
        if (part === undefined || part instanceof FrameError.FrameError) return part
        if (isOpen(part)) {
          if (part.count < 0 || open.length === maxDepth) return malformed("invalid multibulk length")
          open.push(part)
          continue
        }
        for (let outer = open.at(-1); outer !== undefined; outer = open.at(-1)) {
          outer.items.push(part)
          if (outer.items.length < outer.count) break
          open.pop()
          part = outer.items
        }
        if (open.length === 0) return part
      }
    }
  }
}

const isOpen = (part: Reply | Open): part is Open => typeof part === "object" && part !== null && "items" in part

/** The framing of a server of Redis; its client's is `Framing.swap` of it. */
export const resp = (limits: Limits = {}): Framing.Framing<Command, Reply> => {
  const { maxArguments = 1_048_576, maxBulkLength = 2 ** 24, maxLength = 2 ** 26 } = limits
  return Framing.custom<Command, Reply>({
    name: "resp",
    maxLength,
    decoder: () => commandDecoder(maxBulkLength, maxArguments),
    encode: encodeReply,
    client: { decoder: () => replyDecoder(maxBulkLength), encode: encodeCommand }
  })
}
