import {
  expr,
  linear,
  matmul,
  profile,
  program,
  reference,
  specialize,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterAll, describe, expect, it } from 'vitest'
import { untuned } from '../src/device/tuning.ts'
import type { WebGpuBackend } from '../src/index.ts'
import { multiply } from '../src/kernels/matmul/matmul.ts'
import { type Plan, planOf } from '../src/kernels/matmul/plan.ts'
import { type Problem, problemOf } from '../src/kernels/matmul/problem.ts'
import { skinnyOf } from '../src/kernels/matmul/skinny.ts'
import { sharedGpu } from './support/shared-gpu.ts'

const shared = await sharedGpu()
const [full, plain, soft] = [shared.full(), shared.plain(), shared.full()]
// As on a GPU: software adapters have a tile of their own.
full.engine.tuning = plain.engine.tuning = untuned
afterAll(() => {
  for (const backend of [full, plain, soft]) backend.close()
})

/** The same numbers on every backend. */
function numbers(seed: number): (limit: number) => number {
  let state = seed
  return (limit) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return Math.floor((state / 2 ** 32) * limit)
  }
}

function filled(shape: readonly number[], next: (limit: number) => number, int = false): Tensor {
  const count = shape.reduce((n, s) => n * s, 1)
  if (int) return tensor(Int32Array.from({ length: count }, () => next(2 ** 32) | 0)).reshape(shape)
  return tensor(Float32Array.from({ length: count }, () => next(2000) / 1000 - 1)).reshape(shape)
}

/** Largest difference to the reference; NaN and infinities must be the same ones. */
async function differs(backend: WebGpuBackend, build: () => readonly Tensor[]): Promise<number> {
  const wanted = await Promise.all(withBackend(reference, build).map((t) => t.data()))
  const got = await Promise.all(withBackend(backend, build).map((t) => t.data()))
  let most = 0
  wanted.forEach((want, o) => {
    expect(got[o]?.length).toBe(want.length)
    want.forEach((w, i) => {
      const g = got[o]?.[i] as number
      if (Object.is(g, w)) return
      const d = Math.abs(g - w)
      most = Number.isNaN(d) ? Infinity : Math.max(most, d)
    })
  })
  return most
}

/** Sums of k products of numbers up to 1, each rounded to float32, in another order. */
const tolerance = (k: number): number => 1e-6 * (k + 4)

/** A matrix (…, rows, columns) in memory as it comes, transposed, or part of a larger one, at an odd offset. */
const layouts: Record<
  string,
  (batch: readonly number[], r: number, c: number, next: (n: number) => number) => Tensor
> = {
  N: (batch, r, c, next) => filled([...batch, r, c], next),
  T: (batch, r, c, next) => filled([...batch, c, r], next).transpose(-1, -2),
  part: (batch, r, c, next) =>
    filled([...batch, r + 1, c + 3], next)
      .narrow(-1, 2, c)
      .narrow(-2, 1, r),
  partT: (batch, r, c, next) =>
    filled([...batch, c + 4, r + 4], next)
      .narrow(-1, 4, r)
      .narrow(-2, 4, c)
      .transpose(-1, -2),
  flipped: (batch, r, c, next) => filled([...batch, r, c], next).flip(-1),
  row: (batch, _r, c, next) => filled([...batch, 1, c], next).expand([...batch, _r, c]),
  outer: (batch, r, c, next) =>
    filled([r, ...batch, c], next).permute([...batch.map((_, i) => i + 1), 0, batch.length + 1]),
}

