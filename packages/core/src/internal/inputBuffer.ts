/**
 * Bytes that have arrived and were not read yet. One contiguous piece: a chunk that finds it empty becomes the buffer as
 * it is, without a copy; a chunk that finds something in it is copied behind. Bytes once given out are never written again.
 */
export class InputBuffer {
  private bytes: Uint8Array = empty
  private start = 0
  private end = 0
  /** Is `bytes` an allocation of ours, with room behind `end`? A transport's chunk never is. */
  private growable = false

  get length(): number {
    return this.end - this.start
  }

  push(chunk: Uint8Array): void {
    if (this.start === this.end) {
      this.bytes = chunk
      this.start = 0
      this.end = chunk.length
      this.growable = false
      return
    }
    if (!this.growable || this.end + chunk.length > this.bytes.length) {
      // Doubling keeps the cost of a long line that arrives in drips linear.
      const grown = new Uint8Array(Math.max(2 * this.length, this.length + chunk.length, 256))
      grown.set(this.bytes.subarray(this.start, this.end))
      this.end = this.length
      this.start = 0
      this.bytes = grown
      this.growable = true
    }
    this.bytes.set(chunk, this.end)
    this.end += chunk.length
  }

  /** Everything, without a copy. */
  takeAll(): Uint8Array {
    const all = this.start === 0 && this.end === this.bytes.length
      ? this.bytes
      : this.bytes.subarray(this.start, this.end)
    this.clear()
    return all
  }

  /** The next `length` bytes, copied, so that four bytes of a header do not keep a 64 KiB chunk alive. */
  take(length: number): Uint8Array {
    if (length === this.length) return this.takeAll()
    const bytes = this.bytes.slice(this.start, this.start + length)
    this.skip(length)
    return bytes
  }

  /** The next `length` bytes as they lie, valid until the next `push`; they stay in the buffer. */
  peek(length: number): Uint8Array {
    return this.bytes.subarray(this.start, this.start + length)
  }

  at(index: number): number {
    return this.bytes[this.start + index]!
  }

  skip(length: number): void {
    this.start += length
    if (this.start === this.end) this.clear()
  }

  /** Where `byte` stands at or behind `from`, counted from the next unread byte; -1 where it does not. */
  indexOf(byte: number, from: number): number {
    const index = this.bytes.indexOf(byte, this.start + from)
    return index === -1 || index >= this.end ? -1 : index - this.start
  }

  clear(): void {
    this.bytes = empty
    this.start = 0
    this.end = 0
    this.growable = false
  }
}

const empty = new Uint8Array(0)
