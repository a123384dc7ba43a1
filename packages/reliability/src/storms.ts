/**
 * Storms of connections, 20,000 in all: clients that connect and close, connect and reset, and both in the middle of a request, as
 * fast as they can; over TLS also in the middle of a handshake, and with handlers in workers. Afterwards nothing may be left: no
 * connection, descriptor or memory; every accepted client has one close reason; nothing was logged; and honest clients were
 * answered all the time.
 */
import * as Net from "node:net"
import { certificate } from "./certificate.ts"
import { connect, formatSeen, startHonest } from "./honest.ts"
import { startAttack, startServer, type Target } from "./processes.ts"
import type { Proof, ProofOptions } from "./proof.ts"
import type { ServerConfig } from "./server.ts"

interface Args {
  readonly target: Target
  readonly connections: number
}

/** What one client does, by its number: half of them reset, half are in the middle of a request. */
const visit = (target: Target, number: number) =>
  new Promise<void>((resolve) => {
    const socket = Net.connect(target as Net.NetConnectOpts, () => {
      const leave = () => {
        if (number % 2 === 0) socket.destroy()
        else socket.resetAndDestroy()
      }
      if (number % 4 < 2) return leave()
      socket.write(number % 8 < 4 ? "half a requ" : "a request\nand half ano", leave)
    })
    socket.on("error", () => {})
    socket.on("close", () => resolve())
  })

export const attack = async ({ connections, target }: Args) => {
  let next = 0
  const began = performance.now()
  const visitor = async (): Promise<void> => {
    if (next >= connections) return
    await visit(target, next++)
    return visitor()
  }
  await Promise.all(Array.from({ length: 200 }, visitor))
  const seconds = (performance.now() - began) / 1_000
  return () => ({ seconds })
}

/**
 * The system gives the server its clients in the order in which they came: once this one is answered, none of the storm waits to be
 * accepted. Before that the server may have none open, and yet not have seen them all.
 */
const beTheLast = (target: Target, tls: boolean) =>
  new Promise<void>((resolve, reject) => {
    const socket = connect(target, tls)
    socket.once("data", () => socket.end())
    socket.on("error", reject)
    socket.on("close", () => resolve())
    socket.write("the last\n")
  })

const prove = async (
  { check, say }: ProofOptions,
  name: string,
  config: ServerConfig,
  connections: number
) => {
  const server = await startServer(config)
  const tls = config.tls !== undefined
  /** Honest clients, and a storm; then none are left. */
  const storm = async () => {
    const honest = startHonest(server.target, { clients: 20, every: 20, lines: 20, tls })
    const raging = startAttack(import.meta.url, attack, { target: server.target, connections })
      .then((attacker) => attacker.end())
    const seen = await honest.measure(raging)
    const { seconds } = await raging
    const { answers, errors, unanswered } = await honest.stop()
    await beTheLast(server.target, tls)
    await server.until(({ stats }) => stats.open === 0, 60_000)
    return { seen, seconds, answers, lost: errors + unanswered, report: await server.report("collected") }
  }
  // A first one leaves behind compiled code, and a heap of the size that a storm takes. What a second one adds is a leak.
  const first = await storm()
  const { report: before } = first
  const second = await storm()
  const { report: after, seconds, seen } = second
  const { accepted, closed, open } = after.stats
  say(`${name}: twice ${connections} connections, in ${seconds.toFixed(1)} s`)
  say(`honest clients meanwhile: ${formatSeen(seen)}`)
  say(`closed: ${JSON.stringify(closed)}`)
  const sum = Object.values(closed).reduce((a, b) => a + b, 0)
  check(`${name}: ${open} open (0), ${accepted} accepted, ${sum} closed`, open === 0 && accepted === sum)
  check(
    `${name}: ${after.descriptors} descriptors (${before.descriptors} at most)`,
    after.descriptors <= before.descriptors
  )
  const used = (after.used - before.used) / 2 ** 20
  const resident = (after.memory - before.memory) / 2 ** 20
  // Of worker threads it is their heaps, which are not collected when the server's is.
  say(`${name}: resident memory has grown by ${resident.toFixed(1)} MiB with the second storm`)
  check(`${name}: of the second storm ${used.toFixed(2)} MiB are still in use (1 at most)`, used <= 1)
  check(`${name}: ${after.logged} lines logged above Debug (0)${after.firstLogged ?? ""}`, after.logged === 0)
  const [answers, lost] = [first.answers + second.answers, first.lost + second.lost]
  check(`${name}: of ${answers} answers ${lost} were wrong or missing (0)`, lost === 0)
}

export const storms: Proof = {
  name: "storms",
  claim: "connections that come and go by thousands, reset and cut, leave nothing behind",
  run: async (options) => {
    const many = options.short ? 400 : 7_000
    const some = options.short ? 200 : 1_000
    await prove(options, "fibers", { service: "lines" }, many)
    await prove(options, "TLS", { service: "lines", tls: certificate() }, some)
    await prove(options, "worker threads", { service: "lines", workers: "thread" }, some)
    await prove(options, "worker processes", { service: "lines", workers: "process" }, some)
  }
}
