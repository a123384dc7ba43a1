/**
 * Everything at once: servers on every transport, under each strategy in turn, with clients that stall, send noise, reset, finish
 * half-way, go away in the middle of an answer, and ask handlers to fail, die, exit their worker or compute for ever; and worker
 * processes that are killed. Honest clients beside them must get exact answers, all that was accepted must be accounted for, a
 * drain must keep its deadlines though the others go on, and nothing may be left.
 *
 * Who may lose an answer: a client whose worker was killed, and over datagrams anybody, who then asks again.
 */
import { DatagramTransport, Dispatch, MemoryTransport, Server, type StreamTransport } from "@socketserver/core"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { TestClient } from "@socketserver/testing"
import { UnixDatagram } from "@socketserver/unix-datagram"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import type * as NetAddress from "effect/net/NetAddress"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { certificate } from "./certificate.ts"
import { answerTo, obey, obeyPacket } from "./chaosHandlers.ts"
import type { Proof, ProofOptions } from "./proof.ts"
import { Random } from "./random.ts"

// ---- the servers

type Strategy = "serial" | "fiber" | "thread" | "process"

const strategies: ReadonlyArray<Strategy> = ["serial", "fiber", "thread", "process"]

/** Of the small version: with the others it is waiting for deadlines that takes the time. */
const fewStrategies: ReadonlyArray<Strategy> = ["fiber", "process"]

const hasWorkers = (strategy: Strategy) => strategy === "thread" || strategy === "process"

/** A handler may compute for so long; honest ones take a moment. */
const timeout = "3 seconds"

interface Kind {
  readonly strategy: Strategy
  readonly maxWorkers: number
}

/** Which tag a strategy gives, only it knows: the handlers here are portable, and go with both. */
const dispatchWith = ({ maxWorkers, strategy }: Kind): (transport: Layer.Layer<any>) => Layer.Layer<any> => {
  switch (strategy) {
    case "serial":
      return Dispatch.serial()
    case "fiber":
      return Dispatch.fiberPerRequest()
    case "thread":
    case "process":
      return NodeDispatch.workerPerRequest({
        kind: strategy,
        maxWorkers,
        timeout,
        env: { ...process.env, CHAOS_WORKER: "1" }
      })
  }
}

/** Longer than honest clients are silent on a machine that has other things to do. */
const idleTimeout = "3 seconds"

/** Most of what is bad is over at once; a worker takes its time to start again, and a loop takes the timeout. */
const badDeed = (random: Random): string =>
  random.chance(0.005) ? "loop" : random.chance(0.1) ? "exit" : random.pick(["fail", "die", "interrupt"])

const silent = { onError: () => Effect.void }

interface Running {
  readonly name: string
  readonly server: Server.Server["Service"]
  /** How clients of each kind go about it. */
  readonly honest: (random: Random) => Effect.Effect<void, unknown>
  readonly hostile: (random: Random) => Effect.Effect<void, unknown>
}

interface Counted {
  /** Answers that were as they should be. */
  exact: number
  /** Answers to others, or of another kind. */
  wrong: number
  /** Honest connections that ended before their answers. */
  readonly lost: Array<string>
  /** Requests to do something bad. */
  bad: number
  /** Worker processes that were killed. */
  killed: number
}

// ---- clients of streams

type Connect = Effect.Effect<TestClient.Client, TestClient.ClientError, Scope.Scope>

const honestStream = (connect: Connect, counted: Counted) =>
  Effect.fnUntraced(function*(random: Random) {
    const client = yield* connect
    for (let asks = 1 + random.integer(4); asks > 0; asks--) {
      const text = `${random.integer(2 ** 31)}.`.repeat(random.pick([1, 1, 1, 50, 5_000]))
      yield* client.write(`echo ${text}\n`)
      const answer = yield* client.readLine
      if (answer === answerTo(text)) counted.exact++
      else counted.wrong++
    }
    yield* client.end
    if ((yield* client.readAll).length > 0) counted.wrong++
  }, Effect.scoped)

