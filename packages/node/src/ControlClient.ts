/**
 * A client of {@link Control}: asks a running program about its servers, and tells them what to do. Each request has a connection
 * of its own.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import * as Net from "node:net"
import type { Code, Items, Request, Values } from "./Control.ts"

/**
 * Why a request was not done: what the control says, or
 *
 * - `NotRunning`: nobody listens at that path
 * - `NoPermission`: the socket belongs to another user
 * - `NoAnswer`: it was silent for 10 seconds; the program may be stopped, or compute
 * - `Lost`: the connection ended before the answer; the program may have ended
 * - `NotControl`: whoever listens there does not speak this protocol
 *
 * @category errors
 * @since 0.1.0
 */
export class ControlError extends Data.TaggedError("ControlError")<{
  readonly code: Code | "NotRunning" | "NoPermission" | "NoAnswer" | "Lost" | "NotControl"
  readonly message: string
}> {}

const cannotConnect = (path: string, error: NodeJS.ErrnoException): ControlError => {
  switch (error.code) {
    case "ENOENT":
    case "ECONNREFUSED":
      return new ControlError({ code: "NotRunning", message: `no server is controlled at ${path}` })
    case "EACCES":
    case "EPERM":
      return new ControlError({
        code: "NoPermission",
        message: `no permission to connect to ${path}: only the user that runs the server may`
      })
    case "ENOTSOCK":
      return new ControlError({ code: "NotControl", message: `${path} is not a socket` })
    default:
      return new ControlError({ code: "Lost", message: `${path}: ${error.message}` })
  }
}

const maxLineLength = 16 * 1024 * 1024

/** The lines of the answer. A reader that is slow slows the program down, and not this one's memory. */
const linesOf = (path: string, request: Request): Stream.Stream<string, ControlError> =>
  Stream.callback<string, ControlError>((queue) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const socket = Net.connect({ path })
        let begun = ""
        let connected = false
        socket.setEncoding("utf8")
        socket.once("connect", () => {
          connected = true
          socket.write(`${JSON.stringify(request)}\n`)
        })
        socket.on("data", (chunk: string) => {
          const lines = (begun + chunk).split("\n")
          begun = lines.pop()!
          if (begun.length > maxLineLength) socket.destroy()
          if (lines.length === 0) return
          socket.pause()
          Effect.runFork(Queue.offerAll(queue, lines)).addObserver(() => socket.resume())
        })
        socket.once("error", (error) =>
          Queue.failCauseUnsafe(
            queue,
            Cause.fail(
              connected
                ? new ControlError({ code: "Lost", message: `${path}: ${error.message}` })
                : cannotConnect(path, error)
            )
          ))
        socket.once("close", () => Queue.endUnsafe(queue))
        return socket
      }),
      (socket) => Effect.sync(() => socket.destroy())
    ), { bufferSize: 256 })

type Line =
  | { readonly item: unknown }
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly code: Code; readonly error: string }

const parse = (path: string) => (line: string): Effect.Effect<Exclude<Line, { readonly ok: false }>, ControlError> =>
  Effect.suspend(() => {
    let json: unknown
    try {
      json = JSON.parse(line)
    } catch {
      json = undefined
    }
    if (typeof json !== "object" || json === null || !("ok" in json || "item" in json)) {
      return new ControlError({ code: "NotControl", message: `what listens at ${path} is not a server's control` })
    }
    const answer = json as Line
    return "item" in answer || answer.ok
      ? Effect.succeed(answer)
      : new ControlError({ code: answer.code, message: answer.error })
  })

/** These are silent for as long as a drain takes, nothing happens, or they were told to be. */
const isPatient = (request: Request): boolean =>
  request.do === "drain" || request.do === "events" || request.do === "top"

const answersTo = (path: string, request: Request) => {
  const answers = Stream.mapEffect(linesOf(path, request), parse(path))
  return isPatient(request) ? answers : Stream.timeoutOrElse(answers, {
    duration: "10 seconds",
    orElse: () =>
      Stream.fail(
        new ControlError({
          code: "NoAnswer",
          message: `${path} has not answered for 10 seconds: the program that listens there may be stopped, or busy`
        })
      )
  })
}

const lost = (path: string) =>
  new ControlError({ code: "Lost", message: `the connection to ${path} ended before the answer` })

/**
 * Sends a request, and gives the value that it is answered with.
 *
 * **Gotchas**
 *
 * A program that is silent for 10 seconds is `NoAnswer`; what it was told it may yet do. A `drain` is waited for as long as it
 * takes, and so is a program that never answers to it: set a limit of your own, such as `Effect.timeout`, above its grace and
 * kill.
 *
 * **Example** (Ending what one client has)
 *
 * ```ts
 * import { ControlClient } from "@socketserver/node"
 *
 * const closed = ControlClient.request("/run/echo/control.sock", { do: "close", where: { peer: "192.0.2.7" } })
 * ```
 *
 * @category requests
 * @since 0.1.0
 */
export const request = <Do extends Request["do"]>(
  path: string,
  request: Extract<Request, { readonly do: Do }> & { readonly do: Do }
): Effect.Effect<Values[Do], ControlError> =>
  answersTo(path, request).pipe(
    Stream.filter((answer) => "ok" in answer),
    Stream.runHead,
    Effect.flatMap(Effect.fromOption),
    Effect.mapBoth({
      onSuccess: ({ value }) => value as Values[Do],
      onFailure: (error) => error instanceof ControlError ? error : lost(path)
    })
  )

/**
 * Sends a request, and gives the items that come before its answer. Interrupting it ends the connection. Where `connections` has
 * no next item for 10 seconds, it fails with `NoAnswer`; `events` and `top` are waited for.
 *
 * @category requests
 * @since 0.1.0
 */
export const items = <Do extends keyof Items>(
  path: string,
  request: Extract<Request, { readonly do: Do }> & { readonly do: Do }
): Stream.Stream<Items[Do], ControlError> =>
  Stream.concat(answersTo(path, request), Stream.fail(lost(path))).pipe(
    Stream.takeWhile((answer) => "item" in answer),
    Stream.map((answer) => (answer as { readonly item: Items[Do] }).item)
  )
