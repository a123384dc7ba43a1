/** A program whose worker process computes for ever, once it has said which process it is. To be killed. */
import { WorkerPool } from "@socketserver/node"
import { Effect } from "effect"
import { report } from "./report.ts"

const program = Effect.gen(function*() {
  const { run } = yield* WorkerPool.make({ kind: "process", maxWorkers: 1 })
  return yield* run(report, undefined)
})

Effect.runFork(Effect.scoped(program))
