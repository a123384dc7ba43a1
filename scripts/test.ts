/**
 * Everything that must hold before a change is done, in order, up to the first that fails. The last line is
 * `N passed, N failed`: the counts of the unit tests, and when a check stops the run, that check as one failure.
 */
import { spawnSync } from "node:child_process"
import { rmSync } from "node:fs"
import { resolve } from "node:path"
import { type Counts, readCounts, sumLine } from "./counts.ts"

const root = resolve(import.meta.dirname, "..")
const report = resolve(root, ".cache/unit.json")

const checks: ReadonlyArray<readonly [script: string, ...args: ReadonlyArray<string>]> = [
  ["build:native"],
  ["format:check"],
  ["lint"],
  ["types"],
  ["types:effect"],
  ["check:boundaries"],
  ["test:types"],
  ["test:unit", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`],
  ["check:docs"],
  ["check:packages"]
]

let counts: Counts = { passed: 0, failed: 0 }
rmSync(report, { force: true })
for (const [script, ...args] of checks) {
  console.log(`\n== ${script}`)
  const start = performance.now()
  const { status } = spawnSync("pnpm", ["--silent", "run", script, ...args], {
    cwd: root,
    stdio: "inherit",
    // Hundreds of workers are started, which load the same modules.
    env: { ...process.env, NODE_COMPILE_CACHE: resolve(root, ".cache/compile") }
  })
  const seconds = ((performance.now() - start) / 1_000).toFixed(1)
  if (script === "test:unit") counts = readCounts(report)
  if (status !== 0) {
    console.log(`== ${script} failed after ${seconds} s`)
    if (counts.failed === 0) counts = { ...counts, failed: 1 }
    process.exitCode = 1
    break
  }
  console.log(`== ${script} passed in ${seconds} s`)
}
console.log(`\n${sumLine(counts)}`)
