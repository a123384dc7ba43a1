/** Requests in workers: what handlers do there has the results that it has inline, and what workers suffer stays with them. */
import * as NodeSocketServer from "@effect/platform-node-shared/NodeSocketServer"
import { assert, describe, it } from "@effect/vitest"
import {
  type Connection,
  ConnectionError,
  type DatagramTransport,
  Dispatch,
  Handler,
  ListenError,
  Logging,
  MemoryTransport,
  Server,
  type ServerEvent,
  type StreamTransport,
  Transport,
  WorkerError
} from "@socketserver/core"
import { NodeDispatch, NodeTransport, WorkerPool } from "@socketserver/node"
import { DatagramTestClient, TestClient } from "@socketserver/testing"
import {
  Cause,
  Context,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Metric,
  Option,
  References,
  Scope,
  Stream,
  Tracer
} from "effect"
import { execFileSync, spawn } from "node:child_process"
import { subscribe, unsubscribe } from "node:diagnostics_channel"
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import type * as Net from "node:net"
import * as Path from "node:path"
import { directory, until } from "./utils.ts"
import * as handlers from "./workers/handlers.ts"

const kinds = ["thread", "process"] as const

interface Place {
  readonly transport: Layer.Layer<StreamTransport.StreamTransport>
  readonly connect: typeof TestClient.node
  /** How connections get to workers of a kind, with a Node that moves sockets to threads. */
  readonly transfer: { readonly thread: "socket" | "bytes"; readonly process: "socket" | "bytes" }
}

const tcp: Effect.Effect<Place> = Effect.succeed({
  transport: NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
  connect: TestClient.node,
  transfer: { thread: Number(process.versions.node.split(".")[0]) < 24 ? "bytes" : "socket", process: "socket" }
})
const unix = Effect.map(directory, (path): Place => ({
  transport: NodeTransport.unix({ path: Path.join(path, "server.sock") }),
  connect: TestClient.node,
  transfer: { thread: "bytes", process: "socket" }
}))
const memory: Effect.Effect<Place> = Effect.succeed({
  transport: MemoryTransport.stream(),
  connect: TestClient.memory,
  transfer: { thread: "bytes", process: "bytes" }
})
const places = { tcp, unix, memory }

/** A server in workers, what it reported, and its clients. */
const serveAt = Effect.fnUntraced(function*<E = handlers.Oops, ELayer = never>(
  { connect, transport }: Place,
  options: WorkerPool.WorkerOptions,
  handler: Handler.Portable<Connection.Connection, unknown, E, ELayer> = handlers.obey as any,
  serverOptions: Server.ServerOptions<E> = {}
) {
  const causes: Array<Cause.Cause<E>> = []
  const events: Array<ServerEvent.ServerEvent> = []
  const server = yield* Effect.map(
    Layer.build(transport.pipe(
      NodeDispatch.workerPerRequest(options),
      Server.serveStream(handler, {
        onError: (cause) => Effect.sync(() => causes.push(cause)),
        shutdown: { grace: "100 millis" },
        ...serverOptions
      })
    )),
    Context.get(Server.Server)
  )
  yield* Effect.forkScoped(Stream.runForEach(server.events, (event) => Effect.sync(() => events.push(event))), {
    startImmediately: true
  })
  const { address } = server
  return {
    server,
    causes,
    events,
    reasons: () => events.flatMap((event) => event._tag === "Closed" ? [event.reason] : []),
    connect: connect(address),
    /** A client that has said what its handler is to do. */
    visit: (...commands: ReadonlyArray<string>) =>
      Effect.tap(connect(address), (client) => client.write(commands.map((command) => `${command}\n`).join(""))),
    workers: Effect.map(server.info, ({ workers }) => workers!)
  }
})

const serve = (options: WorkerPool.WorkerOptions) => Effect.flatMap(tcp, (place) => serveAt(place, options))

const ended = (server: Server.Server["Service"]) => Effect.timeout(server.awaitIdle, "15 seconds")

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"))
  } catch {
    return false
  }
}

for (const [name, place] of Object.entries(places)) {
  it.live(`a client on ${name} on its way to a process that is killed is closed`, () =>
    Effect.gen(function*() {
      const { connect, reasons, server, visit } = yield* serveAt(yield* place, { kind: "process", maxWorkers: 1 })
      const first = yield* visit("worker")
      const pid = Number((yield* first.readLine).split("/")[0])
      yield* first.end
      yield* first.closed
      yield* ended(server)
      // It is sent sockets, and acknowledges none.
      process.kill(pid, "SIGSTOP")
      const client = yield* connect
      yield* until("it is on its way", Effect.map(server.stats, ({ inFlight }) => inFlight === 1))
      process.kill(pid, "SIGKILL")
      yield* Effect.timeout(client.closed, "10 seconds")
      yield* ended(server)
      assert.deepStrictEqual(reasons().map(({ _tag }) => _tag), ["Completed", "WorkerCrashed"])
    }))
}

it.live("a client whose socket is gone before it could be sent to its process has reset its connection", () =>
  Effect.gen(function*() {
    const { connect, reasons, server, visit } = yield* serveAt(
      yield* tcp,
      { kind: "process", maxWorkers: 1, concurrencyPerWorker: 3 }
    )
    const first = yield* visit("worker")
    const pid = Number((yield* first.readLine).split("/")[0])
    const accepted: Array<Net.Socket> = []
    const onSocket = (message: unknown) => void accepted.push((message as { readonly socket: Net.Socket }).socket)
    subscribe("net.server.socket", onSocket)
    yield* Effect.addFinalizer(() => Effect.sync(() => unsubscribe("net.server.socket", onSocket)))
    // It acknowledges no socket, and Node sends the next one only then.
    process.kill(pid, "SIGSTOP")
    for (const inFlight of [2, 3]) {
      yield* connect
      yield* until("it is on its way", Effect.map(server.stats, (stats) => stats.inFlight === inFlight))
    }
    accepted.at(-1)!.destroy()
    process.kill(pid, "SIGCONT")
    yield* until("it has ended", Effect.sync(() => reasons().length === 1))
    assert.deepStrictEqual(reasons(), [{ _tag: "PeerReset" }])
  }))

