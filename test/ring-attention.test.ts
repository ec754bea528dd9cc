/**
 * Attention over several devices against attention on one: ranks on CPU backends in this process, on two GPUs, and in
 * workers; forward, gradients, errors.
 */

import {
  allReduce,
  type Backend,
  createCpuBackend,
  createWebGpuBackend,
  type Link,
  linearAttention,
  profileAsync,
  RankError,
  reference,
  ringAttention,
  ringLinearAttention,
  ringPieces,
  ringShard,
  ringUnshard,
  runRanks,
  scaledDotProductAttention,
  type Tensor,
  tensor,
} from 'tilegrad'
import { asRank, runWorkers } from 'tilegrad/workers'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import type { Sizes } from './kernels/attention.ts'
import { random } from './kernels/random.ts'

const cpus = [1, 1, 2].map((threads) => createCpuBackend({ threads }))
const gpus = [await createWebGpuBackend(), await createWebGpuBackend()] as const
afterAll(async () => {
  for (const gpu of gpus) gpu.close()
  await Promise.all(cpus.map((cpu) => cpu.close()))
})

interface Case extends Sizes {
  isCausal?: boolean
  scale?: number
}

let next = random(11)
// A test's numbers are the same whichever ran before it.
beforeEach(() => {
  next = random(11)
})
const numbers = (n: number): Float64Array => Float64Array.from({ length: n }, () => 2 * next() - 1)

/** q, k, v and the gradient of the output: numbers and shapes. */
function operands({ B = 1, H = 2, Hk = H, T, S = T, D = 8, Dv = D }: Case): [Float64Array, number[]][] {
  return [
    [B, H, T, D],
    [B, Hk, S, D],
    [B, Hk, S, Dv],
    [B, H, T, Dv],
  ].map((shape) => [numbers(shape.reduce((a, b) => a * b)), shape])
}

/** On one device, in float64: output, dq, dk, dv. */
function onOne(data: readonly [Float64Array, number[]][], { isCausal = false, scale }: Case): number[][] {
  const [q, k, v, dout] = data.map(([x, shape]) => tensor(x, shape, { dtype: 'float64', device: reference }))
  for (const t of [q, k, v] as Tensor[]) t.requiresGrad = true
  const out = scaledDotProductAttention(q as Tensor, k as Tensor, v as Tensor, {
    isCausal,
    scale: scale ?? null,
  })
  out.backward({ gradient: dout as Tensor })
  return [out, q?.grad, k?.grad, v?.grad].map((t) => [...(t as Tensor).dataSync()])
}

/** Linear attention on one device, in float64. */
function linearOnOne(data: readonly [Float64Array, number[]][], isCausal: boolean): number[][] {
  const [q, k, v, dout] = data.map(([x, shape]) =>
    tensor(x, shape, { dtype: 'float64', device: reference }),
  ) as [Tensor, Tensor, Tensor, Tensor]
  for (const t of [q, k, v]) t.requiresGrad = true
  const out = linearAttention(q, k, v, { isCausal })
  out.backward({ gradient: dout })
  return [out, q.grad, k.grad, v.grad].map((t) => [...(t as Tensor).dataSync()])
}

/** The same on ranks, one per device, each with its shard; put together again. */
async function onRanks(
  devices: readonly Backend[],
  data: readonly [Float64Array, number[]][],
  { isCausal = false, scale }: Case,
  dtype: 'float32' | 'float64' = 'float32',
  kind: 'softmax' | 'linear' = 'softmax',
): Promise<number[][]> {
  const order = isCausal && kind === 'softmax' ? 'zigzag' : 'contiguous'
  const parts = await runRanks(devices.length, async (link) => {
    const device = devices[link.rank] as Backend
    const [q, k, v, dout] = data.map(([x, shape]) =>
      ringShard(tensor(x, shape, { dtype, device }), 2, link, order),
    ) as [Tensor, Tensor, Tensor, Tensor]
    const { out, backward } =
      kind === 'softmax'
        ? await ringAttention(link, q, k, v, { isCausal, scale: scale ?? null })
        : await ringLinearAttention(link, q, k, v, { isCausal })
    const { dq, dk, dv } = await backward(dout)
    return Promise.all(
      [out, dq, dk, dv].map(async (t) => {
        expect(t.backend).toBe(device)
        return tensor(await t.data(), t.shape, { dtype: 'float64', device: reference })
      }),
    )
  })
  return [0, 1, 2, 3].map((i) => [
    ...ringUnshard(
      parts.map((part) => part[i] as Tensor),
      2,
      order,
    ).dataSync(),
  ])
}

