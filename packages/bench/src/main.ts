/**
 * The benchmark: every server in turn under every workload, for several rounds, interleaved, so that a noisy moment of the
 * machine hits all of them. Prints ratios to raw `node:net`; see docs/benchmarks.md.
 *
 *     pnpm bench            all of it, some minutes
 *     pnpm bench --short    under a minute
 *     pnpm bench --only ping,churn   workloads whose name has one of the words
 *     pnpm bench --json     the figures as JSON, after the tables
 */
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { calibrate } from "./compute.ts"
import { memoryBench } from "./memory.ts"
import { canPin, python, type ServerProcess, startLoad, startNodeServer, startPythonServer } from "./processes.ts"
import { type Workload, workloads } from "./workloads.ts"

const { values: flags } = parseArgs({
  options: {
    short: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    only: { type: "string", default: "" },
    servers: { type: "string", default: "" },
    rounds: { type: "string" },
    duration: { type: "string" }
  }
})
const rounds = Number(flags.rounds ?? (flags.short ? 1 : 5))
const duration = Number(flags.duration ?? (flags.short ? 400 : 1_500))
const warmup = flags.short ? 200 : 400
const words = (list: string) => list === "" ? undefined : list.split(",")
const wanted = (name: string, list: string) => words(list)?.some((word) => name.includes(word)) ?? true

interface Contender {
  readonly name: string
  readonly start: (workload: Workload) => Promise<ServerProcess>
  readonly takes: (workload: Workload) => boolean
}

let sockets = 0
const pathFor = (workload: Workload) =>
  workload.transport.startsWith("unix")
    ? join(tmpdir(), `socketserver-bench-${process.pid}-${++sockets}.sock`)
    : undefined

const node = (name: string, file: string, style?: string): Contender => ({
  name,
  start: (workload) => startNodeServer(file, workload.service, pathFor(workload), style),
  takes: ({ service, workers }) => service !== "datagrams" && service !== "resp" && workers === undefined
})
const py = (name: string, strategy: string): Contender => ({
  name,
  start: (workload) => startPythonServer(strategy, workload.service),
  // One thread for each of 1,000 connections says little about anything.
  takes: ({ busy, connections, service, transport, workers }) =>
    python && service !== "resp" && workers === undefined && transport === (strategy.endsWith("UDP") ? "udp" : "tcp") &&
    connections + busy <= 64
})

/** What the files of servers for datagrams are called, after the name of the server. */
const suffixes: { readonly [transport in Workload["transport"]]?: string } = {
  udp: "Udp",
  "unix datagram": "UnixDatagram"
}

/** The same name under all kinds of workload, and a server of its own for each kind of datagrams and for Redis. */
const all = (name: string, file: string, style?: string): Contender => ({
  name,
  start: (workload) =>
    startNodeServer(
      `${file}${workload.service === "resp" ? "Resp" : suffixes[workload.transport] ?? ""}`,
      workload.service,
      pathFor(workload),
      style
    ),
  takes: ({ workers }) => workers === undefined
})

/** Without a limit a server with workers has all cores. */
const coreOf = ({ workers }: Workload) => workers === "all cores" ? "all" : 0

/** A server with workers, or one that is compared with those. */
const withWorkers = (
  name: string,
  file: string,
  style: string,
  takes: (workload: Workload) => boolean
): Contender => ({
  name,
  start: (workload) => startNodeServer(file, workload.service, undefined, style, coreOf(workload)),
  takes: (workload) => workload.workers !== undefined && takes(workload)
})
const lines = ({ service }: Workload) => service === "lines"
const computes = ({ service }: Workload) => service === "compute"
const echoes = ({ service }: Workload) => service === "echo"
const churns = ({ kind }: Workload) => kind === "churn"

