/** What a drain does to requests that are on their way when it begins, on real sockets. */
import { assert, describe, it } from "@effect/vitest"
import { type Connection, Dispatch, type Handler, Server, type StreamTransport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { Context, Duration, Effect, Fiber, Layer } from "effect"
import type { SocketAddress } from "effect/net/NetAddress"
import * as Net from "node:net"
import * as Path from "node:path"
import { connect, connectOptions, directory, once, receiveAll } from "./utils.ts"
import { obey } from "./workers/handlers.ts"

const tcp = Effect.succeed(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }))
const unix = Effect.map(directory, (path) => NodeTransport.unix({ path: Path.join(path, "server.sock") }))

type Step = (transport: Layer.Layer<StreamTransport.StreamTransport>) => Layer.Layer<Server.Server, any>

const inline: Step = (transport) =>
  transport.pipe(Dispatch.fiberPerRequest(), Server.serveStream(obey.handle as Server.StreamHandler<any, any>) as any)

const threads: Step = (transport) =>
  transport.pipe(
    NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 1, concurrencyPerWorker: 128 }),
    Server.serveStream(obey as Handler.Portable<Connection.Connection, unknown, any, never>)
  )

const build = (layer: Layer.Layer<Server.Server, any>) => Effect.map(Layer.build(layer), Context.get(Server.Server))

/** What becomes of requests: each is one line, answered by one line. */
interface Tally {
  answered: number
  /** Asked, and not a byte of an answer before the end: the server has not begun with it. */
  unanswered: number
  /** The end came in the middle of an answer. */
  cut: number
  /** Bytes. */
  received: number
}

const answer = `${"x".repeat(4_000)}\n`

/** Asks, and asks again, with a connection for each request or one for all, until there is no server. */
const loop = (address: SocketAddress, reconnects: boolean, tally: Tally) =>
  Effect.callback<void>((resume) => {
    const visit = () => {
      const socket = Net.connect(connectOptions(address))
      let received = 0
      let waits = false
      let connected = false
      const ask = () => {
        received = 0
        waits = true
        socket.write(`echo ${answer}`)
      }
      socket.on("connect", () => {
        connected = true
        ask()
      })
      socket.on("data", (chunk) => {
        received += chunk.length
        tally.received += chunk.length
        if (received < answer.length) return
        tally.answered++
        waits = false
        if (reconnects) socket.end()
        else ask()
      })
      socket.on("error", () => {})
      socket.on("close", () => {
        if (waits) tally[received > 0 ? "cut" : "unanswered"]++
        if (waits || !reconnects || !connected) resume(Effect.void)
        else visit()
      })
    }
    visit()
  })

