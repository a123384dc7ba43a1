/** What `NodeTransport.tls` and `startTls` take: checked, read from files, and made into contexts of `node:tls`. */
import { InvalidOption, ListenError } from "@socketserver/core/ListenError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Stream from "effect/Stream"
import { createPrivateKey, randomBytes, X509Certificate } from "node:crypto"
import { readFile } from "node:fs/promises"
import * as Tls from "node:tls"
import { defined, invalid } from "./options.ts"

/**
 * A certificate and its key, as they are.
 *
 * @category options
 * @since 0.1.0
 */
export interface TlsIdentity {
  /** The certificate, PEM, with the certificates between it and the authority behind it. */
  readonly cert: string | Uint8Array
  /** Its private key, PEM. */
  readonly key: string | Uint8Array | Redacted.Redacted<string | Uint8Array>
  /** What the key is encrypted with, if it is. */
  readonly passphrase?: string | Redacted.Redacted<string> | undefined
}

/**
 * A certificate and its key, in files.
 *
 * @category options
 * @since 0.1.0
 */
export interface TlsFiles {
  /** Where the certificate is, as for {@link TlsIdentity}. */
  readonly certFile: string
  /** Where its private key is. */
  readonly keyFile: string
  /** What the key is encrypted with, if it is. */
  readonly passphrase?: string | Redacted.Redacted<string> | undefined
}

/**
 * Where the certificate and the key come from: contents, files, or an effect (a secret store), which runs when the server starts
 * and whenever `reloadOn` says so.
 *
 * @category options
 * @since 0.1.0
 */
export type TlsSource<R = never> = TlsIdentity | TlsFiles | {
  readonly identity: Effect.Effect<TlsIdentity, unknown, R>
}

/**
 * What there is to choose beside certificate and key.
 *
 * @category options
 * @since 0.1.0
 */
export interface TlsSettings<R = never> {
  /**
   * Other certificates, by the name that the client asks for (SNI). Either a record: a name, or `*.` and a domain for all names
   * with one label more. Or an effect of the name, in small letters, which runs in every handshake that has one; failing, it
   * fails the handshake. Names that are not found (`undefined`) get the certificate above.
   */
  readonly sni?:
    | Readonly<Record<string, TlsIdentity | TlsFiles>>
    | ((serverName: string) => Effect.Effect<TlsIdentity | undefined, unknown, R>)
    | undefined
  /**
   * The protocols that the server speaks, the dearest first (ALPN, RFC 7301); `connection.tls` has the one chosen. A client that
   * offers only others is turned away. Default: none, ALPN is ignored.
   */
  readonly alpn?: ReadonlyArray<string> | undefined
  /**
   * Asks clients for a certificate. Default `false`. With `true`, those without one that `ca` vouches for do not get in, unless
   * `rejectUnauthorized` is `false`.
   */
  readonly requestCert?: boolean | undefined
  /** Are clients turned away whose certificate is missing or not vouched for? Default `true`. Else see `connection.tls`. */
  readonly rejectUnauthorized?: boolean | undefined
  /**
   * The authorities that vouch for clients, PEM. Required where clients need a certificate; without it nobody is `authorized`.
   * Those that the web trusts are never asked.
   */
  readonly ca?: string | Uint8Array | ReadonlyArray<string | Uint8Array> | undefined
  /** The oldest version of the protocol. Default `"TLSv1.2"`. */
  readonly minVersion?: "TLSv1.2" | "TLSv1.3" | undefined
  /** Cipher suites in OpenSSL's notation. Default: Node's (`tls.DEFAULT_CIPHERS`). */
  readonly ciphers?: string | undefined
  /** How long a handshake may take. Default 10 seconds; above 0, up to 1 hour. */
  readonly handshakeTimeout?: Duration.Input | undefined
  /** How long a session can be resumed, 1 second to 7 days. Default 5 minutes. */
  readonly sessionTimeout?: Duration.Input | undefined
  /**
   * 48 secret bytes that session tickets are protected with, for several processes that resume each other's sessions. Default:
   * random, and new with every reload.
   */
  readonly ticketKeys?: Uint8Array | Redacted.Redacted<Uint8Array> | undefined
  /** How often files are looked at for new contents. Default 10 seconds; at least 10 milliseconds; `false` for never. */
  readonly watch?: Duration.Input | false | undefined
  /** Each of its elements reads files, or runs `identity`, again: a signal of the process, a schedule. */
  readonly reloadOn?: Stream.Stream<unknown, never, R> | undefined
}

/**
 * What TLS needs to be told.
 *
 * @category options
 * @since 0.1.0
 */
export type TlsOptions<R = never> = TlsSource<R> & TlsSettings<R>

// ---- as plain data

/** As `TlsIdentity`, without secrets in wrapping. */
export interface PlainIdentity {
  readonly cert: string | Uint8Array
  readonly key: string | Uint8Array
  readonly passphrase: string | undefined
}

