/**
 * A server is told to end (SIGTERM) while 64 clients each send a request as soon as the one before is answered. Whatever it has
 * read it must answer, whole; what is not answered at all must never have been read; and it must end by itself, with exit code
 * 130, in time. Again and again, because what goes wrong here is a matter of moments: for fibers over TCP, unix sockets and TLS,
 * and for workers of both kinds.
 *
 * One of those moments is made on purpose: the server's processes stand still (SIGSTOP) while each client sends its next request,
 * and as many new clients come and send their first. All of that lies in the system, unseen, when the server goes on with the
 * signal to end. It was sent before, so each of them must be answered.
 *
 * The handler counts each request that it reads and each answer that it has written, in files that every process can write to;
 * clients count whole answers, and the bytes of answers that are not whole.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { certificate } from "./certificate.ts"
import { countersIn } from "./handlers.ts"
import { connect } from "./honest.ts"
import { sleep, startServer, type Target } from "./processes.ts"
import type { Proof, ProofOptions } from "./proof.ts"
import type { ServerConfig } from "./server.ts"

const clients = 64

interface Outcome {
  /** Clients that have had some answers. */
  settled: number
  answers: number
  /** Connections that ended within an answer. */
  cut: number
  /** Requests that were sent before the signal was, and have no answer. */
  early: number
  /** Requests that were sent after that, and have no answer. */
  late: number
  /** Connections that did not end as they should. */
  errors: number
}

/** What clients are to do. */
interface Course {
  /** Each waits with its next request. */
  holds: boolean
  readonly held: Array<() => void>
  /** When the server was told to end. */
  terminatedAt: number
}

/** Sends one request after the other until the connection ends. */
const client = (target: Target, tls: boolean, name: number, outcome: Outcome, course: Course) =>
  new Promise<void>((resolve) => {
    let requests = 0
    let sentAt = 0
    let rest = ""
    const socket = connect(target, tls)
    const ask = () => {
      sentAt = performance.now()
      waiting = true
      socket.write(`${name}.${++requests}\n`)
    }
    let waiting = false
    socket.setEncoding("latin1")
    socket.once(tls ? "secureConnect" : "connect", ask)
    socket.on("data", (data: string) => {
      rest += data
      if (!rest.endsWith("\n")) return
      if (rest !== `${name}.${requests}\n`) outcome.errors++
      rest = ""
      waiting = false
      outcome.answers++
      if (requests === 5) outcome.settled++
      const next = () => {
        if (!socket.readableEnded && !socket.destroyed) ask()
      }
      if (course.holds) course.held.push(next)
      else setImmediate(next)
    })
    socket.on("error", () => {})
    socket.on("close", () => {
      if (rest !== "") outcome.cut++
      else if (waiting) outcome[sentAt < course.terminatedAt ? "early" : "late"]++
      resolve()
    })
  })

/** Stops all that the process and those it has started do, or lets them go on. */
const signalAll = (pid: number, signal: "SIGSTOP" | "SIGCONT") => {
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const children = readFileSync(`/proc/${pid}/task/${task}/children`, "latin1").split(" ").filter(Boolean)
    for (const child of children) signalAll(Number(child), signal)
  }
  process.kill(pid, signal)
}

const once = async (config: ServerConfig, directory: string, stands: boolean) => {
  const counters = countersIn(directory)
  for (const file of Object.values(counters)) writeFileSync(file, "")
  const server = await startServer({ ...config, service: "counted" }, { counters: directory })
  const outcome: Outcome = { settled: 0, answers: 0, cut: 0, early: 0, late: 0, errors: 0 }
  const course: Course = { holds: false, held: [], terminatedAt: Number.POSITIVE_INFINITY }
  const tls = config.tls !== undefined
  const come = (name: number) => client(server.target, tls, name, outcome, course)
  const all = Array.from({ length: clients }, (_, i) => come(i))
  // The moment is another each time.
  while (outcome.settled < clients) await sleep(5)
  await sleep(Math.random() * 20)
  if (stands) {
    course.holds = true
    while (course.held.length < clients) await sleep(5)
    signalAll(server.pid, "SIGSTOP")
    // To those that say nothing before the handshake the server has to answer first: none can have sent a request.
    if (!tls) { for (let i = 0; i < clients; i++) all.push(come(clients + i)) }
    for (const next of course.held) next()
    course.holds = false
    // What is written goes to the system at once, and what is connected in the loopback interface, is.
    await sleep(100)
  }
  course.terminatedAt = performance.now()
  const summary = server.terminate()
  if (stands) signalAll(server.pid, "SIGCONT")
  const { logged } = await summary
  const code = await server.exit
  await Promise.all(all)
  const millis = performance.now() - course.terminatedAt
  return {
    ...outcome,
    read: statSync(counters.read).size,
    answered: statSync(counters.answered).size,
    logged,
    code,
    millis
  }
}

const prove = async ({ check, say, short }: ProofOptions, name: string, config: ServerConfig) => {
  const times = short ? 2 : 100
  const directory = mkdtempSync(join(tmpdir(), "socketserver-drain-"))
  const sum = { answers: 0, cut: 0, early: 0, late: 0, errors: 0, read: 0, answered: 0, logged: 0 }
  let unequal = 0
  let longest = 0
  let otherCodes = 0
  try {
    for (let i = 0; i < times; i++) {
      const one = await once(
        config.path === undefined ? config : { ...config, path: join(directory, `${i}.sock`) },
        directory,
        // Every other time.
        i % 2 === 1
      )
      for (const key of Object.keys(sum) as Array<keyof typeof sum>) sum[key] += one[key]
      if (one.read !== one.answered || one.answered !== one.answers) unequal++
      longest = Math.max(longest, one.millis)
      if (one.code !== 130) otherCodes++
    }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
  const { answered, answers, cut, early, errors, late, logged, read } = sum
  say(
    `${name}: ${times} drains of ${clients} clients, the longest ${longest.toFixed(0)} ms`
  )
  say(`${read} requests read, ${answered} answers written, ${answers} whole answers received`)
  say(`sent too late and never read: ${late} requests`)
  check(`${name}: of the drains ${unequal} lost an answer to a request that was read (0)`, unequal === 0)
  check(`${name}: ${cut} answers were cut (0), ${errors} were wrong (0)`, cut === 0 && errors === 0)
  check(`${name}: ${early} requests were sent before the signal and not answered (0)`, early === 0)
  check(
    `${name}: ${otherCodes} processes did not end with code 130 (0), ${logged} lines logged above Debug (0)`,
    otherCodes === 0 && logged === 0
  )
  if (!short) check(`${name}: the longest took ${longest.toFixed(0)} ms (5000 at most)`, longest <= 5_000)
}

export const drain: Proof = {
  name: "drain",
  claim: "a server that is told to end answers every request that it has read",
  run: async (options) => {
    await prove(options, "TCP", { service: "counted" })
    await prove(options, "unix", { service: "counted", path: "" })
    await prove(options, "TLS", { service: "counted", tls: certificate() })
    await prove(options, "worker threads", { service: "counted", workers: "thread" })
    await prove(options, "worker processes", { service: "counted", workers: "process" })
  }
}
