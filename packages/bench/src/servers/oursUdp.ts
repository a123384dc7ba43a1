/**
 * This project's datagram server: a fiber for each packet, or one packet at a time (`serial`); `documented` leaves out the way
 * that rests on the inside of Node.
 */
import { Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import { control, ready } from "./control.ts"

const words = (process.argv[4] ?? "").split(",")

if (words.includes("documented")) {
  const { directUdp } = await import(new URL("../../../node/src/internal/directUdp.ts", import.meta.url).href)
  directUdp.enabled = false
}

const strategy: ReturnType<typeof Dispatch.custom> = words.includes("serial")
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
