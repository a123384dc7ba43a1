/**
 * The bytes of a buffer lie outside V8's heap and are freed with the small object that stands for them: by a collection of
 * the young heap, which costs little, or by one of the whole heap, which costs the more the more the program has on it.
 * Young collections come when the young heap is full. A server that reads large chunks allocates megabytes outside the heap
 * for a few kilobytes on it: the young heap never fills, V8 sees the memory outside grow, and collects the whole heap, 20
 * times a second on a busy socket. So every large chunk is accompanied by a little garbage on the heap, which makes the
 * young collections come in time. (Bench "16 KiB × 64": 0.55 of raw node:net without it; "bulk × 1": 0.62.)
 */
import { getHeapSpaceStatistics } from "node:v8"

/** V8 puts up with 64 MB more outside than after the last full collection: young ones have to come more often than that. */
const perCollection = 56 * 2 ** 20
/** How much is allocated outside before the size of the young heap is looked at again: it grows with the program. */
const perLook = 8 * 2 ** 20

let untilLook = 0
let wordsPerByte = 0

const look = () => {
  const young = getHeapSpaceStatistics().find(({ space_name }) => space_name === "new_space")
  const size = young === undefined ? 0 : young.space_used_size + young.space_available_size
  wordsPerByte = size / 8 / perCollection
  untilLook = perLook
}

/** Kept until the next one: what nobody can see would not be allocated. */
export let garbage: unknown

/** Tells of `bytes` that were just allocated outside the heap. */
export const allocatedOutside = (bytes: number): void => {
  untilLook -= bytes
  if (untilLook < 0) look()
  // oxlint-disable-next-line unicorn/no-new-array -- an array of that length is what it is for
  garbage = new Array(Math.ceil(bytes * wordsPerByte))
}
