/** What composes, and what must not compile: the pipe's order and the kinds of requests are in the types. */
import {
  Admission,
  type Connection,
  type ConnectionError,
  type Datagram,
  type DatagramTransport,
  Dispatch,
  Handler,
  type ListenError,
  MemoryTransport,
  Server,
  type StreamTransport,
  Transport,
  type WorkerDispatch
} from "@socketserver/core"
import { type Cause, Context, Effect, Layer, Schedule, type Scope, Stream, SubscriptionRef } from "effect"
import type { SocketServer } from "effect/socket"
import { describe, expect, test } from "tstyche"

class Store extends Context.Service<Store, { readonly get: Effect.Effect<string, "storeFailed"> }>()("Store") {}

declare const datagrams: Layer.Layer<DatagramTransport.DatagramTransport>

const stream = MemoryTransport.stream()
const echo = (connection: Connection.Connection) => Stream.run(connection.bytes, connection.sink)

describe("a server", () => {
  test("is a transport, a strategy and a handler", () => {
    expect(stream.pipe(Dispatch.serial(), Server.serveStream(echo)))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(stream.pipe(Dispatch.fiberPerRequest(), Server.serveStream(echo)))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("requires what its handler needs, but neither its Scope nor the Server itself", () => {
    const handler = () =>
      Effect.gen(function*() {
        yield* Effect.addFinalizer(() => Effect.void)
        const server = yield* Server.Server
        yield* server.stats
        return yield* Effect.flatMap(Store, (store) => store.get)
      })
    expect(stream.pipe(Dispatch.serial(), Server.serveStream(handler)))
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, Store>>()
    expect(Server.makeStream(handler)).type.toBe<
      Effect.Effect<
        Server.Server["Service"],
        ListenError.ListenError,
        StreamTransport.StreamTransport | Dispatch.Dispatch | Scope.Scope | Store
      >
    >()
  })

  test("types the connection of an inline handler, and the cause in `onError` by what the handler fails with", () => {
    stream.pipe(
      Dispatch.serial(),
      Server.serveStream(
        (connection) => {
          expect(connection).type.toBe<Connection.Connection>()
          return Effect.fail("typed" as const)
        },
        {
          onError: (cause) => {
            expect(cause).type.toBe<Cause.Cause<"typed">>()
            return Effect.void
          }
        }
      )
    )
  })

  test("requires what its hooks need", () => {
    expect(stream.pipe(
      Dispatch.serial(),
      Server.serveStream(echo, { onError: () => Effect.flatMap(Store, (store) => store.get) })
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, Store>>()
  })

  test("can have a tag of its own, and only that", () => {
    class Echo extends Server.Service<Echo>()("Echo") {}
    expect(stream.pipe(Dispatch.serial(), Server.serveStream(echo), Server.as(Echo)))
      .type.toBe<Layer.Layer<Echo, ListenError.ListenError>>()
    expect(Server.as).type.not.toBeCallableWith(Store)
  })

  test("can have work on a schedule, which may use it", () => {
    expect(stream.pipe(
      Dispatch.serial(),
      Server.serveStream(echo),
      Server.every(Schedule.spaced("1 second"), Effect.flatMap(Server.Server, (server) => server.stats))
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("serves datagrams, one by one or as sessions", () => {
    const server = datagrams.pipe(
      Admission.verifyDatagram(({ truncated }) => Effect.succeed(!truncated)),
      Dispatch.fiberPerRequest(),
      Server.serveDatagram(({ payload, reply }) => reply(payload))
    )
    expect(server).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(
      datagrams.pipe(Dispatch.serial(), Server.serveSessions(({ receive, send }) => Effect.flatMap(receive, send)))
    )
      .type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
  })

  test("may have limits in front of it, each for connections, packets or both", () => {
    expect(stream.pipe(
      Admission.deny(["192.0.2.0/24"]),
      Admission.maxConnections({ max: 10, overflow: Admission.queue({ timeout: "1 second" }) }),
      Admission.perPeer({ max: 1 }),
      Admission.rate({ limit: 10 }),
      Dispatch.serial(),
      Server.serveStream(echo)
    )).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError>>()
    expect(datagrams.pipe(Admission.allow(["::1"]), Admission.rate({ limit: 1 }), Admission.perPeer({ max: 1 })))
      .type.toBe<Layer.Layer<DatagramTransport.DatagramTransport>>()
  })

  test("may have limits that change", () => {
    const max = Effect.runSync(SubscriptionRef.make(1))
    const list = Effect.runSync(SubscriptionRef.make<ReadonlyArray<string>>([]))
    expect(stream.pipe(Admission.maxConnections({ max }), Admission.deny(list)))
      .type.toBe<Layer.Layer<StreamTransport.StreamTransport>>()
    expect(Admission.maxConnections).type.not.toBeCallableWith({ max: list })
  })

  test("bridges to and from Effect's SocketServer", () => {
    expect(stream.pipe(Dispatch.serial(), Transport.toSocketServer()))
      .type.toBe<Layer.Layer<SocketServer.SocketServer | Server.Server, ListenError.ListenError>>()
  })
})

describe("a server with workers", () => {
  /** As `NodeDispatch.workerPerRequest` has it. */
  const inWorkers = <A extends StreamTransport.StreamTransport | DatagramTransport.DatagramTransport, E, R>(
    transport: Layer.Layer<A, E, R>
  ): Layer.Layer<A | WorkerDispatch.WorkerDispatch, E, R> => transport as any

  const url = "file:///handlers.ts"
  const portable = Handler.portable(url, "echo", echo)
  const reply = ({ payload, reply }: Datagram.Datagram) => reply(payload)
  const portableReply = Handler.portable(url, "reply", reply)
  const stored = () => Effect.flatMap(Store, (store) => store.get)

  test("takes a portable handler, which goes with every strategy", () => {
    type Expected = Layer.Layer<Server.Server, ListenError.ListenError>
    expect(stream.pipe(inWorkers, Server.serveStream(portable))).type.toBe<Expected>()
    expect(stream.pipe(Dispatch.serial(), Server.serveStream(portable))).type.toBe<Expected>()
    expect(stream.pipe(Dispatch.fiberPerRequest(), Server.serveStream(portable))).type.toBe<Expected>()
    expect(datagrams.pipe(inWorkers, Server.serveDatagram(portableReply))).type.toBe<Expected>()
    expect(datagrams.pipe(Dispatch.serial(), Server.serveDatagram(portableReply))).type.toBe<Expected>()
  })

  test("does not take a function, which cannot travel", () => {
    expect(Server.serveStream(echo)).type.not.toBeCallableWith(stream.pipe(inWorkers))
    expect(Server.serveDatagram(reply)).type.not.toBeCallableWith(datagrams.pipe(inWorkers))
    expect(Server.serveSessions(({ receive }) => receive)).type.not.toBeCallableWith(datagrams.pipe(inWorkers))
  })

  test("does not take a handler of the other kind of requests", () => {
    expect(Server.serveDatagram(portableReply)).type.not.toBeCallableWith(stream.pipe(inWorkers))
    expect(Server.serveStream(portable)).type.not.toBeCallableWith(datagrams.pipe(inWorkers))
    expect(Server.serveDatagram).type.not.toBeCallableWith(portable)
    expect(Server.serveStream).type.not.toBeCallableWith(portableReply)
  })

  test("has a transport below its workers", () => {
    expect(Server.serveStream(portable)).type.not.toBeCallableWith(stream)
    expect(inWorkers).type.not.toBeCallableWith(stream.pipe(inWorkers, Server.serveStream(portable)))
  })

  test("needs a handler that brings the services that it needs", () => {
    expect(Handler.portable).type.not.toBeCallableWith(url, "stored", stored)
    expect(Handler.portable).type.not.toBeCallableWith(url, "stored", stored, {})
    expect(Handler.portable).type.not.toBeCallableWith(url, "stored", stored, { layer: Layer.empty })
    expect(Handler.portable(url, "stored", stored, { layer: Layer.succeed(Store, { get: Effect.succeed("it") }) }))
      .type.toBe<Handler.Portable<unknown, string, "storeFailed">>()
    // A layer that needs something itself could not be built in a worker.
    const Needy = Layer.effect(Store, Effect.map(Server.Server, () => ({ get: Effect.succeed("it") })))
    expect(Handler.portable).type.not.toBeCallableWith(url, "stored", stored, { layer: Needy })
  })

  test("gives a handler a scope, and not the server", () => {
    const scoped = () => Effect.addFinalizer(() => Effect.void)
    expect(Handler.portable(url, "scoped", scoped)).type.toBe<Handler.Portable<unknown, void, never>>()
    expect(Handler.portable).type.not.toBeCallableWith(url, "server", () => Server.Server.use(({ drain }) => drain()))
  })

  test("fails to start with what the handler's layer fails with, too", () => {
    const layer = Layer.effect(Store, Effect.fail("noDatabase" as const))
    const handler = Handler.portable(url, "stored", stored, { layer })
    type Expected = Layer.Layer<Server.Server, ListenError.ListenError | "noDatabase">
    expect(stream.pipe(inWorkers, Server.serveStream(handler))).type.toBe<Expected>()
    expect(stream.pipe(Dispatch.serial(), Server.serveStream(handler))).type.toBe<Expected>()
    expect(datagrams.pipe(inWorkers, Server.serveDatagram(handler))).type.toBe<Expected>()
  })

  test("types the cause in `onError` by what the handler fails with, and requires what the hook needs", () => {
    const handler = Handler.portable(url, "fail", (_: Connection.Connection) => Effect.fail("typed" as const))
    const server = stream.pipe(
      inWorkers,
      Server.serveStream(handler, {
        onError: (cause, connection) => {
          expect(cause).type.toBe<Cause.Cause<"typed">>()
          expect(connection).type.toBe<Connection.Connection>()
          return stored()
        }
      })
    )
    expect(server).type.toBe<Layer.Layer<Server.Server, ListenError.ListenError, Store>>()
  })

  test("is a scoped effect when its layer is built", () => {
    expect(stream.pipe(inWorkers, Server.serveStream(portable), Layer.build, Effect.map(Context.get(Server.Server))))
      .type.toBe<Effect.Effect<Server.Server["Service"], ListenError.ListenError, Scope.Scope>>()
  })
})

describe("what must not compile", () => {
  test("a stream handler on datagrams", () => {
    expect(datagrams.pipe).type.not.toBeCallableWith(Dispatch.serial(), Server.serveStream(echo))
    expect(Server.serveStream(echo)).type.not.toBeCallableWith(datagrams.pipe(Dispatch.serial()))
  })

  test("a datagram handler on connections", () => {
    const reply = ({ payload, reply }: Datagram.Datagram) => reply(payload)
    expect(Server.serveDatagram(reply)).type.toBeCallableWith(datagrams.pipe(Dispatch.serial()))
    expect(Server.serveDatagram(reply)).type.not.toBeCallableWith(stream.pipe(Dispatch.serial()))
    expect(Server.serveDatagram(reply)).type.not.toBeCallableWith(datagrams)
    expect(Server.serveSessions(({ receive }) => receive)).type.not.toBeCallableWith(stream.pipe(Dispatch.serial()))
    expect(Server.serveDatagram).type.not.toBeCallableWith(echo)
    expect(Admission.verifyDatagram(() => Effect.succeed(true))).type.not.toBeCallableWith(stream)
  })

  test("a server without a dispatch", () => {
    expect(Server.serveStream(echo)).type.not.toBeCallableWith(stream)
    expect(Server.serveStream(echo)).type.toBeCallableWith(stream.pipe(Dispatch.serial()))
    expect(Transport.toSocketServer()).type.not.toBeCallableWith(stream)
  })

  test("the pipe in the wrong order", () => {
    const server = stream.pipe(Dispatch.serial(), Server.serveStream(echo))
    expect(Dispatch.serial()).type.not.toBeCallableWith(server)
    expect(Dispatch.serial()).type.not.toBeCallableWith(stream.pipe(Dispatch.serial()))
    const verify = Admission.verify(() => Effect.succeed(true))
    expect(verify).type.toBeCallableWith(stream)
    // Behind the dispatch, a transport's step gives a transport again: there is no strategy left to serve with.
    expect(Server.serveStream(echo)).type.not.toBeCallableWith(verify(stream.pipe(Dispatch.serial())))
    expect(Server.serveStream(echo)).type.toBeCallableWith(verify(stream).pipe(Dispatch.serial()))
    expect(verify).type.not.toBeCallableWith(server)
    expect(verify).type.not.toBeCallableWith(datagrams)
  })

  test("a limit behind the dispatch, or on what it cannot limit", () => {
    expect(Admission.rate({ limit: 1 })).type.not.toBeCallableWith(stream.pipe(Dispatch.serial()))
    expect(Admission.maxConnections({ max: 1 })).type.not.toBeCallableWith(datagrams)
    expect(Admission.perPeer).type.not.toBeCallableWith({ max: 1, overflow: Admission.pauseListening })
  })

  test("a handler that is not an effect", () => {
    expect(Server.serveStream).type.not.toBeCallableWith(() => 1)
    expect(Server.serveStream).type.not.toBeCallableWith((connection: Connection.Connection, more: string) =>
      connection.write(more)
    )
  })

  test("an option that does not exist, or has the wrong type", () => {
    expect(Server.serveStream).type.not.toBeCallableWith(echo, { idleTimeot: "1 second" })
    expect(Dispatch.fiberPerRequest).type.not.toBeCallableWith({ maxInFlight: "10" })
    expect(Dispatch.serial).type.not.toBeCallableWith({ queue: { overflow: "dropNewest" } })
  })
})

describe("a connection", () => {
  test("reports end of input as `Done`, apart from its errors", () => {
    expect<Connection.Connection["readLine"]>().type.toBe<
      (options?: Connection.ReadOptions) => Effect.Effect<string, ConnectionError.ConnectionError | Cause.Done>
    >()
    expect<Connection.Connection["readAll"]>().type.toBe<
      (options?: Connection.ReadOptions) => Effect.Effect<Uint8Array, ConnectionError.ConnectionError>
    >()
  })

  test("lets its reasons be caught by tag", () => {
    const read = (connection: Connection.Connection) => connection.readLine()
    const caught = (connection: Connection.Connection) =>
      read(connection).pipe(
        Effect.catchReason("ConnectionError", "LimitExceeded", (reason) => Effect.succeed(reason.limit))
      )
    expect(caught).type.toBe<
      (
        connection: Connection.Connection
      ) => Effect.Effect<string | number, ConnectionError.ConnectionError | Cause.Done>
    >()
  })
})
