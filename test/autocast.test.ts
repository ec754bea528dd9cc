/** What `autocast` makes of each operator, by the table that all operators stand in, and what becomes of weights. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  autocast,
  crossEntropy,
  type DType,
  DTypeError,
  isFloat,
  randint,
  randn,
  scope,
  type Tensor,
  to,
  withBackend,
} from '@tilegrad/core'
import { createCpuBackend } from 'tilegrad'
import { afterAll, describe, expect, test } from 'vitest'
import { type Row, table } from './op-table.ts'
import { make, replaced, tensorsIn } from './samples.ts'

const cpu = createCpuBackend({ threads: 1 })
afterAll(() => cpu.close())

const PRODUCTS =
  'matmul mm bmm mv dot addmm baddbmm einsum linear scaledDotProductAttention linearAttention gatedLinearAttention retention tensordot conv1d conv2d convTranspose1d convTranspose2d'
const FLOAT32 =
  'sum prod mean cumsum cumprod logsumexp var std totalNorm square pow exp expm1 log log1p softplus reciprocal rsqrt softmax softmin logSoftmax ' +
  'layerNorm rmsNorm groupNorm crossEntropy linearCrossEntropy nllLoss mseLoss l1Loss smoothL1Loss huberLoss binaryCrossEntropyWithLogits deltaRule ' +
  'varMean stdMean nansum nanmean trace klDiv binaryCrossEntropy hingeEmbeddingLoss softMarginLoss'
const policy = new Map<string, 'half' | 'float32'>([
  ...PRODUCTS.split(' ').map((name) => [name, 'half'] as const),
  ...FLOAT32.split(' ').map((name) => [name, 'float32'] as const),
])
/** Recurrences are operators of layers, in float32: errors would add up over time. */
const inside = /^(rnn_tanh|rnn_relu|lstm|gru)\b/
/** Whether a product is added to a residual of float32, or there is none at all. */
function keepsFloat32(name: string, args: readonly unknown[]): boolean {
  const single = name === 'einsum' && args.length < 3
  return /^b?addb?mm$/.test(name) || single || Boolean(Object(args.at(-1)).residual)
}

const flat = (out: Tensor | readonly Tensor[]): readonly Tensor[] => [out].flat()
const how = { backend: cpu, float: 'float32', layout: 'dense', seed: 11 } as const

/** An operator on a sample, its floating tensors in a dtype. */
function called(row: Row, sample: Row['samples'][number], dtype: DType): readonly Tensor[] {
  const args = make(sample, how)
  const tensors = tensorsIn(args).map((t) => (isFloat(t.dtype) ? to(t, dtype) : t))
  return flat((row.run as (...args: unknown[]) => Tensor | readonly Tensor[])(...replaced(args, tensors)))
}

test('the policy names operators that there are, those that docs/half-precision.md lists', () => {
  const names = new Set(table.map((row) => row.name))
  expect([...policy.keys()].filter((name) => !names.has(name))).toEqual([])
  const page = readFileSync(fileURLToPath(new URL('../docs/half-precision.md', import.meta.url)), 'utf8')
  const listed = (row: string): string =>
    [...(page.split(`| ${row} |`)[1]?.split('\n')[0] ?? '').matchAll(/`(\w+)`/g)]
      .map(([, name]) => name)
      .join(' ')
  expect(listed('operands of 16 bits, and the result')).toBe(PRODUCTS)
  expect(listed('results of float32')).toBe(FLOAT32)
})

describe.each(['bfloat16', 'float16'] as const)('in %s', (half) => {
  const of = (run: () => readonly Tensor[]): { dtypes: string; values: ArrayLike<number>[] } =>
    scope(() => {
      const out = withBackend(cpu, run)
      return { dtypes: out.map((t) => t.dtype).join(), values: out.map((t) => t.dataSync()) }
    })
  const hasFloats = (sample: Row['samples'][number]): boolean =>
    tensorsIn(make(sample, how)).some((t) => isFloat(t.dtype))

  for (const row of table) {
    test(row.name, () => {
      for (const sample of row.samples) {
        const [plain, wide, narrow] = [
          of(() => called(row, sample, 'float32')),
          of(() => autocast(half, () => called(row, sample, 'float32'))),
          of(() => autocast(half, () => called(row, sample, half))),
        ]
        const known = inside.test(row.name) ? 'float32' : policy.get(row.name)
        const wants = hasFloats(sample) ? known : undefined
        const inHalf = of(() => called(row, sample, half))
        if (wants === undefined) {
          // By promotion: the very same as without.
          expect(wide).toEqual(plain)
          expect(narrow).toEqual(inHalf)
        } else if (wants === 'float32') {
          expect(narrow.dtypes).toBe(plain.dtypes)
          if (row.name !== 'linearCrossEntropy') expect(wide).toEqual(plain)
          // What is computed of 16 bits is what is computed of them in float32.
          const exact = of(() => {
            const args = make(sample, how)
            const tensors = tensorsIn(args).map((t) => (isFloat(t.dtype) ? to(to(t, half), 'float32') : t))
            return flat(
              (row.run as (...args: unknown[]) => Tensor | readonly Tensor[])(...replaced(args, tensors)),
            )
          })
          if (row.name !== 'linearCrossEntropy') expect(narrow).toEqual(exact)
        } else {
          expect(narrow).toEqual(inHalf)
          expect(wide.dtypes.split(',')[0]).toBe(keepsFloat32(row.name, make(sample, how)) ? 'float32' : half)
        }
      }
    })
  }
})

test('cross-entropy keeps logits of 16 bits for the backward pass, and takes class weights of float32', () => {
  withBackend(cpu, () => {
    const logits = randn([64, 32]).to('bfloat16')
    logits.requiresGrad = true
    const classes = randint(0, 32, [64])
    const loss = autocast('bfloat16', () => crossEntropy(logits, classes))
    expect([loss.dtype, loss.gradFn?.inputs[0].dtype]).toEqual(['float32', 'bfloat16'])
    expect(loss.itemSync()).toBeCloseTo(crossEntropy(logits.to('float32'), classes).itemSync(), 6)
    loss.backward()
    expect(logits.grad?.dtype).toBe('bfloat16')
    const weighted = autocast('bfloat16', () => crossEntropy(logits, classes, { weight: randn([32]).abs() }))
    expect(weighted.dtype).toBe('float32')
    expect(() => crossEntropy(logits.to('float64'), classes, { weight: randn([32]) })).toThrow(DTypeError)
  })
})
