/**
 * A process may have only so many descriptors, and more clients come than that: 64 descriptors, and clients that connect and
 * stay. The server must not crash, must not spin, must say that it is saturated, must turn away the rest at once, and must serve
 * as before when they have left.
 */
import * as Net from "node:net"
import { type ServerProcess, sleep, startServer } from "./processes.ts"
import type { Proof } from "./proof.ts"

/** Connects and sends a line; is it answered? */
const visit = (target: Net.NetConnectOpts) =>
  new Promise<{ readonly socket: Net.Socket; readonly isServed: boolean }>((resolve) => {
    const socket = Net.connect(target, () => socket.write("hello\n"))
    socket.on("error", () => {})
    socket.once("data", () => resolve({ socket, isServed: true }))
    socket.once("close", () => resolve({ socket, isServed: false }))
  })

const visitMany = async ({ target }: ServerProcess, count: number) => {
  const visits = await Promise.all(Array.from({ length: count }, () => visit(target)))
  return { sockets: visits.map(({ socket }) => socket), served: visits.filter(({ isServed }) => isServed).length }
}

export const descriptors: Proof = {
  name: "descriptors",
  claim: "more clients than descriptors are turned away, seen to be, and forgotten when they leave",
  run: async ({ check, say, short }) => {
    const server = await startServer({ service: "lines", events: true }, { descriptors: 64 })
    const seconds = short ? 0.5 : 1
    // A server that spins has a core, or half of one where others want it too.
    const limit = short ? 300 : 100
    for (let round = 1; round <= (short ? 2 : 10); round++) {
      const { served, sockets } = await visitMany(server, 200)
      const full = await server.report()
      const from = full.cpu
      await sleep(seconds * 1_000)
      const { cpu, descriptors } = await server.report()
      const perSecond = (cpu - from) / seconds
      if (round === 1) {
        say(
          `200 clients, 64 descriptors: ${served} served, ${200 - served} turned away, ${descriptors} descriptors open`
        )
        say(`the status is ${full.status}`)
      }
      check(
        `round ${round}: saturated, ${perSecond.toFixed(0)} ms of processor time a second (${limit} at most)`,
        full.status === "saturated" && perSecond <= limit
      )
      check(`round ${round}: ${served} are served (10 at least), the others refused`, served >= 10)
      for (const socket of sockets) socket.destroy()
      const after = await server.until(({ stats, status }) => stats.open === 0 && status === "ready", 60_000)
      check(`round ${round}: ready again, and none open`, after.status === "ready" && after.stats.open === 0)
      const again = await visitMany(server, 10)
      check(`round ${round}: 10 of 10 new clients are served`, again.served === 10)
      for (const socket of again.sockets) socket.destroy()
      await server.until(({ stats }) => stats.open === 0, 60_000)
    }
    const { events, logged, stats } = await server.report()
    say(`events: ${JSON.stringify(events)}; refused: ${JSON.stringify(stats.refused)}`)
    check(
      "the events tell each time that it was full, and was not",
      (events["Saturated"] ?? 0) >= 1 && events["Saturated"] === events["Relieved"]
    )
    check(`${logged} lines logged above Debug (0)`, logged === 0)
    check("the process lives", !server.exited())
  }
}
