/**
 * A service that hashes passwords, and checks them: a line comes, a line goes back. Hashing is meant to take its time, and
 * here it takes that of the thread that it runs on, so each client gets a worker thread. The main thread only accepts, and
 * whatever else the process does goes on beside.
 *
 * The hash is scrypt (RFC 7914), written as the PHC string format has it, so that other software reads it too:
 * `$scrypt$ln=14,r=8,p=5$<salt>$<hash>`. See https://github.com/P-H-C/phc-string-format/blob/master/phc-sf-spec.md.
 */
import { type Connection, Handler, Server } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Effect, Stream } from "effect"
import { randomBytes, scryptSync, timingSafeEqual } from "node:crypto"
import { isMain, runServer } from "./run.ts"

/** What a hash costs: `2 ** ln` rounds over blocks of 128 times `r` bytes, 16 MiB in all, `p` times. */
interface Cost {
  readonly ln: number
  readonly r: number
  readonly p: number
}

/** One of the choices of OWASP's "Password Storage Cheat Sheet". */
const cost: Cost = { ln: 14, r: 8, p: 5 }

const compute = (password: string, salt: Uint8Array, length: number, { ln, p, r }: Cost): Buffer =>
  scryptSync(password, salt, length, { cost: 2 ** ln, blockSize: r, parallelization: p, maxmem: 64 * 1024 * 1024 })

/** Base64 without its padding. */
const encode = (bytes: Buffer): string => bytes.toString("base64").replace(/=+$/, "")

const makeHash = (password: string): string => {
  const salt = randomBytes(16)
  return `$scrypt$ln=${cost.ln},r=${cost.r},p=${cost.p}$${encode(salt)}$${encode(compute(password, salt, 32, cost))}`
}

const hashPattern =
  /^\$scrypt\$ln=([1-9]\d?),r=([1-9]\d?),p=([1-9]\d?)\$([A-Za-z0-9+/]{11,64})\$([A-Za-z0-9+/]{16,86})$/

const verify = (hash: string, password: string): string => {
  const [, ln, r, p, salt = "", expected = ""] = hashPattern.exec(hash) ?? []
  if (ln === undefined) return "ERROR the hash must be $scrypt$ln=…,r=…,p=…$salt$hash"
  const claimed: Cost = { ln: Number(ln), r: Number(r), p: Number(p) }
  // Who names the cost of a hash spends this machine's time and memory.
  if (claimed.ln > cost.ln || claimed.r > cost.r || claimed.p > cost.p) {
    return `ERROR the hash may cost at most ln=${cost.ln},r=${cost.r},p=${cost.p}`
  }
  const bytes = Buffer.from(expected, "base64")
  const actual = compute(password, Buffer.from(salt, "base64"), bytes.length, claimed)
  return timingSafeEqual(actual, bytes) ? "OK" : "WRONG"
}

/** `hash password`, and `verify hash password`; the password is the rest of the line, spaces and all. */
const answer = (line: string): string => {
  const [, password] = /^hash (.+)$/.exec(line) ?? []
  if (password !== undefined) return makeHash(password)
  const [, hash, claimed] = /^verify (\S+) (.+)$/.exec(line) ?? []
  if (hash !== undefined && claimed !== undefined) return verify(hash, claimed)
  return "ERROR expected hash password, or verify hash password"
}

export const hash = Handler.portable(
  import.meta.url,
  "hash",
  (connection: Connection.Connection) =>
    connection.lines({ maxLength: 512 }).pipe(
      // Between two lines the worker's event loop has a turn: the answer leaves, and a request to stop is heard.
      Stream.mapEffect((line) => Effect.tap(Effect.sync(() => `${answer(line)}\n`), Effect.yieldNow)),
      Stream.run(connection.sink),
      Effect.catchReason(
        "ConnectionError",
        "LimitExceeded",
        ({ limit }) => connection.write(`ERROR a line has at most ${limit} bytes\n`)
      )
    )
)

/**
 * A worker is a client's for as long as that is connected. So nobody may be silent for long, nor stay for ever: then the
 * others would wait.
 */
export const Hash = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    NodeDispatch.workerPerRequest({ kind: "thread", timeout: "30 seconds" }),
    Server.serveStream(hash, { idleTimeout: "5 seconds" })
  )

if (isMain(import.meta)) runServer("hash", 7014, Hash)
