/** One worker as the system has it, a thread or a process: started, spoken to, and ended, by force where it must be. */
import * as ChildProcess from "node:child_process"
import * as Net from "node:net"
import { Worker } from "node:worker_threads"
import { defined } from "./options.ts"
import type { FromWorker, ToWorker } from "./workerProtocol.ts"

export interface HandleOptions {
  readonly kind: "thread" | "process"
  readonly env: Readonly<Record<string, string | undefined>> | undefined
  readonly execArgv: ReadonlyArray<string> | undefined
  readonly resourceLimits: ResourceLimits | undefined
}

/**
 * How much memory a worker may take; see `resourceLimits` of `node:worker_threads`. What is left out is as Node has it.
 *
 * @category options
 * @since 0.1.0
 */
export interface ResourceLimits {
  /** The main heap, in MiB. */
  readonly maxOldGenerationSizeMb?: number | undefined
  /** The heap of young objects, in MiB. */
  readonly maxYoungGenerationSizeMb?: number | undefined
  /** The stack, in MiB; threads only. */
  readonly stackSizeMb?: number | undefined
}

export interface WorkerHandle {
  readonly post: (message: ToWorker) => void
  /** Gives the socket along with the message, if it can be given to such a worker. A process has it for itself some time later. */
  readonly postSocket: (message: ToWorker, socket: Net.Socket, wasRead: boolean, onMoved: () => void) => boolean
  /** At once, whatever it does. */
  readonly kill: () => void
}

interface Events {
  readonly onMessage: (message: FromWorker) => void
  /** The message has not arrived, with its socket: the worker has no descriptors left. */
  readonly onLost: (message: ToWorker) => void
  /** It is gone, and all that it had; `cause` says why. Once. */
  readonly onEnd: (cause: Error) => void
}

/** This module's own ending: `.ts` in development, `.js` when built. */
const main = new URL(`./workerMain${import.meta.url.slice(import.meta.url.lastIndexOf("."))}`, import.meta.url)

export const spawn = (options: HandleOptions, events: Events): WorkerHandle => {
  try {
    return options.kind === "thread" ? spawnThread(options, events) : spawnProcess(options, events)
  } catch (error) {
    // The system has no room for one more, or Node does not take the options.
    queueMicrotask(() => events.onEnd(error as Error))
    return { post: () => {}, postSocket: () => false, kill: () => {} }
  }
}

/** Does this Node move TCP sockets to threads: fresh ones, and those that were read from? It may turn out that it does not. */
const canTransfer = Object.getOwnPropertySymbols(Net.Socket.prototype).some(({ description }) =>
  description === "messaging_transfer_symbol"
)
const movesToThreads = { fresh: canTransfer, read: canTransfer }

/** Does a worker of the kind get sockets that were read from? */
export const movesSockets = (kind: HandleOptions["kind"], isTcp: boolean): boolean =>
  kind === "process" || (movesToThreads.read && isTcp)

const spawnThread = (options: HandleOptions, { onEnd, onMessage }: Events): WorkerHandle => {
  const worker = new Worker(main, {
    ...defined({
      env: options.env === undefined ? undefined : { ...options.env },
      execArgv: options.execArgv === undefined ? undefined : [...options.execArgv],
      resourceLimits: options.resourceLimits
    })
  })
  let failure: Error | undefined
  worker.on("message", onMessage)
  worker.on("error", (error) => {
    failure = error instanceof Error ? error : new Error(String(error))
  })
  worker.on("exit", (code) => onEnd(failure ?? new Error(`the thread exited with code ${code}`)))
  return {
    post: (message) => worker.postMessage(message),
    postSocket: (message, socket, wasRead) => {
      const kind = wasRead ? "read" : "fresh"
      // Unix sockets are not moved.
      if (!movesToThreads[kind] || socket.remoteFamily === undefined) return false
      // Node moves none that was read from, lest something is lost: here, what was read goes along with the message.
      if (wasRead) Object.defineProperty(socket, "bytesRead", { configurable: true, value: 0 })
      try {
        worker.postMessage({ ...message, socket }, [socket as any])
        return true
      } catch {
        movesToThreads[kind] = false
        delete (socket as { bytesRead?: number }).bytesRead
        return false
      }
    },
    kill: () => void worker.terminate()
  }
}

