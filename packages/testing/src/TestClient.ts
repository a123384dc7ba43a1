/**
 * A client for tests: it writes, finishes, resets and reads when it is told to, and never by itself. It is the yardstick
 * that transports are measured with, so the one for real sockets is written over `node:net` alone and shares no code with
 * the connections that it tests.
 *
 * @since 0.1.0
 */
import type { ConnectionError } from "@socketserver/core/ConnectionError"
import * as MemoryTransport from "@socketserver/core/MemoryTransport"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import * as Tls from "node:tls"

/**
 * Why a client could not connect, write or read.
 *
 * - `Refused`: nobody listens on the address
 * - `Reset`: the server reset the connection, or is gone
 * - `Closed`: this client has finished sending, or has reset the connection, before
 * - `UnexpectedEnd`: the server finished before everything that was asked for had come
 * - `Failed`: anything else, in `cause`
 *
 * @category errors
 * @since 0.1.0
 */
export class ClientError extends Data.TaggedError("ClientError")<{
  readonly reason: "Refused" | "Reset" | "Closed" | "UnexpectedEnd" | "Failed"
  readonly cause?: Error | undefined
}> {
  override get message(): string {
    return this.cause === undefined ? this.reason : `${this.reason}: ${this.cause.message}`
  }
}

/**
 * A connected client. The end of the scope that it was made in cuts it off, with whatever it has not sent.
 *
 * **Details**
 *
 * It reads on demand: who does not call a read is a client that does not read, and its server feels that after the buffers
 * of the system, and 64 KiB here, are full. What a read did not use stays for the next one.
 *
 * **Gotchas**
 *
 * One read at a time. Reads have no bound: a test's client trusts its server. None has a timeout either, a test has one.
 *
 * @category models
 * @since 0.1.0
 */
export interface Client {
  /** Writes, strings as UTF-8. Completes when the system (in memory: the high-water mark) has taken all of it. */
  readonly write: (chunk: Uint8Array | string) => Effect.Effect<void, ClientError>
  /** Finishes sending (half-close): the server sees end of input. Reads go on. */
  readonly end: Effect.Effect<void>
  /** Cuts the connection with a reset where the transport has one (TCP RST), else by closing both directions. */
  readonly reset: Effect.Effect<void>
  /** Reads exactly that many bytes. */
  readonly readExactly: (length: number) => Effect.Effect<Uint8Array, ClientError>
  /**
   * Reads to the next `\n`, and returns what is before it as text. Where the input ends without one it fails with
   * `UnexpectedEnd`, and what there is of the line stays for `readAll`.
   */
  readonly readLine: Effect.Effect<string, ClientError>
  /** Reads to the end of input. */
  readonly readAll: Effect.Effect<Uint8Array, ClientError>
  /** Drops the input until there is no more, and tells how it ended: by the server's finish, or by a reset. */
  readonly closed: Effect.Effect<"Ended" | "Reset", ClientError>
}

/**
 * Connects over a real socket, with `node:net`: TCP to an `InetAddress`, else a unix socket (with a NUL byte first, by its
 * abstract name). The client's two directions end independently.
 *
 * **Example** (What a client sees of a server that greets)
 *
 * ```ts
 * import { Dispatch, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 * import { TestClient } from "@socketserver/testing"
 * import { Effect } from "effect"
 *
 * const Greeter = NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(
 *   Dispatch.serial(),
 *   Server.serveStream((connection) => connection.write("hello\n"))
 * )
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* Server.Server
 *   const client = yield* TestClient.node(server.address)
 *   const greeting = yield* client.readLine
 *   return [greeting, yield* client.closed]
 * }).pipe(Effect.scoped, Effect.provide(Greeter))
 *
 * Effect.runPromise(program) // => ["hello", "Ended"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const node = (address: NetAddress.SocketAddress): Effect.Effect<Client, ClientError, Scope.Scope> =>
  connected(() => new NodeSocket(netSocket(address)))

/**
 * Connects over TLS, with `node:tls` above the socket of {@link node}. `options` are those of `tls.connect`: `ca`, `servername`,
 * `cert` and `key`, …
 *
 * @category constructors
 * @since 0.1.0
 */
