/**
 * How many cores a GPU has, and which tiles are worth it there: measured once and remembered (remembered.ts), before
 * anything else runs, so that a process keeps to one plan. Without float16 it takes 0.2 to 0.6 s on one H100, 1.7 where the driver has
 * never seen the kernels. Not on software adapters, which compile a tile for seconds.
 *
 * What counts are ratios of times that follow each other: an idle GPU's clock takes half a second to come up.
 */

import { DeviceError } from '@tilegrad/core'
import { Engine } from '../../commands/queue.ts'
import type { Gpu } from '../../device/gpu.ts'
import { recall, remember } from '../../device/remembered.ts'
import { type MatrixKind, type TileKind, type Tuning, untuned } from '../../device/tuning.ts'
import { block, f32, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { multiply } from './matmul.ts'
import { kinds } from './plan.ts'
import type { Matrix, Problem } from './problem.ts'
import { bytesOf, type Tile, threadsOf } from './stages.ts'
import { matrixKinds } from './subgroup-plan.ts'
import { subgroupsOf, vectorsOf } from './subgroup-stages.ts'
import { multiplyHalves } from './subgroups.ts'

/** The share of the best tile's speed that others must have to be used where they suit a shape better. */
const worth = 0.7
/** The least milliseconds to measure: by the GPU's clock, by that clock as browsers tell it (rounded), or by ours. */
const enough = { exact: 0.3, rounded: 4, ours: 8 }
/** The number of ratios of which the median counts. */
const samples = 5
/** The number that the count of cores is rounded to a multiple of: what varies from time to time is less. */
const step = 4

const known = new Map<string, Promise<Tuning>>()

/** The tuning for a GPU, by `measure` where it is not known. If that fails, its `onError` is told. */
export function tuningOf(gpu: Gpu, measure: (gpu: Gpu) => Promise<Tuning> = tune): Promise<Tuning> {
  const { vendor, architecture, device, description } = gpu.info
  // With the driver, the limits, which tiles need, and the tiles.
  const key = `tilegrad tuning ${JSON.stringify([vendor, architecture, device, description, gpu.limits, kinds, gpu.matrices && matrixKinds])}`
  let tuning = known.get(key)
  if (!tuning) {
    tuning = recallOr(key, () => measure(gpu)).catch((cause) => {
      known.delete(key)
      gpu.onError(
        `measuring ${gpu.adapterName} failed, plans are those of an H100: ${(cause as Error).message}`,
      )
      return untuned
    })
    known.set(key, tuning)
  }
  return tuning
}

async function recallOr(key: string, measure: () => Promise<Tuning>): Promise<Tuning> {
  const old = recall(key)
  if (isTuning(old)) return old
  const found = await measure()
  remember(key, found)
  return found
}

function isTuning(value: unknown): value is Tuning {
  const { cores, slow, matrices } = (value ?? {}) as Partial<Tuning>
  return (
    Object.entries(matrices ?? {}).every(
      ([kind, speed]) => kind in matrixKinds && typeof speed === 'number' && speed > 0,
    ) &&
    Number.isInteger(cores) &&
    (cores as number) > 0 &&
    Array.isArray(slow) &&
    slow.every((kind) => kind in kinds)
  )
}

/** Measures a GPU, and the tiles of these kinds that fit it. */
export async function tune(
  gpu: Gpu,
  tiles: Readonly<Partial<Record<TileKind, Tile>>> = kinds,
): Promise<Tuning> {
  // With its own memory and counters, which nobody sees.
  const engine = new Engine(gpu, 0, () => '')
  const cores = await coresOf(engine)
  const fitting = (Object.entries(tiles) as [TileKind, Tile][]).filter(
    ([, t]) =>
      bytesOf(t, 'O', 'O') <= gpu.limits.maxComputeWorkgroupStorageSize &&
      threadsOf(t) <= gpu.limits.maxComputeInvocationsPerWorkgroup,
  )
  // Two large tiles per core; by our clock so deep that the calls take no part of the time.
  const [m, n, k] = [4 * 128, Math.ceil(cores / 2) * 128, gpu.timestamps ? 512 : 4096]
  const matrix = (rows: number, columns: number): Matrix => {
    const buffer = engine.pool.alloc(rows * columns, 'float32')
    return { buffer, offset: 0, row: columns, column: 1, batch: [] }
  }
  const [a, b, out] = [matrix(m, k), matrix(k, n), matrix(m, n)]
  const p: Problem = { m, n, k, items: 1, sizes: [], type: 'f32', a, b, outs: [out], extras: [] }
  const run = (tile: Tile) => () => multiply(engine, 'tuning', p, undefined, () => ({ tile, splits: 1 }))
  let relative: number[]
  try {
    relative = await compare(
      engine,
      fitting.map(([, tile]) => run(tile)),
    )
  } finally {
    for (const { buffer } of [a, b, out]) engine.pool.free(buffer)
    engine.pool.trim()
  }
  const matrices = gpu.matrices && (await speedsOf(engine, cores))
  const best = Math.min(...relative)
  const isSlow = (i: number): boolean => best < worth * relative[i]
  const slow = fitting.flatMap(([kind], i) => (kind !== 'small' && isSlow(i) ? [kind] : []))
  return { cores, slow, ...(matrices && { matrices }) }
}

/** How fast the tiles of each kind multiply float16, two rounds of them on all cores. */
async function speedsOf(engine: Engine, cores: number): Promise<Tuning['matrices']> {
  const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } =
    engine.gpu.limits
  const subgroup = engine.gpu.matrices?.subgroup ?? 32
  const kinds = (Object.keys(matrixKinds) as MatrixKind[]).filter((kind) => {
    const { tile } = matrixKinds[kind]
    return 16 * vectorsOf(tile, 'O', 'O') <= bytes && subgroup * subgroupsOf(tile) <= threads
  })
  const [m, n, k] = [1024, 64 * cores, 2048]
  const matrix = (rows: number, columns: number, half: boolean): Matrix => {
    const buffer = engine.pool.alloc(rows * columns, half ? 'float16' : 'float32')
    return { buffer, offset: 0, row: columns, column: 1, batch: [], half }
  }
  const [a, b, out] = [matrix(m, k, true), matrix(k, n, true), matrix(m, n, false)]
  const p: Problem = { m, n, k, items: 1, sizes: [], type: 'f16', a, b, outs: [out], extras: [] }
  try {
    const relative = await compare(
      engine,
      kinds.map((kind) => () => {
        const { tile } = matrixKinds[kind]
        multiplyHalves(engine, 'tuning', p, undefined, () => ({ tile, splits: 1 }))
      }),
    )
    const square = relative[kinds.indexOf('square')]
    return Object.fromEntries(
      kinds.map((kind, i) => [kind, Math.round((100 * (square ?? relative[i])) / relative[i]) / 100]),
    )
  } finally {
    for (const { buffer } of [a, b, out]) engine.pool.free(buffer)
    engine.pool.trim()
  }
}

