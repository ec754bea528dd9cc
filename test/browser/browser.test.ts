/** The engine in a browser, and the harness that runs it there. */
import { expect, test } from 'vitest'
import { bundle, runInBrowser } from './harness.ts'

const page = (name: string) => new URL(`./pages/${name}.ts`, import.meta.url)

test('a page opens the GPU, runs a shader and reads it back', async () => {
  const x = Array.from({ length: 100 }, (_, i) => i - 50)
  const found = await runInBrowser<Record<string, unknown>>(page('gpu'), { argument: x })
  // Exact: small integers.
  expect(found.y).toEqual(x.map((v) => v * v + 1))
  expect(found).toMatchObject({ isNode: false, isolated: true, shared: 'function', reason: 'destroyed' })
  expect(found.adapterName).not.toBe('')
  // More than the default of the specification.
  expect(found.workgroup).toBeGreaterThan(16384)
})

test('the bundle of a page does not contain Dawn', async () => {
  const site = await bundle(page('gpu'))
  expect([...site.keys()].sort()).toEqual(['/', '/page.js'])
  expect(site.get('/page.js')).not.toContain('dawn.node')
})

test.each([
  ['console', 'written on purpose'],
  ['uncaught', 'rejected on purpose'],
  ['throw', 'thrown on purpose'],
  ['hang', 'took more than 1000 ms'],
])('a page fails by %s', async (argument, message) => {
  await expect(runInBrowser(page('faults'), { argument, timeout: 1000 })).rejects.toThrow(message)
})
