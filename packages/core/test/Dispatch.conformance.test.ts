/** The strategies, and one of a user's own, held to what every strategy must do. */
import { Dispatch } from "@socketserver/core"
import { DispatchSuite } from "@socketserver/testing"
import { Deferred, Effect } from "effect"

DispatchSuite.suite("serial", {
  dispatch: ({ queue }) => Dispatch.serial({ queue: { max: queue } }),
  maxInFlight: 1
})

DispatchSuite.suite("serial, refusing the oldest", {
  dispatch: ({ queue }) => Dispatch.serial({ queue: { max: queue, overflow: "refuseOldest" } }),
  maxInFlight: 1,
  overflow: "refuseOldest"
})

DispatchSuite.suite("fiberPerRequest", {
  dispatch: ({ maxInFlight, queue }) => Dispatch.fiberPerRequest({ maxInFlight, queue: { max: queue } })
})

DispatchSuite.suite("fiberPerRequest, refusing the oldest", {
  dispatch: ({ maxInFlight, queue }) =>
    Dispatch.fiberPerRequest({ maxInFlight, queue: { max: queue, overflow: "refuseOldest" } }),
  overflow: "refuseOldest"
})

/** The example in the documentation of `Dispatch`, as it stands there. */
const lastInFirstOut = (options: { readonly queue: number }) =>
  Dispatch.custom({
    name: "lastInFirstOut",
    make: Effect.sync(() => {
      const waiting: Array<Deferred.Deferred<void>> = []
      let running = false
      const next = Effect.suspend(() => {
        const turn = waiting.pop()
        running = turn !== undefined
        return turn === undefined ? Effect.void : Deferred.succeed(turn, undefined)
      })
      return (request) =>
        Effect.suspend(() => {
          if (running && waiting.length >= options.queue) return request.refuse("queue")
          const turn = Deferred.makeUnsafe<void>()
          if (running) waiting.push(turn)
          else Deferred.doneUnsafe(turn, Effect.void)
          running = true
          return Deferred.await(turn).pipe(
            Effect.andThen(request.handle),
            Effect.ensuring(Effect.suspend(() => {
              const index = waiting.indexOf(turn)
              if (index === -1) return next // It had its turn.
              waiting.splice(index, 1) // It was interrupted while it waited.
              return Effect.void
            }))
          )
        })
    })
  })

DispatchSuite.suite("a custom strategy, last in first out", {
  dispatch: lastInFirstOut,
  maxInFlight: 1,
  ordered: false
})
