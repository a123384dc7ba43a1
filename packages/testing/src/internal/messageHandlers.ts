/** The handler of the message suite: it does what its message says. A worker imports this module. */
import * as Handler from "@socketserver/core/Handler"
import type { Message } from "@socketserver/core/Message"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { waitAt } from "./gate.ts"

class Oops extends Error {
  readonly _tag = "Oops"
}

class Greeting extends Context.Service<Greeting, string>()("@socketserver/testing/messages/Greeting") {}

type Result = Effect.Effect<string | void | Stream.Stream<string>, unknown, Greeting | Scope.Scope>

const act = ({ draining, payload, reply, sender }: Message<string, string>): Result => {
  const [command, first, second] = payload.split(" ")
  switch (command) {
    case "hold":
      return Effect.as(waitAt(Number(first), second!), second)
    case "later":
      return Effect.as(Effect.yieldNow, payload)
    case "nothing":
      return Effect.void
    case "stream":
      return Effect.succeed(Stream.range(1, Number(first)).pipe(Stream.rechunk(1), Stream.map(String)))
    case "flood":
      return Effect.succeed(
        Stream.range(1, Number(first)).pipe(Stream.rechunk(1), Stream.map((n) => `${n} `.padEnd(Number(second), "x")))
      )
    case "early":
      return Effect.as(Effect.andThen(reply("early"), reply("earlier than the last")), "last")
    case "push":
      return Effect.as(Effect.andThen(sender.annotate("pushed", first), sender.send(`pushed ${first}`)), `${sender.id}`)
    case "draining":
      return Effect.as(Effect.andThen(waitAt(Number(first), "draining"), draining), "draining")
    case "greet":
      return Effect.gen(function*() {
        yield* Effect.addFinalizer(() => Effect.ignore(reply("finalized")))
        return yield* Greeting
      })
    case "quit":
      return Effect.as(sender.close, "bye")
    case "fail":
    case "!fail":
      return Effect.fail(new Oops("typed"))
    case "die":
      return Effect.die(new Error("defect"))
    case "unencodable":
      return Effect.succeed("two\nlines")
    case "exit":
      return Effect.sync(() => process.exit(1))
    default:
      return Effect.succeed(payload.toUpperCase())
  }
}

export const obey = Handler.portable(import.meta.url, "obey", act, { layer: Layer.succeed(Greeting, "hello") })
