/** The check of the built site's links, on sites of a few lines. */
import { assert, describe, it } from "@effect/vitest"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { checkSite } from "../siteLinks.ts"

const check = (files: Readonly<Record<string, string>>) => {
  const directory = mkdtempSync(join(tmpdir(), "site-"))
  try {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(directory, path)), { recursive: true })
      writeFileSync(join(directory, path), text)
    }
    return checkSite(directory)
  } finally {
    rmSync(directory, { recursive: true })
  }
}

const page = "<h2 id=\"a-heading\" tabindex=\"-1\">A heading</h2>"

describe("a site's links", () => {
  it("may lead to pages, headings and files, by absolute and relative paths, and out of the site", () => {
    const { links, problems } = check({
      "index.html": `${page}<a class="x" href="/">1</a> <a href="#a-heading">2</a> <a href="./api/">3</a>
        <a href="/api/index.html#a-heading">4</a> <link rel="icon" href="/icon.svg"> <a href="https://example.org/x#y">-</a>`,
      "api/index.html": `${page}<a href="../index.html#a-heading">6</a> <a href="index.html#">7</a>`,
      "icon.svg": ""
    })
    assert.deepStrictEqual(problems, [])
    assert.strictEqual(links, 7)
  })

  for (
    const [what, href, problem] of [
      ["a page that is not there", "/nowhere.html", "there is no such file"],
      ["a directory without an index", "/api/", "there is no such file"],
      ["a page above the site", "../index.html", "there is no such file"],
      ["a heading that is not on this page", "#nothing", "index.html has nothing with that id"],
      ["a heading in another case", "#A-Heading", "index.html has nothing with that id"],
      ["a heading that is not on another page", "/other.html#nothing", "other.html has nothing with that id"]
    ] as const
  ) {
    it(`may not lead to ${what}`, () => {
      const { problems } = check({
        "index.html": `${page}<a href="${href}">x</a>`,
        "other.html": page,
        "api/other.html": page
      })
      assert.deepStrictEqual(problems, [`index.html: link to ${href}: ${problem}`])
    })
  }
})
