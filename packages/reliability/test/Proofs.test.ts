/** Every proof holds, in its small version. */
import { assert, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"

const main = fileURLToPath(import.meta.resolve("@socketserver/reliability"))

const run = (...args: ReadonlyArray<string>) =>
  new Promise<{ readonly code: number | string | null | undefined; readonly output: string }>((resolve) => {
    execFile(
      process.execPath,
      [main, ...args],
      (error, stdout, stderr) => resolve({ code: error === null ? 0 : error.code, output: stdout + stderr })
    )
  })

/** Each is processes of its own, and none measures time: they do not disturb each other. */
describe.concurrent("pnpm reliability --short", () => {
  for (
    const name of [
      "slow",
      "idle",
      "storms",
      "half-open",
      "never-reading",
      "descriptors",
      "drain",
      "fuzz-readers",
      "fuzz-framing",
      "fuzz-proxy",
      "fuzz-tls",
      "chaos"
    ]
  ) {
    it(name, async () => {
      const { code, output } = await run("--short", name)
      assert.strictEqual(code, 0, output)
      assert.include(output, "all limits kept")
    }, 180_000)
  }

  it("has no proof of another name", async () => {
    const { code, output } = await run("perpetual-motion")
    assert.strictEqual(code, 1)
    assert.include(output, "no proof is called \"perpetual-motion\"")
  })
})
