/**
 * What a pool and its workers say to each other. All of it is plain data that can be cloned; a request is known by its `id`
 * from `Run` to `Result` or `Ended`, and a connection from then to its release.
 */
import type { TlsInfo } from "@socketserver/core/Connection"
import type { WireFailure } from "@socketserver/core/StreamTransport"
import type { ConnectionState, Patience } from "@socketserver/core/WorkerDispatch"
import type * as NetAddress from "effect/net/NetAddress"
import type * as Net from "node:net"
import { inetAddress } from "./address.ts"
import type { EncodedExit } from "./exits.ts"
import type { EncodedSpan, Report, ReporterOptions } from "./telemetry.ts"
import type { PlainTls } from "./tlsOptions.ts"
import { decodeValue, type EncodedValue, encodeValue } from "./values.ts"

/** How much input may be on its way from a pool to a worker, for one connection. */
export const inputWindow = 262_144
/** How much output may be on its way back before a write waits. */
export const outputWindow = 65_536

/** What is run, and on what. */
export type Subject =
  | {
    readonly _tag: "Connection"
    readonly ends: EncodedEnds
    /** What a proxy has said; `undefined` where none has. */
    readonly proxy: EncodedValue
    /** Whose TLS is to be used, where the socket comes along. */
    readonly tlsStep: number | undefined
    /** For how many milliseconds the handshake may last that is to be made first, if there is one. */
    readonly handshake: number | undefined
    /** What was read from the socket that comes along, if something was. */
    readonly input: Uint8Array | undefined
    /** Does the socket come along, or only its bytes? */
    readonly transfer: "socket" | "bytes"
    /** What TLS has negotiated, where the bytes come decrypted. */
    readonly tls: TlsInfo | undefined
    /** For how many milliseconds an upgrade to TLS may last, where there can be one. */
    readonly startTls: number | undefined
    readonly allowHalfOpen: boolean
    readonly watch: boolean
    readonly patience: Patience
  }
  | {
    readonly _tag: "Datagram"
    readonly peer: EncodedValue
    readonly local: EncodedValue
    readonly payload: Uint8Array
    readonly truncated: boolean
  }
  | {
    readonly _tag: "Message"
    readonly peer: EncodedValue
    readonly local: EncodedValue
    /** The sender's number. */
    readonly sender: number
    readonly payload: EncodedValue
  }
  | { readonly _tag: "Task"; readonly input: EncodedValue }

type ReadDeadline = NonNullable<ConnectionState["timedOut"]>

export type ToWorker =
  /** The answer to `Started`. */
  | { readonly _tag: "Init"; readonly reporter: ReporterOptions; readonly reports: SharedArrayBuffer | undefined }
  /** What handshakes of a step are made with from now on. */
  | { readonly _tag: "Tls"; readonly step: number; readonly settings: PlainTls }
  | { readonly _tag: "Load"; readonly handler: number; readonly module: string; readonly name: string }
  | {
    readonly _tag: "Run"
    readonly id: number
    readonly handler: number
    /** The request's number in its server. */
    readonly request: number
    readonly subject: Subject
    readonly span: EncodedSpan | undefined
    /** Put here by threads; processes get it beside the message. */
    readonly socket?: unknown
  }
  | { readonly _tag: "Interrupt"; readonly id: number }
  /** For so many milliseconds, a peer that has said nothing yet may still do so. */
  | { readonly _tag: "Drain"; readonly id: number; readonly expected: number }
  // To a connection.
  | { readonly _tag: "TimeOut"; readonly id: number; readonly deadline: ReadDeadline }
  | { readonly _tag: "Input"; readonly id: number; readonly bytes: Uint8Array }
  | { readonly _tag: "InputEnd"; readonly id: number }
  | { readonly _tag: "Lost"; readonly id: number; readonly failure: WireFailure }
  | { readonly _tag: "Written"; readonly id: number; readonly length: number }
  // To a connection whose socket the worker has.
  | { readonly _tag: "Write"; readonly id: number; readonly bytes: Uint8Array | string }
  | { readonly _tag: "End"; readonly id: number }
  | { readonly _tag: "Close"; readonly id: number }
  | { readonly _tag: "Destroy"; readonly id: number; readonly reset: boolean }
  /** What became of a packet, or of an annotation. */
  | { readonly _tag: "Done"; readonly id: number; readonly call: number; readonly exit: EncodedExit }
  /** No more requests come: release the services, and end. */
  | { readonly _tag: "Stop" }

/**
 * Connections, three numbers each: the job's, and how many bytes were read and written. A structured clone costs for each object
 * and each of its properties (bench "workers: churn": two messages for each connection).
 */
export type Counts = ReadonlyArray<number>

