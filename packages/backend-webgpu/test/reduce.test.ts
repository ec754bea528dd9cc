/** Reductions, positions of extremes and scans against the reference. */

import { type DType, layout, type Reduction } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { agreeKernel, operand, output, runKernel } from './support/agree.ts'
import { gpus } from './support/gpus.ts'
import { integer, pick, random, randomLayout } from './support/random.ts'

const special = [0, -0, Infinity, -Infinity, NaN, 3]
const float = (rnd: () => number, odd: number) => () =>
  rnd() < odd ? pick(rnd, special) : Math.fround(rnd() * 4 - 2)
const value = (rnd: () => number, dtype: DType, odd = 0) =>
  dtype === 'float32'
    ? float(rnd, odd)
    : dtype === 'bool'
      ? () => Number(rnd() < 0.5)
      : () => (rnd() < 0.5 ? integer(rnd, -9, 9) : integer(rnd, -(2 ** 31), 2 ** 31 - 1))
/** Factors near 1 and −1: products of thousands of them stay in range. */
const near = (rnd: () => number) => () => (rnd() < 0.2 ? -1 : 1) * (0.99 + 0.02 * rnd())

describe.each(gpus)('$name', ({ gpu }) => {
  test('reduce: any layout and dims', async () => {
    const rnd = random(3)
    for (let i = 0; i < 150; i++) {
      const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32'])
      const kind = pick<Reduction>(rnd, ['sum', 'prod', 'max', 'min'])
      const shape = Array.from({ length: integer(rnd, 0, 4) }, () => pick(rnd, [1, 2, 3, 5, 17, 40]))
      if (layout.numel(shape) > 20000) continue
      const dims = shape.map((_, d) => d).filter(() => rnd() < 0.5)
      const draw =
        kind === 'prod' && dtype === 'float32'
          ? near(rnd)
          : value(rnd, dtype, kind === 'sum' || kind === 'prod' ? 0 : 0.002)
      const x = operand(randomLayout(rnd, shape), dtype, draw)
      const out = output(
        shape.map((n, d) => (dims.includes(d) ? 1 : n)),
        dtype,
      )
      // A sum of n numbers below 2 in a tree: a few roundings of its largest partial sum.
      await agreeKernel(
        gpu,
        'reduce',
        [out],
        [x],
        { kind, dims },
        kind === 'sum'
          ? { atol: 2e-5, rtol: 2e-6 }
          : { rtol: kind === 'prod' ? 1e-4 : 0, atol: kind === 'prod' ? 1e-36 : 0 },
      )
    }
  })

  test('reduce: empty rows, no rows, bools', async () => {
    const rnd = random(4)
    for (const kind of ['sum', 'prod'] as const)
      await agreeKernel(
        gpu,
        'reduce',
        [output([3, 1], 'float32')],
        [operand(layout.contiguous([3, 0]), 'float32', () => 1)],
        { kind, dims: [1] },
      )
    for (const kind of ['max', 'min'] as const)
      for (const shape of [
        [5, 3],
        [300, 2],
      ])
        await agreeKernel(
          gpu,
          'reduce',
          [output([1, shape[1]], 'bool')],
          [operand(layout.contiguous(shape), 'bool', () => Number(rnd() < (kind === 'max' ? 0.01 : 0.99)))],
          { kind, dims: [0] },
        )
  })

  test('reduce: long rows in parts, and columns', async () => {
    const rnd = random(5)
    for (const [shape, dims] of [
      [[300_000], [0]],
      [[3, 70_001], [1]],
      [[20_011, 9], [0]],
      [[5000, 3, 11], [0]],
      [
        [40, 30, 50],
        [0, 2],
      ],
    ] as const) {
      for (const kind of ['sum', 'max'] as const) {
        const x = operand(layout.contiguous(shape), 'float32', value(rnd, 'float32'))
        const out = output(
          shape.map((n, d) => ((dims as readonly number[]).includes(d) ? 1 : n)),
          'float32',
        )
        await agreeKernel(gpu, 'reduce', [out], [x], { kind, dims }, { atol: kind === 'sum' ? 2e-4 : 0 })
      }
    }
  })

  test('sums of many equal numbers do not drift', async () => {
    // Added one after the other in float32, a million give 100,958.
    const exact = Math.fround(0.1)
    for (const [shape, dims] of [
      [[10_000_000], [0]],
      [[150_000, 8], [0]],
      [[8, 150_000], [1]],
    ] as const) {
      const x = operand(layout.contiguous(shape), 'float32', () => 0.1)
      const out = shape.map((n, d) => ((dims as readonly number[]).includes(d) ? 1 : n))
      const [got] = await runKernel(gpu, 'reduce', [output(out, 'float32')], [x], { kind: 'sum', dims })
      const n = shape[dims[0]] as number
      for (const sum of got) expect(Math.abs(sum / (n * exact) - 1)).toBeLessThan(3e-7)
    }
  })

  test('argReduce: any layout, ties, NaN', async () => {
    const rnd = random(6)
    for (let i = 0; i < 120; i++) {
      const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32'])
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 5, 17, 600]))
      if (layout.numel(shape) > 20000) continue
      const dim = integer(rnd, 0, shape.length - 1)
      const few = rnd() < 0.5
      const draw = few ? () => integer(rnd, -2, 2) : value(rnd, dtype, 0.01)
      const x = operand(randomLayout(rnd, shape), dtype, draw)
      await agreeKernel(gpu, 'argReduce', [output(shape.with(dim, 1), 'int32')], [x], {
        kind: pick(rnd, ['max', 'min'] as const),
        dim,
      })
    }
  })

  test('a few long rows take several workgroups, and a second pass', async () => {
    const rnd = random(11)
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
          const x = operand(layout.contiguous([1, 50_257]), 'float32', draw)
          grids.length = 0
          await agreeKernel(gpu, 'argReduce', [output([1, 1], 'int32')], [x], { kind, dim: 1 })
          expect(grids).toEqual([`arg${kind} 1×1×16`, `arg${kind} 1×1×1`])
          grids.length = 0
          await agreeKernel(gpu, 'reduce', [output([1, 1], 'float32')], [x], { kind, dims: [1] })
          expect(grids).toEqual([`${kind} 1×1×16`, `${kind} 1×1×1`])
        }
    } finally {
      Object.assign(gpu.engine, { dispatch, runAgain })
    }
  })

  test('argReduce: rows in parts, also columns and views', async () => {
    const rnd = random(12)
    for (const [shape, dim] of [
      [[3, 9001], 1],
      [[9000, 9], 0],
      [[2, 8192, 2], 1],
    ] as const)
      for (const dtype of ['float32', 'int32'] as const)
        for (const draw of [() => integer(rnd, -2, 2), value(rnd, dtype, 0.0002)])
          await agreeKernel(
            gpu,
            'argReduce',
            [output((shape as readonly number[]).with(dim, 1), 'int32')],
            [operand(randomLayout(rnd, shape), dtype, draw)],
            { kind: 'max', dim },
          )
  })

  test('scan: any layout', async () => {
    const rnd = random(7)
    for (let i = 0; i < 150; i++) {
      const kind = pick(rnd, ['sum', 'prod', 'affine'] as const)
      const dtype = kind === 'affine' ? 'float32' : pick<DType>(rnd, ['float32', 'int32'])
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 5, 17, 130, 700]))
      if (layout.numel(shape) > 20000) continue
      const dim = integer(rnd, 0, shape.length - 1)
      const draw = dtype === 'int32' ? value(rnd, dtype) : kind === 'sum' ? value(rnd, dtype) : near(rnd)
      const inputs = (kind === 'affine' ? [0, 1] : [0]).map(() =>
        operand(randomLayout(rnd, shape), dtype, draw),
      )
      await agreeKernel(
        gpu,
        'scan',
        [output(shape, dtype)],
        inputs,
        { kind, dim, reverse: rnd() < 0.5 },
        { atol: 1e-4, rtol: 1e-4 },
      )
    }
  })

  test('scan: long rows in chunks', async () => {
    const rnd = random(8)
    for (const [shape, dim] of [
      [[100_003], 0],
      [[2, 30_000], 1],
      [[9000, 9], 0],
    ] as const)
      for (const kind of ['sum', 'affine', 'prod'] as const) {
        const draw = () =>
          kind === 'affine' ? rnd() * 1.8 - 0.9 : kind === 'sum' ? rnd() - 0.5 : rnd() < 0.5 ? -1 : 1
        const inputs = (kind === 'affine' ? [0, 1] : [0]).map(() =>
          operand(layout.contiguous(shape), 'float32', draw),
        )
        for (const reverse of [false, true])
          await agreeKernel(
            gpu,
            'scan',
            [output(shape, 'float32')],
            inputs,
            { kind, dim, reverse },
            { atol: 2e-4 },
          )
      }
  })

  test('scan: one tensor as both inputs', async () => {
    const x = operand(layout.contiguous([3, 40]), 'float32', (i) => Math.sin(i))
    await agreeKernel(
      gpu,
      'scan',
      [output([3, 40], 'float32')],
      [x, x],
      { kind: 'affine', dim: 1, reverse: false },
      { atol: 1e-5 },
    )
  })
})
