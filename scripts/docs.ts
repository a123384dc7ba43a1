/**
 * Checks that the documentation is true. Every ```ts fence of the markdown pages and of the JSDoc examples is a module of
 * its own: all of them are type-checked in one run, with the options that the packages have, and an error is reported where
 * the fence stands.
 *
 * - ```ts fails must not compile. An unknown module or name, or bad syntax, does not count as the reason.
 * - A first line `// name.ts` names the module, for other fences of the same page to import.
 * - A last line `Effect.runPromise(program) // => value` is run, and what it gives is compared with `value`.
 * - A fence that imports `@effect/vitest` is run as a test.
 * - A fence that calls `NodeRuntime.runMain` is started until it listens, and stopped by SIGTERM, its ports made free ones.
 *
 * Relative links must lead to files, and anchors to headings. A test that a page names, `core/test/X.test.ts "name"`, must be in
 * that file; "…" at the end of a name stands for its rest. The gallery has to list every file of the examples.
 */
import { fork, spawnSync } from "node:child_process"
import { existsSync, globSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { basename, dirname, join, relative, resolve } from "node:path"

const root = resolve(import.meta.dirname, "..")
// Within the workspace, so that the modules resolve as they do for its own scripts.
const out = join(root, ".cache/snippets")
const bin = (name: string) => join(root, "node_modules/.bin", name)

const pages = globSync(["README.md", "docs/*.md", "packages/*/README.md"], { cwd: root }).toSorted()
const sources = globSync("packages/{core,node,unix-datagram,testing}/src/**/*.ts", { cwd: root }).toSorted()

const problems: Array<string> = []
const report = (path: string, line: number, text: string) => problems.push(`${path}:${line} ${text}`)

// ---- snippets

interface Snippet {
  /** Where it stands: a file of the workspace, and the line of its opening fence. */
  readonly path: string
  readonly line: number
  readonly code: ReadonlyArray<string>
  readonly fails: boolean
  /** Its module, relative to `out`. */
  readonly module: string
}

/** The text of a page, or of the comments of a source: every other line is empty, so that line numbers stay. */
const textOf = (path: string): Array<string> => {
  const lines = readFileSync(join(root, path), "utf8").split("\n")
  if (path.endsWith(".md")) return lines
  return lines.map((line) => /^\s*\* ?(?!\/)(.*)$/.exec(line)?.[1] ?? "")
}

const snippetsOf = (path: string): Array<Snippet> => {
  const found: Array<Snippet> = []
  let open: { readonly line: number; readonly info: string; readonly code: Array<string> } | undefined
  for (const [index, line] of textOf(path).entries()) {
    const fence = /^```(.*)$/.exec(line)
    if (open === undefined) {
      if (fence !== null) open = { line: index + 1, info: fence[1]!.trim(), code: [] }
      else if (/^\s+```/.test(line)) report(path, index + 1, "an indented fence is not checked: begin it at the margin")
    } else if (fence === null) {
      open.code.push(line)
    } else {
      const { code, info } = open
      if (info === "ts" || info === "ts fails") {
        const name = /^\/\/ ([\w-]+)(\.test)?\.ts$/.exec(code[0] ?? "")?.[1]
        const suffix = code.some((line) => line.includes("@effect/vitest")) ? ".test.ts" : ".ts"
        const module = join(path.replace(/\.\w+$/, ""), `${name ?? `line-${open.line}`}${suffix}`)
        if (found.some((other) => other.module === module)) report(path, open.line, `a second ${name}.ts on this page`)
        found.push({ path, line: open.line, code, fails: info === "ts fails", module })
      } else if (/^(ts|tsx|typescript|js|javascript|mts)\b/.test(info)) {
        report(path, open.line, `a fence is marked \`ts\`, or \`ts fails\` where it must not compile; not \`${info}\``)
      }
      open = undefined
    }
  }
  if (open !== undefined) report(path, open.line, "this fence is never closed")
  return found
}

const snippets = [...pages, ...sources].flatMap(snippetsOf)

