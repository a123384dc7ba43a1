/**
 * The bytes of a buffer lie outside V8's heap and are freed with the small object that stands for them: by a collection of
 * the young heap, which costs little, or by one of the whole heap, which costs the more the more the program has on it.
 * Young collections come when the young heap is full. A server that reads large chunks allocates megabytes outside the heap
 * for a few kilobytes on it: the young heap never fills, V8 sees the memory outside grow, and collects the whole heap, 20
 * times a second on a busy socket. So every large chunk is accompanied by a little garbage on the heap, which makes the
 * young collections come in time. (Bench "16 KiB × 64": 0.55 of raw node:net without it; "bulk × 1": 0.62.)
 */

/**
 * One word on the heap, 8 bytes, for so many outside. V8 puts up with 64 MB outside between two collections, and a young heap
 * has 16 MB: measured, 36 is enough and 40 is not (Node 24 and 26; Node 22 does not need it, and does not suffer from it).
 */
const bytesPerWord = 28

/** Kept until the next one: what nobody can see would not be allocated. */
export let garbage: unknown

/** Tells of `bytes` that were just allocated outside the heap. */
export const allocatedOutside = (bytes: number): void => {
  // oxlint-disable-next-line unicorn/no-new-array -- an array of that length is what it is for
  garbage = new Array(Math.floor(bytes / bytesPerWord))
}
