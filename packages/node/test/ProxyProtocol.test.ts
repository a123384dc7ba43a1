/** The PROXY protocol on real sockets: TLS and workers behind it, and proxies and clients that nobody here wrote. */
import { assert, describe, it } from "@effect/vitest"
import { MemoryTransport, ProxyProtocol, Server, type StreamTransport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Effect, Exit, Layer, Logger, References, Scope, Stream } from "effect"
import type { NetAddress } from "effect/net"
import { spawn } from "node:child_process"
import { existsSync, readdirSync, writeFileSync } from "node:fs"
import * as Net from "node:net"
import { join } from "node:path"
import { authority, identityOf, localhost } from "./certificates.ts"
import { behindHeader, header2, secured, tlv } from "./proxyClients.ts"
import { connect, connectOptions, directory, eventLoopTurn, portOf, receiveAll, start } from "./utils.ts"
import { proxied as handler } from "./workers/proxied.ts"

const trusting = NodeTransport.proxyProtocol({ trusted: ["127.0.0.0/8", "unix"] })
const tls = NodeTransport.tls(identityOf(localhost))
const tcp = Effect.succeed(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }))
const unix = Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))
const proxied = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(trusting)

const line = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
const ends = Buffer.from([192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb])
const header = header2(ends, tlv(0x02, "example.org"), tlv(0xe0, "x"))
const told = (secure = "clear") => `192.0.2.1:56324 198.51.100.7:443 v1 undefined 0 ${secure}\n`
const told2 = (secure = "clear") => `192.0.2.1:56324 198.51.100.7:443 v2 example.org 2 ${secure}\n`

const closed = (server: Server.Server["Service"]) => Effect.map(server.stats, ({ closed }) => closed)

/** Runs a program with that input, and gives all of its output. A test that needs one that is missing fails, and says so. */
const run = (command: string, args: ReadonlyArray<string>, input = "") =>
  Effect.callback<string>((resume) => {
    const child = spawn(command, args)
    let output = ""
    child.stdout.on("data", (chunk: Buffer) => output += chunk.toString())
    child.stderr.on("data", (chunk: Buffer) => output += chunk.toString())
    child.stdin.on("error", () => {})
    child.on("error", (error) => resume(Effect.die(new Error(`${command} cannot be run: ${error.message}`))))
    child.stdin.end(input)
    child.on("close", () => resume(Effect.succeed(output)))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** A proxy of the simplest kind, for clients that say no header themselves: listens, and relays to the server behind one. */
const relay = (to: NetAddress.SocketAddress, header: Uint8Array | string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const listener = Net.createServer({ allowHalfOpen: true }, (socket) => {
        const back = Net.connect({ ...connectOptions(to), allowHalfOpen: true })
        const through = behindHeader(back, header)
        socket.on("error", () => back.destroy()).on("close", () => back.destroy())
        back.on("error", () => socket.destroy())
        socket.pipe(through).on("error", () => {}).pipe(socket)
      })
      listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
    }),
    (listener) => Effect.sync(() => listener.close())
  ).pipe(Effect.map((listener) => (listener.address() as Net.AddressInfo).port))

const sClient = (port: number, input: string) =>
  run("openssl", ["s_client", "-quiet", "-connect", `127.0.0.1:${port}`, "-CAfile", authority.certFile], input)

describe("the PROXY protocol over TCP", () => {
  it.live("reads the header, cut anywhere, and loses nothing behind it", () =>
    Effect.gen(function*() {
      const server = yield* start(proxied, handler.handle)
      for (const [said, answer] of [[Buffer.from(line), told()], [Buffer.from(header), told2()]] as const) {
        const input = Buffer.concat([said, Buffer.from("hello\n")])
        for (let cut = 1; cut <= input.length; cut++) {
          const client = yield* connect(server.address)
          client.setNoDelay(true)
          client.write(input.subarray(0, cut))
          yield* eventLoopTurn
          yield* eventLoopTurn
          client.end(input.subarray(cut))
          assert.strictEqual(yield* receiveAll(client), `${answer}hello\n`)
        }
      }
    }))

  it.live("keeps a large input in order behind the header", () =>
    Effect.gen(function*() {
      const server = yield* start(proxied, handler.handle)
      const body = Array.from({ length: 100_000 }, (_, i) => i).join()
      const client = yield* connect(server.address)
      client.end(line + body)
      assert.strictEqual(yield* receiveAll(client), told() + body)
    }))

  it.live("counts the header as read", () =>
    Effect.gen(function*() {
      const server = yield* start(proxied, handler.handle)
      const client = yield* connect(server.address)
      client.end(`${line}hello`)
      yield* receiveAll(client)
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).bytesRead, line.length + 5)
    }))
})

