/** What the package exports, so that nothing is lost or added by accident. */
import { assert, describe, it } from "@effect/vitest"
import * as Core from "@socketserver/core"

describe("@socketserver/core", () => {
  it("exports its modules, and each of them what it is documented to have", () => {
    const surface = Object.fromEntries(
      Object.entries(Core).map(([name, module]) => [name, Object.keys(module).toSorted()])
    )
    assert.deepStrictEqual(surface, {
      Admission: [
        "allow",
        "deny",
        "maxConnections",
        "pauseListening",
        "perPeer",
        "queue",
        "rate",
        "reject",
        "verify",
        "verifyDatagram"
      ],
      CloseReason: [
        "Completed",
        "Drained",
        "HandlerFailed",
        "HandshakeFailed",
        "IdleTimeout",
        "Killed",
        "PeerReset",
        "Refused",
        "TransportFailed",
        "WorkerCrashed",
        "WorkerTimeout",
        "logLevel"
      ],
      Connection: [],
      ConnectionError: [
        "Closed",
        "ConnectionError",
        "Failed",
        "HandshakeFailed",
        "LimitExceeded",
        "Reset",
        "Timeout",
        "TlsUnavailable",
        "UnexpectedEnd"
      ],
      Datagram: [],
      DatagramError: ["Closed", "DatagramError", "Failed", "NoReturnAddress", "TooLarge", "Unreachable"],
      DatagramTransport: ["DatagramTransport"],
      Dispatch: ["Dispatch", "bounded", "custom", "fiberPerRequest", "serial"],
      Handler: ["isPortable", "portable"],
      ListenError: [
        "AddressInUse",
        "AddressNotAvailable",
        "HandlerNotFound",
        "InvalidOption",
        "ListenError",
        "ListenFailed",
        "PermissionDenied",
        "WorkersNotStarted"
      ],
      MemoryTransport: ["ConnectionRefused", "bindDatagram", "connect", "datagram", "stream"],
      ProxyProtocol: ["ProxyProtocolError", "accept", "decode"],
      Server: [
        "Server",
        "Service",
        "as",
        "every",
        "handleOne",
        "handleOneDatagram",
        "listen",
        "listenDatagram",
        "makeDatagram",
        "makeSessions",
        "makeStream",
        "serveDatagram",
        "serveSessions",
        "serveStream"
      ],
      ServerEvent: [],
      Session: [],
      StreamTransport: ["StreamTransport"],
      Transport: ["fromSocketServer", "toSocketServer"],
      WorkerDispatch: ["WorkerDispatch", "hostConnection"],
      WorkerError: ["QueueFull", "WorkerCrashed", "WorkerError", "WorkerTimeout"]
    })
  })
})
