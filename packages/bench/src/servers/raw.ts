/** Raw `node:net`: the `data` event and `socket.write`. The yardstick. */
import * as Net from "node:net"
import { control, listenPath, ready, service } from "./control.ts"

const echo = (socket: Net.Socket) => {
  socket.on("data", (chunk) => {
    if (!socket.write(chunk)) {
      socket.pause()
      socket.once("drain", () => socket.resume())
    }
  })
}

/** A splitter as one would write it by hand: the answers to one chunk leave in one write. */
const lines = (socket: Net.Socket) => {
  let rest = ""
  socket.setEncoding("utf8")
  socket.on("data", (chunk: string) => {
    const input = rest + chunk
    let answer = ""
    let start = 0
    for (let end = input.indexOf("\n", start); end !== -1; end = input.indexOf("\n", start)) {
      const line = input.slice(start, end)
      answer += `${line}\n`
      start = end + 1
    }
    rest = input.slice(start)
    if (answer !== "" && !socket.write(answer)) {
      socket.pause()
      socket.once("drain", () => socket.resume())
    }
  })
}

const server = Net.createServer({ noDelay: true }, (socket) => {
  socket.on("error", () => {})
  if (service === "echo") echo(socket)
  else lines(socket)
})
control()
server.listen(listenPath === undefined ? { host: "127.0.0.1", port: 0 } : { path: listenPath }, () => {
  const address = server.address()
  ready(typeof address === "string" ? { path: address } : { port: address!.port })
})