const fdinfo = (pid: string, fd: string): string => {
  try {
    return readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")
  } catch {
    return ""
  }
}

it.live("a client whose process has no descriptor for it is closed, and its request has ended", () =>
  Effect.gen(function*() {
    const { connect, reasons, visit } = yield* serveAt(
      yield* tcp,
      { kind: "process", maxWorkers: 1, concurrencyPerWorker: 2 }
    )
    const first = yield* visit("worker")
    const [pid] = (yield* first.readLine).split("/")
    const limit = (descriptors: number) => execFileSync("prlimit", [`--pid=${pid}`, `--nofile=${descriptors}:`])
    // What it starts with has all that it needs: the thread that waits for the end of its parent, at descriptor 4, too.
    yield* until(
      "it watches its parent",
      Effect.sync(() => readdirSync(`/proc/${pid}/fdinfo`).some((fd) => /^tfd: +4 /m.test(fdinfo(pid!, fd))))
    )
    limit(3)
    const second = yield* connect
    yield* Effect.timeout(Effect.ignore(second.closed), "10 seconds")
    yield* until("its request has ended", Effect.sync(() => reasons().length === 1))
    assert.strictEqual(reasons()[0]?._tag, "WorkerCrashed")
    limit(1_024)
    const third = yield* visit("echo three")
    assert.strictEqual(yield* third.readLine, "three")
    yield* first.write("echo one\n")
    assert.strictEqual(yield* first.readLine, "one")
  }))

