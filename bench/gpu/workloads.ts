/** The GPU's workloads; the peers' sides, with the same names and sizes, are in ../peers/torch-gpu.py. */
import {
  contiguous,
  gelu,
  grad,
  layerNorm,
  linear,
  linearAttention,
  matmul,
  profile,
  rand,
  reference,
  scaledDotProductAttention,
  scope,
  softmax,
  type Tensor,
  withBackend,
} from '@tilegrad/core'
import { AdamW, parameter } from '@tilegrad/nn'
import { agree, type Target, type Work } from '../cpu/harness.ts'
import { compiledMixedStep, compiledStep, gptStep, mixedStep } from '../cpu/workloads.ts'
import { type GPTSize, gpts, training } from '../peers/inputs.ts'
import { check, type Prepared, type Workload } from './harness.ts'

/** Uniform in [−1, 1), drawn on the device. */
const noise = (shape: readonly number[]): Tensor => scope(() => rand(shape).mul(2).sub(1)).keep()

/** What inputs are in; undefined: float32. */
type Half = 'float16' | 'bfloat16' | undefined

interface Case {
  readonly shapes: readonly (readonly number[])[]
  readonly fn: (...xs: Tensor[]) => Tensor[]
  /** What of inputs and of results belongs together, and is compared with float64. */
  readonly partIn?: (x: Tensor, i: number) => Tensor
  readonly partOut?: (y: Tensor, i: number) => Tensor
  readonly dtype?: Half
  /** Where all of a gradient depends on all inputs: smaller shapes, whose results are compared instead. */
  readonly checked?: readonly (readonly number[])[]
  readonly work: Work
}

async function prepare({ shapes, fn, partIn, partOut, dtype, checked, work }: Case): Promise<Prepared> {
  const of = (shape: readonly number[]): Tensor =>
    dtype ? scope(() => noise(shape).to(dtype)).keep() : noise(shape)
  const inputs = shapes.map(of)
  const samples = checked ? checked.map(of) : inputs
  const run = (): void => scope(() => void fn(...inputs))
  const [xs, ys] = scope(() => {
    const parts = (list: readonly Tensor[], part?: (t: Tensor, i: number) => Tensor) =>
      list.map((t, i) => contiguous(part ? part(t.detach(), i) : t.detach()))
    return [parts(samples, partIn), parts(fn(...samples), partOut)] as const
  })
  await check(xs, ys, fn, dtype && 1e-2)
  for (const t of [...xs, ...ys, ...(checked ? samples : [])]) t.dispose()
  return { run, work, dispose: () => inputs.forEach((t) => t.dispose()) }
}

const rows5 = (x: Tensor): Tensor => x.narrow(0, x.shape[0] >> 1, 5)

/** a (m, k) · b (k, n). */
const gemm = (m: number, k: number, n: number, dtype?: Half): Promise<Prepared> =>
  prepare({
    dtype,
    shapes: [
      [m, k],
      [k, n],
    ],
    fn: (a, b) => [matmul(a, b)],
    partIn: (x, i) => (i === 0 ? rows5(x) : x),
    partOut: rows5,
    work: { flops: 2 * m * n * k },
  })

/** x (m, k) · wᵀ, w (n, k): a layer's forward pass; and the gradients of x and of w from dy (m, n). */
const forward = (m: number, k: number, n: number, dtype: Half): Promise<Prepared> =>
  prepare({
    dtype,
    shapes: [
      [m, k],
      [n, k],
    ],
    fn: (x, w) => [linear(x, w)],
    partIn: (x, i) => (i === 0 ? rows5(x) : x),
    partOut: rows5,
    work: { flops: 2 * m * n * k },
  })
const inputGradient = (m: number, k: number, n: number, dtype: Half): Promise<Prepared> =>
  gemm(m, n, k, dtype)