const hostileStream = (connect: Connect, connectBelow: Connect, counted: Counted) =>
  Effect.fnUntraced(function*(random: Random) {
    const noise = () => random.bytes(1 + random.integer(random.pick([3, 100, 20_000])))
    // Under TLS some do not speak it.
    const client = yield* random.chance(0.3) ? connectBelow : connect
    const pause = () => Effect.sleep(random.integer(random.pick([3, 30, 400])))
    for (let acts = 1 + random.integer(3); acts > 0; acts--) {
      switch (random.integer(8)) {
        case 0:
          yield* client.write("echo half a li")
          yield* pause()
          break
        case 1:
          yield* client.write(noise())
          break
        case 2:
          return yield* client.reset
        case 3:
          yield* client.write("echo and then no more\n")
          yield* client.end
          yield* pause()
          return yield* Effect.timeoutOption(client.closed, "5 seconds")
        case 4:
          // Goes away in the middle of an answer.
          yield* client.write("big\n".repeat(1 + random.integer(3)))
          yield* client.readExactly(1 + random.integer(50_000))
          return yield* random.chance(0.5) ? client.reset : pause()
        case 5:
          counted.bad++
          yield* client.write(`${badDeed(random)}\n`)
          yield* pause()
          break
        case 6:
          yield* client.write("nap\n")
          break
        case 7:
          // Now and then until the server has had enough.
          if (random.chance(0.05)) return yield* Effect.timeoutOption(client.closed, "10 seconds")
          yield* pause()
      }
    }
  }, Effect.scoped)

const stream = Effect.fnUntraced(function*(
  name: string,
  kind: Kind,
  transport: Layer.Layer<StreamTransport.StreamTransport>,
  connect: (address: NetAddress.SocketAddress) => Connect,
  connectBelow: (address: NetAddress.SocketAddress) => Connect,
  counted: Counted
) {
  const layer = Server.serveStream(obey, { ...silent, idleTimeout })(dispatchWith(kind)(transport))
  const server = Context.get(yield* Layer.build(layer), Server.Server)
  const running: Running = {
    name,
    server,
    honest: honestStream(connect(server.address), counted),
    hostile: hostileStream(connect(server.address), connectBelow(server.address), counted)
  }
  return running
})

// ---- clients of packets

class Unanswered extends Data.TaggedError("Unanswered") {
  override readonly message = "asked 30 times, and not answered"
}

/** A client is a transport, too. */
const bindClient = (transport: Layer.Layer<DatagramTransport.DatagramTransport>) =>
  Effect.gen(function*() {
    const { listen } = Context.get(yield* Layer.build(transport), DatagramTransport.DatagramTransport)
    const received = yield* Queue.unbounded<string>()
    const { send } = yield* listen(({ payload }) => Queue.offerUnsafe(received, new TextDecoder().decode(payload)))
    return { send, receive: Queue.take(received) }
  })

const datagram = Effect.fnUntraced(function*(
  name: string,
  kind: Kind,
  transport: (name: string) => Layer.Layer<DatagramTransport.DatagramTransport>,
  counted: Counted
) {
  const layer = Server.serveDatagram(obeyPacket, silent)(dispatchWith(kind)(transport("server")))
  const server = Context.get(yield* Layer.build(layer), Server.Server)
  const { address } = server
  let clients = 0
  const bind = Effect.suspend(() => bindClient(transport(`client${++clients}`)))
  const running: Running = {
    name,
    server,
    honest: Effect.fnUntraced(function*(random) {
      const { receive, send } = yield* bind
      for (let asks = 1 + random.integer(4); asks > 0; asks--) {
        const text = `${random.integer(2 ** 31)}.`.repeat(random.pick([1, 1, 50]))
        const ask = Effect.gen(function*() {
          yield* Effect.ignore(send(address, `echo ${text}`))
          while (true) {
            const answer = yield* receive
            if (answer === answerTo(text)) return counted.exact++
            // The second answer to one that was asked twice is none that is wrong.
            if (!/^(\.\d+)+$/.test(answer)) counted.wrong++
          }
        })
        let tries = 0
        while ((yield* Effect.timeoutOption(ask, "1 second"))._tag === "None") {
          if (++tries === 30) return yield* new Unanswered()
        }
      }
    }, Effect.scoped),
    hostile: Effect.fnUntraced(function*(random) {
      const { send } = yield* bind
      for (let packets = 1 + random.integer(10); packets > 0; packets--) {
        if (random.chance(0.3)) {
          counted.bad++
          yield* Effect.ignore(send(address, badDeed(random)))
        } else {
          yield* Effect.ignore(send(address, random.bytes(random.integer(random.pick([1, 100, 30_000])))))
        }
      }
      // Packets wait for a handler, and those of honest clients behind them: they are not to wait for ever.
      yield* Effect.sleep(random.integer(hasWorkers(kind.strategy) ? 1_000 : 50))
    }, Effect.scoped)
  }
  return running
})

