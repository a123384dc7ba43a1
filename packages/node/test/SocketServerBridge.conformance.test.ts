/** Effect's own socket server as a transport, held to what every stream transport must do. */
import * as NodeSocketServer from "@effect/platform-node-shared/NodeSocketServer"
import { Transport } from "@socketserver/core"
import { StreamTransportSuite, TestClient } from "@socketserver/testing"

StreamTransportSuite.suite("Effect's SocketServer over TCP", {
  // Its default answers a client's end with one of its own, and the reply is lost.
  layer: () =>
    NodeSocketServer.layer({ host: "127.0.0.1", port: 0, allowHalfOpen: true }).pipe(Transport.fromSocketServer),
  connect: TestClient.node,
  // A `Socket` can be closed, not reset.
  sendsResets: false,
  // It binds when its own layer is built, not when we listen, and keeps the port until that layer is released.
  addressInUse: false,
  refuses: false
})