for (const kind of kinds) {
  for (const [name, place] of Object.entries(places)) {
    describe.concurrent(`a handler in a ${kind}, on ${name}`, () => {
      it.live("reads and writes, in a worker", () =>
        Effect.gen(function*() {
          const at = yield* place
          const { reasons, server, visit, workers } = yield* serveAt(at, { kind, maxWorkers: 1 })
          const client = yield* visit("worker", "echo one", "echo two")
          const where = yield* client.readLine
          assert.notStrictEqual(where, `${process.pid}/0`)
          if (kind === "thread") assert.strictEqual(where.split("/")[0], `${process.pid}`)
          assert.strictEqual(yield* client.readLine, "one")
          assert.strictEqual(yield* client.readLine, "two")
          yield* client.end
          assert.strictEqual(yield* client.closed, "Ended")
          yield* ended(server)
          assert.deepStrictEqual(reasons(), [{ _tag: "Completed" }])
          assert.strictEqual((yield* workers).transfer, at.transfer[kind])
          assert.strictEqual((yield* server.stats).bytesRead, "worker\necho one\necho two\n".length)
          assert.strictEqual((yield* server.stats).bytesWritten, where.length + 1 + "one\ntwo\n".length)
        }))

      it.live("knows the connection's number and addresses", () =>
        Effect.gen(function*() {
          const { server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 })
          const client = yield* visit("addresses")
          const [info] = yield* server.connections.list
          assert.strictEqual(yield* client.readLine, [info!.id, info!.peer, info!.local].join(" "))
        }))

      it.live("carries a large transfer both ways, byte by byte", () =>
        Effect.gen(function*() {
          const { connect } = yield* serveAt(yield* place, { kind, maxWorkers: 1 }, handlers.echo)
          const client = yield* connect
          const sent = Uint8Array.from({ length: 5_000_000 }, (_, i) => (i * 7 + (i >> 8)) & 255)
          const sending = yield* Effect.forkChild(Effect.andThen(client.write(sent), client.end))
          const received = yield* client.readAll
          yield* Fiber.join(sending)
          assert.isTrue(Buffer.compare(received, sent) === 0)
        }))

      it.live("ends as it does inline: failures with their type, defects, interruption, the peer's doing", () =>
        Effect.gen(function*() {
          const { causes, reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 })
          for (const command of ["fail typed", "die untyped", "interrupt", "tooLong\nmuch too long", "reset"]) {
            const client = yield* visit("echo begun", command)
            if (command !== "reset") assert.strictEqual(yield* client.readLine, "begun")
            yield* Effect.ignore(client.closed)
            yield* client.end
            yield* ended(server)
          }
          const [fail, die, interrupt, tooLong, reset] = reasons()
          assert.deepStrictEqual([fail, die, interrupt].map((reason) => reason?._tag), [
            "HandlerFailed",
            "HandlerFailed",
            "HandlerFailed"
          ])
          assert.isTrue(
            tooLong?._tag === "TransportFailed" && tooLong.error instanceof ConnectionError.ConnectionError &&
              tooLong.error.reason instanceof ConnectionError.LimitExceeded
          )
          assert.include(["Completed", "TransportFailed"], reset?._tag)
          const oops = Option.getOrThrow(Cause.findErrorOption(causes[0]!))
          assert.deepStrictEqual([oops._tag, oops.detail, oops.message], ["Oops", "typed", "oops: typed"])
          const defect = Cause.squash(causes[1]!)
          assert.isTrue(defect instanceof Error && defect.message === "untyped")
        }))

      it.live("has its connection annotated, and ends its output", () =>
        Effect.gen(function*() {
          const { server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 })
          const client = yield* visit("annotate ada")
          assert.strictEqual(yield* client.readLine, "annotated")
          const [info] = yield* server.connections.list
          assert.strictEqual(info!.annotations.get("user"), "ada")
          yield* client.write("end\n")
          assert.strictEqual(yield* client.closed, "Ended")
        }))

      it.live("sees end of input in a drain while it is idle, and finishes the request that it is in", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 3 })
          const idle = yield* visit("echo here")
          yield* idle.readLine
          const told = yield* visit("untilDrain")
          yield* told.readLine
          const half = yield* visit("echo here")
          yield* half.readLine
          yield* half.write("echo the rest of the ")
          const draining = yield* Effect.forkChild(server.drain({ grace: "15 seconds" }), { startImmediately: true })
          assert.strictEqual(yield* idle.closed, "Ended")
          assert.strictEqual(yield* told.readLine, "draining")
          yield* half.write("line\n")
          assert.strictEqual(yield* half.readLine, "the rest of the line")
          assert.strictEqual(yield* half.closed, "Ended")
          const report = yield* Fiber.join(draining)
          assert.deepStrictEqual(reasons().map(({ _tag }) => _tag), ["Drained", "Drained", "Drained"])
          assert.strictEqual(report.idleClosed, 3)
        }))

      it.live("is interrupted when the grace of a drain is over, and its finalizers run", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 })
          const client = yield* visit("wait")
          assert.strictEqual(yield* client.readLine, "waiting")
          const report = yield* server.drain({ grace: 0 })
          assert.strictEqual(yield* client.readLine, "interrupted")
          assert.strictEqual(report.interrupted, 1)
          assert.deepStrictEqual(reasons(), [{ _tag: "Drained" }])
        }))

      it.live("fails its read when its peer is silent for longer than `idleTimeout`, after `onTimeout`", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 }, undefined, {
            idleTimeout: "500 millis",
            onTimeout: (connection) => connection.write("too slow\n")
          })
          const client = yield* visit("echo one")
          assert.strictEqual(yield* client.readLine, "one")
          assert.strictEqual(yield* client.readLine, "too slow")
          assert.strictEqual(yield* client.closed, "Ended")
          yield* ended(server)
          assert.deepStrictEqual(reasons(), [{ _tag: "IdleTimeout" }])
        }))

      it.live("is closed by hand: interrupted, and what it has written arrives", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 })
          const client = yield* visit("wait")
          assert.strictEqual(yield* client.readLine, "waiting")
          const [info] = yield* server.connections.list
          assert.isTrue(yield* server.connections.close(info!.id))
          assert.strictEqual(yield* client.readLine, "interrupted")
          yield* ended(server)
          assert.deepStrictEqual(reasons(), [{ _tag: "Killed" }])
        }))

      it.live("is interrupted when its client is gone, if that is asked for", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 }, undefined, {
            interruptOnDisconnect: name === "tcp" ? "reset" : "end"
          })
          const client = yield* visit("wait")
          assert.strictEqual(yield* client.readLine, "waiting")
          yield* name === "tcp" ? client.reset : client.end
          yield* ended(server)
          assert.deepStrictEqual(reasons(), [{ _tag: "PeerReset" }])
        }))

      it.live("is not run for a client that left while it waited for a worker, if that is asked for", () =>
        Effect.gen(function*() {
          const { reasons, server, visit } = yield* serveAt(
            yield* place,
            { kind, maxWorkers: 1, queue: { max: 1 } },
            undefined,
            // On Node 22 the reset of a client that was sent nothing yet can arrive as its end.
            { interruptOnDisconnect: "end" }
          )
          const isQueued = (count: number) =>
            until(`${count} in line`, Effect.map(server.stats, ({ queued }) => queued === count))
          const first = yield* visit("wait")
          assert.strictEqual(yield* first.readLine, "waiting")
          const leaves = yield* visit("echo never")
          yield* isQueued(1)
          yield* name === "tcp" ? leaves.reset : leaves.end
          yield* isQueued(0)
          yield* until("it is gone", Effect.sync(() => reasons().length === 1))
          assert.deepStrictEqual(reasons(), [{ _tag: "PeerReset" }])
          // There is room in the line again, and who stays in it is served.
          const stays = yield* visit("echo one", "echo two")
          yield* isQueued(1)
          yield* name === "tcp" ? first.reset : first.end
          assert.strictEqual(yield* stays.readLine, "one")
          assert.strictEqual(yield* stays.readLine, "two")
        }))

      it.live("gives `onError` a connection that can still be written to", () =>
        Effect.gen(function*() {
          const { visit } = yield* serveAt(yield* place, { kind, maxWorkers: 1 }, undefined, {
            onError: (_, connection) => connection.write("sorry\n")
          })
          const client = yield* visit("fail")
          assert.strictEqual(yield* client.readLine, "sorry")
          assert.strictEqual(yield* client.closed, "Ended")
        }))
    })
  }

  describe(`a ${kind} that does not live`, () => {
    const endings = {
      "exits by itself": { command: "exit 7", cause: "code 7" },
      "throws outside of any fiber": { command: "throwLater far out", cause: kind === "thread" ? "far out" : "code 1" },
      ...kind === "process" && {
        "aborts": { command: "abort", cause: "SIGABRT" },
        "segfaults": { command: "segfault", cause: "SIGSEGV" }
      }
    }
    for (const [how, { cause, command }] of Object.entries(endings)) {
      it.live(`that ${how} takes its request with it, and no other`, () =>
        Effect.gen(function*() {
          const { causes, reasons, server, visit, workers } = yield* serve({ kind, maxWorkers: 2 })
          const other = yield* visit("echo one")
          assert.strictEqual(yield* other.readLine, "one")
          const doomed = yield* visit(command)
          yield* Effect.ignore(doomed.closed)
          yield* until("the request has ended", Effect.sync(() => reasons().length === 1))
          const [reason] = reasons()
          assert.isTrue(reason?._tag === "WorkerCrashed")
          assert.include(String((reason as { readonly cause: unknown }).cause), cause)
          const defect = Cause.squash(causes[0]!)
          assert.isTrue(defect instanceof WorkerError.WorkerError && defect.reason._tag === "WorkerCrashed")
          yield* other.write("echo two\n")
          assert.strictEqual(yield* other.readLine, "two")
          const next = yield* visit("echo three")
          assert.strictEqual(yield* next.readLine, "three")
          assert.strictEqual((yield* workers).crashed, 1)
          assert.strictEqual((yield* server.stats).closed.WorkerCrashed, 1)
        }))
    }

    it.live("that exhausts its memory takes its request with it", () =>
      Effect.gen(function*() {
        const { reasons, visit } = yield* serve({
          kind,
          maxWorkers: 1,
          resourceLimits: { maxOldGenerationSizeMb: 48, maxYoungGenerationSizeMb: 8 }
        })
        const doomed = yield* visit("exhaust")
        yield* Effect.ignore(doomed.closed)
        yield* until("the request has ended", Effect.sync(() => reasons().length === 1))
        assert.strictEqual(reasons()[0]?._tag, "WorkerCrashed")
        const next = yield* visit("echo alive")
        assert.strictEqual(yield* next.readLine, "alive")
      }), 30_000)

    it.live("does no harm to 1,000 others, fifty times over", () =>
      Effect.gen(function*() {
        const { reasons, server, visit, workers } = yield* serve({ kind, maxWorkers: 4, queue: { max: 2_000 } })
        const visits = Array.from({ length: 1_050 }, (_, i) =>
          Effect.scoped(
            i % 21 === 20
              ? Effect.as(Effect.flatMap(visit("exit 1"), (client) => Effect.ignore(client.closed)), "crashed")
              : Effect.gen(function*() {
                const client = yield* visit(`echo ${i}`)
                const line = yield* client.readLine
                yield* client.end
                yield* client.closed
                return line
              })
          ))
        const answers = yield* Effect.all(visits, { concurrency: "unbounded" })
        assert.deepStrictEqual(answers, Array.from({ length: 1_050 }, (_, i) => i % 21 === 20 ? "crashed" : `${i}`))
        yield* ended(server)
        const counts = (yield* server.stats).closed
        assert.deepStrictEqual([counts.Completed, counts.WorkerCrashed], [1_000, 50])
        assert.strictEqual(reasons().length, 1_050)
        // The pool is at its strength again: as many as it may have can be at work at a time.
        const four = yield* Effect.replicateEffect(visit("wait"), 4)
        for (const client of four) assert.strictEqual(yield* client.readLine, "waiting")
        const { busy, crashed } = yield* workers
        assert.deepStrictEqual([busy, crashed], [4, 50])
      }), 120_000)

    it.live("that computes for ever is stopped within its `timeout` and 100 ms", () =>
      Effect.gen(function*() {
        const { reasons, visit, workers } = yield* serve({ kind, maxWorkers: 1, timeout: "1 second" })
        const times: Array<number> = []
        // A machine that is busy with other things may be late once or twice.
        while (times.length < 5 && !(times.at(-1)! < 1_100)) {
          const client = yield* visit("echo begun")
          assert.strictEqual(yield* client.readLine, "begun")
          const begun = performance.now()
          yield* client.write("compute\n")
          yield* Effect.ignore(client.closed)
          times.push(performance.now() - begun)
        }
        assert.isBelow(times.at(-1)!, 1_100)
        yield* until("the requests have ended", Effect.sync(() => reasons().length === times.length))
        assert.deepStrictEqual(reasons(), times.map(() => ({ _tag: "WorkerTimeout" })))
        assert.strictEqual((yield* workers).killed, times.length)
        const next = yield* visit("echo alive")
        assert.strictEqual(yield* next.readLine, "alive")
      }))

    it.live("may be given more time than a timer of Node can wait for", () =>
      Effect.gen(function*() {
        for (const timeout of ["30 days", Duration.infinity] as const) {
          const { server, visit } = yield* serve({ kind, maxWorkers: 1, timeout })
          const client = yield* visit("echo one", "untilDrain")
          assert.strictEqual(yield* client.readLine, "one")
          assert.strictEqual(yield* client.readLine, "waiting")
          yield* client.end
          const { completed, idleClosed } = yield* server.drain({ grace: "15 seconds" })
          assert.strictEqual(completed + idleClosed, 1)
          assert.deepStrictEqual((yield* server.stats).closed.WorkerTimeout, undefined)
        }
      }))

    it.live("whose request waits for longer than its `timeout` interrupts it, and lives", () =>
      Effect.gen(function*() {
        const { reasons, visit, workers } = yield* serve({ kind, maxWorkers: 1, timeout: "1 second" })
        let tries = 0
        let said: string
        // One that gets no core for 50 ms is killed as if it computed: a busy machine may do that once or twice.
        do {
          const client = yield* visit("wait")
          said = new TextDecoder().decode(yield* Effect.orElseSucceed(client.readAll, () => new Uint8Array()))
          tries++
          yield* until("the request has ended", Effect.sync(() => reasons().length === tries))
        } while ((yield* workers).killed === tries && tries < 5)
        assert.strictEqual(said, "waiting\ninterrupted\n")
        assert.deepStrictEqual(reasons(), Array.from({ length: tries }, () => ({ _tag: "WorkerTimeout" })))
        assert.strictEqual((yield* workers).killed, tries - 1)
      }))

    it.live("that does not hear of an interruption is killed", () =>
      Effect.gen(function*() {
        const { reasons, server, visit, workers } = yield* serve({ kind, maxWorkers: 1 })
        const client = yield* visit("echo begun")
        assert.strictEqual(yield* client.readLine, "begun")
        yield* client.write("compute\n")
        assert.strictEqual(yield* client.readLine, "computing")
        const [info] = yield* server.connections.list
        yield* server.connections.close(info!.id)
        yield* Effect.ignore(client.closed)
        yield* until("the request has ended", Effect.sync(() => reasons().length === 1))
        assert.deepStrictEqual(reasons(), [{ _tag: "Killed" }])
        assert.strictEqual((yield* workers).killed, 1)
      }))
  })

  describe.concurrent(kind === "thread" ? "a pool of threads" : "a pool of processes", () => {
    it.live("replaces a worker after `recycleAfter` requests", () =>
      Effect.gen(function*() {
        const { server, visit, workers } = yield* serve({ kind, maxWorkers: 1, recycleAfter: 1 })
        const seen = new Set<string>()
        for (let i = 0; i < 3; i++) {
          const client = yield* visit("worker")
          seen.add(yield* client.readLine)
          yield* client.end
          assert.strictEqual(yield* client.closed, "Ended")
          yield* ended(server)
        }
        assert.strictEqual(seen.size, 3)
        yield* until("three are recycled", Effect.map(workers, ({ recycled }) => recycled === 3))
        assert.strictEqual((yield* workers).crashed, 0)
      }))

    it.live("shares no memory with its server: a worker loads the module anew, and remembers for itself", () =>
      Effect.gen(function*() {
        const here = `${kind}s are started here`
        handlers.memory.push(here)
        const { server, visit } = yield* serve({ kind, maxWorkers: 1, recycleAfter: 2 })
        const seen: Array<string> = []
        for (const word of ["one", "two", "three"]) {
          const client = yield* visit(`remember ${word}`)
          seen.push(yield* client.readLine)
          yield* client.end
          yield* ended(server)
        }
        assert.deepStrictEqual(seen, ["one", "one two", "three"])
        assert.include(handlers.memory, here)
        assert.notInclude(handlers.memory, "one")
      }))

    it.live("reports a handler that fails to `onError`, not one that interrupts itself, and goes on after one that exits", () =>
      Effect.gen(function*() {
        const { causes, reasons, server, visit } = yield* serve({ kind, maxWorkers: 1 })
        for (const command of ["fail", "interrupt", "exit 0"]) {
          const client = yield* visit(command)
          yield* Effect.ignore(client.closed)
          yield* client.end
          yield* ended(server)
        }
        assert.deepStrictEqual(reasons().map(({ _tag }) => _tag), ["HandlerFailed", "HandlerFailed", "WorkerCrashed"])
        const [failed, exited, ...more] = causes
        assert.strictEqual(Option.getOrThrow(Cause.findErrorOption(failed!))._tag, "Oops")
        // It is not the handler's failure: that the worker ended is a defect.
        assert.isTrue(Option.isNone(Cause.findErrorOption(exited!)))
        assert.instanceOf(Cause.squash(exited!), WorkerError.WorkerError)
        assert.deepStrictEqual(more, [])
        const next = yield* visit("echo alive")
        assert.strictEqual(yield* next.readLine, "alive")
      }))

    it.live("has as many workers at a time as `maxWorkers` says, and the others wait", () =>
      Effect.gen(function*() {
        const { server, visit, workers } = yield* serve({ kind, maxWorkers: 2, queue: { max: 1 } })
        const busy = yield* Effect.replicateEffect(visit("wait"), 2)
        for (const client of busy) assert.strictEqual(yield* client.readLine, "waiting")
        const waits = yield* visit("echo at last")
        yield* until("one waits", Effect.map(server.stats, ({ queued }) => queued === 1))
        const refused = yield* visit("echo never")
        yield* Effect.ignore(refused.closed)
        yield* until("one is refused", Effect.map(server.stats, ({ refused }) => refused.queue === 1))
        assert.deepStrictEqual(yield* Effect.map(workers, ({ busy, idle }) => [busy, idle]), [2, 0])
        yield* busy[0]!.reset
        const [first] = yield* server.connections.list
        yield* server.connections.close(first!.id)
        assert.strictEqual(yield* waits.readLine, "at last")
      }))

    it.live("gives a worker `concurrencyPerWorker` requests at a time, and spreads them", () =>
      Effect.gen(function*() {
        const { visit } = yield* serve({ kind, maxWorkers: 2, concurrencyPerWorker: 2 })
        const all = yield* Effect.replicateEffect(visit("worker"), 4)
        const lines = yield* Effect.forEach(all, (client) => client.readLine)
        assert.deepStrictEqual(
          [...new Set(lines)].map((line) => lines.filter((other) => other === line).length),
          [2, 2]
        )
      }))

    it.live("takes the connections of any Effect `SocketServer`, by their bytes", () =>
      Effect.gen(function*() {
        const transport = Layer.orDie(NodeSocketServer.layer({ host: "127.0.0.1", port: 0, allowHalfOpen: true })).pipe(
          Transport.fromSocketServer
        )
        const { server, visit, workers } = yield* serveAt(
          { transport, connect: TestClient.node, transfer: { thread: "bytes", process: "bytes" } },
          { kind, maxWorkers: 1 }
        )
        const client = yield* visit("worker", "echo one")
        assert.notStrictEqual(yield* client.readLine, `${process.pid}/0`)
        assert.strictEqual(yield* client.readLine, "one")
        yield* client.end
        assert.strictEqual(yield* client.closed, "Ended")
        yield* ended(server)
        assert.deepStrictEqual((yield* server.stats).closed, { Completed: 1 })
        assert.strictEqual((yield* workers).transfer, "bytes")
      }))

    it.live("starts with a handler's layer, whose failure is the server's", () =>
      Effect.gen(function*() {
        const place = yield* tcp
        const { connect } = yield* serveAt(place, { kind, maxWorkers: 1 }, handlers.greet)
        const client = yield* connect
        assert.strictEqual(yield* client.readLine, "hello")
        assert.strictEqual(yield* client.readLine, "bye")
        const exit = yield* Effect.exit(serveAt(place, { kind, maxWorkers: 1 }, handlers.noLayer))
        assert.isTrue(Exit.isFailure(exit))
        const error = Option.getOrThrow(Cause.findErrorOption((exit as Exit.Failure<never, handlers.Oops>).cause))
        assert.deepStrictEqual([error._tag, error.detail], ["Oops", "no database"])
      }))

    it.live("does not start with a handler that cannot be found, and says which", () =>
      Effect.gen(function*() {
        const place = yield* tcp
        const handle = () => Effect.void
        const { module } = handlers.obey
        for (
          const [handler, expected] of [
            [
              Handler.portable("file:///nowhere/handlers.js", "obey", handle),
              /`obey` in file:\/\/\/nowhere\/handlers\.js: .*import/
            ],
            [Handler.portable(module, "obeyy", handle), /`obeyy` in .*handlers\.ts: .*exports no `obeyy`/],
            [Handler.portable(module, "plain", handle), /`plain` in .*handlers\.ts: .*not made by `Handler.portable`/]
          ] as const
        ) {
          const error = yield* Effect.flip(serveAt(place, { kind, maxWorkers: 1 }, handler))
          assert.isTrue(error instanceof ListenError.ListenError && error.reason._tag === "HandlerNotFound")
          assert.match((error as Error).message, expected)
        }
      }))

    it.live("brings failures back as instances of their class where they have a schema", () =>
      Effect.gen(function*() {
        const { causes, connect } = yield* serveAt(yield* tcp, { kind, maxWorkers: 1 }, handlers.failCoded)
        const client = yield* connect
        yield* client.closed
        const error = Option.getOrThrow(Cause.findErrorOption(causes[0]!))
        assert.isTrue(error instanceof handlers.Coded && error.code === 42)
      }))

    it.live("kills what does not end at the last deadline of a drain, and leaves nothing behind", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { server, visit, workers } = yield* Scope.provide(serve({ kind, maxWorkers: 3 }), scope)
        const pids: Array<number> = []
        for (const command of ["stay", "compute"]) {
          const client = yield* visit("worker")
          pids.push(Number((yield* client.readLine).split("/")[0]))
          yield* client.write(`${command}\n`)
          assert.strictEqual(yield* client.readLine, command === "stay" ? "staying" : "computing")
        }
        const report = yield* server.drain({ grace: "20 millis", kill: "20 millis" })
        assert.strictEqual(report.killed, 2)
        yield* until("both workers are killed", Effect.map(workers, ({ busy, killed }) => busy === 0 && killed === 2))
        yield* Scope.close(scope, Exit.void)
        if (kind === "process") {
          yield* until("the processes are gone", Effect.sync(() => pids.every((pid) => !isAlive(pid))))
        }
      }))
  })

  describe.concurrent(`a task in a ${kind}`, () => {
    const pool = (options?: Partial<WorkerPool.WorkerOptions>) => WorkerPool.make({ kind, maxWorkers: 2, ...options })

    it.live("is run for a handler that runs inline, and its result awaited", () =>
      Effect.gen(function*() {
        const { run } = yield* pool()
        const server = yield* Server.makeStream((connection) =>
          Effect.gen(function*() {
            const n = Number(yield* connection.readLine())
            yield* connection.write(`${yield* run(handlers.square, n)}\n`)
          })
        ).pipe(Effect.provide(NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(Dispatch.fiberPerRequest())))
        const client = yield* TestClient.node(server.address)
        yield* client.write("12\n")
        assert.strictEqual(yield* client.readLine, "144")
      }))

    it.live("fails with its type, dies, crashes and overruns its time as requests do", () =>
      Effect.gen(function*() {
        const { info, run } = yield* pool({ timeout: "1 second" })
        const fail = yield* Effect.flip(run(handlers.doomed, "fail"))
        assert.deepStrictEqual([fail._tag, fail.message], ["Oops", "oops: task"])
        const die = yield* Effect.exit(run(handlers.doomed, "die"))
        assert.isTrue(Exit.isFailure(die) && Cause.hasDies(die.cause))
        const reasonOf = (how: "exit" | "compute" | "wait") =>
          Effect.map(
            Effect.flip(run(handlers.doomed, how)),
            (error) => error instanceof WorkerError.WorkerError ? error.reason._tag : error
          )
        assert.strictEqual(yield* reasonOf("exit"), "WorkerCrashed")
        assert.strictEqual(yield* reasonOf("compute"), "WorkerTimeout")
        const { crashed, killed } = yield* info
        assert.deepStrictEqual([crashed, killed], [1, 1])
        let tries = 0
        // One that gets no core for 50 ms is killed as if it computed: a busy machine may do that once or twice.
        do {
          assert.strictEqual(yield* reasonOf("wait"), "WorkerTimeout")
          tries++
        } while ((yield* info).killed === 1 + tries && tries < 5)
        assert.strictEqual((yield* info).killed, tries)
        assert.strictEqual(yield* run(handlers.square, 3), 9)
      }))

    it.live("is interrupted with its caller, and gives its place to the next", () =>
      Effect.gen(function*() {
        const { info, run } = yield* pool({ maxWorkers: 1 })
        const waiting = yield* Effect.forkChild(run(handlers.doomed, "wait"), { startImmediately: true })
        yield* until("it runs", Effect.map(info, ({ busy }) => busy === 1))
        yield* Fiber.interrupt(waiting)
        assert.strictEqual(yield* run(handlers.square, 4), 16)
        assert.strictEqual((yield* info).killed, 0)
      }))

    it.live("is refused where too many wait", () =>
      Effect.gen(function*() {
        const { run } = yield* pool({ maxWorkers: 1, queue: { max: 0 } })
        yield* Effect.forkChild(run(handlers.doomed, "wait"), { startImmediately: true })
        const error = yield* Effect.flip(run(handlers.square, 4))
        assert.isTrue(error instanceof WorkerError.WorkerError && error.reason._tag === "QueueFull")
      }))

    it.live("that cannot be found fails, and harms no other", () =>
      Effect.gen(function*() {
        const { run } = yield* pool({ maxWorkers: 1 })
        const error = yield* Effect.flip(
          run(Handler.portable(handlers.square.module, "cube", (n: number) => Effect.succeed(n)), 3)
        )
        assert.isTrue(error instanceof WorkerError.WorkerError && error.reason._tag === "HandlerNotFound")
        assert.strictEqual(yield* run(handlers.square, 3), 9)
      }))

    it.live("shares its workers with the requests of servers", () =>
      Effect.gen(function*() {
        const shared = yield* pool({ maxWorkers: 1 })
        const server = yield* Effect.map(
          Layer.build(
            NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
              NodeDispatch.workers,
              Server.serveStream(handlers.obey),
              Layer.provide(Layer.succeed(WorkerPool.WorkerPool, shared))
            )
          ),
          Context.get(Server.Server)
        )
        const where = yield* shared.run(handlers.where, undefined)
        const client = yield* TestClient.node(server.address)
        yield* client.write("worker\n")
        assert.strictEqual(yield* client.readLine, where)
      }))
  })

  const datagrams: ReadonlyArray<{
    readonly name: string
    readonly transport: Layer.Layer<DatagramTransport.DatagramTransport>
    readonly connect: Effect.Effect<DatagramTestClient.DatagramTestClient, TestClient.ClientError, Scope.Scope>
  }> = [
    {
      name: "udp",
      transport: NodeTransport.udp({ host: "127.0.0.1", port: 0, maxPacketSize: 16 }),
      connect: DatagramTestClient.udp("IPv4")
    },
    {
      name: "memory",
      transport: MemoryTransport.datagram({ maxPacketSize: 16 }),
      connect: DatagramTestClient.memory()
    }
  ]
  for (const { connect, name, transport } of datagrams) {
    describe.concurrent(`a datagram handler in a ${kind}, on ${name}`, () => {
      it.live("replies, sends to others, annotates, fails, and crashes alone", () =>
        Effect.gen(function*() {
          const server = yield* Effect.map(
            Layer.build(
              transport.pipe(
                NodeDispatch.workerPerRequest({ kind, maxWorkers: 2, timeout: "3 seconds" }),
                Server.serveDatagram(handlers.obeyPacket, { onError: () => Effect.void })
              )
            ),
            Context.get(Server.Server)
          )
          const client = yield* connect
          const ask = (text: string) => client.send(server.address, text)
          const answer = Effect.map(client.receive, ({ payload }) => new TextDecoder().decode(payload))
          yield* ask("hello")
          assert.strictEqual(yield* answer, "HELLO")
          yield* ask("twice")
          assert.deepStrictEqual([yield* answer, yield* answer], ["one", "two"])
          yield* ask("more than there is room for")
          assert.strictEqual(yield* answer, "cut MORE THAN THERE ")
          for (const doom of ["fail", "exit", "compute", "large"]) yield* ask(doom)
          yield* ask("alive")
          assert.strictEqual(yield* answer, "ALIVE")
          yield* ended(server)
          assert.deepStrictEqual((yield* server.stats).closed, {
            Completed: 4,
            HandlerFailed: 1,
            WorkerCrashed: 1,
            WorkerTimeout: 1,
            TransportFailed: 1
          })
        }))
    })
  }
}