rmSync(out, { recursive: true, force: true })
for (const { code, module } of snippets) {
  mkdirSync(dirname(join(out, module)), { recursive: true })
  writeFileSync(join(out, module), code.join("\n") + "\n")
}
mkdirSync(out, { recursive: true })
writeFileSync(
  join(out, "tsconfig.json"),
  JSON.stringify({
    extends: "../../tsconfig.base.json",
    compilerOptions: {
      noEmit: true,
      composite: false,
      incremental: false,
      declarationMap: false,
      sourceMap: false,
      allowImportingTsExtensions: true,
      types: ["node"]
    },
    include: ["**/*.ts"]
  })
)

// ---- type check

interface Diagnostic {
  readonly line: number
  readonly code: string
  text: string
}

/** What a `ts fails` fence cannot fail with: it would prove a typing error of ours, not the one that it is about. */
const wrongReason = /^TS(1\d{3}|2304|2305|2307|2552|2614|2724)$/

/** Reports what is wrong, and returns the snippets that can be run. */
const typeCheck = (): Array<Snippet> => {
  const { status, stdout } = spawnSync(bin("tsc"), ["-p", out, "--pretty", "false"], { cwd: root, encoding: "utf8" })
  const diagnostics = new Map<string, Array<Diagnostic>>()
  let last: Diagnostic | undefined
  for (const line of stdout.split("\n")) {
    const [, file, at, code, text] = /^(.+?)\((\d+),\d+\): error (TS\d+): (.*)$/.exec(line) ?? []
    if (file === undefined || at === undefined || code === undefined || text === undefined) {
      // The indented lines after an error explain it.
      if (last !== undefined && line !== "") last.text += `\n${line}`
      continue
    }
    last = { line: Number(at), code, text }
    const module = relative(out, resolve(root, file))
    diagnostics.set(module, [...diagnostics.get(module) ?? [], last])
  }
  for (const [module, errors] of diagnostics) {
    if (!module.startsWith("..")) continue
    for (const { code, line, text } of errors) report(relative(root, join(out, module)), line, `${code} ${text}`)
  }
  if (status !== 0 && diagnostics.size === 0) problems.push(`tsc failed: ${stdout.trim()}`)

  return snippets.filter((snippet) => {
    const errors = (diagnostics.get(snippet.module) ?? []).filter((error) => !isUnusedExample(snippet, error))
    const right = errors.filter(({ code }) => !wrongReason.test(code))
    if (snippet.fails && errors.length === 0) {
      report(snippet.path, snippet.line, "this compiles, but is marked as code that does not")
    }
    for (const { code, line, text } of snippet.fails && right.length === errors.length ? [] : errors) {
      report(snippet.path, snippet.line + line, `${code} ${text}`)
    }
    return errors.length === 0 && !snippet.fails
  })
}

/** An example may define something that only its reader would use; what it imports, it has to use itself. */
const isUnusedExample = ({ code }: Snippet, { code: error, line }: Diagnostic): boolean =>
  (error === "TS6133" || error === "TS6196") &&
  /^(export )?(const|class|interface|type|function)\b/.test(code[line - 1] ?? "")

// ---- snippets that are run

const node = (args: ReadonlyArray<string>) =>
  spawnSync(process.execPath, args, { cwd: out, encoding: "utf8", timeout: 30_000 })

/** The last lines that say why: without Node's own frames. */
const reasonIn = (output: string): string =>
  output.split("\n").filter((line) => !/^\s+at /.test(line)).join("\n").trim()

const isProgramWithValue = ({ code }: Snippet) => code.some((line) => line.includes("// =>"))

