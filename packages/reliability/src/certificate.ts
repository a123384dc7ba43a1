/** A certificate of nobody's, made by `openssl` for one run. */
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export interface Certificate {
  readonly certFile: string
  readonly keyFile: string
}

let made: Certificate | undefined

export const certificate = (): Certificate => made ??= make()

const make = (): Certificate => {
  const directory = mkdtempSync(join(tmpdir(), "socketserver-reliability-"))
  process.on("exit", () => rmSync(directory, { recursive: true, force: true }))
  const certFile = join(directory, "cert.pem")
  const keyFile = join(directory, "key.pem")
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", keyFile]
  execFileSync("openssl", ["req", "-x509", ...key, "-subj", "/CN=localhost", "-days", "2", "-out", certFile], {
    stdio: "pipe"
  })
  return { certFile, keyFile }
}
