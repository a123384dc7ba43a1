/**
 * TLS over sockets: `node:tls` takes over the socket of a wire, and a wire over the result takes its place. A `tls.Server` that
 * listens nowhere has the contexts, and decides about clients' certificates.
 */
import type { TlsInfo } from "@socketserver/core/Connection"
import { Reset } from "@socketserver/core/ConnectionError"
import type { Wire } from "@socketserver/core/StreamTransport"
import * as Effect from "effect/Effect"
import type * as Net from "node:net"
import type * as Tls from "node:tls"
import { makeServer, type PlainTls, type Select } from "./tlsOptions.ts"
import { NodeWire } from "./wire.ts"

/** A handshake under way. */
export interface Pending {
  readonly succeed: (socket: Tls.TLSSocket) => void
  readonly fail: (error: unknown) => void
  /** Called when it has ended, however. */
  onEnd: (() => void) | undefined
}

const handshakes = new WeakMap<object, Pending>()

/** Node keeps what a TLS socket was made of in an undocumented place; without it, no handshake succeeds. */
export const pendingOf = (socket: unknown): Pending | undefined => {
  const below = (socket as { readonly _parent?: object } | undefined)?._parent
  return below === undefined ? undefined : handshakes.get(below)
}

/** A server for handshakes only. */
export const handshakeServer = (settings: PlainTls, select: Select | undefined): Tls.Server =>
  makeServer(settings, select)
    .on("secureConnection", (socket) => {
      const pending = pendingOf(socket)
      if (pending === undefined) socket.destroy()
      else pending.succeed(socket)
    })
    .on("tlsClientError", (error, socket) => {
      const pending = pendingOf(socket)
      if (pending === undefined) socket.destroy()
      else pending.fail(error)
    })

/**
 * What becomes of that which the client has sent in clear. Behind a preface it may be TLS's first message, and is its `input`. In
 * the middle of a connection it is discarded, and a `goAhead` written.
 */
export type Clear = { readonly input: Uint8Array } | { readonly goAhead: Uint8Array | string }

/** Says TLS on the wire's socket. Where it fails or is interrupted, the socket is destroyed. */
export const shakeHands = (server: Tls.Server, wire: Wire, clear: Clear): Effect.Effect<NodeWire, unknown> =>
  Effect.callback((resume) => {
    if (!(wire instanceof NodeWire)) {
      return resume(Effect.die(new Error("TLS needs a socket, and a step before it in the pipe has left none")))
    }
    const below = wire.giveToTls(() => pending.fail(new Error("the connection was closed during the TLS handshake")))
    if (below === undefined) {
      wire.destroy(false)
      return resume(Effect.fail(new Reset()))
    }
    if (below.readableEnded) below.destroy()
    else if ("input" in clear) {
      // TLS takes first what lies in the socket's own buffer.
      if (clear.input.length > 0) below.unshift(clear.input)
    } else {
      while (below.readableLength > 0) below.read()
      if (clear.goAhead.length > 0) below.write(clear.goAhead)
    }
    const { allowHalfOpen, bytesRead, bytesWritten } = below
    // Who finishes before the handshake has.
    below.allowHalfOpen = false
    /**
     * What TLS does when the socket below it has closed: it destroys itself, and what is below. To destroy that socket first can
     * crash Node (see `resetBelow` in `wire.ts`), and `node:tls` tells of its own one only when the handshake is over.
     */
    let above: ReadonlyArray<Function> = []
    const end = () => {
      handshakes.delete(below)
      below.off("close", onClose).off("end", onClose)
      pending.onEnd?.()
    }
    const pending: Pending = {
      succeed: (socket) => {
        end()
        socket.allowHalfOpen = allowHalfOpen
        resume(Effect.succeed(
          new NodeWire(socket, { peerOf: () => wire.peer, localOf: () => wire.local }, {
            below,
            info: infoOf(socket),
            bytesRead,
            bytesWritten
          })
        ))
      },
      fail: (error) => {
        if (!handshakes.has(below)) return
        end()
        if (above.length === 0) below.destroy()
        else for (const close of above) close.call(below)
        resume(Effect.fail(error))
      },
      onEnd: undefined
    }
    const onClose = () => pending.fail(new Error("the client closed the connection during the TLS handshake"))
    handshakes.set(below, pending)
    // It ends by itself only before TLS reads.
    below.once("close", onClose).once("end", onClose)
    const begin = (socket: Net.Socket) => {
      if (socket.destroyed || !handshakes.has(socket)) return
      try {
        const ours = socket.listeners("close")
        server.emit("connection", socket)
        above = socket.listeners("close").filter((listener) => !ours.includes(listener))
      } catch (error) {
        pending.fail(error)
      }
    }
    // What was written in clear goes first.
    if (bytesWritten > 0) below.write("", () => begin(below))
    else begin(below)
    return Effect.sync(() => pending.fail(undefined))
  })

const infoOf = (socket: Tls.TLSSocket): TlsInfo => {
  const certificate = socket.getPeerX509Certificate()
  const cipher = socket.getCipher()
  return {
    protocol: socket.getProtocol() ?? "unknown",
    cipher: cipher.standardName ?? cipher.name,
    alpn: typeof socket.alpnProtocol === "string" ? socket.alpnProtocol : undefined,
    serverName: (socket as { readonly servername?: string | false | null }).servername || undefined,
    sessionReused: socket.isSessionReused(),
    authorized: socket.authorized,
    peerCertificate: certificate === undefined ? undefined : {
      der: new Uint8Array(certificate.raw),
      subject: certificate.subject,
      issuer: certificate.issuer,
      fingerprint256: certificate.fingerprint256
    }
  }
}
