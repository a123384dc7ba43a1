/** This project's server of unix datagrams: a fiber for each packet, or one packet at a time. */
import { Dispatch, Server } from "@socketserver/core"
import { UnixDatagram } from "@socketserver/unix-datagram"
import * as Effect from "effect/Effect"
import { control, listenPath, ready } from "./control.ts"

const strategy: ReturnType<typeof Dispatch.custom> = process.argv[4] === "serial"
  ? Dispatch.serial()
  : Dispatch.fiberPerRequest()

const program = Effect.gen(function*() {
  yield* Server.makeDatagram(({ payload, reply }) => reply(payload))
  control()
  ready({ path: listenPath! })
  return yield* Effect.never
}).pipe(
  Effect.scoped,
  Effect.provide(UnixDatagram.transport({ path: listenPath! }).pipe(strategy))
)

Effect.runFork(program)
