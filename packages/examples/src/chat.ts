/**
 * A chat room. A client's first line is its name; what it writes after that, all others read. Each client has an outbox of
 * its own, so nobody waits for anybody: the room puts a message into every outbox, and each client's fiber sends its own.
 */
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { type Cause, Context, Data, Effect, Fiber, Layer, Queue, type Scope, Stream } from "effect"
import { LineCount } from "./LineCount.ts"
import { isMain, runServer } from "./run.ts"

export class NameTaken extends Data.TaggedError("NameTaken")<{ readonly name: string }> {}

type Outbox = Queue.Queue<string, Cause.Done>

export class Room extends Context.Service<Room, {
  /** Comes in, and leaves when the scope closes. */
  readonly join: (name: string) => Effect.Effect<Outbox, NameTaken, Scope.Scope>
  /** Tells everybody but `name`. */
  readonly say: (name: string, text: string) => Effect.Effect<void>
}>()("@socketserver/examples/Room") {
  static readonly layer = Layer.sync(Room, () => {
    const members = new Map<string, Outbox>()

    const tellOthers = (name: string, message: string) =>
      Effect.forEach(members, ([member, outbox]) => member === name ? Effect.void : Queue.offer(outbox, message), {
        discard: true
      })

    const enter = Effect.fnUntraced(function*(name: string) {
      if (members.has(name)) return yield* new NameTaken({ name })
      // A client that does not read: once the system's buffers and these 100 messages are full, it loses the oldest ones. It
      // costs no more memory than that, and the room does not notice. If it reads again, it finds the last 100.
      const outbox = yield* Queue.sliding<string, Cause.Done>(100)
      yield* Queue.offer(outbox, `* welcome, ${name}! Here: ${[...members.keys()].join(", ") || "nobody yet"}\n`)
      members.set(name, outbox)
      yield* tellOthers(name, `* ${name} joined\n`)
      return outbox
    })

    const leave = (name: string) =>
      Effect.suspend(() => {
        members.delete(name)
        return tellOthers(name, `* ${name} left\n`)
      })

    return {
      join: (name) => Effect.acquireRelease(enter(name), () => leave(name)),
      say: (name, text) => tellOthers(name, `${name}: ${text}\n`)
    }
  })
}

/** One client's text ends up on other people's terminals: no control characters. */
const printable = (text: string) => text.replace(/\p{Cc}/gu, "").trim()

export const chat = Effect.fnUntraced(
  function*(connection: Connection.Connection) {
    const room = yield* Room
    const lines = yield* LineCount
    yield* connection.write("Your name?\n")
    const name = printable(yield* connection.readLine({ maxLength: 64 })) || `guest${connection.id}`
    // For whoever looks at the server: `connections.list` shows who is who.
    yield* connection.annotate("name", name)

    const outbox = yield* room.join(name)
    const sender = yield* Effect.forkChild(Stream.run(Stream.fromQueue(outbox), connection.sink))
    yield* connection.lines({ maxLength: 4096 }).pipe(
      Stream.runForEach((line) => Effect.andThen(lines.add, room.say(name, printable(line))))
    )
    // The client has finished, or the server drains, which looks the same from here. What is still in the outbox is sent,
    // to a client that reads it.
    yield* Queue.end(outbox)
    yield* Fiber.join(sender).pipe(Effect.timeoutOption("2 seconds"))
  },
  (handled, connection) =>
    Effect.catchTag(
      handled,
      "NameTaken",
      ({ name }) => connection.write(`* ${name} is taken, come back with another name\n`)
    )
)

export const Chat = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Dispatch.fiberPerRequest({ maxInFlight: 100 }),
    Server.serveStream(chat)
  )

if (isMain(import.meta)) {
  runServer("chat", 9998, (port) => Layer.provide(Chat(port), [Room.layer, LineCount.layer]))
}
