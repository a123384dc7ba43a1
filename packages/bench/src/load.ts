/**
 * The load generator: a process of its own, closed loop (the next request goes out when an answer is complete), that
 * compares every byte it receives. It reads into one buffer per connection (`onread`), so that it costs less than what it
 * measures.
 */
import * as Dgram from "node:dgram"
import { rmSync } from "node:fs"
import * as Net from "node:net"
import { answerTo } from "./compute.ts"
import { Histogram } from "./histogram.ts"
import type { Workload } from "./workloads.ts"

export interface LoadCommand {
  readonly workload: Workload
  readonly target: Net.NetConnectOpts
  /** A server for echo in the same process, which a client asks something every few milliseconds all the while. */
  readonly beside: number | undefined
  readonly warmup: number
  readonly duration: number
}

export interface LoadResult {
  readonly requests: number
  readonly bytes: number
  readonly seconds: number
  /** Microseconds. */
  readonly p50: number
  readonly p99: number
  readonly p999: number
  /** Of the client beside; zero without one. */
  readonly beside: { readonly p50: number; readonly p99: number }
  readonly errors: number
}

/** A request of a workload: a line of `size` bytes. The service for lines gives it back too. */
const requestOf = (size: number): Buffer => {
  const request = Buffer.alloc(size)
  for (let i = 0; i < size - 1; i++) request[i] = 97 + (i * 7) % 26
  request[size - 1] = 10
  return request
}

const now = () => performance.now() * 1_000

/** What the clients of a run have seen, while it was measured. */
class Tally {
  measuring = false
  stopped = false
  /** Is each client to stop at its next answer, until it begins again? */
  holding = false
  requests = 0
  bytes = 0
  errors = 0
  readonly histogram = new Histogram()
}

/** Connects, and gives the socket and a function that begins the exchange; `done` when the connection is closed. */
const connect = (target: Net.NetConnectOpts, workload: Workload, tally: Tally) => {
  const { depth, kind, service, texts } = workload
  const one = texts === undefined ? requestOf(workload.size) : Buffer.from(texts.request)
  const answer = texts !== undefined
    ? Buffer.from(texts.answer)
    : service === "compute"
    ? Buffer.from(`${answerTo(one.toString("latin1", 0, one.length - 1))}\n`)
    : one
  const size = answer.length
  const first = Buffer.concat(Array.from({ length: depth }, () => one))
  const buffer = Buffer.allocUnsafe(65_536)
  let position = 0
  let sentAt = 0
  let onAnswer = () => {}
  const answered = new Promise<void>((resolve) => {
    onAnswer = resolve
  })
  const began = now()
  const socket = Net.connect({
    ...target,
    noDelay: true,
    onread: {
      buffer,
      callback: (length: number) => {
        let count = 0
        for (let at = 0; at < length;) {
          const part = Math.min(length - at, size - position)
          if (answer.compare(buffer, at, at + part, position, position + part) !== 0) tally.errors++
          at += part
          position += part
          if (position === size) {
            position = 0
            count++
          }
        }
        if (tally.measuring) tally.bytes += length
        if (count === 0) return true
        onAnswer()
        if (tally.holding) return true
        const time = now()
        if (tally.measuring) {
          tally.requests += count
          // Of requests that are answered together, the first has waited longest.
          for (let i = 0; i < count; i++) tally.histogram.add(time - (kind === "churn" ? began : sentAt))
        }
        if (tally.stopped || kind === "churn") socket.end()
        else {
          sentAt = time
          socket.write(count === 1 ? one : first.subarray(0, count * one.length))
        }
        return true
      }
    }
  } as Net.NetConnectOpts)
  socket.on("error", () => {
    if (!tally.stopped) tally.errors++
  })
  return {
    connected: new Promise<void>((resolve) => {
      socket.on("connect", () => resolve())
      // One that was refused never begins; it is counted as an error.
      socket.on("close", () => resolve())
    }),
    answered,
    done: new Promise<void>((resolve) => socket.on("close", () => resolve())),
    begin: () => {
      sentAt = now()
      socket.write(first)
    }
  }
}

/** A socket of its own that sends a packet, and the next when it is answered, or after a while: packets may be lost. */
const datagramClient = (target: Net.NetConnectOpts, { size }: Workload, tally: Tally) =>
  new Promise<void>((resolve) => {
    const { host, port } = target as Net.TcpNetConnectOpts
    const one = requestOf(size)
    const socket = Dgram.createSocket("udp4")
    let sentAt = 0
    const send = () => {
      sentAt = now()
      socket.send(one)
    }
    const again = setInterval(() => {
      if (tally.stopped || now() - sentAt < 200_000) return
      tally.errors++
      send()
    }, 100)
    socket.on("message", (answer) => {
      if (one.compare(answer) !== 0) tally.errors++
      if (tally.measuring) {
        tally.bytes += answer.length
        tally.requests++
        tally.histogram.add(now() - sentAt)
      }
      if (!tally.stopped) return send()
      clearInterval(again)
      socket.close(resolve)
    })
    socket.connect(port, host, send)
  })

/** What a client of unix datagrams is made of: the same as the server `raw`. */
const loadUnixDatagram = async () => {
  const { Socket, load, location } = await import(
    new URL("./internal/native.ts", import.meta.resolve("@socketserver/unix-datagram")).href
  )
  return (path: string, onPacket: (payload: Uint8Array) => void): UnixDatagramSocket =>
    new Socket(load(location), { path, mode: undefined, maxPacketSize: 8_192, onPacket })
}