const runForValue = (snippet: Snippet): void => {
  const end = snippet.code.findLastIndex((line) => line.trim() !== "")
  const [, program, expected] = /^(Effect\.runPromise\(.*\)) \/\/ => (.+)$/.exec(snippet.code[end]!) ?? []
  if (program === undefined || expected === undefined) {
    return void report(
      snippet.path,
      snippet.line,
      "`// =>` is checked on a last line `Effect.runPromise(…) // => value`"
    )
  }
  const module = join(out, snippet.module.replace(/\.ts$/, ".run.ts"))
  writeFileSync(
    module,
    [
      "import { deepStrictEqual as $equal } from \"node:assert/strict\"",
      ...snippet.code.slice(0, end),
      `$equal(await ${program}, ${expected})`
    ].join("\n")
  )
  const { status, stderr } = node([module])
  if (status !== 0) {
    report(snippet.path, snippet.line + end + 1, `running it does not give ${expected}:\n${reasonIn(stderr)}`)
  }
}

const isTest = ({ module }: Snippet) => module.endsWith(".test.ts")

const runTests = (tests: ReadonlyArray<Snippet>): void => {
  if (tests.length === 0) return
  const config = join(out, "vitest.config.js")
  writeFileSync(config, "export default { test: { include: [\"**/*.test.ts\"], testTimeout: 20_000 } }\n")
  const { status, stderr, stdout } = spawnSync(bin("vitest"), ["run", "--config", config, "--root", out], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" }
  })
  if (status === 0) return
  for (const { line, module, path } of tests) {
    if (stdout.includes(`FAIL  ${module}`) || stderr.includes(`FAIL  ${module}`)) report(path, line, "this test fails")
  }
  problems.push(`${stdout}\n${stderr}`.trim())
}

const isServer = ({ code }: Snippet) => code.some((line) => line.includes("NodeRuntime.runMain("))

const runServer = (snippet: Snippet, index: number): Promise<void> =>
  new Promise((done) => {
    const module = join(out, snippet.module.replace(/\.ts$/, ".run.ts"))
    const preload = join(out, "whenListening.js")
    writeFileSync(
      preload,
      [
        "import * as Net from \"node:net\"",
        "const { listen } = Net.Server.prototype",
        "Net.Server.prototype.listen = function(...args) {",
        "  this.once(\"listening\", () => process.send(\"listening\"))",
        "  return listen.apply(this, args)",
        "}"
      ].join("\n")
    )
    const code = snippet.code.join("\n")
    const free = code.replaceAll(/\bport: \d+/g, "port: 0").replaceAll(
      /(\bpath: ")[^"]+(?=")/g,
      `$1${out}/${index}.sock`
    )
    writeFileSync(module, free)
    const child = fork(module, { cwd: out, execArgv: ["--import", preload], silent: true })
    const output: Array<string> = []
    child.stdout!.on("data", (chunk) => output.push(String(chunk)))
    child.stderr!.on("data", (chunk) => output.push(String(chunk)))
    let listening = false
    child.once("message", () => {
      listening = true
      // A moment for more servers of the same program, and for those that fail after they have begun to listen.
      setTimeout(() => child.kill("SIGTERM"), 200)
    })
    const deadline = setTimeout(() => child.kill("SIGKILL"), 20_000)
    child.on("exit", (status, signal) => {
      clearTimeout(deadline)
      // 130 is how `runMain` says that it was asked to stop.
      const stopped = listening && (status === 130 || status === 0)
      const what = listening ? `stopped with ${signal ?? `exit code ${status}`}` : "did not come to listen"
      if (!stopped) report(snippet.path, snippet.line, `this program ${what}:\n${reasonIn(output.join(""))}`)
      done()
    })
  })

// ---- links

/** Headings as GitHub makes anchors of them. */
const anchorsOf = (path: string): Set<string> => {
  const anchors = new Set<string>()
  for (const line of withoutFences(readFileSync(path, "utf8"))) {
    const heading = /^#{1,6} (.*)$/.exec(line)?.[1]
    if (heading === undefined) continue
    const text = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase()
    const slug = text.replaceAll(/[^\p{L}\p{N}\p{M} _-]/gu, "").trim().replaceAll(" ", "-")
    let anchor = slug
    for (let n = 1; anchors.has(anchor); n++) anchor = `${slug}-${n}`
    anchors.add(anchor)
  }
  return anchors
}

const withoutFences = (text: string): Array<string> => {
  let inside = false
  return text.split("\n").map((line) => {
    const fence = line.startsWith("```")
    if (fence) inside = !inside
    return inside || fence ? "" : line
  })
}

let links = 0
const checkLinks = (path: string): void => {
  for (const [index, line] of withoutFences(readFileSync(join(root, path), "utf8")).entries()) {
    const text = line.replaceAll(/`[^`]*`/g, (code) => "`".repeat(code.length))
    for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z][a-z+.-]*:/i.test(target)) continue
      links++
      const [file = "", anchor] = target.split("#")
      const to = file === "" ? join(root, path) : resolve(root, dirname(path), file)
      if (file.startsWith("/") || !existsSync(to)) report(path, index + 1, `link to ${target}: there is no such file`)
      else if (anchor !== undefined && (statSync(to).isDirectory() || !anchorsOf(to).has(anchor))) {
        report(path, index + 1, `link to ${target}: ${basename(to)} has no heading #${anchor}`)
      }
    }
  }
}

