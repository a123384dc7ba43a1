#!/usr/bin/env node
import { Effect } from "effect"
import { run } from "../Cli.ts"

// A server that is suspended has nothing else that would keep the process.
const alive = setInterval(() => {}, 2 ** 31 - 1)
// A server goes on when nobody reads what it prints any more; other commands end, see `meant`.
process.stdout.on("error", () => {})
process.stderr.on("error", () => {})

process.exitCode = await Effect.runPromise(run(process.argv.slice(2)))
clearInterval(alive)
// A module may have left something that would keep the process.
setTimeout(() => process.exit(), 1_000).unref()
