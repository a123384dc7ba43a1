/**
 * Compiles the native part, when the package is installed. It needs a C compiler and the headers of `node-api-headers`; what
 * it makes runs on every version of Node. Without a compiler the rest of an installation must not fail: then it says what is
 * missing, and the transport says it again when it is used.
 */
import { spawnSync } from "node:child_process"
import { mkdirSync, renameSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import { dirname, resolve } from "node:path"
import { fileURLToPath } from "node:url"

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..")
const output = resolve(root, "build", `unix_datagram-${process.platform}-${process.arch}.node`)
// Beside the output, so that nobody ever loads half a file, also where two installations run at a time.
const unfinished = `${output}.${process.pid}`

const compile = () => {
  if (process.platform === "win32") return "there are no unix datagrams on Windows"
  const { include_dir } = createRequire(import.meta.url)("node-api-headers")
  mkdirSync(dirname(output), { recursive: true })
  const { error, status, stderr } = spawnSync(
    process.env.CC ?? "cc",
    [
      "-std=gnu11",
      "-O2",
      "-Wall",
      "-Wextra",
      "-fPIC",
      "-shared",
      // What it uses of Node is there when Node loads it.
      ...(process.platform === "darwin" ? ["-undefined", "dynamic_lookup"] : []),
      `-I${include_dir}`,
      "-o",
      unfinished,
      resolve(root, "native/unix_datagram.c")
    ],
    { encoding: "utf8" }
  )
  if (error !== undefined) return `no C compiler could be run (${error.message})`
  if (status !== 0) return `the C compiler failed:\n${stderr}`
  if (stderr !== "") console.error(stderr)
  renameSync(unfinished, output)
  return undefined
}

const problem = compile()
if (problem !== undefined) {
  rmSync(unfinished, { force: true })
  console.error(
    `@socketserver/unix-datagram: not compiled, and not usable: ${problem}\n` +
      "Install a compiler (Debian: apt-get install gcc libc6-dev, Alpine: apk add gcc musl-dev, macOS: xcode-select " +
      "--install), then run `npm rebuild @socketserver/unix-datagram`. Everything else works without it."
  )
}