for (const [place, transport] of Object.entries({ tcp, unix })) {
  for (const [strategy, step] of Object.entries({ inline, threads })) {
    describe(`a drain, ${place}, ${strategy}`, () => {
      it.live("lets a client that has just connected say its first word, and answers it", () =>
        Effect.gen(function*() {
          const server = yield* build(step(yield* transport))
          const client = yield* connect(server.address)
          yield* Effect.repeat(server.stats, { until: ({ inFlight }) => inFlight === 1 })
          const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
          yield* Effect.sleep("100 millis")
          client.write("echo hello\n")
          assert.strictEqual(yield* receiveAll(client), "hello\n")
          client.destroy()
          const { elapsed, idleClosed } = yield* Fiber.join(draining)
          assert.strictEqual(idleClosed, 1)
          assert.isBelow(Duration.toMillis(elapsed), 900)
        }))

      it.live("leaves one that says nothing the rest of its first second, if `grace` is as long, and an older one no time", () =>
        Effect.gen(function*() {
          const silentFor = (age: number, grace: Duration.Input) =>
            Effect.gen(function*() {
              const server = yield* build(step(yield* transport))
              const client = yield* connect(server.address)
              yield* Effect.repeat(Effect.delay(server.connections.list, "5 millis"), {
                until: ([info]) => info?.state === "handling" && Duration.toMillis(info.age) >= age
              })
              client.on("end", () => client.end()).resume()
              const { elapsed } = yield* server.drain({ grace })
              return Duration.toMillis(elapsed)
            }).pipe(Effect.scoped)
          // A machine that is busy with other things may be late once or twice.
          const isLong = (millis: number) => millis >= 300
          const isShort = (millis: number) => millis < 300
          assert.isAtLeast(yield* Effect.repeat(silentFor(0, "10 seconds"), { until: isLong, times: 4 }), 300)
          assert.isBelow(yield* Effect.repeat(silentFor(0, 0), { until: isShort, times: 4 }), 300)
          assert.isBelow(yield* Effect.repeat(silentFor(1_000, "10 seconds"), { until: isShort, times: 4 }), 300)
        }))

      it.live("answers requests that nobody has read yet when it begins", () =>
        Effect.gen(function*() {
          for (let round = 0; round < rounds; round++) {
            const server = yield* build(step(yield* transport))
            const clients = yield* Effect.replicateEffect(connect(server.address), 64)
            for (const client of clients) {
              client.write("echo one\n")
              yield* once(client, "data")
            }
            for (const client of clients) client.write("echo two\n")
            const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
            assert.deepStrictEqual(
              yield* Effect.all(clients.map(receiveAll), { concurrency: "unbounded" }),
              clients.map(() => "two\n")
            )
            for (const client of clients) client.destroy()
            yield* Fiber.join(draining)
          }
        }), 30_000)

      it.live(
        "accepts clients that the system has connected when it begins, and answers what they go on to ask",
        () =>
          Effect.gen(function*() {
            for (let round = 0; round < rounds; round++) {
              const server = yield* build(step(yield* transport))
              const clients = Array.from({ length: 64 }, () => {
                const client = Net.connect({ ...connectOptions(server.address), allowHalfOpen: true })
                return client.on("error", () => {}).on("connect", () => client.write("echo one\n"))
              })
              const draining = yield* Effect.forkChild(server.drain(), { startImmediately: true })
              assert.deepStrictEqual(
                yield* Effect.all(clients.map(receiveAll), { concurrency: "unbounded" }),
                clients.map(() => "one\n")
              )
              for (const client of clients) client.destroy()
              yield* Fiber.join(draining)
            }
          }),
        30_000
      )
    })
  }
}

/** Clients in a closed loop, and a drain among them: what became of their requests, and of what the server has written. */
const underLoad = (layer: Layer.Layer<Server.Server, any>, reconnects: boolean) =>
  Effect.gen(function*() {
    const server = yield* build(layer)
    const tally: Tally = { answered: 0, unanswered: 0, cut: 0, received: 0 }
    const clients = yield* Effect.forkChild(
      Effect.all(Array.from({ length: 64 }, () => loop(server.address, reconnects, tally)), {
        concurrency: "unbounded"
      }),
      { startImmediately: true }
    )
    // All of them are there, and at some moment of theirs.
    while (tally.answered < 200) yield* Effect.sleep("1 millis")
    yield* Effect.sleep(`${Math.random() * 10} millis`)
    const report = yield* server.drain()
    yield* Fiber.join(clients)
    return { report, tally, stats: yield* server.stats }
  }).pipe(Effect.scoped)

const rounds = 5
for (const [place, transport] of Object.entries({ tcp, unix })) {
  for (const [strategy, step] of Object.entries({ inline, threads })) {
    for (
      const [what, reconnects] of [["one connection each", false], ["a connection for each request", true]] as const
    ) {
      it.live(
        `a drain, ${place}, ${strategy}, under the load of 64 clients with ${what}, cuts no answer`,
        () =>
          Effect.gen(function*() {
            for (let round = 0; round < rounds; round++) {
              const { report, stats, tally } = yield* underLoad(step(yield* transport), reconnects)
              assert.strictEqual(tally.cut, 0)
              assert.strictEqual(tally.received, stats.bytesWritten, "what was written has arrived")
              assert.strictEqual(tally.received, tally.answered * answer.length)
              // Node accepts one for each turn of its loop: many wait for that under load, and none of those is left behind.
              if (!reconnects) assert.strictEqual(stats.accepted, 64)
              assert.deepStrictEqual([report.interrupted, report.killed], [0, 0])
            }
          }),
        60_000
      )
    }
  }
}