const weightGradient = (m: number, k: number, n: number, dtype: Half): Promise<Prepared> =>
  prepare({
    dtype,
    shapes: [
      [m, n],
      [m, k],
    ],
    fn: (dy, x) => [matmul(dy.T, x)],
    partIn: (x, i) => (i === 0 ? x.narrow(1, 3, 5) : x),
    partOut: (y) => y.narrow(0, 3, 5),
    work: { flops: 2 * m * n * k },
  })

/** Training GPT at width 384, 64 sequences of 256 tokens: its projections. */
const tokens = 64 * 256
const layers = [
  ['qkv', 384, 1152],
  ['proj', 384, 384],
  ['up', 384, 1536],
  ['down', 1536, 384],
  ['head', 384, 65],
] as const
const within17: Target = { share: 1 / 1.7 }
/** Four times what float32 reaches at large sizes. */
const quadruple = (k: number, n: number): Target => ({ ms: (2 * tokens * k * n) / 180e9 })
const products = (dtype?: Half): Workload[] =>
  layers.flatMap(([name, k, n]): Workload[] => {
    const how = dtype ? `, ${dtype}` : ''
    const target = dtype ? (name === 'head' ? {} : quadruple(k, n)) : within17
    return [
      [`gemm 384 ${name} forward${how}`, target, () => forward(tokens, k, n, dtype)],
      [`gemm 384 ${name} dx${how}`, target, () => inputGradient(tokens, k, n, dtype)],
      [`gemm 384 ${name} dw${how}`, target, () => weightGradient(tokens, k, n, dtype)],
    ]
  })

const gradients =
  (fn: (...xs: Tensor[]) => Tensor) =>
  (...all: Tensor[]): Tensor[] => {
    const g = all.at(-1) as Tensor
    const xs = all.slice(0, -1).map((x) => {
      const leaf = x.detach()
      leaf.requiresGrad = true
      return leaf
    })
    return grad(fn(...xs), xs, { gradOutputs: [g] })
  }

/** Causal attention of some kind, (b, h, t, d), alone or with its gradients */
function causal(
  attend: (q: Tensor, k: Tensor, v: Tensor) => Tensor,
  [b, h, t, d]: readonly [number, number, number, number],
  backward: boolean,
  work: Work,
  /** Whose gradients are compared with float64. */
  small: readonly number[] = [1, 2, 700, d],
  dtype?: Case['dtype'],
): Promise<Prepared> {
  const shapes = (shape: readonly number[]) => Array.from({ length: backward ? 4 : 3 }, () => shape)
  // Queries need no later keys: of the output a part will do. Gradients need all.
  const part = (x: Tensor): Tensor =>
    x
      .narrow(0, b >> 1, 1)
      .narrow(1, 3, 1)
      .narrow(2, 0, 1500)
  return prepare({
    shapes: shapes([b, h, t, d]),
    fn: backward ? gradients(attend as (...xs: Tensor[]) => Tensor) : (q, k, v) => [attend(q, k, v)],
    ...(backward ? { checked: shapes(small) } : { partIn: part, partOut: part }),
    ...(dtype && { dtype }),
    work,
  })
}

function attention(backward: boolean, dtype?: Case['dtype']): Promise<Prepared> {
  const [b, h, t, d] = [4, 12, 2048, 64]
  const work = { flops: (backward ? 7 : 2) * b * h * t * t * d }
  const attend = (q: Tensor, k: Tensor, v: Tensor) => scaledDotProductAttention(q, k, v, { isCausal: true })
  // So many heads that the same kernels run.
  return causal(attend, [b, h, t, d], backward, work, [64, 4, 65, d], dtype)
}

/** `widened`: float16 by way of copies in float32, as it is computed where there are no matrices. */
function linearTime(t: number, backward: boolean, dtype?: Case['dtype'], widened = false): Promise<Prepared> {
  const [h, d] = [8, 64]
  const attend = (q: Tensor, k: Tensor, v: Tensor): Tensor => {
    if (!widened) return linearAttention(q, k, v, { isCausal: true })
    const [a, b, c] = [q, k, v].map((x) => x.to('float32')) as [Tensor, Tensor, Tensor]
    return linearAttention(a, b, c, { isCausal: true }).to(q.dtype)
  }
  const bytes = (dtype ? 2 : 4) * (backward ? 8 : 4) * h * t * d
  // The float32 rate is no floor for matrices.
  const work = dtype ? { bytes } : { flops: (backward ? 12 : 4) * h * t * d * d, bytes }
  return causal(attend, [1, h, t, d], backward, work, undefined, dtype)
}

