/** A server in memory for a test: built in the test's scope, with the handler under test. */
import { Dispatch, MemoryTransport, Server } from "@socketserver/core"
import { Context, Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"

export const startWith = (step: ReturnType<typeof Dispatch.custom>) =>
<E, R, RError = never, RTimeout = never>(
  handler: Server.StreamHandler<E, R>,
  options?: Server.ServerOptions<NoInfer<E>, RError, RTimeout>
) =>
  Effect.map(
    Layer.build(MemoryTransport.stream().pipe(step, Server.serveStream(handler, options))),
    (context) => Context.get(context, Server.Server)
  )

export const start = startWith(Dispatch.fiberPerRequest())
export const startSerial = startWith(Dispatch.serial())

/** Lets everything that can run do so, without moving the clock. */
export const settle = TestClock.adjust(0)

/** Forks, and lets it run until it waits. */
export const forkSettled = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), () => settle)

export const joinAfter = <A, E>(fiber: Fiber.Fiber<A, E>, duration: Parameters<typeof TestClock.adjust>[0]) =>
  Effect.andThen(TestClock.adjust(duration), Fiber.join(fiber))
