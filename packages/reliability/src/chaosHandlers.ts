/** Handlers that do what they are told, for good or bad; workers import this module. */
import { type Connection, type Datagram, Handler } from "@socketserver/core"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"

/** In a worker a handler may end what it runs in. */
const inWorker = process.env["CHAOS_WORKER"] === "1"

class Asked extends Data.TaggedError("Asked") {}

const endsItself = (what: () => never): Effect.Effect<never> =>
  Effect.suspend(() => inWorker ? what() : Effect.die(new Error("asked for")))

const deed = (what: string): Effect.Effect<void, Asked> => {
  switch (what) {
    case "fail":
      return Effect.fail(new Asked())
    case "die":
      return Effect.die(new Error("asked for"))
    case "interrupt":
      return Effect.interrupt
    case "exit":
      return endsItself(() => process.exit(1))
    case "loop":
      return endsItself(() => {
        for (;;);
      })
    case "nap":
      return Effect.sleep("50 millis")
    default:
      return Effect.void
  }
}

const asked = /^echo (.*)$/s

/** What is not what was sent: an echo of the system's would be found out. */
export const answerTo = (text: string): string => text.split("").toReversed().join("")

export const obey = Handler.portable(
  import.meta.url,
  "obey",
  (connection: Connection.Connection) =>
    Effect.forever(Effect.gen(function*() {
      const line = yield* connection.readLine({ maxLength: 300_000 })
      const text = asked.exec(line)?.[1]
      if (text !== undefined) yield* connection.write(`${answerTo(text)}\n`)
      else if (line === "big") yield* connection.write("x".repeat(1_000_000))
      else yield* deed(line)
    }))
)

export const obeyPacket = Handler.portable(
  import.meta.url,
  "obeyPacket",
  Effect.fnUntraced(function*({ payload, reply }: Datagram.Datagram) {
    const line = new TextDecoder().decode(payload)
    const text = asked.exec(line)?.[1]
    if (text !== undefined) yield* reply(answerTo(text))
    else yield* deed(line)
  })
)
