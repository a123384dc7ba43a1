/** Portable handlers and tasks for tests: workers import this module. */
import type { Connection } from "@socketserver/core/Connection"
import type { Datagram } from "@socketserver/core/Datagram"
import * as Handler from "@socketserver/core/Handler"
import type { Message } from "@socketserver/core/Message"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { appendFileSync, existsSync } from "node:fs"
import { parentPort, threadId } from "node:worker_threads"

export class Oops extends Data.TaggedError("Oops")<{ readonly detail: string }> {
  override get message(): string {
    return `oops: ${this.detail}`
  }
}

export class Coded extends Schema.TaggedError<Coded>()("Coded", { code: Schema.Number }) {}

/** Which worker is this? */
const worker = `${process.pid}/${threadId}`

/** What this module remembers, in each place where it is loaded. */
export const memory: Array<string> = []

const held = Latch.makeUnsafe(false)

/** Whatever does not return by itself is done here, between reads. */
const computeForEver = (): never => {
  for (;;) { /* nobody hears */ }
}

const exhaustMemory = (): never => {
  const all: Array<unknown> = []
  for (;;) all.push(Array.from({ length: 10_000 }, Math.random))
}

const act = (
  connection: Connection,
  command: string,
  rest: string
): Effect.Effect<unknown, any> => {
  switch (command) {
    case "echo":
      return connection.write(`${rest}\n`)
    case "worker":
      return connection.write(`${worker}\n`)
    case "remember":
      return Effect.suspend(() => {
        memory.push(rest)
        return connection.write(`${memory.join(" ")}\n`)
      })
    case "addresses":
      return connection.write(`${[connection.id, connection.peer, connection.local].join(" ")}\n`)
    case "fail":
      return Effect.fail(new Oops({ detail: rest }))
    case "die":
      return Effect.die(new Error(rest))
    case "interrupt":
      return Effect.interrupt
    case "tooLong":
      return connection.readLine({ maxLength: 4 })
    case "annotate":
      return Effect.andThen(connection.annotate("user", rest), connection.write("annotated\n"))
    case "end":
      return Effect.andThen(connection.end, Effect.ignore(connection.write("nobody gets this")))
    case "reset":
      return connection.reset
    case "exit":
      return Effect.sync(() => process.exit(Number(rest)))
    case "abort":
      return Effect.sync(() => process.abort())
    case "segfault":
      return Effect.sync(() => process.kill(process.pid, "SIGSEGV"))
    case "throwLater":
      return Effect.andThen(
        Effect.sync(() =>
          setImmediate(() => {
            throw new Error(rest)
          })
        ),
        Effect.never
      )
    case "exhaust":
      return Effect.sync(exhaustMemory)
    case "compute":
      return Effect.andThen(connection.write("computing\n"), Effect.sync(computeForEver))
    case "wait":
      return Effect.onInterrupt(
        Effect.andThen(connection.write("waiting\n"), Effect.never),
        () => Effect.ignore(connection.write("interrupted\n"))
      )
    case "flood":
      return Effect.forever(connection.write("x".repeat(100_000)))
    case "leave":
      // With more written than the system takes. What an interrupted write was given leaves with the rest, if it can.
      return Effect.andThen(
        Effect.timeoutOption(connection.write("x".repeat(32_000_000)), "10 millis"),
        Effect.fail(Cause.Done())
      )
    case "stay":
      return Effect.uninterruptible(Effect.andThen(connection.write("staying\n"), Effect.never))
    case "hold":
      return Effect.andThen(connection.write("held\n"), Effect.andThen(held.await, Effect.fail(Cause.Done())))
    case "letAllGo":
      held.openUnsafe()
      return Effect.void
    case "letGo":
      // The thread can say no more to its server.
      return Effect.andThen(
        Effect.sync(() => {
          parentPort!.close()
          held.openUnsafe()
          setImmediate(() => setImmediate(() => process.exit(3)))
        }),
        Effect.never
      )
    case "untilDrain":
      return Effect.andThen(
        connection.write("waiting\n"),
        Effect.andThen(connection.draining, connection.write("draining\n"))
      )
    default:
      return Effect.die(new Error(`what is ${command}?`))
  }
}

/** Does line by line what its client says, until the client finishes. */
export const obey = Handler.portable(
  import.meta.url,
  "obey",
  (connection: Connection) =>
    Effect.gen(function*() {
      while (true) {
        const line = yield* connection.readLine()
        const space = `${line} `.indexOf(" ")
        yield* act(connection, line.slice(0, space), line.slice(space + 1))
      }
    })
)

export const echo = Handler.portable(
  import.meta.url,
  "echo",
  (connection: Connection) => Stream.run(connection.bytes, connection.sink)
)

export const failCoded = Handler.portable(
  import.meta.url,
  "failCoded",
  (_: Connection) => Effect.fail(new Coded({ code: 42 })),
  { error: Coded }
)

class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}

export const greet = Handler.portable(
  import.meta.url,
  "greet",
  (connection: Connection) =>
    Effect.gen(function*() {
      yield* Effect.addFinalizer(() => Effect.ignore(connection.write("bye\n")))
      yield* connection.write(`${yield* Greeting}\n`)
    }),
  { layer: Layer.succeed(Greeting, "hello") }
)

