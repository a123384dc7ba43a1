/**
 * A process for each connection, as inetd and tcpserver have it: a command's input and output are the connection. Any program
 * that reads and writes becomes a server. What it writes to its standard error is logged, at Debug, and so is how it ended.
 *
 * @since 0.1.0
 */
import type { Connection } from "@socketserver/core/Connection"
import type { ConnectionError } from "@socketserver/core/ConnectionError"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as NetAddress from "effect/net/NetAddress"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"

/**
 * What can be said about the processes.
 *
 * @category options
 * @since 0.1.0
 */
export interface ExecOptions {
  /** How long a process may take to end after SIGTERM, before SIGKILL. Default 3 seconds: less than a server's `kill`. */
  readonly killAfter?: Duration.Input | undefined
}

/**
 * The command could not be started. It is only this connection that fails.
 *
 * @category errors
 * @since 0.1.0
 */
export class CannotStart extends Data.TaggedError("CannotStart")<{ readonly command: string; readonly cause: Error }> {
  override readonly message = `cannot start ${this.command}: ${this.cause.message}`
}

/**
 * Of a line on standard error, so many characters are logged.
 *
 * @category constants
 * @since 0.1.0
 */
export const maxLogged = 1000

// Processes that are to go with this one, also where it ends at once: they are groups of their own, which nobody else would end.
const running = new Set<number>()

const killAll = (): void => {
  for (const pid of running) {
    try {
      process.kill(-pid, "SIGKILL")
    } catch {
      // It has ended.
    }
  }
}

const endWithThisProcess = (pid: number) =>
  Effect.sync(() => {
    if (running.size === 0) process.on("exit", killAll)
    running.add(pid)
  })

const forget = (pid: number) =>
  Effect.sync(() => {
    if (running.delete(pid) && running.size === 0) process.off("exit", killAll)
  })

/** What is still to come from a process that has ended. Others may have its output open, too, and are not waited for. */
const theRestOf = <A, E>(fiber: Fiber.Fiber<A, E>) => Effect.timeoutOption(Fiber.await(fiber), "1 second")

/**
 * Who is there, under the names that tcpserver has for it (https://cr.yp.to/proto/ucspi-tcp.txt). Nobody asks for
 * names here; those that this process may have been started with are about another connection.
 */
const environment = ({ local, peer }: Connection) => ({
  PROTO: NetAddress.isInetAddress(peer) ? "TCP" : "UNIX",
  TCPREMOTEIP: NetAddress.isInetAddress(peer) ? NetAddress.formatHost(peer) : undefined,
  TCPREMOTEPORT: NetAddress.isInetAddress(peer) ? String(peer.port) : undefined,
  TCPLOCALIP: NetAddress.isInetAddress(local) ? NetAddress.formatHost(local) : undefined,
  TCPLOCALPORT: NetAddress.isInetAddress(local) ? String(local.port) : undefined,
  TCPREMOTEHOST: undefined,
  TCPREMOTEINFO: undefined,
  TCPLOCALHOST: undefined
})

/** Lines for a log: of each only the beginning is kept, and no control characters. */
const logLines = (bytes: Stream.Stream<Uint8Array, unknown>) =>
  bytes.pipe(
    Stream.decodeText,
    Stream.mapAccum(() => "", (begun, text) => {
      const lines = (begun + text).split("\n").map((line) => line.slice(0, maxLogged))
      return [lines.pop()!, lines]
    }, { onHalt: (begun) => begun === "" ? [] : [begun] }),
    Stream.runForEach((line) => Effect.logDebug(line.replace(/\p{Cc}/gu, "")))
  )

/**
 * A handler that runs the command, with the `ChildProcessSpawner` of `NodeServices.layer` in `@effect/platform-node`. The client's end of input is the process's; the connection closes when the process has
 * ended, and all who have its output open; the process is killed when the connection is lost. That is noticed by reading and
 * writing: a client that has sent more than the process reads can be gone for as long as the process does neither.
 *
 * **Details**
 *
 * Who is there is in the process's environment, by the names of tcpserver: `PROTO`, `TCPREMOTEIP`, `TCPREMOTEPORT`, `TCPLOCALIP`,
 * `TCPLOCALPORT`. The connection is annotated with its `pid`. In a drain the process sees the end of its input, and after `grace`
 * SIGTERM: let the server's `kill` be longer than `killAfter`. Where this process exits, its processes are killed.
 *
 * **Example** (A calculator for each client)
 *
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Exec, NodeTransport } from "@socketserver/node"
 * import { Dispatch, Server } from "@socketserver/core"
 * import { Layer } from "effect"
 *
 * const Calculator = NodeTransport.tcp({ host: "127.0.0.1", port: 7001 }).pipe(
 *   Dispatch.fiberPerRequest({ maxInFlight: 40 }),
 *   Server.serveStream(Exec.exec("bc", ["-q"])),
 *   Layer.provide(NodeServices.layer)
 * )
 * ```
 *
 * @category handlers
 * @since 0.1.0
 */
export const exec = (command: string, args: ReadonlyArray<string> = [], options: ExecOptions = {}) => {
  const forceKillAfter = options.killAfter ?? "3 seconds"

  return Effect.fnUntraced(function*(connection: Connection) {
    let pid = 0
    yield* Effect.addFinalizer(() => forget(pid))
    // When the scope closes, whatever the process has started goes too: they are a process group.
    const child = yield* ChildProcess.make(command, args, {
      env: environment(connection),
      extendEnv: true,
      forceKillAfter
    }).pipe(Effect.mapError((cause) => new CannotStart({ command, cause })))
    pid = child.pid
    yield* endWithThisProcess(pid)
    yield* connection.annotate("pid", pid)
    yield* Effect.annotateLogsScoped({ command, pid })

    // To the process, a lost connection is not the end of its input: it would take half a file for the whole. It is killed,
    // and only then its input closes.
    const lost = yield* Deferred.make<never, ConnectionError>()
    const received = Stream.catchTag(
      connection.bytes,
      "ConnectionError",
      (error) => Stream.fromEffect(Effect.andThen(Deferred.fail(lost, error), Effect.never))
    )
    yield* Stream.run(received, child.stdin).pipe(
      // It does not want to read any more. What the client still sends is dropped: who does not read does not notice, either,
      // when the client is gone.
      Effect.catchTag("PlatformError", () => Stream.runDrain(received)),
      Effect.forkScoped
    )
    const output = yield* Effect.forkScoped(Stream.run(child.stdout, connection.sink))
    const errors = yield* Effect.forkScoped(logLines(child.stderr))

    const ended = Effect.gen(function*() {
      yield* Fiber.join(output)
      // The process may go on reading when it has nothing more to say.
      yield* connection.end
      yield* Effect.exit(child.exitCode)
    })
    yield* Effect.raceFirst(ended, Deferred.await(lost)).pipe(
      // The client is gone, or the drain's grace is over. What the process says to SIGTERM is still sent.
      Effect.onError(() => Effect.andThen(Effect.ignore(child.kill({ forceKillAfter })), theRestOf(output))),
      Effect.ensuring(Effect.gen(function*() {
        yield* theRestOf(errors)
        const exit = yield* Effect.exit(child.exitCode)
        yield* Effect.logDebug(Exit.isSuccess(exit) ? `exit code ${exit.value}` : exit.cause)
      }))
    )
  })
}
