/** Many calls at once against one each: the same bits. */

import {
  applyProgramInto,
  applyProgramIntoEach,
  expr as e,
  profile,
  program,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { expect, test } from 'vitest'
import type { WebGpuBackend } from '../src/index.ts'
import { mismatch } from './support/agree.ts'
import { backends } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

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

/** Groups of random sizes; NaN and infinities among the elements. `views`: parts of larger tensors as well. */
function groups(device: WebGpuBackend, seed: number, sizes: readonly number[], views = false): Group[] {
  const rnd = random(seed)
  const element = (): number => (rnd() < 0.01 ? pick(rnd, [NaN, Infinity, -0]) : 4 * rnd() - 2)
  const scale = tensor([9, 9, 0.5], { device }).narrow(0, 2, 1)
  return sizes.map((n) => {
    const one = (): Tensor => {
      const skip = views ? pick(rnd, [0, 1, 4]) : 0
      const data = Float32Array.from({ length: n + 2 * skip }, element)
      const t = tensor(data, { device })
      return views ? t.narrow(0, skip, n) : t
    }
    return { tensors: [one(), one(), one(), scale], params: [pick(rnd, [1, 0.1, 0]), rnd()] }
  })
}

const calls = (list: readonly Group[]) =>
  list.map(({ tensors: [p, g, m, s], params }) => ({ outputs: [p, m], inputs: [p, g, m, s], params }))

/** All of the storage, what lies around a view too. */
const storage = (t: Tensor): Promise<ArrayLike<number>> =>
  t.viewAs({ shape: [t.numel + 2 * t.offset], strides: [1], offset: 0 }).data()

async function compare(
  device: WebGpuBackend,
  seed: number,
  sizes: readonly number[],
  views = false,
): Promise<void> {
  const [joint, apart] = [groups(device, seed, sizes, views), groups(device, seed, sizes, views)]
  applyProgramIntoEach(STEP, calls(joint))
  for (const { outputs, inputs, params } of calls(apart)) applyProgramInto(outputs, STEP, inputs, params)
  for (const [i, { tensors }] of joint.entries())
    for (const k of [0, 1, 2]) {
      const [got, want] = [await storage(tensors[k]), await storage(apart[i].tensors[k])]
      const context = `tensor ${k} of call ${i} of ${sizes.length}, sizes ${sizes.slice(0, 9)}`
      expect(mismatch(got as Float32Array, want as Float32Array, 0, 0), context).toBeNull()
    }
}

test('random sizes, whole tensors and parts of larger ones', async () => {
  const rnd = random(1)
  for (const { backend } of backends)
    for (let round = 0; round < 6; round++) {
      const sizes = Array.from({ length: integer(rnd, 2, 12) }, () =>
        pick(rnd, [0, 1, 2, 3, 4, 15, 16, 17, 63, 1000, integer(rnd, 1, 9000)]),
      )
      await compare(backend, round, sizes)
      await compare(backend, round, sizes, true)
    }
})

test('elements are numbered per call', async () => {
  const COUNT = program('count', 0, () => e.cast('float32', e.index))
  for (const { backend: device } of backends) {
    const ts = [5, 4000, 3].map((n) => tensor(new Float32Array(n), { device }))
    applyProgramIntoEach(
      COUNT,
      ts.map((t) => ({ outputs: [t], inputs: [] })),
    )
    for (const t of ts) expect([...(await t.data())]).toEqual(Array.from({ length: t.numel }, (_, i) => i))
  }
})

test('profiles say how often and by which path, and dispatches are few', () => {
  for (const { backend: device } of backends) {
    const paths = (list: Group[]): unknown[] => {
      const { rows } = profile(() => applyProgramIntoEach(STEP, calls(list)))
      return rows.map((r) => [r.op, r.path, r.calls])
    }
    const before = device.engine.counts.dispatches
    expect(paths(groups(device, 3, [10, 20, 1, 5000]))).toEqual([['step', 'fused', 1]])
    const atOnce = Math.floor((device.gpu.limits.maxStorageBuffersPerShaderStage - 1) / 3)
    expect(device.engine.counts.dispatches - before).toBe(Math.ceil(4 / atOnce))
    expect(paths(groups(device, 3, [10]))).toEqual([['step', 'primitive', 1]])
    // A vector of an output may hold elements of another tensor: that call runs alone.
    const list = groups(device, 3, [10, 10, 10])
    const odd = tensor(new Float32Array(12), { device }).narrow(0, 1, 10)
    list[2] = { ...list[2], tensors: [odd, ...list[2].tensors.slice(1)] }
    expect(paths(list)).toEqual(
      expect.arrayContaining([
        ['step', 'fused', 1],
        ['step', 'primitive', 1],
      ]),
    )
  }
})