const contenders: ReadonlyArray<Contender> = [
  all("raw", "raw"),
  all("ours", "ours", "loop"),
  { ...all("ours (serial)", "ours", "serial"), takes: ({ service }: Workload) => service === "datagrams" },
  node("ours (stream)", "ours", "stream"),
  { ...node("ours (messages)", "ours", "messages"), takes: lines },
  { ...node("ours (messages, effects)", "ours", "effects"), takes: lines },
  {
    ...node("ours (borrow)", "ours", "borrow"),
    takes: ({ service, size, workers }: Workload) => service === "echo" && size > 1_000 && workers === undefined
  },
  {
    ...all("ours (documented)", "ours", "loop,documented"),
    takes: ({ busy, service, transport, workers }: Workload) =>
      !flags.short && busy === 0 && service !== "resp" && transport !== "unix datagram" && workers === undefined
  },
  {
    ...node("ours (deadlines)", "ours", "loop,deadlines"),
    takes: ({ busy, connections, depth, service, size, transport, workers }: Workload) =>
      !flags.short && service !== "datagrams" && service !== "resp" && transport === "tcp" && workers === undefined &&
      connections <= 64 &&
      connections > 1 && size < 1_000 && depth === 1 && busy === 0
  },
  { ...node("ours (8 acceptors)", "ours", "loop,acceptors"), takes: ({ busy }: Workload) => busy > 0 },
  ...(flags.short ? [] : ["metrics", "traces", "logs"].map((word) => ({
    ...node(`ours (${word})`, "ours", `loop,${word}`),
    takes: ({ busy, connections, service, size, transport, workers }: Workload) =>
      busy === 0 && [32, 64].includes(connections) && size < 1_000 && transport === "tcp" && service !== "resp" &&
      workers === undefined
  }))),
  {
    ...all("effect", "effect"),
    takes: ({ service, transport, workers }: Workload) =>
      service !== "resp" && transport !== "unix datagram" && workers === undefined
  },
  ...(flags.short ? [] : [
    node("node:stream", "nodeStream"),
    py("python threads", "threading"),
    py("python asyncio", "asyncio"),
    py("python UDPServer", "serialUDP"),
    py("python ThreadingUDPServer", "threadingUDP")
  ]),
  // The first one that takes a workload is the yardstick.
  withWorkers("hand-written pool", "rawWorkers", "tasks,thread,2", computes),
  withWorkers("ours, no workers", "oursWorkers", "inline,thread,1,1", (it) => !churns(it) || computes(it)),
  withWorkers("hand-written transfer", "rawWorkers", "move,thread,2", echoes),
  withWorkers("ours, tasks to threads", "oursWorkers", "tasks,thread,2,1", computes),
  withWorkers("ours, tasks to processes", "oursWorkers", "tasks,process,2,1", computes),
  withWorkers("ours, threads, 1 at a time", "oursWorkers", "connections,thread,2,1", churns),
  withWorkers("ours, processes, 1 at a time", "oursWorkers", "connections,process,2,1", churns),
  withWorkers("ours, threads", "oursWorkers", "connections,thread,2,32", () => true),
  withWorkers("ours, processes", "oursWorkers", "connections,process,2,32", () => true),
  withWorkers("hand-written, no workers", "rawWorkers", "inline", (it) => !churns(it)),
  withWorkers("hand-written transfer to processes", "rawWorkers", "move,process,2", echoes),
  withWorkers("piscina", "piscina", "2", computes),
  {
    name: "python ForkingTCPServer",
    start: (workload: Workload) => startPythonServer("forking", workload.service, coreOf(workload)),
    takes: ({ workers }: Workload) => python && !flags.short && workers === "all cores"
  }
].filter(({ name }, index) => index === 0 || name.startsWith("hand-written") || wanted(name, flags.servers))

interface Sample {
  readonly rate: number
  readonly cpu: number
  readonly p50: number
  readonly p99: number
  readonly p999: number
  readonly beside: { readonly p50: number; readonly p99: number }
  readonly errors: number
}

const median = (values: ReadonlyArray<number>) => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

const fixed = (value: number, digits = 2) => Number.isFinite(value) ? value.toFixed(digits) : "–"

const table = (rows: ReadonlyArray<ReadonlyArray<string>>) => {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  for (const row of rows) {
    console.log(row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join("  "))
  }
}

if (workloads.some(({ name, service }) => service === "compute" && wanted(name, flags.only))) {
  process.env["BENCH_ROUNDS"] = String(calibrate(5))
}
const load = startLoad()
const report: Record<string, Record<string, unknown>> = {}

console.log(
  `Node ${process.version}, ${rounds} round(s) of ${duration} ms, ${
    canPin ? "servers on core 0, load on core 1" : "not pinned"
  }. Ratios to the first line, mostly raw node:net; the median of the rounds' own ratios [lowest, highest].\n`
)

