/** Node's addresses as `NetAddress` values. */
import * as NetAddress from "effect/net/NetAddress"
import { networkInterfaces } from "node:os"

/** A unix client that did not bind a path of its own. */
export const unnamed = NetAddress.unixPathAddress("")

/** A client that was gone before its address could be asked for. */
const unknown = NetAddress.inetAddressUnsafe(NetAddress.ipv4Unspecified, 0)

/** An IPv4 client of a dual-stack listener is an IPv4 address, not `::ffff:…`: limits and logs mean the client. */
export const inetAddress = (host: string | undefined, port: number | undefined): NetAddress.InetAddress => {
  if (host === undefined || port === undefined) return unknown
  const zone = host.indexOf("%")
  if (zone === -1) return NetAddress.toCanonical(NetAddress.inetAddressFromNativeUnsafe(host, port))
  const ids = scopeIds()
  // The interface may be gone by the time that somebody asks.
  const isKnown = ids.has(host.slice(zone + 1)) || /^\d+$/.test(host.slice(zone + 1))
  return NetAddress.inetAddressFromNativeUnsafe(isKnown ? host : host.slice(0, zone), port, ids)
}

/**
 * The numbers of the interfaces that link-local addresses name, `fe80::1%eth0`. The system may forbid to ask, as systemd does by
 * `RestrictAddressFamilies=` without `AF_NETLINK`.
 */
export const scopeIds = (): Map<string, number> => {
  try {
    return NetAddress.scopeIdsFromInterfaces(Object.entries(networkInterfaces()))
  } catch {
    return new Map()
  }
}