describe.concurrent("what a handler tells beside its answer", () => {
  const dispatches: Record<string, (place: Place["transport"]) => Layer.Layer<Server.Server, ListenError.ListenError>> =
    {
      inline: (transport) => transport.pipe(Dispatch.serial(), Server.serveStream(handlers.tell)),
      thread: (transport) =>
        transport.pipe(
          NodeDispatch.workerPerRequest({ kind: "thread", maxWorkers: 1 }),
          Server.serveStream(handlers.tell)
        ),
      process: (transport) =>
        transport.pipe(
          NodeDispatch.workerPerRequest({ kind: "process", maxWorkers: 1 }),
          Server.serveStream(handlers.tell)
        )
    }
  for (const [name, dispatch] of Object.entries(dispatches)) {
    it.live(`is heard by the program's loggers, metrics and tracer: ${name}`, () =>
      Effect.gen(function*() {
        const logs: Array<[unknown, string, unknown]> = []
        const spans: Array<Tracer.NativeSpan> = []
        const metrics = new Map()
        const logger = Logger.make<unknown, void>(({ fiber, logLevel, message }) => {
          logs.push([message, logLevel, fiber.getRef(References.CurrentLogAnnotations)])
        })
        const tracer = Tracer.make({
          span: (options) => {
            const span = new Tracer.NativeSpan(options)
            spans.push(span)
            return span
          }
        })
        yield* Effect.gen(function*() {
          const { transport } = yield* tcp
          const server = yield* Effect.map(Layer.build(dispatch(transport)), Context.get(Server.Server))
          const client = yield* TestClient.node(server.address)
          assert.strictEqual(yield* client.readLine, "done")
          yield* client.end
          yield* ended(server)
        }).pipe(
          Effect.scoped,
          Effect.withSpan("server"),
          Effect.provide([Logger.layer([logger]), Logging.off]),
          Effect.provideService(Metric.MetricRegistry, metrics),
          Effect.provideService(Tracer.Tracer, tracer)
        )
        assert.deepStrictEqual(logs, [[["told", { by: "a handler" }], "Info", { connection: 1 }]])
        const counter = [...metrics.values()].find(({ id }) => id === "test_tellings")
        assert.deepStrictEqual(counter.hooks.get(Context.empty()).count, 2)
        const [outer, answer] = spans
        assert.deepStrictEqual(spans.map(({ name }) => name), ["server", "answer"])
        assert.strictEqual(outer!.attributes.get("handled"), true)
        assert.strictEqual(answer!.attributes.get("size"), 5)
        assert.strictEqual(Option.getOrUndefined(answer!.parent)?.spanId, outer!.spanId)
        assert.isTrue(answer!.status._tag === "Ended" && Exit.isSuccess(answer!.status.exit))
      }))
  }
})

