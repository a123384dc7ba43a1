/** TLS with clients that nobody here wrote: `openssl s_client`, `curl` and `node:tls`; reload, STARTTLS, and hostile clients. */
import { assert, describe, it } from "@effect/vitest"
import {
  Admission,
  CloseReason,
  type Connection,
  type ConnectionError,
  Dispatch,
  MemoryTransport,
  Metrics,
  Server,
  type StreamTransport
} from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Cause, Context, Effect, Layer, Logger, Metric, Queue, Redacted, References, Stream } from "effect"
import type { NetAddress } from "effect/net"
import { createHook } from "node:async_hooks"
import { spawn, spawnSync } from "node:child_process"
import { copyFileSync, existsSync, readdirSync, writeFileSync } from "node:fs"
import type * as Net from "node:net"
import { join } from "node:path"
import { Duplex } from "node:stream"
import * as Tls from "node:tls"
import { alice, authority, identityOf, localhost, mallory, second } from "./certificates.ts"
import { connect, connectOptions, directory, eventLoopTurn, portOf, receiveAll, start } from "./utils.ts"
import { secure } from "./workers/secure.ts"

const local = { host: "127.0.0.1", port: 0 }
const identity = identityOf(localhost)
const echo: Server.StreamHandler<any, never> = (connection) => Stream.run(connection.bytes, connection.sink)

/** Answers with what TLS has negotiated, as one line of JSON, and ends. */
const tell: Server.StreamHandler<any, never> = (connection) => {
  const { peerCertificate, ...tls } = connection.tls!
  return connection.write(`${JSON.stringify({ ...tls, subject: peerCertificate?.subject })}\n`)
}

const serve = <E>(
  handler: Server.StreamHandler<E, never>,
  options?: Partial<NodeTransport.TlsOptions>,
  serverOptions?: Server.ServerOptions<NoInfer<E>>
) => start(NodeTransport.tcp(local).pipe(NodeTransport.tls({ ...identity, ...options })), handler, serverOptions)

/** Runs a program with that input, and gives all of its output. */
const run = (command: string, args: ReadonlyArray<string>, input = "") =>
  Effect.callback<string>((resume) => {
    const child = spawn(command, args)
    let output = ""
    child.stdout.on("data", (chunk: Buffer) => output += chunk.toString())
    child.stderr.on("data", (chunk: Buffer) => output += chunk.toString())
    child.stdin.on("error", () => {})
    child.stdin.end(input)
    child.on("close", () => resume(Effect.succeed(output)))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const sClient = (server: { readonly address: NetAddress.SocketAddress }, ...args: ReadonlyArray<string>) =>
  run("openssl", [
    "s_client",
    "-connect",
    `127.0.0.1:${portOf(server)}`,
    "-CAfile",
    authority.certFile,
    "-ign_eof",
    ...args
  ])

/** What the server has told, somewhere in the output of a client. */
const told = (output: string): Record<string, unknown> => {
  const [json] = /\{"protocol":.*\}/.exec(output) ?? []
  if (json === undefined) throw new Error(`the server told nothing: ${output}`)
  return JSON.parse(json) as Record<string, unknown>
}

const connectTls = (address: NetAddress.SocketAddress, options?: Tls.ConnectionOptions) =>
  Effect.acquireRelease(
    Effect.callback<Tls.TLSSocket, string>((resume) => {
      const socket = Tls.connect({
        ...connectOptions(address) as object,
        ca: authority.cert,
        servername: "localhost",
        ...options
      })
      socket.on("error", (error: NodeJS.ErrnoException) => resume(Effect.fail(error.code ?? error.message)))
      socket.once("secureConnect", () => resume(Effect.succeed(socket)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** To the end: a client that leaves at once has left before the server's handshake is over. */
const subjectOf = (address: NetAddress.SocketAddress, servername = "localhost") =>
  Effect.scoped(Effect.gen(function*() {
    const socket = yield* connectTls(address, { servername, checkServerIdentity: () => undefined })
    const { CN } = socket.getPeerCertificate().subject
    socket.end("x")
    yield* receiveAll(socket)
    return CN
  }))

/** The server has ended the connection, or cut it. */
const gone = (client: Net.Socket) =>
  Effect.callback<void>((resume) => {
    client.once("end", () => resume(Effect.void)).once("close", () => resume(Effect.void)).resume()
  })

const line = (socket: Net.Socket) =>
  Effect.callback<string>((resume) => {
    let text = ""
    const onData = (chunk: Buffer) => {
      text += chunk.toString()
      if (!text.endsWith("\n")) return
      socket.off("data", onData)
      resume(Effect.succeed(text.trimEnd()))
    }
    socket.on("data", onData)
  })

const closed = (server: Server.Server["Service"]) => Effect.map(server.stats, ({ closed }) => closed)

/** What has been counted of handshakes, and of ends. */
const counts = Effect.map(Metric.snapshot, (snapshots) =>
  snapshots.flatMap(({ attributes, id, state }) => {
    const { handshake, reason } = attributes ?? {}
    const { count } = state as { count: number }
    return count > 0 && (handshake !== undefined || reason !== undefined) ? [[id, handshake ?? reason, count]] : []
  }))

/** With metrics of its own. */
const measured = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(Effect.provide(Metrics.layer()), Effect.provideService(Metric.MetricRegistry, new Map()))

/** Waits for a condition, turn by turn of the event loop. */
const until = (holds: () => boolean) => Effect.repeat(eventLoopTurn, { until: holds })

describe("openssl s_client", () => {
  it.live("is told what was negotiated: protocol, cipher, ALPN, name", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell, { alpn: ["two", "one"] })
      const output = yield* sClient(server, "-servername", "localhost", "-alpn", "one,two", "-verify_return_error")
      assert.include(output, "Verify return code: 0 (ok)")
      assert.include(output, "ALPN protocol: two")
      assert.deepStrictEqual(told(output), {
        protocol: "TLSv1.3",
        cipher: "TLS_AES_256_GCM_SHA384",
        alpn: "two",
        serverName: "localhost",
        sessionReused: false,
        authorized: false
      })
      const older = told(yield* sClient(server, "-tls1_2", "-noservername"))
      assert.deepStrictEqual([older.protocol, older.alpn, older.serverName], ["TLSv1.2", undefined, undefined])
      assert.match(String(older.cipher), /^TLS_ECDHE_ECDSA_WITH_/)
    }))

  it.live("is turned away with a version that is too old, and with no protocol in common", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell, { alpn: ["one"], minVersion: "TLSv1.3" })
      assert.include(yield* sClient(server, "-tls1_2"), "alert protocol version")
      assert.include(yield* sClient(server, "-alpn", "three"), "alert no application protocol")
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 2 })
    }))

  it.live("resumes its session", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell)
      const session = join(yield* directory, "session")
      for (const version of ["-tls1_2", "-tls1_3"]) {
        assert.isFalse(told(yield* sClient(server, version, "-sess_out", session)).sessionReused)
        assert.isTrue(told(yield* sClient(server, version, "-sess_in", session)).sessionReused)
      }
    }))

  it.live("shows its certificate, which an authority must vouch for", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell, { requestCert: true, ca: authority.cert })
      const withCertificate = ({ certFile, keyFile }: typeof alice) => ["-cert", certFile, "-key", keyFile]
      for (const version of ["-tls1_2", "-tls1_3"]) {
        const known = told(yield* sClient(server, version, ...withCertificate(alice)))
        assert.deepStrictEqual([known.authorized, known.subject], [true, "CN=alice"])
        assert.notInclude(yield* sClient(server, version, ...withCertificate(mallory)), "{\"protocol\"")
        assert.notInclude(yield* sClient(server, version), "{\"protocol\"")
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { Completed: 2, HandshakeFailed: 4 })
    }))

  it.live("is let in without one where that is allowed, and the handler sees that", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell, { requestCert: true, rejectUnauthorized: false, ca: [authority.cert] })
      const unknown = told(yield* sClient(server, "-cert", mallory.certFile, "-key", mallory.keyFile))
      assert.deepStrictEqual([unknown.authorized, unknown.subject], [false, "CN=mallory"])
      const none = told(yield* sClient(server))
      assert.deepStrictEqual([none.authorized, none.subject], [false, undefined])
    }))

  it.live("is not vouched for by whom the web trusts", () =>
    Effect.gen(function*() {
      yield* Effect.acquireRelease(
        Effect.sync(() => Tls.getCACertificates("default")),
        (before) => Effect.sync(() => Tls.setDefaultCACertificates(before))
      )
      Tls.setDefaultCACertificates([authority.cert])
      const server = yield* serve(tell, { requestCert: true, rejectUnauthorized: false })
      const known = told(yield* sClient(server, "-cert", alice.certFile, "-key", alice.keyFile))
      assert.deepStrictEqual([known.authorized, known.subject], [false, "CN=alice"])
    }))
})

