/** The program of `docs/tutorial.md`, as it stands there, and clients that nobody here wrote. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { basename, join, resolve } from "node:path"
import { start } from "./utils.ts"

const root = resolve(import.meta.dirname, "../../..")

/** The modules of the page, in a directory of the workspace, where their imports resolve. The port is a free one. */
const modules = Effect.acquireRelease(
  Effect.sync(() => {
    mkdirSync(join(root, ".cache"), { recursive: true })
    const directory = mkdtempSync(join(root, ".cache/tutorial-"))
    const page = readFileSync(join(root, "docs/tutorial.md"), "utf8")
    for (const [, code, name] of page.matchAll(/^```ts\n(\/\/ (\w+\.ts)\n[^]*?)^```$/gm)) {
      writeFileSync(join(directory, name!), code!.replace("port: 11211", "port: 0"))
    }
    return directory
  }),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** Starts it, and waits until it listens. */
const startMemcached = Effect.fnUntraced(function*(env: Readonly<Record<string, string>> = {}) {
  const directory = yield* modules
  const program = yield* start(process.execPath, [join(directory, "main.ts")], env)
  // What it logs comes before and after.
  while (true) {
    const [, port] = /^memcached listens on 127\.0\.0\.1:(\d+)$/.exec(yield* program.line) ?? []
    if (port !== undefined) return { directory, port, program }
  }
})

/** Runs one of libmemcached's tools to its end. */
const tool = Effect.fnUntraced(function*(name: string, port: string, ...args: ReadonlyArray<string>) {
  const installed = spawnSync(name, ["--version"]).error === undefined
  assert.isTrue(installed, `this test needs ${name}: apt-get install libmemcached-tools`)
  const client = yield* start(name, [`--servers=127.0.0.1:${port}`, ...args])
  return { code: yield* client.exitCode, lines: yield* client.rest }
})

describe("the tutorial's memcached", () => {
  it.live("stores, finds and deletes files for libmemcached's tools, and drains", () =>
    Effect.gen(function*() {
      const { directory, port, program } = yield* startMemcached()
      const small = join(directory, "command.ts")
      const large = join(directory, "large")
      const text = "x".repeat(99) + "\n"
      writeFileSync(large, text.repeat(10_000))

      assert.strictEqual((yield* tool("memccp", port, small, large)).code, 0)
      const found = yield* tool("memccat", port, basename(small))
      assert.strictEqual(found.lines.join("\n").trimEnd(), readFileSync(small, "utf8").trimEnd())
      assert.strictEqual((yield* tool("memccat", port, "large")).lines.join("\n").trimEnd().length, 10_000 * 100 - 1)

      const { lines: stats } = yield* tool("memcstat", port)
      assert.include(stats.map((line) => line.trim()), "curr_items: 2")

      assert.strictEqual((yield* tool("memcrm", port, "large")).code, 0)
      assert.notStrictEqual((yield* tool("memccat", port, "large")).code, 0)
      assert.strictEqual((yield* tool("memccat", port, "command.ts")).code, 0)

      yield* program.signal("SIGTERM")
      assert.match((yield* program.rest).join("\n"), /^memcached has drained: \d idle, \d completed, 0 killed$/m)
      assert.strictEqual(yield* program.exitCode, 130)
      assert.deepStrictEqual(yield* program.errors, [])
    }))

  it.live("refuses a file that is too large, and goes on", () =>
    Effect.gen(function*() {
      const { directory, port } = yield* startMemcached()
      writeFileSync(join(directory, "huge"), Buffer.alloc(1_048_577, "x"))
      writeFileSync(join(directory, "largest"), Buffer.alloc(1_048_576, "x"))
      assert.notStrictEqual((yield* tool("memccp", port, join(directory, "huge"))).code, 0)
      assert.strictEqual((yield* tool("memccp", port, join(directory, "largest"))).code, 0)
      assert.strictEqual((yield* tool("memccat", port, "largest")).lines[0]?.length, 1_048_576)
    }))

  it.live("says the same over TLS", () =>
    Effect.gen(function*() {
      const certificates = yield* modules
      const [key, cert] = [join(certificates, "key.pem"), join(certificates, "cert.pem")]
      const { error } = spawnSync(
        "openssl",
        `req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout ${key} -out ${cert}`.split(" ")
      )
      assert.isUndefined(error, "this test needs openssl: apt-get install openssl")
      const { port } = yield* startMemcached({ CERTIFICATES: certificates })
      const client = yield* start("openssl", ["s_client", "-quiet", "-connect", `127.0.0.1:${port}`])
      yield* client.send("set greeting 5 0 5\r\nhello\r\nget greeting\r\nquit\r\n")
      assert.deepStrictEqual(yield* client.rest, ["STORED", "VALUE greeting 5 5", "hello", "END"])
    }))
})
