/** What every server process does besides serving: it says where it listens, and what it has used. */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

export interface Usage {
  /** User and system time of the process, in microseconds. */
  readonly cpu: number
  /** Resident memory in bytes, after a collection. */
  readonly rss: number
}

/** Collects garbage, twice: what the first run has made unreachable goes with the second. */
export const collect = () => {
  setFlagsFromString("--expose-gc")
  const gc: () => void = runInNewContext("gc")
  gc()
  gc()
}

export const control = (hooks?: { readonly drain?: (() => Promise<number>) | undefined }) => {
  process.on("message", async (message: { readonly ask: "cpu" | "memory" | "drain" }) => {
    if (message.ask === "memory") collect()
    const { system, user } = process.cpuUsage()
    const drained = message.ask === "drain" ? await hooks?.drain?.() : undefined
    process.send!({ usage: { cpu: user + system, rss: process.memoryUsage.rss() }, drained })
  })
  process.on("disconnect", () => process.exit())
}

export const ready = (address: { readonly port?: number; readonly path?: string; readonly beside?: number }) => {
  process.send!({ ready: address })
}

/** The arguments that the benchmark starts a server with. */
export const service = process.argv[2] as "echo" | "lines" | "compute" | "datagrams" | "resp"
export const listenPath = process.argv[3]
