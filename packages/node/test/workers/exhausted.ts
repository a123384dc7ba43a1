/**
 * A program that has no descriptors left when its worker crashes, of the kind that its argument says, and gets them back when the
 * next one could not be started. Prints what a task returns then.
 */
import { WorkerPool } from "@socketserver/node"
import { Effect, Fiber, Stream } from "effect"
import { closeSync, openSync } from "node:fs"
import * as handlers from "./handlers.ts"

const takeAll = (): ReadonlyArray<number> => {
  const taken: Array<number> = []
  try {
    for (;;) taken.push(openSync("/dev/null", "r"))
  } catch {
    return taken
  }
}

const program = Effect.gen(function*() {
  const { events, run } = yield* WorkerPool.make({ kind: process.argv[2] as "thread" | "process", maxWorkers: 1 })
  const notStarted = yield* events.pipe(
    Stream.filter(({ _tag }) => _tag === "WorkerNotStarted"),
    Stream.runHead,
    (first) => Effect.forkChild(first, { startImmediately: true })
  )
  // A thread reads modules with the descriptors of its process.
  yield* run(handlers.square, 1)
  const taken = takeAll()
  yield* Effect.flip(run(handlers.doomed, "exit"))
  yield* Fiber.join(notStarted)
  for (const descriptor of taken) closeSync(descriptor)
  console.log(yield* run(handlers.square, 3))
})

Effect.runFork(Effect.scoped(program))
