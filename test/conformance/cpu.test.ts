import { createCpuBackend } from '@tilegrad/backend-cpu'
import { afterAll, describe, expect, test } from 'vitest'
import { failures, testBackend } from './checks.ts'

const cpu = createCpuBackend()
afterAll(() => cpu.close())

describe('PyTorch and cpu', () => testBackend(cpu))

// On the reference backend it takes a minute: pnpm conformance runs it there.
test('30 training steps of a GPT on cpu', async () => {
  expect(await failures(cpu, /^trajectory/)).toEqual({ failed: [], passed: 1 })
})
