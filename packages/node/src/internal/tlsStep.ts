/** TLS as a step of the pipe: it loads certificates when a server starts to listen, and again when they have changed. */
import type { ListenError } from "@socketserver/core/ListenError"
import { publish } from "@socketserver/core/ServerEvent"
import { type Handshake, type Preface, StreamTransport, type Wire } from "@socketserver/core/StreamTransport"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type * as Tls from "node:tls"
import { invalid } from "./options.ts"
import { type Clear, handshakeServer, pendingOf, shakeHands } from "./tls.ts"
import {
  checkDuration,
  checkIdentity,
  hasFiles,
  load,
  type PlainTls,
  type PortableTls,
  secureContext,
  type Select,
  selectByName,
  type TlsIdentity,
  type TlsOptions
} from "./tlsOptions.ts"
import { NodeWire } from "./wire.ts"

const givesSockets = Symbol("socketserver sockets")
type Service = StreamTransport["Service"] & { readonly [givesSockets]?: boolean }

/** Marks a transport whose wires have sockets. Steps that copy its properties keep the mark. */
export const ofSockets = (service: StreamTransport["Service"]): Service =>
  Object.assign(service, { [givesSockets]: true })

export const makeStep =
  <R>(options: TlsOptions<R>, when: "now" | "asked") =>
  <E2, R2>(transport: Layer.Layer<StreamTransport, E2, R2>): Layer.Layer<StreamTransport, E2, R | R2> =>
    Layer.effect(
      StreamTransport,
      Effect.gen(function*() {
        const inner: Service = yield* StreamTransport
        const state = new TlsState(options, yield* Effect.context<R>())
        const step: Handshake = when === "now" ? state.handshake : {
          handshake: "startTls",
          timeout: state.handshake.timeout,
          run: (wire) =>
            Effect.sync(() => {
              if (wire instanceof NodeWire) {
                wire.startTls = { timeout: state.handshake.timeout, run: (goAhead) => state.shake(wire, { goAhead }) }
                wire.portableTls = state.portable
              }
              return wire
            })
        }
        return {
          ...inner,
          // Nothing goes over TLS a second time.
          [givesSockets]: when === "asked" && inner[givesSockets] === true,
          steps: [...inner.steps, step],
          listen: (onConnection, at) =>
            inner[givesSockets] === true
              ? Effect.andThen(state.start, inner.listen(onConnection, at))
              : invalid(
                when === "now" ? "tls" : "startTls",
                inner.name,
                "a transport of sockets to go over, `NodeTransport.tcp` or `NodeTransport.unix`, and TLS once"
              )
        } satisfies Service
      })
    ).pipe(Layer.provide(transport)) as Layer.Layer<StreamTransport, never, any>

/** It is there with its first record. Of something else, TLS is to say what it thinks. */
const lookForHello: Preface["look"] = (input, _, ended) => {
  const isThere = ended || (input.length > 0 && input[0] !== 22) ||
    (input.length >= 5 && input.length >= 5 + Math.min(input[3]! << 8 | input[4]!, longestRecord))
  return isThere ? Result.succeed({ length: 0, proxy: undefined }) : undefined
}
const longestRecord = 16_384

let steps = 0

class TlsState<R> {
  readonly portable: PortableTls | undefined
  private readonly options: TlsOptions<R>
  private readonly context: Context.Context<R>
  private server: Tls.Server | undefined
  private settings: PlainTls | undefined
  /** The latest failure to reload that was told of. */
  private complaint: string | undefined
  readonly handshake: Handshake

  constructor(options: TlsOptions<R>, context: Context.Context<R>) {
    this.options = options
    this.context = context
    // An effect stays here.
    if (typeof options.sni !== "function") this.portable = { step: ++steps, settings: undefined, users: new Set() }
    const timeout = options.handshakeTimeout ?? "10 seconds"
    this.handshake = {
      handshake: "tls",
      // One that is not a duration is found out when the server starts.
      timeout: Duration.fromInputUnsafe(isDuration(timeout) ? timeout : "10 seconds"),
      run: (wire, takeInput) => Effect.suspend(() => this.shake(wire, { input: takeInput() })),
      leave: (wire) => {
        if (this.portable === undefined || !(wire instanceof NodeWire)) return undefined
        wire.portableTls = this.portable
        return { preface: "ClientHello", timeout: this.handshake.timeout, look: lookForHello }
      }
    }
  }

