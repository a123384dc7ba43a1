/**
 * Builds the publishable packages from nothing, packs each one as it would be published, and checks the tarballs: that the
 * `exports` of `publishConfig` took the place of the ones in the workspace, that every file they name is there, and what
 * `publint` and `attw` have to say about every entry point. The tarballs stay in `.cache/packages`.
 */
import { execFileSync } from "node:child_process"
import { globSync, readFileSync, rmSync } from "node:fs"
import { basename, resolve } from "node:path"

const root = resolve(import.meta.dirname, "..")
const destination = resolve(root, ".cache/packages")

/** Runs a command quietly: what it wrote is shown when it fails. */
const run = (command: string, args: ReadonlyArray<string>, cwd = root): string => {
  try {
    return execFileSync(command, args, { cwd, encoding: "utf8", stdio: "pipe" })
  } catch (cause) {
    const { stdout = "", stderr = "" } = cause as { readonly stdout?: string; readonly stderr?: string }
    throw new Error(`${command} ${args.join(" ")}\n${stdout}${stderr}`, { cause })
  }
}

const manifestOf = (text: string): { name: string; private?: boolean; exports: Record<string, string | null> } =>
  JSON.parse(text)

/** What is wrong with a packed package, beyond what `publint` and `attw` find. */
const problemsOf = (text: string, contents: ReadonlySet<string>): Array<string> => {
  const problems: Array<string> = []
  for (const [entry, target] of Object.entries(manifestOf(text).exports)) {
    if (target === null || target === "./package.json") continue
    if (!target.startsWith("./dist/")) problems.push(`"${entry}" points to ${target}, which is not built`)
    else if (!target.includes("*") && !contents.has(`package/${target.slice(2)}`)) problems.push(`${target} is missing`)
  }
  if (text.includes("\"workspace:")) problems.push("a dependency still has a workspace version")
  if (!contents.has("package/LICENSE")) problems.push("LICENSE is missing")
  return problems
}

const check = (directory: string): void => {
  const { name } = manifestOf(readFileSync(resolve(directory, "package.json"), "utf8"))
  const packed = run("pnpm", ["pack", "--pack-destination", destination, "--json"], directory)
  const tarball = resolve(destination, basename((JSON.parse(packed) as { readonly filename: string }).filename))
  const contents = new Set(run("tar", ["-tzf", tarball]).trim().split("\n"))
  const problems = problemsOf(run("tar", ["-xOzf", tarball, "package/package.json"]), contents)
  if (problems.length > 0) throw new Error(`${name}: ${problems.join("; ")}`)
  // attw does not expand the pattern "./*": it is given the modules by name.
  const modules = Array.from(contents, (file) => /^package\/dist\/(\w+)\.js$/.exec(file)?.[1])
    .filter((module) => module !== undefined && module !== "index")
  run("publint", ["--strict", tarball])
  run("attw", [tarball, "--profile", "esm-only", "--no-color", "--entrypoints", ".", ...modules as Array<string>])
  console.log(`${name}: ${contents.size} files, ${modules.length + 1} entry points`)
}

const directories = globSync("packages/*/package.json", { cwd: root })
  .filter((file) => manifestOf(readFileSync(resolve(root, file), "utf8")).private !== true)
  .map((file) => resolve(root, file, ".."))
  .toSorted()
// Modules that are gone from the sources would otherwise be packed from an earlier build.
for (const directory of directories) rmSync(resolve(directory, "dist"), { recursive: true, force: true })
rmSync(destination, { recursive: true, force: true })
try {
  run("tsc", ["-b", "tsconfig.packages.json"])
  for (const directory of directories) check(directory)
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}
