/**
 * The processes of a benchmark: servers on one core, the load generator on another, where the system lets them be pinned.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import type { LoadCommand, LoadResult } from "./load.ts"
import type { Usage } from "./servers/control.ts"

export const canPin = availableParallelism() > 1 && spawnSync("taskset", ["-V"]).status === 0
export const python = spawnSync("python3", ["--version"]).status === 0

const start = (core: number | "all", command: string, args: ReadonlyArray<string>, ipc: boolean): ChildProcess => {
  const [file, all] = canPin && core !== "all"
    ? ["taskset", ["-c", String(core), command, ...args]] as const
    : [command, args] as const
  return spawn(file, all, { stdio: ["ignore", ipc ? "ignore" : "pipe", "inherit", ...(ipc ? ["ipc" as const] : [])] })
}

/** The next message that has the given key. Fails when the process ends. */
export const receive = <A>(child: ChildProcess, key: string): Promise<A> =>
  new Promise((resolve, reject) => {
    const onMessage = (message: any) => {
      if (!(key in message)) return
      child.off("message", onMessage)
      child.off("exit", onExit)
      resolve(message[key])
    }
    const onExit = (code: number | null, signal: string | null) =>
      reject(new Error(`${child.spawnargs.join(" ")} ended with ${code ?? signal}`))
    child.on("message", onMessage)
    child.once("exit", onExit)
  })

const script = (name: string) => fileURLToPath(new URL(name, import.meta.url))

export interface ServerProcess {
  readonly target: { readonly host: string; readonly port: number } | { readonly path: string }
  /** The port of a server for echo in the same process, if it has one. */
  readonly beside: number | undefined
  /** From the start of the process until it listens, in milliseconds. */
  readonly startMillis: number
  /** CPU time so far, in microseconds, with all threads and processes that the server has started. */
  readonly cpu: () => Promise<number>
  readonly memory: () => Promise<number>
  /** The time that a drain took, in milliseconds, where the server has one. */
  readonly drain: () => Promise<number | undefined>
  readonly stop: () => void
}

export const startNodeServer = async (
  file: string,
  service: string,
  path: string | undefined,
  style?: string,
  core: number | "all" = 0
): Promise<ServerProcess> => {
  const args = [
    script(`./servers/${file}.ts`),
    service,
    ...(path === undefined ? style === undefined ? [] : [""] : [path])
  ]
  const began = performance.now()
  const child = start(core, process.execPath, style === undefined ? args : [...args, style], true)
  const address = await receive<{ port?: number; path?: string; beside?: number }>(child, "ready")
  const startMillis = performance.now() - began
  const ask = async (what: "cpu" | "memory" | "drain") => {
    const answer = new Promise<{ usage: Usage; drained?: number }>((resolve) => child.once("message", resolve as never))
    child.send({ ask: what })
    return await answer
  }
  return {
    target: address.path === undefined ? { host: "127.0.0.1", port: address.port! } : { path: address.path },
    beside: address.beside,
    startMillis,
    cpu: async () => (await ask("cpu")).usage.cpu + childrenCpu(child.pid!),
    memory: async () => (await ask("memory")).usage.rss,
    drain: async () => (await ask("drain")).drained,
    stop: () => child.kill("SIGKILL")
  }
}

export const startPythonServer = async (
  strategy: string,
  service: string,
  core: number | "all" = 0
): Promise<ServerProcess> => {
  const began = performance.now()
  const child = start(core, "python3", [script("./servers/python.py"), strategy, service], false)
  const port = await new Promise<number>((resolve) => child.stdout!.once("data", (data) => resolve(Number(data))))
  return {
    target: { host: "127.0.0.1", port },
    beside: undefined,
    startMillis: performance.now() - began,
    cpu: () => Promise.resolve(systemCpu(child.pid!) + childrenCpu(child.pid!)),
    memory: () => Promise.resolve(Number.NaN),
    drain: () => Promise.resolve(undefined),
    stop: () => child.kill("SIGKILL")
  }
}

/** User and system time of another process, in microseconds, as Linux has it: in hundredths of a second. */
const systemCpu = (pid: number): number => {
  try {
    return 10_000 * timesOf(pid).reduce((sum, time) => sum + time, 0)
  } catch {
    return Number.NaN
  }
}

/** User and system time, and those of its children that have ended. */
const timesOf = (pid: number | string): ReadonlyArray<number> =>
  readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ").slice(11, 15).map(Number)

/** What the children that a process has now have used, and theirs; 0 where the system does not tell. */
const childrenCpu = (pid: number): number => {
  try {
    return readdirSync(`/proc/${pid}/task`)
      .flatMap((task) => readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").split(" "))
      .filter((child) => child !== "")
      .reduce((sum, child) => sum + systemCpu(Number(child)) + childrenCpu(Number(child)), 0)
  } catch {
    return 0
  }
}

export const startLoad = () => {
  const child = start(1, process.execPath, [script("./load.ts")], true)
  return {
    /** Runs one workload; `cpu` is asked at the beginning and the end of what is measured. */
    run: async (command: LoadCommand, cpu: () => Promise<number>) => {
      const begin = receive<true>(child, "begin")
      const end = receive<true>(child, "end")
      const result = receive<LoadResult>(child, "result")
      child.send({ run: command })
      await begin
      const before = await cpu()
      await end
      const after = await cpu()
      return { ...await result, cpu: after - before }
    },
    hold: async (count: number, target: ServerProcess["target"]) => {
      const held = receive<{ readonly millis: number }>(child, "held")
      child.send({ hold: { count, target } })
      return await held
    },
    release: async () => {
      const released = receive<true>(child, "released")
      child.send({ release: true })
      return await released
    },
    stop: () => child.kill("SIGKILL")
  }
}
