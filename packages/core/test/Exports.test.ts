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
        "InvalidFrame",
        "Killed",
        "PeerReset",
        "ReadTimeout",
        "Refused",
        "RequestTimeout",
        "TransportFailed",
        "WorkerCrashed",
        "WorkerTimeout",
        "WriteTimeout",
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
      FrameError: ["FrameError", "Incomplete", "Invalid", "Malformed", "TooLong", "Unencodable"],
      Framing: [
        "custom",
        "decode",
        "delimiter",
        "encode",
        "fixed",
        "isFraming",
        "lengthPrefixed",
        "lines",
        "ndjson",
        "netstring",
        "reader",
        "schema",
        "swap",
        "text",
        "whole"
      ],
      Handler: ["isPortable", "portable"],
      Health: ["isLive", "isLiveStatus", "isReady", "isReadyStatus", "tcpProbe"],
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
      Logging: ["Log", "layer", "level", "lines", "off", "quiet"],
      MemoryTransport: ["ConnectionRefused", "bindDatagram", "connect", "datagram", "stream"],
      Message: [],
      MessageTransport: ["MessageTransport"],
      Metrics: ["layer", "prometheusName"],
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
        "makeMessage",
        "makeSessions",
        "makeStream",
        "serveDatagram",
        "serveMessage",
        "serveSessions",
        "serveStream"
      ],
      ServerEvent: ["publish"],
      Session: [],
      StreamTransport: ["StreamTransport"],
      Tracing: ["layer"],
      Transport: ["framed", "fromSocketServer", "fromStream", "toSocketServer"],
      WorkerDispatch: ["WorkerDispatch", "hostConnection"],
      WorkerError: ["QueueFull", "WorkerCrashed", "WorkerError", "WorkerTimeout"]
    })
  })
})