/** All that a context is made of: plain data. */
export interface PlainTls {
  readonly identity: PlainIdentity
  readonly names: Readonly<Record<string, PlainIdentity>>
  readonly alpn: ReadonlyArray<string> | undefined
  readonly requestCert: boolean
  readonly rejectUnauthorized: boolean
  readonly ca: ReadonlyArray<string | Uint8Array> | undefined
  readonly minVersion: "TLSv1.2" | "TLSv1.3"
  readonly ciphers: string | undefined
  readonly sessionTimeout: number
  readonly ticketKeys: Uint8Array
  readonly handshakeMillis: number
}

/** A step's TLS, for workers to make handshakes with. */
export interface PortableTls {
  readonly step: number
  /** As they are now, from the start of the server on. */
  settings: PlainTls | undefined
  /** Who is told of new ones. */
  readonly users: Set<(settings: PlainTls) => void>
}

export const hasFiles = ({ sni, ...source }: TlsOptions<any>): boolean =>
  "certFile" in source || (typeof sni === "object" && Object.values(sni).some((source) => "certFile" in source))

/** Reads everything, and checks it. */
export const load = <R>(options: TlsOptions<R>): Effect.Effect<PlainTls, ListenError, R> =>
  Effect.gen(function*() {
    const { alpn, ca, ciphers, minVersion = "TLSv1.2", rejectUnauthorized = true, requestCert = false, sni } = options
    const handshakeMillis = yield* checkDuration(
      "handshakeTimeout",
      options.handshakeTimeout,
      "10 seconds",
      1,
      3_600_000
    )
    const sessionTimeout = yield* checkDuration(
      "sessionTimeout",
      options.sessionTimeout,
      "5 minutes",
      1_000,
      604_800_000
    )
    if (alpn !== undefined && (alpn.length === 0 || !alpn.every(isProtocol))) {
      return yield* invalid("alpn", alpn, "names of 1 to 255 bytes, at least one; leave it out to ignore ALPN")
    }
    if (minVersion !== "TLSv1.2" && minVersion !== "TLSv1.3") {
      return yield* invalid("minVersion", minVersion, "\"TLSv1.2\" or \"TLSv1.3\"")
    }
    if (requestCert && rejectUnauthorized && ca === undefined) {
      return yield* invalid("ca", undefined, "with `requestCert`, the authorities that vouch for clients")
    }
    // Without any, Node would take those of the web, and `authorized` would say so.
    const authorities = ca === undefined ? (requestCert ? [] : undefined) : isPem(ca) ? [ca] : [...ca]
    for (const pem of authorities ?? []) {
      yield* attempt("ca", "a PEM certificate", () => new X509Certificate(pem))
    }
    yield* attempt("ca", "PEM certificates", () => Tls.createSecureContext(defined({ ca: authorities?.map(bytesOf) })))
    yield* attempt(
      "ciphers",
      "cipher suites in OpenSSL's notation",
      () => Tls.createSecureContext(defined({ ciphers }))
    )
    const ticketKeys = unwrap(options.ticketKeys)
    if (ticketKeys !== undefined && ticketKeys.length !== 48) {
      return yield* invalid("ticketKeys", hidden, "48 bytes")
    }
    const names: Record<string, PlainIdentity> = {}
    if (typeof sni === "object") {
      for (const [name, source] of Object.entries(sni)) {
        names[name.toLowerCase()] = yield* loadIdentity<never>(source, `sni[${JSON.stringify(name)}].`)
      }
    }
    return {
      identity: yield* loadIdentity<R>(options, ""),
      names,
      alpn,
      requestCert,
      rejectUnauthorized,
      ca: authorities,
      minVersion,
      ciphers,
      sessionTimeout: Math.round(sessionTimeout / 1_000),
      ticketKeys: ticketKeys ?? randomBytes(48),
      handshakeMillis
    }
  })

const loadIdentity = <R>(source: TlsSource<R>, at: string): Effect.Effect<PlainIdentity, ListenError, R> =>
  Effect.gen(function*() {
    if ("identity" in source) {
      const identity = yield* Effect.mapError(
        source.identity,
        (error) => invalidOption("identity", error, "an effect that succeeds with a certificate and its key")
      )
      return yield* checkIdentity(identity, { cert: "identity", key: "identity" })
    }
    if ("certFile" in source) {
      const names = { cert: `${at}certFile`, key: `${at}keyFile` }
      const cert = yield* read(names.cert, source.certFile)
      const key = yield* read(names.key, source.keyFile)
      return yield* checkIdentity({ cert, key, passphrase: source.passphrase }, names, source)
    }
    return yield* checkIdentity(source, { cert: `${at}cert`, key: `${at}key` })
  })

const read = (option: string, path: string) =>
  Effect.tryPromise({
    try: () => readFile(path, "utf8"),
    catch: (error) => invalidOption(option, path, `a file that can be read: ${messageOf(error)}`)
  })

