/** The native part of unix datagrams alone: the yardstick of what a server on it can do at most. */
import { control, listenPath, ready } from "./control.ts"

interface Bare {
  readonly send: (to: string, payload: Uint8Array) => number
}

// It is private to its package: only its owner, and who measures it, has to do with it.
const { Socket, load, location } = await import(
  new URL("./internal/native.ts", import.meta.resolve("@socketserver/unix-datagram")).href
)
const socket: Bare = new Socket(load(location), {
  path: listenPath,
  mode: undefined,
  maxPacketSize: 8_192,
  onPacket: (payload: Uint8Array, from: string) => socket.send(from, payload)
})
control()
ready({ path: listenPath! })
