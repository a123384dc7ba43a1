/**
 * Writes the API reference: one page for each public module, into `docs/api`, which is not committed.
 *
 * What it reads are the declaration files that `tsc` emits (`packages/<name>/dist/*.d.ts`): they hold what a user gets and
 * nothing else, every type is written out, by the names that the source gives it, and the docstrings are there. Only the
 * base of a class, which `tsc` moves into a variable of its own, comes from the source, and so do the line numbers.
 */
import { spawnSync } from "node:child_process"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { basename, dirname, join, resolve } from "node:path"
import ts from "typescript-6"

const root = resolve(import.meta.dirname, "..")
const docs = join(root, "docs")

/** The packages with a public interface. */
const packages = ["core", "node", "unix-datagram", "testing", "cli"]

interface Export {
  readonly name: string
  /** Its declarations: several for overloads, or for a type and a value of one name. */
  readonly signatures: Array<string>
  readonly description: Array<string>
  readonly category: string
  readonly line: number
}

interface Module {
  readonly package: string
  readonly name: string
  /** The source, relative to the workspace. */
  readonly source: string
  readonly description: string
  readonly exports: ReadonlyArray<Export>
}

const parse = (path: string): ts.SourceFile =>
  ts.createSourceFile(path, readFileSync(join(root, path), "utf8"), ts.ScriptTarget.Latest, true)

const isExported = (statement: ts.Statement): boolean =>
  ts.canHaveModifiers(statement) &&
  (ts.getModifiers(statement) ?? []).some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword)

/** What a statement declares. Exports in other forms (`export { a }`, `export *`) are not for a public module. */
const nameOf = (statement: ts.Statement): string | undefined =>
  ts.isVariableStatement(statement)
    ? statement.declarationList.declarations[0]!.name.getText()
    : ts.isClassDeclaration(statement) || ts.isFunctionDeclaration(statement) ||
        ts.isInterfaceDeclaration(statement) || ts.isTypeAliasDeclaration(statement) ||
        ts.isModuleDeclaration(statement)
    ? statement.name?.getText()
    : undefined

/** The text and the tags of a comment. */
const readComment = (comment: string): { readonly text: string; readonly tags: ReadonlyMap<string, string> } => {
  const text: Array<string> = []
  const tags = new Map<string, string>()
  for (const line of comment.replace(/^\/\*\*/, "").replace(/\*\/$/, "").split("\n")) {
    const content = line.replace(/^\s*\* ?/, "").trimEnd()
    const found = Array.from(
      content.matchAll(/(?:^|\s)@(category|since) (\S+)/g),
      ([, tag, value]) => [tag!, value!] as const
    )
    for (const [tag, value] of found) tags.set(tag, value)
    if (found.length === 0) text.push(content)
  }
  return { text: text.join("\n").trim(), tags }
}

const commentOf = (node: ts.Node): string => {
  const text = node.getSourceFile().text
  const range = ts.getLeadingCommentRanges(text, node.getFullStart())?.findLast(({ pos }) =>
    text.startsWith("/**", pos)
  )
  return range === undefined ? "" : text.slice(range.pos, range.end)
}

/** A declaration. A class has the base that it has in the source. */
const textOf = (declared: ts.Statement, original: ts.Statement): string => {
  const written = ts.isClassDeclaration(original) ? original.heritageClauses?.[0] : undefined
  const replaced = ts.isClassDeclaration(declared) ? declared.heritageClauses?.[0] : undefined
  if (written === undefined || replaced === undefined) return declared.getText()
  const text = declared.getSourceFile().text
  return `${text.slice(declared.getStart(), replaced.getStart())}${written.getText()}${
    text.slice(replaced.end, declared.end)
  }`
}

const readModule = (name: string, module: string): Module => {
  const source = `packages/${name}/src/${module}.ts`
  const written = parse(source)
  const declared = parse(`packages/${name}/dist/${module}.d.ts`)
  const inSource = new Map(
    written.statements.filter(isExported).toReversed().map((statement) => [nameOf(statement), statement])
  )

  const exports = new Map<string, Export>()
  for (const statement of declared.statements) {
    if (!isExported(statement)) continue
    const name = nameOf(statement)
    const original = inSource.get(name)
    if (name === undefined || original === undefined) {
      throw new Error(`${source}: no page can be made of an export such as \`${statement.getText()}\``)
    }
    const { tags, text } = readComment(commentOf(statement))
    const signature = textOf(statement, original).replace(/^export (declare )?/, "")
    const before = exports.get(name)
    exports.set(name, {
      name,
      signatures: [...before?.signatures ?? [], signature],
      description: [...before?.description ?? [], ...text === "" ? [] : [text]],
      category: before?.category ?? tags.get("category") ?? "other",
      line: before?.line ?? written.getLineAndCharacterOfPosition(original.getStart()).line + 1
    })
  }
  const first = /\/\*\*[^]*?\*\//.exec(written.text)?.[0] ?? ""
  return { package: name, name: module, source, description: readComment(first).text, exports: [...exports.values()] }
}

