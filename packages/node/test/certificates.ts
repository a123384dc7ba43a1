/** Certificates for tests, made by `openssl` once for each test file. */
import { afterAll } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const directory = mkdtempSync(join(tmpdir(), "socketserver-tls-"))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const openssl = (...args: ReadonlyArray<string>) => execFileSync("openssl", args, { cwd: directory, stdio: "pipe" })

export interface Certified {
  readonly certFile: string
  readonly keyFile: string
  readonly cert: string
  readonly key: string
}

const at = (name: string): Certified => {
  const certFile = join(directory, `${name}.pem`)
  const keyFile = join(directory, `${name}.key`)
  return { certFile, keyFile, cert: readFileSync(certFile, "utf8"), key: readFileSync(keyFile, "utf8") }
}

const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

const selfSigned = (name: string): Certified => {
  openssl(
    "req",
    "-x509",
    ...newKey,
    "-subj",
    `/CN=${name}`,
    "-days",
    "2",
    "-keyout",
    `${name}.key`,
    "-out",
    `${name}.pem`
  )
  return at(name)
}

const signedBy = (authority: string, name: string): Certified => {
  openssl("req", "-new", ...newKey, "-subj", `/CN=${name}`, "-keyout", `${name}.key`, "-out", `${name}.csr`)
  writeFileSync(join(directory, `${name}.ext`), `subjectAltName=DNS:${name}\n`)
  const signing = ["-CA", `${authority}.pem`, "-CAkey", `${authority}.key`, "-CAcreateserial", "-days", "2"]
  openssl("x509", "-req", "-in", `${name}.csr`, ...signing, "-extfile", `${name}.ext`, "-out", `${name}.pem`)
  return at(name)
}

export const authority = selfSigned("authority")
export const localhost = signedBy("authority", "localhost")
export const second = signedBy("authority", "second.test")
export const alice = signedBy("authority", "alice")
/** Of no authority. */
export const mallory = selfSigned("mallory")

export const identityOf = ({ cert, key }: Certified) => ({ cert, key })
