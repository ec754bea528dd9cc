/** Cross-entropy and its gradient against the composition on the reference backend, in float64. */

import { crossEntropy, layout, type Tensor, ValueError } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { type Case, check, evaluate, makeBackends } from './fused-rig.ts'
import { integer, pick, random, randomLayout, twin } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

type Reduction = 'mean' | 'sum' | 'none'
interface Options {
  ignored?: number
  reduction?: Reduction
  scale?: number
  needs?: boolean
}

function make(
  rnd: () => number,
  n: number,
  c: number,
  { ignored = 0, reduction = 'mean', scale = 10, needs = true }: Options,
): Case {
  const ignoreIndex = pick(rnd, [-100, 0])
  const target = () => (rnd() < ignored ? ignoreIndex : integer(rnd, 0, c - 1))
  return {
    inputs: [
      twin(randomLayout(rnd, [n, c], { lastDense: true, expand: 0 }), 'float32', () => (rnd() - 0.5) * scale),
      twin(randomLayout(rnd, [n], { expand: 0.1 }), 'int32', target),
    ],
    needs: [needs, false],
    dout: reduction === 'none' ? twin(randomLayout(rnd, [n]), 'float32', () => rnd() - 0.5) : null,
    call: ([x, t]) => crossEntropy(x as Tensor, t as Tensor, { ignoreIndex, reduction }),
  }
}
const both = ['cross_entropy', 'cross_entropyBackward']
// A loss of size up to 60 plus ln C, and rounding of x − lse, which exp makes a relative error of the gradient.
const tolerances = [
  [5e-6, 1e-6],
  [1e-6, 6e-6],
] as const

test('any rows, targets, reductions', () => {
  const rnd = random(21)
  for (let i = 0; i < 60; i++) {
    const reduction = pick<Reduction>(rnd, ['mean', 'sum', 'none'])
    const scale = pick(rnd, [1, 10, 60])
    // At least one target of the mean counts with ignored ≤ 0.3 and these seeds; none is tested below.
    const c = make(rnd, pick(rnd, [1, 5, 64]), pick(rnd, [1, 2, 5, 65, 130]), {
      ignored: pick(rnd, [0, 0.3]),
      reduction,
      scale,
    })
    check(backends, c, both, tolerances)
  }
})

test('many classes, many rows', () => {
  const rnd = random(22)
  check(backends, make(rnd, 5, 9001, { reduction: 'none' }), both, tolerances)
  check(backends, make(rnd, 3000, 65, { ignored: 0.1 }), both, tolerances)
  check(backends, make(rnd, 3000, 65, { reduction: 'sum' }), both, [
    [0, 1e-6],
    [1e-6, 6e-6],
  ])
})

test('nothing counted: NaN for the mean, 0 for the sum, zero gradients', () => {
  const { backend } = backends[1] as { backend: CpuBackend }
  const c = (reduction: Reduction): Case => ({
    inputs: [
      twin(layout.contiguous([4, 5]), 'float32', (i) => i),
      twin(layout.contiguous([4]), 'int32', () => -100),
    ],
    needs: [true, false],
    dout: null,
    call: ([x, t]) => crossEntropy(x as Tensor, t as Tensor, { reduction }),
  })
  const zeros = new Float32Array(20)
  expect(evaluate(backend, c('mean')).results).toEqual([Float32Array.of(Number.NaN), zeros])
  expect(evaluate(backend, c('sum')).results).toEqual([Float32Array.of(0), zeros])
})

test('extreme logits', () => {
  const rnd = random(23)
  const c = (value: (i: number) => number): Case => ({
    ...make(rnd, 4, 6, { reduction: 'none', needs: false }),
    inputs: [
      twin(layout.contiguous([4, 6]), 'float32', value),
      twin(layout.contiguous([4]), 'int32', (i) => i),
    ],
  })
  check(
    backends,
    c((i) => (i === 7 ? -Infinity : 1)),
    ['cross_entropy'],
    tolerances,
  )
  check(
    backends,
    c((i) => (i >= 6 && i < 12 ? -Infinity : i)),
    ['cross_entropy'],
    tolerances,
  )
  check(
    backends,
    c((i) => (i === 8 ? Number.NaN : i)),
    ['cross_entropy'],
    tolerances,
  )
  check(
    backends,
    c((i) => (i === 8 ? Infinity : i)),
    ['cross_entropy'],
    tolerances,
  )
  check(
    backends,
    c((i) => (i % 2 ? 1e30 : -1e30)),
    ['cross_entropy'],
    [[0, 1e-6]],
  )
})

test('a class out of range is named, and the next call works', () => {
  for (const { backend } of backends) {
    for (const bad of [5, -1, 0x7fffffff]) {
      const c: Case = {
        inputs: [
          twin(layout.contiguous([300, 5]), 'float32', (i) => i % 7),
          twin(layout.contiguous([300]), 'int32', (i) => (i === 3 ? -100 : i === 200 ? bad : i % 5)),
        ],
        needs: [false, false],
        dout: null,
        call: ([x, t]) => crossEntropy(x as Tensor, t as Tensor),
      }
      const message = `cross_entropy: index ${bad} is out of range for dim 1 of size 5`
      expect(() => evaluate(backend, c)).toThrow(new ValueError(message))
    }
  }
  check(backends, make(random(1), 64, 5, {}), both, tolerances)
})

test('weights and label smoothing are composed', () => {
  const { backend } = backends[0] as { backend: CpuBackend }
  const c: Case = {
    ...make(random(2), 4, 5, {}),
    call: ([x, t]) => crossEntropy(x as Tensor, t as Tensor, { labelSmoothing: 0.1 }),
  }
  expect(evaluate(backend, c).fused).not.toContain('cross_entropy')
})