// ---- what there is in this process

const children = (): ReadonlyArray<number> =>
  readdirSync("/proc/self/task").flatMap((task) => {
    try {
      return readFileSync(`/proc/self/task/${task}/children`, "utf8").split(" ").filter(Boolean).map(Number)
    } catch {
      // A thread that has just ended.
      return []
    }
  })

const descriptors = (): ReadonlyArray<string> =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [`${fd} ${readlinkSync(`/proc/self/fd/${fd}`)}`]
    } catch {
      // The one that the directory was read with.
      return []
    }
  })

const inventory = (directory: string) => ({
  descriptors: descriptors(),
  threads: readdirSync("/proc/self/task").length,
  children: children().length,
  files: readdirSync(directory),
  timers: process.getActiveResourcesInfo().filter((resource) => resource === "Timeout").length
})

type Inventory = ReturnType<typeof inventory>

/** What there is now and was not then. */
const left = (before: Inventory, now: Inventory): ReadonlyArray<string> => [
  ...now.descriptors.filter((one) => !before.descriptors.includes(one)).map((one) => `descriptor ${one}`),
  ...(now.threads > before.threads ? [`${now.threads - before.threads} threads`] : []),
  ...(now.children > before.children ? [`${now.children - before.children} processes`] : []),
  ...now.files.map((file) => `file ${file}`),
  ...(now.timers > before.timers ? [`${now.timers - before.timers} timers`] : [])
]

// ---- one strategy

const grace = Duration.seconds(1)
const kill = Duration.seconds(1)

const round = Effect.fnUntraced(function*(
  strategy: Strategy,
  millis: number,
  seed: number,
  directory: string,
  { check, say, short }: ProofOptions
) {
  const counted: Counted = { exact: 0, wrong: 0, lost: [], bad: 0, killed: 0 }
  const tcp = NodeTransport.tcp({ host: "127.0.0.1", port: 0 })
  // To start them is what takes the time.
  const kind: Kind = { strategy, maxWorkers: short ? 1 : 2 }
  const secure = { rejectUnauthorized: false }
  const file = (name: string) => join(directory, `${name}.sock`)
  const servers = yield* Effect.all([
    stream("tcp", kind, tcp, TestClient.node, TestClient.node, counted),
    stream("unix", kind, NodeTransport.unix({ path: file("unix") }), TestClient.node, TestClient.node, counted),
    stream(
      "tls",
      kind,
      NodeTransport.tls({ ...certificate(), handshakeTimeout: idleTimeout })(tcp),
      (address) => TestClient.tls(address, secure),
      TestClient.node,
      counted
    ),
    stream("memory", kind, MemoryTransport.stream(), TestClient.memory, TestClient.memory, counted),
    datagram("udp", kind, () => NodeTransport.udp({ host: "127.0.0.1", port: 0 }), counted),
    datagram("unix datagram", kind, (name) => UnixDatagram.transport({ path: file(name) }), counted),
    datagram("memory datagram", kind, () => MemoryTransport.datagram(), counted)
  ], { concurrency: "unbounded" })
  const state = { isEnding: false }
  let lane = seed

  const hostile = servers.flatMap(({ hostile }) =>
    Array.from({ length: hasWorkers(strategy) ? 2 : 4 }, (_, n) => {
      const random = new Random(lane++)
      const visit = Effect.ignoreCause(Effect.suspend(() => hostile(random)))
      // Of each kind one goes on to the end.
      const goesOn = () => n === 0 || !state.isEnding
      return Effect.gen(function*() {
        while (goesOn()) yield* Effect.andThen(visit, Effect.sleep(1))
      })
    })
  )
  const honest = servers.flatMap(({ honest, name }) =>
    Array.from({ length: 2 }, () => {
      const random = new Random(lane++)
      const visit = Effect.timeout(Effect.suspend(() => honest(random)), "60 seconds").pipe(
        Effect.catchCause((cause) =>
          Effect.sync(() => void counted.lost.push(`${name}: ${String(Cause.squash(cause))}`))
        )
      )
      return Effect.gen(function*() {
        while (!state.isEnding) yield* Effect.andThen(visit, Effect.sleep(1))
      })
    })
  )
  const random = new Random(lane++)
  const killing = Effect.forever(Effect.delay(
    Effect.sync(() => {
      const pids = children()
      if (pids.length === 0) return
      counted.killed++
      process.kill(random.pick(pids), "SIGKILL")
    }),
    "500 millis"
  ))

  const hostiles = yield* Effect.forkChild(Effect.all(hostile, { concurrency: "unbounded" }))
  const honests = yield* Effect.forkChild(Effect.all(honest, { concurrency: "unbounded" }))
  const killer = strategy === "process" ? yield* Effect.forkChild(Effect.ignoreCause(killing)) : undefined
  yield* Effect.sleep(millis)
  if (killer !== undefined) yield* Fiber.interrupt(killer)
  state.isEnding = true
  yield* Fiber.join(honests)

  const reports = yield* Effect.forEach(servers, ({ server }) => server.drain({ grace, kill }), {
    concurrency: "unbounded"
  })
  yield* Fiber.interrupt(hostiles)
  const longest = Math.max(...reports.map(({ elapsed }) => Duration.toMillis(elapsed)))

  const { exact, lost, wrong } = counted
  say(
    `${strategy}: ${exact} answers to honest clients; ${counted.bad} bad requests, ${counted.killed} workers killed`
  )
  check(`${strategy}: ${wrong} answers were wrong (0)`, wrong === 0 && exact > 0)
  const reasons = lost.length === 0 ? "" : `: ${lost.slice(0, 3).join("; ")}`
  check(
    `${strategy}: ${lost.length} honest connections lost (${counted.killed} at most)${reasons}`,
    lost.length <= counted.killed
  )
  for (const { name, server } of servers) {
    const { accepted, closed, open } = yield* server.stats
    const sum = Object.values(closed).reduce((a, b) => a + b, 0)
    if (millis > 0) say(`${name}: ${accepted} accepted, ${JSON.stringify(closed)}`)
    if (accepted !== sum || open !== 0) check(`${name}: ${accepted} accepted, ${sum} ended, ${open} open`, false)
  }
  const took = `${strategy}: the longest drain took ${longest} ms, with 1 second each for grace and kill`
  if (short) say(took)
  else check(`${took} (5000 at most)`, longest <= 5_000)
}, Effect.scoped)

