/**
 * What every fuzzer has in common. An input is bytes, made from a seed, and input number n of a run has the run's seed plus n: so
 * each can be repeated alone. Inputs of `corpus/NAME` come first in every run; those that have failed are added to it.
 *
 * What fails a run: an input whose outcome is not what it should be, an exception that nobody caught, an input that is not through
 * after ten seconds (also where it keeps the thread busy), and a heap that grows.
 */
import { collect } from "@socketserver/bench/control"
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Worker } from "node:worker_threads"
import type { Proof, ProofOptions } from "./proof.ts"
import { Random } from "./random.ts"

export interface Fuzzer {
  readonly name: string
  readonly claim: string
  /** How many inputs the small version has. */
  readonly short: number
  /** How many are under way at a time. */
  readonly lanes: number
  readonly generate: (random: Random) => Uint8Array
  /** What the inputs are run in. */
  readonly start: (options: ProofOptions) => Promise<{
    /** Runs one input; says what was wrong, if something was. */
    readonly run: (input: Uint8Array) => Promise<string | undefined> | string | undefined
    readonly end: () => Promise<void>
  }>
}

/** How many seconds an input may take, as this process sees them: on a busy machine it does not see all. */
const deadline = 10

/** How much a heap may be larger after all inputs than after a tenth of them: what was compiled in between, and the like. */
const allowance = 8 * 1_048_576

const corpora = fileURLToPath(new URL("../corpus", import.meta.url))

export const readCorpus = (name: string): ReadonlyArray<{ readonly name: string; readonly input: Uint8Array }> => {
  const directory = join(corpora, name)
  if (!existsSync(directory)) return []
  return readdirSync(directory).toSorted().map((file) => ({ name: file, input: readFileSync(join(directory, file)) }))
}

const keep = (name: string, seed: number, input: Uint8Array): string => {
  const directory = join(corpora, name)
  mkdirSync(directory, { recursive: true })
  const file = join(directory, `failed-${seed}`)
  writeFileSync(file, input)
  return file
}

const heap = (): number => {
  collect()
  const { arrayBuffers, heapUsed } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

const mib = (bytes: number) => `${(bytes / 1_048_576).toFixed(1)} MiB`

/** A thread that ends the process when this one has not come to its next input for too long: a loop without an end. */
const startWatchdog = (name: string) => {
  const progress = new Float64Array(new SharedArrayBuffer(16))
  const worker = new Worker(
    `
    const { workerData: { deadline, name, progress } } = require("node:worker_threads")
    let done = -1
    let seconds = 0
    setInterval(() => {
      if (progress[0] !== done) {
        done = progress[0]
        seconds = 0
      } else if (++seconds > 6 * deadline) {
        require("node:fs").writeSync(2, \`  FAIL  the thread hangs in an input; \${name} --seed \${progress[1]} --inputs 1\\n\`)
        process.kill(process.pid, "SIGKILL")
      }
    }, 1_000)
  `,
    { eval: true, workerData: { deadline, name, progress } }
  )
  return { progress, end: () => worker.terminate() }
}

export const proofOf = (fuzzer: Fuzzer): Proof => ({
  name: fuzzer.name,
  claim: fuzzer.claim,
  run: async (options) => {
    const { check, say, short } = options
    const inputs = options.inputs ?? (short ? fuzzer.short : 1_000_000)
    // The small version is the same each time.
    const firstSeed = options.seed ?? (short ? 1 : Math.floor(Math.random() * 2 ** 31))
    say(`to repeat: pnpm reliability ${fuzzer.name} --seed ${firstSeed} --inputs ${inputs}`)
    const { end, run } = await fuzzer.start(options)
    const watchdog = startWatchdog(fuzzer.name)

    const underWay = new Map<number, number>()
    let failed = 0
    const fail = (what: string) => {
      failed++
      check(what, false)
    }
    const onUncaught = (error: unknown) => {
      // Telling may be what fails.
      if (failed > 20) process.exit(1)
      fail(
        `an exception that nobody caught, with inputs ${[...underWay.keys()].join(", ")}: ${
          error instanceof Error ? error.stack : String(error)
        }`
      )
    }
    process.on("uncaughtException", onUncaught)
    let seconds = 0
    const clock = setInterval(() => {
      seconds++
      for (const [seed, since] of underWay) {
        if (seconds - since > deadline) {
          underWay.delete(seed)
          fail(`not through after ${deadline} s: --seed ${seed} --inputs 1`)
        }
      }
    }, 1_000)

    const outcome = async (input: Uint8Array): Promise<string | undefined> => {
      try {
        return await run(input)
      } catch (error) {
        return error instanceof Error ? error.stack ?? error.message : String(error)
      }
    }

    const corpus = readCorpus(fuzzer.name)
    for (const [n, { input, name }] of corpus.entries()) {
      // Seeds are not negative.
      underWay.set(-1 - n, seconds)
      const wrong = await outcome(input)
      underWay.delete(-1 - n)
      if (wrong !== undefined) fail(`${name} of the corpus: ${wrong}`)
    }

    let begun = 0
    let done = 0
    const lane = async (end: number) => {
      while (begun < end) {
        if (failed >= 5) return
        const seed = firstSeed + begun++
        const input = fuzzer.generate(new Random(seed))
        watchdog.progress[1] = seed
        underWay.set(seed, seconds)
        const wrong = await outcome(input)
        underWay.delete(seed)
        watchdog.progress[0] = ++done
        if (wrong !== undefined) {
          fail(`--seed ${seed} --inputs 1, kept as ${keep(fuzzer.name, seed, input)}: ${wrong}`)
        }
      }
    }
    const runUpTo = (end: number) => Promise.all(Array.from({ length: fuzzer.lanes }, () => lane(end)))
    const began = performance.now()
    // By then everything is compiled and filled that will be.
    await runUpTo(Math.ceil(inputs / 10))
    const before = heap()
    await runUpTo(inputs)
    const perSecond = done / (performance.now() - began) * 1_000
    const after = heap()

    clearInterval(clock)
    await watchdog.end()
    await end()
    process.off("uncaughtException", onUncaught)
    say(`${corpus.length} inputs of the corpus and ${done} others, ${perSecond.toFixed(0)} a second`)
    check(`${failed} inputs failed (0), of ${done} (${inputs})`, failed === 0 && done === inputs)
    check(
      `the heap has grown from ${mib(before)} to ${mib(after)} since the first tenth (${mib(allowance)} more at most)`,
      after - before <= allowance
    )
  }
})
