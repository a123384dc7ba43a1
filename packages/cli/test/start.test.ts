/** What the README says to begin with. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { ask, commands, start } from "./utils.ts"

const root = fileURLToPath(new URL("../../..", import.meta.url))

describe("pnpm start", () => {
  it.live("serves lines in upper case, and tells what to type", () =>
    Effect.gen(function*() {
      const { env, runtime } = yield* commands
      const { scripts }: { readonly scripts: { readonly start: string } } = JSON.parse(
        readFileSync(join(root, "package.json"), "utf8")
      )
      const path = join(runtime, "upper.sock")
      const [node, ...args] = scripts.start.replace("9999", "0").replace("/tmp/upper.sock", path).split(" ")
      assert.strictEqual(node, "node")
      const demo = yield* start(process.execPath, args, { cwd: root, env })
      const [, address] = yield* demo.out.lineWith(
        /^demo: listening on (127\.0\.0\.1:\d+) \(tcp\): nc 127\.0\.0\.1 \d+$/
      )
      yield* demo.out.lineWith(/\(unix\): nc -U /)
      yield* demo.out.lineWith(/^Ctrl-C drains/)
      assert.deepStrictEqual(yield* ask(address!, "hello\n"), ["HELLO"])
      assert.deepStrictEqual(yield* ask(path, "hello\n"), ["HELLO"])
      yield* demo.signal("SIGINT")
      assert.match((yield* demo.out.rest).join("\n"), /^tcp: drained in/m)
      assert.strictEqual(yield* demo.exitCode, 0)
    }))
})
