/**
 * Clients that ask for much and never read it: 500 of them, each for 256 MiB. What the server holds for each must stay at what the
 * transport's high-water mark allows, honest clients must be answered, and a deadline for writes must end those that do not read:
 * each is gone in time, and nothing of it stays.
 */
import * as Net from "node:net"
import { formatSeen, startHonest } from "./honest.ts"
import { sleep, startAttack, startServer, type Target } from "./processes.ts"
import type { Proof } from "./proof.ts"

interface Args {
  readonly target: Target
  readonly clients: number
}

export const attack = async ({ clients, target }: Args) => {
  let ended = 0
  for (let i = 0; i < clients; i++) {
    const socket = Net.connect(target as Net.NetConnectOpts, () => socket.write("256\n"))
    socket.on("error", () => {})
    socket.on("close", () => ended++)
    if (i % 100 === 99) await sleep(10)
  }
  return () => ({ ended })
}

export const neverReading: Proof = {
  name: "never-reading",
  claim: "clients that never read their answers hold a bounded memory, and only for a time",
  run: async ({ check, say, short }) => {
    const clients = short ? 30 : 500
    const seconds = short ? 8 : 15
    const server = await startServer({ service: "large", writeTimeout: `${seconds} seconds` })
    const before = await server.report("collected")
    const attacker = await startAttack(import.meta.url, attack, { target: server.target, clients })
    const began = performance.now()
    const { stats } = await server.until(({ stats }) => stats.inFlight === clients, 60_000)
    const honest = startHonest(server.target, { clients: 20, every: 50, lines: 20 })
    const seen = await honest.measure(sleep(short ? 500 : 1_000))
    const held = await server.report("collected")
    const each = (held.memory - before.memory) / clients / 1_024
    say(
      `${clients} clients, each asks for 256 MiB; ${
        (held.stats.bytesWritten / 2 ** 20).toFixed(0)
      } MiB went to their systems`
    )
    say(`honest clients meanwhile: ${formatSeen(seen)}`)
    check(`${stats.inFlight} handlers run (${clients})`, stats.inFlight === clients)
    // The mark, the chunk that has passed it, and what a connection and its handler are; of few connections pages do not count exactly.
    const limit = short ? 1_024 : 256
    check(`each holds ${each.toFixed(0)} KiB of resident memory (${limit} at most)`, each <= limit)
    const { answers, errors, unanswered } = await honest.stop()
    check(`of ${answers} answers to others ${errors + unanswered} were wrong or missing (0)`, errors + unanswered === 0)
    // Where the system had no memory for more, the first that end leave room for the others: these writes go on for once.
    const most = short ? 60 : 4 * seconds
    const after = await server.until(({ stats }) => stats.open === 0, most * 1_000)
    const took = (performance.now() - began) / 1_000
    say(`closed: ${JSON.stringify(after.stats.closed)}`)
    check(
      `${after.stats.open} are open after ${
        took.toFixed(1)
      } s of a writeTimeout of ${seconds} s (0, after ${most} s at most); ${after.descriptors} descriptors (${before.descriptors} at most)`,
      after.stats.open === 0 && took <= most && after.descriptors <= before.descriptors
    )
    const ended = after.stats.closed.WriteTimeout ?? 0
    check(`${ended} ended with WriteTimeout (${clients})`, ended === clients)
    check(`${after.logged} lines logged above Debug (0)`, after.logged === 0)
    await attacker.end()
  }
}