describe("curl", () => {
  const hasCurl = spawnSync("curl", ["--version"]).status === 0

  it.live.runIf(hasCurl)("gets its page, over TCP and over a unix socket", () =>
    Effect.gen(function*() {
      const answer: Server.StreamHandler<any, never> = (connection) =>
        Effect.andThen(
          connection.readUntil("\r\n\r\n"),
          connection.write(`HTTP/1.0 200 OK\r\n\r\n${connection.tls!.protocol}`)
        )
      const path = join(yield* directory, "s")
      const tcp = yield* serve(answer)
      yield* start(NodeTransport.unix({ path }).pipe(NodeTransport.tls(identity)), answer)
      const curl = ["-sS", "--cacert", authority.certFile]
      const port = portOf(tcp)
      const resolve = ["--resolve", `localhost:${port}:127.0.0.1`]
      assert.strictEqual(yield* run("curl", [...curl, ...resolve, `https://localhost:${port}/`]), "TLSv1.3")
      assert.strictEqual(yield* run("curl", [...curl, "--unix-socket", path, "https://localhost/"]), "TLSv1.3")
    }))
})

describe("the certificate", () => {
  it.live("is the one of the name that the client asks for, from a record", () =>
    Effect.gen(function*() {
      const server = yield* serve(echo, {
        sni: { "Second.test": identityOf(second), "*.many.test": { certFile: alice.certFile, keyFile: alice.keyFile } }
      })
      const names = ["second.test", "SECOND.test", "a.many.test", "a.b.many.test", "many.test", "other.test"]
      assert.deepStrictEqual(
        yield* Effect.forEach(names, (name) => subjectOf(server.address, name)),
        ["second.test", "second.test", "alice", "localhost", "localhost", "localhost"]
      )
    }))

  it.live("or from an effect, whose failure fails the handshake", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const server = yield* serve(echo, {
        sni: (name) => {
          asked.push(name)
          if (name === "second.test") return Effect.delay(Effect.succeed(identityOf(second)), 1)
          if (name === "wrong.test") return Effect.succeed({ cert: second.cert, key: alice.key })
          return name === "fails.test" ? Effect.fail("no") : Effect.succeed(undefined)
        }
      })
      assert.strictEqual(yield* subjectOf(server.address, "Second.test"), "second.test")
      assert.strictEqual(yield* subjectOf(server.address, "other.test"), "localhost")
      for (const name of ["fails.test", "wrong.test"]) yield* Effect.flip(subjectOf(server.address, name))
      assert.deepStrictEqual(asked, ["second.test", "other.test", "fails.test", "wrong.test"])
      yield* server.awaitIdle
      assert.strictEqual((yield* closed(server)).HandshakeFailed, 2)
    }))

  it.live("comes from files, whose new contents are for new connections; what cannot be used is told and left", () =>
    Effect.gen(function*() {
      const path = yield* directory
      const files = { certFile: join(path, "cert.pem"), keyFile: join(path, "key.pem") }
      const install = (certificate: typeof alice) => {
        copyFileSync(certificate.certFile, files.certFile)
        copyFileSync(certificate.keyFile, files.keyFile)
      }
      install(localhost)
      const messages = yield* Queue.unbounded<string>()
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        if (!String(message).startsWith("listening")) Queue.offerUnsafe(messages, `${logLevel}: ${String(message)}`)
      })
      const server = yield* start(
        NodeTransport.tcp(local).pipe(NodeTransport.tls({ ...files, watch: "10 millis" })),
        echo
      ).pipe(Effect.provide(Logger.layer([logger])))
      const old = yield* connectTls(server.address)

      writeFileSync(files.certFile, "not a certificate")
      assert.include(yield* Queue.take(messages), "Warn: TLS: the new certificate cannot be used")
      assert.strictEqual(yield* subjectOf(server.address), "localhost")

      install(second)
      yield* Effect.repeat(Queue.take(messages), {
        until: (message) => message === "Info: new certificates are in use"
      })
      assert.strictEqual(yield* subjectOf(server.address), "second.test")
      old.end("still here")
      assert.strictEqual(yield* receiveAll(old), "still here")
    }))

  it.live("stays where a server is resumed and its files cannot be used, and so do sessions", () =>
    Effect.gen(function*() {
      const path = yield* directory
      const files = { certFile: join(path, "cert.pem"), keyFile: join(path, "key.pem") }
      copyFileSync(localhost.certFile, files.certFile)
      copyFileSync(localhost.keyFile, files.keyFile)
      const messages: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        messages.push(`${logLevel}: ${String(message)}`)
      })
      const server = yield* start(
        NodeTransport.tcp(local).pipe(NodeTransport.tls({ ...files, watch: false })),
        tell
      ).pipe(Effect.provide(Logger.layer([logger])))
      const session = join(path, "session")
      assert.isFalse(told(yield* sClient(server, "-sess_out", session)).sessionReused)
      yield* server.suspend
      writeFileSync(files.certFile, "not a certificate")
      yield* server.resume
      assert.isTrue(told(yield* sClient(server, "-sess_in", session)).sessionReused)
      assert.isTrue(messages.some((message) => message.startsWith("Warn: TLS: the new certificate cannot be used")))
      yield* server.suspend
      copyFileSync(second.certFile, files.certFile)
      copyFileSync(second.keyFile, files.keyFile)
      yield* server.resume
      assert.strictEqual(yield* subjectOf(server.address), "second.test")
    }))

  it.live("or from an effect, that is run again when the program says so", () =>
    Effect.gen(function*() {
      let current = localhost
      const reloads = yield* Queue.unbounded<void>()
      const server = yield* start(
        NodeTransport.tcp(local).pipe(NodeTransport.tls({
          identity: Effect.sync(() => ({ cert: current.cert, key: Redacted.make(current.key) })),
          reloadOn: Stream.fromQueue(reloads)
        })),
        echo
      )
      assert.strictEqual(yield* subjectOf(server.address), "localhost")
      current = second
      yield* Queue.offer(reloads, undefined)
      yield* Effect.repeat(subjectOf(server.address), { until: (subject) => subject === "second.test" })
    }))
})

