/**
 * A line protocol beside an HTTP API, in one program. Both speak about the same data: a `Store` that is opened before either
 * of them accepts a client, and closed after both have drained. Nobody wrote that order down; it follows from who needs what.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { type Connection, Dispatch, Server } from "@socketserver/core"
import { NodeTransport } from "@socketserver/node"
import { Config, Console, Context, Effect, Layer, Stream } from "effect"
import { HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { createServer } from "node:http"
import { isMain, netcat, reportDrains, run } from "./run.ts"

/** Stands for a database: something that is opened, used by everybody, and must be closed last. */
export class Store extends Context.Service<Store, {
  readonly get: (key: string) => Effect.Effect<string | undefined>
  readonly set: (key: string, value: string) => Effect.Effect<void>
}>()("@socketserver/examples/Store") {
  static readonly layer = Layer.effect(
    Store,
    Effect.gen(function*() {
      const data = yield* Effect.acquireRelease(
        Effect.as(Console.log("store: open"), new Map<string, string>()),
        () => Console.log("store: closed")
      )
      return {
        get: (key) => Effect.sync(() => data.get(key)),
        set: (key, value) => Effect.sync(() => void data.set(key, value))
      }
    })
  )
}

/** `SET key value` and `GET key`, a line each, answered in order. */
const answer = Effect.fnUntraced(function*(line: string) {
  const store = yield* Store
  const [, command, key, value] = /^(\w+) +(\S+)(?: +(.*))?$/.exec(line) ?? []
  if (command === "GET" && key !== undefined && value === undefined) {
    const found = yield* store.get(key)
    return found === undefined ? "NONE" : `VALUE ${found}`
  }
  if (command === "SET" && key !== undefined && value !== undefined) {
    yield* store.set(key, value)
    return "OK"
  }
  return "ERROR expected GET key, or SET key value"
})

export const keyValue = (connection: Connection.Connection) =>
  connection.lines({ maxLength: 4096 }).pipe(
    Stream.mapEffect(answer),
    Stream.map((reply) => `${reply}\n`),
    Stream.run(connection.sink)
  )

/** The same over HTTP: `GET /key`, and `PUT /key` with the value as the body. */
const Api = HttpRouter.use(Effect.fnUntraced(function*(router) {
  const store = yield* Store
  const key = Effect.map(HttpRouter.params, (params) => params["key"] ?? "")
  yield* router.add(
    "GET",
    "/:key",
    Effect.gen(function*() {
      const found = yield* store.get(yield* key)
      return found === undefined ? HttpServerResponse.empty({ status: 404 }) : HttpServerResponse.text(found)
    })
  )
  yield* router.add("PUT", "/:key", (request) =>
    Effect.gen(function*() {
      yield* store.set(yield* key, yield* request.text)
      return HttpServerResponse.empty()
    }))
}))

export const Embedded = (ports: { readonly http: number; readonly socket: number }) =>
  Layer.mergeAll(
    HttpRouter.serve(Api, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { host: "127.0.0.1", port: ports.http }))
    ),
    NodeTransport.tcp({ host: "127.0.0.1", port: ports.socket }).pipe(
      Dispatch.fiberPerRequest(),
      Server.serveStream(keyValue)
    )
  )

if (isMain(import.meta)) {
  const Ports = Config.all({
    http: Config.Int("HTTP_PORT").pipe(Config.withDefault(8080)),
    socket: Config.Int("PORT").pipe(Config.withDefault(6380))
  })
  Layer.effectDiscard(Effect.gen(function*() {
    const server = yield* Server.Server
    const http = yield* HttpServer.HttpServer
    yield* Console.log(`key-value: ${netcat(server.address)}`)
    yield* Console.log(`HTTP: curl ${HttpServer.formatAddress(http.address)}/color`)
    yield* reportDrains({ "key-value": server })
  })).pipe(
    Layer.provide(Layer.unwrap(Effect.map(Ports, Embedded))),
    Layer.provide(Store.layer),
    Layer.launch,
    run
  )
}
