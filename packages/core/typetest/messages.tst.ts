/** What of messages composes, and what must not compile. */
import {
  Admission,
  type DatagramTransport,
  Dispatch,
  Framing,
  Handler,
  type ListenError,
  MemoryTransport,
  type Message,
  type MessageTransport,
  Server,
  Transport,
  type WorkerDispatch
} from "@socketserver/core"
import { Context, Effect, type Layer, Schema, type Scope, Stream } from "effect"
import { describe, expect, test } from "tstyche"

class Store extends Context.Service<Store, { readonly get: Effect.Effect<string, "storeFailed"> }>()("Store") {}

const lines = MemoryTransport.stream().pipe(Transport.framed(Framing.lines()))
declare const workers: <A extends MessageTransport.Any>(
  layer: Layer.Layer<A>
) => Layer.Layer<A | WorkerDispatch.WorkerDispatch>
declare const datagrams: Layer.Layer<DatagramTransport.DatagramTransport>

const sums = Framing.ndjson({
  request: Schema.Struct({ add: Schema.Array(Schema.Number) }),
  reply: Schema.Union([Schema.Struct({ sum: Schema.Number }), Schema.Struct({ error: Schema.String })])
})

describe("a framing", () => {
  test("has the types of both directions, and its client the other way round", () => {
    expect(Framing.lines()).type.toBe<Framing.Framing<string, string>>()
    expect(Framing.netstring()).type.toBe<Framing.Framing<Uint8Array, Uint8Array>>()
    expect(Framing.text(Framing.netstring())).type.toBe<Framing.Framing<string, string>>()
    type Request = { readonly add: ReadonlyArray<number> }
    type Reply = { readonly sum: number } | { readonly error: string }
    expect(sums).type.toBe<Framing.Framing<Request, Reply>>()
    expect(Framing.swap(sums)).type.toBe<Framing.Framing<Reply, Request>>()
  })

  test("of another type than its schemas encode to does not compile", () => {
    expect(Framing.schema).type.not.toBeCallableWith(Framing.fixed(4), {
      request: Schema.NumberFromString,
      reply: Schema.NumberFromString
    })
    expect(Framing.text).type.not.toBeCallableWith(Framing.lines())
  })
})

describe("a server of messages", () => {
  test("is a transport, a framing, a strategy and a handler, whose message is typed by the framing", () => {
    expect(lines.pipe(
      Dispatch.serial(),
      Server.serveMessage((message) => {
        expect(message).type.toBe<Message.Message<string, string>>()
        return Effect.succeed(message.payload.toUpperCase())
      })
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(
      MemoryTransport.stream().pipe(
        Admission.maxConnections({ max: 1 }),
        Transport.framed(sums),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(({ payload }) => Effect.succeed({ sum: payload.add.length }))
      )
    ).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(
      datagrams.pipe(
        Transport.framed(Framing.whole()),
        Dispatch.fiberPerRequest(),
        Server.serveMessage(({ payload }) => Effect.succeed(payload))
      )
    ).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("may reply with nothing, or with a stream", () => {
    expect(lines.pipe(Dispatch.serial(), Server.serveMessage(() => Effect.void)))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(lines.pipe(Dispatch.serial(), Server.serveMessage(() => Effect.succeed(Stream.make("a", "b")))))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(lines.pipe(
      Dispatch.serial(),
      Server.serveMessage(({ payload, reply }) => payload === "" ? reply("a") : Effect.succeed("b"))
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("requires what its handler, its streams and its hooks need", () => {
    const handler = ({ payload }: Message.Message<string, string>) =>
      Effect.gen(function*() {
        yield* Effect.addFinalizer(() => Effect.void)
        yield* Server.Server
        return Stream.fromEffect(Effect.flatMap(Store, (store) => Effect.map(store.get, (it) => it + payload)))
      })
    expect(lines.pipe(Dispatch.serial(), Server.serveMessage(handler)))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, Store>>()
    expect(Server.makeMessage(handler)).type.toBe<
      Effect.Effect<
        Server.Server["Service"],
        ListenError.ListenError,
        MessageTransport.MessageTransport<string, string> | Dispatch.Dispatch | Scope.Scope | Store
      >
    >()
    expect(lines.pipe(
      Dispatch.serial(),
      Server.serveMessage(() => Effect.fail("no" as const), {
        onError: (cause, message) => {
          expect(message).type.toBe<Message.Message<string, string>>()
          expect(cause.reasons[0]).type.toBeAssignableTo<unknown>()
          return Effect.as(Effect.flatMap(Store, (store) => store.get), "sorry")
        },
        onInvalid: (error) => Effect.succeed(error.message)
      })
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, Store>>()
  })

  test("of values of a stream has nobody to answer", () => {
    const rows = Transport.fromStream(Stream.make({ id: 1 })).pipe(Dispatch.serial())
    expect(rows.pipe(Server.serveMessage(({ payload }) => Effect.log(payload.id))))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(Server.serveMessage<{ id: number }, never, never, never>).type.not.toBeCallableWith(() => Effect.succeed(1))
    expect(Transport.fromStream).type.not.toBeCallableWith(Stream.fail("no"))
  })

  test("without a framing does not compile", () => {
    const upper = Server.serveMessage(({ payload }: Message.Message<string, string>) => Effect.succeed(payload))
    expect(upper).type.not.toBeCallableWith(MemoryTransport.stream().pipe(Dispatch.serial()))
    expect(upper).type.not.toBeCallableWith(datagrams.pipe(Dispatch.serial()))
  })

  test("without a strategy, or with one before the framing, does not compile", () => {
    const upper = Server.serveMessage(({ payload }: Message.Message<string, string>) => Effect.succeed(payload))
    expect(upper).type.not.toBeCallableWith(lines)
    expect(upper).type.toBeCallableWith(lines.pipe(Dispatch.serial()))
  })

  test("with a framing of other messages, or other replies, does not compile", () => {
    const layer = lines.pipe(Dispatch.serial())
    expect(Server.serveMessage((_: Message.Message<Uint8Array, string>) => Effect.void))
      .type.not.toBeCallableWith(layer)
    expect(Server.serveMessage((_: Message.Message<string, number>) => Effect.void)).type.not.toBeCallableWith(layer)
    expect(Server.serveMessage<string, string, never, never>).type.not.toBeCallableWith(() => Effect.succeed(1))
  })

  test("cannot be served as connections, nor connections as messages", () => {
    expect(Server.serveStream((connection) => connection.write(""))).type.not.toBeCallableWith(
      lines.pipe(Dispatch.serial())
    )
  })

  test("with workers takes portable handlers only", () => {
    const plain = (message: Message.Message<string, string>) => Effect.succeed(message.payload)
    const portable = Handler.portable("file:///upper.ts", "upper", plain)
    const layer = lines.pipe(workers)
    expect(Server.serveMessage(plain)).type.not.toBeCallableWith(layer)
    expect(Server.serveMessage(portable)).type.toBeCallableWith(layer)
    expect(Server.serveMessage(portable)).type.toBeCallableWith(lines.pipe(Dispatch.serial()))
  })
})
