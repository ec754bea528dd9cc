/** Timing on a GPU: everything is enqueued, and waited for once per sample. */
import type { WebGpuBackend } from '@tilegrad/backend-webgpu'
import { reference, scope, type Tensor, tensor, withBackend } from '@tilegrad/core'
import { agree, median, type Target, type Timing, type Work } from '../cpu/harness.ts'

export interface Context {
  readonly backend: WebGpuBackend
  readonly peaks: GpuPeaks
  /** Timed samples per workload; the median counts. */
  readonly runs: number
}

/** Ready to be timed, after its results have been checked against float64. */
export interface Prepared {
  /** Enqueues one execution. */
  run(): void
  readonly work?: Work
  /** How long to run it before it is timed: V8 compiles a training step's JavaScript late. */
  readonly warmUpMs?: number
  /** Frees the inputs. */
  dispose(): void
}

export type Workload = readonly [name: string, target: Target, prepare: () => Promise<Prepared>]

/** What the GPU can do, measured in WGSL. */
export interface GpuPeaks {
  /** TFLOP/s of chains of multiply-adds on all cores, the most seen so far. */
  flops(): Promise<number>
  /** Keeps the GPU busy until its clocks are up: an idle one runs at a fifth of its speed. */
  warmUp(): Promise<void>
  /** GB/s of a copy, read and written bytes counted, of so many bytes in all. */
  copy(bytes: number): Promise<number>
}

async function seconds(backend: WebGpuBackend, run: () => void, repeat: number): Promise<number> {
  await backend.finished()
  const begin = performance.now()
  for (let r = 0; r < repeat; r++) run()
  await backend.finished()
  return (performance.now() - begin) / 1000 / repeat
}

/** Time per execution where as many run as take about `ms`. */
async function steady(backend: WebGpuBackend, run: () => void, ms = 40): Promise<() => Promise<number>> {
  let last = await seconds(backend, run, 1)
  for (let n = 0; n < 3; n++) last = Math.min(last, await seconds(backend, run, n + 1))
  const repeat = Math.max(1, Math.ceil(ms / 1000 / last))
  return () => seconds(backend, run, repeat)
}

/** The shortest of five samples: what the GPU can do. A sample is off by two times now and then. */
async function best(backend: WebGpuBackend, run: () => void): Promise<number> {
  const once = await steady(backend, run, 10)
  const times: number[] = []
  for (let i = 0; i < 5; i++) times.push(await once())
  return Math.min(...times)
}

/** Parameters of a kernel that are given as words, in the order of these fields. */
const inOrder = (...fields: string[]) => ({
  fields,
  words: (u32: Uint32Array) => ({ u32, f32: new Float32Array(u32.buffer), scalars: [] }),
})

export function createGpuPeaks(backend: WebGpuBackend): GpuPeaks {
  const { engine } = backend
  const chains = 16
  const groups = 132 * 32
  const fma = engine.kernel('bench.fma', 'bench', () => ({
    params: inOrder('rounds: u32', 'a: f32'),
    bindings: [{ name: 'out', item: 'vec4<f32>', write: true }],
    workgroup: [256],
    body: [
      ...Array.from({ length: chains }, (_, i) => `var x${i} = vec4f(f32(li) + ${i}.0);`),
      'for (var r = 0u; r < p.rounds; r++) {',
      ...Array.from({ length: chains }, (_, i) => `x${i} = fma(x${i}, vec4f(p.a), vec4f(1.5));`),
      '}',
      `let s = ${Array.from({ length: chains }, (_, i) => `x${i}`).join(' + ')};`,
      'if (s.x == 12345.678) { out[0] = s; }',
    ].join('\n'),
  }))
  const copy = engine.kernel('bench.copy', 'bench', () => ({
    params: inOrder('count: u32'),
    bindings: [
      { name: 'result', item: 'vec4<f32>', write: true },
      { name: 'source', item: 'vec4<f32>' },
    ],
    workgroup: [256],
    body: `let at = (wg.x + wg.y * groups.x) * 1024u + li;
for (var i = 0u; i < 4u; i++) { let a = at + i * 256u; if (a < p.count) { result[a] = source[a]; } }`,
  }))
  const out = engine.pool.alloc(64, 'float32')
  // From so few that a software adapter lives through it to what keeps a large GPU busy.
  let rounds = 1
  let most = 0
  const factor = new DataView(Float32Array.of(0.999).buffer).getUint32(0, true)
  const multiply = (): void => engine.run(fma, [out], Uint32Array.of(rounds, factor), [groups])
  return {
    async warmUp() {
      const end = performance.now() + 500
      while (performance.now() < end) {
        const time = await seconds(backend, multiply, 1)
        if (time < 0.002 && rounds < 512) rounds *= 2
      }
    },
    async flops() {
      const time = await best(backend, multiply)
      most = Math.max(most, (2 * 4 * chains * rounds * 256 * groups) / time / 1e12)
      return most
    },
    async copy(bytes) {
      const count = Math.ceil(bytes / 8 / 4)
      const [to, from] = [engine.pool.alloc(4 * count, 'float32'), engine.pool.alloc(4 * count, 'float32')]
      const blocks = Math.ceil(count / 1024)
      const y = Math.ceil(blocks / 65535)
      const once = () => engine.run(copy, [to, from], Uint32Array.of(count), [Math.ceil(blocks / y), y])
      const time = await best(backend, once)
      engine.pool.free(to)
      engine.pool.free(from)
      return (32 * count) / time / 1e9
    },
  }
}

