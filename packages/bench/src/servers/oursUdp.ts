/** This project's datagram server: a fiber for each packet, or one packet at a time. */
import { Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import { control, ready } from "./control.ts"

const strategy: ReturnType<typeof Dispatch.custom> = process.argv[4] === "serial"
  ? Dispatch.serial()
  : Dispatch.fiberPerRequest()

const program = Effect.gen(function*() {
  const { address } = yield* Server.makeDatagram(({ payload, reply }) => reply(payload))
  control()
  if (NetAddress.isInetAddress(address)) ready({ port: address.port })
  return yield* Effect.never
}).pipe(
  Effect.scoped,
  Effect.provide(
    NodeTransport.udp({ host: "127.0.0.1", port: 0 }).pipe(strategy)
  )
)

Effect.runFork(program)