/** A core that computes two workgroups takes twice as long: so many of them, over the time they take, against one alone. */
async function coresOf(engine: Engine): Promise<number> {
  const threads = engine.gpu.limits.maxComputeInvocationsPerWorkgroup
  const kernel = engine.kernel('tuning', 'tuning', () => chains(threads))
  const out = engine.pool.alloc(4, 'float32')
  let rounds = 64
  let groups = 64
  const run = (count: number) => engine.run(kernel, [out], { rounds, a: 0.999 }, [count])
  const one = () => run(1)
  const half = () => run(groups)
  const all = () => run(2 * groups)
  const least = leastOf(engine)
  await spent(engine, one)
  while (rounds < 2 ** 24 && (await spent(engine, one)) < least) rounds *= 2
  while (groups < 2 ** 14 && (await spent(engine, half)) < 4 * least) groups *= 2
  const found: number[] = []
  for (let i = 0; i < samples; i++) {
    // What twice as much takes longer: waiting cancels out, and so do last workgroups that leave cores without work.
    const single = (await spent(engine, one, 2)) - (await spent(engine, one))
    found.push((groups * single) / ((await spent(engine, all)) - (await spent(engine, half))))
  }
  engine.pool.free(out)
  const cores = Math.round(median(found) / step) * step
  if (!Number.isFinite(cores) || cores < 0) throw new DeviceError('the times make no sense')
  return Math.max(step, cores)
}

const chainParams = block({ rounds: u32, a: f32 })

/** Chains of multiply-adds that keep a core's units busy. */
const chains = (threads: number): Shader<ValuesOf<typeof chainParams>> => ({
  params: chainParams,
  bindings: [{ name: 'out', item: 'vec4<f32>', write: true }],
  workgroup: [threads],
  body: `var x = vec4f(f32(li)); var y = x + 1.0; var z = x + 2.0; var w = x + 3.0;
for (var r = 0u; r < p.rounds; r++) {
x = fma(x, vec4f(p.a), vec4f(1.5)); y = fma(y, vec4f(p.a), vec4f(1.5));
z = fma(z, vec4f(p.a), vec4f(1.5)); w = fma(w, vec4f(p.a), vec4f(1.5));
}
let sum = x + y + z + w;
// Never true, which the compiler does not know.
if (sum.x == 12345.678) { out[0] = sum; }`,
})

/** Times of all relative to the first. */
async function compare(engine: Engine, runs: readonly (() => void)[]): Promise<number[]> {
  let repeat = 1
  for (const run of runs) await spent(engine, run)
  while (repeat < 2 ** 10 && (await spent(engine, runs[0], repeat)) < leastOf(engine)) repeat *= 2
  const found = runs.map(() => [] as number[])
  for (let i = 0; i < samples; i++) {
    const taken: number[] = []
    for (const run of runs) taken.push(await spent(engine, run, repeat))
    for (const [j, time] of taken.entries()) found[j]?.push(time / taken[0])
  }
  return found.map(median)
}

const leastOf = ({ gpu }: Engine): number =>
  gpu.timestamps ? (gpu.isNode ? enough.exact : enough.rounded) : enough.ours

/** Milliseconds. */
async function spent(engine: Engine, run: () => void, repeat = 1): Promise<number> {
  await engine.finished()
  const timed = engine.startTiming()
  const begin = performance.now()
  for (let i = 0; i < repeat; i++) run()
  if (timed) return (await engine.stopTiming()).reduce((sum, { ms }) => sum + ms, 0)
  await engine.finished()
  return performance.now() - begin
}

const median = (list: readonly number[]): number => [...list].sort((x, y) => x - y)[list.length >> 1]
