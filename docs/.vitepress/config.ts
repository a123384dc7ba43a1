import { globSync, readFileSync } from "node:fs"
import { dirname, join, posix, resolve } from "node:path"
import { defineConfig } from "vitepress"

const docs = resolve(import.meta.dirname, "..")

/** The guide, in the order of the index: a page that is to be in the sidebar is a row there. */
const guide = Array.from(
  readFileSync(join(docs, "README.md"), "utf8").matchAll(/^\d+\. \[([^\]]+)\]\(([^)]+)\.md\)/gm),
  ([, text, page]) => ({ text: text!, link: `/${page}` })
)

const reference = ["core", "node", "unix-datagram", "testing"].map((name) => ({
  text: `@socketserver/${name}`,
  items: globSync(`api/${name}/*.md`, { cwd: docs }).toSorted().map((path) => ({
    text: posix.basename(path, ".md"),
    link: `/${path}`
  }))
}))

/** Headings as GitHub makes anchors of them, so that a link works in both places. */
const slugify = (heading: string): string =>
  heading.toLowerCase().replaceAll(/[^\p{L}\p{N}\p{M} _-]/gu, "").trim().replaceAll(" ", "-")

/** Links out of `docs/`: a source is a page of the site, a package is its part of the reference. */
const inSite = (page: string, href: string): string => {
  const [, path, hash = ""] = /^((?:\.\.\/)+packages\/[^#]*)(#.*)?$/.exec(href) ?? []
  if (path === undefined) return href
  const target = posix.join(dirname(page), path).replace(/^(\.\.\/)+/, "")
  return target.endsWith(".ts") ? `/source/${target}.md${hash}` : `/api/index.md#${posix.basename(target)}`
}

export default defineConfig({
  title: "socketserver",
  description: "Socket servers as Effect programs",
  lang: "en",
  outDir: "../.cache/site",
  cacheDir: "../.cache/vitepress",
  rewrites: { "README.md": "index.md" },
  markdown: {
    html: false,
    anchor: { slugify },
    config: (md) => {
      md.core.ruler.push("in-site", ({ env, tokens }) => {
        for (const token of tokens.flatMap(({ children }) => children ?? [])) {
          const href = token.type === "link_open" ? token.attrGet("href") : null
          if (href !== null) token.attrSet("href", inSite(env.relativePath, href))
        }
      })
    },
    codeTransformers: [{
      // The lines of a source can be linked to.
      line(node, line) {
        if (this.options.meta?.__raw?.includes("lines") === true) node.properties["id"] = `L${line}`
      }
    }]
  },
  themeConfig: {
    search: { provider: "local" },
    outline: [2, 3],
    nav: [{ text: "Guide", link: "/getting-started" }, { text: "API", link: "/api/" }],
    sidebar: {
      "/": [{ text: "Documentation", items: guide }, { text: "API reference", link: "/api/" }],
      "/api/": reference,
      "/source/": []
    }
  }
})