function expectClose(got: number[][], want: number[][], tolerance: number): void {
  got.forEach((x, which) => {
    const y = want[which] as number[]
    expect(x.length).toBe(y.length)
    const top = y.reduce((m, n) => Math.max(m, Math.abs(n)), 1)
    const worst = x.reduce((m, n, i) => Math.max(m, Math.abs(n - (y[i] as number))), 0)
    // Written so that NaN fails.
    expect(worst <= tolerance * top, `${['out', 'dq', 'dk', 'dv'][which]} is off by ${worst} of ${top}`).toBe(
      true,
    )
  })
}

const cases: Case[] = [
  { T: 12 },
  { T: 37, H: 4, Hk: 2, isCausal: true },
  { T: 37, H: 4, Hk: 1, D: 5, Dv: 7, B: 2 },
  { T: 101, isCausal: true, B: 2, scale: 0.5 },
  { T: 5, isCausal: true },
  // Fewer positions than pieces: some are empty, some ranks have none.
  { T: 2, isCausal: true },
  { T: 1 },
  { T: 9, S: 20 },
  { T: 20, S: 2 },
]

describe.each([1, 2, 3, 5])('%i ranks', (size) => {
  // Float64: rounding alone.
  test.each(cases)('reference, %o', async (c) => {
    const data = operands(c)
    expectClose(await onRanks(Array(size).fill(reference), data, c, 'float64'), onOne(data, c), 1e-13)
  })

  // Float32: sums of up to 100 terms; gradients are sums of terms of either sign.
  test.each(cases)('CPU backends, %o', async (c) => {
    const data = operands(c)
    const devices = Array.from({ length: size }, (_, i) => cpus[i % cpus.length] as Backend)
    expectClose(await onRanks(devices, data, c), onOne(data, c), 5e-6)
  })
})

test('CPU backends run the fused kernels', async () => {
  const c = { T: 40, isCausal: true }
  const data = operands(c)
  const { rows } = await profileAsync(() => onRanks([cpus[0] as Backend], data, c))
  expect(rows.filter((r) => r.op.startsWith('scaled_dot')).every((r) => r.path === 'fused')).toBe(true)
})

describe.each([1, 2, 3])('linear attention on %i ranks', (size) => {
  const linear: Case[] = [
    { T: 37, isCausal: true },
    { T: 131, isCausal: true, B: 2, Dv: 5 },
    { T: 20 },
    { T: 9, S: 20 },
    { T: 2, isCausal: true },
  ]
  test.each(linear)('%o', async (c) => {
    const data = operands(c)
    const want = linearOnOne(data, c.isCausal ?? false)
    const references = Array(size).fill(reference)
    expectClose(await onRanks(references, data, c, 'float64', 'linear'), want, 1e-12)
    // Float32: sums of up to 131 terms, and quotients of them.
    expectClose(await onRanks(cpus.slice(0, size), data, c, 'float32', 'linear'), want, 1e-5)
  })

  test('states of other shapes are refused on every rank', async () => {
    if (size === 1) return
    const messages: string[] = []
    await runRanks(size, async (link) => {
      const t = tensor(numbers(24), [1, 1, link.rank === 1 ? 4 : 6, link.rank === 1 ? 6 : 4], {
        device: reference,
      })
      await ringLinearAttention(link, t, t, t).catch((e: Error) => messages.push(e.message))
    })
    expect(messages.length).toBe(size)
    expect(new Set(messages).size).toBe(1)
    expect(messages[0]).toContain('rank 1 has a state [1, 1, 6, 7], rank 0 [1, 1, 4, 5]')
  })
})