/** CPU time in µs of what a dispatch takes at least: pipeline, bind group, dispatch, and its share of a submission. */
export async function callsOfDispatch(backend: WebGpuBackend): Promise<number> {
  const { engine } = backend
  const { device, pool } = engine
  const count = 100
  const kernels = [0, 1].map((i) =>
    engine.kernel(`bench.calls${i}`, 'bench', () => ({
      params: inOrder(),
      bindings: [
        { name: 'y', item: 'f32', write: true },
        ...['a', 'b'].map((name) => ({ name, item: 'f32' }) as const),
      ],
      workgroup: [32],
      body: `y[li] = a[li] + b[li] + ${i}.0;`,
    })),
  )
  const buffers = Array.from({ length: count + 2 }, () => pool.alloc(64, 'float32'))
  const uniform = 64
  const params = device.createBuffer({ size: 16, usage: uniform })
  const calls = Array.from({ length: count }, (_, i) => {
    const { pipeline, layout } = kernels[i % 2] as (typeof kernels)[0]
    const entries = [params, ...buffers.slice(i, i + 3).map(({ gpu }) => gpu)].map((buffer, binding) => ({
      binding,
      resource: { buffer },
    }))
    const group = device.createBindGroup({ layout: layout.group, entries })
    return { pipeline: pipeline as GPUComputePipeline, group }
  })
  const times: number[] = []
  for (let r = 0; r < 400; r++) {
    if (r % 8 === 0) await backend.finished()
    const begin = performance.now()
    const encoder = device.createCommandEncoder()
    const pass = encoder.beginComputePass()
    for (const { pipeline, group } of calls) {
      pass.setPipeline(pipeline)
      pass.setBindGroup(0, group)
      pass.dispatchWorkgroups(1)
    }
    pass.end()
    device.queue.submit([encoder.finish()])
    times.push((1000 * (performance.now() - begin)) / count)
  }
  await backend.finished()
  for (const buffer of buffers) pool.free(buffer)
  params.destroy()
  return median(times.slice(100))
}
/** Median time of one execution, and of its floor, measured in the same run. */
export async function timed(
  { run, work, warmUpMs = 0 }: Prepared,
  { backend, peaks, runs }: Context,
): Promise<Timing> {
  const end = performance.now() + warmUpMs
  // Compiles.
  do await seconds(backend, run, 1)
  while (performance.now() < end)
  await peaks.warmUp()
  const once = await steady(backend, run)
  const times: number[] = []
  for (let i = 0; i < runs; i++) times.push(1000 * (await once()))
  let floorMs: number | null = null
  if (work) {
    const arithmetic = work.flops ? work.flops / (await peaks.flops()) / 1e9 : 0
    const memory = work.bytes ? work.bytes / (await peaks.copy(work.bytes)) / 1e6 : 0
    floorMs = Math.max(arithmetic, memory)
  }
  return { ms: median(times), floorMs, best: { ms: Math.min(...times), floorMs } }
}

/** A tensor on the GPU as float64 on the reference backend. */
export async function wide(x: Tensor): Promise<Tensor> {
  const data = await x.data()
  return withBackend(reference, () => tensor(Float64Array.from(data), x.shape))
}

/** Throws where `got` (on the GPU) is not what `expected` computes in float64 from the same numbers. */
export async function check(
  inputs: readonly Tensor[],
  got: readonly Tensor[],
  expected: (...xs: Tensor[]) => Tensor[],
  most?: number,
): Promise<void> {
  const xs = await Promise.all(inputs.map(wide))
  const truth = scope(() => withBackend(reference, () => expected(...xs)).map((y) => y.dataSync()))
  for (const [i, y] of got.entries()) agree(await y.data(), truth[i] as ArrayLike<number>, most)
}
