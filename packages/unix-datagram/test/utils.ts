/** Servers and clients for the tests: clients of the native part alone, and programs that nobody here wrote. */
import { type DatagramTransport, Dispatch, Server } from "@socketserver/core"
import { type DatagramTestClient, TestClient } from "@socketserver/testing"
import { type Cause, Context, Effect, Layer, Queue, type Scope, Stream } from "effect"
import { NetAddress } from "effect/net"
import { spawn, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { errnoException, load, location, Socket } from "../src/internal/native.ts"

export const startWith =
  (step: ReturnType<typeof Dispatch.custom>) =>
  <E, R>(transport: Layer.Layer<DatagramTransport.DatagramTransport>, handler: Server.DatagramHandler<E, R>) =>
    transport.pipe(step, Server.serveDatagram(handler), Layer.build, Effect.map(Context.get(Server.Server)))

export const start = startWith(Dispatch.fiberPerRequest())
export const startSerial = startWith(Dispatch.serial())

export const directory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "socketserver-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

export const eventLoopTurn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** A bound client, or with the path `""` one without an address. Sending waits for a receiver that does not keep up. */
export const makeClient = (
  path: string
): Effect.Effect<DatagramTestClient.DatagramTestClient, TestClient.ClientError, Scope.Scope> =>
  Effect.gen(function*() {
    const received = yield* Queue.unbounded<Effect.Success<DatagramTestClient.DatagramTestClient["receive"]>>()
    const socket = yield* Effect.acquireRelease(
      Effect.try({
        try: () =>
          new Socket(load(location), {
            path,
            mode: undefined,
            maxPacketSize: 300_000,
            onPacket: (payload, from) =>
              void Queue.offerUnsafe(received, { peer: NetAddress.unixPathAddress(from), payload })
          }),
        catch: (cause) => new TestClient.ClientError({ reason: "Failed", cause: cause as Error })
      }),
      (socket) =>
        Effect.sync(() => {
          socket.close()
          if (path !== "" && !path.startsWith("\0")) rmSync(path)
        })
    )
    const send = (to: string, payload: Uint8Array | string): Effect.Effect<void, TestClient.ClientError> =>
      Effect.suspend(() => {
        const result = socket.send(to, payload)
        if (result === 0) return Effect.void
        const cause = errnoException("sendto", result)
        return cause.code === "EAGAIN"
          ? Effect.andThen(eventLoopTurn, send(to, payload))
          : Effect.fail(new TestClient.ClientError({ reason: "Failed", cause }))
      })
    return {
      address: NetAddress.unixPathAddress(path),
      send: (to, payload) => NetAddress.isUnixPathAddress(to) ? send(to.path, payload) : Effect.die("not a unix path"),
      receive: Queue.take(received)
    }
  })

export interface Program {
  readonly send: (text: string) => Effect.Effect<void>
  /** Has nothing more to send. */
  readonly finish: Effect.Effect<void>
  /** The next line, or `Cause.Done`. */
  readonly line: Effect.Effect<string, Cause.Done>
  readonly kill: Effect.Effect<void>
  /** Exit code and errors, when the program has ended. */
  readonly end: Effect.Effect<readonly [code: number | null, errors: ReadonlyArray<string>]>
}

const linesOf = (readable: Readable) => {
  const lines = Effect.runSync(Queue.unbounded<string, Cause.Done>())
  createInterface({ input: readable })
    .on("line", (line) => Queue.offerUnsafe(lines, line))
    .on("close", () => Queue.endUnsafe(lines))
  return lines
}

/** Starts a program; it is killed if it still runs when the test ends. */
export const run = (command: string, args: ReadonlyArray<string>): Effect.Effect<Program, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(command, args)
      child.stdin.on("error", () => {})
      return child
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.map((child) => {
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
    const errors = linesOf(child.stderr)
    return {
      send: (text) => Effect.sync(() => void child.stdin.write(text)),
      finish: Effect.sync(() => void child.stdin.end()),
      line: Queue.take(linesOf(child.stdout)),
      kill: Effect.andThen(Effect.sync(() => void child.kill("SIGKILL")), Effect.promise(() => ended)),
      end: Effect.all([Effect.promise(() => ended), Stream.runCollect(Stream.fromQueue(errors))])
    }
  }))

/** The title of a test, and whether it can be run. */
export const needs = (command: string, version: string, debianPackage: string) => {
  const isThere = spawnSync(command, [version]).error === undefined
  return { runIf: isThere, note: isThere ? "" : ` (needs ${command}: apt-get install ${debianPackage})` }
}
