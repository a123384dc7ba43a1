/** A connection as an Effect `Socket`. */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Socket from "effect/socket/Socket"
import type { ConnectionError } from "../ConnectionError.ts"
import type { ConnectionImpl } from "./connection.ts"

/** A peer can bring every one of these about: they are closes, which socket code expects, not failures it would die of. */
const closeError = (error: ConnectionError | Cause.Done): Socket.SocketError =>
  new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: error._tag === "Done" ? 1000 : 1006 }) })

export const makeSocket = (
  connection: ConnectionImpl,
  pull: Effect.Effect<Uint8Array, ConnectionError | Cause.Done>
): Socket.Socket => {
  const writeError = (cause: ConnectionError) =>
    connection.own(new Socket.SocketError({ reason: new Socket.SocketWriteError({ cause }) }))
  const pullChunks = Effect.mapBoth(pull, {
    onSuccess: (chunk) => [chunk] as const,
    onFailure: (error) => connection.own(closeError(error))
  })
  return Socket.make({
    reader: Effect.succeed({ pull: pullChunks, upgrade: Socket.SocketUpgradeError.unsupported }),
    writer: Effect.acquireRelease(
      Effect.succeed({
        write: (chunk: Uint8Array | string | Socket.CloseEvent) =>
          Socket.isCloseEvent(chunk)
            ? chunk.code > 1000 ? connection.reset : connection.close
            : Effect.mapError(connection.write(chunk), writeError),
        writeAll: (chunks: ReadonlyArray<Uint8Array | string>) =>
          Effect.mapError(connection.writeAll(chunks), writeError)
      }),
      () => connection.end
    )
  })
}