describe("workers that cannot be started", () => {
  it.live("are tried again after a pause that grows; the server says so, and requests that wait end meanwhile", () =>
    Effect.gen(function*() {
      const file = Path.join(yield* directory, "reluctant")
      const { connect, events, server, workers } = yield* serveAt(
        yield* tcp,
        { kind: "thread", maxWorkers: 1, env: { TEST_RELUCTANT: file } },
        handlers.reluctant
      )
      const first = yield* connect
      assert.strictEqual(yield* first.readLine, "here")
      writeFileSync(file, "")
      yield* first.write("crash\n")
      yield* Effect.ignore(first.closed)
      const failures = () => events.flatMap((event) => event._tag === "WorkerNotStarted" ? [event] : [])
      yield* until("two attempts have failed", Effect.sync(() => failures().length >= 2))
      assert.deepStrictEqual(
        failures().slice(0, 2).map(({ retryIn }) => Duration.toMillis(retryIn)),
        [100, 200]
      )
      const { failure, idle } = yield* workers
      assert.deepStrictEqual([idle, (failure as handlers.Oops)._tag], [0, "Oops"])
      const unlucky = yield* connect
      yield* Effect.ignore(unlucky.closed)
      yield* until("its request has ended", Effect.map(server.stats, ({ closed }) => closed.WorkerCrashed === 2))
      rmSync(file)
      const lucky = yield* connect
      assert.strictEqual(yield* lucky.readLine, "here")
      assert.strictEqual((yield* workers).failure, undefined)
      assert.deepStrictEqual(
        events.flatMap((event) => event._tag === "WorkerEnded" ? [event.how] : []),
        ["Crashed"]
      )
    }))
})

