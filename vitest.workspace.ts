/**
 * One vitest project per package, and one for the scripts. Tests are `packages/<name>/test/**` files named `*.test.ts`; they import the workspace's
 * packages by name, which the packages' `exports` point to their TypeScript sources, so nothing is built first.
 */
import { defineConfig } from "vitest/config"

const project = (name: string, root = `packages/${name}`) => ({
  extends: true as const,
  test: { name, root, include: ["test/**/*.test.ts"] }
})

export default defineConfig({
  test: {
    testTimeout: 20_000,
    hookTimeout: 20_000,
    passWithNoTests: true,
    // Servers log; what they say matters where a test fails.
    silent: "passed-only",
    projects: ["core", "node", "unix-datagram", "testing", "cli", "examples", "bench", "reliability"].map((name) =>
      project(name)
    )
      .concat(
        project("scripts", "scripts")
      )
  }
})
