/**
 * Who listens to which channel of the Redis server. Each listener has an outbox, and a fiber that sends what is in it, so nobody
 * waits for anybody; a listener that reads too slowly is disconnected, as Redis does it.
 */
import type { Message } from "@socketserver/core"
import { Context, Effect, Fiber, Layer, Queue } from "effect"
import { copyOf, type Reply } from "./resp.ts"

type Sender = Message.Sender<Reply>

interface Listener {
  readonly channels: Set<string>
  readonly outbox: Queue.Queue<ReadonlyArray<string>>
  /** In the outbox, in bytes. */
  waiting: number
}

/** A listener that is so many bytes behind has lost its connection. */
const maxWaiting = 2 ** 23
/** What a message takes in an outbox besides its own bytes: about that. */
const messageOverhead = 100

const make = Effect.gen(function*() {
  const listeners = new Map<Sender, Listener>()
  const channels = new Map<string, Set<Sender>>()
  const context = yield* Effect.context<never>()
  const run = Fiber.runIn(yield* Effect.scope)

  const leave = (sender: Sender, channel: string): void => {
    const senders = channels.get(channel)
    senders?.delete(sender)
    if (senders?.size === 0) channels.delete(channel)
    listeners.get(sender)?.channels.delete(channel)
  }

  const forget = (sender: Sender): void => {
    for (const channel of listeners.get(sender)?.channels ?? []) leave(sender, channel)
    listeners.delete(sender)
  }

  const send = (sender: Sender, listener: Listener) =>
    Effect.forever(Effect.flatMap(Queue.take(listener.outbox), (message) => {
      listener.waiting -= sizeOf(message)
      return sender.send(message)
    }))

  /** It is forgotten when its connection is gone. */
  const listen = (sender: Sender): Listener => {
    const listener: Listener = { channels: new Set(), outbox: Effect.runSync(Queue.unbounded()), waiting: 0 }
    listeners.set(sender, listener)
    const life = Effect.raceFirst(sender.closed, Effect.ignore(send(sender, listener)))
    run(Effect.runForkWith(context)(Effect.ensuring(life, Effect.sync(() => forget(sender)))))
    return listener
  }

  return {
    /** The channels that it listens to, if it does. */
    of: (sender: Sender): ReadonlySet<string> => listeners.size === 0 ? none : listeners.get(sender)?.channels ?? none,
    join: (sender: Sender, name: string): void => {
      const channel = copyOf(name)
      const listener = listeners.get(sender) ?? listen(sender)
      listener.channels.add(channel)
      const senders = channels.get(channel)
      if (senders === undefined) channels.set(channel, new Set([sender]))
      else senders.add(sender)
    },
    leave,
    /** How many it was sent to. */
    publish: (channel: string, text: string): number => {
      const senders = channels.get(channel) ?? []
      const message = ["message", copyOf(channel), copyOf(text)]
      const size = sizeOf(message)
      let count = 0
      for (const sender of senders) {
        const listener = listeners.get(sender)!
        listener.waiting += size
        if (listener.waiting > maxWaiting) {
          forget(sender)
          run(Effect.runForkWith(context)(sender.close))
        } else {
          Queue.offerUnsafe(listener.outbox, message)
          count++
        }
      }
      return count
    }
  }
})

const none: ReadonlySet<string> = new Set()

const sizeOf = (message: ReadonlyArray<string>): number =>
  message.reduce((size, part) => size + part.length, messageOverhead)

export class Channels
  extends Context.Service<Channels, Effect.Success<typeof make>>()("@socketserver/examples/Channels")
{
  static readonly layer = Layer.effect(Channels, make)
}
