/** Times of operators by the GPU's clock. */
import { profile, profileAsync, randn, softmax, withBackend } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { gpus } from './support/gpus.ts'

const [{ gpu: full }, { gpu: plain }] = gpus

/** No test: so that compiling is not what is measured. */
async function warm(fn: () => unknown): Promise<void> {
  withBackend(full, fn)
  await full.finished()
}

test('rows hold the time on the GPU, by operator and path, with rates', async () => {
  const [a, b, small] = withBackend(full, () => [randn([256, 256]), randn([256, 256]), randn([16, 16])])
  const work = () => [a.matmul(b), a.matmul(b), softmax(a, 1), small.matmul(small)]
  await warm(work)
  const { result, rows, table } = await profileAsync(work)
  expect(result.map((t) => t.device)).toEqual(Array(4).fill('webgpu'))
  const product = rows.find((r) => r.op === 'matmul')
  expect(product).toMatchObject({ path: 'primitive', clock: 'device', calls: 3 })
  expect(product?.flops).toBe(2 * 2 * 256 ** 3 + 2 * 16 ** 3)
  expect(rows.find((r) => r.op === 'softmax')).toMatchObject({ path: 'fused', clock: 'device', calls: 1 })
  for (const row of rows) expect(row.ms).toBeGreaterThan(0)
  expect(table()).toMatch(/operator +path +device +clock +calls +ms +share +TFLOP\/s +GB\/s/)
  expect(table()).toMatch(/matmul +primitive +webgpu +device +3 +\d+\.\d{3} +\d+\.\d% +\d+\.\d{3} +\d+\.\d/)
})

test('it is the time of the work, not of recording it', async () => {
  const make = (n: number) => withBackend(full, () => [randn([n, n]), randn([n, n])] as const)
  const [small, large] = [make(32), make(384)]
  const product = ([a, b]: ReturnType<typeof make>) => a.matmul(b)
  await warm(() => [product(small), product(large)])
  const ms = async (of: ReturnType<typeof make>) => (await profileAsync(() => product(of))).rows[0].ms
  // 1,728 times the arithmetic. A tenth of that, since launching costs something as well.
  expect(await ms(large)).toBeGreaterThan(10 * (await ms(small)))
})

test('a composed operator takes what its parts take; the trace shows launches on the GPU', async () => {
  const x = withBackend(full, () => randn([8, 64]))
  const work = () => x.std(1)
  await warm(work)
  const { rows, chromeTrace } = await profileAsync(work)
  const whole = rows.find((r) => r.path === 'composed')
  const parts = rows.filter((r) => r.path !== 'composed')
  expect(parts.length).toBeGreaterThan(1)
  expect(whole?.clock).toBe('device')
  // The same numbers added in another order.
  expect(whole?.ms).toBeCloseTo(
    parts.reduce((sum, r) => sum + r.ms, 0),
    9,
  )
  const { traceEvents } = JSON.parse(chromeTrace()) as {
    traceEvents: { name: string; cat: string; ts: number; dur: number; tid: number }[]
  }
  const launches = traceEvents.filter((e) => e.cat === 'device')
  expect(launches.length).toBeGreaterThanOrEqual(parts.length)
  expect(new Set(launches.map((e) => e.tid))).toEqual(new Set([2]))
  expect(launches[0].ts).toBe(0)
  launches.slice(1).forEach((e, i) => expect(e.ts).toBeGreaterThanOrEqual(launches[i].ts + launches[i].dur))
})

test('many launches, over several submissions', async () => {
  const x = withBackend(full, () => randn([4, 4]))
  const { rows } = await profileAsync(async () => {
    let y = x
    for (let i = 0; i < 700; i++) y = y.add(i)
    await y.data()
    return y
  })
  expect(rows).toMatchObject([{ op: 'add', clock: 'device', calls: 700 }])
  expect(rows[0].ms).toBeGreaterThan(0)
})

test('after an error in the function, and without timestamps', async () => {
  const x = withBackend(full, () => randn([4, 4]))
  const broken = profileAsync(() => {
    x.add(1)
    throw new Error('on purpose')
  })
  await expect(broken).rejects.toThrow('on purpose')
  expect((await profileAsync(() => x.add(1))).rows).toMatchObject([{ op: 'add', clock: 'device', calls: 1 }])
  expect(profile(() => x.add(1)).rows).toMatchObject([{ op: 'add', clock: 'host', calls: 1 }])
  const y = withBackend(plain, () => randn([4, 4]))
  const { rows, table } = await profileAsync(() => y.add(1))
  expect(rows).toMatchObject([{ op: 'add', clock: 'host', calls: 1 }])
  expect(table()).toContain('GFLOP/s')
})
