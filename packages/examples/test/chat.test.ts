/** The chat room: a conversation with real clients, and in memory what is hard to bring about with them. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { Array as Arr, Cause, Effect, Layer } from "effect"
import { Chat, chat, Room } from "../src/chat.ts"
import { LineCount } from "../src/LineCount.ts"
import { targetOf, withEachClient } from "./utils.ts"

const Services = Layer.merge(Room.layer, LineCount.layer)

const InMemory = MemoryTransport.stream().pipe(
  Dispatch.fiberPerRequest(),
  Server.serveStream(chat),
  Layer.provideMerge(Services)
)

/** Comes into the room, and has read the welcome. */
const enter = Effect.fnUntraced(function*(name: string) {
  const client = yield* MemoryTransport.connect((yield* Server.Server).address)
  assert.strictEqual(yield* client.readLine(), "Your name?")
  yield* client.write(`${name}\n`)
  return { client, welcome: yield* client.readLine() }
})

describe("chat", () => {
  withEachClient("lets two people talk, and tells who comes and goes", (open) =>
    Effect.gen(function*() {
      const target = targetOf((yield* Server.Server).address)
      const alice = yield* open(target)
      assert.strictEqual(yield* alice.line, "Your name?")
      yield* alice.send("alice\n")
      assert.strictEqual(yield* alice.line, "* welcome, alice! Here: nobody yet")

      const bob = yield* open(target)
      assert.strictEqual(yield* bob.line, "Your name?")
      yield* bob.send("bob\n")
      assert.strictEqual(yield* bob.line, "* welcome, bob! Here: alice")
      assert.strictEqual(yield* alice.line, "* bob joined")

      yield* bob.send("hello\n")
      assert.strictEqual(yield* alice.line, "bob: hello")
      yield* alice.send("hi, bob\n")
      assert.strictEqual(yield* bob.line, "alice: hi, bob")

      yield* bob.finish
      assert.strictEqual(yield* alice.line, "* bob left")
      assert.deepStrictEqual(yield* bob.rest, [])
      yield* alice.finish
      assert.deepStrictEqual(yield* alice.rest, [])
    }).pipe(Effect.provide(Layer.provide(Chat(0), Services))))

  it.effect("turns a name away that somebody has, and gives it to the next when it is free", () =>
    Effect.gen(function*() {
      const { client: alice } = yield* enter("alice")
      const { client: other, welcome } = yield* enter("alice")
      assert.strictEqual(welcome, "* alice is taken, come back with another name")
      assert.isTrue(Cause.isDone(yield* Effect.flip(other.readLine())))

      yield* alice.end
      assert.isTrue(Cause.isDone(yield* Effect.flip(alice.readLine())))
      assert.strictEqual((yield* enter("alice")).welcome, "* welcome, alice! Here: nobody yet")
    }).pipe(Effect.provide(InMemory)))

  it.effect("keeps control characters from other people's terminals", () =>
    Effect.gen(function*() {
      const { client: alice } = yield* enter("alice")
      const { client: mallory } = yield* enter("mal\u001b[2Jlory")
      assert.strictEqual(yield* alice.readLine(), "* mal[2Jlory joined")
      yield* mallory.write("\u0007ding\r\n")
      assert.strictEqual(yield* alice.readLine(), "mal[2Jlory: ding")
    }).pipe(Effect.provide(InMemory)))

  it.effect("shows the name of each connection to whoever asks the server", () =>
    Effect.gen(function*() {
      yield* enter("alice")
      yield* enter("bob")
      const connections = yield* Server.Server.use((server) => server.connections.list)
      assert.deepStrictEqual(connections.map(({ annotations }) => annotations.get("name")), ["alice", "bob"])
    }).pipe(Effect.provide(InMemory)))

  it.effect("does not wait for a client that does not read: that one loses the oldest messages, others lose none", () =>
    Effect.gen(function*() {
      const { client: speaker } = yield* enter("speaker")
      const { client: sleeper } = yield* enter("sleeper")
      const { client: reader } = yield* enter("reader")
      assert.strictEqual(yield* speaker.readLine(), "* sleeper joined")
      assert.strictEqual(yield* speaker.readLine(), "* reader joined")

      // A megabyte, more than the buffers on the way to the sleeper hold.
      const messages = Arr.makeBy(1000, (n) => `${n} ${"z".repeat(1000)}`)
      for (const message of messages) {
        yield* speaker.write(`${message}\n`)
        assert.strictEqual(yield* reader.readLine(), `speaker: ${message}`)
      }

      yield* speaker.end
      assert.strictEqual(yield* reader.readLine(), "* speaker left")
      yield* sleeper.end
      const read: Array<string> = []
      yield* Effect.ignore(Effect.forever(Effect.tap(sleeper.readLine(), (line) => Effect.sync(() => read.push(line)))))
      assert.isBelow(read.length, messages.length)
      assert.deepStrictEqual(read.slice(-100), [
        ...messages.slice(-99).map((message) => `speaker: ${message}`),
        "* speaker left"
      ])
    }).pipe(Effect.provide(InMemory)))

  it.effect("drains by itself: everybody leaves, and what was said before arrives", () =>
    Effect.gen(function*() {
      const server = yield* Server.Server
      const { client: alice } = yield* enter("alice")
      const { client: bob } = yield* enter("bob")
      assert.strictEqual(yield* alice.readLine(), "* bob joined")
      yield* bob.write("last words\n")

      const report = yield* server.drain()

      assert.strictEqual(yield* alice.readLine(), "bob: last words")
      assert.strictEqual(report.idleClosed, 2)
      assert.deepStrictEqual((yield* server.stats).closed, { Drained: 2 })
    }).pipe(Effect.provide(InMemory)))
})
