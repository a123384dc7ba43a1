import type { Input } from "../Framing.ts"
import type { Loan } from "../StreamTransport.ts"

/**
 * Bytes that have arrived and were not read yet: a contiguous piece that reads look into, and the chunks that came behind it.
 * A chunk that finds nothing becomes the piece as it is; the chunks behind it are joined to it only when a read has to look
 * across. Bytes once given out are never written again.
 *
 * A chunk on loan is the transport's again when its delivery returns. A line of it is decoded where it lies; what is given
 * out as bytes, and what is still there at the end (`keep`), is copied.
 */
// A BOM is data on a socket; the decoder's default would drop one at the start of every line.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true })

export class InputBuffer implements Input {
  private piece: Uint8Array = empty
  private start = 0
  private end = 0
  /** Is `piece` an allocation of ours, with room behind `end`? A transport's chunk never is. */
  private growable = false
  /** Set while `piece` is on loan. */
  private loan: Loan | undefined
  private behind: Array<Uint8Array> | undefined
  private behindLength = 0

  get length(): number {
    return this.end - this.start + this.behindLength
  }

  push(chunk: Uint8Array, loan: Loan | undefined): void {
    if (this.start === this.end) {
      this.piece = chunk
      this.start = 0
      this.end = chunk.length
      this.growable = false
      this.loan = loan
      return
    }
    const behind = this.behind ??= []
    behind.push(loan === undefined ? chunk : loan.copy(chunk))
    this.behindLength += chunk.length
    // Bytes that come one by one, and that nobody looks at yet, must not take a hundred times their space.
    if (behind.length === maxBehind) this.join()
  }

  /** The delivery of a chunk on loan is over: what was not read of it becomes our own. */
  keep(): void {
    if (this.loan === undefined || this.start === this.end) return
    this.piece = this.loan.copy(this.piece.subarray(this.start, this.end))
    this.end -= this.start
    this.start = 0
    this.loan = undefined
  }

  /** The first piece, without a copy where it is ours to give. */
  takeFirst(): Uint8Array {
    const bytes = this.loan === undefined ? this.first : this.loan.copy(this.first)
    this.next()
    return bytes
  }

  /** The first piece as it lies, if it is on a loan that can be kept; `undefined` otherwise. */
  lendFirst(): Uint8Array | undefined {
    if (this.loan?.keep === undefined) return undefined
    const bytes = this.first
    this.next()
    return bytes
  }

  private get first(): Uint8Array {
    return this.start === 0 && this.end === this.piece.length
      ? this.piece
      : this.piece.subarray(this.start, this.end)
  }

  /** The next `length` bytes, copied, so that four bytes of a header do not keep a 64 KiB chunk alive. */
  take(length: number): Uint8Array {
    this.join()
    if (length === this.length && length > 0) return this.takeFirst()
    const bytes = new Uint8Array(this.piece.subarray(this.start, this.start + length))
    this.skip(length)
    return bytes
  }

  /** The next `length` bytes as they lie, valid until the next call; they stay in the buffer. */
  peek(length: number): Uint8Array {
    this.join()
    return this.piece.subarray(this.start, this.start + length)
  }

  get bytes(): Uint8Array {
    this.join()
    return this.piece
  }

  get offset(): number {
    this.join()
    return this.start
  }

  at(index: number): number {
    this.join()
    return this.piece[this.start + index]!
  }

  skip(length: number): void {
    this.join()
    this.start += length
    this.searched = 0
    this.textLeft -= length
    if (this.start === this.end) this.next()
  }

  /** Where `byte` stands at or behind `from`, counted from the next unread byte; -1 where it does not. */
  indexOf(byte: number, from: number): number {
    this.join()
    // What lies behind the end is not searched for every byte that comes: that would be quadratic.
    if (this.piece.length - this.end > tailLimit) {
      const index = this.piece.subarray(this.start + from, this.end).indexOf(byte)
      return index === -1 ? -1 : index + from
    }
    const index = this.piece.indexOf(byte, this.start + from)
    return index === -1 || index >= this.end ? -1 : index - this.start
  }

  /** Complete lines from `start` on, seen as text together if that is possible, and how many of their bytes are left. */
  private text: string | undefined
  private textLeft = 0