describe("a hostile client", () => {
  const attacks: Record<string, readonly [reason: RegExp, (client: Net.Socket) => void]> = {
    "garbage": [/^Missing$/, (client) => client.write("GET / HTTP/1.1\r\n\r\n")],
    "a broken line": [/^Invalid$/, (client) => client.write("PROXY TCP4 1.2.3.4\r\n")],
    "a line that does not end": [/^Invalid$/, (client) => client.write(`PROXY TCP4 ${"1".repeat(200)}`)],
    "a header that is too long": [
      /^TooLong$/,
      (client) => client.write(header2(Buffer.alloc(9_000)))
    ],
    "an end at once": [/^Missing$/, (client) => client.end()],
    "an end half-way": [/^Missing$/, (client) => client.end(line.slice(0, 20))],
    // What a client of Node 22 does to reset looks like an end.
    "a reset half-way": [
      /^(Reset|Missing)$/,
      (client) => client.write(line.slice(0, 20), () => client.resetAndDestroy())
    ],
    "silence": [/^Timeout$/, () => {}],
    "one byte, and silence": [/^Timeout$/, (client) => client.write("P")]
  }

  for (const [title, [reason, attack]] of Object.entries(attacks)) {
    it.live(`(${title}) ends its own connection only: typed, and quietly`, () =>
      Effect.gen(function*() {
        const noise: Array<string> = []
        const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
          // A server tells of its start and its end.
          if (!["Trace", "Debug", "Info"].includes(logLevel)) noise.push(`${logLevel}: ${String(message)}`)
        })
        const transport = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          NodeTransport.proxyProtocol({ trusted: ["127.0.0.1"], timeout: "1 second" })
        )
        const server = yield* start(transport, handler.handle).pipe(
          Effect.provide(Logger.layer([logger])),
          Effect.provideService(References.MinimumLogLevel, "All")
        )
        const reasons: Array<string> = []
        yield* Effect.forkScoped(
          Stream.runForEach(server.events, (event) =>
            Effect.sync(() => {
              if (event._tag !== "Closed" || event.reason._tag !== "HandshakeFailed") return
              const cause = event.reason.cause as { readonly reason: string | { readonly _tag: string } }
              reasons.push(typeof cause.reason === "string" ? cause.reason : cause.reason._tag)
            })),
          { startImmediately: true }
        )
        const good = yield* connect(server.address)
        good.write(line)
        const client = yield* connect(server.address)
        attack(client)
        yield* Effect.repeat(eventLoopTurn, { until: () => reasons.length > 0 })
        assert.match(reasons.join(), reason)
        good.end("still here")
        assert.strictEqual(yield* receiveAll(good), `${told()}still here`)
        yield* server.awaitIdle
        assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 1, Completed: 1 })
        assert.deepStrictEqual(noise, [])
      }))
  }

  it.live("is not believed where it is not trusted", () =>
    Effect.gen(function*() {
      const server = yield* start(
        NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
          NodeTransport.proxyProtocol({ trusted: ["10.0.0.0/8"] })
        ),
        handler.handle
      )
      const client = yield* connect(server.address)
      client.end(line)
      yield* Effect.exit(receiveAll(client))
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 1 })
    }))

  it.live("that comes a thousand times leaves no socket, timer or request", () =>
    Effect.gen(function*() {
      const held = () => {
        const resources = process.getActiveResourcesInfo()
        const count = (...kinds: ReadonlyArray<string>) => resources.filter((kind) => kinds.includes(kind)).length
        return {
          descriptors: existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0,
          sockets: count("TCPSocketWrap", "TCPServerWrap"),
          timers: count("Timeout")
        }
      }
      const scope = yield* Scope.make()
      const before = held()
      const server = yield* Scope.provide(start(proxied.pipe(tls), handler.handle), scope)
      const inputs = [line, line.slice(0, 9), "PROXY nonsense\r\n", `${line}\x16\x03\x01`, `${line}garbage`, ""]
      for (let i = 0; i < 1_000; i += 20) {
        yield* Effect.forEach(Array.from({ length: 20 }), (_, j) =>
          Effect.scoped(Effect.gen(function*() {
            const client = yield* connect(server.address)
            const input = inputs[j % inputs.length]!
            if (j % 3 === 0) client.resetAndDestroy()
            else if (j % 3 === 1) client.write(input, () => client.resetAndDestroy())
            else client.end(input)
            yield* Effect.exit(receiveAll(client))
          })), { concurrency: 20 })
      }
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).open, 0)
      yield* Scope.close(scope, Exit.void)
      const excess = () => Object.entries(held()).filter(([kind, count]) => count > before[kind as keyof typeof before])
      const deadline = performance.now() + 10_000
      while (excess().length > 0 && performance.now() < deadline) yield* eventLoopTurn
      assert.deepStrictEqual(excess(), [])
    }))
})

