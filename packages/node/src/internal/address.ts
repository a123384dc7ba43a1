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
