/**
 * The proofs of reliability, one after the other; see docs/reliability.md. Prints what was done and seen, and whether it stayed
 * within its limits; the exit code is 1 where anything did not.
 *
 *     pnpm reliability                 all of them, some minutes
 *     pnpm reliability storms drain    only these
 *     pnpm reliability --short         small versions
 *     pnpm reliability fuzz-tls --seed 7 --inputs 1000000
 */
import { parseArgs } from "node:util"
import { chaos } from "./chaos.ts"
import { descriptors } from "./descriptors.ts"
import { drain } from "./drain.ts"
import { fuzzFraming } from "./fuzzFraming.ts"
import { fuzzProxy } from "./fuzzProxy.ts"
import { fuzzReaders } from "./fuzzReaders.ts"
import { fuzzTls } from "./fuzzTls.ts"
import { halfOpen } from "./halfOpen.ts"
import { idle } from "./idle.ts"
import { neverReading } from "./neverReading.ts"
import { stopAll } from "./processes.ts"
import type { Proof } from "./proof.ts"
import { slow } from "./slow.ts"
import { storms } from "./storms.ts"

const proofs: ReadonlyArray<Proof> = [
  slow,
  idle,
  storms,
  halfOpen,
  neverReading,
  descriptors,
  drain,
  fuzzReaders,
  fuzzFraming,
  fuzzProxy,
  fuzzTls,
  chaos
]

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    short: { type: "boolean", default: false },
    inputs: { type: "string" },
    seed: { type: "string" },
    seconds: { type: "string" }
  }
})
const number = (option: "inputs" | "seed" | "seconds"): number | undefined => {
  const value = values[option]
  if (value === undefined || /^\d+$/.test(value)) return value === undefined ? undefined : Number(value)
  console.error(`--${option} is ${value}: expected an integer, 0 or more`)
  process.exit(1)
}
const given = { short: values.short, inputs: number("inputs"), seed: number("seed"), seconds: number("seconds") }
const unknown = positionals.find((name) => !proofs.some((proof) => proof.name === name))
if (unknown !== undefined) {
  console.error(`no proof is called "${unknown}"; there are ${proofs.map(({ name }) => name).join(", ")}`)
  process.exit(1)
}

let failures = 0
for (const { claim, name, run } of proofs) {
  if (positionals.length > 0 && !positionals.includes(name)) continue
  console.log(`\n${name}: ${claim}`)
  const began = performance.now()
  const check = (what: string, holds: boolean) => {
    console.log(`  ${holds ? "PASS" : "FAIL"}  ${what}`)
    if (!holds) failures++
  }
  try {
    await run({ ...given, say: (text) => console.log(`        ${text}`), check })
  } catch (error) {
    check(`it came to its end: ${error instanceof Error ? error.stack : String(error)}`, false)
  }
  stopAll()
  console.log(`        ${((performance.now() - began) / 1_000).toFixed(1)} s`)
}
console.log(failures === 0 ? "\nall limits kept" : `\n${failures} limits not kept`)
// Clients that a proof has left behind do not keep the program.
process.exit(failures === 0 ? 0 : 1)
