/** The strategies' own bounds: how many run, how many wait, and who has to go. */
import { assert, describe, it } from "@effect/vitest"
import { Dispatch, MemoryTransport } from "@socketserver/core"
import { Cause, Deferred, Effect } from "effect"
import { settle, startWith } from "./utils.ts"

/** A server whose handlers tell when they begin, and end when they are told to. */
const controlled = (step: Parameters<typeof startWith>[0]) =>
  Effect.gen(function*() {
    const begun: Array<number> = []
    const gates = new Map<number, Deferred.Deferred<void>>()
    const gate = (id: number) => {
      if (!gates.has(id)) gates.set(id, Deferred.makeUnsafe())
      return gates.get(id)!
    }
    let running = 0
    let most = 0
    const server = yield* startWith(step)((connection) =>
      Effect.suspend(() => {
        begun.push(connection.id)
        most = Math.max(most, ++running)
        return Effect.ensuring(Deferred.await(gate(connection.id)), Effect.sync(() => running--))
      })
    )
    yield* Effect.addFinalizer(() => Effect.forEach(begun, (id) => Deferred.succeed(gate(id), undefined)))
    return {
      server,
      begun,
      most: () => most,
      finish: (id: number) => Effect.andThen(Deferred.succeed(gate(id), undefined), settle)
    }
  })

describe("serial", () => {
  it.effect("runs one request at a time, in order of arrival", () =>
    Effect.gen(function*() {
      const { begun, finish, most, server } = yield* controlled(Dispatch.serial())
      yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 4)
      yield* settle
      for (let id = 1; id <= 4; id++) {
        assert.deepStrictEqual(begun, Array.from({ length: id }, (_, i) => i + 1))
        yield* finish(id)
      }
      yield* server.awaitIdle
      assert.strictEqual(most(), 1)
    }))
})

describe("fiberPerRequest", () => {
  it.effect("runs as many as `maxInFlight`, and the next when one has ended", () =>
    Effect.gen(function*() {
      const { begun, finish, most, server } = yield* controlled(Dispatch.fiberPerRequest({ maxInFlight: 3 }))
      yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 6)
      yield* settle
      assert.deepStrictEqual(begun, [1, 2, 3])
      yield* finish(2)
      assert.deepStrictEqual(begun, [1, 2, 3, 4])
      for (const id of [1, 3, 4, 5, 6]) yield* finish(id)
      yield* server.awaitIdle
      assert.deepStrictEqual(begun, [1, 2, 3, 4, 5, 6])
      assert.strictEqual(most(), 3)
    }))
})

describe("the queue", () => {
  const queues = [
    ["serial", (queue: Dispatch.QueueOptions) => Dispatch.serial({ queue })],
    ["fiberPerRequest", (queue: Dispatch.QueueOptions) => Dispatch.fiberPerRequest({ maxInFlight: 1, queue })]
  ] as const
  for (const [name, step] of queues) {
    it.effect(`of ${name} holds \`max\` requests and refuses the newest beyond`, () =>
      Effect.gen(function*() {
        const { begun, finish, server } = yield* controlled(step({ max: 2 }))
        const clients = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 4)
        assert.isTrue(Cause.isDone(yield* Effect.flip(clients[3]!.pull)))
        assert.deepStrictEqual((yield* server.stats).refused, { queue: 1 })
        assert.strictEqual((yield* server.stats).queued, 2)
        for (const id of [1, 2, 3]) yield* finish(id)
        yield* server.awaitIdle
        assert.deepStrictEqual(begun, [1, 2, 3])
      }))

    it.effect(`of ${name} refuses the oldest, if so told`, () =>
      Effect.gen(function*() {
        const { begun, finish, server } = yield* controlled(step({ max: 2, overflow: "refuseOldest" }))
        const clients = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 5)
        for (const oldest of [1, 2]) assert.isTrue(Cause.isDone(yield* Effect.flip(clients[oldest]!.pull)))
        assert.deepStrictEqual((yield* server.stats).refused, { queue: 2 })
        for (const id of [1, 4, 5]) yield* finish(id)
        yield* server.awaitIdle
        assert.deepStrictEqual(begun, [1, 4, 5])
      }))

    it.effect(`of ${name} lets none wait with a \`max\` of 0, whoever is to be refused`, () =>
      Effect.gen(function*() {
        for (const overflow of ["refuseNewest", "refuseOldest"] as const) {
          const { begun, finish, server } = yield* controlled(step({ max: 0, overflow }))
          const [, second] = yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 2)
          assert.isTrue(Cause.isDone(yield* Effect.flip(second!.pull)))
          yield* finish(1)
          yield* server.awaitIdle
          yield* MemoryTransport.connect(server.address)
          yield* finish(3)
          assert.deepStrictEqual(begun, [1, 3])
        }
      }))
  }

  it.effect("is 1,024 long by default", () =>
    Effect.gen(function*() {
      const { server } = yield* controlled(Dispatch.serial())
      yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 1 + 1_024 + 1, { discard: true })
      yield* settle
      const { open, queued, refused } = yield* server.stats
      assert.deepStrictEqual([open, queued, refused], [1_025, 1_024, { queue: 1 }])
      yield* Effect.forkChild(server.drain(), { startImmediately: true })
    }))

  it.effect(
    "hands a place on to thousands that end at once, in a loop and not in a recursion",
    () =>
      Effect.gen(function*() {
        const gate = Deferred.makeUnsafe<void>()
        const server = yield* startWith(Dispatch.serial({ queue: { max: 20_000 } }))(({ id }) =>
          id === 1 ? Deferred.await(gate) : Effect.void
        )
        yield* Effect.replicateEffect(MemoryTransport.connect(server.address), 20_000, { discard: true })
        yield* Deferred.succeed(gate, undefined)
        yield* server.awaitIdle
        assert.deepStrictEqual((yield* server.stats).closed, { Completed: 20_000 })
      }),
    60_000
  )
})
