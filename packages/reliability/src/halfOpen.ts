/**
 * Peers of which only a half is there. A client that has finished sending, and reads on, must get its answers whole, small and
 * large. A client whose host disappears sends nothing at all any more, not even the end: it must be noticed, by `idleTimeout` or
 * by `keepAlive`, and its connection be given back. The host is a network namespace of its own, whose link is cut; where the
 * system does not let one be made, it is a process that is frozen: for the server the same, but that its system still answers, so
 * `keepAlive` is not shown.
 */
import { receive } from "@socketserver/bench/processes"
import type { CloseReason } from "@socketserver/core"
import { execFileSync } from "node:child_process"
import * as Net from "node:net"
import { type ServerProcess, start, startServer, type Target } from "./processes.ts"
import type { Proof, ProofOptions } from "./proof.ts"

/** Sends all, finishes, and gives what comes back until the other side finishes too. */
const ask = (target: Target, input: string) =>
  new Promise<string>((resolve) => {
    const socket = Net.connect({ ...target, allowHalfOpen: true } as Net.NetConnectOpts)
    const chunks: Array<Buffer> = []
    socket.on("data", (chunk: Buffer) => chunks.push(chunk))
    socket.on("error", () => {})
    socket.on("close", () => resolve(Buffer.concat(chunks).toString("latin1")))
    socket.end(input)
  })

const proveEnds = async ({ check, short }: ProofOptions, name: string, server: ServerProcess) => {
  const count = short ? 50 : 1_000
  const lines = "one\ntwo\nthree\n"
  const small = await Promise.all(Array.from({ length: count }, () => ask(server.target, lines)))
  const wholeSmall = small.filter((answer) => answer === lines).length
  check(
    `${name}: ${wholeSmall} of ${count} clients that finished sending got their three answers`,
    wholeSmall === count
  )
  const large = await Promise.all(Array.from({ length: 20 }, () => ask(server.target, "4\n")))
  const wholeLarge = large.filter(({ length }) => length === 4 * 2 ** 20).length
  check(`${name}: ${wholeLarge} of 20 got an answer of 4 MiB`, wholeLarge === 20)
}

/** A host that can disappear. */
interface Host {
  readonly how: string
  /** Where a server listens so that it can be reached from there. */
  readonly address: string
  readonly namespace: string | undefined
  readonly disappear: (pid: number) => void
  readonly remove: () => void
}

const ip = (...args: ReadonlyArray<string>) => execFileSync("ip", args, { stdio: "pipe" })

const makeHost = (): Host => {
  const namespace = `reliability-${process.pid}`
  // The network that is set aside for measurements (RFC 2544).
  const network = `198.18.${process.pid % 256}`
  const [here, there] = [`relh${process.pid % 100_000}`, `relt${process.pid % 100_000}`]
  const remove = () => ip("netns", "del", namespace)
  try {
    ip("netns", "add", namespace)
  } catch (error) {
    // The program is wanted; that the system lets it do this is not.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw error
    return {
      how: `its process is frozen, so that keepAlive is not shown (${String(error).split("\n", 1)[0]})`,
      address: "127.0.0.1",
      namespace: undefined,
      disappear: (pid) => process.kill(pid, "SIGSTOP"),
      remove: () => {}
    }
  }
  try {
    ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
    ip("addr", "add", `${network}.1/30`, "dev", here)
    ip("link", "set", here, "up")
    ip("-n", namespace, "addr", "add", `${network}.2/30`, "dev", there)
    ip("-n", namespace, "link", "set", there, "up")
  } catch (error) {
    remove()
    throw error
  }
  return {
    how: "its link is cut",
    address: `${network}.1`,
    namespace,
    disappear: () => ip("-n", namespace, "link", "set", there, "down"),
    remove
  }
}

interface Args {
  readonly target: Target
  readonly clients: number
}

/** Clients that have said hello, were answered, and wait. */
export const attack = async ({ clients, target }: Args) => {
  await Promise.all(
    Array.from({ length: clients }, () =>
      new Promise<void>((resolve, reject) => {
        const socket = Net.connect(target as Net.NetConnectOpts, () => socket.write("hello\n"))
        socket.on("error", reject)
        socket.once("data", () => resolve())
      }))
  )
  return () => ({})
}

const proveDisappearance = async ({ check, say, short }: ProofOptions) => {
  const clients = short ? 50 : 500
  const host = makeHost()
  try {
    say(`the host of ${clients} clients disappears: ${host.how}`)
    const { address } = host
    const reach = async (name: string, reason: CloseReason.CloseReason["_tag"], limit: number, config: object) => {
      const server = await startServer({ service: "lines", host: address, ...config })
      const { descriptors } = await server.report()
      const args: Args = { target: server.target, clients }
      const child = start("./attacker.ts", [import.meta.url, JSON.stringify(args)], { namespace: host.namespace })
      await receive(child, "underWay")
      const { stats } = await server.report()
      return { child, descriptors, limit, name, accepted: stats.accepted, reason, server }
    }
    const reached = [
      await reach("idleTimeout of 2 seconds", "IdleTimeout", short ? 60_000 : 6_000, { idleTimeout: "2 seconds" })
    ]
    if (!short && host.namespace !== undefined) {
      // The system asks a silent peer once a second, and gives up after the tenth time.
      reached.push(await reach("keepAlive of 1 second", "TransportFailed", 20_000, { keepAlive: "1 second" }))
    }
    for (const { child } of reached) host.disappear(child.pid!)
    const began = performance.now()
    for (const { accepted, descriptors, limit, name, reason, server } of reached) {
      const after = await server.until(({ stats }) => stats.open === 0, limit)
      const seconds = ((performance.now() - began) / 1_000).toFixed(1)
      check(
        `${name}: of ${accepted} connections (${clients}) ${after.stats.open} are open after ${seconds} s (0)`,
        accepted === clients && after.stats.open === 0
      )
      const ended = after.stats.closed[reason] ?? 0
      check(
        `${name}: ${ended} ended with ${reason}; ${after.descriptors} descriptors (${descriptors} at most)`,
        ended === clients && after.descriptors <= descriptors
      )
      const answer = await ask(server.target, "still there?\n")
      check(`${name}: others are answered`, answer === "still there?\n")
      check(`${name}: ${after.logged} lines logged above Debug (0)`, after.logged === 0)
    }
  } finally {
    host.remove()
  }
}

export const halfOpen: Proof = {
  name: "half-open",
  claim: "a client that has finished sending gets its answers; one whose host disappears is noticed",
  run: async (options) => {
    await proveEnds(options, "fibers", await startServer({ service: "large" }))
    await proveEnds(options, "worker threads", await startServer({ service: "large", workers: "thread" }))
    await proveEnds(options, "worker processes", await startServer({ service: "large", workers: "process" }))
    await proveDisappearance(options)
  }
}