const spawnProcess = (options: HandleOptions, { onEnd, onLost, onMessage }: Events): WorkerHandle => {
  const { env, execArgv = process.execArgv, resourceLimits } = options
  const child = ChildProcess.fork(main, [], {
    env: { ...env ?? process.env },
    execArgv: [...execArgv, ...heapFlags(resourceLimits)],
    serialization: "advanced",
    // The last one tells it of our end.
    stdio: ["ignore", "inherit", "inherit", "ipc", "pipe"]
  })
  let gone = false
  const moving = new Moving()
  const end = (cause: Error) => {
    if (gone) return
    gone = true
    moving.close()
    onEnd(cause)
  }
  child.on("error", (error) => {
    // Without a process there will be no exit.
    if (child.pid === undefined) end(error)
  })
  // Writing to one that is just ending. There is none where this process has no descriptors left.
  child.stdio?.[4]?.on("error", () => {})
  child.on("message", (message) => onMessage(message as FromWorker))
  // Not documented: what Node itself hears, and has acted upon by now.
  child.on("internalMessage", ({ cmd }: { readonly cmd?: unknown }) => {
    if (cmd === "NODE_HANDLE_ACK") { for (const { onMoved } of moving.takeClosed()) onMoved() }
    else if (cmd === "NODE_HANDLE_NACK") { for (const { message } of moving.takeClosed()) onLost(message) }
  })
  child.on(
    "exit",
    (code, signal) =>
      end(new Error(`the process ${signal === null ? `exited with code ${code}` : `was ended by ${signal}`}`))
  )
  return {
    post: (message) => {
      if (child.connected) child.send(message, () => {})
    },
    postSocket: (message, socket, _wasRead, onMoved) => {
      if (!child.connected) return false
      const handle = handleOf(socket)
      try {
        child.send(message, socket, {}, () => {})
        if (handle) moving.sockets.push({ message, onMoved, socket, handle })
        return true
      } catch {
        // The client is gone already.
        return false
      }
    },
    kill: () => void child.kill("SIGKILL")
  }
}

/** What a socket has of the system; Node keeps it in an undocumented place. */
interface SystemHandle {
  readonly fd: number
  readonly close: () => void
}

const handleOf = (socket: Net.Socket): SystemHandle | null | undefined =>
  (socket as { readonly _handle?: SystemHandle | null })._handle

/**
 * Sockets on their way to a process. Node closes its own descriptor of one when the process has acknowledged it, and sends the
 * next one only then. So it does when the process has not got it for the fourth time. Where the process ends before that it
 * closes none: their clients would wait for ever.
 */
class Moving {
  sockets: Array<{
    readonly message: ToWorker
    readonly onMoved: () => void
    readonly socket: Net.Socket
    readonly handle: SystemHandle
  }> = []

  /** Those that Node has closed. It takes one after the other. */
  takeClosed(): Moving["sockets"] {
    const first = this.sockets.findIndex(({ handle }) => handle.fd >= 0)
    return this.sockets.splice(0, first === -1 ? this.sockets.length : first)
  }

  close(): void {
    for (const { handle, socket } of this.sockets) {
      // One that was not sent yet has its handle; closing that a second time does nothing.
      socket.destroy()
      handle.close()
    }
    this.sockets = []
  }
}

const heapFlags = (limits: ResourceLimits = {}): ReadonlyArray<string> => {
  const { maxOldGenerationSizeMb: old, maxYoungGenerationSizeMb: young } = limits
  return [
    ...old === undefined ? [] : [`--max-old-space-size=${old}`],
    ...young === undefined ? [] : [`--max-semi-space-size=${young}`]
  ]
}
