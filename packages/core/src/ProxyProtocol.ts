/**
 * The PROXY protocol: a load balancer says, in a few bytes ahead of everything else, which client a connection is relayed for.
 * A step between transport and dispatch takes these bytes off, and the connection's `peer` is the client's from then on.
 * Versions 1 and 2, as in https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { IpNetworkInput } from "effect/net/IpNetwork"
import type * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { formatAddress } from "./internal/connection.ts"
import { checkDuration, checkInteger, invalidOption } from "./internal/options.ts"
import { ipOf, Networks, toNetwork } from "./internal/prefix.ts"
import * as internal from "./internal/proxyHeader.ts"
import type { ListenError } from "./ListenError.ts"
import { type Preface, type Prefaced, StreamTransport } from "./StreamTransport.ts"

/**
 * What a proxy has said about a connection: `connection.proxy`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Header {
  readonly version: 1 | 2
  /** `"local"`: the proxy speaks for itself, to check the server's health for instance; the addresses are its own. */
  readonly command: "proxy" | "local"
  /** The client's address; `undefined` where the header names none: the connection keeps its real one then. */
  readonly source: NetAddress.SocketAddress | undefined
  /** The address that the client connected to; `undefined` together with `source`. */
  readonly destination: NetAddress.SocketAddress | undefined
  /** How the client reached the proxy; `undefined` together with `source`. */
  readonly transport: "stream" | "datagram" | undefined
  /** The host name that the client asked for: the SNI of its TLS, for instance. */
  readonly authority: string | undefined
  /** The application protocol that was agreed on: the ALPN of its TLS. */
  readonly alpn: string | undefined
  /** What the proxy knows this connection by, up to 128 bytes. */
  readonly uniqueId: Uint8Array | undefined
  /** The network namespace that the client came through. */
  readonly netns: string | undefined
  /** About the client's TLS, where it ends at the proxy. */
  readonly ssl: Ssl | undefined
  /** Everything that version 2 says beyond addresses, in order and as it came, the known ones too; without padding. */
  readonly tlvs: ReadonlyArray<Tlv>
}

/**
 * A typed value of a version 2 header. Types 0xE0 to 0xEF are free for applications.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tlv {
  readonly type: number
  readonly value: Uint8Array
}

/**
 * What a proxy says about the TLS that its client used.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ssl {
  /** Did the client use TLS? */
  readonly used: boolean
  /** Did it show a certificate: on this connection, or at least in the TLS session that this connection belongs to? */
  readonly certificate: "connection" | "session" | undefined
  /** Did it show a certificate that was successfully verified? */
  readonly verified: boolean
  /** Such as `"TLSv1.3"`. */
  readonly version: string | undefined
  /** The common name in the client's certificate. */
  readonly commonName: string | undefined
  /** Such as `"ECDHE-RSA-AES128-GCM-SHA256"`. */
  readonly cipher: string | undefined
  /** What signed the proxy's certificate, such as `"SHA256"`. */
  readonly signatureAlgorithm: string | undefined
  /** The key of the proxy's certificate, such as `"RSA2048"`. */
  readonly keyAlgorithm: string | undefined
  /** All of it, as it came. */
  readonly tlvs: ReadonlyArray<Tlv>
}

/**
 * Why a connection was not let through: the `cause` of its `HandshakeFailed`.
 *
 * - `Untrusted`: a header is required, and the peer is none that may send one
 * - `Missing`: a header is required, and the input begins with something else, or ends before one is complete
 * - `Invalid`: it begins as a header, and is none
 * - `TooLong`: it announces more than `maxLength` bytes
 *
 * @category errors
 * @since 0.1.0
 */
export class ProxyProtocolError extends Data.TaggedError("ProxyProtocolError")<{
  readonly reason: "Untrusted" | "Missing" | "Invalid" | "TooLong"
  readonly detail: string
}> {
  override get message(): string {
    return `PROXY protocol: ${this.detail}`
  }
}