describe.each([
  ['all limits', full],
  ['default limits', plain],
  ['software', soft],
])('matmul, %s', (_, gpu) => {
  const cases: [m: number, k: number, n: number, a: string, b: string, batch: number[]][] = [
    [33, 20, 36, 'N', 'N', []],
    [36, 20, 40, 'T', 'T', []],
    [65, 33, 17, 'N', 'T', []],
    [16, 64, 12, 'T', 'N', [3]],
    [17, 5, 9, 'part', 'partT', [2, 2]],
    [12, 9, 8, 'flipped', 'row', [2]],
    [9, 7, 11, 'outer', 'outer', [2, 3]],
    [1, 1, 1, 'N', 'N', []],
    [4, 0, 5, 'N', 'N', []],
    [0, 4, 5, 'N', 'N', []],
    [20, 100, 1, 'N', 'N', []],
    [1, 100, 20, 'N', 'T', []],
    [3, 260, 5, 'T', 'N', []],
    [70, 1, 70, 'N', 'N', []],
  ]
  it.each(cases)('(%i × %i) · (… × %i), %s %s', async (m, k, n, a, b, batch) => {
    const build = () => {
      const next = numbers(m + 10 * k + n)
      const left = layouts[a]?.(batch, m, k, next) as Tensor
      return [matmul(left, layouts[b]?.(batch, k, n, next) as Tensor)]
    }
    expect(await differs(gpu, build)).toBeLessThan(tolerance(k))
  })

  it('broadcasts the batch either way', async () => {
    const build = () => {
      const next = numbers(5)
      const [a, b] = [filled([3, 1, 6, 5], next), filled([4, 5, 7], next)]
      return [
        matmul(a, b),
        matmul(filled([6, 5], next), b),
        matmul(filled([2, 4, 6, 5], next), filled([5, 7], next)),
      ]
    }
    expect(await differs(gpu, build)).toBeLessThan(tolerance(5))
  })

  it('wraps int32', async () => {
    const build = () => {
      const next = numbers(6)
      return [matmul(filled([18, 21], next, true), filled([21, 10], next, true))]
    }
    expect(await differs(gpu, build)).toBe(0)
  })

  it('spreads NaN and infinity along their row or column only', async () => {
    const build = () => {
      const next = numbers(7)
      const hole = (at: number, what: number) =>
        tensor(Float32Array.from({ length: 20 * 20 }, (_, i) => (i === at ? what : next(9) + 1))).reshape([
          20, 20,
        ])
      return [
        matmul(hole(45, Number.NaN), hole(390, Infinity)),
        matmul(hole(19, Infinity).narrow(1, 1, 19), hole(0, NaN).narrow(0, 1, 19)),
      ]
    }
    expect(await differs(gpu, build)).toBeLessThan(1e-3)
  })
})

describe.each([
  ['all limits', full],
  ['default limits', plain],
])('few rows, %s', (_, gpu) => {
  it.each([
    [1, 128, 37],
    [3, 260, 70],
    [8, 1100, 9],
    [1, 2056, 3],
  ])('(%i × %i) · (… × %i), alone and in a layer', async (m, k, n) => {
    const build = (): readonly Tensor[] => {
      const next = numbers(m + k + n)
      const [x, w] = [filled([m, k], next), filled([n, k], next)]
      const [bias, residual] = [filled([n], next), filled([m, n], next)]
      const wide = filled([m + 1, k + 8], next)
        .narrow(1, 4, k)
        .narrow(0, 1, m)
      if (x.device !== 'reference') expect(skinnyOf(problemOf([zeros([m, n])], x, w.T))).not.toBeNull()
      return [
        matmul(x, w.T),
        matmul(w, x.T),
        linear(wide, w, bias, { activation: 'gelu', residual }),
        linear(x.reshape([m, 1, k]), w, bias),
        linear(x.select(0, m - 1), w, bias),
      ]
    }
    expect(await differs(gpu, build)).toBeLessThan(tolerance(k))
  })

  it('keeps NaN and infinity in their row and column', async () => {
    const build = (): readonly Tensor[] => {
      const next = numbers(3)
      const hole = (rows: number, at: number, what: number): Tensor =>
        tensor(Float32Array.from({ length: rows * 128 }, (_, i) => (i === at ? what : next(9) + 1))).reshape([
          rows,
          128,
        ])
      return [matmul(hole(3, 130, Number.NaN), hole(10, 700, Infinity).T)]
    }
    expect(await differs(gpu, build)).toBeLessThan(1e-2)
  })

  it('leaves to tiles what it cannot read in vectors along k', () => {
    const next = numbers(4)
    withBackend(gpu, () => {
      const of = (a: Tensor, b: Tensor): unknown =>
        skinnyOf(problemOf([zeros([...a.shape.slice(0, -1), b.shape.at(-1) as number])], a, b))
      expect(of(filled([2, 128], next), filled([128, 16], next))).toBeNull()
      expect(of(filled([2, 130], next), filled([16, 130], next).T)).toBeNull()
      expect(of(filled([9, 128], next), filled([16, 128], next).T)).toBeNull()
      expect(of(filled([2, 64], next), filled([16, 64], next).T)).toBeNull()
      expect(of(filled([2, 132], next).narrow(1, 2, 128), filled([16, 128], next).T)).toBeNull()
    })
  })
})