test('what made q, k and v trains with it: gradients of shared parameters, summed, are those on one device', async () => {
  const [T, D] = [11, 6]
  const [x, w, target] = [numbers(T * D), numbers(3 * D * D), numbers(T * D)]
  const device = reference
  const place = (data: Float64Array, shape: number[]): Tensor =>
    tensor(data, shape, { dtype: 'float64', device })
  const project = (x: Tensor, weight: Tensor): [Tensor, Tensor, Tensor] => {
    const qkv = x.linear(weight).reshape([1, 1, x.shape[0] as number, 3 * D])
    return [0, 1, 2].map((i) => qkv.narrow(3, i * D, D)) as [Tensor, Tensor, Tensor]
  }
  const loss = (out: Tensor, target: Tensor): Tensor => out.reshape([-1, D]).sub(target).square().sum()
  const weight = place(w, [3 * D, D])
  weight.requiresGrad = true
  const [q, k, v] = project(place(x, [T, D]), weight)
  loss(scaledDotProductAttention(q, k, v, { isCausal: true }), place(target, [T, D])).backward()
  const totals = await runRanks(3, async (link) => {
    const mine = place(w, [3 * D, D])
    mine.requiresGrad = true
    const shard = (data: Float64Array): Tensor => ringShard(place(data, [T, D]), 0, link, 'zigzag')
    const [q, k, v] = project(shard(x), mine)
    const { out, backward } = await ringAttention(link, q, k, v, { isCausal: true })
    out.requiresGrad = true
    loss(out, shard(target)).backward()
    const { dq, dk, dv } = await backward(out.grad as Tensor)
    q.mul(dq).sum().add(k.mul(dk).sum()).add(v.mul(dv).sum()).backward()
    return (await allReduce(link, [mine.grad as Tensor]))[0] as Tensor
  })
  for (const total of totals)
    expectClose([[...total.dataSync()]], [[...(weight.grad as Tensor).dataSync()]], 1e-12)
})

test('sums over ranks are the same bits everywhere', async () => {
  const sums = await runRanks(3, async (link) => {
    const mine = tensor(numbers(10), [10], { device: cpus[link.rank] as Backend })
    const [total] = (await allReduce(link, [mine])) as [Tensor]
    return [await mine.data(), await total.data()] as const
  })
  const want = Array.from({ length: 10 }, (_, i) => sums.reduce((s, [mine]) => s + (mine[i] as number), 0))
  for (const [, total] of sums) {
    expect(total).toEqual(sums[0]?.[1])
    expectClose([[...total]], [want], 1e-6)
  }
  await expect(
    runRanks(2, (link) => allReduce(link, [tensor(numbers(2 + link.rank), [2 + link.rank])])),
  ).rejects.toThrow('allReduce: rank 0 brought [[2]], rank 1 [[3]]')
})

describe('ranks in workers', () => {
  const module = new URL('./ranks/ring.mjs', import.meta.url)

  test.each([1, 2, 3])('%i of them compute the same', async (size) => {
    for (const c of [
      { T: 37, H: 4, Hk: 2, isCausal: true },
      { T: 20, S: 31 },
    ]) {
      const operandsOfAll = operands(c).map(([x, shape]) => [Float32Array.from(x), shape] as const)
      const isCausal = c.isCausal ?? false
      const threads = size === 2 ? 2 : 1
      const ranks = await runWorkers(size, module, { operands: operandsOfAll, isCausal, threads })
      const parts = ranks as { data: Float32Array; shape: number[] }[][]
      const got = [0, 1, 2, 3].map((i) => [
        ...ringUnshard(
          parts.map((part) => {
            const { data, shape } = part[i] as { data: Float32Array; shape: number[] }
            return tensor(data, shape, { dtype: 'float64', device: reference })
          }),
          2,
          isCausal ? 'zigzag' : 'contiguous',
        ).dataSync(),
      ])
      const exact = operandsOfAll.map(
        ([x, shape]) => [Float64Array.from(x), shape] as [Float64Array, number[]],
      )
      expectClose(got, onOne(exact, c), 5e-6)
    }
  })

  test('one that throws, or ends, makes the others fail with its error', async () => {
    const data = operands({ T: 8 })
    const input = { operands: data, isCausal: false, threads: 1 }
    const thrown = await runWorkers(3, module, { ...input, fault: 'throw' }).catch((error) => error)
    expect(thrown).toBeInstanceOf(RankError)
    expect([thrown.rank, thrown.message, thrown.cause.name]).toEqual([
      1,
      'rank 1 failed: out of luck',
      'RangeError',
    ])
    await expect(runWorkers(2, module, { ...input, fault: 'exit' })).rejects.toThrow(
      'rank 1 failed: its thread ended with code 3',
    )
    await expect(runWorkers(2, new URL('./ranks/none.mjs', import.meta.url))).rejects.toThrow(
      'failed: Cannot find module',
    )
    await expect(asRank(async () => 0)).rejects.toThrow('asRank: this is no worker of runWorkers')
  })

  test('a message outlives its sender', async () => {
    const results = await runWorkers(2, module, { operands: [], fault: 'late' })
    expect(results).toEqual([new Float32Array([1, 2]), 'sent'])
  })
})

