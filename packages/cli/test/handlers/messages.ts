/** Handlers of messages, and framings, for the tests of the command. */
import { Framing, Handler, type Message } from "@socketserver/core"
import { Context, Effect, Layer, Schema, Stream } from "effect"
import { isMainThread } from "node:worker_threads"

type Text = Message.Message<string, string>

const Request = Schema.Struct({ add: Schema.Array(Schema.Number) })
const Reply = Schema.Struct({ sum: Schema.Number })

export const framing = Framing.ndjson({ request: Request, reply: Reply })

export default ({ payload }: Message.Message<typeof Request.Type, typeof Reply.Type>) =>
  Effect.succeed({ sum: payload.add.reduce((a, b) => a + b, 0) })

export const semicolons = Framing.text(Framing.delimiter(";"))

export const upper = ({ payload }: Text) => Effect.succeed(payload.toUpperCase())

export const echo = ({ payload }: Message.Message<unknown, unknown>) => Effect.succeed(payload)

class Greeting extends Context.Service<Greeting, string>()("cli/test/Greeting") {}

/** Where it runs, and then a reply for whose making it needs its service. */
export const where = Handler.portable(
  import.meta.url,
  "where",
  ({ payload }: Text) =>
    Effect.map(Greeting, (greeting) =>
      Stream.make(`${process.pid} ${isMainThread}`).pipe(
        Stream.concat(Stream.fromEffect(Effect.map(Greeting, (again) => `${greeting} ${again} ${payload}`)))
      )),
  { layer: Layer.succeed(Greeting, "hello") }
)
