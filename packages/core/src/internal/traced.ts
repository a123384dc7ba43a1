/** The spans of one server: one for each connection from its first moment to its last, and in it one for its handler, or for each message. */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import * as CloseReason from "../CloseReason.ts"
import { addressAttributes, isOrderly, transportAttributes } from "./attributes.ts"
import type { Entry } from "./entry.ts"
import type { Observation, Observed, ObservedRequest } from "./observed.ts"

/** Effect's own tracer keeps spans for nobody. */
export const trace: Observation = ({ context }) =>
  Effect.sync(() =>
    Context.get(context, Tracer.Tracer) === Tracer.nativeTracer || !Context.get(context, References.TracerEnabled)
      ? undefined
      : { observe: (entry) => new Traced(entry) }
  )

class Traced implements Observed {
  private readonly entry: Entry
  /** A packet, or a value, is no more than its request, and has but the one span, from its first moment on. */
  private readonly outer: Tracer.Span
  private inner: Tracer.Span | undefined
  private clientIsKnown = false

  constructor(entry: Entry) {
    this.entry = entry
    const { kind, local, peer, server } = entry
    this.outer = this.start(`${server.name} ${kind}`, kind === "value" ? "consumer" : "server", server.context, {
      "socketserver.request.id": entry.id,
      ...transportAttributes(server, local),
      ...addressAttributes("server", local),
      ...addressAttributes("network.local", local),
      // What a proxy's header says of the client comes later.
      ...addressAttributes("network.peer", peer)
    })
  }

  within(context: Context.Context<never>): Context.Context<never> {
    return inSpan(context, this.inner ?? this.outer)
  }

  handshake<A, E>(name: string, shaking: Effect.Effect<A, E>): Effect.Effect<A, E> {
    const { server } = this.entry
    // Of upgrades, too, which are within the handler.
    return Effect.suspend(() => {
      const span = this.start(`${server.name} handshake ${name}`, "internal", this.within(server.context))
      return Effect.onExit(
        Effect.provideService(shaking, Tracer.ParentSpan, span),
        (exit) =>
          Effect.sync(() => {
            // The peer's failure, not ours.
            if (Exit.isFailure(exit)) span.attribute("error.type", "HandshakeFailed")
            this.end(span, Exit.void)
          })
      )
    })
  }

  queued(): void {}

  begun(): void {
    const { kind } = this.entry
    this.tellClient()
    if (kind !== "datagram" && kind !== "value") this.inner = this.startRequest()
  }

  handled(reason: CloseReason.CloseReason, cause: Cause.Cause<unknown> | undefined): void {
    const { inner } = this
    if (inner === undefined) return
    this.inner = undefined
    this.endWith(inner, reason, cause)
  }

  message(id: number): ObservedRequest {
    this.tellClient()
    return new TracedMessage(this, id)
  }

  startRequest(attributes?: Record<string, unknown>): Tracer.Span {
    const { server } = this.entry
    return this.start(`${server.name} request`, "internal", inSpan(server.context, this.outer), attributes)
  }

  closed(reason: CloseReason.CloseReason): void {
    const { entry, outer } = this
    // Killed: its handler may never end.
    this.handled(reason, undefined)
    this.tellClient()
    outer.attribute("socketserver.bytes_read", entry.bytesRead)
    outer.attribute("socketserver.bytes_written", entry.bytesWritten)
    this.endWith(outer, reason, reason._tag === "HandlerFailed" ? reason.cause : undefined)
  }

  private tellClient(): void {
    if (this.clientIsKnown) return
    this.clientIsKnown = true
    const attributes = addressAttributes("client", this.entry.peer)
    for (const key of Object.keys(attributes)) this.outer.attribute(key, attributes[key])
  }

  private start(
    name: string,
    kind: Tracer.SpanKind,
    context: Context.Context<never>,
    attributes?: Record<string, unknown>
  ): Tracer.Span {
    return Effect.runSyncWith(context)(Effect.makeSpan(name, { kind, attributes }))
  }

  /** A failure of the server's own makes the span one that has failed. */
  endWith(span: Tracer.Span, reason: CloseReason.CloseReason, cause: Cause.Cause<unknown> | undefined): void {
    const { _tag } = reason
    span.attribute("socketserver.close.reason", _tag)
    if (!isOrderly(_tag)) span.attribute("error.type", _tag)
    const failed = CloseReason.logLevel(reason) === "Error"
    this.end(span, failed ? Exit.failCause(cause ?? Cause.fail(reason)) : Exit.void)
  }

  private end(span: Tracer.Span, exit: Exit.Exit<unknown, unknown>): void {
    const { config, context } = this.entry.server
    span.end(Context.get(context, References.TracerTimingEnabled) ? config.clock.currentTimeNanosUnsafe() : 0n, exit)
  }
}

class TracedMessage implements ObservedRequest {
  private readonly connection: Traced
  private readonly id: number
  private span: Tracer.Span | undefined

  constructor(connection: Traced, id: number) {
    this.connection = connection
    this.id = id
  }

  within(context: Context.Context<never>): Context.Context<never> {
    return this.span === undefined ? this.connection.within(context) : inSpan(context, this.span)
  }

  queued(): void {}

  begun(): void {
    this.span = this.connection.startRequest({ "socketserver.message.id": this.id })
  }

  handled(reason: CloseReason.CloseReason, cause: Cause.Cause<unknown> | undefined): void {
    this.connection.endWith(this.span!, reason, cause)
  }
}

/** A parent span is a service by its type, but one that fibers look for without requiring it. */
const inSpan = (context: Context.Context<never>, span: Tracer.AnySpan): Context.Context<never> =>
  Context.add(context, Tracer.ParentSpan, span) as Context.Context<never>
