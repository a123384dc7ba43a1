/**
 * How a thread tells its server which of its connections are done: in memory that both have. A message would cost each of them
 * as much as much of the rest of a short connection, for it wakes the other thread (bench "workers: churn"). So the server is
 * woken by a message only for the first report after a quiet moment. From then on it looks by itself: every few milliseconds,
 * whenever that matters, as before it admits one more connection, and when the thread has ended, however it did. It goes back to
 * being woken when there was nothing for a while, or when somebody waits for what the reports free.
 *
 * A ring that one thread writes and the other reads; each moves its own index only. Messages and reports keep their order: a
 * report says how many messages the thread has posted before, and is taken when so many have been received.
 */
/** A power of two: indices only grow, and begin anew at 2 ** 32. */
const capacity = 512
const last = capacity - 1
const fields = 5
/** Where the indices are, and whether the reader looks by itself. */
const written = 0
const taken = 1
const looking = 2
const indexBytes = 16

/** The handler of a connection has ended with nothing to say, or nothing is left of the connection. */
export type Reported = "ended" | "released"

export class Reports {
  readonly memory: SharedArrayBuffer
  private readonly indices: Int32Array
  private readonly entries: Float64Array

  constructor(memory = new SharedArrayBuffer(indexBytes + capacity * fields * Float64Array.BYTES_PER_ELEMENT)) {
    this.memory = memory
    this.indices = new Int32Array(memory, 0, indexBytes / Int32Array.BYTES_PER_ELEMENT)
    this.entries = new Float64Array(memory, indexBytes)
  }

  // ---- the thread

  /** Is there room for it? */
  add(what: Reported, id: number, bytesRead: number, bytesWritten: number, posted: number): boolean {
    const { entries, indices } = this
    const index = indices[written]!
    if ((index - Atomics.load(indices, taken) | 0) === capacity) return false
    const at = (index & last) * fields
    entries[at] = what === "ended" ? 0 : 1
    entries[at + 1] = id
    entries[at + 2] = bytesRead
    entries[at + 3] = bytesWritten
    entries[at + 4] = posted
    Atomics.store(indices, written, index + 1)
    return true
  }

  /** Is the reader to be woken? Only one asks for that. */
  get mustWake(): boolean {
    return Atomics.exchange(this.indices, looking, 1) === 0
  }

  // ---- the server

  /** Was there anything? */
  take(
    received: number,
    report: (what: Reported, id: number, bytesRead: number, bytesWritten: number) => void
  ): boolean {
    const { entries, indices } = this
    let found = false
    // What a report leads to may look here too.
    for (let index; (index = indices[taken]!) !== Atomics.load(indices, written);) {
      const at = (index & last) * fields
      if (entries[at + 4]! > received) break
      found = true
      const [what, id, bytesRead, bytesWritten] = [entries[at]!, entries[at + 1]!, entries[at + 2]!, entries[at + 3]!]
      Atomics.store(indices, taken, index + 1)
      report(what === 0 ? "ended" : "released", id, bytesRead, bytesWritten)
    }
    return found
  }

  /** Does the reader look by itself? */
  get isLooking(): boolean {
    return Atomics.load(this.indices, looking) === 1
  }

  /** The next report wakes the reader again. What came before that is still to be taken. */
  stopLooking(): void {
    Atomics.store(this.indices, looking, 0)
  }
}
