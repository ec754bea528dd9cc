import { createCpuBackend, setDefaultBackend } from 'tilegrad'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { configs } from './configs.ts'
import { formulas } from './formulas.ts'
import { outOfMemory } from './memory.ts'
import { runPart } from './part.ts'
import { safetensors } from './safetensors.ts'
import { states } from './states.ts'

// A small share of `pnpm hostile`, always of the same seed.

const backend = createCpuBackend({ threads: 1 })
beforeAll(() => setDefaultBackend(backend))
afterAll(() => backend.close())

it.each([safetensors, configs, formulas, states])('$name: $about', async (part) => {
  const [, count] = part.inputs
  const { tried, survived, refused, failures } = await runPart(part, { seed: 1, count })
  expect(failures).toEqual([])
  expect(tried).toBe(count)
  // Both kinds of outcome are met, or the inputs are of no use.
  expect(Math.min(survived, refused)).toBeGreaterThan(count / 20)
})

it(`${outOfMemory.name}: ${outOfMemory.about}`, async () => {
  const [, count] = outOfMemory.inputs
  const { survived, failures } = await runPart(outOfMemory, { seed: 1, count })
  expect(failures).toEqual([])
  expect(survived).toBe(count)
})
