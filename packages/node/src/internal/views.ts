/** What a control and a dashboard have in common: servers by their names, and how they and their connections look as JSON. */
import * as Server from "@socketserver/core/Server"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as NetAddress from "effect/net/NetAddress"
import type { ConnectionView, ServerView } from "../Control.ts"

export type Servers = Readonly<Record<string, Server.Server["Service"]>>

/** The servers of these tags, by the names of their options; a second one of a name gets `-2`. */
export const named = <Tag extends Context.Service<any, Server.Server["Service"]>>(
  tags: ReadonlyArray<Tag> | undefined
): Effect.Effect<Servers, never, Context.Service.Identifier<Tag>> =>
  Effect.gen(function*() {
    const servers: Record<string, Server.Server["Service"]> = {}
    for (const tag of tags ?? [Server.Server as unknown as Tag]) {
      const server = yield* tag
      const { name } = yield* server.info
      let unique = name
      for (let n = 2; Object.hasOwn(servers, unique); n++) unique = `${name}-${n}`
      servers[unique] = server
    }
    return servers
  })

export const addressOf = (address: NetAddress.SocketAddress): string =>
  NetAddress.isUnixPathAddress(address) ? `unix:${address.path}` : NetAddress.formatInet(address)

/** What anybody may have noted, as something that fits into JSON. */
export const plain = (value: unknown): unknown => {
  if (typeof value === "number" || typeof value === "boolean" || value === null) return value
  if (typeof value === "string") return value.slice(0, 1_000)
  if (typeof value === "bigint" || value === undefined) return String(value)
  if (typeof value !== "object") return `a ${typeof value}`
  try {
    const text = JSON.stringify(value)
    return text.length <= 1_000 ? JSON.parse(text) : text.slice(0, 1_000)
  } catch {
    return "an object that JSON has nothing for"
  }
}

export const viewOfAnnotations = (annotations: ReadonlyMap<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Array.from(annotations, ([key, value]) => [key, plain(value)]))

export const viewOfServer = (name: string, server: Server.Server["Service"]): Effect.Effect<ServerView> =>
  Effect.gen(function*() {
    const { address, limits, strategy, transport, workers } = yield* server.info
    return {
      name,
      address: addressOf(address),
      transport,
      strategy,
      status: yield* server.status,
      limits,
      ...workers === undefined ? {} : {
        workers: { kind: workers.kind, busy: workers.busy, idle: workers.idle, crashed: workers.crashed }
      },
      pid: process.pid
    }
  })

export const viewOfConnection = (connection: Server.ConnectionInfo): ConnectionView => ({
  id: connection.id,
  peer: addressOf(connection.peer),
  local: addressOf(connection.local),
  state: connection.state,
  ageMs: Math.round(Duration.toMillis(connection.age)),
  bytesRead: connection.bytesRead,
  bytesWritten: connection.bytesWritten,
  annotations: viewOfAnnotations(connection.annotations)
})