// ---- examples

/** The gallery has all of them. */
const checkGallery = (path: string): void => {
  const text = readFileSync(join(root, path), "utf8")
  for (const example of globSync("packages/examples/src/**/*.ts", { cwd: root })) {
    if (!text.includes(`](../${example})`)) report(path, 1, `${example} is not listed`)
  }
}

// ---- tests that pages name

const escape = (text: string) => text.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&")

/** What the tests of a file are called. A title may have holes, `${…}`, that anything fits into. */
const titlesOf = (path: string): Array<RegExp> => {
  const calls = readFileSync(path, "utf8").matchAll(
    /\b(?:it|describe)(?:\.\w+)*\(\s*(?:"((?:[^"\\]|\\.)*)"|`((?:[^`\\]|\\.)*)`)/g
  )
  return Array.from(calls, ([, plain, template = ""]) => {
    const parts = plain === undefined ? template.replaceAll("\\`", "`").split(/\$\{[^}]*\}/) : [plain]
    return new RegExp(`^${parts.map(escape).join(".+")}$`)
  })
}

let named = 0
const checkNamedTests = (path: string): void => {
  for (const [index, line] of withoutFences(readFileSync(join(root, path), "utf8")).entries()) {
    for (const [, file = "", names = ""] of line.matchAll(/([\w-]+\/test\/\w+\.test\.ts)((?:,? "[^"]+")*)/g)) {
      const test = join(root, "packages", file)
      if (!existsSync(test)) {
        report(path, index + 1, `packages/${file}: there is no such file`)
        continue
      }
      const titles = titlesOf(test)
      const text = readFileSync(test, "utf8")
      for (const [, name = ""] of names.matchAll(/"([^"]+)"/g)) {
        named++
        const begin = name.endsWith("…") ? name.slice(0, -1).trim() : undefined
        const found = begin === undefined ? titles.some((title) => title.test(name)) : text.includes(`("${begin}`)
        if (!found) report(path, index + 1, `packages/${file} has no test "${name}"`)
      }
    }
  }
}

// ---- all of it

const sound = typeCheck()
for (const page of pages) {
  checkLinks(page)
  checkNamedTests(page)
}
checkGallery("docs/examples.md")

const valued = sound.filter(isProgramWithValue)
const tests = sound.filter(isTest)
const servers = sound.filter(isServer)
for (const snippet of valued) runForValue(snippet)
runTests(tests)
for (const [index, server] of servers.entries()) await runServer(server, index)

if (problems.length > 0) {
  console.error(problems.join("\n"))
  process.exitCode = 1
} else {
  const failing = snippets.filter(({ fails }) => fails).length
  console.log(
    `${snippets.length} snippets of ${pages.length} pages and ${sources.length} sources: ${
      snippets.length - failing
    } compile, ` +
      `${failing} do not, as they say; ${valued.length} give the value that they say, ${tests.length} are tests that pass, ` +
      `${servers.length} are servers that start and stop; ${links} links lead somewhere, ${named} named tests exist`
  )
}
