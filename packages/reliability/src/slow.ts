/**
 * Slow clients ("slowloris"): thousands that keep their connection alive with one byte a second, (a) within a line that never
 * ends, (b) within a TLS handshake that crawls, (c) within a header of the PROXY protocol; whoever is cut off comes back within a
 * second. None of them is silent, so no idle timeout finds them. A hundred honest clients of the same server must be answered as
 * fast as before, and each slow byte may cost the server no more than a byte costs. Those in a line are ended by `readTimeout`,
 * which no honest client notices; the others by the deadlines of a handshake and of a header.
 */
import * as Net from "node:net"
import * as Tls from "node:tls"
import { certificate } from "./certificate.ts"
import { formatSeen, type HonestOptions, startHonest } from "./honest.ts"
import { sleep, startAttack, startServer, type Target } from "./processes.ts"
import type { Proof, ProofOptions } from "./proof.ts"
import type { ServerConfig } from "./server.ts"

interface Args {
  readonly target: Target
  readonly clients: number
  readonly what: "line" | "handshake" | "header"
  /** Milliseconds within which they all come. */
  readonly within: number
}

const header = "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"

/** The first bytes of a TLS client. */
const clientHello = (): Promise<Uint8Array> =>
  new Promise((resolve) => {
    const server = Net.createServer((socket) => {
      socket.on("error", () => {})
      socket.once("data", (hello: Buffer) => {
        resolve(hello)
        socket.destroy()
        server.close()
      })
    })
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as Net.AddressInfo
      Tls.connect({ host: "127.0.0.1", port, rejectUnauthorized: false }).on("error", () => {})
    })
  })

export const attack = async ({ clients, target, what, within }: Args) => {
  const text = what === "line" ? Buffer.from("x") : what === "header" ? Buffer.from(header) : await clientHello()
  let bytes = 0
  let cutOff = 0
  const slow = (): { send: () => void } => {
    let socket: Net.Socket
    let sent = 0
    const begin = () => {
      sent = 0
      socket = Net.connect(target as Net.NetConnectOpts).on("error", () => {}).on("close", () => {
        cutOff++
        // Within a second: thousands do not come back all at once.
        setTimeout(begin, Math.random() * 1_000)
      }).resume()
    }
    begin()
    return {
      send: () => {
        bytes++
        socket.write(text.subarray(sent % text.length, sent % text.length + 1))
        sent++
      }
    }
  }
  const all: Array<ReturnType<typeof slow>> = []
  // Not all at once, or a deadline would cut off all at once: that they come in a storm is another proof's.
  const began = performance.now()
  while (all.length < clients) {
    const due = Math.min(clients, Math.ceil(clients * (performance.now() - began + 10) / within))
    while (all.length < due) all.push(slow())
    await sleep(10)
  }
  // A hundredth of them each 10 ms: everyone once a second.
  const steps = 100
  let step = 0
  setInterval(() => {
    for (let i = step % steps; i < all.length; i += steps) all[i]!.send()
    step++
  }, 1_000 / steps)
  return () => ({ bytes, cutOff })
}

/** How each kind is ended. */
const reasons = { line: "ReadTimeout", handshake: "HandshakeFailed", header: "HandshakeFailed" } as const

const prove = async (
  { check, say, short }: ProofOptions,
  what: Args["what"],
  config: ServerConfig,
  options: HonestOptions
) => {
  const clients = short ? 300 : 5_000
  // As long as they may take.
  const within = short ? 500 : 10_000
  const seconds = short ? 0.5 : 20
  const server = await startServer(config, { descriptors: 10_000 })
  const measure = async () => {
    const { cpu, starved } = await server.report()
    const seen = await honest.measure(sleep(seconds * 1_000))
    const then = await server.report()
    return { seen, cpu: (then.cpu - cpu) / seconds, starved: (then.starved - starved) / seconds }
  }
  const format = ({ cpu, seen, starved }: Awaited<ReturnType<typeof measure>>) =>
    `${formatSeen(seen)}; ${cpu.toFixed(0)} ms of processor time a second, and ${starved.toFixed(0)} ms without a core`
  const honest = startHonest(server.target, options)
  await sleep(seconds * 500)
  const before = await measure()
  say(`before:  ${format(before)}`)
  const slow = await startAttack(import.meta.url, attack, { target: server.target, clients, what, within })
  // Some have been ended by then, and are just coming back.
  const least = short ? 1 : clients * 0.6
  const { stats } = await server.until(
    ({ stats: { accepted, open } }) => accepted >= clients && open >= least,
    60_000
  )
  const during = await measure()
  say(`during:  ${format(during)}`)
  const reason = reasons[what]
  const { closed, open } = (await server.until(({ stats }) => (stats.closed[reason] ?? 0) >= clients, 60_000)).stats
  const { bytes, cutOff } = await slow.end()
  say(`${open} connections open, ${clients} of them slow; ${bytes} slow bytes, ${cutOff} slow clients cut off`)
  await server.until(({ stats }) => stats.open < 2 * options.clients, 60_000)
  const after = await measure()
  say(`after:   ${format(after)}`)
  check(`${what}: ${stats.open} connections are held (${least} at least)`, stats.open >= least)
  // Beside a test suite, a second without a core is no server's fault.
  if (!short) {
    const usual = Math.max(before.seen.p99, after.seen.p99)
    check(
      `${what}: p99 of honest clients ${during.seen.p99.toFixed(2)} ms (2 × ${usual.toFixed(2)} + 5 ms at most)`,
      during.seen.p99 <= 2 * usual + 5
    )
    const more = during.cpu - before.cpu
    check(`${what}: ${more.toFixed(0)} ms more processor time a second (400 at most)`, more <= 400)
  }
  const ended = closed[reason] ?? 0
  check(`${what}: ${ended} were ended with ${reason} (${clients} at least)`, ended >= clients)
  const { answers, errors, unanswered } = await honest.stop()
  check(`${what}: of ${answers} answers ${errors + unanswered} were wrong or missing (0)`, errors + unanswered === 0)
  const { logged } = await server.report()
  check(`${what}: ${logged} lines logged above Debug (0)`, logged === 0)
}

export const slow: Proof = {
  name: "slow",
  claim: "clients that send a byte a second do not delay the others, and are ended",
  run: async (options) => {
    const honest = { clients: options.short ? 20 : 100, every: 50 }
    const deadline = options.short ? "3 seconds" : "10 seconds"
    await prove(options, "line", { service: "lines", readTimeout: deadline }, { ...honest, lines: 20 })
    const tls = { ...certificate(), handshakeTimeout: deadline }
    await prove(options, "handshake", { service: "lines", tls }, { ...honest, lines: 100, tls: true })
    const proxy = { timeout: deadline }
    await prove(options, "header", { service: "lines", proxy }, { ...honest, lines: 20, header })
  }
}
