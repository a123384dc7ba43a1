/** Threads and processes, held to what every dispatch strategy must do; and what is left of them when a test is over. */
import { assert, describe } from "@effect/vitest"
import { NodeDispatch, NodeTransport } from "@socketserver/node"
import { DispatchSuite, TestClient } from "@socketserver/testing"
import { Effect, Layer } from "effect"
import type { NetAddress } from "effect/net"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach } from "vitest"
import { authority, identityOf, localhost } from "./certificates.ts"
import { directory } from "./utils.ts"

/** What the process has that a worker could leave behind; what else comes and goes is not looked at. */
const held = () => {
  const resources = process.getActiveResourcesInfo()
  const count = (...kinds: ReadonlyArray<string>) => resources.filter((kind) => kinds.includes(kind)).length
  return {
    children: children().length,
    descriptors: existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0,
    handles: count("ProcessWrap", "PipeWrap", "PipeServerWrap", "TCPSocketWrap", "TCPServerWrap"),
    ports: count("MessagePort", "Worker"),
    threads: existsSync("/proc/self/task") ? readdirSync("/proc/self/task").length : 0,
    timers: count("Timeout")
  }
}

/** The processes that this one has started, where the system tells. */
const children = (): ReadonlyArray<string> =>
  existsSync("/proc/thread-self/children") ? readdirSync("/proc/self/task").flatMap(childrenOf) : []

const childrenOf = (thread: string): ReadonlyArray<string> => {
  try {
    return readFileSync(`/proc/self/task/${thread}/children`, "utf8").split(" ").filter((pid) => pid !== "")
  } catch (error) {
    // It has just ended.
    if ((error as NodeJS.ErrnoException).code === "ENOENT" || (error as NodeJS.ErrnoException).code === "ESRCH") {
      return []
    }
    throw error
  }
}

const watchLeaks = () => {
  let before: Record<string, number> = {}
  beforeEach(() => {
    before = held()
  })
  // Without a timer of its own, which would be counted.
  afterEach(async () => {
    const excess = () => Object.entries(held()).filter(([kind, count]) => count > before[kind]!)
    const deadline = performance.now() + 5_000
    while (excess().length > 0 && performance.now() < deadline) await new Promise((resolve) => setImmediate(resolve))
    assert.deepStrictEqual(excess(), [], "left behind")
  })
}

const dispatch =
  (kind: "thread" | "process"): DispatchSuite.WorkerSuiteOptions["dispatch"] => ({ maxInFlight, queue }) =>
    NodeDispatch.workerPerRequest({ kind, maxWorkers: maxInFlight, queue: { max: queue } })

// What the suite asks for does not depend on the transport: each kind has one, and each way of a connection to a worker.
const tls = NodeTransport.tls(identityOf(localhost))
const connectTls = (address: NetAddress.SocketAddress) =>
  TestClient.tls(address, { ca: authority.cert, servername: "localhost" })

describe("threads", () => {
  watchLeaks()

  DispatchSuite.workerSuite("on tcp, over TLS", {
    dispatch: dispatch("thread"),
    maxInFlight: 2,
    layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(tls),
    connect: connectTls
  })

  DispatchSuite.workerSuite("in memory, by bytes", { dispatch: dispatch("thread"), maxInFlight: 2 })

  DispatchSuite.workerSuite("on tcp, two requests a worker, and three in its life", {
    dispatch: ({ queue }) =>
      NodeDispatch.workerPerRequest({
        kind: "thread",
        maxWorkers: 2,
        concurrencyPerWorker: 2,
        recycleAfter: 3,
        queue: { max: queue, overflow: "refuseOldest" }
      }),
    maxInFlight: 4,
    overflow: "refuseOldest",
    isolated: false,
    layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }),
    connect: TestClient.node
  })
})

describe("processes", () => {
  watchLeaks()

  DispatchSuite.workerSuite("on unix, over TLS", {
    dispatch: dispatch("process"),
    maxInFlight: 2,
    layer: () => Layer.unwrap(Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))).pipe(tls),
    connect: connectTls
  })

  DispatchSuite.workerSuite("on unix, by sockets", {
    dispatch: dispatch("process"),
    maxInFlight: 2,
    layer: () => Layer.unwrap(Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }))),
    connect: TestClient.node
  })
})