describe('two GPUs', () => {
  test.each([
    { T: 37, H: 4, Hk: 2, isCausal: true },
    { T: 20, S: 31 },
    { T: 3, isCausal: true },
  ])('%o', async (c) => {
    const gpus = await Promise.all([createWebGpuBackend(), createWebGpuBackend()])
    const data = operands(c)
    expectClose(await onRanks(gpus, data, c), onOne(data, c), 5e-6)
    // A GPU and a CPU at one sequence.
    expectClose(await onRanks([gpus[0], cpus[0] as Backend], data, c), onOne(data, c), 5e-6)
    for (const gpu of gpus) gpu.close()
  })
})

describe('pieces', () => {
  test('cover a sequence, balanced, in both orders', () => {
    for (const size of [1, 2, 3, 4])
      for (const length of [0, 1, 5, 16, 31]) {
        const zigzag = Array.from({ length: size }, (_, rank) => ringPieces(length, { rank, size }, 'zigzag'))
        const seen = zigzag.flat().flatMap(([from, n]) => Array.from({ length: n }, (_, i) => from + i))
        expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length }, (_, i) => i))
        // Pairs (query, key) with key ≤ query: no rank has more than its share but for uneven pieces.
        const work = zigzag.map((pieces) =>
          pieces.reduce((sum, [from, n]) => sum + n * from + (n * (n + 1)) / 2, 0),
        )
        const share = (length * (length + 1)) / 2 / size
        for (const w of work) expect(w).toBeLessThanOrEqual(share + 2 * length)
      }
  })

  test('shards put together are the whole', () => {
    const x = tensor(numbers(2 * 11), [2, 11], { device: reference })
    for (const order of ['contiguous', 'zigzag'] as const) {
      const parts = [0, 1, 2].map((rank) => ringShard(x, -1, { rank, size: 3 }, order))
      expect([...ringUnshard(parts, 1, order).dataSync()]).toEqual([...x.dataSync()])
    }
  })
})

describe('errors', () => {
  const shaped = (link: Link, shapes: readonly number[][], isCausal = false): Promise<unknown> => {
    const t = (shape: readonly number[]): Tensor =>
      tensor(numbers(shape.reduce((a, b) => a * b)), shape, { device: reference })
    const shape = shapes[link.rank] as number[]
    return ringAttention(link, t(shape), t(shape), t(shape), { isCausal })
  }

  test('mismatched shapes: every rank says the same, naming both', async () => {
    const messages: string[] = []
    await runRanks(3, async (link) => {
      await shaped(link, [
        [1, 2, 4, 8],
        [1, 2, 4, 8],
        [1, 2, 4, 6],
      ]).catch((e: Error) => messages.push(e.message))
    })
    expect(new Set(messages).size).toBe(1)
    expect(messages[0]).toContain('rank 2 has q [1, 2, 4, 6]')
    expect(messages[0]).toContain('rank 0 q [1, 2, 4, 8]')
  })

  test('causal parts that are no zigzag shards', async () => {
    await expect(
      runRanks(2, (link) =>
        shaped(
          link,
          [
            [1, 1, 2, 4],
            [1, 1, 6, 4],
          ],
          true,
        ),
      ),
    ).rejects.toThrow("expected 4 of 8 positions, as ringShard(x, 2, link, 'zigzag') gives them")
  })

  test('a rank that fails makes the others fail with its error', async () => {
    const errors: unknown[] = []
    const run = runRanks(3, async (link) => {
      if (link.rank === 1) throw new Error('out of luck')
      await shaped(link, Array(3).fill([1, 1, 2, 4])).catch((error) => {
        errors.push(error)
        throw error
      })
    })
    await expect(run).rejects.toThrow('rank 1 failed: out of luck')
    expect(errors.length).toBe(2)
    for (const e of errors)
      expect(e instanceof RankError && e.rank === 1 && e.cause).toEqual(new Error('out of luck'))
  })

  test('a rank that leaves early, or does something else, is named', async () => {
    const leaves = runRanks(2, async (link) => {
      if (link.rank === 0) await shaped(link, Array(2).fill([1, 1, 2, 4]))
    })
    await expect(leaves).rejects.toThrow('rank 0 failed: it waits for a message from rank 1, which has ended')
    const other = runRanks(2, async (link) => {
      if (link.rank === 0) await shaped(link, Array(2).fill([1, 1, 2, 4]))
      else {
        link.send(0, { what: 'greeting', tensors: [] })
        await link.receive(0)
      }
    })
    await expect(other).rejects.toThrow("waits for 'ringAttention: shapes' and got 'greeting' from rank 1")
  })
})
