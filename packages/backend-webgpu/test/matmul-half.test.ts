/**
 * Products of float16. Where the adapter has subgroup matrices they run on them; where it has not, as in CI, the same cases
 * run twice: in float32, as users get it there, and through the kernels for matrices, which are emulated then.
 */

import {
  type DType,
  expr,
  linear,
  matmul,
  profile,
  program,
  specialize,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterAll, describe, expect, it } from 'vitest'
import { backendOn } from '../src/backend.ts'
import { untuned } from '../src/device/tuning.ts'
import { openGpu, type WebGpuBackend } from '../src/index.ts'
import { type Problem, problemOf } from '../src/kernels/matmul/problem.ts'
import { matrixKinds, matrixPlanOf } from '../src/kernels/matmul/subgroup-plan.ts'
import type { MatrixTile } from '../src/kernels/matmul/subgroup-stages.ts'
import { multiplyHalves } from '../src/kernels/matmul/subgroups.ts'
import { emulating, judging } from './support/emulated-matrices.ts'

const gpu = await openGpu()
const isCapable = gpu.matrices !== null
/** As users get it, and with matrices in any case. */
const asIs = backendOn(gpu)
const withMatrices = isCapable ? asIs : backendOn(emulating(gpu))
// Plans as on a GPU.
withMatrices.engine.tuning = untuned
afterAll(() => gpu.close())

/** Runs `fn` and says which kernels it made or found. */
function kernelsOf<T>({ engine }: WebGpuBackend, fn: () => T): { result: T; keys: string[] } {
  const keys: string[] = []
  const kernel = engine.kernel.bind(engine)
  engine.kernel = (key, label, build) => {
    keys.push(key)
    return kernel(key, label, build)
  }
  try {
    return { result: fn(), keys }
  } finally {
    engine.kernel = kernel
  }
}

function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return (state >>> 8) / 2 ** 23 - 1
  }
}

function filled(shape: readonly number[], next: () => number, dtype: DType = 'float16'): Tensor {
  const count = shape.reduce((n, s) => n * s, 1)
  return tensor(Float32Array.from({ length: count }, next))
    .reshape(shape)
    .to(dtype)
}

type Layout = (batch: readonly number[], r: number, c: number, next: () => number) => Tensor

/** Vectors of eight, in rows that are longer than the matrix. */
const part: Layout = (batch, r, c, next) =>
  filled([...batch, r + 1, 8 * Math.ceil(c / 8) + 8], next)
    .narrow(-1, 8, c)
    .narrow(-2, 1, r)

/** Rows that begin anywhere. */
const odd: Layout = (batch, r, c, next) =>
  filled([...batch, r + 1, c + 3], next)
    .narrow(-1, 2, c)
    .narrow(-2, 1, r)

/** Matrices (…, rows, columns) in memory in all ways that are read differently. */
const layouts = {
  rows: (batch, r, c, next) => filled([...batch, r, c], next),
  columns: (batch, r, c, next) => filled([...batch, c, r], next).transpose(-1, -2),
  part,
  partColumns: (batch, r, c, next) => part(batch, c, r, next).transpose(-1, -2),
  odd,
  oddColumns: (batch, r, c, next) => odd(batch, c, r, next).transpose(-1, -2),
  row: (batch, r, c, next) => filled([...batch, 1, c], next).expand([...batch, r, c]),
  flipped: (batch, r, c, next) => filled([...batch, r, c], next).flip(-1),
} satisfies Record<string, Layout>
type Name = keyof typeof layouts

/** What float64 makes of the very numbers that the operands hold. */
async function product(a: Tensor, b: Tensor): Promise<Float64Array> {
  const wide = async (t: Tensor): Promise<Tensor> =>
    tensor(Float64Array.from(await t.data())).reshape(t.shape)
  return (await matmul(await wide(a), await wide(b)).data()) as Float64Array
}

/**
 * Products of float16 are exact in float32, and their sums of k numbers up to 1 err by up to k · 2⁻²⁴ or so; what is
 * stored as float16 is rounded by half of its last place, 2⁻¹¹ of it.
 */
async function compare(got: Tensor, want: Float64Array, k: number): Promise<void> {
  const values = await got.data()
  expect(values.length).toBe(want.length)
  const half = got.dtype === 'float16' ? 2 ** -11 : 0
  let most = 0
  for (let i = 0; i < want.length; i++) {
    const w = want[i] as number
    const allowed = 1e-6 * (k + 4) + half * (Math.abs(w) + 2 ** -13)
    const error = Math.abs((values[i] as number) - w) / allowed
    most = Number.isNaN(error) ? Infinity : Math.max(most, error)
  }
  expect(most).toBeLessThanOrEqual(1)
}

