/**
 * What may come where TLS expects a ClientHello: noise, other protocols, and real ones in which something was changed. Each input is
 * a connection of its own, to a server on a unix socket. It must end with a handshake that failed, no warning may be
 * logged, and honest clients in between must get their answers.
 */
import { Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { mkdtempSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Tls from "node:tls"
import { certificate } from "./certificate.ts"
import { proofOf, readCorpus } from "./fuzzing.ts"
import { lines } from "./handlers.ts"
import type { Random } from "./random.ts"

/**
 * Real ones, of `node:tls` and of openssl: TLS 1.2 alone, 1.3 alone, both; with a name, with ALPN. They are kept, since a client has
 * another random part each time, and an input must be the same for the same seed.
 */
const hellos = readCorpus("fuzz-tls").filter(({ name }) => name.startsWith("hello-"))
  .map(({ input }) => input.subarray(1))

/** Bytes of other protocols, and of old ones. */
const others = [
  "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
  "SSH-2.0-x\r\n",
  "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
  "\r\n\r\n\0\r\nQUIT\n",
  "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
  "\x15\x03\x01\x00\x02\x02\x28",
  "\x14\x03\x03\x00\x01\x01",
  "\x17\x03\x03\x40\x00",
  "\x16\x03\x01\xff\xff",
  "\x16\x03\x01\x00\x00",
  "\x16\x03\x03\x00\x04\x01\xff\xff\xff"
].map((text) => Buffer.from(text, "latin1"))

/** Changes some bytes, cuts something out, puts something in, or sends a hello in several records. */
const mutate = (random: Random, hello: Uint8Array): Uint8Array => {
  let bytes = [...hello]
  for (let changes = 1 + random.integer(4); changes > 0; changes--) {
    const at = random.integer(bytes.length)
    switch (random.integer(7)) {
      case 0:
        bytes[at] = random.integer(256)
        break
      case 1:
        bytes[at]! ^= 1 << random.integer(8)
        break
      // Lengths and versions stand at the beginning.
      case 2:
        bytes[random.integer(Math.min(bytes.length, 48))] = random.pick([0, 1, 3, 0x7f, 0xff])
        break
      case 3:
        bytes.splice(at, 1 + random.integer(16))
        break
      case 4:
        bytes.splice(at, 0, ...random.bytes(1 + random.integer(16)))
        break
      case 5:
        bytes = bytes.slice(0, Math.max(1, at))
        break
      case 6: {
        const [type = 22, major = 3, minor = 1] = bytes
        const part = bytes.slice(5, Math.max(6, at))
        const rest = bytes.slice(5 + part.length)
        bytes = [type, major, minor, part.length >> 8, part.length & 0xff, ...part]
        bytes.push(type, major, minor, rest.length >> 8, rest.length & 0xff, ...rest)
      }
    }
    if (bytes.length === 0) bytes = [22]
  }
  return Uint8Array.from(bytes)
}

const endings = ["end", "end", "destroy", "split", "again"] as const

/** The first byte says how the others are sent. */
const send = (path: string, input: Uint8Array): Promise<undefined> =>
  new Promise((resolve) => {
    const ending = endings[(input[0] ?? 0) % endings.length]
    const bytes = input.subarray(1)
    const socket = Net.connect({ path })
    socket.on("error", () => {})
    socket.on("close", () => resolve(undefined))
    socket.resume()
    switch (ending) {
      case "destroy":
        return socket.write(bytes, () => socket.destroy())
      case "split": {
        const half = bytes.length >> 1
        return socket.write(bytes.subarray(0, half), () => socket.end(bytes.subarray(half)))
      }
      case "again":
        socket.write(bytes)
        return socket.end(bytes)
      default:
        return socket.end(bytes)
    }
  })

const ask = (path: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = Tls.connect({ path, rejectUnauthorized: false }, () => socket.write("hello\n"))
    socket.setEncoding("latin1")
    socket.on("error", reject)
    socket.on("close", () => reject(new Error("an honest client was not answered")))
    socket.once("data", (answer: string) => {
      resolve(answer)
      socket.destroy()
    })
  })

export const fuzzTls = proofOf({
  name: "fuzz-tls",
  claim: "whatever comes where a ClientHello should be ends its own connection, and nothing else",
  short: 3_000,
  lanes: 32,
  generate: (random) => {
    const noise = () => random.bytes(1 + random.integer(random.pick([5, 50, 600])))
    const bytes = random.chance(0.8)
      ? mutate(random, random.pick(hellos))
      : random.chance(0.5)
      ? Buffer.concat([random.pick(others), noise()])
      : noise()
    return Buffer.concat([random.bytes(1), bytes])
  },
  start: async ({ check, say }) => {
    const directory = mkdtempSync(join(tmpdir(), "socketserver-fuzz-"))
    const path = join(directory, "tls.sock")
    let logged = 0
    const counting = Logger.make(({ logLevel }) => {
      if (LogLevel.isGreaterThan(logLevel, "Info")) logged++
    })
    const layer = NodeTransport.unix({ path, backlog: 4_096 }).pipe(
      NodeTransport.tls(certificate()),
      Dispatch.fiberPerRequest(),
      Server.serveStream(lines),
      Layer.provide(Layer.merge(Logger.layer([counting]), Layer.succeed(References.MinimumLogLevel, "All")))
    )
    const scope = Effect.runSync(Scope.make())
    const server = Context.get(await Effect.runPromise(Layer.buildWithScope(layer, scope)), Server.Server)
    let sent = 0
    let asked = 0
    return {
      run: async (input) => {
        await send(path, input)
        if (++sent % 500 !== 0) return undefined
        asked++
        const answer = await ask(path)
        return answer === "hello\n" ? undefined : `an honest client was answered ${JSON.stringify(answer)}`
      },
      end: async () => {
        await Effect.runPromise(server.awaitIdle)
        const { accepted, closed, open } = await Effect.runPromise(server.stats)
        say(`${accepted} connections, ${asked} of them honest: ${JSON.stringify(closed)}`)
        const sum = Object.values(closed).reduce((a, b) => a + b, 0)
        check(`${accepted} were accepted, ${sum} have ended, ${open} are open`, accepted === sum && open === 0)
        check(`${logged} warnings and errors logged (0)`, logged === 0)
        await Effect.runPromise(Scope.close(scope, Exit.void))
        rmSync(directory, { recursive: true })
      }
    }
  }
})
