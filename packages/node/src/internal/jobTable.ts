/**
 * Jobs by their numbers: an array in which each has a place, which its number tells.
 *
 * Not a `Map`, for the reason given in `registry.ts` of the core: an abandoned table that has grown old keeps what came after it
 * from being collected with the young. (Bench "workers: churn".)
 */
const places = 2 ** 20
/** Numbers repeat after so many jobs, when nobody remembers the first. */
const rounds = 2 ** 32

/** Numbers for jobs. Places are used again, so that arrays stay as short as there are jobs at a time. */
export class JobNumbers {
  private readonly free: Array<number> = []
  private used = 0
  private last = 0

  take(): number {
    const place = this.free.pop() ?? this.used++
    this.last = (this.last + 1) % rounds
    return this.last * places + place
  }

  /** Once. */
  giveBack(id: number): void {
    this.free.push(id % places)
  }
}

export class JobTable<A extends { readonly id: number }> {
  private readonly members: Array<A | undefined> = []
  private count = 0

  get size(): number {
    return this.count
  }

  add(member: A): void {
    const place = member.id % places
    while (this.members.length <= place) this.members.push(undefined)
    this.members[place] = member
    this.count++
  }

  get(id: number): A | undefined {
    const member = this.members[id % places]
    return member?.id === id ? member : undefined
  }

  delete(id: number): boolean {
    if (this.get(id) === undefined) return false
    this.members[id % places] = undefined
    this.count--
    return true
  }

  /** Takes all of them out. */
  clear(): ReadonlyArray<A> {
    this.count = 0
    return this.members.splice(0).filter((member) => member !== undefined)
  }
}
