/**
 * A server of JSON, a document a line: it adds numbers, and keeps a total for each connection. Requests and replies are typed by
 * schemas; what they do not allow is answered, and the connection goes on. The handler is a function from message to reply.
 */
import { Dispatch, Framing, type Message, type MessageTransport, Server, Transport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Effect, type Layer, Schema } from "effect"
import { isMain, runServer } from "./run.ts"

const Request = Schema.Union([
  Schema.Struct({ add: Schema.Array(Schema.Finite) }),
  Schema.Struct({ quit: Schema.Literal(true) })
])
const Reply = Schema.Union([
  Schema.Struct({ sum: Schema.Finite, total: Schema.Finite }),
  Schema.Struct({ bye: Schema.Finite }),
  Schema.Struct({ error: Schema.String })
])

export const framing = Framing.ndjson({ request: Request, reply: Reply, maxLength: 4_096 })

type Sender = Message.Sender<typeof Reply.Type>

const makeHandler = () => {
  // By connection: what is gone is forgotten.
  const totals = new WeakMap<Sender, number>()
  return ({ payload, sender }: Message.Message<typeof Request.Type, typeof Reply.Type>) => {
    const total = totals.get(sender) ?? 0
    if ("quit" in payload) return Effect.as(sender.close, { bye: total })
    const sum = payload.add.reduce((sum, n) => sum + n, 0)
    totals.set(sender, total + sum)
    return Effect.succeed({ sum, total: total + sum })
  }
}

type Transported = Layer.Layer<
  MessageTransport.MessageTransport<typeof Request.Type, typeof Reply.Type> | Dispatch.Dispatch
>

export const serveSums = (transported: Transported) =>
  transported.pipe(
    Server.serveMessage(makeHandler(), {
      onInvalid: (error) => Effect.succeed({ error: error.isRecoverable ? "not a request" : error.message })
    })
  )

export const Sums = (port: number) =>
  NodeTransport.tcp({ host: "127.0.0.1", port }).pipe(
    Transport.framed(framing),
    Dispatch.fiberPerRequest({ maxInFlight: 1024 }),
    serveSums
  )

if (isMain(import.meta)) runServer("sums", 9999, Sums)
