import type { Dispatch, StreamTransport } from "@socketserver/core"
import type { Layer } from "effect"

/** A pipe step that adds a strategy. */
export type DispatchStep = (
  transport: Layer.Layer<StreamTransport.StreamTransport>
) => Layer.Layer<StreamTransport.StreamTransport | Dispatch.Dispatch>
