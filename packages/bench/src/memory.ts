/** The in-memory transport and the start of a server: what a test suite pays. */
import { Dispatch, Logging, MemoryTransport, Server } from "@socketserver/core"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const Echo = Effect.map(
  Effect.suspend(() =>
    Layer.build(
      MemoryTransport.stream().pipe(
        Dispatch.fiberPerRequest(),
        Server.serveStream((connection) => Effect.forever(Effect.flatMap(connection.pull, connection.write))),
        Layer.provide(Logging.off)
      )
    )
  ),
  Context.get(Server.Server)
)

export const memoryBench = async (
  duration: number
): Promise<{ readonly perSecond: number; readonly millis: number }> => {
  const exchanges = Effect.gen(function*() {
    const server = yield* Echo
    const client = yield* MemoryTransport.connect(server.address)
    const request = new Uint8Array(64)
    const began = performance.now()
    let count = 0
    while (performance.now() - began < duration) {
      yield* client.write(request)
      yield* client.pull
      count++
    }
    return count / (performance.now() - began) * 1_000
  })
  const lifetimes = Effect.gen(function*() {
    const began = performance.now()
    let count = 0
    while (performance.now() - began < duration) {
      yield* Effect.scoped(Effect.flatMap(Echo, (server) => MemoryTransport.connect(server.address)))
      count++
    }
    return (performance.now() - began) / count
  })
  const perSecond = await Effect.runPromise(Effect.scoped(exchanges))
  const millis = await Effect.runPromise(lifetimes)
  console.log(`in-memory transport: ${perSecond.toFixed(0)} requests/s on one connection`)
  console.log(`in-memory server, started, one client, drained: ${millis.toFixed(2)} ms`)
  return { perSecond, millis }
}