describe('every tile', () => {
  const plans: readonly Plan[] = [
    {
      tile: { bm: 128, bn: 128, bk: 16, tm: 16, tn: 8, slices: 1, order: [16, 2, 'down', 'across'] },
      splits: 1,
    },
    {
      tile: { bm: 128, bn: 128, bk: 8, tm: 8, tn: 8, slices: 1, order: [4, 4, 'across', 'down'] },
      splits: 1,
    },
    { tile: { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, slices: 1 }, splits: 3 },
    { tile: { bm: 64, bn: 64, bk: 16, tm: 4, tn: 8, slices: 1, order: [2, 8, 'down', 'down'] }, splits: 1 },
    { tile: { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, slices: 4 }, splits: 2 },
  ]
  it.each(plans)('%j', async (plan) => {
    const run = (): readonly Tensor[] => {
      const next = numbers(8)
      const [a, b] = [filled([2, 131, 70], next), filled([2, 70, 75], next)]
      const want = matmul(a, b)
      if (want.device === 'reference') return [want]
      const out = zeros([2, 131, 75])
      multiply(full.engine, 'matmul', problemOf([out], a, b), undefined, () => plan)
      return [out]
    }
    expect(await differs(full, run)).toBeLessThan(tolerance(70))
  })
})

describe('one step more than whole stages', () => {
  const tile = { bm: 32, bn: 32, bk: 16, tm: 4, tn: 4, slices: 1 } as const
  const plans: readonly Plan[] = [
    { tile, splits: 1 },
    // Parts of k and slices have their last step in a stage of its own.
    { tile, splits: 2 },
    { tile: { ...tile, slices: 2 }, splits: 1 },
  ]
  const cases = plans.flatMap((plan) =>
    [33, 1].flatMap((k) =>
      (['NN', 'NT', 'TN', 'TT', 'VV'] as const).map((layouts) => [layouts, k, plan] as const),
    ),
  )
  it.each(cases)('%s, %i steps, %j', async (layouts, k, plan) => {
    const build = (): readonly Tensor[] => {
      const next = numbers(9)
      // V: rows of vectors that are part of wider ones.
      const operand = (layout: string, rows: number, columns: number): Tensor =>
        layout === 'T'
          ? filled([2, columns, rows], next).transpose(1, 2)
          : layout === 'V'
            ? filled([2, rows, 4 * columns], next).narrow(2, 0, columns)
            : filled([2, rows, columns], next)
      const [a, b] = [operand(layouts[0] as string, 70, k), operand(layouts[1] as string, k, 45)]
      const want = matmul(a, b)
      if (want.device === 'reference') return [want]
      const out = zeros([2, 70, 45])
      multiply(full.engine, 'matmul', problemOf([out], a, b), undefined, () => plan)
      return [out]
    }
    expect(await differs(full, build)).toBeLessThan(tolerance(k))
  })
})

