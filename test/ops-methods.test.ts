import * as tg from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { table } from './op-table.ts'
import { make } from './samples.ts'

const how = { backend: tg.reference, float: 'float32', layout: 'dense', seed: 3 } as const
const flat = (out: unknown): tg.Tensor[] => (Array.isArray(out) ? out : [out]) as tg.Tensor[]

describe('methods are the functions', () => {
  for (const row of table.filter((r) => r.method)) {
    test(row.name, async () => {
      for (const s of row.samples) {
        const [x, ...rest] = make(s, how) as [tg.Tensor, ...unknown[]]
        const method = (x as unknown as Record<string, (...a: unknown[]) => unknown>)[row.name]
        const [a, b] = [
          flat((row.run as (...a: unknown[]) => unknown)(x, ...rest)),
          flat(method.apply(x, rest)),
        ]
        expect(a.length).toBe(b.length)
        for (const [i, t] of a.entries()) {
          expect(t.shape).toEqual(b[i].shape)
          expect(await t.data()).toEqual(await b[i].data())
        }
      }
    })
  }
})

test('methods keep their types in the package as users see it', () => {
  const x = tg.tensor([1, 2])
  const y: tg.Tensor = x.mul(2)
  const parts: tg.Tensor[] = x.split(1)
  expect([y.numel, parts.length]).toEqual([2, 2])
  // @ts-expect-error a result is a Tensor, not just anything
  const wrong: string = x.add(1)
  expect(wrong).toBeInstanceOf(tg.Tensor)
  // @ts-expect-error a shape is a list of numbers
  expect(() => x.reshape('2')).toThrow()
})

/** Functions of the package that are no operators: factories, reads, the tape, devices, programs, errors. */
const others = new Set(
  `GradNode RandomGenerator Tensor apply applyProgram applyProgramAll applyProgramInto applyProgramIntoEach arange backward bernoulli customFunction data
  dataSync defaultBackend enableGrad equal eye full fullLike generateProgram getBackend getRngState grad
  gradEnabled gradcheck gradient hostRandint hostRandom isFloat isFloatingPoint item itemSync largestHolders linspace manualSeed memory
  multinomial noGrad ones onesLike profile profileAsync program promote reportPath rand randint randn randperm referenceKernels registerBackend
  openDevice registerAsyncBackend resetPeakMemory scope setDefaultBackend setDevice setRngState show specialize tensor to toArray toFloat typedPostOrder withBackend
  zeros zerosLike allclose argwhere bincount maskedSelect nonzero set size sizes unique empty emptyLike randLike randnLike randintLike gumbelSoftmax
  allGather allReduce checkpoint compile Mailbox retentionDecays ringAttention ringLinearAttention ringPieces ringShard
  ringUnshard runRanks attentionOperands dropoutParams asTensor describeValue expectOptions expectTensor
  detectAnomaly detectAnomalyAsync hessian jacobian vmap
  Printable autocast checkLeaks expectActivation flatOf namedProgram offload offloaded reclaim setPrintOptions shownAs text wrapKernels`.split(
    /\s+/,
  ),
)

test('every operator has its row in the table', () => {
  const functions = Object.entries(tg).flatMap(([name, v]) => (typeof v === 'function' ? [name] : []))
  const operators = functions.filter(
    // In-place variants are tested with the tape, in packages/core/test.
    (name) => !others.has(name) && !name.endsWith('Error') && !name.endsWith('_'),
  )
  const rows = new Set(table.map((row) => row.name))
  expect(operators.filter((name) => !rows.has(name))).toEqual([])
  // Recurrences are operators of layers, which @tilegrad/core/kernel has.
  const inside = /^(rnn_tanh|rnn_relu|lstm|gru)\b/
  expect([...rows].filter((name) => !operators.includes(name) && !inside.test(name))).toEqual([])
})
