/**
 * The ways to take something from an input buffer, each a small state machine: `step` takes the result or says "more" (with
 * `undefined`), `end` is asked when there is no more. Input that arrives byte by byte is not searched again from the start:
 * the buffer remembers how far it was searched for a line end, and other searches remember it themselves.
 *
 * What a step takes is a bare value, not an effect: one object less for every line (bench "lines pipelined", loop).
 */
import * as Arr from "effect/Array"
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { type ConnectionError, LimitExceeded, UnexpectedEnd } from "../ConnectionError.ts"
import type { Input } from "../Framing.ts"
import type { Loan } from "../StreamTransport.ts"
import type { InputBuffer } from "./inputBuffer.ts"

/** Whose input is read: makes the connection's error of a reason. */
export interface Reader {
  readonly fail: (reason: LimitExceeded | UnexpectedEnd) => Effect.Effect<never, ConnectionError>
}

export interface Read<A> {
  /** The result; why there will be none; or `undefined` where it takes more input. */
  readonly step: (input: InputBuffer) => A | LimitExceeded | undefined
  /** The result where nothing is buffered, a chunk arrives, and any chunk will do: for reads that need no buffer. */
  readonly direct?: (chunk: Uint8Array, loan: Loan | undefined) => A
  /**
   * Is its step what it is for, and a result the exception? Then it is called as input arrives, and the fiber that reads is woken
   * only for a result. (Bench "resp PING × 64": 0.17 of the 0.44 µs that a chunk cost besides the system's part.)
   */
  readonly handles?: true
  readonly end: (input: InputBuffer, reader: Reader) => Effect.Effect<A, ConnectionError | Cause.Done>
}

const defaultMaxLength = 65_536

const newline = 10
const carriageReturn = 13
const done = Cause.done()
const encoder = new TextEncoder()
// A BOM is data on a socket; the decoder's default would drop one at the start of every line.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

const checkedMaxLength = (maxLength: number | undefined): number => {
  if (maxLength === undefined) return defaultMaxLength
  if (!(maxLength >= 0)) throw new RangeError(`maxLength is ${maxLength}: expected a number of bytes, 0 or more`)
  return maxLength
}

/** A chunk for its reader, for good. */
const own = (chunk: Uint8Array, loan: Loan | undefined): Uint8Array => loan === undefined ? chunk : loan.copy(chunk)

export const pull: Read<Uint8Array> = {
  step: (input) => input.length === 0 ? undefined : input.takeFirst(),
  direct: own,
  end: () => done
}

export const pullArray: Read<NonEmptyReadonlyArray<Uint8Array>> = {
  step: (input) => input.length === 0 ? undefined : [input.takeFirst()],
  direct: (chunk, loan) => [own(chunk, loan)],
  end: () => done
}

/** Lends chunks that can be lent; `lend` is told of each. */
export const pullBorrowed = (lend: () => void): Read<Uint8Array> => ({
  step: (input) => {
    if (input.length === 0) return undefined
    const bytes = input.lendFirst()
    if (bytes === undefined) return input.takeFirst()
    lend()
    return bytes
  },
  direct: (chunk, loan) => {
    if (loan?.keep === undefined) return own(chunk, loan)
    lend()
    return chunk
  },
  end: pull.end
})

/** The length of a line whose `\n` is at `index`, without a `\r` before it. */
const lineLength = (input: InputBuffer, index: number): number =>
  index > 0 && input.at(index - 1) === carriageReturn ? index - 1 : index

/** A last line, without a `\n`. */
const lastLine = (
  input: InputBuffer,
  max: number,
  reader: Reader
): Effect.Effect<string, ConnectionError | Cause.Done> => {
  const length = input.length
  if (length === 0) return done
  if (length > max) return reader.fail(new LimitExceeded({ operation: "readLine", limit: max }))
  return Effect.succeed(decoder.decode(input.take(length)))
}

/** Are the bytes that are there, none of them a `\n`, already more than a line may have? A `\r` might belong to its end. */
const pastLine = (input: InputBuffer, max: number): boolean =>
  input.length > max + 1 || (input.length === max + 1 && input.at(max) !== carriageReturn)

export const line = (maxLength?: number): Read<string> => {
  const max = checkedMaxLength(maxLength)
  return {
    step: (input) => {
      const line = input.takeDecodedLine(max)
      if (line !== undefined) return line
      const index = input.indexOfNext(newline)
      if (index === -1 && !pastLine(input, max)) return undefined
      const length = index === -1 ? Infinity : lineLength(input, index)
      return length > max
        ? new LimitExceeded({ operation: "readLine", limit: max })
        : input.takeLine(length, index)
    },
    end: (input, reader) => lastLine(input, max, reader)
  }
}

