/** The process of an attack: runs what a proof's file exports as `attack`. */
import type { Attack } from "./processes.ts"

const [url, args] = process.argv.slice(2) as [string, string]
const { attack }: { readonly attack: Attack<unknown, unknown> } = await import(url)

process.on("disconnect", () => process.exit())
const end = await attack(JSON.parse(args))
process.on("message", async () => {
  process.send!({ result: await end() })
})
process.send!({ underWay: true })