const cases: readonly (readonly [m: number, k: number, n: number, a: Name, b: Name, batch: number[]])[] = [
  [70, 96, 80, 'rows', 'rows', []],
  [66, 50, 75, 'rows', 'columns', [2]],
  [64, 104, 76, 'columns', 'part', []],
  [40, 83, 72, 'part', 'partColumns', [2]],
  [33, 43, 17, 'odd', 'flipped', [2, 2]],
  [35, 20, 43, 'oddColumns', 'odd', []],
  [9, 17, 66, 'row', 'rows', [3]],
  [1, 7, 5, 'rows', 'columns', []],
]

describe('products of float16', () => {
  it.each(cases)('(%i × %i) · (… × %i), %s and %s, %j', async (m, k, n, left, right, batch) => {
    const next = numbers(m + k + n)
    const [a, b] = withBackend(asIs, () => [
      layouts[left](batch, m, k, next),
      layouts[right](batch, k, n, next),
    ])
    const { result, keys } = kernelsOf(asIs, () => matmul(a, b))
    expect(result.dtype).toBe('float16')
    // Nothing falls back unseen where there are matrices.
    expect(keys.some((key) => key.startsWith('mh'))).toBe(isCapable)
    await compare(result, await product(a, b), k)
  })
})

const small: MatrixTile = { bm: 64, bn: 64, bk: 32, sm: 32, sn: 32 }
const ahead: MatrixTile = { ...small, bk: 16, ahead: true }
const tiles: readonly MatrixTile[] = isCapable
  ? [small, ahead, ...Object.values(matrixKinds).map(({ tile }) => tile)]
  : [small, ahead]
const after = program('after', 3, ([y, b, r]) => [expr.add(expr.mul(y, b), r), y])

describe.each(tiles)('on subgroup matrices, %j', (tile) => {
  // Emulated, what is ahead is there twice, and takes long to compile.
  it.each(tile.ahead && !isCapable ? cases.slice(0, 4) : cases)(
    '(%i × %i) · (… × %i), %s and %s, %j',
    async (m, k, n, left, right, batch) => {
      const next = numbers(m + k + n)
      const plan = { tile, splits: k > 90 ? 3 : 1 }
      const [a, b, out] = withBackend(withMatrices, () => [
        layouts[left](batch, m, k, next),
        layouts[right](batch, k, n, next),
        filled([...batch, m, n], () => Number.NaN, k % 2 === 0 ? 'float16' : 'float32'),
      ])
      multiplyHalves(withMatrices.engine, 'matmul', problemOf([out], a, b), undefined, () => plan)
      await compare(out, await product(a, b), k)
    },
  )

  it.each([
    [75, 'float16', 'float32', 1],
    [76, 'float32', 'float16', 2],
  ] as const)('%i columns, and then a program of %s and %s, %i parts', async (n, ofBias, ofRest, splits) => {
    const next = numbers(n)
    const [a, b, bias, rest, first, second] = withBackend(withMatrices, () => [
      filled([2, 70, 64], next),
      filled([2, 64, n], next),
      filled([1, 1, n], next, ofBias),
      filled([2, 70, n], next, ofRest),
      filled([2, 70, n], () => Number.NaN),
      filled([2, 70, n], () => Number.NaN, ofBias),
    ])
    const kernel = specialize(after, ['float32', 'float32', 'float32'], [])
    const p = problemOf([first, second], a, b, [bias, rest])
    multiplyHalves(withMatrices.engine, 'after', p, kernel, () => ({ tile, splits }))
    const want = await product(a, b)
    const [factors, terms] = [await bias.data(), await rest.data()]
    await compare(second, want, 64)
    await compare(
      first,
      want.map((y, i) => y * (factors[i % n] as number) + (terms[i] as number)),
      64,
    )
  })
})

it('computes layers and their gradients', async () => {
  const next = numbers(5)
  const [x, w, bias, rest] = withBackend(withMatrices, () => [
    filled([2, 17, 24], next),
    filled([40, 24], next),
    filled([40], next),
    filled([2, 17, 40], next),
  ])
  w.requiresGrad = true
  const { result, rows } = profile(() => linear(x, w, bias, { activation: 'relu', residual: rest }))
  expect(rows.map(({ op, path }) => `${op} ${path}`)).toEqual(['linear fused'])
  const sums = await product(x.reshape([34, 24]).detach(), w.detach().T)
  const [b, r] = [await bias.data(), await rest.data()]
  const h = sums.map((y, i) => y + (b[i % 40] as number))
  await compare(
    result.detach(),
    h.map((y, i) => Math.max(y, 0) + (r[i] as number)),
    24,
  )
  const { keys } = kernelsOf(withMatrices, () => result.sum().backward())
  expect(keys.some((key) => key.startsWith('mh'))).toBe(true)
  const slopes = tensor(h.map((y) => (y > 0 ? 1 : 0))).reshape([34, 40])
  const wide = tensor(Float64Array.from(await x.data())).reshape([34, 24])
  await compare(w.grad as Tensor, (await matmul(slopes.T, wide).data()) as Float64Array, 34)
})