/** A child of the program itself, and the code that it exits with. */
const foreignChild = Effect.sync(() => {
  const child = spawn(process.execPath, ["-e", "process.exit(72)"])
  return Effect.callback<number | null>((resume) => {
    if (child.exitCode !== null) resume(Effect.succeed(child.exitCode))
    else child.once("exit", (code) => resume(Effect.succeed(code)))
  })
})

describe.concurrent("a process for each request", () => {
  const forking: WorkerPool.WorkerOptions = { kind: "process", maxWorkers: 1, recycleAfter: 1 }

  const streams = Effect.fnUntraced(function*(place: Effect.Effect<Place, never, Scope.Scope>) {
    const { visit } = yield* serveAt(yield* place, forking)
    return Effect.fnUntraced(function*(text: string) {
      const client = yield* visit("worker", `echo ${text}`)
      const worker = yield* client.readLine
      assert.strictEqual(yield* client.readLine, text)
      yield* client.end
      assert.strictEqual(yield* client.closed, "Ended")
      return worker
    }, Effect.scoped)
  })

  const packets = Effect.gen(function*() {
    const server = yield* NodeTransport.udp({ host: "127.0.0.1", port: 0 }).pipe(
      NodeDispatch.workerPerRequest(forking),
      Server.serveDatagram(handlers.obeyPacket),
      Layer.build,
      Effect.map(Context.get(Server.Server))
    )
    return Effect.fnUntraced(function*(text: string) {
      const client = yield* DatagramTestClient.udp("IPv4")
      const ask = Effect.fnUntraced(function*(packet: string) {
        yield* client.send(server.address, packet)
        return new TextDecoder().decode((yield* client.receive).payload)
      })
      assert.strictEqual(yield* ask(text), text.toUpperCase())
      return yield* ask("worker")
    }, Effect.scoped)
  })

  for (const [name, serveThere] of Object.entries({ tcp: streams(tcp), unix: streams(unix), udp: packets })) {
    it.live(`over ${name} answers three clients in turn, and leaves nothing; a child that is not ours keeps its code`, () =>
      Effect.gen(function*() {
        const code = yield* foreignChild
        const scope = yield* Scope.make()
        const ask = yield* Scope.provide(serveThere, scope)
        const workers = new Set<string>()
        for (let i = 0; i < 3; i++) workers.add(yield* ask(`hello world ${i}`))
        assert.strictEqual(workers.size, 3)
        yield* Scope.close(scope, Exit.void)
        yield* until(
          "the processes are gone",
          Effect.sync(() => [...workers].every((worker) => !isAlive(Number(worker.split("/")[0]))))
        )
        assert.strictEqual(yield* code, 72)
      }))
  }
})

