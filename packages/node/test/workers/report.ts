import { Handler } from "@socketserver/core"
import { Effect } from "effect"
import { writeSync } from "node:fs"

/** Writes its process's number to the output that it has inherited, and computes for ever. */
export const report = Handler.portable(import.meta.url, "report", (_: void) =>
  Effect.sync(() => {
    writeSync(1, `${process.pid}\n`)
    for (;;) { /* nobody hears */ }
  }))