describe("an effect of the name", () => {
  it.live("that does not end is interrupted with its handshake: by time, and when the client leaves", () =>
    Effect.gen(function*() {
      const begun = yield* Queue.unbounded<string>()
      const interrupted = yield* Queue.unbounded<string>()
      const server = yield* serve(tell, {
        handshakeTimeout: "1 second",
        sni: (name) =>
          Effect.andThen(Queue.offer(begun, name), Effect.never).pipe(
            Effect.onInterrupt(() => Queue.offer(interrupted, name))
          )
      })
      yield* Effect.forkChild(Effect.exit(connectTls(server.address, { servername: "slow.test" })), {
        startImmediately: true
      })
      assert.strictEqual(yield* Queue.take(begun), "slow.test")
      assert.strictEqual(yield* Queue.take(interrupted), "slow.test")

      const leaving = Tls.connect({ ...connectOptions(server.address) as object, servername: "gone.test" })
      leaving.on("error", () => {})
      assert.strictEqual(yield* Queue.take(begun), "gone.test")
      leaving.destroy()
      assert.strictEqual(yield* Queue.take(interrupted), "gone.test")
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { HandshakeFailed: 2 })
    }))
})

describe("options", () => {
  const failure = (options: object) =>
    Effect.map(
      Effect.flip(start(NodeTransport.tcp(local).pipe(NodeTransport.tls(options as NodeTransport.TlsOptions)), echo)),
      ({ reason }) => reason._tag === "InvalidOption" ? reason.option : reason._tag
    )
  const files = { certFile: localhost.certFile, keyFile: localhost.keyFile }
  const cases: ReadonlyArray<[string, object]> = [
    ["cert", { cert: "no", key: localhost.key }],
    ["cert", {}],
    ["key", { cert: localhost.cert, key: "no" }],
    ["key", { cert: localhost.cert, key: alice.key }],
    ["certFile", { ...files, certFile: "/nowhere/cert.pem" }],
    ["certFile", { ...files, certFile: localhost.keyFile }],
    ["keyFile", { ...files, keyFile: alice.keyFile }],
    ["identity", { identity: Effect.fail("no") }],
    ["sni[\"a.test\"].key", { ...identity, sni: { "a.test": { cert: second.cert, key: "no" } } }],
    ["ca", { ...identity, ca: "no" }],
    ["ca", { ...identity, requestCert: true }],
    ["alpn", { ...identity, alpn: [] }],
    ["alpn", { ...identity, alpn: ["x".repeat(256)] }],
    ["minVersion", { ...identity, minVersion: "SSLv3" }],
    ["ciphers", { ...identity, ciphers: "NONE-SUCH" }],
    ["handshakeTimeout", { ...identity, handshakeTimeout: 0 }],
    ["handshakeTimeout", { ...identity, handshakeTimeout: "soon" }],
    ["sessionTimeout", { ...identity, sessionTimeout: "8 days" }],
    ["ticketKeys", { ...identity, ticketKeys: new Uint8Array(47) }],
    ["watch", { ...files, watch: "1 milli" }]
  ]

  it.live("that are wrong are named when the server starts", () =>
    Effect.gen(function*() {
      for (const [option, options] of cases) assert.strictEqual(yield* failure(options), option)
    }))

  it.live("do not show the key in the error", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        start(NodeTransport.tcp(local).pipe(NodeTransport.tls({ cert: localhost.cert, key: alice.key })), echo)
      )
      assert.notInclude(error.message + JSON.stringify(error), "PRIVATE")
    }))

  it.live("cannot make TLS of a transport without sockets, or twice", () =>
    Effect.gen(function*() {
      const check = (transport: Layer.Layer<StreamTransport.StreamTransport>, option: string) =>
        Effect.map(Effect.flip(start(transport, echo)), ({ reason }) => {
          assert.deepStrictEqual(reason._tag === "InvalidOption" ? reason.option : reason._tag, option)
        })
      yield* check(MemoryTransport.stream().pipe(NodeTransport.tls(identity)), "tls")
      yield* check(MemoryTransport.stream().pipe(NodeTransport.startTls(identity)), "startTls")
      yield* check(NodeTransport.tcp(local).pipe(NodeTransport.tls(identity), NodeTransport.tls(identity)), "tls")
      yield* check(
        NodeTransport.tcp(local).pipe(NodeTransport.tls(identity), NodeTransport.startTls(identity)),
        "startTls"
      )
    }))
})

