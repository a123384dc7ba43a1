/** How many connections each peer has. A peer that has none is not in the table. */
export class PeerCounts {
  private readonly counts = new Map<string, number>()

  get size(): number {
    return this.counts.size
  }

  get(peer: string): number {
    return this.counts.get(peer) ?? 0
  }

  enter(peer: string): void {
    this.counts.set(peer, this.get(peer) + 1)
  }

  leave(peer: string): void {
    const count = this.get(peer) - 1
    if (count > 0) this.counts.set(peer, count)
    else this.counts.delete(peer)
  }
}
