/**
 * Checks who imports what. The core has no platform: its sources import themselves and `effect`, nothing else. The Node
 * package and the one for unix datagrams add `node:*` and the core. No package imports the programs (cli, examples, bench, reliability),
 * but for the proofs of reliability, which have processes and loads in common with the benchmark; and none reaches into another one by a relative path. Every form counts: `import`, `import type`, `export from`, `import()`, `import("x").T`, `require`,
 * `declare module`. An `import()` whose argument is not a string literal cannot be checked, so the core may not have any.
 */
import { existsSync, globSync, readFileSync } from "node:fs"
import { dirname, relative, resolve } from "node:path"
import ts from "typescript-6"

const root = resolve(import.meta.dirname, "..")

/** What `packages/<name>/src` may import besides its own files. Packages that are not here may import what they declare. */
const allowed: Record<string, { readonly pattern: RegExp; readonly text: string }> = {
  core: { pattern: /^effect(\/|$)/, text: "effect" },
  node: { pattern: /^(effect(\/|$)|node:|@socketserver\/core(\/|$))/, text: "effect, node:* and @socketserver/core" },
  "unix-datagram": {
    pattern: /^(effect(\/|$)|node:|@socketserver\/core(\/|$))/,
    text: "effect, node:* and @socketserver/core"
  }
}

const programs = /^@socketserver\/(cli|examples|bench|reliability)(\/|$)/
const unstable = /^effect\/(socket|net|workers|rpc)(\/|$)/

interface Import {
  /** `undefined` when it is computed. */
  readonly specifier: string | undefined
  readonly line: number
}

const importsOf = (file: string): Array<Import> => {
  const source = ts.createSourceFile(file, readFileSync(file, "utf8"), ts.ScriptTarget.Latest, true)
  const found: Array<Import> = []
  const add = (node: ts.Node): void => {
    found.push({
      specifier: ts.isStringLiteralLike(node) ? node.text : undefined,
      line: source.getLineAndCharacterOfPosition(node.getStart()).line + 1
    })
  }
  const visit = (node: ts.Node): void => {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier !== undefined) {
      add(node.moduleSpecifier)
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      add(node.argument.literal)
    } else if (ts.isExternalModuleReference(node)) {
      add(node.expression)
    } else if (ts.isModuleDeclaration(node) && ts.isStringLiteral(node.name)) {
      add(node.name)
    } else if (ts.isCallExpression(node) && node.arguments[0] !== undefined) {
      const callee = node.expression
      const isImport = callee.kind === ts.SyntaxKind.ImportKeyword || callee.getText(source) === "require"
      if (isImport) add(node.arguments[0])
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  return found
}

const problemWith = (file: string, { specifier }: Import): string | undefined => {
  const [, name = "", folder] = relative(root, file).split("/")
  const inSources = folder === "src"
  if (specifier === undefined) {
    return inSources && name === "core"
      ? "computes what it imports, which cannot be checked: use a string literal"
      : undefined
  }
  if (specifier.startsWith(".") || specifier.startsWith("/")) {
    const target = relative(resolve(root, "packages", name), resolve(dirname(file), specifier))
    if (target.startsWith("..")) {
      return `imports "${specifier}", which leaves its package: import other packages by name`
    }
    if (inSources && !target.startsWith("src/")) return `imports "${specifier}", which is not published: stay in src`
    return undefined
  }
  // A package's own tests have it by its name.
  if (
    programs.test(specifier) && !specifier.startsWith(`@socketserver/${name}`) &&
    !(name === "reliability" && specifier.startsWith("@socketserver/bench/"))
  ) {
    return `imports "${specifier}": nothing imports cli, examples, bench or reliability`
  }
  const rule = allowed[name]
  if (inSources && rule !== undefined && !rule.pattern.test(specifier)) {
    return `imports "${specifier}": packages/${name}/src may import only its own files, ${rule.text}`
  }
  return undefined
}

const files = globSync("packages/*/{src,test,typetest}/**/*.{ts,mts,js,mjs}", { cwd: root }).toSorted()
const problems: Array<string> = []
let unstableFiles = 0
for (const path of files) {
  const imports = importsOf(resolve(root, path))
  for (const one of imports) {
    const problem = problemWith(resolve(root, path), one)
    if (problem !== undefined) problems.push(`${path}:${one.line} ${problem}`)
  }
  const usesUnstable = imports.some(({ specifier }) => specifier !== undefined && unstable.test(specifier))
  if (path.startsWith("packages/core/src/") && usesUnstable) unstableFiles++
}

for (const name of Object.keys(allowed)) {
  if (!existsSync(resolve(root, "packages", name, "src"))) problems.push(`packages/${name}/src is missing`)
}
console.log(`${unstableFiles} files of packages/core/src import effect/socket, net, workers or rpc`)
if (problems.length > 0) {
  console.error(problems.join("\n"))
  process.exitCode = 1
} else {
  console.log(`${files.length} files, no import crosses a boundary`)
}
