/** The unit files and manifests of the documentation: what systemd and the types of Kubernetes' API have to say about them. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join, resolve } from "node:path"
import { parseAllDocuments } from "yaml"

const root = resolve(import.meta.dirname, "../..")

/** The fences of a page in this language, by the path in their first line. */
const fences = (page: string, language: string): ReadonlyMap<string, string> =>
  new Map(
    Array.from(
      readFileSync(join(root, "docs", page), "utf8").matchAll(
        new RegExp(`^\`\`\`${language}\n# (\\S+)\n([^]*?)^\`\`\`$`, "gm")
      ),
      ([, path, text]) => [path!, text!]
    )
  )

/** What `systemd-analyze verify` says. The program of the units is one that is there. */
const verifyUnits = (units: ReadonlyMap<string, string>): string => {
  const directory = mkdtempSync(join(tmpdir(), "units-"))
  try {
    const paths = Array.from(units, ([path, text]) => {
      const unit = join(directory, basename(path))
      writeFileSync(unit, text.replaceAll("/usr/bin/node", process.execPath))
      return unit
    })
    const { error, status, stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", ...paths], {
      encoding: "utf8"
    })
    assert.isUndefined(error, "this test needs systemd-analyze: apt-get install systemd")
    // What it finds is a warning mostly: it exits with 0 all the same. The machine's own units are none of our business.
    const ours = stderr.split("\n").filter((line) => paths.some((path) => line.includes(basename(path))))
    return status === 0 || ours.length > 0 ? ours.join("\n") : stderr
  } finally {
    rmSync(directory, { recursive: true })
  }
}

const kinds: Readonly<Record<string, string>> = { Deployment: "apps/v1", Service: "core/v1" }

/** What the compiler says about manifests as values of Kubernetes' types. */
const checkManifests = (text: string): string => {
  const cache = join(root, ".cache")
  mkdirSync(cache, { recursive: true })
  const directory = mkdtempSync(join(cache, "manifests-"))
  try {
    const lines = parseAllDocuments(text).map((document, index) => {
      assert.deepStrictEqual(document.errors, [])
      const manifest: { readonly kind: string } = document.toJS()
      return `export const manifest${index}: import("kubernetes-types/${kinds[manifest.kind]}").${manifest.kind} = ${
        JSON.stringify(manifest)
      }`
    })
    const module = join(directory, "manifests.ts")
    writeFileSync(module, lines.join("\n"))
    const { stdout } = spawnSync(
      join(root, "node_modules/.bin/tsc"),
      [
        "--noEmit",
        "--strict",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--types",
        "",
        "--skipLibCheck",
        "--ignoreConfig",
        module
      ],
      { cwd: root, encoding: "utf8" }
    )
    return stdout
  } finally {
    rmSync(directory, { recursive: true })
  }
}

describe("deployment", () => {
  for (const page of ["deployment.md", "replacing-a-server.md"]) {
    it(`has units in ${page} that systemd accepts`, () => {
      const units = fences(page, "ini")
      assert.deepStrictEqual([...units.keys()].map((path) => basename(path)).toSorted(), [
        "echo.service",
        "echo.socket"
      ])
      assert.strictEqual(verifyUnits(units), "")
    })
  }

  it("would notice a setting that systemd does not know", () => {
    const [[path, text] = ["", ""]] = fences("deployment.md", "ini")
    assert.match(verifyUnits(new Map([[path, text.replace("Backlog=", "BackLock=")]])), /Unknown key .*BackLock/)
  })

  it("has manifests that are what Kubernetes' API takes", () => {
    const manifests = fences("deployment.md", "yaml")
    assert.deepStrictEqual([...manifests.keys()], ["echo.yaml"])
    assert.strictEqual(checkManifests(manifests.get("echo.yaml")!), "")
  })

  it("would notice a field that Kubernetes does not know", () => {
    const manifest = fences("deployment.md", "yaml").get("echo.yaml")!
    assert.match(checkManifests(manifest.replace("preStop:", "preStopp:")), /preStopp/)
  })
})
