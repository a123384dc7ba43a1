/**
 * What the handlers of the dispatch suite do. A worker imports this module; inline, the suite runs the same on its own terms.
 * A handler says `begun`, its request's id and the time, waits until it is told how to end, and says `ended` and the time.
 */
import type { Connection } from "@socketserver/core/Connection"
import * as Handler from "@socketserver/core/Handler"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export class Oops extends Error {
  readonly _tag = "Oops"
}

/** A service for handlers that need one. */
export class Greeting extends Context.Service<Greeting, string>()("@socketserver/testing/Greeting") {}

/** How a handler can be told to end; `exit` takes its worker along, and `compute` is none, nor hears of any. */
export type Ending = "return" | "fail" | "die" | "interrupt" | "exit" | "compute"

/** The same clock in all threads and processes of a machine. */
const say = ({ id, write }: Connection, what: "begun" | "computes" | "ended"): Effect.Effect<void> =>
  Effect.ignore(Effect.suspend(() => write(`${what} ${id} ${process.hrtime.bigint()}\n`)))

export const endBy = (ending: string, connection: Connection): Effect.Effect<void, Oops> => {
  switch (ending) {
    case "return":
      return Effect.void
    case "fail":
      return Effect.fail(new Oops("typed"))
    case "die":
      return Effect.die(new Error("defect"))
    case "interrupt":
      return Effect.interrupt
    case "exit":
      return Effect.sync(() => process.exit(1))
    case "compute":
      return Effect.map(say(connection, "computes"), () => {
        for (;;);
      })
    default:
      return Effect.die(new Error(`a handler of the suite was told to ${JSON.stringify(ending)}`))
  }
}

/** Ends as it is told, or else, where it heeds a drain, with that. */
export const handle = <E, R>(
  connection: Connection,
  told: Effect.Effect<void, E, R>,
  heedDrain: boolean
): Effect.Effect<void, E, R> =>
  say(connection, "begun").pipe(
    Effect.andThen(heedDrain ? Effect.raceFirst(told, connection.draining) : told),
    Effect.ensuring(say(connection, "ended"))
  )

/** The client tells it, in a line. It is not idle meanwhile: a drain does not end it. A client that goes lets it return. */
const toldByClient = (connection: Connection) =>
  connection.busy(connection.readLine()).pipe(
    Effect.catchIf(Cause.isDone, () => Effect.succeed("return")),
    Effect.flatMap((ending) => endBy(ending, connection))
  )

export const steadfast = Handler.portable(
  import.meta.url,
  "steadfast",
  (connection: Connection) => handle(connection, toldByClient(connection), false)
)

export const heedful = Handler.portable(
  import.meta.url,
  "heedful",
  (connection: Connection) => handle(connection, toldByClient(connection), true)
)

const hello = Layer.succeed(Greeting, "hello")

export const greeting = Handler.portable(
  import.meta.url,
  "greeting",
  (connection: Connection) =>
    Effect.gen(function*() {
      yield* Effect.addFinalizer(() => Effect.ignore(connection.write("finalized\n")))
      yield* connection.write(`${yield* Greeting}\n`)
    }),
  { layer: hello }
)
