/**
 * The open connections of a server: an array in which each knows its place, so that one comes and goes in constant time.
 *
 * A `Map` would be the obvious thing. But V8 moves the content of a `Map` to a new table whenever some dozens have come and
 * gone, an abandoned table refers to its successor, and when one table has grown old, young collections take all that came
 * after it for alive: connections that were closed long ago are copied about until the next full collection. (Bench "churn":
 * 1.38 of raw node:net's CPU time with a `Map`.)
 */
export interface Registered {
  readonly id: number
  /** Belongs to the registry. */
  place: number
}

export class Registry<A extends Registered> {
  private readonly members: Array<A> = []

  get size(): number {
    return this.members.length
  }

  add(member: A): void {
    member.place = this.members.length
    this.members.push(member)
  }

  delete(member: A): void {
    const last = this.members.pop()!
    if (last === member) return
    last.place = member.place
    this.members[member.place] = last
  }

  get(id: number): A | undefined {
    return this.members.find((member) => member.id === id)
  }

  sum(of: (member: A) => number): number {
    let sum = 0
    for (const member of this.members) sum += of(member)
    return sum
  }

  /** All of them, the oldest first; a copy, so members may go meanwhile. */
  values(): ReadonlyArray<A> {
    return this.members.toSorted((a, b) => a.id - b.id)
  }
}