describe("TLS", () => {
  for (const [name, make] of [["tcp", tcp], ["unix", unix]] as const) {
    describe(`over ${name}`, () => {
      const before = Effect.flatMap(make, (transport) => start(transport.pipe(trusting, tls), handler.handle))
      const behind = Effect.flatMap(make, (transport) => start(transport.pipe(tls, trusting), handler.handle))

      it.live("follows a header that comes in the same segment as the ClientHello", () =>
        Effect.gen(function*() {
          const server = yield* before
          for (const [said, answer] of [[line, told], [header, told2]] as const) {
            const client = yield* secured(behindHeader(yield* connect(server.address), said))
            client.end("hello")
            assert.strictEqual(yield* receiveAll(client), `${answer("TLSv1.3")}hello`)
          }
          yield* server.awaitIdle
          assert.deepStrictEqual(yield* closed(server), { Completed: 2 })
        }))

      it.live("follows a header that comes alone, in pieces", () =>
        Effect.gen(function*() {
          const server = yield* before
          const socket = yield* connect(server.address)
          socket.write(line.slice(0, 10))
          yield* eventLoopTurn
          yield* eventLoopTurn
          socket.write(line.slice(10))
          yield* Effect.repeat(server.connections.list, { until: ([info]) => String(info?.peer) === "192.0.2.1:56324" })
          const client = yield* secured(socket)
          client.end("hello")
          assert.strictEqual(yield* receiveAll(client), `${told("TLSv1.3")}hello`)
        }))

      it.live("has the header inside", () =>
        Effect.gen(function*() {
          const server = yield* behind
          for (const [said, answer] of [[line, told], [header, told2]] as const) {
            const client = yield* secured(yield* connect(server.address))
            client.write(said)
            client.end("hello")
            assert.strictEqual(yield* receiveAll(client), `${answer("TLSv1.3")}hello`)
          }
        }))

      it.live("follows a header, and has another one inside", () =>
        Effect.gen(function*() {
          const transport = yield* make
          const server = yield* start(
            transport.pipe(
              trusting,
              tls,
              NodeTransport.proxyProtocol({ trusted: ["192.0.2.0/24"] })
            ),
            handler.handle
          )
          const client = yield* secured(behindHeader(yield* connect(server.address), line))
          client.end("PROXY TCP4 203.0.113.9 198.51.100.7 1 2\r\nhello")
          assert.match(yield* receiveAll(client), /^203\.0\.113\.9:1 .* TLSv1\.3\nhello$/)
        }))

      it.live("fails where something else follows, and where the client ends there", () =>
        Effect.gen(function*() {
          const server = yield* before
          for (const rest of ["GET / HTTP/1.1\r\n\r\n", "", "\x16\x03\x01"]) {
            const client = yield* connect(server.address)
            client.end(line + rest)
            yield* Effect.exit(receiveAll(client))
          }
          yield* server.awaitIdle
          assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 3 })
        }))

      it.live("is spoken by openssl behind a header, and around one", () =>
        Effect.gen(function*() {
          const answer: Server.StreamHandler<any, never> = ({ peer, proxy, readLine, tls, write }) =>
            Effect.flatMap(readLine(), (line) => write(`${line} ${String(peer)} v${proxy?.version} ${tls?.protocol}\n`))
          const passing = yield* start((yield* make).pipe(trusting, tls), answer)
          assert.include(
            yield* sClient(yield* relay(passing.address, header), "hello\n"),
            "hello 192.0.2.1:56324 v2 TLSv1.3\n"
          )
          const inside = yield* start((yield* make).pipe(tls, trusting), answer)
          assert.include(
            yield* sClient(yield* relay(inside.address, ""), `${line}hello\n`),
            "hello 192.0.2.1:56324 v1 TLSv1.3\n"
          )
        }))
    })
  }

  it.live("that is asked for by the handler discards what came in clear, behind the header too", () =>
    Effect.gen(function*() {
      const server = yield* start(
        proxied.pipe(NodeTransport.startTls(identityOf(localhost))),
        (connection) =>
          Effect.gen(function*() {
            assert.strictEqual(yield* connection.readLine(), "STARTTLS")
            yield* connection.upgradeTls("go ahead\n")
            yield* connection.write(`${String(connection.peer)} ${yield* connection.readLine()}\n`)
          })
      )
      const socket = yield* connect(server.address)
      socket.write(`${line}STARTTLS\ninjected\n`)
      yield* Effect.callback<void>((resume) => void socket.once("data", () => resume(Effect.void)))
      const client = yield* secured(socket)
      client.end("hello\n")
      assert.strictEqual(yield* receiveAll(client), "192.0.2.1:56324 hello\n")
    }))
})

