/** Reductions, positions of extremes and scans against the reference. */

import { describe, expect, test } from 'vitest'
import type { Engine } from '../../../test/kernels/fused.ts'
import { dense, output } from '../../../test/kernels/operand.ts'
import { agree, runKernel } from '../../../test/kernels/primitive.ts'
import { random } from '../../../test/kernels/random.ts'
import { keep, testArgReduce, testReduce } from '../../../test/kernels/reduce.cases.ts'
import { testScan } from '../../../test/kernels/scan.cases.ts'
import { engine as all } from './support/engine.ts'
import { gpus } from './support/gpus.ts'

testReduce(all, {
  random: 150,
  prod: { rtol: 1e-4, atol: 1e-36 },
  large: [
    [[300_000], [0]],
    [[3, 70_001], [1]],
    [[20_011, 9], [0]],
    [[5000, 3, 11], [0]],
    [
      [40, 30, 50],
      [0, 2],
    ],
  ],
})
testArgReduce(all, { random: 120 })
testScan(all, {
  random: 150,
  affine: ['float32'],
  sizes: [1, 2, 3, 5, 17, 130, 700],
  within: { atol: 1e-4, rtol: 1e-4 },
})

describe.each(gpus)('$name', ({ gpu }) => {
  test('sums of many equal numbers do not drift', async () => {
    // Added one after the other in float32, a million give 100,958.
    const exact = Math.fround(0.1)
    for (const [shape, dims] of [
      [[10_000_000], [0]],
      [[150_000, 8], [0]],
      [[8, 150_000], [1]],
    ] as const) {
      const x = dense(shape, () => 0.1)
      const out = output(keep(shape, dims), 'float32')
      const [got] = await runKernel(gpu, 'reduce', [out], [x], { kind: 'sum', dims })
      const n = shape[dims[0]] as number
      for (const sum of got) expect(Math.abs(sum / (n * exact) - 1)).toBeLessThan(3e-7)
    }
  })

  test('a few long rows take several workgroups, and a second pass', async () => {
    const rnd = random(11)
    const engine: Engine = { ...all, backends: all.backends.filter(({ backend }) => backend === gpu) }
    const grids: string[] = []
    const { dispatch, runAgain } = gpu.engine
    gpu.engine.dispatch = (kernel, buffers, words, grid, ...rest) => {
      grids.push(`${kernel.label} ${grid.join('×')}`)
      dispatch.call(gpu.engine, kernel, buffers, words, grid, ...rest)
    }
    gpu.engine.runAgain = (step, ...rest) => {
      grids.push(`${step.kernel.label} ${step.grid.join('×')}`)
      runAgain.call(gpu.engine, step, ...rest)
    }
    const last = [50_257, 50_257, 50_256, 0, NaN]
    try {
      for (const kind of ['max', 'min'] as const)
        for (const [n, at] of last.entries()) {
          // Equal values everywhere, the extreme twice, or NaN twice: the first one counts.
          const sign = kind === 'max' ? 1 : -1
          const where = Number.isNaN(at) ? 40_000 : at
          let i = 0
          const draw = (): number => {
            const here = i++
            if (here !== where && here !== 50_255) return n === 0 ? 0 : sign * Math.fround(rnd())
            return n === 0 ? 0 : Number.isNaN(at) ? NaN : sign * 2
          }
          const x = dense([1, 50_257], draw)
          grids.length = 0
          await agree(engine, 'argReduce', [output([1, 1], 'int32')], [x], { kind, dim: 1 })
          expect(grids).toEqual([`arg${kind} 1×1×16`, `arg${kind} 1×1×1`])
          grids.length = 0
          await agree(engine, 'reduce', [output([1, 1], 'float32')], [x], { kind, dims: [1] })
          expect(grids).toEqual([`${kind} 1×1×16`, `${kind} 1×1×1`])
        }
    } finally {
      Object.assign(gpu.engine, { dispatch, runAgain })
    }
  })
})
