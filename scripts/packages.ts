/**
 * Builds the publishable packages from nothing, packs each one as it would be published, and checks the tarballs: that the
 * `exports` of `publishConfig` took the place of the ones in the workspace, that every file they name is there, and what
 * `publint` and `attw` have to say about every entry point. Then a program outside the workspace, in JavaScript, uses what was
 * packed: its handler must be found by workers of both kinds, and the command must serve it. The tarballs stay in `.cache/packages`.
 * To be run by `pnpm check:packages`, which puts pnpm and the tools on the PATH.
 */
import { execFileSync } from "node:child_process"
import {
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { basename, dirname, resolve } from "node:path"

const root = resolve(import.meta.dirname, "..")
const destination = resolve(root, ".cache/packages")

/** Runs a command quietly: what it wrote is shown when it fails. */
const run = (command: string, args: ReadonlyArray<string>, cwd = root): string => {
  try {
    return execFileSync(command, args, { cwd, encoding: "utf8", stdio: "pipe" })
  } catch (cause) {
    const { stdout = "", stderr = "" } = cause as { readonly stdout?: string; readonly stderr?: string }
    // Without output, it could not be started.
    throw new Error(`${command} ${args.join(" ")}\n${stdout}${stderr || (cause as Error).message}`, { cause })
  }
}

interface Manifest {
  readonly name: string
  readonly private?: boolean
  readonly exports: Record<string, string | null>
  readonly dependencies?: Record<string, string>
  readonly peerDependencies?: Record<string, string>
}

const manifestOf = (text: string): Manifest => JSON.parse(text)

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

/** Checks the package, and returns its tarball. */
const check = (directory: string): string => {
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
  return tarball
}

/** A program with a portable handler, in a module of its own. */
const program = {
  "package.json": JSON.stringify({ private: true, type: "module" }),
  "upper.js": `
import { Handler } from "@socketserver/core"
import { Effect } from "effect"
import { threadId } from "node:worker_threads"

export const upper = Handler.portable(import.meta.url, "upper", (connection) =>
  Effect.flatMap(connection.readLine(), (line) =>
    connection.write(\`\${line.toUpperCase()} \${process.pid}/\${threadId}\\n\`)))
`,
  "main.js": `
import { MemoryTransport, Server } from "@socketserver/core"
import { NodeDispatch } from "@socketserver/node"
import { Effect, Layer } from "effect"
import assert from "node:assert/strict"
import { threadId } from "node:worker_threads"
import { upper } from "./upper.js"

for (const kind of ["thread", "process"]) {
  const ask = Effect.gen(function*() {
    const client = yield* MemoryTransport.connect((yield* Server.Server).address)
    yield* client.write("hello\\n")
    return yield* client.readLine()
  })
  const [word, worker] = (await Effect.runPromise(ask.pipe(
    Effect.scoped,
    Effect.provide(MemoryTransport.stream().pipe(
      NodeDispatch.workerPerRequest({ kind, maxWorkers: 1 }),
      Server.serveStream(upper)
    ))
  ))).split(" ")
  assert.equal(word, "HELLO")
  assert.notEqual(worker, \`\${process.pid}/\${threadId}\`)
}
`,
  "command.js": `
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { readFileSync } from "node:fs"
import { connect } from "node:net"

const place = "node_modules/@socketserver/cli"
const { bin } = JSON.parse(readFileSync(\`\${place}/package.json\`, "utf8"))
const command = [\`\${place}/\${bin.socketserver}\`, "serve", "./upper.js", "--handler", "upper", "--unix", "./x.sock"]
const server = spawn(process.execPath, [...command, "--dispatch", "thread", "--control", "./control.sock"], {
  stdio: ["ignore", "pipe", "inherit"]
})
process.on("exit", () => server.kill("SIGKILL"))
let said = ""
let heard = ""
server.stdout.setEncoding("utf8").on("data", (chunk) => {
  const isReady = said.includes("Ctrl-C")
  said += chunk
  if (isReady || !said.includes("Ctrl-C")) return
  const client = connect("./x.sock", () => client.write("hello\\n"))
  client.setEncoding("utf8").on("data", (chunk) => (heard += chunk)).on("close", () => server.kill("SIGTERM"))
})
server.on("exit", (code) => {
  assert.equal(code, 0)
  assert.match(heard, /^HELLO \\d+\\/[1-9]\\d*\\n$/)
})
`
}

/** Unpacks the tarballs where a package manager would, beside what they depend on, and runs the program there. */
const checkProgram = (packages: ReadonlyMap<string, string>): void => {
  const directory = realpathSync(mkdtempSync(resolve(tmpdir(), "socketserver-packages-")))
  const place = (name: string): string => resolve(directory, "node_modules", name)
  try {
    for (const [file, text] of Object.entries(program)) writeFileSync(resolve(directory, file), text)
    for (const [source, tarball] of packages) {
      const text = run("tar", ["-xOzf", tarball, "package/package.json"])
      const { dependencies, name, peerDependencies } = manifestOf(text)
      mkdirSync(place(name), { recursive: true })
      run("tar", ["-xzf", tarball, "--strip-components=1", "-C", place(name)])
      for (const dependency of Object.keys({ ...dependencies, ...peerDependencies })) {
        if (dependency.startsWith("@socketserver/")) continue
        mkdirSync(dirname(place(dependency)), { recursive: true })
        rmSync(place(dependency), { force: true })
        symlinkSync(realpathSync(resolve(source, "node_modules", dependency)), place(dependency))
      }
    }
    run(process.execPath, ["main.js"], directory)
    console.log("a program that uses them finds its handler in threads and in processes")
    run(process.execPath, ["command.js"], directory)
    console.log("the command serves a handler, and drains")
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
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
  const packages = new Map(directories.map((directory) => [directory, check(directory)]))
  checkProgram(
    new Map(
      [...packages].filter(([directory]) => ["core", "node", "unix-datagram", "cli"].includes(basename(directory)))
    )
  )
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}
