/**
 * One vitest project per package. Tests are `packages/<name>/test/**` files named `*.test.ts`; they import the workspace's
 * packages by name, which the packages' `exports` point to their TypeScript sources, so nothing is built first.
 */
import { defineConfig } from "vitest/config"

const project = (name: string) => ({
  extends: true as const,
  test: { name, root: `packages/${name}`, include: ["test/**/*.test.ts"] }
})

export default defineConfig({
  test: {
    testTimeout: 20_000,
    hookTimeout: 20_000,
    passWithNoTests: true,
    projects: ["core", "node", "unix-datagram", "testing", "examples", "bench", "reliability"].map(project)
  }
})