describe("a hostile client", () => {
  /** Everything that is logged above `Debug` while it runs. */
  const noise = Effect.gen(function*() {
    const lines: Array<string> = []
    const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
      if (logLevel !== "Info" && logLevel !== "Debug") lines.push(`${logLevel}: ${String(message)}`)
    })
    return { lines, layer: Layer.merge(Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "All")) }
  })
  /** The beginning of a ClientHello: the headers of a record of 200 bytes, and of the message in it. */
  const hello = Buffer.from("16030100c8010000c40303", "hex")

  const attacks: Record<string, (client: Net.Socket) => void> = {
    "garbage instead of a ClientHello": (client) => client.write("GET / HTTP/1.1\r\n\r\n"),
    "random bytes behind the header of a record": (client) =>
      client.write(Buffer.concat([Buffer.from("1603010010", "hex"), Buffer.alloc(16, 7)])),
    "an end at once": (client) => client.end(),
    "an end half-way": (client) => client.end(hello),
    "a reset at once": (client) => client.resetAndDestroy(),
    "a reset half-way": (client) => client.write(hello, () => client.resetAndDestroy())
  }

  for (const [title, attack] of Object.entries(attacks)) {
    it.live(`(${title}) ends its own connection only, and quietly`, () =>
      Effect.gen(function*() {
        const { layer, lines } = yield* noise
        const errors: Array<unknown> = []
        const server = yield* serve(echo, {}, { onError: (cause) => Effect.sync(() => errors.push(cause)) }).pipe(
          Effect.provide(layer)
        )
        const other = yield* connectTls(server.address)
        const client = yield* connect(server.address)
        client.resume()
        attack(client)
        yield* Effect.repeat(
          Effect.andThen(eventLoopTurn, closed(server)),
          { until: ({ HandshakeFailed }) => HandshakeFailed === 1 }
        )
        other.end("not disturbed")
        assert.strictEqual(yield* receiveAll(other), "not disturbed")
        yield* server.awaitIdle
        assert.deepStrictEqual([yield* closed(server), lines, errors], [{ HandshakeFailed: 1, Completed: 1 }, [], []])
      }))
  }

  for (const [title, begin] of [["says nothing", Buffer.alloc(0)], ["stops half-way", hello]] as const) {
    it.live(`that ${title} is cut off after \`handshakeTimeout\`, delays no other, and no drain`, () =>
      Effect.gen(function*() {
        const server = yield* serve(echo, { handshakeTimeout: "1 second" })
        const client = yield* connect(server.address)
        client.write(begin)
        const other = yield* connectTls(server.address)
        other.end("quick")
        assert.strictEqual(yield* receiveAll(other), "quick")
        yield* gone(client)
        yield* server.awaitIdle
        assert.deepStrictEqual(yield* closed(server), { Completed: 1, HandshakeFailed: 1 })

        const patient = yield* serve(echo, { handshakeTimeout: "1 hour" })
        const last = yield* connect(patient.address)
        last.write(begin)
        yield* Effect.repeat(patient.stats, { until: ({ open }) => open === 1 })
        const report = yield* patient.drain({ grace: "1 hour", kill: "1 hour" })
        assert.deepStrictEqual([report.refused, (yield* patient.stats).open], [1, 0])
      }))
  }

  it.live("that comes a thousand times leaves no socket, timer or request", () =>
    Effect.gen(function*() {
      const descriptors = () => existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0
      const active = (what: string) => process.getActiveResourcesInfo().filter((kind) => kind === what).length
      const { layer, lines } = yield* noise
      const server = yield* serve(echo, { handshakeTimeout: "50 millis" }).pipe(Effect.provide(layer))
      const before = [descriptors(), active("TCPSocketWrap"), active("Timeout")] as const
      const kinds = Object.values(attacks)
      yield* Effect.forEach(Array.from({ length: 1_000 }, (_, i) => i), (i) =>
        Effect.scoped(Effect.gen(function*() {
          const client = yield* connect(server.address)
          kinds[i % 8]?.(client)
          yield* gone(client)
        })), { concurrency: 50, discard: true })
      // A client that has left may still wait to be accepted.
      yield* Effect.repeat(Effect.andThen(eventLoopTurn, closed(server)), {
        until: ({ HandshakeFailed }) => HandshakeFailed === 1_000
      })
      yield* until(() =>
        descriptors() <= before[0] && active("TCPSocketWrap") <= before[1] && active("Timeout") <= before[2]
      )
      assert.deepStrictEqual([yield* closed(server), lines], [{ HandshakeFailed: 1_000 }, []])
    }))

  it.live("is counted, as are those who succeed, and their time", () =>
    Effect.gen(function*() {
      const server = yield* serve(tell)
      yield* subjectOf(server.address)
      const client = yield* connect(server.address)
      client.write("garbage")
      yield* gone(client)
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* counts, [
        ["socketserver.connections.closed", "Completed", 1],
        ["socketserver.connections.closed", "HandshakeFailed", 1],
        ["socketserver.handshake.duration", "tls", 1]
      ])
    }).pipe(measured))
})

