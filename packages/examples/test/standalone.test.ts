/** Each small server runs by itself, as a program: it says where it listens, and stops when it is asked to. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect } from "effect"
import { connect, startExample, targetIn } from "./utils.ts"

const conversations = [
  { name: "echo", send: "hello\n", expected: /^hello$/ },
  { name: "upper", send: "hello\n", expected: /^HELLO$/ },
  { name: "chat", send: "", expected: /^Your name\?$/ },
  { name: "hash", send: "hash password\n", expected: /^\$scrypt\$/ },
  { name: "time", send: "", expected: /^\d{4}-\d\d-\d\dT/ }
]

describe("an example that runs by itself", () => {
  for (const { expected, name, send } of conversations) {
    it.live(`${name}: serves, and on SIGINT ends its clients, reports, and exits with 0`, () =>
      Effect.gen(function*() {
        const program = yield* startExample(name, { PORT: "0" })
        const client = yield* connect(targetIn(yield* program.line))
        yield* client.send(send)
        assert.match(yield* client.line, expected)
        yield* program.signal("SIGINT")
        assert.isTrue(Cause.isDone(yield* Effect.flip(client.line)))
        const report = yield* program.rest
        assert.strictEqual(report.length, 1)
        assert.match(report[0]!, new RegExp(`^${name}: drained in \\d+ ms; `))
        assert.deepStrictEqual(yield* program.errors, [])
        assert.strictEqual(yield* program.exitCode, 0)
      }))
  }

  it.live("inMemory: plays one game, and ends", () =>
    Effect.gen(function*() {
      const program = yield* startExample("inMemory", {})
      const transcript = yield* program.rest
      assert.strictEqual(transcript[0], "server: a number from 1 to 100?")
      assert.match(transcript.at(-1)!, /^server: yes, with [1-7] tries$/)
      assert.strictEqual(yield* program.exitCode, 0)
    }))
})