describe('tiles with a column beyond', () => {
  const shape = { bm: 64, bn: 64, bk: 32, tm: 8, tn: 8, slices: 2, plus: true }
  const narrow: Plan = { tile: { ...shape, bm: 16, bn: 16, tm: 4, tn: 4 }, splits: 1 }
  type Layout = readonly [a: 'K' | 'O', b: 'K' | 'k' | 'O' | 'o']
  const cases: readonly (readonly [Plan, ...Layout])[] = [
    ...(['K', 'O'] as const).flatMap((a) =>
      (['K', 'k', 'O', 'o'] as const).map((b) => [narrow, a, b] as const),
    ),
    [{ tile: shape, splits: 1 }, 'K', 'K'],
    [{ tile: shape, splits: 2 }, 'O', 'o'],
    [{ tile: shape, splits: 3, flip: true }, 'K', 'O'],
    [{ tile: { ...shape, bk: 8, tm: 16, slices: 1 }, splits: 1 }, 'K', 'K'],
  ]
  const turned = (x: Tensor, yes: boolean) => (yes ? x.transpose(-1, -2) : x)
  it.each(cases)('%j, a by %s, b by %s', async (plan, alongA, alongB) => {
    const build = (): readonly Tensor[] => {
      const next = numbers(12)
      const n = plan.tile.bn + 1
      const a = turned(filled(alongA === 'O' ? [2, 64, 100] : [2, 100, 64], next), alongA === 'O')
      // In vectors or not: rows are odd, or part of wider ones.
      const down = alongB === 'K' || alongB === 'k'
      const wide = filled(down ? [2, n, alongB === 'K' ? 64 : 65] : [2, 64, alongB === 'O' ? n + 3 : n], next)
      const b = turned(wide.narrow(2, 0, down ? 64 : n), down)
      const [bias, more] = [filled([n], next), filled([2, 100, n], next)]
      const y = matmul(a, b)
      if (y.device === 'reference')
        return [y, y.mul(bias).add(more), y].map((x) => turned(x, plan.flip === true))
      const outs = [1, 2, 3].map(() => zeros(plan.flip ? [2, n, 100] : [2, 100, n])) as [
        Tensor,
        Tensor,
        Tensor,
      ]
      const problem = (results: readonly Tensor[], extras: readonly Tensor[]) =>
        plan.flip
          ? problemOf(
              results,
              turned(b, true),
              turned(a, true),
              extras.map((x) => turned(x, true)),
            )
          : problemOf(results, a, b, extras)
      multiply(full.engine, 'beyond', problem([outs[0]], []), undefined, () => plan)
      const kernel = specialize(after, ['float32', 'float32', 'float32'], [])
      multiply(full.engine, 'after', problem(outs.slice(1), [bias.unsqueeze(0), more]), kernel, () => plan)
      return outs
    }
    expect(await differs(full, build)).toBeLessThan(tolerance(64))
  })
})

describe('the plan', () => {
  const at = (row: number, column: number) =>
    ({ offset: 0, row, column, batch: [] }) as unknown as Problem['a']
  const of = (m: number, n: number, k: number, a: Problem['a'], b: Problem['a'], plain = true): Plan =>
    planOf(full.engine, { m, n, k, items: 1, sizes: [], type: 'f32', a, b, outs: [], extras: [] }, plain)
  const form = ({ tile: t, splits, flip }: Plan) =>
    `${t.bm} x ${t.bn}${t.plus ? ' + 1' : ''} x ${t.bk}, ${t.tm} x ${t.tn} / ${splits}${flip ? ' flipped' : ''}`
  it('suits a GPT of width 384 and vocabulary 65', () => {
    const rows = 16384
    expect(form(of(rows, 65, 384, at(384, 1), at(1, 384)))).toBe('64 x 64 + 1 x 32, 8 x 8 / 1')
    expect(form(of(65, 384, rows, at(1, 65), at(384, 1)))).toBe('64 x 64 + 1 x 32, 8 x 8 / 44 flipped')
    expect(form(of(rows, 384, 65, at(65, 1), at(384, 1)))).toBe('64 x 64 x 16, 4 x 8 / 1')
    expect(form(of(rows, 384, 384, at(384, 1), at(1, 384)))).toBe('128 x 128 x 8, 16 x 8 / 1')
    expect(form(of(rows, 384, 384, at(384, 1), at(1, 384), false))).toBe('128 x 128 x 8, 8 x 8 / 1')
    expect(form(of(rows, 384, 384, at(384, 1), at(384, 1)))).toBe('128 x 128 x 16, 8 x 8 / 1')
    expect(form(of(rows, 1152, 384, at(384, 1), at(1, 384)))).toBe('128 x 128 x 16, 8 x 8 / 1')
    expect(form(of(rows, 1536, 384, at(384, 1), at(1, 384)))).toBe('128 x 128 x 16, 8 x 8 / 1')
    expect(form(of(rows, 1536, 384, at(384, 1), at(1536, 1)))).toBe('128 x 128 x 16, 16 x 8 / 1')
    expect(form(of(384, 384, rows, at(1, 384), at(384, 1)))).toBe('128 x 128 x 16, 8 x 8 / 29')
    expect(form(of(384, 384, 4096, at(1, 384), at(384, 1)))).toBe('64 x 64 x 16, 8 x 8 / 16')
  })
  it('leaves small products with an odd column to small tiles', () => {
    expect(form(of(768, 65, 128, at(128, 1), at(1, 128)))).toBe('32 x 32 x 32, 4 x 4 / 1')
  })
})