describe("upgradeTls", () => {
  /** As much of SMTP as `openssl s_client -starttls smtp` needs. `commands` is what it was told, and over what. */
  const smtp = (commands: Array<string>): Server.StreamHandler<any, never> => (connection) =>
    Effect.gen(function*() {
      yield* connection.write("220 test ESMTP\r\n")
      while (true) {
        const command = yield* connection.readLine()
        commands.push(`${connection.tls?.protocol ?? "clear"}: ${command}`)
        if (command === "STARTTLS") yield* connection.upgradeTls("220 go ahead\r\n")
        else if (command === "QUIT") return yield* connection.write("221 bye\r\n")
        else yield* connection.write(command.startsWith("EHLO") ? "250-test\r\n250 STARTTLS\r\n" : "250 ok\r\n")
      }
    })
  const serveSmtp = (commands: Array<string>, options?: Partial<NodeTransport.TlsOptions>) =>
    start(NodeTransport.tcp(local).pipe(NodeTransport.startTls({ ...identity, ...options })), smtp(commands))

  it.live("is what `openssl s_client -starttls smtp` expects", () =>
    Effect.gen(function*() {
      const commands: Array<string> = []
      const server = yield* serveSmtp(commands)
      const output = yield* run("openssl", [
        "s_client",
        "-connect",
        `127.0.0.1:${portOf(server)}`,
        "-CAfile",
        authority.certFile,
        "-starttls",
        "smtp",
        "-crlf",
        "-ign_eof",
        "-quiet",
        "-verify_return_error"
      ], "NOOP\nQUIT\n")
      assert.include(output, "221 bye")
      assert.deepStrictEqual(commands.slice(-3), ["clear: STARTTLS", "TLSv1.3: NOOP", "TLSv1.3: QUIT"])
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { Completed: 1 })
    }))

  it.live("discards what the client has sent in clear behind its request", () =>
    Effect.gen(function*() {
      const commands: Array<string> = []
      const server = yield* serveSmtp(commands)
      const client = yield* connect(server.address)
      assert.include(yield* line(client), "220")
      client.write("STARTTLS\r\nRCPT TO:<injected>\r\nincomplete")
      assert.strictEqual(yield* line(client), "220 go ahead")
      const secure = yield* connectTls(server.address, { socket: client })
      secure.write("NOOP\r\n")
      assert.strictEqual(yield* line(secure), "250 ok")
      secure.write("QUIT\r\n")
      assert.strictEqual(yield* line(secure), "221 bye")
      assert.deepStrictEqual(commands, ["clear: STARTTLS", "TLSv1.3: NOOP", "TLSv1.3: QUIT"])
      secure.end()
      yield* server.awaitIdle
      const { bytesRead, bytesWritten } = yield* server.stats
      // Clear text before, and clear text within.
      assert.deepStrictEqual([bytesRead, bytesWritten], [10 + 20 + 10 + 6 + 6, 16 + 14 + 8 + 9])
    }))

  it.live("ends a connection whose handshake fails or takes too long, with `HandshakeFailed`", () =>
    Effect.gen(function*() {
      const commands: Array<string> = []
      const server = yield* serveSmtp(commands, { handshakeTimeout: "100 millis" })
      for (const garbage of ["RCPT TO:<in clear>\r\n", ""]) {
        const client = yield* connect(server.address)
        yield* line(client)
        client.write("STARTTLS\r\n")
        yield* line(client)
        client.write(garbage)
        yield* gone(client)
      }
      yield* server.awaitIdle
      assert.deepStrictEqual([yield* closed(server), commands], [
        { HandshakeFailed: 2 },
        ["clear: STARTTLS", "clear: STARTTLS"]
      ])
    }))

  it.live("fails with a reason that the handler can act on", () =>
    Effect.gen(function*() {
      const reasons: Array<string> = []
      const server = yield* start(
        NodeTransport.tcp(local).pipe(NodeTransport.startTls({ ...identity, handshakeTimeout: "1 second" })),
        (connection) =>
          Effect.gen(function*() {
            yield* connection.readLine()
            const error = yield* Effect.flip(connection.upgradeTls("go ahead\n"))
            reasons.push(error._tag === "ConnectionError" ? error.reason._tag : error._tag)
            const write = yield* Effect.flip(connection.write("x"))
            const read = yield* Effect.flip(connection.readLine())
            reasons.push(write.reason._tag, Cause.isDone(read) ? "Done" : read.reason._tag)
          })
      )
      for (const rest of ["", "garbage"]) {
        const client = yield* connect(server.address)
        client.write("go\n")
        assert.strictEqual(yield* line(client), "go ahead")
        client.write(rest)
        yield* gone(client)
      }
      yield* server.awaitIdle
      assert.deepStrictEqual(reasons.slice(0, 4), ["Timeout", "Failed", "Failed", "HandshakeFailed"])
    }))

  it.live("is not available elsewhere, and not twice: the connection goes on", () =>
    Effect.gen(function*() {
      const attempt = (connection: Connection.Connection) =>
        Effect.gen(function*() {
          yield* connection.readLine()
          const exit = yield* Effect.result(connection.upgradeTls("go\n"))
          yield* connection.write(exit._tag === "Failure" ? `${exit.failure._tag}: ${exit.failure.message}\n` : "")
        })
      const clear = yield* start(NodeTransport.tcp(local), attempt)
      const client = yield* connect(clear.address)
      client.write("\n")
      assert.include(yield* line(client), "TlsUnavailable: the transport cannot upgrade")
      const secure = yield* serve(attempt)
      const secureClient = yield* connectTls(secure.address)
      secureClient.write("\n")
      assert.include(yield* line(secureClient), "TlsUnavailable: the connection has TLS already")
    }))

  it.live("leaves nothing behind where its handler is interrupted, or its connection closed by hand", () =>
    Effect.gen(function*() {
      const commands: Array<string> = []
      const server = yield* serveSmtp(commands, { handshakeTimeout: "1 hour" })
      for (const end of ["close", "drain"] as const) {
        const client = yield* connect(server.address)
        yield* line(client)
        client.write("STARTTLS\r\n")
        yield* line(client)
        if (end === "close") {
          const [info] = yield* server.connections.list
          assert.isTrue(yield* server.connections.close(info!.id))
        } else assert.strictEqual((yield* server.drain({ grace: 0, kill: "10 seconds" })).interrupted, 1)
        yield* gone(client)
      }
      yield* server.awaitIdle
      assert.strictEqual((yield* server.stats).open, 0)
    }))
})

