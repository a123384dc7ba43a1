/** IP addresses by their first bits: what peers are counted by, and lists of networks. */
import * as IpNetwork from "effect/net/IpNetwork"
import * as NetAddress from "effect/net/NetAddress"
import * as Result from "effect/Result"

/** An IPv4 address that is written as an IPv6 one is the IPv4 address; a peer on a unix socket has none. */
export const ipOf = (peer: NetAddress.SocketAddress): NetAddress.IpAddress | undefined =>
  NetAddress.isInetAddress(peer) ? NetAddress.toCanonical(peer.address) : undefined

/** The first bits of an address, with its family, as a key. */
export const prefixOf = (address: NetAddress.IpAddress, length: number): string => {
  const isV4 = NetAddress.isIpv4Address(address)
  const bytes = isV4 ? NetAddress.ipv4ToOctets(address) : NetAddress.ipv6ToOctets(address)
  let key = isV4 ? "4" : "6"
  for (let i = 0, left = length; left > 0; i++, left -= 8) {
    key += String.fromCharCode(left >= 8 ? bytes[i]! : bytes[i]! & (0xff << (8 - left)))
  }
  return key
}

/** A list of networks, compiled: as many look-ups as there are different lengths of prefix, however long the list is. */
export class Networks {
  private readonly ipv4 = new Map<number, Set<string>>()
  private readonly ipv6 = new Map<number, Set<string>>()

  add({ address, prefixLength }: IpNetwork.IpNetwork): void {
    const family = NetAddress.isIpv4Address(address) ? this.ipv4 : this.ipv6
    let keys = family.get(prefixLength)
    if (keys === undefined) family.set(prefixLength, keys = new Set())
    keys.add(prefixOf(address, prefixLength))
  }

  has(address: NetAddress.IpAddress): boolean {
    for (const [length, keys] of NetAddress.isIpv4Address(address) ? this.ipv4 : this.ipv6) {
      if (keys.has(prefixOf(address, length))) return true
    }
    return false
  }
}

/** A network, or the single address that a string without `/` is; IPv4-mapped ones as IPv4. */
export const toNetwork = (
  input: IpNetwork.IpNetworkInput
): Result.Result<IpNetwork.IpNetwork, NetAddress.NetAddressError> => {
  const network: Result.Result<IpNetwork.IpNetwork, NetAddress.NetAddressError> =
    typeof input === "string" && !input.includes("/")
      ? Result.map(
        NetAddress.ipFromString(input),
        (address) => IpNetwork.makeUnsafe(address, NetAddress.width(address))
      )
      : IpNetwork.fromInput(input)
  return Result.map(network, (network) => {
    const { address, prefixLength } = network
    return NetAddress.isIpv6Address(address) && prefixLength >= 96 && NetAddress.isIpv4Mapped(address)
      ? IpNetwork.makeUnsafe(NetAddress.toCanonical(address), prefixLength - 96)
      : network
  })
}
