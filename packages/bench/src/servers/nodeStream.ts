/** `node:stream`: async iteration over the socket. */
import * as Net from "node:net"
import { createInterface } from "node:readline"
import { control, listenPath, ready, service } from "./control.ts"

const drained = (socket: Net.Socket) => new Promise<void>((resolve) => socket.once("drain", () => resolve()))

const server = Net.createServer({ noDelay: true }, async (socket) => {
  socket.on("error", () => {})
  try {
    if (service === "echo") {
      for await (const chunk of socket) if (!socket.write(chunk)) await drained(socket)
    } else {
      for await (const line of createInterface({ input: socket })) if (!socket.write(`${line}\n`)) await drained(socket)
    }
  } catch {
    // The peer has reset.
  }
})
control()
server.listen(listenPath === undefined ? { host: "127.0.0.1", port: 0 } : { path: listenPath }, () => {
  const address = server.address()
  ready(typeof address === "string" ? { path: address } : { port: address!.port })
})
