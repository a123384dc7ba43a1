/** Node's addresses as `NetAddress` values. */
import * as NetAddress from "effect/net/NetAddress"
import * as Result from "effect/Result"
import { networkInterfaces } from "node:os"

/** A unix client that did not bind a path of its own. */
export const unnamed = NetAddress.unixPathAddress("")

/** A client that was gone before its address could be asked for. */
const unknown = NetAddress.inetAddressUnsafe(NetAddress.ipv4Unspecified, 0)

/** An IPv4 client of a dual-stack listener is an IPv4 address, not `::ffff:…`: limits and logs mean the client. */
export const inetAddress = (host: string | undefined, port: number | undefined): NetAddress.InetAddress => {
  if (host === undefined || port === undefined) return unknown
  return NetAddress.toCanonical(
    NetAddress.inetAddressFromNativeUnsafe(host, port, host.includes("%") ? scopeIds() : undefined)
  )
}

/** The names that link-local addresses carry for their interface, `fe80::1%eth0`. */
const scopeIds = (): ReadonlyMap<string, number> => {
  const ids = new Map<string, number>()
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    for (const address of addresses ?? []) {
      if (address.family === "IPv6") ids.set(name, address.scopeid)
    }
  }
  return ids
}

/** An address as data that can be cloned. */
export type EncodedAddress =
  | { readonly ip: string; readonly port: number; readonly scopeId: number }
  | { readonly path: string }

export const encodeAddress = (address: NetAddress.SocketAddress): EncodedAddress =>
  NetAddress.isUnixPathAddress(address) ? { path: address.path } : {
    ip: NetAddress.formatIp(address.address),
    port: address.port,
    scopeId: NetAddress.isInetAddressV6(address) ? address.scopeId : 0
  }

export const decodeAddress = (encoded: EncodedAddress): NetAddress.SocketAddress => {
  if ("path" in encoded) return NetAddress.unixPathAddress(encoded.path)
  const address = NetAddress.ipFromStringUnsafe(encoded.ip)
  return NetAddress.isIpv4Address(address)
    ? NetAddress.inetAddressUnsafe(address, encoded.port)
    : Result.getOrThrow(NetAddress.inetAddressV6(address, encoded.port, { scopeId: encoded.scopeId }))
}
