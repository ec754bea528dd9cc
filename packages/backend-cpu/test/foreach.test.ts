import {
  applyProgramInto,
  applyProgramIntoEach,
  expr as e,
  profile,
  program,
  type Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { beforeAll, describe, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { makeBackends } from './fused-rig.ts'
import { integer, pick, random } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

/** Two outputs, a scalar for all, params: like an optimiser's step. */
const STEP = program(
  'step',
  4,
  ([p, g, m, s], [lr, beta]) => {
    const next = e.add(e.mul(beta, m), e.mul(g, s))
    return [e.sub(p, e.div(e.mul(lr, next), e.add(e.sqrt(e.abs(next)), 1e-3))), next]
  },
  2,
)

interface Group {
  readonly tensors: readonly Tensor[]
  readonly params: readonly number[]
}

const values = (t: Tensor): number[] => [...(t.isContiguous ? t : t.clone()).dataSync()]

/** The first element that differs, if only in the sign of a zero, or null. A NaN is a NaN. */
function difference(a: Tensor, b: Tensor): string | null {
  const [x, y] = [a, b].map((t) => (t.isContiguous ? t : t.clone()).dataSync()) as [TypedArray, TypedArray]
  if (x.length !== y.length) return `${x.length} elements, not ${y.length}`
  for (let i = 0; i < x.length; i++) if (!Object.is(x[i], y[i])) return `element ${i}: ${x[i]}, not ${y[i]}`
  return null
}

/** Groups of random sizes; NaN and infinities among the elements. */
function groups(device: CpuBackend, seed: number, sizes: readonly number[], gaps = false): Group[] {
  const rnd = random(seed)
  const element = (): number => (rnd() < 0.01 ? pick(rnd, [NaN, Infinity, -0, 1e-40]) : 4 * rnd() - 2)
  const scale = tensor(0.5, { device })
  return sizes.map((n) => {
    const one = (): Tensor => {
      const wide = gaps && rnd() < 0.3
      const data = Float32Array.from({ length: wide ? 2 * n : n }, element)
      const t = tensor(data, { device })
      return wide ? t.slice(0, 0, 2 * n, 2) : t
    }
    return { tensors: [one(), one(), one(), scale], params: [pick(rnd, [1, 0.1, 0]), rnd()] }
  })
}

const calls = (list: readonly Group[]) =>
  list.map(({ tensors: [p, g, m, s], params }) => ({ outputs: [p, m], inputs: [p, g, m, s], params }))

function compare(device: CpuBackend, seed: number, sizes: readonly number[], gaps = false): void {
  const [joint, apart] = [groups(device, seed, sizes, gaps), groups(device, seed, sizes, gaps)]
  applyProgramIntoEach(STEP, calls(joint))
  for (const { outputs, inputs, params } of calls(apart)) applyProgramInto(outputs, STEP, inputs, params)
  joint.forEach(({ tensors }, i) => {
    tensors.forEach((t, which) => {
      const context = `call ${i} of ${sizes.length}, tensor ${which}, sizes ${sizes.slice(0, 9)}`
      expect(difference(t, apart[i].tensors[which]), context).toBeNull()
    })
    for (const t of [...tensors.slice(0, 3), ...apart[i].tensors.slice(0, 3)]) t.dispose()
  })
}

describe('one launch gives the same bits as one each', () => {
  test('random sizes', () => {
    const rnd = random(1)
    for (const { backend } of backends) {
      for (let round = 0; round < 6; round++) {
        const sizes = Array.from({ length: integer(rnd, 2, 30) }, () =>
          pick(rnd, [0, 1, 2, 3, 4, 15, 16, 17, 63, 1000, integer(rnd, 1, 9000)]),
        )
        compare(backend, round, sizes)
        compare(backend, round, sizes, true)
      }
    }
  })

  test('a chunk that ends within a tensor, and many tensors in a chunk', () => {
    for (const { backend } of backends) {
      compare(backend, 7, [300_001, 3, 70_000, 1, 1])
      compare(
        backend,
        8,
        Array.from({ length: 1500 }, (_, i) => i % 7),
      )
      compare(backend, 9, [1, 1, 1])
      compare(backend, 10, [0, 0])
    }
  })

  test('elements are numbered per call', () => {
    const COUNT = program('count', 0, () => e.cast('float32', e.index))
    for (const { backend: device } of backends) {
      const ts = [5, 40, 3].map((n) => tensor(new Float32Array(n), { device }))
      applyProgramIntoEach(
        COUNT,
        ts.map((t) => ({ outputs: [t], inputs: [] })),
      )
      for (const t of ts) expect(values(t)).toEqual(Array.from({ length: t.numel }, (_, i) => i))
    }
  })
})

test('profiles say how often and by which path', () => {
  const device = backends[1].backend
  const paths = (sizes: readonly number[], change?: (g: Group[]) => Group[]): unknown[] => {
    const list = groups(device, 3, sizes)
    const { rows } = profile(() => applyProgramIntoEach(STEP, calls(change?.(list) ?? list)))
    return rows.map((r) => [r.op, r.path, r.calls])
  }
  expect(paths([10, 20, 1, 5000])).toEqual([['step', 'fused', 1]])
  expect(paths([10])).toEqual([['step', 'primitive', 1]])
  const gap = tensor(new Float32Array(20), { device }).slice(0, 0, 20, 2)
  const withGap = ([a, b, c]: Group[]): Group[] => [
    a,
    b,
    { ...c, tensors: [c.tensors[0], gap, c.tensors[2], c.tensors[3]] },
  ]
  expect(paths([10, 10, 10], withGap)).toEqual(
    expect.arrayContaining([
      ['step', 'fused', 1],
      ['step', 'primitive', 1],
    ]),
  )
})

test('powers, whose code depends on params, run one by one', () => {
  const POWER = program('power', 1, ([x], [y]) => e.pow(x, y), 1)
  const device = backends[0].backend
  const ts = [2, 3].map((x) => tensor([x], { device }))
  const { rows } = profile(() =>
    applyProgramIntoEach(
      POWER,
      ts.map((t, i) => ({ outputs: [t], inputs: [t], params: [i + 2] })),
    ),
  )
  expect(rows.map((r) => [r.path, r.calls])).toEqual([['primitive', 2]])
  expect(ts.map(values)).toEqual([[4], [27]])
})
