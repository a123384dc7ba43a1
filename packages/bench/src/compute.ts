/**
 * What a request computes, the same for all contenders and in every language: a key derivation of a fixed number of rounds,
 * calibrated once in a run. The answer is a line as long as the request, so that both can be compared byte by byte.
 */
import { pbkdf2Sync } from "node:crypto"

/** How many rounds take some `millis` here, on a core that has nothing else to do. */
export const calibrate = (millis: number): number => {
  const rounds = 5_000
  let best = Infinity
  for (let i = 0; i < 20; i++) {
    const began = performance.now()
    derive("calibration", rounds)
    best = Math.min(best, performance.now() - began)
  }
  return Math.round(rounds * millis / best)
}

const derive = (line: string, rounds: number) => pbkdf2Sync(line, "bench", rounds, 32, "sha256").toString("hex")

/** The answer to a line of 63 characters, without its line break. The number of rounds comes with the environment. */
export const answerTo = (line: string): string => derive(line, Number(process.env["BENCH_ROUNDS"])).slice(0, 63)