describe("in a worker", () => {
  const isNode22 = Number(process.versions.node.split(".")[0]) < 24
  const serve = (kind: "thread" | "process", transport: Layer.Layer<StreamTransport.StreamTransport>) =>
    transport.pipe(
      NodeDispatch.workerPerRequest({ kind, maxWorkers: 1, concurrencyPerWorker: 4 }),
      Server.serveStream(handler),
      Layer.build,
      Effect.map(Context.get(Server.Server))
    )
  const transferOf = (server: Server.Server["Service"]) => Effect.map(server.info, ({ workers }) => workers?.transfer)
  const body = Array.from({ length: 50_000 }, (_, i) => i).join()

  for (const kind of ["thread", "process"] as const) {
    for (const [name, make] of [["tcp", tcp], ["unix", unix]] as const) {
      it.live(`(${kind}, ${name}) a handler is told what the header says, and has all that came behind it`, () =>
        Effect.gen(function*() {
          const server = yield* serve(kind, (yield* make).pipe(trusting))
          const expected = kind === "process" || (name === "tcp" && !isNode22) ? "socket" : "bytes"
          for (const [said, answer] of [[Buffer.from(line), told()], [Buffer.from(header), told2()]] as const) {
            // All in one segment; the header alone; a part of it, and the client ends later.
            for (const rest of ["hello\n", "", "hello again", body]) {
              const client = yield* connect(server.address)
              client.write(Buffer.concat([said, Buffer.from(rest)]))
              const received: Array<Buffer> = []
              client.on("data", (chunk: Buffer) => received.push(chunk))
              yield* Effect.repeat(eventLoopTurn, {
                until: () => Buffer.concat(received).length >= answer.length + rest.length
              })
              client.end("more")
              assert.strictEqual(
                `${Buffer.concat(received).toString()}${yield* receiveAll(client)}`,
                `${answer}${rest}more`
              )
              assert.strictEqual(yield* transferOf(server), expected)
            }
          }
          yield* server.awaitIdle
          assert.deepStrictEqual(yield* closed(server), { Completed: 8 })
          assert.strictEqual(
            (yield* server.stats).bytesRead,
            4 * (line.length + header.length) + 2 * ("hello\nhello again".length + body.length) + 8 * 4
          )
        }))

      it.live(`(${kind}, ${name}) nothing is lost of what comes at once with its end`, () =>
        Effect.gen(function*() {
          const server = yield* serve(kind, (yield* make).pipe(trusting))
          for (const rest of ["", "hello", body]) {
            const client = yield* connect(server.address)
            client.end(line + rest)
            assert.strictEqual(yield* receiveAll(client), told() + rest)
          }
        }))

      it.live(`(${kind}, ${name}) TLS is before or behind the header`, () =>
        Effect.gen(function*() {
          const before = yield* serve(kind, (yield* make).pipe(trusting, tls))
          const first = yield* secured(behindHeader(yield* connect(before.address), header))
          first.end("hello")
          assert.strictEqual(yield* receiveAll(first), `${told2("TLSv1.3")}hello`)
          const behind = yield* serve(kind, (yield* make).pipe(tls, trusting))
          const second = yield* secured(yield* connect(behind.address))
          second.end(`${line}hello`)
          assert.strictEqual(yield* receiveAll(second), `${told("TLSv1.3")}hello`)
        }))
    }

    it.live(`(${kind}, memory) a handler is told what the header says, and has all that came behind it`, () =>
      Effect.gen(function*() {
        const server = yield* serve(kind, MemoryTransport.stream().pipe(ProxyProtocol.accept({ trusted: ["unix"] })))
        const client = yield* MemoryTransport.connect(server.address)
        yield* client.writeAll([header, "hello"])
        yield* client.end
        assert.strictEqual(new TextDecoder().decode(yield* client.readAll()), `${told2()}hello`)
        assert.strictEqual(yield* transferOf(server), "bytes")
      }))
  }
})

