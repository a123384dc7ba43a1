/**
 * The processes of a proof. The server has one of its own, so that its memory, descriptors and processor time are only its; so has
 * each attack, which is a function that a proof's file exports by the name `attack`. What clients measure, they measure in the
 * process that runs the proof, where nothing else goes on.
 */
import { receive } from "@socketserver/bench/processes"
import { type ChildProcess, spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import type { Report, ServerConfig, Summary } from "./server.ts"

const children = new Set<ChildProcess>()

/** Ends every process that a proof has left running. */
export const stopAll = () => {
  for (const child of children) child.kill("SIGKILL")
}

export interface ProcessOptions {
  /** How many it may have; by default as many as this process may. */
  readonly descriptors?: number | undefined
  /** The network namespace that it runs in. */
  readonly namespace?: string | undefined
  /** A directory for what `counted` counts. */
  readonly counters?: string | undefined
}

/** A script in a process of its own. */
export const start = (
  path: string,
  args: ReadonlyArray<string>,
  { counters, descriptors, namespace }: ProcessOptions = {}
): ChildProcess => {
  const node = [process.execPath, fileURLToPath(new URL(path, import.meta.url)), ...args]
  const raised = descriptors === undefined ? "" : `ulimit -n ${descriptors} && `
  const within = namespace === undefined ? [] : ["ip", "netns", "exec", namespace]
  const child = spawn("sh", ["-c", `${raised}exec "$@"`, "sh", ...within, ...node], {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    env: { ...process.env, COUNTERS: counters }
  })
  children.add(child)
  child.once("exit", () => children.delete(child))
  return child
}

export type Target = { readonly host: string; readonly port: number } | { readonly path: string }

export interface ServerProcess {
  readonly target: Target
  readonly pid: number
  /** How the server is just now; `"collected"` is after a collection of garbage, for the memory. */
  readonly report: (how?: "now" | "collected") => Promise<Report>
  /** Asks until what it reports holds, or `millis` have passed; gives the last answer. */
  readonly until: (holds: (report: Report) => boolean, millis: number) => Promise<Report>
  /** Has it ended, in whatever way? */
  readonly exited: () => boolean
  /** Its exit code, or the signal that ended it. */
  readonly exit: Promise<number | string>
  /** SIGTERM; gives what it says at its end. */
  readonly terminate: () => Promise<Summary>
  readonly kill: () => void
}

export const startServer = async (config: ServerConfig, options?: ProcessOptions): Promise<ServerProcess> => {
  const child = start("./server.ts", [JSON.stringify(config)], options)
  const exit = new Promise<number | string>((resolve) => child.once("exit", (code, signal) => resolve(code ?? signal!)))
  const target = await receive<Target>(child, "ready")
  const report = (how = "now") => {
    const answer = receive<Report>(child, "report")
    child.send({ report: how })
    return answer
  }
  return {
    target,
    pid: child.pid!,
    report,
    until: async (holds, millis) => {
      const end = performance.now() + millis
      while (true) {
        const latest = await report()
        if (holds(latest) || performance.now() > end) return latest
        await sleep(20)
      }
    },
    exited: () => child.exitCode !== null || child.signalCode !== null,
    exit,
    terminate: async () => {
      const summary = receive<Summary>(child, "summary")
      child.kill("SIGTERM")
      return await summary
    },
    kill: () => child.kill("SIGKILL")
  }
}

/**
 * Runs `attack` of the module `url` in a process of its own: completes when the attack is under way. `end` ends it, and gives what
 * came of it. Its clients have as many descriptors as the process may have at all.
 */
export const startAttack = async <Args, Result>(
  url: string,
  _attack: Attack<Args, Result>,
  args: Args
): Promise<{ readonly pid: number; readonly end: () => Promise<Result> }> => {
  const child = start("./attacker.ts", [url, JSON.stringify(args)])
  await receive(child, "underWay")
  return {
    pid: child.pid!,
    end: async () => {
      const result = receive<Result>(child, "result")
      child.send({ end: true })
      const value = await result
      child.kill("SIGKILL")
      return value
    }
  }
}

/** Completes when it is under way, with a function that ends it. */
export type Attack<Args, Result> = (args: Args) => Promise<() => Promise<Result> | Result>

export const sleep = (millis: number) => new Promise<void>((resolve) => setTimeout(resolve, millis))
