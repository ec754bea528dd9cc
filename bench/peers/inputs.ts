/** What every framework gets: the same numbers, sizes and positions to look at. The same functions stand in torch-peer.py. */

/** `n` numbers in [−scale, scale), exact in float32, that depend on nothing but their position and the seed. */
export function uniform(seed: number, n: number, scale = 1): Float32Array<ArrayBuffer> {
  const out = new Float32Array(n)
  for (let i = 0; i < n; i++) out[i] = (hash(seed, i) / 2 ** 23 - 1) * scale
  return out
}

/** `n` whole numbers in [0, high). */
export const integers = (seed: number, n: number, high: number): Int32Array<ArrayBuffer> =>
  Int32Array.from({ length: n }, (_, i) => hash(seed, i) % high)

/** 24 bits. */
function hash(seed: number, i: number): number {
  let h = Math.imul(i, 0x9e3779b1) + Math.imul(seed, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d)
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b)
  return ((h ^ (h >>> 16)) >>> 8) & 0xffffff
}

/** Positions of an array of n elements whose values are compared. */
export const positions = (n: number): number[] =>
  Array.from({ length: 16 }, (_, j) => (j * 1000003 + 7919) % n)

/** Trained with AdamW: learning rate, β₁, β₂, ε, weight decay (of matrices only), norm that gradients are clipped to. */
export const training = { lr: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1, clip: 1 }

export interface GPTSize {
  readonly layers: number
  readonly heads: number
  readonly width: number
  readonly batch: number
  readonly block: number
  readonly vocab: number
}

/** The two training steps, and a tiny one for checking. */
export const gpts: Readonly<Record<'training step A' | 'training step B' | 'tiny', GPTSize>> = {
  'training step A': { layers: 4, heads: 4, width: 128, batch: 12, block: 64, vocab: 65 },
  'training step B': { layers: 6, heads: 6, width: 384, batch: 16, block: 256, vocab: 65 },
  tiny: { layers: 2, heads: 2, width: 32, batch: 2, block: 16, vocab: 65 },
}

export type RecurrentName = `${'LSTM' | 'GRU'}${'' | ' of characters'}`
/** Recurrent layers: sizes of the input and the state, sequences and their steps. */
export const recurrences: Readonly<
  Record<RecurrentName, { kind: 'LSTM' | 'GRU'; input: number; hidden: number; batch: number; steps: number }>
> = {
  LSTM: { kind: 'LSTM', input: 128, hidden: 256, batch: 32, steps: 128 },
  GRU: { kind: 'GRU', input: 128, hidden: 256, batch: 32, steps: 128 },
  'LSTM of characters': { kind: 'LSTM', input: 128, hidden: 128, batch: 16, steps: 64 },
  'GRU of characters': { kind: 'GRU', input: 128, hidden: 128, batch: 16, steps: 64 },
}

/** Names (GPT-2's), shapes and values of a model's parameters; weights are (out, in), norms are ones. */
export function gptParameters({ layers, width, block, vocab }: GPTSize) {
  const residual = 0.02 / Math.sqrt(2 * layers)
  const blocks = Array.from({ length: layers }, (_, i) => [
    { name: `h.${i}.ln_1.weight`, shape: [width], std: 0 },
    { name: `h.${i}.attn.c_attn.weight`, shape: [3 * width, width], std: 0.02 },
    { name: `h.${i}.attn.c_proj.weight`, shape: [width, width], std: residual },
    { name: `h.${i}.ln_2.weight`, shape: [width], std: 0 },
    { name: `h.${i}.mlp.c_fc.weight`, shape: [4 * width, width], std: 0.02 },
    { name: `h.${i}.mlp.c_proj.weight`, shape: [width, 4 * width], std: residual },
  ])
  const list = [
    { name: 'wte.weight', shape: [vocab, width], std: 0.02 },
    { name: 'wpe.weight', shape: [block, width], std: 0.02 },
    ...blocks.flat(),
    { name: 'ln_f.weight', shape: [width], std: 0 },
  ]
  return list.map(({ name, shape, std }, i) => {
    const n = shape.reduce((p, d) => p * d, 1)
    const data = std === 0 ? new Float32Array(n).fill(1) : uniform(100 + i, n, std * Math.sqrt(3))
    return { name, shape, data }
  })
}

/** Tokens and targets of one batch, (batch, block). */
export const gptBatch = ({ batch, block, vocab }: GPTSize) => ({
  tokens: integers(1, batch * block, vocab),
  targets: integers(2, batch * block, vocab),
})