/**
 * What the beginning of an input is.
 *
 * - `Header`: it has a header, of `length` bytes
 * - `Incomplete`: more is needed to know
 * - `None`: it is something else
 *
 * @category models
 * @since 0.1.0
 */
export type Decoded =
  | { readonly _tag: "Header"; readonly header: Header; readonly length: number }
  | { readonly _tag: "Incomplete" }
  | { readonly _tag: "None" }

/**
 * Looks for a header at the beginning of `bytes`, which may be any part of the input: for code that reads headers in other
 * places than a server's connections.
 *
 * **Details**
 *
 * Fails with `Invalid` or `TooLong`. `maxLength` is what a version 2 header may have in all, in bytes; default 4,096. What a
 * header consists of is copied out of `bytes`.
 *
 * **Example** (A line of version 1)
 *
 * ```ts
 * import { ProxyProtocol } from "@socketserver/core"
 * import { Result } from "effect"
 *
 * const bytes = new TextEncoder().encode("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n")
 * const decoded = Result.getOrThrow(ProxyProtocol.decode(bytes))
 *
 * // 192.0.2.1:56324
 * export const client = decoded._tag === "Header" ? decoded.header.source : undefined
 * ```
 *
 * @category decoding
 * @since 0.1.0
 */
export const decode = (
  bytes: Uint8Array,
  options?: { readonly maxLength?: number | undefined }
): Result.Result<Decoded, ProxyProtocolError> =>
  Result.mapError(
    internal.decode(bytes, options?.maxLength ?? defaultMaxLength),
    (failure) => new ProxyProtocolError(failure)
  )

/**
 * Whose headers are believed, and what is done without one.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The peers that may send a header: networks such as `"10.0.0.0/8"`, single addresses, and `"unix"` for whoever may connect to
   * a unix socket (its file's permissions say who). IPv4 peers of a dual-stack listener count as IPv4. Anybody else could
   * claim to be anybody: name your proxies, and nothing more.
   */
  readonly trusted: ReadonlyArray<IpNetworkInput>
  /**
   * Must a connection have a header? Default `true`: without one, and from an untrusted peer, it ends with `HandshakeFailed`.
   * With `false`, an untrusted peer's input is passed on untouched, header or not, and so is a trusted peer's that does not
   * begin with a header.
   */
  readonly required?: boolean | undefined
  /**
   * How long the header may take, once it is the connection's next step. Default 5 seconds; 1 millisecond to 1 hour. Then the
   * connection ends with `HandshakeFailed`.
   */
  readonly timeout?: Duration.Input | undefined
  /**
   * How many bytes a header of version 2 may have in all, 16 to 65,551. Default 4,096. One that announces more ends the
   * connection at once with `HandshakeFailed`. Version 1 is bounded by its definition, at 107.
   */
  readonly maxLength?: number | undefined
}

const defaultMaxLength = 4_096
const defaultTimeout = "5 seconds"

/**
 * Takes the header off that a proxy sends ahead: `connection.peer` is the client's address from there on, `connection.local`
 * the one that the client connected to, and `connection.proxy` has everything that the header said.
 *
 * **Details**
 *
 * Steps that stand behind it in the pipe see the client: limits for each peer, allowed networks. Those before it see the proxy. It
 * stands before TLS where the proxy passes TLS through, and behind it where the proxy speaks TLS to this server.
 *
 * The header is read in the connection's own fiber: a slow one delays nobody. Every byte behind it stays with the connection.
 * What goes wrong ends the connection with `HandshakeFailed`, whose `cause` is a {@link ProxyProtocolError}, or the
 * `ConnectionError` of the timeout; no handler runs. Invalid options are a `ListenError` when the server is built.
 *
 * A header without addresses (`LOCAL`, `UNKNOWN`, unspecified families) leaves the real ones, and what else it has is ignored. A
 * checksum (CRC32C) is checked where there is one.
 *
 * **Gotchas**
 *
 * With `required: false`, what a trusted peer is can only be told by its first bytes: one that waits for the server to speak
 * first is closed after `timeout`.
 *
 * **Example** (Behind a load balancer in 10.0.0.0/8)
 *
 * ```ts
 * import { Dispatch, ProxyProtocol, Server } from "@socketserver/core"
 * import { NodeTransport } from "@socketserver/node"
 *
 * const WhoAmI = NodeTransport.tcp({ port: 7007 }).pipe(
 *   ProxyProtocol.accept({ trusted: ["10.0.0.0/8"] }),
 *   Dispatch.fiberPerRequest(),
 *   Server.serveStream((connection) => connection.write(`you are ${connection.peer}\n`))
 * )
 * ```
 *
 * @category steps
 * @since 0.1.0
 */
