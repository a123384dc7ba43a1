#!/usr/bin/env node
import { Effect } from "effect"
import { run } from "../Cli.ts"

// A server that is suspended has nothing else that would keep the process.
const alive = setInterval(() => {}, 2 ** 31 - 1)
// Whoever reads the output may have enough of it: `socketserver events | head -1`.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1))

process.exitCode = await Effect.runPromise(run(process.argv.slice(2)))
clearInterval(alive)
