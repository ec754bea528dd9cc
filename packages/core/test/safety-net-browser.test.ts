/** The safety net where nobody can be asked to collect garbage, as in browsers: letting the event loop turn helps. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bareBackend, bytesOn } from './bare-backend.ts'

const { getBuiltinModule } = process
beforeAll(() => {
  Object.assign(process, { getBuiltinModule: undefined })
})
afterAll(() => {
  Object.assign(process, { getBuiltinModule })
})

test('a loop that lets the event loop turn runs in bounded memory', async () => {
  const device = bareBackend()
  for (let i = 0; i < 600; i++) {
    bytesOn(device, 2 ** 24)
    await new Promise((done) => setTimeout(done, 0))
  }
  // 9.4 GiB in all. Collecting takes V8 a while, in which more is made.
  expect(device.peak).toBeLessThan(2 ** 31)
})
