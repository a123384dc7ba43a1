/**
 * Token buckets, one for each key, in a table that is bounded. Counted in whole numbers, so that a token is there to the
 * millisecond: one token is `interval` units, and `limit` units come in each millisecond.
 */
interface Bucket {
  level: number
  /** When that was so. */
  at: number
}

export class TokenBuckets {
  /** In the order of their last use. */
  private readonly buckets = new Map<string, Bucket>()
  private readonly interval: number
  private readonly maxKeys: number
  private limit = 0
  private burst = 0

  constructor(interval: number, maxKeys: number) {
    this.interval = interval
    this.maxKeys = maxKeys
  }

  get size(): number {
    return this.buckets.size
  }

  /** What came until now came at the rate that there was. */
  setRate(limit: number, burst: number, now: number): void {
    for (const bucket of this.buckets.values()) this.refill(bucket, now)
    this.limit = limit
    this.burst = burst
    for (const bucket of this.buckets.values()) bucket.level = Math.min(bucket.level, this.full)
  }

  /** Takes a token, if there is one. */
  take(key: string, now: number): boolean {
    this.expire(now)
    let bucket = this.buckets.get(key)
    if (bucket === undefined) {
      // Whoever has so many addresses has as many buckets, too: forgetting one makes nothing worse, and refusing would lock
      // out everybody else.
      if (this.buckets.size >= this.maxKeys) this.buckets.delete(this.oldest!)
      bucket = { level: this.full, at: now }
    } else {
      this.buckets.delete(key)
      this.refill(bucket, now)
    }
    this.buckets.set(key, bucket)
    if (bucket.level < this.interval) return false
    bucket.level -= this.interval
    return true
  }

  private get full(): number {
    return this.burst * this.interval
  }

  private get oldest(): string | undefined {
    return this.buckets.keys().next().value
  }

  private refill(bucket: Bucket, now: number): void {
    if (now <= bucket.at) return
    bucket.level = Math.min(this.full, bucket.level + (now - bucket.at) * this.limit)
    bucket.at = now
  }

  /** A full bucket is as good as none. */
  private expire(now: number): void {
    for (const [key, bucket] of this.buckets) {
      this.refill(bucket, now)
      if (bucket.level < this.full) return
      this.buckets.delete(key)
    }
  }
}
