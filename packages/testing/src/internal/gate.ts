/**
 * A place where handlers wait until a test lets them go, from wherever they run: each connects, says its name, and goes on when
 * it is told to.
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import { Conditions } from "./waiting.ts"

/** For a handler: waits at the gate of that port, under that name. */
export const waitAt = (port: number, name: string): Effect.Effect<void> =>
  Effect.callback((resume) => {
    const socket = Net.connect(port, "127.0.0.1", () => socket.write(`${name}\n`))
    socket.once("data", () => {
      socket.destroy()
      resume(Effect.void)
    })
    socket.on("error", (error) => resume(Effect.die(error)))
    return Effect.sync(() => socket.destroy())
  })

export interface Gate {
  readonly port: number
  /** Who has come, in order. */
  readonly began: ReadonlyArray<string>
  /** Waits until so many have come. */
  readonly awaitBegan: (count: number) => Effect.Effect<void>
  /** Lets one go that has come. */
  readonly open: (name: string) => Effect.Effect<void>
  /** Waits until these have gone without being told to: they were interrupted. */
  readonly awaitLeft: (...names: ReadonlyArray<string>) => Effect.Effect<void>
}

export const makeGate = Effect.gen(function*() {
  const conditions = new Conditions()
  const began: Array<string> = []
  const waiting = new Map<string, Net.Socket>()
  const left = new Set<string>()
  const server = yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer((socket) => {
        socket.on("error", () => {})
        socket.once("data", (data) => {
          const name = data.toString().trimEnd()
          began.push(name)
          waiting.set(name, socket)
          socket.once("close", () => {
            if (waiting.delete(name)) left.add(name)
            conditions.check()
          })
          conditions.check()
        })
      }).listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.callback<void>((resume) => {
        for (const socket of waiting.values()) socket.destroy()
        server.close(() => resume(Effect.void))
      })
  )
  const gate: Gate = {
    port: (server.address() as Net.AddressInfo).port,
    began,
    awaitBegan: (count) =>
      conditions.until(() => `${count} handlers begin, not only ${began.join(", ")}`, () => began.length >= count),
    open: (name) =>
      Effect.sync(() => {
        const socket = waiting.get(name)
        if (socket === undefined) throw new Error(`${name} does not wait`)
        waiting.delete(name)
        socket.end("go\n")
      }),
    awaitLeft: (...names) =>
      conditions.until(`${names.join(", ")} are interrupted`, () => names.every((name) => left.has(name)))
  }
  return gate
})
