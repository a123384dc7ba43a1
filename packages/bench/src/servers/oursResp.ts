/** The Redis server of the examples, as it is there. */
import { Server } from "@socketserver/core"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as NetAddress from "effect/net/NetAddress"
import { stored } from "../workloads.ts"
import { control, ready } from "./control.ts"

// Nothing imports the examples, but this measures one.
const example = (name: string) => import(new URL(`../../../examples/src/${name}.ts`, import.meta.url).href)
const { Redis } = await example("redis")
const { KeyValues } = await example("KeyValues")
const { Channels } = await example("Channels")

const served: Layer.Layer<any> = Redis(0).pipe(
  Layer.provideMerge(Layer.mergeAll(KeyValues.layer(), Channels.layer))
)

const program = Effect.gen(function*() {
  const context = yield* Layer.build(served)
  Context.get(context, KeyValues as Context.Service<any, any>).set(stored.key, stored.value)
  control()
  ready({ port: (Context.get(context, Server.Server).address as NetAddress.InetAddress).port })
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program))