const after = program('after', 3, ([y, b, r]) => [expr.add(expr.mul(y, b), r), y])

describe('what follows the product', () => {
  const one = { slices: 1 }
  const plans: readonly Plan[] = [
    { tile: { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4 }, splits: 3 },
    { tile: { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, ...one }, splits: 2 },
    { tile: { bm: 128, bn: 128, bk: 16, tm: 16, tn: 8, ...one }, splits: 1 },
    { tile: { bm: 128, bn: 128, bk: 16, tm: 8, tn: 8, ...one }, splits: 1 },
    { tile: { bm: 128, bn: 128, bk: 8, tm: 8, tn: 8, ...one }, splits: 1 },
    // Too wide a tile to pass on its elements by workgroup memory.
    { tile: { bm: 32, bn: 64, bk: 4, tm: 8, tn: 8, ...one }, splits: 1 },
  ]
  const cases = plans.flatMap((plan) => [75, 76].map((n) => [n, plan] as const))
  it.each(cases)('%i columns, %j', async (n, plan) => {
    const build = (): readonly Tensor[] => {
      const next = numbers(10)
      const [a, b] = [filled([2, 139, 70], next), filled([2, 70, n], next)]
      const [bias, rest] = [filled([n], next), filled([2, 139, n], next)]
      const y = matmul(a, b)
      if (y.device === 'reference') return [y.mul(bias).add(rest), y]
      const outs = [zeros([2, 139, n]), zeros([2, 139, n])]
      const kernel = specialize(after, ['float32', 'float32', 'float32'], [])
      multiply(full.engine, 'after', problemOf(outs, a, b, [bias, rest]), kernel, () => plan)
      return outs
    }
    expect(await differs(full, build)).toBeLessThan(tolerance(70))
  })
})

describe('linear', () => {
  const forms: readonly (readonly [number[], number, 'relu' | undefined, boolean, boolean])[] = [
    [[5, 9], 12, undefined, true, false],
    [[5, 8], 12, 'relu', true, true],
    [[20], 7, 'relu', false, false],
    [[2, 3, 10], 11, undefined, true, true],
  ]
  it.each(forms)(
    'x %j, %i features, %s, bias %s, residual %s',
    async (shape, n, activation, bias, residual) => {
      let paths: readonly string[] = []
      const build = () => {
        const next = numbers(9)
        const x = filled(shape, next)
        const w = filled([n, shape.at(-1) as number], next)
        const b = bias ? filled([n], next) : null
        const r = residual ? filled([...shape.slice(0, -1), n], next) : null
        w.requiresGrad = true
        const { result, rows } = profile(() => linear(x, w, b, { activation, residual: r }))
        paths = rows.map((row) => `${row.op} ${row.path}`)
        return [result]
      }
      expect(await differs(full, build)).toBeLessThan(tolerance(12))
      expect(paths).toEqual(['linear fused'])
    },
  )
})
