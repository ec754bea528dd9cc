/**
 * Fused linear attention with φ = elu + 1, relu, exp or the identity (Katharopoulos et al. 2020), forward and backward, in time and
 * memory linear in T. One product computes all of it, once forward and once per gradient: see
 * `linear-attention/product.ts`. Saved for the backward pass besides the output: n = Σⱼ φ(q) · φ(kⱼ) + ε.
 *
 * Takes float32 operands with any strides, D and Dv up to 256. Results are the same bits on any number of
 * threads.
 *
 * LADDER.md beside this file has the steps on the way here. Today, causal, B1 H8 T4096 D64 on one core of a Zen 4, forward
 * and backward: 23.1 and 71 ms on Node 20, 14.4 and 46 on Node 24 revectorized; chunks of 32 rows then took 6 and 7 % less.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention.test.ts.
 */

import {
  type FeatureMap,
  featureMaps,
  type GradientAttrs,
  type LinearAttentionAttrs,
  type View,
} from '@tilegrad/core'
import { align64, type Engine, type KernelFactory } from '../../engine.ts'
import { type Tile, tileFor } from '../matmul/micro.ts'
import { chunk, type Pass, type Product, productParams } from './operands.ts'
import { buildPrefix, buildProduct, padded, productScratch } from './product.ts'

/** The largest head that the states in scratch memory are meant for. */
export const maxWidth = 256

const fits = ([q, , v]: readonly View[], { featureMap }: LinearAttentionAttrs): boolean =>
  featureMap in featureMaps && [q.shape[3], v.shape[3]].every((n) => n >= 1 && n <= maxWidth)

/** The tensors of a product, and what does not depend on their sizes. */
export interface Tensors {
  readonly y: View
  readonly out?: View
  readonly dout?: View
  readonly decay?: View
  readonly norm?: View
  readonly eps?: number
}

interface Sizes {
  /** B · H. */
  readonly heads: number
  /** Rows of x, and of k and v. */
  readonly rows: number
  readonly keys: number
  readonly inner: number
  readonly outer: number
}

export function compute(
  engine: Engine,
  [q, k, v]: readonly View[],
  tensors: Tensors,
  p: Product,
  feature: FeatureMap,
  s: Sizes,
): void {
  if (s.heads * s.rows === 0) return
  const tile = tileOf(tileFor(engine.features))
  const { threads } = engine.features
  const outerStep = 4 * padded(s.outer)
  const stateBytes = align64(s.inner * outerStep)
  const bytes = productScratch(s.inner, s.outer)
  const [chunks, keyChunks] = [Math.ceil(s.rows / chunk), Math.ceil(s.keys / chunk)]
  const whole = s.heads % threads === 0 || s.heads >= 4 * threads || keyChunks < 4
  const scratch = engine.scratch(bytes)
  productParams.write(engine, {
    q,
    k,
    v,
    heads: q.shape[1],
    queries: q.shape[2],
    width: q.shape[3],
    valueWidth: v.shape[3],
    eps: tensors.eps ?? 0,
    normPtr: tensors.norm ? engine.address(tensors.norm) : 0,
    decay: tensors.decay,
    out: tensors.out,
    dout: tensors.dout,
    y: tensors.y,
    rows: s.rows,
    keys: s.keys,
    inner: s.inner,
    outer: s.outer,
    outerStep,
    stateBytes,
    keyChunks,
    scratch,
    scratchStep: align64(bytes),
    statesPtr: 0,
    totalsPtr: 0,
    chunks: 0,
  })
  const run = (pass: Pass, tasks: number): void => {
    const key = `linearAttention:${p.x},${p.k},${p.v}:${p.reach}:${p.finish}:${p.decay ?? false}:${feature}:${pass}:${name(tile)}`
    engine.launch(
      engine.kernel(key, (m) => buildProduct(m, tile, p, pass, feature)),
      tasks,
      1,
    )
  }
  if (whole) {
    run('whole', s.heads)
    return
  }
  const all = s.heads * keyChunks * stateBytes
  const states = engine.memory.alloc(all + (p.decay ? 4 * s.heads * keyChunks : 0))
  try {
    productParams.set(engine, { statesPtr: states, totalsPtr: states + all, chunks: keyChunks })
    run('states', s.heads * keyChunks)
    const decay = p.decay ?? false
    const prefix = engine.kernel(`linearAttention:prefix:${p.reach}:${decay}`, (m) =>
      buildPrefix(m, p.reach, decay),
    )
    engine.launch(prefix, (s.heads * stateBytes) / 64, 16)
    productParams.set(engine, { chunks })
    run('outputs', s.heads * chunks)
  } finally {
    engine.memory.free(states)
  }
}

/** 16 rows of a triangle are no multiple of 6: 4×16 is faster than 6×16 here. */
const tileOf = (tile: Tile): Tile => (tile.rows === 6 && tile.vectors === 4 ? { ...tile, rows: 4 } : tile)

const name = (tile: Tile): string => `${tile.rows}x${tile.vectors}`

export const linearAttention: KernelFactory<LinearAttentionAttrs> = (engine) => ({
  dtypes: [['float32']],
  supports: fits,
  run([out, norm], inputs, attrs) {
    const [q, k, v] = inputs
    compute(
      engine,
      inputs,
      { y: out, norm, eps: attrs.eps },
      { x: 'phiQ', k: 'phiK', v: 'values', reach: attrs.causal ? 'past' : 'all', finish: 'normalise' },
      attrs.featureMap,
      {
        heads: q.shape[0] * q.shape[1],
        rows: q.shape[2],
        keys: k.shape[2],
        inner: q.shape[3],
        outer: v.shape[3] + 1,
      },
    )
  },
})

export const linearAttentionBackward: KernelFactory<GradientAttrs<LinearAttentionAttrs>> = (engine) => ({
  dtypes: [['float32']],
  supports: fits,
  run(outputs, inputs, attrs) {
    const [q, k, v, out, norm, dout] = inputs
    const heads = q.shape[0] * q.shape[1]
    const [t, s, d, dv] = [q.shape[2], k.shape[2], q.shape[3], v.shape[3]]
    const [past, future] = attrs.causal ? (['past', 'future'] as const) : (['all', 'all'] as const)
    let next = 0
    const gradient = (i: number, p: Product, sizes: Omit<Sizes, 'heads'>): void => {
      if (!attrs.needs[i]) return
      const tensors = { y: outputs[next++], out, dout, norm }
      compute(engine, inputs, tensors, p, attrs.featureMap, { heads, ...sizes })
    }
    gradient(
      0,
      { x: 'gradients', k: 'values', v: 'phiK', reach: past, finish: 'phiQ' },
      { rows: t, keys: s, inner: dv + 1, outer: d },
    )
    gradient(
      1,
      { x: 'values', k: 'gradients', v: 'phiQ', reach: future, finish: 'phiK' },
      { rows: s, keys: t, inner: dv + 1, outer: d },
    )
    gradient(
      2,
      { x: 'phiK', k: 'phiQ', v: 'outGradients', reach: future, finish: 'none' },
      { rows: s, keys: t, inner: d, outer: dv },
    )
  },
})
