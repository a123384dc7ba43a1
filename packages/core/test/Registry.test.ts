/** The registry of open connections. */
import { assert, it } from "@effect/vitest"
import { Registry } from "../src/internal/registry.ts"

it("has exactly the members that were added and not deleted, oldest first, in whatever order they go", () => {
  const registry = new Registry<{ readonly id: number; place: number }>()
  const expected = new Map<number, { readonly id: number; place: number }>()
  for (let step = 1, random = 7; step <= 2_000; step++) {
    random = (random * 1_103_515_245 + 12_345) % 2_147_483_648
    if (random % 3 > 0 || expected.size === 0) {
      const member = { id: step, place: 0 }
      expected.set(step, member)
      registry.add(member)
    } else {
      const member = [...expected.values()][random % expected.size]!
      expected.delete(member.id)
      registry.delete(member)
      assert.isUndefined(registry.get(member.id))
    }
    assert.strictEqual(registry.size, expected.size)
  }
  assert.deepStrictEqual(registry.values(), [...expected.values()])
  for (const [id, member] of expected) assert.strictEqual(registry.get(id), member)
})
