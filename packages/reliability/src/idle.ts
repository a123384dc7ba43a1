/**
 * Clients that connect, say hello, and then nothing: 10,000 of them. They cost memory, so what each costs is measured, next to what
 * it costs a bare `node:net` server in the same run; and they must not cost anything else: honest clients are answered, and all is
 * given back when they leave.
 */
import { startLoad, startNodeServer } from "@socketserver/bench/processes"
import { formatSeen, startHonest } from "./honest.ts"
import { sleep, startServer } from "./processes.ts"
import type { Proof } from "./proof.ts"

const kib = (bytes: number) => `${(bytes / 1_024).toFixed(1)} KiB`

export const idle: Proof = {
  name: "idle",
  claim: "thousands of idle connections cost little more than their sockets, and no time",
  run: async ({ check, say, short }) => {
    const count = short ? 500 : 10_000
    const load = startLoad()
    const bare = await startNodeServer("raw", "echo", undefined)
    const bareBefore = await bare.memory()
    await load.hold(count, bare.target)
    const bareEach = (await bare.memory() - bareBefore) / count
    await load.release()
    bare.stop()

    const server = await startServer({ service: "echo" })
    const before = await server.report("collected")
    const { millis } = await load.hold(count, server.target)
    const held = await server.report("collected")
    const each = (held.memory - before.memory) / count
    say(`${held.stats.open} connections, each answered once, in ${millis.toFixed(0)} ms`)
    say(
      `resident memory of each: ${kib(each)}; with a bare node:net server ${kib(bareEach)}, a ratio of ${
        (each / bareEach).toFixed(2)
      }`
    )
    check(`${held.stats.open} are held (${count})`, held.stats.open === count)
    const used = (held.used - before.used) / count
    say(`of that, objects and buffers that are in use: ${kib(used)}`)
    check(`what is in use for each is ${kib(used)} (8 KiB at most)`, used <= 8 * 1_024)
    // Resident is also what a heap keeps for what comes next: it grows in steps, which some hundred connections do not even out.
    const limit = short ? 32 : 12
    check(`the resident memory of each is ${kib(each)} (${limit} KiB at most)`, each <= limit * 1_024)

    if (!short) {
      const { cpu } = await server.report()
      await sleep(2_000)
      const perSecond = ((await server.report()).cpu - cpu) / 2
      check(`they take ${perSecond.toFixed(1)} ms of processor time a second (20 at most)`, perSecond <= 20)
    }

    const honest = startHonest(server.target, { clients: 20, every: 50, lines: 20 })
    say(`honest clients beside them: ${formatSeen(await honest.measure(sleep(short ? 500 : 5_000)))}`)
    const { answers, errors, unanswered } = await honest.stop()
    check(`of ${answers} answers ${errors + unanswered} were wrong or missing (0)`, errors + unanswered === 0)

    await load.release()
    load.stop()
    const after = await server.until(({ stats }) => stats.open === 0, 60_000)
    const left = await server.report("collected")
    say(`after they have left, ${kib((left.used - before.used) / count)} of each are still in use`)
    check(
      `${after.stats.open} are open (0), ${after.descriptors} descriptors (${before.descriptors})`,
      after.stats.open === 0 && after.descriptors === before.descriptors
    )
  }
}