// ---- proxies and clients that nobody here wrote

/** Bound here, so that its port is known and clients can wait in its backlog; HAProxy inherits it. */
const bound = Effect.acquireRelease(
  Effect.callback<Net.Server>((resume) => {
    const listener = Net.createServer()
    listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
  }),
  (listener) => Effect.sync(() => listener.close())
)

/** Between a port, which it gives, and a server. */
const haproxy = (
  server: { readonly address: NetAddress.SocketAddress },
  sends: string,
  checks: ReadonlyArray<string> = []
) =>
  Effect.gen(function*() {
    const listener = yield* bound
    const path = join(yield* directory, "haproxy.cfg")
    const config = [
      "defaults",
      "  mode tcp",
      "  timeout connect 5s",
      "  timeout client 10s",
      "  timeout server 10s",
      "listen front",
      "  bind fd@3",
      "  unique-id-format the-id",
      ...checks,
      `  server back 127.0.0.1:${portOf(server)} ${sends}`,
      ""
    ]
    writeFileSync(path, config.join("\n"))
    const { fd } = (listener as unknown as { readonly _handle: { readonly fd: number } })._handle
    yield* Effect.acquireRelease(
      Effect.callback<ReturnType<typeof spawn>>((resume) => {
        const child = spawn("haproxy", ["-db", "-q", "-f", path], { stdio: ["ignore", "ignore", "inherit", fd] })
        child.once("spawn", () => resume(Effect.succeed(child)))
        child.once("error", (error) => resume(Effect.die(new Error(`haproxy cannot be run: ${error.message}`))))
      }),
      (child) =>
        Effect.callback<void>((resume) => {
          child.once("exit", () => resume(Effect.void))
          child.kill("SIGKILL")
        })
    )
    const { port } = listener.address() as Net.AddressInfo
    listener.close()
    return port
  })

const connectTo = (port: number) =>
  Effect.acquireRelease(
    Effect.sync(() => Net.connect({ host: "127.0.0.1", port, allowHalfOpen: true }).on("error", () => {})),
    (socket) => Effect.sync(() => socket.destroy())
  )

