/** The native part: what happens where it cannot be compiled. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawnSync } from "node:child_process"
import { cpSync, existsSync, readdirSync, realpathSync } from "node:fs"
import { createRequire } from "node:module"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { location } from "../src/internal/native.ts"
import { bind } from "../src/internal/socket.ts"
import { directory } from "./utils.ts"

const native = fileURLToPath(new URL("../native", import.meta.url))
const headers = realpathSync(join(createRequire(import.meta.url).resolve("node-api-headers"), ".."))

/** The package as it is published, in a directory of its own, and installed with that environment. */
const install = (env: Readonly<Record<string, string>>) =>
  Effect.map(directory, (root) => {
    cpSync(native, join(root, "native"), { recursive: true })
    cpSync(headers, join(root, "node_modules/node-api-headers"), { recursive: true })
    const { status, stderr } = spawnSync(process.execPath, [join(root, "native/install.js")], { env, encoding: "utf8" })
    const build = join(root, "build")
    return { root, status, stderr, built: existsSync(build) ? readdirSync(build) : [] }
  })

const bindWith = (root: string, file: string) =>
  bind({ path: join(root, "s.sock"), mode: undefined, unlinkStale: true, maxPacketSize: 100, native: file }, () => {})

describe("installing", () => {
  it.live("compiles one file, without a word", () =>
    Effect.gen(function*() {
      const { built, root, status, stderr } = yield* install({ PATH: process.env["PATH"]! })
      assert.deepStrictEqual([status, stderr], [0, ""])
      assert.strictEqual(built.length, 1)
      yield* bindWith(root, join(root, "build", built[0]!))
    }))

  it.live("without a compiler succeeds, and says what to install", () =>
    Effect.gen(function*() {
      const { built, status, stderr } = yield* install({ PATH: "" })
      assert.strictEqual(status, 0)
      assert.match(stderr, /not compiled.*: no C compiler could be run \(spawnSync cc ENOENT\)/)
      assert.match(stderr, /apt-get install gcc libc6-dev.*npm rebuild @socketserver\/unix-datagram/)
      assert.deepStrictEqual(built, [])
    }))

  it.live("with a compiler that fails succeeds, and says so", () =>
    Effect.gen(function*() {
      const { built, status, stderr } = yield* install({ PATH: process.env["PATH"]!, CC: "false" })
      assert.strictEqual(status, 0)
      assert.match(stderr, /the C compiler failed/)
      assert.deepStrictEqual(built, [])
    }))
})

describe("binding", () => {
  it.live("fails with what to install, where nothing was compiled", () =>
    Effect.gen(function*() {
      const root = yield* directory
      const error = yield* Effect.flip(bindWith(root, join(root, "build/nothing.node")))
      assert.strictEqual(error.reason._tag, "ListenFailed")
      assert.match(error.message, /s\.sock: the native part .* is not compiled; install a C compiler .*npm rebuild/)
      assert.deepStrictEqual(readdirSync(root), [])
    }))

  it.live("fails with the system's words, where what was compiled cannot be loaded", () =>
    Effect.gen(function*() {
      const root = yield* directory
      cpSync(join(native, "unix_datagram.c"), join(root, "broken.node"))
      const error = yield* Effect.flip(bindWith(root, join(root, "broken.node")))
      assert.strictEqual(error.reason._tag, "ListenFailed")
      assert.match(error.message, /broken\.node/)
    }))

  it("has the compiled part of this workspace", () => {
    assert.isTrue(existsSync(location), `run \`pnpm build:native\`: ${location} is missing`)
  })
})