export const accept =
  (options: Options) => <E, R>(transport: Layer.Layer<StreamTransport, E, R>): Layer.Layer<StreamTransport, E, R> =>
    Layer.effect(
      StreamTransport,
      Effect.map(StreamTransport, (inner) => {
        const trusted = parseTrusted(options.trusted)
        const check = checkOptions(options)
        return {
          ...inner,
          steps: [...inner.steps, prefaceOf(options, Result.isSuccess(trusted) ? trusted.success : () => false)],
          listen: (onConnection, at) =>
            Effect.fromResult(trusted).pipe(
              Effect.andThen(check),
              Effect.andThen(inner.listen(onConnection, at))
            )
        }
      })
    ).pipe(Layer.provide(transport))

const checkOptions = ({ maxLength, timeout = defaultTimeout }: Options): Effect.Effect<void, ListenError> =>
  Effect.andThen(
    checkInteger("proxyProtocol.maxLength", maxLength, 16, 65_551),
    Effect.flatMap(checkDuration("proxyProtocol.timeout", timeout), (duration) => {
      const millis = Duration.toMillis(duration)
      return millis >= 1 && millis <= 3_600_000
        ? Effect.void
        : Effect.fail(invalidOption("proxyProtocol.timeout", timeout, "a duration from 1 millisecond to 1 hour"))
    })
  )

type IsTrusted = (peer: NetAddress.SocketAddress) => boolean

const parseTrusted = (trusted: Options["trusted"]): Result.Result<IsTrusted, ListenError> => {
  const networks = new Networks()
  let isUnixTrusted = false
  for (const input of trusted) {
    if (input === "unix") {
      isUnixTrusted = true
      continue
    }
    const network = toNetwork(input)
    if (Result.isFailure(network)) {
      return Result.fail(invalidOption(
        "proxyProtocol.trusted",
        typeof input === "string" ? input : JSON.stringify(input),
        `networks such as "10.0.0.0/8", addresses, or "unix" (${network.failure.message})`
      ))
    }
    networks.add(network.success)
  }
  return Result.succeed((peer) => {
    const ip = ipOf(peer)
    return ip === undefined ? isUnixTrusted : networks.has(ip)
  })
}

const nothing = Result.succeed<Prefaced>({ length: 0, proxy: undefined })

const fail = (reason: ProxyProtocolError["reason"], detail: string) =>
  Result.fail(new ProxyProtocolError({ reason, detail }))

const prefaceOf = (
  { maxLength = defaultMaxLength, required = true, timeout = defaultTimeout }: Options,
  isTrusted: IsTrusted
): Preface => {
  return {
    preface: "proxy",
    // What is no duration is told of when the server starts.
    timeout: Option.getOrElse(Duration.fromInput(timeout), () => Duration.zero),
    look: (input, peer, ended) => {
      if (!isTrusted(peer)) {
        return required
          ? fail("Untrusted", `${formatAddress(peer)} is not among the peers that may send a header`)
          : nothing
      }
      const decoded = decode(input, { maxLength })
      if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
      const { success } = decoded
      if (success._tag === "Header") return Result.succeed({ length: success.length, proxy: success.header })
      if (success._tag === "Incomplete" && !ended) return undefined
      if (!required) return nothing
      return fail("Missing", ended ? "the input ended before a header" : "the input does not begin with a header")
    }
  }
}
