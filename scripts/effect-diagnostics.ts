/**
 * Runs the Effect diagnostics (a floating effect, a missing service, `yield` without `*`, ...) over the sources and tests
 * of all packages; the project references of `tsconfig.json` say which files that is, and a file that no project has is an
 * error too. Errors fail, warnings are printed, suggestions are left to editors. A rule's severity is set with
 * `diagnosticSeverity` of the plugin in `tsconfig.base.json`, or for one place with a comment
 * `// @effect-diagnostics-next-line <rule>:off`.
 */
import { spawnSync } from "node:child_process"
import { globSync } from "node:fs"
import { resolve } from "node:path"

const root = resolve(import.meta.dirname, "..")
const { error, status, stdout, stderr } = spawnSync(
  "effect-tsgo",
  ["diagnostics", "--project", "tsconfig.json", "--format", "text", "--severity", "error,warning", "--list-files"],
  { cwd: root, encoding: "utf8" }
)
if (error !== undefined) throw error
const output = stdout.replaceAll(`${root}/`, "")

const checked = new Set(Array.from(output.matchAll(/^ {2}(.+): detected=.*$/gm), (match) => match[1]))
const findings = output.split("\n").filter((line) => / effect\(\w+\): /.test(line))
const missed = globSync(["packages/*/{src,test,typetest}/**/*.ts", "scripts/*.ts"], { cwd: root })
  .filter((file) => !checked.has(file))
  .map((file) => `${file}: in no project of tsconfig.json, not checked`)

for (const line of [...findings, ...missed]) console.error(line)
if (status !== 0 && findings.length === 0) console.error(output + stderr)
console.log(`${checked.size} files, ${findings.length} findings`)
process.exitCode = status === 0 && missed.length === 0 ? 0 : 1
