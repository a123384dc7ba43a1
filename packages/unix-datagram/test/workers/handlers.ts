/** Portable handlers for tests: workers import this module. */
import type { Datagram } from "@socketserver/core/Datagram"
import * as Handler from "@socketserver/core/Handler"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import { threadId } from "node:worker_threads"

const worker = `${process.pid}/${threadId}`

const computeForEver = (): never => {
  for (;;) { /* nobody hears */ }
}

/** Does what the packet says, and answers any other with itself. */
export const obey = Handler.portable(import.meta.url, "obey", (datagram: Datagram) =>
  Effect.gen(function*() {
    const text = new TextDecoder().decode(datagram.payload)
    const [command, path = ""] = text.split(" ")
    switch (command) {
      case "worker":
        return yield* datagram.reply(worker)
      case "crash":
        return process.exit(1)
      case "compute":
        return computeForEver()
      case "tell":
        return yield* datagram.reply("hello").pipe(
          Effect.catchReason(
            "DatagramError",
            "NoReturnAddress",
            (reason) => datagram.send(NetAddress.unixPathAddress(path), reason._tag)
          )
        )
      default:
        return yield* datagram.reply(text)
    }
  }))
