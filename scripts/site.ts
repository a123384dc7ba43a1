/**
 * Builds the documentation as a site: `node scripts/site.ts build`. With `pages` it only writes what `vitepress dev` needs.
 *
 * The pages are those in `docs/`, as they are. Two kinds are generated beside them, and not committed: `docs/api`, the
 * reference, and `docs/source`, the sources that pages link to. The site goes to `.cache/site`. A dead link or anchor
 * fails the build.
 */
import { spawnSync } from "node:child_process"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { dirname, join, relative, resolve } from "node:path"
import { writeReference } from "./api.ts"
import { checkSite } from "./siteLinks.ts"

const root = resolve(import.meta.dirname, "..")
const docs = join(root, "docs")

const run = (binary: string, ...args: ReadonlyArray<string>): void => {
  const { status } = spawnSync(binary, args, { cwd: root, stdio: "inherit" })
  if (status !== 0) process.exit(status ?? 1)
}

/** A page for each source that another page links to. */
const writeSources = (): number => {
  rmSync(join(docs, "source"), { recursive: true, force: true })
  const sources = new Set<string>()
  for (const page of globSync("**/*.md", { cwd: docs, exclude: ["node_modules"] })) {
    for (
      const [, link] of readFileSync(join(docs, page), "utf8").matchAll(
        /\]\(([^)\s#]*\/packages\/[^)\s#]+\.ts)(?:#|\))/g
      )
    ) {
      sources.add(relative(root, resolve(docs, dirname(page), link!)))
    }
  }
  for (const source of sources) {
    const page = join(docs, "source", `${source}.md`)
    mkdirSync(dirname(page), { recursive: true })
    const code = readFileSync(join(root, source), "utf8")
    writeFileSync(page, `---\nsearch: false\noutline: false\n---\n\n# ${source}\n\n\`\`\`\`ts lines\n${code}\`\`\`\`\n`)
  }
  return sources.size
}

const command = process.argv[2]
if (command !== "build" && command !== "pages") {
  console.error("node scripts/site.ts build|pages")
  process.exit(2)
}

run(join(root, "node_modules/.bin/tsc"), "-b", "tsconfig.packages.json")
const modules = writeReference()
const sources = writeSources()

if (command === "build") {
  run(join(docs, "node_modules/.bin/vitepress"), "build", docs)
  const { links, problems } = checkSite(join(root, ".cache/site"))
  if (problems.length > 0) {
    console.error(problems.join("\n"))
    process.exitCode = 1
  } else {
    console.log(
      `.cache/site: ${modules.length} modules with ${modules.flatMap(({ exports }) => exports).length} exports, ` +
        `${sources} sources; ${links} links lead somewhere`
    )
  }
}