describe("HAProxy in front", () => {
  for (
    const [version, sends] of [
      [1, "send-proxy"],
      [2, "send-proxy-v2"],
      [2, "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
    ] as const
  ) {
    const tell: Server.StreamHandler<any, never> = ({ local, peer, proxy, tls, write }) =>
      write(
        JSON.stringify([
          String(peer),
          String(local),
          proxy?.version,
          new TextDecoder().decode(proxy?.uniqueId),
          tls?.serverName
        ])
      )
    const expected = (client: Net.Socket, port: number, serverName: string | null) =>
      JSON.stringify([
        `127.0.0.1:${client.localPort}`,
        `127.0.0.1:${port}`,
        version,
        sends.includes("unique-id") ? "the-id" : "",
        serverName ?? undefined
      ])

    it.live(`tells of its client with \`${sends}\``, () =>
      Effect.gen(function*() {
        const port = yield* haproxy(yield* start(proxied, tell), sends)
        const client = yield* connectTo(port)
        client.end("hello through a proxy")
        const answer = yield* receiveAll(client)
        assert.strictEqual(answer, expected(client, port, null))
      }))

    it.live(`passes TLS through with \`${sends}\``, () =>
      Effect.gen(function*() {
        const port = yield* haproxy(yield* start(proxied.pipe(tls), tell), sends)
        const socket = yield* connectTo(port)
        const client = yield* secured(socket)
        client.end("hello through a proxy")
        const answer = yield* receiveAll(client)
        assert.strictEqual(answer, expected(socket, port, "localhost"))
        assert.include(
          yield* sClient(port, "hello\n"),
          `"127.0.0.1:${port}",${version}`
        )
      }))
  }

  it.live("passes TLS through to a worker", () =>
    Effect.gen(function*() {
      const server = yield* proxied.pipe(
        tls,
        NodeDispatch.workerPerRequest({ kind: "process", maxWorkers: 1 }),
        Server.serveStream(handler),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      const port = yield* haproxy(server, "send-proxy-v2")
      const socket = yield* connectTo(port)
      const client = yield* secured(socket)
      client.end("hello")
      assert.match(
        yield* receiveAll(client),
        new RegExp(`^127\\.0\\.0\\.1:${socket.localPort} 127\\.0\\.0\\.1:${port} v2 .* TLSv1\\.3\nhello$`)
      )
    }))

  it.live("checks the server's health for itself", () =>
    Effect.gen(function*() {
      const checks: Array<string> = []
      const server = yield* start(proxied, ({ peer, proxy, write }) => {
        checks.push(`${proxy?.command} ${String(proxy?.source)} ${String(peer)}`)
        return write("alive")
      })
      yield* haproxy(server, "send-proxy-v2 check check-send-proxy inter 50ms", [
        "  option tcp-check",
        "  tcp-check expect string alive"
      ])
      yield* Effect.repeat(eventLoopTurn, { until: () => checks.length >= 2 })
      for (const check of checks) assert.match(check, /^local undefined 127\.0\.0\.1:\d+$/)
    }))
})

describe("curl", () => {
  const answer: Server.StreamHandler<any, never> = (connection) =>
    Effect.gen(function*() {
      while ((yield* connection.readLine()) !== "");
      const { proxy, tls } = connection
      const body = `${proxy?.version} ${String(proxy?.source)} ${String(proxy?.destination)} ${tls?.protocol}`
      yield* connection.write(
        `HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`
      )
    })
  const args = ["-sS", "--noproxy", "*", "--haproxy-protocol"]

  it.live("says where it comes from with `--haproxy-protocol`", () =>
    Effect.gen(function*() {
      const server = yield* start(proxied, answer)
      assert.match(
        yield* run("curl", [...args, `http://127.0.0.1:${portOf(server)}/`]),
        new RegExp(`^1 127\\.0\\.0\\.1:\\d+ 127\\.0\\.0\\.1:${portOf(server)} undefined$`)
      )
    }))

  it.live("says so ahead of TLS", () =>
    Effect.gen(function*() {
      const server = yield* start(proxied.pipe(tls), answer)
      assert.match(
        yield* run("curl", [
          ...args,
          "--cacert",
          authority.certFile,
          "--resolve",
          `localhost:${portOf(server)}:127.0.0.1`,
          `https://localhost:${portOf(server)}/`
        ]),
        /^1 127\.0\.0\.1:\d+ .* TLSv1\.3$/
      )
    }))
})
