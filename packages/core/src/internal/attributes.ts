/** Addresses and transports as OpenTelemetry's semantic conventions for networks have them. */
import * as NetAddress from "effect/net/NetAddress"
import type { ServerImpl } from "./server.ts"

/** `server`, `client`, `network.peer` or `network.local`, with what is known of the address. An unnamed peer has none. */
export const addressAttributes = (
  prefix: "server" | "client" | "network.peer" | "network.local",
  address: NetAddress.SocketAddress
): Record<string, string | number> => {
  if (!NetAddress.isUnixPathAddress(address)) {
    return { [`${prefix}.address`]: NetAddress.formatHost(address), [`${prefix}.port`]: address.port }
  }
  return address.path === "" ? {} : { [`${prefix}.address`]: address.path }
}

/** `network.transport`, and with a port `network.type`; `address` is the server's, or a connection's at the server. */
export const transportAttributes = (
  { config: { transport } }: ServerImpl,
  address: NetAddress.SocketAddress
): Record<string, string> => {
  if (transport.name.startsWith("memory")) return { "network.transport": "memory" }
  if (transport.name === "stream") return { "network.transport": "stream" }
  if (NetAddress.isUnixPathAddress(address)) return { "network.transport": "unix" }
  return {
    "network.transport": transport.waiting === undefined ? "tcp" : "udp",
    "network.type": address._tag === "InetAddressV4" ? "ipv4" : "ipv6"
  }
}

/** Is it an ending that was meant to be? Others are an `error.type`. */
export const isOrderly = (reason: string): boolean => reason === "Completed" || reason === "Drained"
