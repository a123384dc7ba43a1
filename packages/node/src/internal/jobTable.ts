/**
 * Jobs by their numbers: an array in which each has a place, which its number tells.
 *
 * Not a `Map`: V8 abandons a `Map`'s table whenever some dozens have come and gone, and an abandoned table that has grown old
 * keeps what it held, and what came after it, from being collected with the young; see `internal/registry.ts` of the core. (Bench
 * "workers: churn": garbage of some 8 KiB for each connection that only a full collection finds.)
 */
const places = 2 ** 20
/** Numbers repeat after so many jobs in the same place, when nobody remembers the first. */
const rounds = 2 ** 32

export class JobTable<A extends { readonly id: number }> {
  private readonly members: Array<A | undefined> = []
  private readonly free: Array<number> = []
  private last = 0

  /** A number, for one that is put here until it is taken away with `release`. */
  reserve(): number {
    const place = this.free.pop() ?? this.members.push(undefined) - 1
    this.last = (this.last + 1) % rounds
    return this.last * places + place
  }

  /** Gives the number back; once. */
  release(id: number): void {
    this.delete(id)
    this.free.push(id % places)
  }

  set(member: A): void {
    const place = member.id % places
    while (this.members.length <= place) this.members.push(undefined)
    this.members[place] = member
  }

  get(id: number): A | undefined {
    const member = this.members[id % places]
    return member?.id === id ? member : undefined
  }

  delete(id: number): void {
    if (this.get(id) !== undefined) this.members[id % places] = undefined
  }

  values(): ReadonlyArray<A> {
    return this.members.filter((member) => member !== undefined)
  }
}