/** 256 MiB. */
const [rows, columns] = [65536, 1024]
const streaming = (
  fn: (...xs: Tensor[]) => Tensor[],
  shapes: readonly (readonly number[])[],
  arrays: number,
  dtype?: Case['dtype'],
): Promise<Prepared> =>
  prepare({
    shapes,
    fn,
    partIn: (x) => (x.rank === 2 ? x.narrow(0, 40001, 50) : x),
    partOut: (y) => (y.rank === 2 ? y.narrow(0, 40001, 50) : y),
    ...(dtype && { dtype }),
    work: { bytes: (dtype ? 2 : 4) * rows * columns * arrays },
  })
const x = [rows, columns]
const w = [columns]

async function adamw(): Promise<Prepared> {
  const n = rows * columns
  const { lr, beta1, beta2, eps, decay } = training
  const param = parameter(noise([n]))
  const g = noise([n])
  param.grad = g
  const optimizer = new AdamW([param], { lr, betas: [beta1, beta2], eps, weightDecay: decay })
  const head = async (t: Tensor): Promise<Float32Array> => {
    const part = scope(() => contiguous(t.detach().narrow(0, n >> 1, 64)))
    return (await part.data()) as Float32Array
  }
  const [p, d] = [await head(param), await head(g)]
  optimizer.step()
  // After the first step the moments are the gradient and its square.
  const first = (v: number, i: number): number =>
    v * (1 - lr * decay) - (lr * (d[i] as number)) / (Math.abs(d[i] as number) + eps)
  agree(await head(param), Array.from(p, first))
  return {
    run: () => optimizer.step(),
    work: { bytes: 4 * n * 7 },
    dispose: () => {
      optimizer.dispose()
      for (const t of [param, g]) t.dispose()
    },
  }
}

/** GPT-2's small model. */
export const gpt2: GPTSize = { layers: 12, heads: 12, width: 768, batch: 8, block: 1024, vocab: 50257 }

export const wideStep: GPTSize = { layers: 6, heads: 6, width: 384, batch: 64, block: 256, vocab: 65 }

async function step(
  size: GPTSize,
  make: (size: GPTSize) => () => Tensor = gptStep,
  most?: number,
): Promise<Prepared> {
  const losses = async (make: () => Tensor): Promise<number[]> => {
    const list: number[] = []
    for (let i = 0; i < 3; i++) {
      const loss = make()
      list.push(await loss.item())
      loss.dispose()
    }
    return list
  }
  const truth = await losses(withBackend(reference, () => gptStep(gpts.tiny, 'float64')))
  // Of a compiled step the third is a replay.
  agree(await losses(make(gpts.tiny)), truth, most)
  const { layers, width: c, block: t, vocab, batch } = size
  const projections = 2 * (12 * c * c * layers + c * vocab)
  const once = make(size)
  return {
    run: () => once().dispose(),
    work: { flops: batch * t * (3 * projections + 7 * t * c * layers) },
    warmUpMs: 2000,
    dispose: () => {},
  }
}

/** Operators of a step, as profiles count them. */
export function operatorsOf(once: () => void): number {
  return profile(once).rows.reduce((n, row) => n + (row.path === 'composed' ? 0 : row.calls), 0)
}

const tflops = (n: number, rate: number): Target => ({ ms: (2 * n ** 3) / rate / 1e9 })
const ofCopy: Target = { share: 0.8 }

