/** Our servers as Effect's `SocketServer`, and the other way round, where something goes wrong between them. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, Logging, MemoryTransport, Server, type ServerEvent, Transport } from "@socketserver/core"
import { Context, Effect, Fiber, Layer } from "effect"
import { NetAddress } from "effect/net"
import { type Socket, SocketServer } from "effect/socket"
import { TestClock } from "effect/testing"
import { settle } from "./utils.ts"

const collecting = () => {
  const errors: Array<ServerEvent.ServerEvent> = []
  const layer = Logging.layer({
    log: (event) => Effect.sync(() => Logging.level(event) === "Error" && errors.push(event))
  })
  return { errors, layer }
}

describe("a SocketServer of ours", () => {
  it.effect("leaves its clients waiting where a `run` is interrupted before it has come to them", () => {
    const { errors, layer } = collecting()
    return Effect.gen(function*() {
      const context = yield* Layer.build(
        MemoryTransport.stream().pipe(
          Dispatch.fiberPerRequest(),
          Transport.toSocketServer({ shutdown: { grace: 0 } })
        )
      )
      const { run } = Context.get(context, SocketServer.SocketServer)
      const server = Context.get(context, Server.Server)
      const client = yield* MemoryTransport.connect(server.address)
      yield* settle
      const first = yield* Effect.forkChild(run(() => Effect.die("not for this one")), { startImmediately: true })
      yield* Fiber.interrupt(first)
      yield* settle
      assert.deepStrictEqual([(yield* server.stats).open, errors], [1, []])
      yield* Effect.forkChild(
        run(Effect.fnUntraced(function*(socket: Socket.Socket) {
          yield* (yield* socket.writer).write("hello\n")
        }, Effect.scoped)),
        { startImmediately: true }
      )
      assert.strictEqual(yield* client.readLine(), "hello")
    }).pipe(Effect.provide(layer))
  })
})

describe("a transport that is a SocketServer", () => {
  it.effect("says so when that fails: nobody is accepted any more", () => {
    const { errors, layer } = collecting()
    return Effect.gen(function*() {
      const broken = SocketServer.SocketServer.of({
        address: NetAddress.unixPathAddress("memory:broken"),
        run: () =>
          Effect.delay(
            Effect.fail(
              new SocketServer.SocketServerError({
                reason: new SocketServer.SocketServerUnknownError({ cause: "EBADF" })
              })
            ),
            "1 second"
          )
      })
      yield* Layer.build(
        Transport.fromSocketServer(Layer.succeed(SocketServer.SocketServer, broken)).pipe(
          Dispatch.serial(),
          Server.serveStream(() => Effect.void)
        )
      )
      assert.deepStrictEqual(errors, [])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(errors.map(({ _tag }) => _tag), ["Problem"])
    }).pipe(Effect.provide(layer))
  })
})