/** Does the certificate parse, the key, and do they belong together? Also for what an effect gives in a handshake. */
export const checkIdentity = (
  { cert, key, passphrase }: TlsIdentity,
  names: { readonly cert: string; readonly key: string },
  files?: TlsFiles
): Effect.Effect<PlainIdentity, ListenError> =>
  Effect.gen(function*() {
    const identity: PlainIdentity = { cert, key: unwrap(key), passphrase: unwrap(passphrase) }
    const certificate = yield* attempt(
      names.cert,
      "a PEM certificate",
      () => new X509Certificate(cert),
      files?.certFile
    )
    const privateKey = yield* attempt(
      names.key,
      "a PEM private key, and its `passphrase` if it has one",
      () => createPrivateKey(defined({ key: bytesOf(identity.key), passphrase: identity.passphrase }) as any),
      files?.keyFile
    )
    if (!certificate.checkPrivateKey(privateKey)) {
      return yield* invalid(names.key, files?.keyFile ?? hidden, `the key of the certificate in \`${names.cert}\``)
    }
    // The certificates behind the first one.
    yield* attempt(
      names.cert,
      "a PEM certificate and those behind it",
      () => Tls.createSecureContext(contextOptions(identity)),
      files?.certFile
    )
    return identity
  })

const contextOptions = ({ cert, key, passphrase }: PlainIdentity): Tls.SecureContextOptions =>
  defined({ cert: bytesOf(cert), key: bytesOf(key), passphrase })

const bytesOf = (pem: string | Uint8Array) =>
  typeof pem === "string" ? pem : Buffer.from(pem.buffer, pem.byteOffset, pem.byteLength)

/** Keys and certificates are not for messages. */
const hidden = "(not shown)"

const attempt = <A>(option: string, expected: string, make: () => A, value: unknown = hidden) =>
  Effect.try({ try: make, catch: (error) => invalidOption(option, value, `${expected}: ${messageOf(error)}`) })

const invalidOption = (option: string, value: unknown, expected: string) =>
  new ListenError({ reason: new InvalidOption({ option, value, expected }) })

const messageOf = (error: unknown) => error instanceof Error ? error.message : String(error)

const unwrap = <A>(value: A | Redacted.Redacted<A>): A => Redacted.isRedacted(value) ? Redacted.value(value) : value

const isPem = (value: unknown): value is string | Uint8Array => typeof value === "string" || value instanceof Uint8Array

const isProtocol = (name: string) => {
  const length = Buffer.byteLength(name)
  return length >= 1 && length <= 255
}

export const checkDuration = (
  option: string,
  value: Duration.Input | undefined,
  byDefault: Duration.Input,
  least: number,
  most: number
) => {
  const duration = Duration.fromInput(value ?? byDefault)
  const millis = Option.isSome(duration) ? Duration.toMillis(duration.value) : NaN
  return millis >= least && millis <= most
    ? Effect.succeed(millis)
    : invalid(option, value, `a duration from ${least} to ${most} milliseconds`)
}

// ---- as contexts

/** How `node:tls` asks for the certificate of a name. */
export type Select = (
  this: unknown,
  name: string,
  answer: (error: Error | null, context?: Tls.SecureContext) => void
) => void

export const secureContext = (settings: PlainTls, identity: PlainIdentity): Tls.SecureContext =>
  Tls.createSecureContext({
    ...contextOptions(identity),
    ...defined({ ca: settings.ca?.map(bytesOf), ciphers: settings.ciphers }),
    minVersion: settings.minVersion,
    sessionTimeout: settings.sessionTimeout,
    sessionIdContext,
    ticketKeys: Buffer.from(settings.ticketKeys)
  })

/** Of all servers: whose sessions are whose is known by the ticket keys. */
const sessionIdContext = "socketserver"

/** By the record's names: the very name, or the one with `*` for its first label. */
export const selectByName = (settings: PlainTls): Select | undefined => {
  const contexts = new Map(
    Object.entries(settings.names).map(([name, identity]) => [name, secureContext(settings, identity)])
  )
  return contexts.size === 0 ? undefined : (name, answer) => {
    const lower = name.toLowerCase()
    answer(null, contexts.get(lower) ?? contexts.get(lower.replace(/^[^.]+/, "*")))
  }
}

/** Not for listening: connections are brought to it. */
export const makeServer = (settings: PlainTls, select: Select | undefined): Tls.Server =>
  Tls.createServer({
    ...contextOptions(settings.identity),
    ...defined({
      ca: settings.ca?.map(bytesOf),
      ciphers: settings.ciphers,
      ALPNProtocols: settings.alpn === undefined ? undefined : [...settings.alpn],
      SNICallback: select
    }),
    requestCert: settings.requestCert,
    rejectUnauthorized: settings.rejectUnauthorized,
    minVersion: settings.minVersion,
    sessionTimeout: settings.sessionTimeout,
    sessionIdContext,
    ticketKeys: Buffer.from(settings.ticketKeys),
    // Ours is exact, and measures the whole of it.
    handshakeTimeout: 0x7fffffff
  })