export const noLayer = Handler.portable(
  import.meta.url,
  "noLayer",
  (_: Connection) => Effect.void,
  { layer: Layer.effectDiscard(Effect.fail(new Oops({ detail: "no database" }))) }
)

/** Exported, but not a portable handler. */
export const plain = (connection: Connection) => connection.write("plain")

// ---- datagrams

export const obeyPacket = Handler.portable(
  import.meta.url,
  "obeyPacket",
  (datagram: Datagram) =>
    Effect.gen(function*() {
      const text = new TextDecoder().decode(datagram.payload)
      switch (text) {
        case "fail":
          return yield* Effect.fail(new Oops({ detail: "packet" }))
        case "exit":
          return process.exit(1)
        case "compute":
          return computeForEver()
        case "large":
          return yield* datagram.reply(new Uint8Array(70_000))
        case "detached": {
          // No message can have it.
          const bytes = new Uint8Array(8)
          structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
          return yield* datagram.reply(bytes)
        }
        case "twice":
          yield* datagram.reply("one")
          return yield* datagram.send(datagram.peer, "two")
        case "worker":
          return yield* datagram.reply(worker)
        default:
          yield* datagram.annotate("text", text)
          return yield* datagram.reply(`${datagram.truncated ? "cut " : ""}${text.toUpperCase()}`)
      }
    })
)

// ---- messages

export const obeyMessage = Handler.portable(
  import.meta.url,
  "obeyMessage",
  ({ payload }: Message<string, string>) =>
    payload === "compute" ? Effect.sync(computeForEver) : Effect.succeed(payload.toUpperCase())
)

export const tracedMessage = Handler.portable(
  import.meta.url,
  "tracedMessage",
  ({ payload }: Message<string, string>) =>
    Effect.gen(function*() {
      const span = yield* Effect.orDie(Effect.currentSpan)
      span.attribute("from", "the worker")
      return yield* Effect.withSpan(Effect.succeed(`${payload} ${span.name}`), "in the worker")
    })
)

// ---- tasks

export const square = Handler.portable(import.meta.url, "square", (n: number) => Effect.succeed(n * n))

export const where = Handler.portable(import.meta.url, "where", (_: void) => Effect.succeed(worker))

/** Says something to whoever started its worker. */
export const call = Handler.portable(import.meta.url, "call", (what: unknown) =>
  Effect.sync(() => {
    if (parentPort === null) process.send!(what)
    else parentPort.postMessage(what)
  }))

export const doomed = Handler.portable(
  import.meta.url,
  "doomed",
  (how: "fail" | "die" | "exit" | "compute" | "wait") => {
    switch (how) {
      case "fail":
        return Effect.fail(new Oops({ detail: "task" }))
      case "die":
        return Effect.die(new Error("defect"))
      case "exit":
        return Effect.sync(() => process.exit(3))
      case "compute":
        return Effect.sync(computeForEver)
      case "wait":
        return Effect.never
    }
  }
)

// ---- what is told beside the answer

export const tell = Handler.portable(import.meta.url, "tell", (connection: Connection) =>
  Effect.gen(function*() {
    yield* Effect.annotateCurrentSpan("handled", true)
    yield* Effect.logInfo("told", { by: "a handler" }).pipe(Effect.annotateLogs("connection", connection.id))
    yield* Effect.logDebug("not told")
    yield* Metric.update(Metric.counter("test_tellings", { attributes: { where: "anywhere" } }), 2)
    yield* Effect.withSpan(connection.write("done\n"), "answer", { attributes: { size: 5 } })
  }))

/** Its workers cannot start while the file is there that the environment names. */
export const reluctant = Handler.portable(
  import.meta.url,
  "reluctant",
  (connection: Connection) =>
    Effect.andThen(
      connection.write("here\n"),
      Effect.andThen(connection.readLine(), Effect.sync(() => process.exit(1)))
    ),
  {
    layer: Layer.effectDiscard(
      Effect.suspend(() =>
        existsSync(process.env.TEST_RELUCTANT!) ? Effect.fail(new Oops({ detail: "not now" })) : Effect.void
      )
    )
  }
)

/** Its layer tells in a file that it is being built, and waits for another one; the environment names the first. */
export const slow = Handler.portable(
  import.meta.url,
  "slow",
  (_: Connection) => Effect.void,
  {
    layer: Layer.effectDiscard(
      Effect.gen(function*() {
        const file = process.env.TEST_SLOW!
        appendFileSync(file, ".")
        while (!existsSync(`${file}.go`)) yield* Effect.sleep(5)
      })
    )
  }
)

/** Says which span it is in, and makes one. */
export const traced = Handler.portable(
  import.meta.url,
  "traced",
  (connection: Connection) =>
    Effect.gen(function*() {
      const span = yield* Effect.orDie(Effect.currentSpan)
      span.attribute("from", "the worker")
      yield* Effect.withSpan(connection.write(span.name), "in the worker")
    })
)