/** What of a socket's addresses Node knows, or the addresses: what nobody asks for is never made an address. */
export type EncodedEnds =
  | readonly [peerHost: string, peerPort: number, localHost: string, localPort: number]
  | readonly [peer: EncodedValue, local: EncodedValue]

type Ends = { readonly peer: NetAddress.SocketAddress; readonly local: NetAddress.SocketAddress }

export const encodeEnds = (connection: Ends, socket?: Net.Socket): EncodedEnds => {
  const { localAddress, localPort, remoteAddress, remotePort } = socket ?? {}
  return remoteAddress === undefined || remotePort === undefined || localAddress === undefined ||
      localPort === undefined
    ? [encodeValue(connection.peer), encodeValue(connection.local)]
    : [remoteAddress, remotePort, localAddress, localPort]
}

export const decodePeer = (ends: EncodedEnds): NetAddress.SocketAddress =>
  ends.length === 4 ? inetAddress(ends[0], ends[1]) : decodeValue(ends[0])

export const decodeLocal = (ends: EncodedEnds): NetAddress.SocketAddress =>
  ends.length === 4 ? inetAddress(ends[2], ends[3]) : decodeValue(ends[1])

export type FromWorker =
  | { readonly _tag: "Started" }
  | { readonly _tag: "Loaded"; readonly handler: number; readonly outcome: LoadOutcome }
  | {
    readonly _tag: "Result"
    readonly id: number
    readonly exit: EncodedExit
    /** Which of the cause's reasons are failures of this very connection. */
    readonly own: ReadonlyArray<number>
    /** Of a connection to which something has happened. */
    readonly state: ConnectionState | undefined
    readonly bytesRead: number
    readonly bytesWritten: number
  }
  /** The interruption has been heard: the handler's finalizers run. */
  | { readonly _tag: "Interrupting"; readonly id: number }
  | {
    readonly _tag: "Annotate"
    readonly id: number
    readonly call: number
    readonly key: string
    readonly value: EncodedValue
  }
  | { readonly _tag: "TimingOut"; readonly id: number; readonly deadline: ReadDeadline }
  | { readonly _tag: "Report"; readonly report: Report }
  // From a connection.
  | { readonly _tag: "Resume"; readonly id: number }
  | { readonly _tag: "Taken"; readonly id: number; readonly length: number }
  | { readonly _tag: "Output"; readonly id: number; readonly bytes: Uint8Array | string; readonly length: number }
  | { readonly _tag: "OutputEnd"; readonly id: number }
  /** The handler wants TLS: what comes until that is told to be done was sent in clear, and is discarded. */
  | { readonly _tag: "Upgrade"; readonly id: number; readonly call: number; readonly goAhead: Uint8Array | string }
  | { readonly _tag: "Closed"; readonly id: number; readonly how: "close" | "destroy" | "reset" }
  // From a connection whose socket the worker has.
  /** The handler has asked for a handshake. */
  | { readonly _tag: "Shaking"; readonly id: number }
  /** A handshake has succeeded: the handler begins, or goes on. */
  | { readonly _tag: "Shaken"; readonly id: number; readonly tls: TlsInfo }
  /** It has failed, or was interrupted: nothing is left of the connection. */
  | { readonly _tag: "NotShaken"; readonly id: number; readonly cause: EncodedValue }
  | { readonly _tag: "SocketEnd"; readonly id: number }
  | { readonly _tag: "SocketLost"; readonly id: number; readonly failure: WireFailure }
  /** There is something in `reports.ts`. */
  | { readonly _tag: "Reported" }
  /**
   * The handlers of these have ended with nothing to say: they succeeded, or found the end of their input. The connection is
   * closed already. And of those that were released nothing is left.
   */
  | { readonly _tag: "Ended"; readonly connections: Counts; readonly released: Counts }
  /** A packet to send; to the sender of the request's, unless `to` says another. */
  | {
    readonly _tag: "Send"
    readonly id: number
    readonly call: number
    readonly to: EncodedValue
    readonly payload: Uint8Array | string
  }
  /** What a message's handler asks of its sender. */
  | {
    readonly _tag: "Answer"
    readonly id: number
    readonly call: number
    readonly how: "reply" | "send" | "close" | "closed"
    readonly value: EncodedValue
  }

export const encodeFailure = (failure: WireFailure): WireFailure =>
  failure._tag === "Reset" ? failure : { _tag: "Failed", cause: encodeValue(failure.cause) }

export const decodeFailure = (failure: WireFailure): WireFailure =>
  failure._tag === "Reset" ? failure : { _tag: "Failed", cause: decodeValue(failure.cause) }

export type LoadOutcome =
  | { readonly _tag: "Ready" }
  | { readonly _tag: "NotFound"; readonly detail: string }
  /** The handler's layer could not be built. */
  | { readonly _tag: "LayerFailed"; readonly exit: EncodedExit }