const movesTo = (kind: "thread" | "process") => kind === "process" || Number(process.versions.node.split(".")[0]) >= 24

describe("in a worker", () => {
  for (const kind of ["thread", "process"] as const) {
    const startIn = (transport: Layer.Layer<StreamTransport.StreamTransport>) =>
      transport.pipe(
        NodeDispatch.workerPerRequest({ kind, maxWorkers: 1, concurrencyPerWorker: 4 }),
        Server.serveStream(secure),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )

    it.live(`(${kind}) a handler is told what was negotiated, and its bytes travel`, () =>
      Effect.gen(function*() {
        const server = yield* startIn(
          NodeTransport.tcp(local).pipe(NodeTransport.tls({ ...identity, requestCert: true, ca: authority.cert }))
        )
        const client = yield* connectTls(server.address, identityOf(alice))
        client.write("hello\n")
        assert.strictEqual(yield* line(client), "hello TLSv1.3 CN=alice")
        client.write("STARTTLS\n")
        assert.strictEqual(yield* line(client), "TlsUnavailable")
        client.end()
        yield* server.awaitIdle
        assert.strictEqual((yield* server.info).workers?.transfer, movesTo(kind) ? "socket" : "bytes")
        assert.deepStrictEqual(yield* closed(server), { Completed: 1 })
      }))

    it.live(`(${kind}) a handler upgrades, and what came in clear before is discarded`, () =>
      Effect.gen(function*() {
        const server = yield* startIn(
          NodeTransport.tcp(local).pipe(NodeTransport.startTls({ ...identity, handshakeTimeout: "1 second" }))
        )
        const client = yield* connect(server.address)
        client.write("before\n")
        assert.strictEqual(yield* line(client), "before clear")
        client.write("STARTTLS\ninjected\nincomplete")
        assert.strictEqual(yield* line(client), "go ahead")
        const secureClient = yield* connectTls(server.address, { socket: client })
        secureClient.write("after\n")
        assert.strictEqual(yield* line(secureClient), "after TLSv1.3")
        secureClient.end()
        const failing = yield* connect(server.address)
        failing.write("STARTTLS\n")
        assert.strictEqual(yield* line(failing), "go ahead")
        failing.write("garbage")
        yield* gone(failing)
        yield* server.awaitIdle
        assert.deepStrictEqual(yield* closed(server), { Completed: 1, HandshakeFailed: 1 })
      }))
  }
})

/** What a client of TLS says first. */
const helloOf = (): Buffer => {
  const chunks: Array<Buffer> = []
  const duplex = new Duplex({
    read: () => {},
    write: (chunk: Buffer, _, done) => {
      chunks.push(chunk)
      done()
    }
  })
  Tls.connect({ socket: duplex, servername: "localhost" }).on("error", () => {})
  return Buffer.concat(chunks)
}

/** Of the certificate that the server shows. */
const nameOf = (address: NetAddress.SocketAddress, servername: string) =>
  Effect.scoped(Effect.gen(function*() {
    const client = yield* connectTls(address, { servername, checkServerIdentity: () => undefined })
    client.write("hello\n")
    yield* line(client)
    return client.getPeerCertificate().subject.CN
  }))