export const chaos: Proof = {
  name: "chaos",
  claim:
    "whatever clients and handlers do at random, honest clients are served, the books balance, and nothing is left",
  run: async (options) => {
    const { check, say, short } = options
    const seconds = options.seconds ?? (short ? 2 : 60)
    const seed = options.seed ?? (short ? 1 : Math.floor(Math.random() * 2 ** 31))
    say(`to repeat: pnpm reliability chaos --seed ${seed} --seconds ${seconds}`)
    const directory = mkdtempSync(join(tmpdir(), "socketserver-chaos-"))
    let logged = 0
    let firstLogged = ""
    const counting = Logger.make(({ logLevel, message }) => {
      // That a worker has ended is the server's own affair, and told.
      if (!LogLevel.isGreaterThan(logLevel, "Info") || /worker/.test(String(message))) return
      if (logged++ === 0) firstLogged = `: ${logLevel}: ${String(message)}`
    })
    let uncaught = 0
    const onUncaught = (error: unknown) => {
      if (uncaught++ > 5) process.exit(1)
      check(`an exception that nobody caught: ${error instanceof Error ? error.stack : String(error)}`, false)
    }
    process.on("uncaughtException", onUncaught)
    const run = (strategy: Strategy, millis: number, options: ProofOptions) =>
      Effect.runPromise(
        round(strategy, millis, seed, directory, options).pipe(
          Effect.provide(Layer.merge(Logger.layer([counting]), Layer.succeed(References.MinimumLogLevel, "All")))
        )
      )

    // What Node opens once and keeps, it has by then.
    await run("thread", 0, { ...options, check: () => {}, say: () => {} })
    const before = inventory(directory)
    const chosen = short ? fewStrategies : strategies
    for (const strategy of chosen) {
      await run(strategy, seconds * 1_000 / chosen.length, options)
      const end = performance.now() + 30_000
      while (left(before, inventory(directory)).length > 0 && performance.now() < end) {
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      const remains = left(before, inventory(directory))
      check(
        `${strategy}: ${remains.length} things are left (0) ${remains.slice(0, 5).join(", ")}`,
        remains.length === 0
      )
    }
    check(`${logged} warnings and errors logged beside those of workers that ended (0)${firstLogged}`, logged === 0)
    process.off("uncaughtException", onUncaught)
    rmSync(directory, { recursive: true })
  }
}
