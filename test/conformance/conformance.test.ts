import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { reference } from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { failures, fixtures, more, OPERATORS, testBackend } from './checks.ts'
import { main } from './cli.ts'
import { type OpCase, readJson } from './manifest.ts'
import { torchOpNames } from './torch-ops.ts'

// The CPU engine's are in cpu.test.ts.
describe('PyTorch and reference', () => testBackend(reference))

test('PyTorch and webgpu', async () => {
  const webgpu = await createWebGpuBackend()
  try {
    // A software adapter takes minutes for the rest: pnpm conformance runs it.
    const some = /^(gpt2_scales|llama_biases)\.(logits|loss)/
    expect(await failures(webgpu, some)).toEqual({ failed: [], passed: 4 })
  } finally {
    webgpu.close()
  }
})

test('the fixture has cases of every operator that PyTorch names', () => {
  const { cases } = readJson(join(fixtures, 'ops.json')) as { cases: OpCase[] }
  const ops = new Set(cases.map((c) => c.op.replace('nn.functional.', '')))
  expect(ops.size).toBeGreaterThanOrEqual(107)
  expect([...ops].filter((op) => !torchOpNames().includes(op))).toEqual([])
})

test('the other fixture has cases of every name that PyTorch has samples of', () => {
  const { cases } = readJson(join(more, 'ops.json')) as { cases: OpCase[] }
  const ops = new Set(cases.map((c) => c.op.replace('nn.functional.', '')))
  expect(ops.size).toBeGreaterThanOrEqual(90)
  expect([...ops].filter((op) => !torchOpNames().includes(op))).toEqual([])
})

describe('the command line', () => {
  const run = async (...args: string[]): Promise<{ code: number; lines: string[] }> => {
    const lines: string[] = []
    return { code: await main(args, (line) => lines.push(line)), lines }
  }

  test('ends with the counts and 0', async () => {
    const { code, lines } = await run('--fixtures', fixtures, '--only', '^tanh')
    expect(code).toBe(0)
    expect(lines.at(-1)).toMatch(/^[1-9]\d* passed, 0 failed, 0 skipped$/)
  })

  test('says in one line what is wrong with the call, and gives 2', async () => {
    for (const [args, message] of [
      [[], '--fixtures is missing'],
      [['--fixtures', '/no/such/place'], '/no/such/place is no directory'],
      [['--fixtures', fileURLToPath(new URL('.', import.meta.url))], 'holds none of ops.json'],
      [['--fixtures', fixtures, '--backend', 'abacus'], "there is no backend 'abacus'"],
      [['--fixtures', fixtures, '--only', '('], 'Invalid regular expression'],
      [['--fixture', fixtures], "Unknown option '--fixture'"],
    ] as const) {
      const { code, lines } = await run(...args)
      expect(lines).toHaveLength(1)
      expect(lines[0]).toContain(message)
      expect(code).toBe(2)
    }
  })

  describe('on a fixture that is wrong', () => {
    const copy = mkdtempSync(join(tmpdir(), 'conformance-'))
    afterAll(() => rmSync(copy, { recursive: true }))
    const edit = (change: (cases: Record<string, never>[]) => void): void => {
      cpSync(fixtures, copy, { recursive: true })
      const path = join(copy, 'ops.json')
      const manifest = JSON.parse(readFileSync(path, 'utf8')) as { cases: Record<string, never>[] }
      manifest.cases = manifest.cases.filter((c) => c.op === 'mul' && 'grads' in c).slice(0, 1)
      change(manifest.cases)
      writeFileSync(path, JSON.stringify(manifest))
    }
    const wrong = async (change: (c: Record<string, never>) => void): Promise<string> => {
      edit(([c]) => change(c))
      const { code, lines } = await run('--fixtures', copy, '--only', OPERATORS.source)
      expect(code).toBe(1)
      expect(lines.at(-1)).toBe('0 passed, 1 failed, 0 skipped')
      return lines.find((line) => line.startsWith('FAIL')) ?? ''
    }

    test('an output, a gradient, a shape, a dtype or a missing output fails, with the place and both values', async () => {
      const swap = (key: 'outputs' | 'grads', from: 'input' | 'outputs') => (c: Record<string, never>) => {
        const source = [c[from]].flat()[0] as { tensor: string }
        Object.assign(c[key][0], { tensor: source.tensor })
      }
      expect(await wrong(swap('outputs', 'input'))).toMatch(
        /^FAIL mul\.0: output 0: 1 of 1 elements differ; first at \[\]: expected \S+, got \S+; worst at .* off by/,
      )
      expect(await wrong(swap('grads', 'outputs'))).toMatch(
        /^FAIL mul\.0: gradient 0: 1 of 1 elements differ/,
      )
      expect(await wrong((c) => Object.assign(c.outputs[0], { shape: [1] }))).toContain(
        'output 0: shape []; expected [1]',
      )
      expect(await wrong((c) => Object.assign(c.outputs[0], { dtype: 'int64' }))).toContain(
        'output 0: dtype float32; expected int32',
      )
      expect(await wrong((c) => Object.assign(c, { outputs: [] }))).toContain('1 outputs; expected 0')
    })

    test('unknown operators, arguments and dtypes are skipped, with the reason', async () => {
      for (const [change, reason] of [
        [{ op: 'lgamma' }, 'no operator lgamma here'],
        [{ kwargs: { out: { value: 1 } } }, 'mul: no argument out here'],
      ] as const) {
        edit(([c]) => Object.assign(c, change))
        const { code, lines } = await run('--fixtures', copy, '--only', '^(mul|lgamma)')
        expect(code).toBe(0)
        expect(lines.at(-2)).toBe(`skipped 1: ${reason}`)
        expect(lines.at(-1)).toBe('0 passed, 0 failed, 1 skipped')
      }
    })
  })
})
