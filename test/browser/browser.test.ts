/** The engine in a browser, and the harness that runs it there. */
import { expect, test } from 'vitest'
import { bundle, runInBrowser } from './harness.ts'
import { run as train } from './pages/train.ts'

const page = (name: string) => new URL(`./pages/${name}.ts`, import.meta.url)

test('a page opens the GPU, runs a shader and reads it back', async () => {
  const x = Array.from({ length: 100 }, (_, i) => i - 50)
  const found = await runInBrowser<Record<string, unknown>>(page('gpu'), { argument: x })
  // Exact: small integers.
  expect(found.y).toEqual(x.map((v) => v * v + 1))
  expect(found).toMatchObject({ isNode: false, isolated: true, shared: 'function', reason: 'destroyed' })
  expect(found.adapterName).not.toBe('')
  // Known by Chromium's name of it as well as by Dawn's.
  expect(found.isSoftware).toBe(true)
  // More than the default of the specification.
  expect(found.workgroup).toBeGreaterThan(16384)
})

test('a page trains a transformer on WebGPU as Node does on its CPU', async () => {
  const steps = 12
  const got = await runInBrowser<Awaited<ReturnType<typeof train>>>(page('train'), {
    argument: { device: 'webgpu', steps },
    // In software, compiling the kernels takes most of it.
    timeout: 240_000,
  })
  const want = await train({ device: 'cpu', steps })
  expect(got).toMatchObject({ device: 'webgpu', grown: 0 })
  expect(got.adapter).not.toBe('')
  expect(want).toMatchObject({ device: 'cpu', grown: 0 })
  expect(want.losses[0]).toBeGreaterThan(2)
  // The same seed, batches and dropout masks. Sums of float32 in another order, over twelve steps of AdamW, which
  // divides small gradients by their own size: 1e-3 of a loss of about ln 13.
  got.losses.forEach((loss, i) => expect(Math.abs(loss - (want.losses[i] as number))).toBeLessThan(1e-3))
  expect(got.losses).toHaveLength(steps)
})

test.each(['gpu', 'train'])('the bundle of page %s does not contain Dawn', async (name) => {
  const site = await bundle(page(name))
  // The engine is in the page's own file, or in one that it loads when it is asked for.
  const code = [...site.values()].map(String)
  expect(code.some((text) => text.includes('requestAdapter'))).toBe(true)
  expect(code.filter((text) => text.includes('dawn.node'))).toEqual([])
})

test.each([
  ['console', 'written on purpose', 240_000],
  ['uncaught', 'rejected on purpose', 240_000],
  ['throw', 'thrown on purpose', 240_000],
  // Time to load the page, on a busy machine too.
  ['hang', 'took more than 10000 ms', 10_000],
])('a page fails by %s', async (argument, message, timeout) => {
  await expect(runInBrowser(page('faults'), { argument, timeout })).rejects.toThrow(message)
})
