/** Latencies in buckets of 1 % width, from 1 µs to some minutes. */
export class Histogram {
  private readonly buckets = new Uint32Array(2_048)
  private count = 0

  add(micros: number): void {
    this.buckets[Math.min(2_047, Math.floor(Math.log(Math.max(1, micros)) / Math.log(1.01)))]!++
    this.count++
  }

  quantile(q: number): number {
    let rest = this.count * q
    for (let i = 0; i < this.buckets.length; i++) {
      rest -= this.buckets[i]!
      if (rest <= 0 && this.count > 0) return 1.01 ** i
    }
    return 0
  }
}
