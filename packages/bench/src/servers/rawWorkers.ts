/**
 * Workers as one writes them by hand, with `node:net` and `node:worker_threads` or `node:child_process`: a pool that is sent
 * lines, a loop that moves connections to workers in turn, or none of both. Beside it a server for echo.
 */
import * as ChildProcess from "node:child_process"
import * as Net from "node:net"
import { isMainThread, parentPort, Worker } from "node:worker_threads"
import { answerTo } from "../compute.ts"
import { control, ready, service } from "./control.ts"

const [how, kind, count] = (process.argv[4] ?? "").split(",") as [
  "inline" | "tasks" | "move",
  "thread" | "process",
  string
]

const serve = (socket: Net.Socket) => {
  socket.setNoDelay(true)
  socket.on("error", () => {})
  if (service === "compute") lines(socket, (line) => answerTo(line))
  else {
    socket.on("data", (chunk) => {
      if (!socket.write(chunk)) {
        socket.pause()
        socket.once("drain", () => socket.resume())
      }
    })
  }
}

const lines = (socket: Net.Socket, answer: (line: string) => string | Promise<string>) => {
  let rest = ""
  socket.setEncoding("utf8")
  socket.on("data", async (chunk: string) => {
    const parts = (rest + chunk).split("\n")
    rest = parts.pop()!
    for (const line of parts) socket.write(`${await answer(line)}\n`)
  })
}

interface Task {
  readonly line: string
  readonly resolve: (answer: string) => void
}

/** A worker has one line at a time; the others wait. */
const makePool = (size: number) => {
  const waiting: Array<Task> = []
  const idle: Array<Worker> = []
  const current = new Map<Worker, Task>()
  const begin = (worker: Worker, task: Task) => {
    current.set(worker, task)
    worker.postMessage(task.line, [])
  }
  for (let i = 0; i < size; i++) {
    const worker = new Worker(new URL(import.meta.url), { argv: process.argv.slice(2) })
    worker.on("message", (answer: string) => {
      current.get(worker)!.resolve(answer)
      const next = waiting.shift()
      if (next === undefined) idle.push(worker)
      else begin(worker, next)
    })
    idle.push(worker)
  }
  return (line: string) =>
    new Promise<string>((resolve) => {
      const worker = idle.pop()
      if (worker === undefined) waiting.push({ line, resolve })
      else begin(worker, { line, resolve })
    })
}

const makeMover = (size: number): (socket: Net.Socket) => void => {
  let next = 0
  if (kind === "thread") {
    const workers = Array.from(
      { length: size },
      () => new Worker(new URL(import.meta.url), { argv: process.argv.slice(2) })
    )
    return (socket) => workers[next++ % size]!.postMessage({ socket }, [socket as any])
  }
  const children = Array.from(
    { length: size },
    () =>
      ChildProcess.fork(new URL(import.meta.url), process.argv.slice(2), { env: { ...process.env, BENCH_CHILD: "1" } })
  )
  return (socket) => void children[next++ % size]!.send("socket", socket)
}

const main = () => {
  const onConnection = how === "inline"
    ? serve
    : how === "tasks"
    ? ((pool) => (socket: Net.Socket) => {
      socket.on("error", () => {})
      lines(socket, pool)
    })(makePool(Number(count)))
    : makeMover(Number(count))
  const server = Net.createServer({ noDelay: true, pauseOnConnect: how === "move" }, onConnection)
  const beside = Net.createServer({ noDelay: true }, (socket) => {
    socket.on("error", () => {})
    socket.on("data", (chunk) => socket.write(chunk))
  })
  control()
  beside.listen({ host: "127.0.0.1", port: 0 }, () =>
    server.listen({ host: "127.0.0.1", port: 0 }, () =>
      // Workers start while the load generator warms up.
      ready({
        port: (server.address() as Net.AddressInfo).port,
        beside: (beside.address() as Net.AddressInfo).port
      })))
}

if (!isMainThread) {
  const port = parentPort!
  port.on("message", (message: string | { readonly socket: Net.Socket }) => {
    if (typeof message === "string") port.postMessage(answerTo(message))
    else {
      serve(message.socket)
      message.socket.resume()
    }
  })
} else if (process.env["BENCH_CHILD"] !== undefined) {
  process.on("message", (_, socket: Net.Socket | undefined) => {
    if (socket === undefined) return
    serve(socket)
    socket.resume()
  })
  process.on("disconnect", () => process.exit())
} else main()
