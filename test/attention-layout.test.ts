/**
 * Attention between projections moves nothing: heads merge as a view, and the gradients of queries, keys and values are
 * made where the projection's gradient wants them, unless somebody else could see that.
 */

import {
  type Backend,
  createCpuBackend,
  createWebGpuBackend,
  GPT,
  grad,
  manualSeed,
  memory,
  mergeHeads,
  noGrad,
  type Profile,
  profile,
  randint,
  randn,
  reference,
  scaledDotProductAttention,
  scope,
  split,
  splitHeads,
  type Tensor,
  tensor,
  unbind,
  withBackend,
} from 'tilegrad'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { collected } from '../packages/core/test/support/collected.ts'
import { random } from './kernels/random.ts'

const cpu = createCpuBackend({ threads: 2 })
const gpu = await createWebGpuBackend()
afterAll(async () => {
  gpu.close()
  await cpu.close()
})
const engines: [string, Backend][] = [
  ['cpu', cpu],
  ['webgpu', gpu],
]

const moves = ({ rows }: Profile<unknown>): string[] =>
  rows.filter(({ op }) => op === 'copy' || op === 'cat').map(({ op, calls }) => `${calls} × ${op}`)

let next = random(5)
// A test's numbers are the same whichever ran before it.
beforeEach(() => {
  next = random(5)
})
const numbers = (n: number): Float64Array => Float64Array.from({ length: n }, () => 2 * next() - 1)

describe.each(engines)('%s', (_, engine) => {
  test.each([
    ['as many keys as queries', 2],
    ['grouped heads', 1],
  ])('a training step of a GPT copies nothing: %s', (_name, numKvHeads) => {
    withBackend(engine, () => {
      manualSeed(3)
      const model = new GPT({
        vocabSize: 11,
        blockSize: 8,
        numLayers: 2,
        numHeads: 2,
        numKvHeads,
        embedDim: 16,
      })
      const tokens = randint(0, 11, [3, 9])
      const [x, y] = [tokens.narrow(1, 0, 8).clone(), tokens.narrow(1, 1, 8).clone()]
      const step = profile(() => model.forward(x, y).loss.backward())
      const attention = step.rows.filter(({ op, path }) => path === 'fused' && op.startsWith('scaled_dot'))
      expect(attention.map(({ calls }) => calls)).toEqual([2, 2])
      expect(moves(step)).toEqual([])
    })
  })

  const [B, T, H, D] = [2, 21, 3, 12]
  test.each<[string, number[], (x: Tensor) => Tensor[]]>([
    ['splitHeads', [B, T, 3 * H * D], (x) => splitHeads(x, [H, H, H], D)],
    ['grouped heads', [B, T, 8 * D], (x) => splitHeads(x, [4, 2, 2], D)],
    ['odd heads', [B, T, 3 * 2 * 5], (x) => splitHeads(x, [2, 2, 2], 5)],
    ['one head', [B, T, 3 * D], (x) => splitHeads(x, [1, 1, 1], D)],
    ['one token', [B, 1, 3 * H * D], (x) => splitHeads(x, [H, H, H], D)],
    [
      'split, then heads',
      [B, T, 3 * H * D],
      (x) => split(x, H * D, -1).map((y) => y.unflatten(-1, [H, D]).transpose(1, 2)),
    ],
    ['unbind', [B, T, 3, H, D], (x) => unbind(x, 2).map((y) => y.transpose(1, 2))],
    [
      'keys first',
      [B, T, 3 * H * D],
      (x) => {
        const [k, q, v] = splitHeads(x, [H, H, H], D) as [Tensor, Tensor, Tensor]
        return [q, k, v]
      },
    ],
    [
      'keys and values',
      [B, T, 2, H, D],
      (x) => [x.select(2, 0).add(1), ...unbind(x, 2)].map((y) => y.transpose(1, 2)),
    ],
  ])('the gradient of a packed projection is as the reference says: %s', async (name, shape, parts) => {
    const data = numbers(shape.reduce((a, b) => a * b))
    const weights = numbers(data.length)
    const run = (device: Backend) => {
      const dtype = device === reference ? 'float64' : 'float32'
      const x = tensor(data, { device, dtype }).reshape(shape)
      x.requiresGrad = true
      const [q, k, v] = parts(x) as [Tensor, Tensor, Tensor]
      const y = mergeHeads(scaledDotProductAttention(q, k, v, { isCausal: true }))
      const dy = tensor(weights.subarray(0, y.numel), { device, dtype }).reshape(y.shape)
      return profile(() => grad([y], [x], { gradOutputs: [dy] })[0] as Tensor)
    }
    const got = run(engine)
    expect(got.rows.some(({ op, path }) => path === 'fused' && op.endsWith('attentionBackward'))).toBe(true)
    if (name !== 'keys and values') expect(moves(got)).toEqual([])
    const [mine, want] = await Promise.all(
      [got, run(reference)].map(async ({ result }) => Array.from(await result.data(), Number)),
    )
    const largest = Math.max(...(want as number[]).map(Math.abs))
    const worst = Math.max(...(mine as number[]).map((g, i) => Math.abs(g - (want?.[i] as number))))
    expect(worst).toBeLessThan(1e-6 + 6e-6 * largest)
  })
})