export const tls = (
  address: NetAddress.SocketAddress,
  options: Tls.ConnectionOptions
): Effect.Effect<Client, ClientError, Scope.Scope> =>
  connected(() => {
    const below = netSocket(address)
    return new NodeSocket(Tls.connect({ ...options, socket: below }), below)
  })

const connected = (make: () => NodeSocket): Effect.Effect<Client, ClientError, Scope.Scope> =>
  Effect.acquireRelease(Effect.sync(make), (socket) => Effect.sync(() => socket.destroy())).pipe(
    Effect.tap((socket) => socket.connected),
    Effect.map(({ end, more, reset, write }) => ({ write, end, reset, ...makeReads(more) }))
  )

const netSocket = (address: NetAddress.SocketAddress): Net.Socket =>
  Net.connect({
    allowHalfOpen: true,
    ...(NetAddress.isInetAddress(address)
      ? { host: NetAddress.formatIp(address.address), port: address.port }
      : { path: address.path })
  })

/**
 * Connects to a server on the memory transport.
 *
 * @category constructors
 * @since 0.1.0
 */
export const memory = (address: NetAddress.SocketAddress): Effect.Effect<Client, ClientError, Scope.Scope> =>
  MemoryTransport.connect(address).pipe(
    Effect.mapBoth({
      onSuccess: (connection): Client => ({
        write: (chunk) => Effect.mapError(connection.write(chunk), toClientError),
        end: connection.end,
        reset: connection.reset,
        ...makeReads(Effect.mapError(connection.pull, toClientError))
      }),
      onFailure: (error) => new ClientError({ reason: "Refused", cause: error })
    })
  )

const toClientError = (error: ConnectionError | Cause.Done): ClientError => {
  if (Cause.isDone(error)) return new ClientError({ reason: "UnexpectedEnd" })
  switch (error.reason._tag) {
    case "Reset":
    case "Closed":
    case "UnexpectedEnd":
      return new ClientError({ reason: error.reason._tag })
    default:
      return new ClientError({ reason: "Failed", cause: error })
  }
}

const newline = 10

/** Reads of input that comes in pieces; `more` gives the next one, and fails with `UnexpectedEnd` where there is none. */
const makeReads = (
  more: Effect.Effect<Uint8Array, ClientError>
): Pick<Client, "readExactly" | "readLine" | "readAll" | "closed"> => {
  /** What was read and not used yet. */
  let parts: Array<Uint8Array> = []
  let length = 0
  const joined = (): Uint8Array => {
    if (parts.length !== 1) parts = [Buffer.concat(parts)]
    return parts[0]!
  }
  const take = (count: number): Uint8Array => {
    const all = joined()
    parts = [all.subarray(count)]
    length -= count
    // A plain array, and a copy: what Node gives is a `Buffer` over memory that it shares out.
    return new Uint8Array(all.subarray(0, count))
  }
  /** Reads until `enough` says how many bytes to take of what is there. */
  const read = (enough: () => number | undefined): Effect.Effect<Uint8Array, ClientError> =>
    Effect.suspend(() => {
      const count = enough()
      return count === undefined
        ? Effect.flatMap(more, (chunk) => {
          parts.push(chunk)
          length += chunk.length
          return read(enough)
        })
        : Effect.succeed(take(count))
    })
  return {
    readExactly: (count) => read(() => length >= count ? count : undefined),
    readLine: Effect.map(
      read(() => {
        const index = joined().indexOf(newline)
        return index === -1 ? undefined : index + 1
      }),
      (line) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(line.subarray(0, -1))
    ),
    readAll: Effect.catchIf(
      read(() => undefined),
      (error) => error.reason === "UnexpectedEnd",
      () => Effect.sync(() => take(length))
    ),
    closed: Effect.catch(
      Effect.forever(Effect.suspend(() => {
        parts = []
        length = 0
        return more
      })),
      (error) => {
        switch (error.reason) {
          case "UnexpectedEnd":
            return Effect.succeed("Ended" as const)
          case "Reset":
            return Effect.succeed("Reset" as const)
          default:
            return Effect.fail(error)
        }
      }
    )
  }
}