export const workloads: readonly Workload[] = [
  ['gemm 4096', tflops(4096, 44), () => gemm(4096, 4096, 4096)],
  ['gemm 2048', {}, () => gemm(2048, 2048, 2048)],
  ['gemm 1024', tflops(1024, 23), () => gemm(1024, 1024, 1024)],
  ...products(),
  ['gemm 8192, float16', tflops(8192, 350), () => gemm(8192, 8192, 8192, 'float16')],
  ['gemm 4096, float16', tflops(4096, 320), () => gemm(4096, 4096, 4096, 'float16')],
  ['gemm 2048, float16', tflops(2048, 260), () => gemm(2048, 2048, 2048, 'float16')],
  ...products('float16'),
  ['attention forward', { ms: 1 }, () => attention(false)],
  ['attention forward + backward', { ms: 4 }, () => attention(true)],
  ['linear attention T=131072', { ms: 3 }, () => linearTime(131072, false)],
  ['linear attention T=16384 forward + backward', {}, () => linearTime(16384, true)],
  ...(['forward', 'forward + backward'] as const).flatMap((pass): Workload[] => {
    const name = `linear attention T=32768 ${pass}`
    const backward = pass !== 'forward'
    return [
      [name, {}, () => linearTime(32768, backward)],
      [`${name}, widened, float16`, {}, () => linearTime(32768, backward, 'float16', true)],
      [`${name}, float16`, {}, () => linearTime(32768, backward, 'float16')],
    ]
  }),
  ['softmax forward', ofCopy, () => streaming((a) => [softmax(a, -1)], [x], 2)],
  [
    'softmax forward + backward',
    {},
    () =>
      streaming(
        gradients((a) => softmax(a as Tensor, -1)),
        [x, x],
        5,
      ),
  ],
  ['layer norm forward', ofCopy, () => streaming((a, g, b) => [layerNorm(a, [columns], g, b)], [x, w, w], 2)],
  [
    'layer norm forward + backward',
    {},
    () =>
      streaming(
        (...all) => gradients((a, g, b) => layerNorm(a as Tensor, [columns], g, b))(...all).slice(0, 1),
        [x, w, w, x],
        5,
      ),
  ],
  ['GELU forward', ofCopy, () => streaming((a) => [gelu(a)], [x], 2)],
  [
    'GELU forward + backward',
    {},
    () =>
      streaming(
        gradients((a) => gelu(a as Tensor)),
        [x, x],
        5,
      ),
  ],
  ['AdamW 64M', ofCopy, adamw],
  ['attention forward, float16', { ms: 0.25 }, () => attention(false, 'float16')],
  ['attention forward + backward, float16', { ms: 1 }, () => attention(true, 'float16')],
  ...(['float16', 'bfloat16'] as const).flatMap((dtype): Workload[] => [
    [`softmax forward, ${dtype}`, ofCopy, () => streaming((a) => [softmax(a, -1)], [x], 2, dtype)],
    [
      `layer norm forward, ${dtype}`,
      ofCopy,
      () => streaming((a, g, b) => [layerNorm(a, [columns], g, b)], [x, w, w], 2, dtype),
    ],
    [`GELU forward, ${dtype}`, ofCopy, () => streaming((a) => [gelu(a)], [x], 2, dtype)],
  ]),
  ['training step A', { ms: 3 }, () => step(gpts['training step A'])],
  ['training step 384', { ms: 33 }, () => step(wideStep)],
  ['GPT-2 124M', {}, () => step(gpt2)],
  ['training step A, compiled', { ms: 0.6 }, () => step(gpts['training step A'], compiledStep)],
  ['training step 384, compiled', { ms: 28 }, () => step(wideStep, compiledStep)],
  ['GPT-2 124M, compiled', { ms: 160 }, () => step(gpt2, compiledStep)],
  ['training step 384, mixed', {}, () => step(wideStep, mixedStep('float16'), 3e-3)],
  [
    'training step 384, mixed, compiled',
    { ms: 12 },
    () => step(wideStep, compiledMixedStep('float16'), 3e-3),
  ],
  ['GPT-2 124M, mixed', {}, () => step(gpt2, mixedStep('float16'), 3e-3)],
  ['GPT-2 124M, mixed, compiled', { ms: 48 }, () => step(gpt2, compiledMixedStep('float16'), 3e-3)],
]
