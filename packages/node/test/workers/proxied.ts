/** A portable handler that tells whom it is with, and echoes. */
import type { Connection } from "@socketserver/core/Connection"
import * as Handler from "@socketserver/core/Handler"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

export const proxied = Handler.portable(import.meta.url, "proxied", (connection: Connection) => {
  const { local, peer, proxy, tls } = connection
  return Effect.andThen(
    connection.write(
      `${String(peer)} ${String(local)} v${proxy?.version} ${proxy?.authority} ${proxy?.tlvs.length} ${
        tls?.protocol ?? "clear"
      }\n`
    ),
    Stream.run(connection.bytes, connection.sink)
  )
})
