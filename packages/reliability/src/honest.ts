/**
 * Honest clients: each sends a line every so often, whether or not the one before was answered, so that a server that stalls
 * cannot hide it; compares every answer; and comes back with a new connection after some lines. What is lost, late or wrong is
 * counted.
 */
import { Histogram } from "@socketserver/bench/histogram"
import * as Net from "node:net"
import * as Tls from "node:tls"
import { sleep, type Target } from "./processes.ts"

export interface HonestOptions {
  readonly clients: number
  /** Milliseconds from one line of a client to its next. */
  readonly every: number
  /** Lines of one connection. */
  readonly lines: number
  readonly tls?: boolean | undefined
  /** What each connection sends ahead. */
  readonly header?: string | undefined
}

export interface Seen {
  readonly answers: number
  /** Answers that were wrong, and connections that were refused or ended too early. */
  readonly errors: number
  /** Milliseconds from when a line was due to its answer, its connection's beginning included. */
  readonly p50: number
  readonly p99: number
  readonly max: number
}

export interface Honest {
  /** What they see from now on, while something else goes on. */
  readonly measure: (meanwhile: Promise<unknown>) => Promise<Seen>
  /** Completes when every line is answered, or has had 10 seconds for it; says how many were not. */
  readonly stop: () => Promise<{ readonly unanswered: number; readonly errors: number; readonly answers: number }>
}

export const connect = (target: Target, tls = false): Net.Socket =>
  tls
    ? Tls.connect({ ...target, rejectUnauthorized: false })
    : Net.connect({ ...target, noDelay: true } as Net.NetConnectOpts)

export const startHonest = (target: Target, options: HonestOptions): Honest => {
  const all = { answers: 0, errors: 0, unanswered: 0 }
  let histogram = new Histogram()
  let max = 0
  let stopped = false

  const connection = (name: string) => {
    const dueAt: Array<number> = []
    let sent = 0
    let answered = 0
    let rest = ""
    const socket = connect(target, options.tls)
    if (options.header !== undefined) socket.write(options.header)
    socket.setEncoding("latin1")
    socket.on("data", (data: string) => {
      const lines = (rest + data).split("\n")
      rest = lines.pop()!
      for (const line of lines) {
        const latency = performance.now() - dueAt.shift()!
        if (line !== `${name}.${answered}`) all.errors++
        answered++
        all.answers++
        all.unanswered--
        histogram.add(latency * 1_000)
        max = Math.max(max, latency)
        if (answered === options.lines) socket.end()
      }
    })
    socket.on("error", () => {})
    socket.on("close", () => {
      if (answered < sent) all.errors++
      all.unanswered -= sent - answered
      sent = options.lines
    })
    return {
      send: () => {
        dueAt.push(performance.now())
        all.unanswered++
        // Before it is connected, the socket keeps what is written.
        socket.write(`${name}.${sent++}\n`)
      },
      isUsedUp: () => sent >= options.lines,
      end: () => socket.end()
    }
  }

  const client = async (name: number) => {
    await sleep(Math.random() * options.every)
    let current = connection(`${name}.0`)
    let connections = 1
    const timer = setInterval(() => {
      if (stopped) {
        clearInterval(timer)
        return current.end()
      }
      if (current.isUsedUp()) current = connection(`${name}.${connections++}`)
      current.send()
    }, options.every)
  }
  for (let i = 0; i < options.clients; i++) void client(i)

  return {
    measure: async (meanwhile) => {
      histogram = new Histogram()
      max = 0
      const { answers, errors } = all
      await meanwhile
      return {
        answers: all.answers - answers,
        errors: all.errors - errors,
        p50: histogram.quantile(0.5) / 1_000,
        p99: histogram.quantile(0.99) / 1_000,
        max
      }
    },
    stop: async () => {
      stopped = true
      const end = performance.now() + 10_000
      while (all.unanswered > 0 && performance.now() < end) await sleep(10)
      return all
    }
  }
}

export const formatSeen = ({ answers, errors, max, p50, p99 }: Seen): string =>
  `${answers} answers, ${errors} errors; p50 ${p50.toFixed(2)} ms, p99 ${p99.toFixed(2)} ms, longest ${
    max.toFixed(0)
  } ms`
