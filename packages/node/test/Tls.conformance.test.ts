/** TLS over TCP and unix sockets, held to what every stream transport must do. */
import { StreamTransport } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"
import { Effect, Layer } from "effect"
import type { NetAddress } from "effect/net"
import { join } from "node:path"
import { authority, identityOf, localhost } from "./certificates.ts"
import { directory } from "./utils.ts"

const identity = identityOf(localhost)

/** Makes the handshake when a client comes, as a server would in the connection's fiber: the suite has bare listeners too. */
const eager = (transport: Layer.Layer<StreamTransport.StreamTransport>) =>
  Layer.effect(
    StreamTransport.StreamTransport,
    Effect.map(StreamTransport.StreamTransport, (inner) => ({
      ...inner,
      steps: [],
      listen: (onConnection: (wire: StreamTransport.Wire) => void, at?: NetAddress.SocketAddress) =>
        inner.listen((wire) => {
          const handshake = inner.steps.find((step) => "handshake" in step)
          Effect.runFork(Effect.map(handshake!.run(wire, () => new Uint8Array(0)), onConnection))
        }, at)
    }))
  ).pipe(Layer.provide(transport))

const connect = (address: NetAddress.SocketAddress) =>
  TestClient.tls(address, { ca: authority.cert, servername: "localhost" })

StreamTransportSuite.suite("TLS over tcp", {
  layer: () => NodeTransport.tcp({ host: "127.0.0.1", port: 0 }).pipe(NodeTransport.tls(identity), eager),
  connect
})

StreamTransportSuite.suite("TLS over unix", {
  layer: () =>
    Layer.unwrap(
      Effect.map(directory, (path) => NodeTransport.unix({ path: join(path, "s") }).pipe(NodeTransport.tls(identity)))
    ).pipe(eager),
  connect,
  seesResets: false,
  sendsResets: false
})
