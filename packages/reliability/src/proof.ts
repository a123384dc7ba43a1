/**
 * A proof is a program that does to a server what the hostile world does, and says whether what is claimed held. Each has a file
 * of its own; `main.ts` has the list of them.
 */
export interface Proof {
  readonly name: string
  /** What must hold, in a sentence. */
  readonly claim: string
  readonly run: (options: ProofOptions) => Promise<void>
}

export interface ProofOptions {
  /** A small version, under 20 seconds. */
  readonly short: boolean
  /** How many inputs a fuzzer tries, the first of its seeds, and how many seconds chaos goes on, where it was said. */
  readonly inputs: number | undefined
  readonly seed: number | undefined
  readonly seconds: number | undefined
  /** Prints what was done, or a figure. */
  readonly say: (text: string) => void
  /** Prints whether it holds; one that does not fails the proof. What is checked names its figure and its limit. */
  readonly check: (what: string, holds: boolean) => void
}
