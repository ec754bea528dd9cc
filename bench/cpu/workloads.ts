/** Our side of every workload; the peers' sides, with the same names and inputs, are in ../peers. */
import {
  autocast,
  batchNorm,
  compile,
  conv2d,
  gelu,
  grad,
  layerNorm,
  linearAttention,
  matmul,
  maxPool2d,
  reference,
  scaledDotProductAttention,
  scope,
  softmax,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { AdamW, clipGradNorm, decayGroups, GPT, GRU, GradScaler, LSTM, parameter } from '@tilegrad/nn'
import {
  type GPTSize,
  gptBatch,
  gptParameters,
  gpts,
  positions,
  type RecurrentName,
  recurrences,
  training,
  uniform,
} from '../peers/inputs.ts'
import { agree, type Prepared, type Target, type Work, type Workload } from './harness.ts'

type Fn = (...inputs: Tensor[]) => Tensor
type Input = readonly [seed: number, shape: readonly number[], scale?: number]

const pick = (x: Tensor): number[] => {
  const data = x.dataSync()
  return positions(x.numel).map((p) => data[p])
}
const array = ([seed, shape, scale]: Input): Float32Array =>
  uniform(
    seed,
    shape.reduce((p, n) => p * n, 1),
    scale,
  )

interface Op {
  readonly inputs: readonly Input[]
  readonly fn: Fn
  /** The gradient for the last input as the output's: alone, or after the forward pass each time. */
  readonly gradient?: 'alone' | 'after forward'
  /** Part of an input that is enough for the same part of an output (0: the first of either). Without: no check. */
  readonly part?: (x: Tensor, i: number) => Tensor
  readonly work: Work
}

/** An operator on full-size inputs, a part of whose result has been compared with the reference in float64. */
function operator({ inputs, fn, gradient, part, work }: Op): Prepared {
  const compute = (tensors: Tensor[]): (() => Tensor[]) => {
    if (!gradient) return () => [fn(...tensors)]
    const g = tensors.at(-1) as Tensor
    const xs = tensors.slice(0, -1)
    for (const x of xs) x.requiresGrad = true
    const once = (y: Tensor, retainGraph: boolean) => grad(y, xs, { gradOutputs: [g], retainGraph })
    if (gradient === 'after forward') return () => once(fn(...xs), false)
    const y = fn(...xs)
    return () => once(y, true)
  }
  const full = inputs.map((input) => tensor(array(input), input[1]))
  const run = compute(full)
  if (part) {
    // Tensors of their own, not views: gradients are those of the part.
    const parts = full.map((x, i) => ({ data: part(x, i).dataSync(), shape: part(x, i).shape }))
    const expected = withBackend(reference, () => {
      const wide = parts.map(({ data, shape }) => tensor(Float64Array.from(data), shape))
      return compute(wide)().map((y) => y.dataSync())
    })
    run().forEach((y, i) => agree(part(y, i).dataSync(), expected[i]))
  }
  return { run: () => scope(() => void run()), values: () => scope(() => run().flatMap(pick)), work }
}

const gemmWork = (m: number): Work => ({ flops: 2 * m * 512 * 512, bytes: 4 * 512 * 512, traffic: 'read' })

export const gemm = (m: number, k: number, n: number, work: Work = { flops: 2 * m * k * n }): Prepared =>
  operator({
    inputs: [
      [1, [m, k]],
      [2, [k, n]],
    ],
    fn: matmul,
    part: (x, i) => (i === 0 ? x.narrow(0, m >> 1, Math.min(m - (m >> 1), 5)) : x),
    work,
  })

/** Another matrix of 128 each time, so that it comes from memory. */
function gemmFromMemory(m: number): Prepared {
  const { values } = gemm(m, 512, 512)
  const [x, ...matrices] = Array.from({ length: 129 }, (_, i) =>
    i === 0 ? tensor(uniform(1, m * 512), [m, 512]) : tensor(uniform(2, 512 * 512), [512, 512]),
  )
  const count = matrices.length
  const { flops = 0, bytes = 0 } = gemmWork(m)
  return {
    run: () => scope(() => void matrices.map((matrix) => matmul(x, matrix))),
    values,
    work: { flops: flops * count, bytes: bytes * count, traffic: 'read' },
    count,
  }
}

const [H, D] = [8, 64]
const qkvg = (t: number): Input[] => [1, 2, 3, 4].map((seed) => [seed, [1, H, t, D]])

/** Causal attention: two matrix products forward, five backward, each of half a T×T matrix. */
export const attention = (t: number, gradient: boolean, checked = true): Prepared =>
  operator({
    inputs: qkvg(t).slice(0, gradient ? 4 : 3),
    fn: (q, k, v) => scaledDotProductAttention(q, k, v, { isCausal: true }),
    ...(gradient && { gradient: 'after forward' }),
    ...(checked && { part: (x) => x.narrow(1, 3, 1) }),
    work: { flops: (gradient ? 7 : 2) * H * t * t * D },
  })

const linear = (t: number): Prepared =>
  operator({
    inputs: qkvg(t).slice(0, 3),
    fn: (q, k, v) => linearAttention(q, k, v, { isCausal: true }),
    // Queries need no later keys.
    part: (x) => x.narrow(1, 3, 1).narrow(2, 0, 1000),
    // At least: every key and value into the D×D state, and every query through it.
    work: { flops: 4 * H * t * D * D, bytes: 4 * 4 * H * t * D },
  })

const [rows, columns] = [4096, 1024]
const x: Input = [1, [rows, columns], 4]
const g: Input = [2, [rows, columns]]
const affine: Input[] = [
  [3, [columns]],
  [4, [columns]],
]
const normed: Fn = (x, w, b) => layerNorm(x, [columns], w, b)

/** Bound by memory: arrays that are read and written, and instructions per element at least. */
const streaming = (fn: Fn, inputs: Input[], arrays: number, instructions: number): Prepared => {
  const size = rows * columns
  const gradient = inputs.includes(g)
  return operator({
    inputs,
    fn,
    ...(gradient && { gradient: 'alone' }),
    // The gradients of weights and biases are sums over all rows.
    part: (x) => (x.rank === 2 && inputs.length !== 4 ? x.narrow(0, 2001, 50) : x),
    work: { bytes: 4 * size * arrays, flops: 2 * instructions * size },
  })
}

/** Convolution of square images: samples, channels, size → filters, size of the windows, stride, padding. */
type Convolution = readonly [
  n: number,
  c: number,
  size: number,
  o: number,
  k: number,
  stride: number,
  padding: number,
]

function convolution([n, c, size, o, k, stride, padding]: Convolution, gradient: boolean): Prepared {
  const to = Math.floor((size + 2 * padding - k) / stride) + 1
  return operator({
    inputs: [
      [1, [n, c, size, size]],
      [2, [o, c, k, k], 1 / Math.sqrt(c * k * k)],
      [3, [o]],
      ...(gradient ? [[4, [n, o, to, to]] as const] : []),
    ],
    fn: (x, w, b) => conv2d(x, w, b, { stride, padding }),
    // Gradients of filters are sums over all samples.
    ...(gradient
      ? { gradient: 'after forward' as const }
      : { part: (x: Tensor, i: number) => (i === 0 ? x.narrow(0, 3, 1) : x) }),
    work: { flops: (gradient ? 6 : 2) * n * o * to * to * c * k * k },
  })
}

/** Over a batch of 32 images of 64 channels, 32 × 32. */
const images: readonly number[] = [32, 64, 32, 32]
const imageBytes = 4 * 32 * 64 * 32 * 32

function normalised(gradient: boolean): Prepared {
  const state = (x: Tensor): Tensor => zeros([x.shape[1]], { dtype: x.dtype, device: x.backend })
  const affine: readonly Input[] = [
    [3, [64]],
    [4, [64]],
  ]
  return operator({
    inputs: [[1, images], ...affine, ...(gradient ? [[2, images] as const] : [])],
    fn: (x, w, b) => batchNorm(x, state(x), state(x), w, b, { training: true }),
    ...(gradient && { gradient: 'after forward' }),
    part: (x) => x.narrow(x.rank === 1 ? 0 : 1, 5, 2),
    // Reads x for its statistics, and x again; writes y; and the same for the gradients, of two arrays.
    work: { bytes: (gradient ? 8 : 3) * imageBytes },
  })
}

const pooled = (): Prepared =>
  operator({
    inputs: [
      [1, images],
      [2, [32, 64, 16, 16]],
    ],
    fn: (x) => maxPool2d(x, 2),
    gradient: 'after forward',
    part: (x) => x.narrow(0, 3, 1),
    work: { bytes: 3.5 * imageBytes },
  })

function adamw(): Prepared {
  const n = 10_000_000
  const [p, g] = [uniform(1, n), uniform(2, n)]
  const { lr, beta1, beta2, eps, decay } = training
  const param = parameter(tensor(p))
  param.grad = tensor(g)
  const optimizer = new AdamW([param], { lr, betas: [beta1, beta2], eps, weightDecay: decay })
  optimizer.step()
  const values = pick(param)
  // After the first step the moments are the gradient and its square.
  const first = (i: number): number => p[i] * (1 - lr * decay) - (lr * g[i]) / (Math.abs(g[i]) + eps)
  agree(values, positions(n).map(first))
  // Reads the parameter, its gradient and two moments; writes all but the gradient.
  return { run: () => optimizer.step(), values: () => values, work: { bytes: 4 * n * 7 } }
}

/** A training step from the peers' initial values; it returns the loss. On the default backend. */
export function gptStep(
  size: GPTSize,
  dtype: 'float32' | 'float64' = 'float32',
  wrap = <F extends (...args: Tensor[]) => Tensor>(fn: F): F => fn,
  mixed: 'float16' | 'bfloat16' | null = null,
): () => Tensor {
  const { layers, heads, width, block, vocab, batch } = size
  const { lr, beta1, beta2, eps, decay, clip } = training
  const sizes = { numLayers: layers, numHeads: heads, embedDim: width, blockSize: block, vocabSize: vocab }
  const model = new GPT({ ...sizes, bias: false }).to(dtype)
  const state = model.stateDict()
  scope(() => {
    for (const { name, shape, data } of gptParameters(size)) state[name].detach().copy_(tensor(data, shape))
  })
  const optimizer = new AdamW(decayGroups(model, decay), { lr, betas: [beta1, beta2], eps })
  const parameters = model.parameters()
  const data = gptBatch(size)
  const [tokens, targets] = [data.tokens, data.targets].map((ids) => tensor(ids, [batch, block]))
  const scaler = mixed === 'float16' ? new GradScaler() : null
  const step = wrap((x: Tensor, y: Tensor) => {
    const { loss } = mixed ? autocast(mixed, () => model.forward(x, y)) : model.forward(x, y)
    if (scaler) {
      scaler.scale(loss).backward()
      scaler.unscale(optimizer)
    } else loss.backward()
    clipGradNorm(parameters, clip)
    if (scaler) {
      scaler.step(optimizer)
      scaler.update()
    } else optimizer.step()
    optimizer.zeroGrad()
    return loss
  })
  return () => scope(() => step(tokens, targets))
}

/** The same step, recorded and replayed. */
export const compiledStep = (size: GPTSize): (() => Tensor) =>
  gptStep(size, 'float32', (fn) => compile(fn) as unknown as typeof fn)

/** The step in mixed precision. */
export const mixedStep =
  (dtype: 'float16' | 'bfloat16') =>
  (size: GPTSize): (() => Tensor) =>
    gptStep(size, 'float32', (fn) => fn, dtype)
export const compiledMixedStep =
  (dtype: 'float16' | 'bfloat16') =>
  (size: GPTSize): (() => Tensor) =>
    gptStep(size, 'float32', (fn) => compile(fn) as unknown as typeof fn, dtype)

function training3(
  name: 'training step A' | 'training step B',
  make: (size: GPTSize) => () => Tensor = gptStep,
): Prepared {
  const losses = (step: () => Tensor): number[] => [1, 2, 3].map(() => scope(() => step().itemSync()))
  agree(
    losses(make(gpts.tiny)),
    withBackend(reference, () => losses(gptStep(gpts.tiny, 'float64'))),
  )
  const { layers, width: c, block: t, vocab, batch } = gpts[name]
  // Per token: 12 C² multiply-adds in a block's projections, attention over half of T keys, the head. The backward
  // pass has twice as many, in attention five products for two.
  const projections = 2 * (12 * c * c * layers + c * vocab)
  const step = make(gpts[name])
  const work = { flops: batch * t * (3 * projections + 7 * t * c * layers) }
  return { run: () => step().dispose(), values: () => losses(step), work }
}

/** Output and the gradients of inputs and parameters of a recurrent layer, forward and backward, all steps at once. */
function recurrent(name: RecurrentName): Prepared {
  const { kind, input, hidden, batch, steps } = recurrences[name]
  const gates = kind === 'LSTM' ? 4 : 3
  const gradients = (batch: number, steps: number, wide: boolean): (() => Tensor[]) => {
    const layer = kind === 'LSTM' ? new LSTM(input, hidden) : new GRU(input, hidden)
    if (wide) layer.to('float64')
    const parameters = layer.parameters()
    const bound = 1 / Math.sqrt(hidden)
    scope(() => {
      for (const [i, p] of parameters.entries())
        p.detach().copy_(tensor(array([10 + i, p.shape, bound]), p.shape))
    })
    const [x, g] = [array([1, [steps, batch, input]]), array([2, [steps, batch, hidden]])].map((data, i) =>
      tensor(wide ? Float64Array.from(data) : data, [steps, batch, i === 0 ? input : hidden]),
    )
    x.requiresGrad = true
    return () => grad(layer.forward(x)[0], [x, ...parameters], { gradOutputs: [g] })
  }
  // A part of the batch and of the steps: parameters have gradients of all of them.
  const expected = withBackend(reference, () => gradients(3, 5, true)().map((d) => d.dataSync()))
  gradients(3, 5, false)().forEach((d, i) => agree(d.dataSync(), expected[i]))
  const run = gradients(batch, steps, false)
  return {
    run: () => scope(() => void run()),
    values: () => scope(() => run().flatMap(pick)),
    work: { flops: 6 * steps * batch * gates * hidden * (input + hidden) },
  }
}

/** An operator on numbers so few that only its overhead counts, recorded, in a scope. */
function tiny(shapes: readonly (readonly number[])[], fn: Fn, backward = false): Prepared {
  const inputs = shapes.map((shape, i) => tensor(array([i + 1, shape]), shape, { requiresGrad: true }))
  const count = 100
  const values = () => scope(() => pick(fn(...inputs)))
  const once = backward ? () => void grad(fn(...inputs).sum(), inputs) : () => void fn(...inputs)
  const run = (): void =>
    scope(() => {
      for (let i = 0; i < count; i++) once()
    })
  return { run, values, count }
}
const square = [4, 4]

/** Half as slow again as PyTorch with two threads on the machine of the README, and near the floor. */
const near = (torchMs: number): Target => ({ share: 0.7, ms: 1.5 * torchMs })
const sizes = [1, 2, 4, 8, 16]

const convolutions: readonly (readonly [name: string, Convolution])[] = [
  ['conv 3→64', [32, 3, 32, 64, 3, 1, 1]],
  ['conv 64→128', [32, 64, 16, 128, 3, 1, 1]],
  ['conv patches', [8, 3, 224, 384, 16, 16, 0]],
]
/** Twice PyTorch's time is what convolutions may take: it has vectors of 512 bits for them, here 256 are the most. */
const twice = (): Target => ({ peers: { torch: 2 } })

export const workloads: readonly Workload[] = [
  ['gemm 1024', (wide) => ({ share: wide ? 0.75 : 0.85 }), () => gemm(1024, 1024, 1024)],
  ...sizes.map(
    (m): Workload => [`gemm M=${m} cached`, () => ({ share: 0.5 }), () => gemm(m, 512, 512, gemmWork(m))],
  ),
  ...sizes.map((m): Workload => [`gemm M=${m} from memory`, () => ({ share: 0.5 }), () => gemmFromMemory(m)]),
  ['attention forward', (wide) => (wide ? { ms: 12 } : {}), () => attention(1024, false)],
  ['attention forward + backward', (wide) => (wide ? { ms: 45 } : {}), () => attention(1024, true)],
  ['linear attention T=4096', () => ({ ms: 14 }), () => linear(4096)],
  ['linear attention T=65536', () => ({ ms: 200 }), () => linear(65536)],
  ['GELU forward', () => near(1.3), () => streaming((x) => gelu(x), [x], 2, 21)],
  ['GELU backward', () => ({ share: 0.7 }), () => streaming((x) => gelu(x), [x, g], 3, 38)],
  ['softmax forward', () => near(1.1), () => streaming((x) => softmax(x, -1), [x], 2, 17)],
  ['softmax backward', () => ({ share: 0.7 }), () => streaming((x) => softmax(x, -1), [x, g], 3, 3)],
  ['layer norm forward', () => near(1.8), () => streaming(normed, [x, ...affine], 2, 5)],
  ['layer norm backward', () => ({ share: 0.7 }), () => streaming(normed, [x, ...affine, g], 3, 9)],
  ...convolutions.flatMap(([name, sizes]): Workload[] => [
    [`${name} forward`, twice, () => convolution(sizes, false)],
    [`${name} forward + backward`, twice, () => convolution(sizes, true)],
  ]),
  ['batch norm forward', twice, () => normalised(false)],
  ['batch norm forward + backward', twice, () => normalised(true)],
  ['max pool forward + backward', twice, pooled],
  ['AdamW 10M', () => ({ share: 0.7 }), adamw],
  [
    'training step A',
    (wide) => {
      const factor = wide ? 1 : 1.6
      return { ms: factor * 38.7, peers: { torch: factor, 'jax-js': 1 / 4, tfjs: 1 / 12 } }
    },
    () => training3('training step A'),
  ],
  [
    'training step B',
    (wide) => ({ ms: (wide ? 1.1 : 1.9) * 1480, peers: { torch: wide ? 1.1 : 1.9 } }),
    () => training3('training step B'),
  ],
  [
    'training step A, compiled',
    () => ({ peers: { torch: 1 } }),
    () => training3('training step A', compiledStep),
  ],
  [
    'training step B, compiled',
    () => ({ peers: { torch: 1 } }),
    () => training3('training step B', compiledStep),
  ],
  ...(Object.keys(recurrences) as RecurrentName[]).map(
    (name): Workload => [
      name,
      // PyTorch's LSTM is of instructions of 512 bits.
      (wide) => ({ peers: { torch: wide || recurrences[name].kind === 'GRU' ? 2 : 4 } }),
      () => recurrent(name),
    ],
  ),
  ['tiny add', () => ({ ms: 0.003 }), () => tiny([[16], [16]], (a, b) => a.add(b))],
  ['tiny matmul', () => ({ ms: 0.003 }), () => tiny([square, square], matmul)],
  [
    'tiny layer norm',
    () => ({ ms: 0.003 }),
    () => tiny([square, [4], [4]], (x, w, b) => layerNorm(x, [4], w, b)),
  ],
  ['tiny softmax + backward', () => ({}), () => tiny([square], (x) => softmax(x, -1), true)],
]