  /**
   * The next line, if it is among those that were decoded together, and has `max` bytes at most. All of a pipelined line's
   * cost but the interpreter's is here, so nothing is looked at twice.
   */
  takeDecodedLine(max: number): string | undefined {
    const { text, textLeft } = this
    if (text === undefined || textLeft <= 0) return undefined
    const from = text.length - textLeft
    const newline = text.indexOf("\n", from)
    if (newline === -1) return undefined
    const end = newline > from && text.charCodeAt(newline - 1) === carriageReturn ? newline - 1 : newline
    if (end - from > max) return undefined
    this.textLeft = text.length - newline - 1
    this.start += newline + 1 - from
    this.searched = 0
    if (this.start === this.end) this.next()
    return text.slice(from, end)
  }

  /** The next `length` bytes as text; they and the rest of the line, whose `\n` is at `index`, are skipped. */
  takeLine(length: number, index: number): string {
    if (this.textLeft <= 0 && index + 1 < this.length) {
      this.decodeLines()
      const line = this.takeDecodedLine(length)
      if (line !== undefined) return line
    }
    const line = decoder.decode(this.peek(length))
    this.skip(index + 1)
    return line
  }

  /**
   * There are more lines behind the next one: they are decoded together, since each call of the decoder costs more than a
   * line's bytes. (Bench "lines pipelined", loop: 0.56 of raw node:net without this.) With nothing but ASCII among them, a
   * character is a byte, and a line is a slice; otherwise they are decoded one by one.
   */
  private decodeLines(): void {
    const last = this.piece.lastIndexOf(newline, Math.min(this.end, this.start + textLimit) - 1)
    this.decodeTo(last + 1)
  }

  /** The next `length` bytes as text. */
  takeText(length: number): string {
    if (this.textLeft <= 0 && length < this.length) this.decodeAhead()
    const { text, textLeft } = this
    if (text === undefined || textLeft < length) {
      const bytes = decoder.decode(this.peek(length))
      this.skip(length)
      return bytes
    }
    const from = text.length - textLeft
    this.skip(length)
    return text.slice(from, from + length)
  }

  /** The same for texts that are no lines. */
  private decodeAhead(): void {
    this.join()
    this.decodeTo(Math.min(this.end, this.start + textLimit))
  }

  private decodeTo(end: number): void {
    const length = end - this.start
    if (length <= 0) return
    const text = decoder.decode(this.piece.subarray(this.start, end))
    this.text = text.length === length ? text : undefined
    this.textLeft = length
  }

  /** How far there is no `searchedFor`, counted from `start`. */
  private searched = 0
  private searchedFor = -1

  /** Where the next `byte` stands; what was searched for it in vain before is not searched again. */
  indexOfNext(byte: number): number {
    const from = this.searchedFor === byte ? this.searched : 0
    const index = this.indexOf(byte, from)
    this.searchedFor = byte
    this.searched = index === -1 ? this.length : index
    return index
  }

  /** Where `byte` stands last; -1 where it does not. */
  lastIndexOf(byte: number): number {
    this.join()
    const index = this.piece.lastIndexOf(byte, this.end - 1)
    return index < this.start ? -1 : index - this.start
  }

  clear(): void {
    this.behind = undefined
    this.behindLength = 0
    this.next()
  }

  /** The first piece has been read. */
  private next(): void {
    const { behind } = this
    const bytes = behind?.shift() ?? empty
    if (behind?.length === 0) this.behind = undefined
    if (bytes !== empty) this.behindLength -= bytes.length
    this.piece = bytes
    this.start = 0
    this.end = bytes.length
    this.searched = 0
    this.text = undefined
    this.textLeft = 0
    this.growable = false
    this.loan = undefined
  }

  /** Joins what came behind to the first piece. Doubling keeps the cost of a long line that arrives in drips linear. */
  private join(): void {
    if (this.behind === undefined) return
    const { length } = this
    if (!this.growable || this.start + length > this.piece.length) {
      const grown = new Uint8Array(Math.max(2 * (this.end - this.start), length, 256))
      grown.set(this.piece.subarray(this.start, this.end))
      this.end -= this.start
      this.start = 0
      this.piece = grown
      this.growable = true
      this.loan = undefined
    }
    for (const chunk of this.behind) {
      this.piece.set(chunk, this.end)
      this.end += chunk.length
    }
    this.behind = undefined
    this.behindLength = 0
  }
}

const empty = new Uint8Array(0)
const newline = 10
const carriageReturn = 13

/** Lines are slices of the text that they were decoded with, and keep it alive: so it is this long at most. */
const textLimit = 4_096

/** A piece with more room than this behind its end is not searched as a whole. */
const tailLimit = 256

/** So many chunks may lie behind the first piece before they are joined to it. */
const maxBehind = 32

/** For all connections that hold no input: idle ones, and those whose reads take chunks as they come, need none of their own. */
export const noInput = new InputBuffer()