describe('few rows of float16', () => {
  it.each([
    [1, 128, 37],
    [3, 264, 70],
    [8, 1104, 9],
  ])('(%i × %i) · (… × %i)', async (m, k, n) => {
    const next = numbers(m + k + n)
    const [x, w, bias] = withBackend(withMatrices, () => [
      filled([m, k], next),
      filled([n, k], next),
      filled([n], next),
    ])
    const { result, keys } = kernelsOf(withMatrices, () => [
      matmul(x, w.T),
      linear(x, w, bias, { activation: 'relu' }),
    ])
    expect(keys.map((key) => key.slice(0, 3))).toEqual(['ms8', 'ms8'])
    const want = await product(x, w.T)
    const b = await bias.data()
    await compare(result[0] as Tensor, want, k)
    await compare(
      result[1] as Tensor,
      want.map((y, i) => Math.max(0, y + (b[i % n] as number))),
      k,
    )
  })
})

describe('the code for subgroup matrices', () => {
  it('compiles in all its forms', async () => {
    const errors: string[] = []
    const judge = judging(await openGpu({ backend: 'null', onError: (message) => errors.push(message) }))
    const backend = backendOn(judge)
    const kernel = specialize(after, ['float32', 'float32', 'float32'], [])
    withBackend(backend, () => {
      for (const { tile } of Object.values(matrixKinds))
        for (const k of [96, 104, 99])
          for (const a of ['rows', 'columns', 'odd', 'flipped'] as const)
            for (const b of ['rows', 'columns', 'partColumns'] as const) {
              const operands = [layouts[a]([2], 130, k, () => 0), layouts[b]([2], k, 76, () => 0)] as const
              const [half, single] = [zeros([2, 130, 76], { dtype: 'float16' }), zeros([2, 130, 76])]
              const whole = problemOf([k === 99 ? half : single], ...operands)
              const extras = [half.add(1).narrow(1, 0, 1), single.add(1)]
              const ends = problemOf([half, single], ...operands, extras)
              for (const splits of [1, 2]) {
                multiplyHalves(backend.engine, 'whole', whole, undefined, () => ({ tile, splits }))
                multiplyHalves(backend.engine, 'ends', ends, kernel, () => ({ tile, splits }))
              }
            }
    })
    await backend.finished()
    expect(errors).toEqual([])
    backend.close()
  })
})

describe('the plan on subgroup matrices', () => {
  const at = (row: number, column: number) =>
    ({ offset: 0, row, column, batch: [] }) as unknown as Problem['a']
  type Engine = WebGpuBackend['engine']
  /** Of a (m, k) · b (k, n), whose rows lie one after another, or whose columns do. */
  const of = (m: number, n: number, k: number, engine: Engine, columns = false): string => {
    const b = columns ? at(1, k) : at(n, 1)
    const p: Problem = { m, n, k, items: 1, sizes: [], type: 'f16', a: at(k, 1), b, outs: [], extras: [] }
    const { tile, splits } = matrixPlanOf(engine, p)
    return `${tile.bm} x ${tile.bn} / ${splits}`
  }
  /** An engine for a GPU like an H200, whose kinds of tiles are so fast. */
  const engine = (speeds = {}, bytes = 49152): Engine =>
    ({
      gpu: {
        matrices: { enables: [], subgroup: 32 },
        limits: { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: 1024 },
      },
      tuning: { ...untuned, matrices: speeds },
    }) as unknown as Engine

  it('splits k for few tiles, and takes small ones for little', () => {
    expect(of(384, 1536, 16384, engine())).toBe('128 x 128 / 7')
    expect(of(64, 64, 128, engine())).toBe('64 x 64 / 1')
    expect(of(8192, 8192, 8192, engine())).toBe('128 x 128 / 1')
  })
  it('goes by how fast kinds of tiles are', () => {
    expect(of(8192, 8192, 8192, engine({ wide: 1.5 }))).toBe('128 x 256 / 1')
    expect(of(8192, 8192, 8192, engine({ wide: 0.5 }))).toBe('128 x 128 / 1')
    expect(of(8192, 8192, 8192, engine({ wide: 0.5, square: 0.1, narrow: 0.1 }))).toBe('64 x 64 / 1')
  })
  it('keeps to what the GPU allows', () => {
    // Wide tiles are no good for b along k.
    expect(of(8192, 8192, 8192, engine({ wide: 1.5 }), true)).toBe('128 x 128 / 1')
    expect(of(8192, 8192, 8192, engine({ wide: 9, square: 9 }, 16384))).toBe('128 x 64 / 1')
  })
})