describe.concurrent("other processes", () => {
  it.live("are left alone: a child that is not ours keeps its exit code for whoever waits for it", () =>
    Effect.gen(function*() {
      const childCode = yield* foreignChild
      const { server, visit } = yield* serve({ kind: "process", maxWorkers: 1, recycleAfter: 1 })
      for (let i = 0; i < 2; i++) {
        const client = yield* visit("exit 0")
        yield* Effect.ignore(client.closed)
      }
      yield* ended(server)
      assert.strictEqual(yield* childCode, 72)
    }))

  it.live("of a server that was killed end with it, whatever they compute", () =>
    Effect.gen(function*() {
      const main = new URL("./workers/killed.ts", import.meta.url)
      const parent = yield* Effect.acquireRelease(
        Effect.sync(() => spawn(process.execPath, [main.pathname], { stdio: ["ignore", "pipe", "inherit"] })),
        (parent) => Effect.sync(() => parent.kill("SIGKILL"))
      )
      const pid = yield* Effect.callback<number>((resume) => {
        parent.stdout.once("data", (line: Buffer) => resume(Effect.succeed(Number(line.toString()))))
      })
      assert.isTrue(isAlive(pid))
      parent.kill("SIGKILL")
      yield* until("the worker is gone", Effect.sync(() => !isAlive(pid)))
    }))
})

describe.concurrent("options", () => {
  it.live("out of range are told before anything is started", () =>
    Effect.gen(function*() {
      for (
        const [option, options] of [
          ["maxWorkers", { maxWorkers: 0 }],
          ["minWorkers", { maxWorkers: 2, minWorkers: 3 }],
          ["concurrencyPerWorker", { concurrencyPerWorker: 0.5 }],
          ["recycleAfter", { recycleAfter: 0 }],
          ["timeout", { timeout: 0 }],
          ["queue.max", { queue: { max: -1 } }]
        ] as const
      ) {
        const error = yield* Effect.flip(serve({ kind: "thread", ...options }))
        assert.isTrue(error instanceof ListenError.ListenError && error.reason._tag === "InvalidOption")
        assert.include(error.message, `\`${option}\``)
      }
    }))
})
