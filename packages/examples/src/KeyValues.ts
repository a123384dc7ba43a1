/**
 * What the Redis server stores: values by key, which may have a time to live. Its methods are plain functions: a command is one
 * turn of the program, so nothing comes between its steps. Time is the clock's of Effect, so tests can turn it. What it keeps of
 * commands are copies.
 */
import { Clock, Context, Effect, Layer } from "effect"
import { copyOf } from "./resp.ts"

/** A list that is pushed and popped at both ends, in constant time on average. */
export class List {
  /** The first part, its first item at the end. */
  private front: Array<string> = []
  private back: Array<string> = []

  get length(): number {
    return this.front.length + this.back.length
  }

  at(index: number): string {
    const { back, front } = this
    return index < front.length ? front[front.length - 1 - index]! : back[index - front.length]!
  }

  pushFirst(item: string): void {
    this.front.push(copyOf(item))
  }

  pushLast(item: string): void {
    this.back.push(copyOf(item))
  }

  popFirst(): string | undefined {
    // Half of what is there, so that popping at both ends in turn does not move all of it each time.
    if (this.front.length === 0) this.front = this.back.splice(0, Math.ceil(this.back.length / 2)).toReversed()
    return this.front.pop()
  }

  popLast(): string | undefined {
    if (this.back.length === 0) this.back = this.front.splice(0, Math.ceil(this.front.length / 2)).toReversed()
    return this.back.pop()
  }
}

export interface Entry {
  readonly key: string
  value: string | List
  /** In milliseconds since 1970; `Infinity` where it stays. */
  expiresAt: number
  size: number
}

/** What a key takes besides its own bytes and the value's, and an item of a list besides its own: about that. */
const entryOverhead = 128
export const itemOverhead = 40
/** So many keys with a time to live are looked at in one sweep. */
const sweepLimit = 1_000

const make = (clock: Clock.Clock, maxBytes: number) => {
  const entries = new Map<string, Entry>()
  /** The keys with a time to live: those that were looked at last are last. */
  const expiring = new Set<string>()
  let bytes = 0

  const isOver = (entry: Entry) => entry.expiresAt !== Infinity && entry.expiresAt <= clock.currentTimeMillisUnsafe()

  const remove = (entry: Entry): void => {
    entries.delete(entry.key)
    expiring.delete(entry.key)
    bytes -= entry.size
  }

  const get = (key: string): Entry | undefined => {
    const entry = entries.get(key)
    if (entry === undefined || !isOver(entry)) return entry
    remove(entry)
    return undefined
  }

  const expire = (entry: Entry, at: number): void => {
    entry.expiresAt = at
    if (at === Infinity) expiring.delete(entry.key)
    else expiring.add(entry.key)
  }

  return {
    get,
    set: (key: string, value: string | List, expiresAt = Infinity): Entry => {
      let entry = entries.get(key)
      const size = entryOverhead + key.length + (typeof value === "string" ? value.length : 0)
      const kept = typeof value === "string" ? copyOf(value) : value
      if (entry === undefined) {
        entry = { key: copyOf(key), value: kept, expiresAt: Infinity, size: 0 }
        entries.set(entry.key, entry)
      }
      entry.value = kept
      bytes += size - entry.size
      entry.size = size
      if (entry.expiresAt !== expiresAt) expire(entry, expiresAt)
      return entry
    },
    /** A value has been changed in place, and takes so many bytes more. */
    grow: (entry: Entry, by: number): void => {
      entry.size += by
      bytes += by
    },
    delete: (key: string): boolean => {
      const entry = get(key)
      if (entry !== undefined) remove(entry)
      return entry !== undefined
    },
    expire,
    clear: (): void => {
      entries.clear()
      expiring.clear()
      bytes = 0
    },
    keys: function*() {
      for (const [key, entry] of entries) if (!isOver(entry)) yield key
    },
    /** Those included that are over, and that nobody has noticed yet. */
    get size(): number {
      return entries.size
    },
    get bytes(): number {
      return bytes
    },
    get isFull(): boolean {
      return bytes >= maxBytes
    },
    now: () => clock.currentTimeMillisUnsafe(),
    /** Removes what is over, and that nobody asks for any more. */
    sweep: (): void => {
      let left = sweepLimit
      for (const key of expiring) {
        if (left-- === 0) break
        if (get(key) === undefined) continue
        expiring.delete(key)
        expiring.add(key)
      }
    }
  }
}

export class KeyValues
  extends Context.Service<KeyValues, ReturnType<typeof make>>()("@socketserver/examples/KeyValues")
{
  /** Holds `maxBytes`, by its own estimate: beyond that nothing more is taken. Default 64 MiB. */
  static readonly layer = (options?: { readonly maxBytes?: number | undefined }) =>
    Layer.effect(KeyValues, Effect.map(Clock.Clock, (clock) => make(clock, options?.maxBytes ?? 2 ** 26)))
}