  shake(wire: Wire, clear: Clear): Effect.Effect<Wire, unknown> {
    return Effect.suspend(() => shakeHands(this.server!, wire, clear))
  }

  /** Loads what there is, and watches it until the scope ends. A server that listens again has what it had, at the worst. */
  get start() {
    return Effect.gen({ self: this }, function*() {
      const { reloadOn, watch } = this.options
      const millis = watch === false ? undefined : yield* checkDuration("watch", watch, "10 seconds", 10, 0x7fffffff)
      if (this.settings === undefined) this.use(yield* this.load)
      else yield* this.reload
      if (millis !== undefined && hasFiles(this.options)) {
        yield* Effect.forkScoped(Effect.repeat(Effect.delay(this.reload, millis), Schedule.forever))
      }
      if (reloadOn !== undefined) {
        yield* Effect.forkScoped(
          Effect.provideContext(Stream.runForEach(reloadOn, () => this.reload), this.context),
          { startImmediately: true }
        )
      }
    })
  }

  private get load(): Effect.Effect<PlainTls, ListenError> {
    return Effect.provideContext(load(this.options), this.context)
  }

  private use(settings: PlainTls): void {
    this.settings = settings
    const { sni } = this.options
    if (this.portable !== undefined) {
      this.portable.settings = settings
      for (const tell of this.portable.users) tell(settings)
    }
    this.server = handshakeServer(
      settings,
      typeof sni === "function" ? this.selectByEffect(settings, sni) : selectByName(settings)
    )
  }

  /** New handshakes have the new certificates; where those cannot be used, the old ones stay. */
  private get reload(): Effect.Effect<void> {
    return Effect.matchCauseEffect(this.load, {
      onFailure: (cause) => {
        if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
        const complaint = String(Cause.squash(cause))
        if (complaint === this.complaint) return Effect.void
        this.complaint = complaint
        return publish({
          _tag: "Problem",
          level: "Warn",
          message: "TLS: the new certificate cannot be used, the old one stays",
          cause
        })
      },
      onSuccess: (settings) => {
        this.complaint = undefined
        if (contentsOf(settings) === contentsOf(this.settings!)) return Effect.void
        this.use(settings)
        return publish({ _tag: "CertificatesRenewed" })
      }
    })
  }

  private selectByEffect(
    settings: PlainTls,
    sni: (serverName: string) => Effect.Effect<TlsIdentity | undefined, unknown, R>
  ): Select {
    const contexts = new WeakMap<TlsIdentity, Tls.SecureContext>()
    const contextOf = (identity: TlsIdentity | undefined) => {
      if (identity === undefined) return Effect.succeed(undefined)
      const known = contexts.get(identity)
      if (known !== undefined) return Effect.succeed(known)
      return Effect.map(checkIdentity(identity, { cert: "sni: cert", key: "sni: key" }), (plain) => {
        const context = secureContext(settings, plain)
        contexts.set(identity, context)
        return context
      })
    }
    const run = Effect.runForkWith(this.context)
    return function(name, answer) {
      const fiber = run(Effect.flatMap(Effect.suspend(() => sni(name.toLowerCase())), contextOf))
      const pending = pendingOf(this)
      if (pending !== undefined) pending.onEnd = () => fiber.interruptUnsafe()
      fiber.addObserver((exit) => {
        if (Exit.isSuccess(exit)) return answer(null, exit.value)
        const error = Cause.squash(exit.cause)
        answer(error instanceof Error ? error : new Error(`no certificate for ${name}: ${String(error)}`))
      })
    }
  }
}

const isDuration = (value: unknown): value is Duration.Input => {
  const duration = Duration.fromInput(value as Duration.Input)
  return duration._tag === "Some"
}

/** Ticket keys are new each time. */
const contentsOf = ({ identity, names }: PlainTls): string =>
  JSON.stringify([identity, names], (_, value: unknown) => value instanceof Uint8Array ? Array.from(value) : value)
