/** Checks the links of a built site: every internal one must lead to a file of it, and every anchor to an element with that id. */
import { existsSync, globSync, readFileSync, statSync } from "node:fs"
import { dirname, join, relative } from "node:path"

const attributes = (html: string, name: string): Array<string> =>
  Array.from(
    html.matchAll(new RegExp(`<[a-z][^>]*? ${name}="([^"]*)"`, "g")),
    ([, value]) => value!.replaceAll("&amp;", "&")
  )

/** What is wrong with the links of the site in `directory`, and how many there are. */
export const checkSite = (directory: string): { readonly links: number; readonly problems: ReadonlyArray<string> } => {
  const pages = new Map(
    globSync("**/*.html", { cwd: directory }).map((path) => [path, readFileSync(join(directory, path), "utf8")])
  )
  const ids = new Map(Array.from(pages, ([path, html]) => [path, new Set(attributes(html, "id"))]))
  const problems = new Set<string>()
  let links = 0
  for (const [page, html] of pages) {
    for (const href of attributes(html, "href")) {
      if (/^[a-z][a-z+.-]*:|^\/\//i.test(href)) continue
      links++
      const [path = "", anchor] = decodeURI(href).split("#")
      let target = path === "" ? page : path.startsWith("/") ? path.slice(1) : join(dirname(page), path)
      if (target === "" || target.endsWith("/")) target += "index.html"
      const file = join(directory, target)
      if (relative(directory, file).startsWith("..") || !existsSync(file) || !statSync(file).isFile()) {
        problems.add(`${page}: link to ${href}: there is no such file`)
      } else if (anchor !== undefined && anchor !== "" && ids.get(target)?.has(anchor) !== true) {
        problems.add(`${page}: link to ${href}: ${target} has nothing with that id`)
      }
    }
  }
  return { links, problems: [...problems] }
}