/** Public modules are the files in `src` that are named like one. Most are in the package's index, too. */
const modulesOf = (name: string): Array<Module> =>
  globSync(`packages/${name}/src/[A-Z]*.ts`, { cwd: root }).toSorted().map((path) =>
    readModule(name, basename(path, ".ts"))
  )

const importOf = (module: Module): string =>
  readFileSync(join(root, `packages/${module.package}/src/index.ts`), "utf8").includes(`export * as ${module.name} `)
    ? `import { ${module.name} } from "@socketserver/${module.package}"`
    : `import * as ${module.name} from "@socketserver/${module.package}/${module.name}"`

/** `{@link name}` of the same module, `{@link Module.name}` of another one: a link, or an error where there is no such name. */
const resolveLinks = (text: string, { name, source, exports }: Module, all: ReadonlyArray<Module>): string =>
  text.replaceAll(/\{@link ([\w.]+)\}/g, (_, target: string) => {
    if (exports.some((one) => one.name === target)) return `[\`${target}\`](#${target})`
    const [module, member] = target.split(".")
    const other = all.find((other) => other.name === module)
    if (member === undefined && other !== undefined) return `[\`${target}\`](../${other.package}/${module}.md)`
    if (other?.exports.some((one) => one.name === member)) {
      return `[\`${target}\`](../${other.package}/${module}.md#${member})`
    }
    throw new Error(`${source}: {@link ${target}}, but neither ${name} nor another module has that`)
  })

const pageOf = (module: Module, all: ReadonlyArray<Module>): string => {
  const prose = (text: string) => resolveLinks(text, module, all)
  const categories = [...new Set(module.exports.map(({ category }) => category))]
  return [
    `# ${module.name} {#module-${module.name}}`,
    `\`${importOf(module)}\` · [source](../../../${module.source})`,
    prose(module.description),
    ...categories.flatMap((category) => [
      `## ${category[0]!.toUpperCase()}${category.slice(1)} {#category-${category}}`,
      ...module.exports.flatMap((one) =>
        one.category !== category ? [] : [
          `### ${one.name} {#${one.name}}`,
          `\`\`\`ts\n${one.signatures.join("\n\n")}\n\`\`\``,
          ...one.description.map(prose),
          `[${module.source}:${one.line}](../../../${module.source}#L${one.line})`
        ]
      )
    ])
  ].join("\n\n")
}

/** The declarations as the sources are laid out, not as the compiler does. */
const format = (path: string, text: string): string => {
  const { status, stderr, stdout } = spawnSync(join(root, "node_modules/.bin/dprint"), ["fmt", "--stdin", path], {
    cwd: root,
    encoding: "utf8",
    input: text
  })
  if (status !== 0) throw new Error(`dprint: ${path}: ${stderr}`)
  return stdout
}

const write = (path: string, text: string): void => {
  mkdirSync(dirname(join(docs, path)), { recursive: true })
  writeFileSync(join(docs, path), text)
}

/** Writes the pages, and an index, and returns the modules. */
export const writeReference = (): ReadonlyArray<Module> => {
  rmSync(join(docs, "api"), { recursive: true, force: true })
  const modules = packages.flatMap(modulesOf)
  for (const module of modules) {
    const path = `api/${module.package}/${module.name}.md`
    write(path, format(path, pageOf(module, modules)))
  }
  write(
    "api/index.md",
    [
      "# API reference",
      "One page for each module, from its documentation comments.",
      ...packages.flatMap((name) => [
        `## @socketserver/${name} {#${name}}`,
        modules.filter((module) => module.package === name).map((module) => {
          const [sentence] = /^[^]*?[.:](?=\s|$)/.exec(module.description) ?? [""]
          return `- [${module.name}](${name}/${module.name}.md): ${sentence.replaceAll("\n", " ").replace(/[.:]$/, "")}`
        }).join("\n")
      ])
    ].join("\n\n")
  )
  return modules
}
