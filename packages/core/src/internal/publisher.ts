/** What publishes the events of the server that an effect runs for, where it does: while it binds, and what that has started. */
import * as Context from "effect/Context"
import type { LifecycleEvent } from "../ServerEvent.ts"

export const Publisher = Context.Reference<((event: LifecycleEvent) => void) | undefined>(
  "@socketserver/core/Publisher",
  { defaultValue: () => undefined }
)
