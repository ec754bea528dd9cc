/** What results of PyTorch say of a backend, as tests; the tolerances are those of `compare.ts`. */
import { fileURLToPath } from 'node:url'
import type { Backend } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { runConformance } from './run.ts'

export const fixtures = fileURLToPath(new URL('../fixtures/conformance', import.meta.url))

/** Names that are compositions, made as the others are. */
export const more = fileURLToPath(new URL('../fixtures/conformance-more', import.meta.url))

/** Layers as functions, such as convolutions. */
export const layers = fileURLToPath(new URL('../fixtures/conformance-layers', import.meta.url))

/** Modules. */
export const modules = fileURLToPath(new URL('../fixtures/conformance-modules', import.meta.url))

/** Operators in float16 and bfloat16, as PyTorch computes them there. */
const half = fileURLToPath(new URL('../fixtures/conformance-half', import.meta.url))

export const OPERATORS = /^(?!attention|trajectory|gpt2|llama)/

/** Runs what matches. */
export async function failures(
  backend: Backend,
  only: RegExp,
  from = fixtures,
): Promise<{ failed: string[]; passed: number }> {
  const failed: string[] = []
  const report = await runConformance(from, backend, {
    only,
    print: (line) => void (line.startsWith('FAIL') && failed.push(line)),
  })
  return { failed, passed: report.passed }
}

/** Operators, attention, and eight models: their logits, loss and gradients, greedy tokens. */
export function testBackend(backend: Backend): void {
  test('operators', async () => {
    const { failed, passed } = await failures(backend, OPERATORS)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThan(400)
  })

  test('operators that are compositions', async () => {
    const { failed, passed } = await failures(backend, OPERATORS, more)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThan(250)
  })

  test('operators in 16 bits', async () => {
    const { failed, passed } = await failures(backend, OPERATORS, half)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThan(300)
  })

  test('layers as functions', async () => {
    const { failed, passed } = await failures(backend, OPERATORS, layers)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThanOrEqual(61)
  })

  test('modules', async () => {
    const { failed, passed } = await failures(backend, OPERATORS, modules)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThanOrEqual(277)
  })

  test('attention', async () => {
    const { failed, passed } = await failures(backend, /^attention/)
    expect(failed).toEqual([])
    expect(passed).toBeGreaterThan(3)
  })

  test('checkpoints', async () => {
    expect(await failures(backend, /^(gpt2|llama)/)).toEqual({ failed: [], passed: 24 })
  })
}
