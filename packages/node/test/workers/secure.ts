/** A portable handler that asks for TLS, and tells what it has. */
import type { Connection } from "@socketserver/core/Connection"
import * as Handler from "@socketserver/core/Handler"
import * as Effect from "effect/Effect"

export const secure = Handler.portable(import.meta.url, "secure", (connection: Connection) =>
  Effect.gen(function*() {
    while (true) {
      const command = yield* connection.readLine()
      if (command === "STARTTLS") {
        const result = yield* Effect.result(connection.upgradeTls("go ahead\n"))
        if (result._tag === "Failure") {
          if (result.failure._tag === "ConnectionError") return yield* Effect.fail(result.failure)
          yield* connection.write(`${result.failure._tag}\n`)
        }
      } else {
        const { tls } = connection
        yield* connection.write(`${command} ${tls?.protocol ?? "clear"} ${tls?.peerCertificate?.subject ?? ""}\n`)
      }
    }
  }))
