/** The page of `--dashboard`. A module of its own, so that commands without it do not load HTTP. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import type { Server } from "@socketserver/core"
import * as Dashboard from "@socketserver/node/Dashboard"
import { Config, Context, Effect, Layer, Option, Redacted } from "effect"
import { HttpRouter, HttpServer } from "effect/http"
import { randomBytes } from "node:crypto"
import { createServer } from "node:http"
import { failure, oneLine, Problem } from "./problem.ts"

/** Opens it on this machine, and says where it is. The token is in that if nobody has given one, and it was made here. */
export const openDashboard = (port: number, servers: Readonly<Record<string, Server.Server["Service"]>>) =>
  Effect.gen(function*() {
    const given = yield* Config.option(Config.Redacted("SOCKETSERVER_DASHBOARD_TOKEN"))
    const token = Option.getOrElse(given, () => Redacted.make(randomBytes(24).toString("base64url")))
    const http = createServer()
    const context = yield* HttpRouter.serve(Dashboard.routes(servers, { token }), {
      disableListenLog: true,
      // Of what anybody may ask for, nothing is logged.
      disableLogger: true
    }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => http, { host: "127.0.0.1", port })),
      Layer.build
    )
    // Node would wait for half a request for ever. The answer to a drain is on its way.
    yield* Effect.addFinalizer(() =>
      Effect.callback<void>((resume) => void http.close(() => resume(Effect.void))).pipe(
        Effect.timeoutOption("1 second"),
        Effect.andThen(Effect.sync(() => http.closeAllConnections()))
      )
    )
    const at = `${HttpServer.formatAddress(Context.get(context, HttpServer.HttpServer).address)}/dashboard`
    return Option.isSome(given) ? at : `${at}#token=${Redacted.value(token)}`
  }).pipe(
    Effect.catchReason(
      "ListenError",
      "InvalidOption",
      ({ expected }) => failure(`no dashboard: SOCKETSERVER_DASHBOARD_TOKEN has to have ${expected}`)
    ),
    Effect.mapError((error) =>
      error instanceof Problem ? error : failure(`no dashboard on port ${port}: ${oneLine(error)}`)
    )
  )