class NodeSocket {
  private readonly socket: Net.Socket
  /** The socket of the system: TLS's is above it. */
  private readonly below: Net.Socket
  private failure: ClientError | undefined
  private waiting: (() => void) | undefined

  constructor(socket: Net.Socket, below: Net.Socket = socket) {
    this.socket = socket
    this.below = below
    const wake = () => this.waiting?.()
    this.socket
      // With this listener, and none for data, Node fills its own buffer and then leaves the rest in the system's.
      .on("readable", wake)
      .on("end", wake)
      .on("connect", wake)
      .on("secureConnect", wake)
      .on("close", wake)
      .on("error", (error: NodeJS.ErrnoException) => {
        this.failure ??= fromNodeError(error)
        wake()
      })
  }

  destroy(): void {
    this.socket.destroy()
  }

  /** Waits until `poll` has a result; it is asked again whenever something has happened to the socket. */
  private until<A>(poll: () => A | undefined): Effect.Effect<A, ClientError> {
    return Effect.callback<A, ClientError>((resume) => {
      if (this.waiting !== undefined) return resume(Effect.die(new Error("a test client reads one thing at a time")))
      const attempt = () => {
        const result = poll()
        if (result === undefined && this.failure === undefined && !this.socket.closed) return
        this.waiting = undefined
        resume(
          result === undefined
            ? Effect.fail(this.failure ?? new ClientError({ reason: "Closed" }))
            : Effect.succeed(result)
        )
      }
      this.waiting = attempt
      attempt()
      return Effect.sync(() => {
        this.waiting = undefined
      })
    })
  }

  get connected(): Effect.Effect<true, ClientError> {
    return this.until(() =>
      this.socket.connecting || this.isShakingHands || this.failure !== undefined ? undefined : true as const
    )
  }

  private get isShakingHands(): boolean {
    return (this.socket as { readonly secureConnecting?: boolean }).secureConnecting === true
  }

  /** The next piece of input; fails with `UnexpectedEnd` at its end. */
  readonly more = Effect.filterOrFail(
    this.until(() => {
      const chunk: Buffer | null = this.socket.read()
      return chunk ?? (this.socket.readableEnded ? "end" as const : undefined)
    }),
    (chunk) => chunk !== "end",
    () => new ClientError({ reason: "UnexpectedEnd" })
  )

  readonly write: Client["write"] = (chunk) =>
    Effect.callback((resume) => {
      if (this.failure !== undefined) return resume(Effect.fail(this.failure))
      if (this.socket.destroyed || this.socket.writableEnded) {
        return resume(Effect.fail(new ClientError({ reason: "Closed" })))
      }
      this.socket.write(
        chunk,
        (error) => resume(error ? Effect.fail(this.failure ?? fromNodeError(error)) : Effect.void)
      )
    })

  readonly end = Effect.sync(() => {
    if (!this.socket.destroyed && !this.socket.writableEnded) this.socket.end()
  })

  readonly reset = Effect.sync(() => {
    if (this.below.remoteFamily === undefined) return this.socket.destroy()
    if (this.below === this.socket) return this.socket.resetAndDestroy()
    // What `resetAndDestroy` sets, which itself crashes Node when it is called below TLS.
    const below = this.below as { resetAndClosing?: boolean }
    below.resetAndClosing = true
    this.socket.destroy()
  })
}

const fromNodeError = (error: NodeJS.ErrnoException): ClientError => {
  switch (error.code) {
    case "ECONNREFUSED":
    case "ENOENT":
      return new ClientError({ reason: "Refused", cause: error })
    case "ECONNRESET":
    case "ECONNABORTED":
    case "EPIPE":
      return new ClientError({ reason: "Reset" })
    default:
      return new ClientError({ reason: "Failed", cause: error })
  }
}