/** (B, H, T, D) each, of one projection x, and what attention makes of them. */
function projected(): { x: Tensor; parts: Tensor[]; loss: Tensor } {
  const x = randn([2, 5, 24], { device: cpu, requiresGrad: true })
  const parts = splitHeads(x, [2, 2, 2], 4)
  const [q, k, v] = parts as [Tensor, Tensor, Tensor]
  return { x, parts, loss: scaledDotProductAttention(q, k, v).square().sum() }
}
const values = (t: Tensor | null): number[] => Array.from((t as Tensor).dataSync(), Number)

describe('a piece of the gradient that somebody keeps is theirs alone', () => {
  const plain = (): number[] => {
    manualSeed(9)
    const { x, loss } = projected()
    loss.backward()
    return values(x.grad)
  }
  const apart = (piece: Tensor, whole: Tensor): void => {
    const before = values(whole)
    const mine = values(piece)
    noGrad(() => piece.fill_(7))
    expect(values(whole)).toEqual(before)
    noGrad(() => whole.fill_(8))
    expect(values(piece)).toEqual(mine.map(() => 7))
    expect(mine.some((v) => v !== 0)).toBe(true)
  }

  test('retainGrad', () => {
    const want = plain()
    manualSeed(9)
    const { x, parts, loss } = projected()
    for (const part of parts) part.retainGrad()
    loss.backward()
    expect(values(x.grad)).toEqual(want)
    for (const part of parts) apart(part.grad as Tensor, x.grad as Tensor)
  })

  test('hooks that keep it, and the whole', () => {
    const want = plain()
    manualSeed(9)
    const { x, parts, loss } = projected()
    const kept: Tensor[] = []
    for (const t of [parts[1] as Tensor, x]) t.registerHook((g) => void kept.push(g.keep()))
    loss.backward()
    expect(values(x.grad)).toEqual(want)
    apart(kept[0] as Tensor, kept[1] as Tensor)
  })

  test('a hook that replaces it', () => {
    const want = plain()
    manualSeed(9)
    const { x, parts, loss } = projected()
    parts[2]?.registerHook((g) => g.mul(2))
    loss.backward()
    // Of 24 columns the last 8 are the values'.
    expect(values(x.grad)).toEqual(want.map((g, i) => (i % 24 < 16 ? g : 2 * g)))
  })

  test.each([false, true])('grad() of the pieces and the whole, createGraph: %s', (createGraph) => {
    const want = plain()
    manualSeed(9)
    const { x, parts, loss } = projected()
    const [dx, ...pieces] = grad([loss], [x, ...parts], { createGraph }) as [Tensor, ...Tensor[]]
    expect(values(dx)).toEqual(want)
    for (const piece of pieces) {
      const mine = values(piece)
      noGrad(() => piece.detach().fill_(7))
      expect(values(dx)).toEqual(want)
      expect(mine.some((v) => v !== 0)).toBe(true)
    }
  })
})

test('second derivatives through a packed projection, against differences', () => {
  manualSeed(9)
  const { x, loss } = projected()
  const [dx] = grad([loss], [x], { createGraph: true }) as [Tensor]
  const direction = randn(x.shape, { device: cpu })
  const [ddx] = grad([dx.mul(direction).sum()], [x]) as [Tensor]
  const gradientAt = (step: number): Tensor => {
    const moved = noGrad(() => x.detach().add(direction.mul(step)))
    moved.requiresGrad = true
    const [q, k, v] = splitHeads(moved, [2, 2, 2], 4) as [Tensor, Tensor, Tensor]
    return grad([scaledDotProductAttention(q, k, v).square().sum()], [moved])[0] as Tensor
  }
  const slope = gradientAt(1e-2).sub(gradientAt(-1e-2)).div(2e-2)
  const [got, want] = [values(ddx), values(slope)]
  // The third derivative's share of a step of 10⁻², and float32's of its inverse.
  got.forEach((g, i) => {
    expect(Math.abs(g - (want[i] as number))).toBeLessThan(5e-3 * (1 + Math.abs(g)))
  })
})

test('the memory of packed gradients goes with the last of them', async () => {
  await collected()
  const { x } = projected()
  const run = (): void =>
    scope(() => {
      const [q, k, v] = splitHeads(x, [2, 2, 2], 4) as [Tensor, Tensor, Tensor]
      scaledDotProductAttention(q, k, v).square().sum().backward()
    })
  const before = memory()
  run()
  const after = memory()
  expect(after.bytes - before.bytes).toBe(4 * x.numel)
  expect([after.tensors - before.tensors, after.storages - before.storages]).toEqual([1, 1])
  ;(x.grad as Tensor).dispose()
  x.grad = null
  expect(memory()).toMatchObject({ tensors: before.tensors, storages: before.storages, bytes: before.bytes })
})
