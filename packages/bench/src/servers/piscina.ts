/** `piscina`, as its users write it: a line of a raw `node:net` connection is a task of a pool. */
import * as Net from "node:net"
import { Piscina } from "piscina"
import { control, ready } from "./control.ts"

const size = Number(process.argv[4])
const pool = new Piscina<string, string>({
  filename: new URL("./piscinaTask.ts", import.meta.url).href,
  minThreads: size,
  maxThreads: size
})

const server = Net.createServer({ noDelay: true }, (socket) => {
  let rest = ""
  socket.on("error", () => {})
  socket.setEncoding("utf8")
  socket.on("data", async (chunk: string) => {
    const parts = (rest + chunk).split("\n")
    rest = parts.pop()!
    for (const line of parts) socket.write(`${await pool.run(line)}\n`)
  })
})
const beside = Net.createServer({ noDelay: true }, (socket) => {
  socket.on("error", () => {})
  socket.on("data", (chunk) => socket.write(chunk))
})
control()
beside.listen({ host: "127.0.0.1", port: 0 }, () =>
  server.listen({ host: "127.0.0.1", port: 0 }, () =>
    ready({
      port: (server.address() as Net.AddressInfo).port,
      beside: (beside.address() as Net.AddressInfo).port
    })))