const benchWorkload = async (workload: Workload) => {
  const servers = await Promise.all(
    contenders.filter(({ takes }) => takes(workload)).map(async (contender) => ({
      name: contender.name,
      process: await contender.start(workload),
      samples: [] as Array<Sample>
    }))
  )
  for (let round = 0; round < rounds; round++) {
    // Alternating directions: the machine's drift within a round is no server's advantage.
    for (const server of round % 2 === 0 ? servers : servers.toReversed()) {
      const result = await load.run({
        workload,
        target: server.process.target,
        beside: computes(workload) ? server.process.beside : undefined,
        warmup,
        duration
      }, server.process.cpu)
      server.samples.push({
        rate: (workload.kind === "bulk" ? result.bytes / 1e6 : result.requests) / result.seconds,
        cpu: result.cpu / (workload.kind === "bulk" ? result.bytes / 1e6 : result.requests),
        p50: result.p50,
        p99: result.p99,
        p999: result.p999,
        beside: result.beside,
        errors: result.errors
      })
    }
  }
  for (const { process } of servers) process.stop()

  report[workload.name] = Object.fromEntries(servers.map(({ name, samples }) => [name, samples]))
  const raw = servers[0]!.samples
  const ratios = (samples: ReadonlyArray<Sample>, pick: (sample: Sample) => number) => {
    const each = samples.map((sample, round) => pick(sample) / pick(raw[round]!))
    return `${fixed(median(each))} [${fixed(Math.min(...each))}, ${fixed(Math.max(...each))}]`
  }
  const first = servers[0]!.name === "raw" ? "raw" : "1st"
  const unit = workload.kind === "bulk" ? "MB" : "req"
  table([
    [
      workload.name,
      `throughput ÷ ${first}`,
      `CPU/${unit} ÷ ${first}`,
      `p99 ÷ ${first}`,
      `p99.9 ÷ ${first}`,
      `${unit}/s`,
      `µs CPU/${unit}`,
      "p50 µs",
      ...computes(workload) ? ["p99 beside, µs"] : [],
      "errors"
    ],
    ...servers.map(({ name, samples }) => [
      name,
      ratios(samples, ({ rate }) => rate),
      ratios(samples, ({ cpu }) => cpu),
      fixed(median(samples.map(({ p99 }, i) => p99 / raw[i]!.p99))),
      fixed(median(samples.map(({ p999 }, i) => p999 / raw[i]!.p999))),
      fixed(median(samples.map(({ rate }) => rate)), 0),
      fixed(median(samples.map(({ cpu }) => cpu)), 1),
      fixed(median(samples.map(({ p50 }) => p50)), 0),
      ...computes(workload) ? [fixed(median(samples.map(({ beside }) => beside.p99 || Number.NaN)), 0)] : [],
      String(samples.reduce((sum, { errors }) => sum + errors, 0))
    ])
  ])
  console.log()
}

const nodeContenders = contenders.filter(({ name, takes }) =>
  takes(workloads[0]!) && !name.startsWith("python") && !/acceptors|serial/.test(name)
)

/** Resident memory of an idle connection: how much a server with thousands of them has more than one with none. */
const benchMemory = async () => {
  const count = flags.short ? 1_000 : 5_000
  const rows: Array<Array<string>> = []
  let rawBytes = 0
  for (const contender of nodeContenders) {
    const server = await contender.start(workloads[0]!)
    const before = await server.memory()
    await load.hold(count, server.target)
    const bytes = (await server.memory() - before) / count
    if (contender.name === "raw") rawBytes = bytes
    await load.release()
    server.stop()
    rows.push([contender.name, fixed(bytes / rawBytes), fixed(bytes / 1_024, 1)])
    report["idle connections"] = { ...report["idle connections"], [contender.name]: { bytes } }
  }
  table([[`memory × ${count}`, "÷ raw", "KiB each"], ...rows])
  console.log()
}

/** How long it takes to listen, to accept and answer a thousand clients, and to drain them. */
const benchLifecycle = async () => {
  const count = 1_000
  const rows: Array<Array<string>> = []
  for (const contender of nodeContenders) {
    const samples: Array<{ readonly start: number; readonly accept: number; readonly drain: number }> = []
    for (let round = 0; round < Math.min(rounds, 5); round++) {
      const server = await contender.start(workloads[0]!)
      const { millis } = await load.hold(count, server.target)
      samples.push({ start: server.startMillis, accept: millis, drain: await server.drain() ?? Number.NaN })
      await load.release()
      server.stop()
    }
    rows.push([
      contender.name,
      fixed(median(samples.map(({ start }) => start)), 0),
      fixed(median(samples.map(({ accept }) => accept)), 0),
      fixed(median(samples.map(({ drain }) => drain)), 0)
    ])
    report["lifecycle"] = { ...report["lifecycle"], [contender.name]: samples }
  }
  table([["milliseconds", "process to listening", `${count} clients answered`, `drain of ${count}`], ...rows])
  console.log()
}

for (const workload of workloads) if (wanted(workload.name, flags.only)) await benchWorkload(workload)
if (wanted("memory idle", flags.only)) await benchMemory()
if (wanted("lifecycle start drain", flags.only)) await benchLifecycle()
if (wanted("in-memory", flags.only)) report["in-memory"] = await memoryBench(duration)
load.stop()
if (flags.json) console.log(JSON.stringify(report))