interface UnixDatagramSocket {
  /** 0, or an error of the system's. */
  readonly send: (to: string, payload: Uint8Array) => number
  readonly close: () => void
}

let unixClients = 0

/** The same by a unix socket. Packets are not lost there, but the system takes no more than a few that are not read. */
const unixDatagramClient = async (target: Net.NetConnectOpts, { size }: Workload, tally: Tally) => {
  const open = await loadUnixDatagram()
  const to = (target as Net.IpcNetConnectOpts).path
  const path = `${to}.${++unixClients}`
  const one = requestOf(size)
  let sentAt = 0
  const again = () => {
    if (socket.send(to, one) !== 0) setImmediate(again)
  }
  const send = () => {
    sentAt = now()
    again()
  }
  let onEnd = () => {}
  const ended = new Promise<void>((resolve) => {
    onEnd = resolve
  })
  const socket = open(path, (answer) => {
    if (one.compare(answer) !== 0) tally.errors++
    if (tally.measuring) {
      tally.bytes += answer.length
      tally.requests++
      tally.histogram.add(now() - sentAt)
    }
    if (!tally.stopped) return send()
    socket.close()
    rmSync(path)
    onEnd()
  })
  send()
  return ended
}

/** Asks the server beside for an echo every few milliseconds. */
const askBeside = (port: number, tally: Tally) => {
  const request = Buffer.from("beside\n")
  let sentAt = 0
  const socket = Net.connect({ host: "127.0.0.1", port, noDelay: true })
  const ask = () => {
    sentAt = now()
    socket.write(request)
  }
  socket.on("connect", ask)
  socket.on("error", () => tally.errors++)
  socket.on("data", (answer: Buffer) => {
    if (request.compare(answer) !== 0) tally.errors++
    if (tally.measuring) tally.histogram.add(now() - sentAt)
    if (tally.stopped) socket.end()
    else setTimeout(ask, 2)
  })
}

const run = async ({ beside, duration, target, warmup, workload }: LoadCommand): Promise<LoadResult> => {
  const tally = new Tally()
  const besideTally = new Tally()
  if (beside !== undefined) askBeside(beside, besideTally)
  const unmeasured = new Tally()
  const busy: Array<ReturnType<typeof connect>> = []
  // They connect while nothing goes on, no more at a time than a listener's backlog holds, and begin together, when the
  // server has accepted and answered every one.
  unmeasured.holding = true
  while (busy.length < workload.busy) {
    const batch = Array.from({ length: 100 }, () => connect(target, { ...workload, kind: "exchange" }, unmeasured))
    for (const { begin, connected } of batch) {
      await connected
      begin()
    }
    await Promise.all(batch.map(({ answered }) => answered))
    busy.push(...batch)
  }
  unmeasured.holding = false
  for (const { begin } of busy) begin()

  const loop = async (): Promise<void> => {
    if (workload.transport === "udp") return datagramClient(target, workload, tally)
    if (workload.transport === "unix datagram") return unixDatagramClient(target, workload, tally)
    const client = connect(target, workload, tally)
    await client.connected
    client.begin()
    await client.done
    if (workload.kind === "churn" && !tally.stopped) return loop()
  }
  const all = Promise.all(Array.from({ length: workload.connections }, loop))
  await sleep(warmup)
  process.send!({ begin: true })
  tally.measuring = true
  besideTally.measuring = true
  const began = now()
  await sleep(duration)
  tally.measuring = false
  const seconds = (now() - began) / 1e6
  process.send!({ end: true })
  tally.stopped = true
  unmeasured.stopped = true
  besideTally.stopped = true
  await all
  await Promise.all(busy.map(({ done }) => done))
  return {
    requests: tally.requests,
    bytes: tally.bytes,
    seconds,
    p50: tally.histogram.quantile(0.5),
    p99: tally.histogram.quantile(0.99),
    p999: tally.histogram.quantile(0.999),
    beside: { p50: besideTally.histogram.quantile(0.5), p99: besideTally.histogram.quantile(0.99) },
    errors: tally.errors + unmeasured.errors + besideTally.errors
  }
}

const sleep = (millis: number) => new Promise<void>((resolve) => setTimeout(resolve, millis))

/**
 * Holds idle connections until told to let go: for the memory of a connection, and for the time that a start and a drain
 * take. Each has had one answer, so the server has accepted it.
 */
let held: Array<Net.Socket> = []

export interface HoldCommand {
  readonly count: number
  readonly target: Net.NetConnectOpts
}

const hold = async ({ count, target }: HoldCommand): Promise<{ readonly millis: number }> => {
  const began = performance.now()
  for (let i = 0; i < count; i += 100) {
    held.push(
      ...await Promise.all(
        Array.from({ length: Math.min(100, count - i) }, () =>
          new Promise<Net.Socket>((resolve, reject) => {
            const socket = Net.connect(target, () => socket.write("hello\n"))
            socket.on("error", reject)
            socket.on("data", () => resolve(socket))
          }))
      )
    )
  }
  return { millis: performance.now() - began }
}

const release = () => {
  for (const socket of held) socket.destroy()
  held = []
}

// Connections that are held would keep it when nobody asks any more.
process.on("disconnect", () => process.exit())
process.on("message", async (command: { run?: LoadCommand; hold?: HoldCommand; release?: true }) => {
  if (command.run !== undefined) process.send!({ result: await run(command.run) })
  if (command.hold !== undefined) process.send!({ held: await hold(command.hold) })
  if (command.release !== undefined) {
    release()
    process.send!({ released: true })
  }
})
