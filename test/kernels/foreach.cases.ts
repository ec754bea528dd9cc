/** Many calls at once against one each: the same bits. */

import {
  applyProgramInto,
  applyProgramIntoEach,
  type Backend,
  expr as e,
  profile,
  program,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { expect, test } from 'vitest'
import type { Engine } from './fused.ts'
import { integer, pick, random } from './random.ts'

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

export interface Group {
  readonly tensors: readonly Tensor[]
  readonly params: readonly number[]
}
/** Of whole tensors, of parts of larger ones, or with gaps in some. */
type Kind = 'whole' | 'parts' | 'gaps'

/** Groups of random sizes; NaN and infinities among the elements. */
export function groups(
  device: Backend,
  seed: number,
  sizes: readonly number[],
  kind: Kind = 'whole',
): Group[] {
  const rnd = random(seed)
  const element = (): number => (rnd() < 0.01 ? pick(rnd, [NaN, Infinity, -0, 1e-40]) : 4 * rnd() - 2)
  const scale = tensor([9, 9, 0.5], { device }).narrow(0, 2, 1)
  return sizes.map((n) => {
    const one = (): Tensor => {
      const skip = kind === 'parts' ? pick(rnd, [0, 1, 4]) : 0
      const step = kind === 'gaps' && rnd() < 0.3 ? 2 : 1
      const data = Float32Array.from({ length: step * n + 2 * skip }, element)
      const t = tensor(data, { device })
      return step === 2 ? t.slice(0, 2 * n, { step: 2 }) : t.narrow(0, skip, n)
    }
    return { tensors: [one(), one(), one(), scale], params: [pick(rnd, [1, 0.1, 0]), rnd()] }
  })
}

const calls = (list: readonly Group[]) =>
  list.map(({ tensors: [p, g, m, s], params }) => ({ outputs: [p, m], inputs: [p, g, m, s], params }))

/** Which operators a profile of the groups' calls shows, by which path, and how many times. */
export const paths = (list: readonly Group[]): unknown[] =>
  profile(() => applyProgramIntoEach(STEP, calls(list))).rows.map((r) => [r.op, r.path, r.calls])

/** All of the storage, what lies around a view too. */
const storage = (t: Tensor) =>
  t.viewAs({ shape: [(t.strides[0] ?? 1) * t.numel + 2 * t.offset], strides: [1], offset: 0 }).data()

export async function compare(
  device: Backend,
  seed: number,
  sizes: readonly number[],
  kind: Kind = 'whole',
): Promise<void> {
  const [joint, apart] = [groups(device, seed, sizes, kind), groups(device, seed, sizes, kind)]
  applyProgramIntoEach(STEP, calls(joint))
  for (const { outputs, inputs, params } of calls(apart)) applyProgramInto(outputs, STEP, inputs, params)
  for (const [i, { tensors }] of joint.entries())
    for (const k of [0, 1, 2]) {
      const [got, want] = [await storage(tensors[k]), await storage(apart[i].tensors[k])]
      // Differences in the sign of a zero count.
      const at = got.findIndex((x, j) => !Object.is(x, want[j]))
      const context = `tensor ${k} of call ${i} of ${sizes.length}, sizes ${sizes.slice(0, 9)}`
      if (at >= 0) expect.fail(`${context}: element ${at} is ${got[at]}, not ${want[at]}`)
      tensors[k].dispose()
      apart[i].tensors[k].dispose()
    }
}

export function testForeach(engine: Engine): void {
  test('random sizes: whole tensors, parts of larger ones, some with gaps', async () => {
    const rnd = random(1)
    // What an engine has ways of its own for, and a few of the others.
    const kinds = engine.share === 1 ? (['gaps', 'parts'] as const) : (['parts', 'gaps'] as const)
    for (const { backend } of engine.backends)
      for (let round = 0; round < 8; round++) {
        const sizes = Array.from({ length: integer(rnd, 2, engine.share === 1 ? 30 : 12) }, () =>
          pick(rnd, [0, 1, 2, 3, 4, 15, 16, 17, 63, 1000, integer(rnd, 1, 9000)]),
        )
        if (round < 6) await compare(backend, round, sizes)
        await compare(backend, round, sizes, kinds[Math.floor(round / 6)])
      }
  })

  test('elements are numbered per call', async () => {
    const COUNT = program('count', 0, () => e.cast('float32', e.index))
    for (const { backend: device } of engine.backends) {
      const ts = [5, 4000, 3].map((n) => tensor(new Float32Array(n), { device }))
      applyProgramIntoEach(
        COUNT,
        ts.map((t) => ({ outputs: [t], inputs: [] })),
      )
      for (const t of ts) expect([...(await t.data())]).toEqual(Array.from({ length: t.numel }, (_, i) => i))
    }
  })

  test('profiles say how often and by which path', () => {
    for (const { backend: device } of engine.backends) {
      expect(paths(groups(device, 3, [10, 20, 1, 5000]))).toEqual([['step', 'fused', 1]])
      expect(paths(groups(device, 3, [10]))).toEqual([['step', 'primitive', 1]])
      // A view with gaps: that call runs alone.
      const list = groups(device, 3, [10, 10, 10])
      const gap = tensor(new Float32Array(20), { device }).slice(0, 20, { step: 2 })
      const [
        a,
        b,
        {
          tensors: [p, , ...rest],
          params,
        },
      ] = list
      expect(paths([a, b, { tensors: [p, gap, ...rest], params }])).toEqual(
        expect.arrayContaining([
          ['step', 'fused', 1],
          ['step', 'primitive', 1],
        ]),
      )
    }
  })
}