describe("the handshake that is left to a worker", () => {
  for (const [kind, name] of [["thread", "tcp"], ["process", "tcp"], ["process", "unix"]] as const) {
    const transport = name === "tcp"
      ? Effect.succeed(NodeTransport.tcp(local))
      : Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))
    const startWith = (
      step: (
        transport: Layer.Layer<StreamTransport.StreamTransport>
      ) => Layer.Layer<StreamTransport.StreamTransport, any>,
      options?: Server.ServerOptions<any>
    ) =>
      Effect.flatMap(transport, (transport) =>
        step(transport).pipe(
          NodeDispatch.workerPerRequest({ kind, maxWorkers: 1, concurrencyPerWorker: 2 }),
          Server.serveStream(secure, options),
          Layer.build,
          Effect.map(Context.get(Server.Server))
        ))
    const startTls = (options?: Partial<NodeTransport.TlsOptions>, serverOptions?: Server.ServerOptions<any>) =>
      startWith(NodeTransport.tls({ ...identity, ...options }), serverOptions)
    const transferOf = (server: Server.Server["Service"]) => Effect.map(server.info, ({ workers }) => workers?.transfer)
    const reasonsOf = (server: Server.Server["Service"]) =>
      Effect.gen(function*() {
        const reasons: Array<CloseReason.CloseReason> = []
        yield* Effect.forkScoped(
          Stream.runForEach(server.events, (event) =>
            Effect.sync(() => {
              if (event._tag === "Closed") reasons.push(event.reason)
            })),
          { startImmediately: true }
        )
        return reasons
      })
    const ask = (address: NetAddress.SocketAddress, options?: Tls.ConnectionOptions) =>
      Effect.gen(function*() {
        const client = yield* connectTls(address, options)
        client.write("hello\n")
        return yield* line(client)
      })
    const expected = movesTo(kind) ? "socket" : "bytes"
    const title = (text: string) => `(${kind}, ${name}) ${text}`

    it.live(title("is made there: nothing of TLS is in the thread of the server"), () =>
      Effect.gen(function*() {
        const server = yield* startTls()
        let made = 0
        const hook = createHook({ init: (_, type) => void (type === "TLSWRAP" && made++) }).enable()
        const to = "port" in server.address
          ? ["-connect", `127.0.0.1:${server.address.port}`]
          : ["-unix", server.address.path]
        const output = yield* run("openssl", ["s_client", ...to, "-CAfile", authority.certFile], "hello\n")
        hook.disable()
        assert.include(output, "Verify return code: 0 (ok)")
        assert.strictEqual(made, movesTo(kind) ? 0 : 1)
        assert.strictEqual(yield* transferOf(server), expected)
      }))

    it.live(title("fails there, typed: no handler runs, and no error hook"), () =>
      Effect.gen(function*() {
        const errors: Array<unknown> = []
        const server = yield* startTls(
          { alpn: ["one"], requestCert: true, ca: authority.cert, minVersion: "TLSv1.3" },
          {
            onError: (cause) => Effect.sync(() => errors.push(cause))
          }
        )
        const reasons = yield* reasonsOf(server)
        yield* Effect.exit(connectTls(server.address, { ...identityOf(alice), ALPNProtocols: ["two"] }))
        yield* Effect.exit(connectTls(server.address, { ...identityOf(alice), maxVersion: "TLSv1.2" }))
        for (const other of [identityOf(mallory), {}]) {
          yield* Effect.exit(Effect.flatMap(connectTls(server.address, other), gone))
        }
        assert.match(yield* ask(server.address, { ...identityOf(alice), ALPNProtocols: ["one"] }), /CN=alice$/)
        yield* until(() => reasons.length === 4)
        for (const reason of reasons) {
          assert.strictEqual(reason._tag, "HandshakeFailed")
          assert.instanceOf(reason._tag === "HandshakeFailed" && reason.cause, Error)
        }
        assert.deepStrictEqual(errors, [])
      }))

    it.live(title("has its time, and takes no worker before the client has begun"), () =>
      Effect.gen(function*() {
        const server = yield* startTls({ handshakeTimeout: "2 seconds" })
        const reasons = yield* reasonsOf(server)
        const silent = yield* Effect.all(Array.from({ length: 5 }, () => connect(server.address)))
        silent[1]!.write(Buffer.from("16030100c8010000c40303", "hex"))
        assert.strictEqual(yield* ask(server.address), "hello TLSv1.3")
        assert.deepStrictEqual(
          (yield* server.connections.list).map(({ state }) => state).filter((state) => state === "admitting").length,
          5
        )
        // A whole ClientHello, and then nothing.
        const stalling = yield* connect(server.address)
        stalling.write(helloOf())
        yield* until(() => reasons.filter(({ _tag }) => _tag === "HandshakeFailed").length === 6)
        for (const reason of reasons) {
          if (reason._tag !== "HandshakeFailed") continue
          assert.strictEqual((reason.cause as ConnectionError.ConnectionError).reason._tag, "Timeout")
        }
      }))

    it.live(
      title("ends with a client that goes away or talks nonsense, and leaves nothing"),
      () =>
        Effect.gen(function*() {
          const server = yield* startTls()
          const hello = helloOf()
          const attacks: ReadonlyArray<(client: Net.Socket) => void> = [
            (client) => client.end(hello),
            (client) => client.write(hello, () => name === "tcp" ? client.resetAndDestroy() : client.destroy()),
            (client) => client.write("GET / HTTP/1.1\r\n\r\n"),
            (client) => client.write(Buffer.concat([hello, Buffer.alloc(100, 7)])),
            (client) => client.end(hello.subarray(0, 50)),
            (client) => client.end()
          ]
          for (let i = 0; i < 60; i++) {
            const client = yield* connect(server.address)
            attacks[i % attacks.length]!(client)
            yield* gone(client)
          }
          assert.strictEqual(yield* ask(server.address), "hello TLSv1.3")
          yield* Effect.repeat(server.stats, { until: ({ closed }) => closed.HandshakeFailed === 60 })
          const { workers } = yield* server.info
          assert.deepStrictEqual([workers?.started, workers?.crashed, workers?.killed], [1, 0, 0])
        })
    )

    it.live(title("is counted as elsewhere, and holds its place in admission"), () =>
      Effect.gen(function*() {
        const server = yield* startWith((transport) =>
          transport.pipe(Admission.maxConnections({ max: 1 }), NodeTransport.tls(identity))
        )
        const stalling = yield* connect(server.address)
        stalling.write(helloOf())
        yield* Effect.repeat(server.connections.list, {
          until: ([info]) => info?.state === "handling" || !movesTo(kind)
        })
        yield* gone(yield* connect(server.address))
        assert.deepStrictEqual(yield* closed(server), { Refused: 1 })
        stalling.destroy()
        yield* server.awaitIdle
        assert.strictEqual(yield* Effect.scoped(ask(server.address)), "hello TLSv1.3")
        yield* server.awaitIdle
        assert.deepStrictEqual(yield* closed(server), { Refused: 1, HandshakeFailed: 1, Completed: 1 })
        assert.deepStrictEqual(yield* counts, [
          ["socketserver.connections.closed", "Completed", 1],
          ["socketserver.connections.closed", "HandshakeFailed", 1],
          ["socketserver.connections.closed", "Refused", 1],
          ["socketserver.handshake.duration", "tls", 1]
        ])
      }).pipe(measured))

    it.live(title("is not waited for by a drain"), () =>
      Effect.gen(function*() {
        const server = yield* startTls()
        const reasons = yield* reasonsOf(server)
        const client = yield* connect(server.address)
        client.write(helloOf())
        yield* Effect.repeat(server.connections.list, {
          until: ([info]) => info?.state === "handling" || !movesTo(kind)
        })
        const report = yield* server.drain({ grace: "10 seconds", kill: "20 seconds" })
        assert.strictEqual(report.refused, 1)
        yield* gone(client)
        yield* until(() => reasons.length === 1)
        assert.deepStrictEqual(reasons[0], CloseReason.Refused("draining"))
      }))

    it.live(title("can be ended by hand"), () =>
      Effect.gen(function*() {
        const server = yield* startTls()
        const client = yield* connect(server.address)
        client.write(helloOf())
        const [info] = yield* Effect.repeat(server.connections.list, {
          until: ([info]) => info !== undefined && (info.state === "handling" || !movesTo(kind))
        })
        assert.isTrue(yield* server.connections.close(info!.id))
        yield* gone(client)
        yield* server.awaitIdle
      }))

    it.live(title("has new certificates as soon as they are there"), () =>
      Effect.gen(function*() {
        let current = localhost
        const reloads = yield* Queue.unbounded<void>()
        const server = yield* startWith(
          NodeTransport.tls({
            identity: Effect.sync(() => identityOf(current)),
            reloadOn: Stream.fromQueue(reloads),
            sni: { "other.test": identityOf(second) }
          })
        )
        assert.strictEqual(yield* nameOf(server.address, "localhost"), "localhost")
        assert.strictEqual(yield* nameOf(server.address, "other.test"), "second.test")
        current = second
        yield* Queue.offer(reloads, undefined)
        yield* Effect.repeat(nameOf(server.address, "localhost"), { until: (name) => name === "second.test" })
        assert.strictEqual(yield* transferOf(server), expected)
      }))

    it.live(
      title("stays with the server where an effect chooses the certificate, or a step comes behind it"),
      () =>
        Effect.gen(function*() {
          const chosen = yield* startWith(
            NodeTransport.tls({ ...identity, sni: () => Effect.succeed(identityOf(second)) })
          )
          assert.strictEqual(yield* nameOf(chosen.address, "other.test"), "second.test")
          assert.strictEqual(yield* transferOf(chosen), "bytes")
          const verified = yield* startWith((transport) =>
            transport.pipe(
              NodeTransport.tls(identity),
              Admission.verify(({ tls }) => Effect.succeed(tls?.protocol === "TLSv1.3"))
            )
          )
          assert.strictEqual(yield* ask(verified.address), "hello TLSv1.3")
          assert.strictEqual(yield* transferOf(verified), "bytes")
        })
    )

    it.live(title("follows a PROXY header that the server has read"), () =>
      Effect.gen(function*() {
        const server = yield* startWith((transport) =>
          transport.pipe(NodeTransport.proxyProtocol({ trusted: ["127.0.0.1", "unix"] }), NodeTransport.tls(identity))
        )
        const socket = yield* connect(server.address)
        socket.write("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n")
        assert.strictEqual(yield* ask(server.address, { socket }), "hello TLSv1.3")
        assert.strictEqual(yield* transferOf(server), expected)
        assert.strictEqual(String((yield* server.connections.list)[0]?.peer), "192.0.2.1:56324")
      }))

    it.live(title("that the handler asks for is made there too"), () =>
      Effect.gen(function*() {
        const server = yield* startWith(NodeTransport.startTls(identity))
        const socket = yield* connect(server.address)
        const { address } = server
        socket.write("clear\n")
        assert.strictEqual(yield* line(socket), "clear clear")
        yield* server.suspend
        socket.write("STARTTLS\ninjected\n")
        assert.strictEqual(yield* line(socket), "go ahead")
        assert.strictEqual(yield* ask(address, { socket }), "hello TLSv1.3")
        assert.strictEqual(yield* transferOf(server), expected)
        // The worker's word of it may come after its answer to the client.
        yield* Effect.repeat(Effect.andThen(eventLoopTurn, counts), {
          until: (all) =>
            all.some(([id, step, count]) => id === "socketserver.handshake.duration" && step === "tls" && count === 1)
        })
      }).pipe(measured))
  }
})

describe("TLS with interruptOnDisconnect", () => {
  it.live("leaves the first bytes to the handshake", () =>
    Effect.gen(function*() {
      const server = yield* serve(echo, undefined, { interruptOnDisconnect: "reset" })
      for (let i = 0; i < 5; i++) assert.strictEqual(yield* subjectOf(server.address), "localhost")
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { Completed: 5 })
    }))
})

describe("TLS under serial", () => {
  it.live("answers three clients in turn", () =>
    Effect.gen(function*() {
      const server = yield* NodeTransport.tcp(local).pipe(
        NodeTransport.tls(identity),
        Dispatch.serial(),
        Server.serveStream(echo),
        Layer.build,
        Effect.map(Context.get(Server.Server))
      )
      for (let i = 0; i < 3; i++) assert.strictEqual(yield* subjectOf(server.address), "localhost")
      yield* server.awaitIdle
      assert.deepStrictEqual(yield* closed(server), { Completed: 3 })
    }))
})
