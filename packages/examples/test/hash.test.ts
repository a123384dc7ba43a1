/** The password hashes: as clients get them, as Python's scrypt has them, and beside a server that has nothing to compute. */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@socketserver/core"
import { Cause, Effect, Layer } from "effect"
import { Echo } from "../src/echo.ts"
import { Hash } from "../src/hash.ts"
import { connect, pythonMissing, start, targetOf, withEachClient } from "./utils.ts"

class Beside extends Server.Service<Beside>()("@socketserver/examples/test/Beside") {}

const Hashing = Hash(0)
const hashed = /^\$scrypt\$ln=14,r=8,p=5\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/

/** Sends all lines at once, and has nothing more to say. */
const converse = Effect.fnUntraced(function*(lines: ReadonlyArray<string>, open: typeof connect = connect) {
  const client = yield* open(targetOf((yield* Server.Server).address))
  yield* client.send(lines.map((line) => `${line}\n`).join(""))
  yield* client.finish
  return yield* client.rest
}, Effect.scoped)

/** Recomputes each hash of lines `hash password`. */
const python = `
import base64, hashlib, re, sys
decode = lambda text: base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
for line in sys.stdin:
    hash, password = line.rstrip("\\n").split(" ", 1)
    _, kind, cost, salt, expected = hash.split("$")
    ln, r, p = map(int, re.fullmatch(r"ln=(\\d+),r=(\\d+),p=(\\d+)", cost).groups())
    actual = hashlib.scrypt(password.encode(), salt=decode(salt), n=1 << ln, r=r, p=p, dklen=32, maxmem=1 << 26)
    print(kind, "same" if actual == decode(expected) else "different", flush=True)
`

describe("the password service", () => {
  withEachClient("hashes each line, never twice the same, and knows its own hashes", (open) =>
    Effect.gen(function*() {
      const [first = "", second = ""] = yield* converse(["hash pass word", "hash pass word"], open)
      assert.match(first, hashed)
      assert.match(second, hashed)
      assert.notStrictEqual(first, second)
      assert.deepStrictEqual(
        yield* converse([`verify ${first} pass word`, `verify ${first} password`, `verify ${second} pass word`], open),
        ["OK", "WRONG", "OK"]
      )
    }).pipe(Effect.provide(Hashing)))

  it.live("knows a hash that others have made: a test vector of RFC 7914", () =>
    Effect.gen(function*() {
      const salt = Buffer.from("SodiumChloride").toString("base64").replaceAll("=", "")
      const vector = Buffer.from(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2" +
          "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887",
        "hex"
      ).toString("base64").replaceAll("=", "")
      assert.deepStrictEqual(
        yield* converse([
          `verify $scrypt$ln=14,r=8,p=1$${salt}$${vector} pleaseletmein`,
          `verify $scrypt$ln=14,r=8,p=1$${salt}$${vector} pleaseletmeout`
        ]),
        ["OK", "WRONG"]
      )
    }).pipe(Effect.provide(Hashing)))

  it.live.skipIf(pythonMissing !== undefined)(
    `hashes as Python does${pythonMissing === undefined ? "" : ` (${pythonMissing})`}`,
    () =>
      Effect.gen(function*() {
        const passwords = ["secret", "pass word", "Übergrößenträger 😀", "x".repeat(500)]
        const hashes = yield* converse(passwords.map((password) => `hash ${password}`))
        const program = yield* start("python3", ["-c", python], { PYTHONUTF8: "1" })
        yield* program.send(passwords.map((password, n) => `${hashes[n]} ${password}\n`).join(""))
        yield* program.finish
        assert.deepStrictEqual(yield* program.rest, passwords.map(() => "scrypt same"))
        assert.deepStrictEqual(yield* program.errors, [])
      }).pipe(Effect.provide(Hashing))
  )

  it.live("gives each of many clients at once its own answers", () =>
    Effect.gen(function*() {
      const clients = Array.from({ length: 8 }, (_, n) => `password ${n}`)
      const hashes = yield* Effect.forEach(
        clients,
        (password) => Effect.map(converse([`hash ${password}`]), ([hash = ""]) => hash),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(new Set(hashes).size, clients.length)
      const answers = yield* Effect.forEach(
        hashes,
        (hash, n) => converse([`verify ${hash} password ${n}`, `verify ${hash} password ${n + 1}`]),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers, clients.map(() => ["OK", "WRONG"]))
      const server = yield* Server.Server
      yield* server.awaitIdle
      assert.deepStrictEqual((yield* server.stats).closed, { Completed: 16 })
    }).pipe(Effect.provide(Hashing)), 60_000)

  it.live("leaves the thread of the server to others, while its workers compute", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const hashing = yield* connect(targetOf((yield* Server.Server).address))
      const beside = yield* connect(targetOf((yield* Beside).address))
      yield* hashing.send("hash password\n".repeat(10))
      // The worker has begun, and has all that it will need for the others.
      assert.match(yield* hashing.line, hashed)
      yield* Effect.all([
        Effect.gen(function*() {
          for (let n = 2; n <= 10; n++) assert.match(yield* hashing.line, hashed)
          order.push("hashed")
        }),
        Effect.gen(function*() {
          // More turns of the event loop than there are pauses between hashes.
          for (let n = 1; n <= 100; n++) {
            yield* beside.send(`${n}\n`)
            assert.strictEqual(yield* beside.line, String(n))
          }
          order.push("echoed")
        })
      ], { concurrency: "unbounded" })
      assert.deepStrictEqual(order, ["echoed", "hashed"])
    }).pipe(Effect.provide(Layer.merge(Hashing, Echo(0).pipe(Server.as(Beside))))))

  it.live("answers what it does not take, and goes on", () =>
    Effect.gen(function*() {
      const salt = "A".repeat(22)
      const key = "A".repeat(43)
      const cost = "ERROR the hash may cost at most ln=14,r=8,p=5"
      const shape = "ERROR the hash must be $scrypt$ln=…,r=…,p=…$salt$hash"
      const usage = "ERROR expected hash password, or verify hash password"
      assert.deepStrictEqual(
        yield* converse([
          "",
          "hash",
          "HASH password",
          "verify password",
          `verify $argon2id$v=19$m=65536,t=2,p=1$${salt}$${key} password`,
          `verify $scrypt$ln=14,r=8$${salt}$${key} password`,
          `verify $scrypt$ln=0,r=8,p=1$${salt}$${key} password`,
          `verify $scrypt$ln=14,r=8,p=5$${salt}$AAAA password`,
          `verify $scrypt$ln=15,r=8,p=5$${salt}$${key} password`,
          `verify $scrypt$ln=14,r=9,p=5$${salt}$${key} password`,
          `verify $scrypt$ln=14,r=8,p=99$${salt}$${key} password`,
          `verify $scrypt$ln=1,r=1,p=1$${salt}$${key} password`
        ]),
        [usage, usage, usage, usage, shape, shape, shape, shape, cost, cost, cost, "WRONG"]
      )
    }).pipe(Effect.provide(Hashing)))

  it.live("ends with a client whose line is too long, having said so, and serves the next", () =>
    Effect.gen(function*() {
      const client = yield* connect(targetOf((yield* Server.Server).address))
      yield* client.send("x".repeat(600))
      assert.strictEqual(yield* client.line, "ERROR a line has at most 512 bytes")
      assert.isTrue(Cause.isDone(yield* Effect.flip(client.line)))
      assert.match((yield* converse(["hash password"]))[0] ?? "", hashed)
    }).pipe(Effect.provide(Hashing)))
})
