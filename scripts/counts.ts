/**
 * Reads how many tests passed and failed from the report of vitest's json reporter, and prints the line that CI reads. A
 * test file that does not load has no tests in the report; it counts as one that failed.
 */
import { readFileSync } from "node:fs"

export interface Counts {
  readonly passed: number
  readonly failed: number
}

export const readCounts = (file: string): Counts => {
  const report: {
    readonly numPassedTests: number
    readonly numFailedTests: number
    readonly testResults: ReadonlyArray<{ readonly status: string; readonly assertionResults: ReadonlyArray<unknown> }>
  } = JSON.parse(readFileSync(file, "utf8"))
  const notLoaded = report.testResults.filter((one) => one.status === "failed" && one.assertionResults.length === 0)
  return { passed: report.numPassedTests, failed: report.numFailedTests + notLoaded.length }
}

export const sumLine = ({ failed, passed }: Counts): string => `${passed} passed, ${failed} failed`