/** All complete lines that are there, at least one. */
export const lines = (maxLength?: number): Read<NonEmptyReadonlyArray<string>> => {
  const max = checkedMaxLength(maxLength)
  return {
    step: (input) => {
      const first = input.indexOfNext(newline)
      if (first === -1) {
        return pastLine(input, max) ? new LimitExceeded({ operation: "lines", limit: max }) : undefined
      }
      const last = input.lastIndexOf(newline)
      if (first === last && last <= max) return [input.takeLine(lineLength(input, first), first)]
      // All of it within the limit of one: no line needs to be measured. (Bench "lines pipelined": half the cost.)
      return last <= max
        ? takeLines(input, last)
        : takeMeasuredLines(input, max) ?? new LimitExceeded({ operation: "lines", limit: max })
    },
    end: (input, reader) => Effect.map(lastLine(input, max, reader), Arr.of)
  }
}

/** The lines up to the `\n` at `last`, decoded in one go. */
const takeLines = (input: InputBuffer, last: number): NonEmptyReadonlyArray<string> => {
  const text = decoder.decode(input.peek(last))
  input.skip(last + 1)
  const lines = text.split("\n")
  if (text.includes("\r")) {
    for (let i = 0; i < lines.length; i++) {
      const line = lines[i]!
      if (line.endsWith("\r")) lines[i] = line.slice(0, -1)
    }
  }
  return lines as unknown as NonEmptyReadonlyArray<string>
}

/** The lines before one that is too long, which fails the next read: what came before is not lost. */
const takeMeasuredLines = (
  input: InputBuffer,
  max: number
): NonEmptyReadonlyArray<string> | undefined => {
  const taken: Array<string> = []
  let index = input.indexOf(newline, 0)
  while (index !== -1 && lineLength(input, index) <= max) {
    taken.push(input.takeLine(lineLength(input, index), index))
    index = input.indexOf(newline, 0)
  }
  return Arr.isReadonlyArrayNonEmpty(taken) ? taken : undefined
}

export const exactly = (length: number, maxLength?: number): Read<Uint8Array> => {
  const max = checkedMaxLength(maxLength)
  if (!Number.isInteger(length) || length < 0) {
    throw new RangeError(`readExactly: length is ${length}: expected an integer, 0 or more`)
  }
  return {
    step: (input) => {
      if (length > max) return new LimitExceeded({ operation: "readExactly", limit: max })
      return input.length < length ? undefined : input.take(length)
    },
    end: (input, reader) =>
      input.length === 0 ? done : reader.fail(new UnexpectedEnd({ operation: "readExactly", received: input.length }))
  }
}

export const until = (delimiter: string | Uint8Array, maxLength?: number): Read<Uint8Array> => {
  const max = checkedMaxLength(maxLength)
  const mark = typeof delimiter === "string" ? encoder.encode(delimiter) : delimiter
  if (mark.length === 0) throw new RangeError("readUntil: the delimiter is empty")
  let searched = 0
  return {
    step: (input) => {
      const index = find(input, mark, searched)
      if (index === -1) {
        searched = Math.max(0, input.length - mark.length + 1)
        return searched > max ? new LimitExceeded({ operation: "readUntil", limit: max }) : undefined
      }
      if (index > max) return new LimitExceeded({ operation: "readUntil", limit: max })
      const bytes = input.take(index)
      input.skip(mark.length)
      return bytes
    },
    end: (input, reader) =>
      input.length === 0 ? done : reader.fail(new UnexpectedEnd({ operation: "readUntil", received: input.length }))
  }
}

export const all = (maxLength?: number): Read<Uint8Array> => {
  const max = checkedMaxLength(maxLength)
  return {
    step: (input) => input.length > max ? new LimitExceeded({ operation: "readAll", limit: max }) : undefined,
    end: (input) => Effect.succeed(input.take(input.length))
  }
}

/** Where `mark` stands at or behind `from`; -1 where it does not. */
export const find = (input: Input, mark: Uint8Array, from: number): number => {
  let index = input.indexOf(mark[0]!, from)
  search: while (index !== -1 && index + mark.length <= input.length) {
    for (let i = 1; i < mark.length; i++) {
      if (input.at(index + i) !== mark[i]) {
        index = input.indexOf(mark[0]!, index + 1)
        continue search
      }
    }
    return index
  }
  return -1
}
