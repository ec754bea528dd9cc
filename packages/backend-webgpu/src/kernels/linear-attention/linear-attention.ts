/**
 * Fused linear attention (Katharopoulos et al. 2020), forward and backward, in time and memory linear in T, deterministic
 * and without atomics. One product computes all of it, once forward and once per gradient:
 *
 *   Yᵢ = Σⱼ (xᵢ · kⱼ) vⱼ     over j ≤ i ('past'), j ≥ i ('future') or all j ('all')
 *
 * | | x | k | v | over | then |
 * |---|---|---|---|---|---|
 * | [N, n − ε] | φ(Q) | φ(K) | [V, 1] | past | O = N / n |
 * | dφ(Q) | [dO, −δ] / n | [V, 1] | φ(K) | past | dQ = φ′(Q) ∘ dφ(Q) |
 * | dφ(K) | [V, 1] | [dO, −δ] / n | φ(Q) | future | dK = φ′(K) ∘ dφ(K) |
 * | dV | φ(K) | φ(Q) | dO / n | future | |
 *
 * with δ = rowsum(dO ∘ O), and φ elu + 1, relu, exp or the identity. The extra column is no column of the blocks: it is a vector beside each state, and a number
 * per row or column beside the scores. n, with ε in it, is saved for the backward pass.
 *
 * Three launches per product: states of chunks of 64 rows and of segments (`linear-attention/states.ts`), sums over
 * segments, and the rows of the result (`linear-attention/outputs.ts`). A chunk of n rows takes 2 D² multiply-adds per
 * row for the states and 2 n D for the scores, and moves a state of D² twice for n rows of 4 D: wider heads get longer
 * chunks.
 *
 * Gated linear attention (`linear-attention/gated.ts`) is this product without a normaliser, and with decays.
 *
 * Operands in float16 whose rows are vectors of eight are multiplied on subgroup matrices where the GPU has them
 * (`linear-attention/matrix-states.ts`, `matrix-outputs.ts`), with states in float32. Of a head of 64 a token costs 8 · 64² multiply-adds
 * forward with a state in two parts, 0.04 ms of matrices for 8 heads of 32,768 tokens at 290 TFLOP/s; 8 bytes per number of q move for operands
 * and result, 4 for k and v once more, and 8 for states: 0.09 ms at 3.9 TB/s. So memory is the floor, and two parts are cheap. On
 * one H200, causal: forward 0.37 ms, with the gradients 1.53, where float32 takes 3.19 and widened operands 3.53. `matrixRows` is the
 * tile.
 *
 * Takes float32 operands with any strides, D and Dv up to 128. 131,072 tokens, H 8, D 64, causal, forward: 2.1 ms on one H100, where
 * its multiply-adds take 1.7.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention.test.ts.
 */

import type { GradientAttrs, KernelOf, LinearAttentionAttrs, View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { isVectors } from '../attention/blocks.ts'
import { isEights, matricesFor } from '../attention/matrix-blocks.ts'
import { grid } from '../layout.ts'
import {
  depth,
  type Form,
  formName,
  type Kind,
  needsStat,
  productOf,
  type Result,
  type Tile,
  threads,
} from './blocks.ts'
import { type MatrixForm, matrixFormName, matrixRows } from './matrix-blocks.ts'
import {
  matrixOutputsBytes,
  matrixOutputsShader,
  matrixStatRows,
  matrixStatShader,
} from './matrix-outputs.ts'
import { matrixStatesShader } from './matrix-states.ts'
import { outputsBytes, outputsShader, rowsOf, statRows, statShader } from './outputs.ts'
import { chunkFadesShader, fadesShader, segmentsShader, statesShader } from './states.ts'

export const maxWidth = 128

const fits = (inputs: readonly View[]): boolean => {
  const [q, , v] = inputs
  return (
    (inputs.length === 3 || inputs.length === 6) &&
    [q.shape[3], v.shape[3]].every((n) => n >= 1 && n <= maxWidth)
  )
}

/** Operands are all float32, or all float16 and for subgroup matrices; `own`: what is float32 in any case. */
function takesDtypes(engine: Engine, operands: readonly View[], own: readonly View[] = []): boolean {
  if (!own.every(({ dtype }) => dtype === 'float32')) return false
  if (operands.every(({ dtype }) => dtype === 'float32')) return true
  const largest = { kind: 'mean', result: 'q', feature: 'elu', reach: 'past', local: true } as const
  const sizes = { blockI: 64, blockO: 64, inner: 128 } as const
  return (
    operands.every((x) => x.dtype === 'float16' && isEights(x)) &&
    matricesFor(engine) !== null &&
    matrixOutputsBytes({ ...largest, ...sizes }) <= engine.gpu.limits.maxComputeWorkgroupStorageSize
  )
}

const dtypesOf = ({ gpu }: Engine): NonNullable<KernelOf<object>['dtypes']> => [
  gpu.matrices ? ['float32', 'float16'] : ['float32'],
]

/** The tiles, the best first; the second is for 16 KiB of workgroup memory. */
const tiles: readonly Tile[] = [
  { tm: 8, tc: 8, unroll: 4 },
  { tm: 8, tc: 4, unroll: 4 },
]
/** The tile for SwiftShader, which takes a minute to compile the others. */
const softwareTile: Tile = { tm: 4, tc: 4, unroll: 1 }

/** Rows of the shortest chunk: a multiple of every tile's rows. */
const chunkRows = 64
/** The most segments of a head: one thread adds them up. */
const maxSegments = 256

export interface Call {
  readonly kind: Kind
  /** log α of every row, if they fade. */
  readonly decay?: View
  readonly result: Result
  readonly x: View
  readonly k: View
  readonly v: View
  /** The operand that φ′ is taken of. */
  readonly factor?: View
  /** 1 / n and −δ / n of every query. */
  readonly stat?: GpuBuffer
  readonly y: View
  readonly norm?: View
}

export function compute(engine: Engine, call: Call, attrs: LinearAttentionAttrs, tile?: Tile): void {
  const { causal, eps, featureMap = 'elu' } = attrs
  const { kind, decay, result, x, k, v, factor, stat, y, norm } = call
  const [b, h, rows, inner] = x.shape
  const keys = k.shape[2]
  const outer = v.shape[3]
  const heads = b * h
  if (heads * rows === 0) return
  const { maxComputeWorkgroupStorageSize: memory, maxStorageBufferBindingSize: largest } = engine.gpu.limits

  const [blockI, blockO] = [inner, outer].map((n) => (n <= 32 ? 32 : 64)) as [32 | 64, 32 | 64]
  const [blocksI, blocksO] = [Math.ceil(inner / blockI), Math.ceil(outer / blockO)]
  const has = x.dtype === 'float16' ? matricesFor(engine) : null
  const innerPad = has ? blocksI * blockI : 16 * Math.ceil(inner / 16)
  const outer4 = (blocksO * blockO) / 4
  const { extra } = productOf({ kind, result })
  const stateSize = innerPad * outer4 + (extra === 'norm' ? innerPad / 4 : extra === 'none' ? 0 : outer4)

  // Enough workgroups to fill a GPU; then the fewer segments the better.
  const enough = engine.gpu.isSoftware ? 16 : 2048
  let length = chunkRows * (inner * outer > 64 * 64 ? 2 : 1)
  let chunks: number
  let perSegment: number
  let segments: number
  let local: boolean
  let total: number
  for (; ; length *= 2) {
    chunks = Math.ceil(keys / length)
    const most = Math.floor((heads * chunks * blocksI * blocksO) / enough)
    perSegment = Math.max(1, Math.ceil(chunks / maxSegments), most)
    segments = Math.max(1, Math.ceil(chunks / perSegment))
    local = causal && perSegment > 1
    total = heads * (segments + (local ? chunks : 0)) * stateSize
    if (16 * total <= largest || chunks <= 1) break
  }
  const states = engine.pool.alloc(4 * total, 'float32')

  const views = [x, k, v, ...(factor ? [factor] : [])]
  const form: Omit<Form, 'tile'> = {
    kind,
    result,
    feature: featureMap,
    reach: !causal ? 'all' : result === 'k' || result === 'v' ? 'future' : 'past',
    local,
    vectors: views.every(isVectors),
    blockI,
    blockO,
  }
  const fits = tiles.find((t) => outputsBytes({ ...form, tile: t }) <= memory) ?? (tiles.at(-1) as Tile)
  const whole: Form = { ...form, tile: tile ?? (engine.gpu.isSoftware ? softwareTile : fits) }
  const op = kind === 'mean' ? 'linear_attention' : 'gated_linear_attention'
  const name = `${op}${result === 'out' ? '' : 'Backward'}`

  const planOf = (count: number) => ({
    ...{ count, blocksI, blocksO, heads: h, rows, keys, inner, outer },
    ...{ chunkRows: length, segmentChunks: perSegment, chunks, segments },
    ...{ innerPad, outer4, stateSize, segmentsAt: local ? heads * chunks * stateSize : 0 },
    ...{ depth, eps, chunkFadeAt: heads * keys, segmentFadeAt: heads * (keys + chunks) },
  })

  const all = causal ? [x, k, v] : [x]
  const of = stat && needsStat(whole) ? [stat] : []
  if (decay) {
    const fade = engine.pool.alloc(4 * heads * (keys + chunks + segments), 'float32')
    of.push(fade)
    const fades = engine.kernel('linearAttentionFades', name, fadesShader)
    let count = heads * chunks
    engine.run(
      fades,
      [bufferOf(decay), fade],
      { plan: planOf(count), decay },
      grid(Math.ceil(count / threads)),
    )
    const chunkFades = engine.kernel(`linearAttentionChunkFades:${form.reach}`, name, () =>
      chunkFadesShader(form.reach),
    )
    count = heads * segments
    engine.run(chunkFades, [fade], { plan: planOf(count) }, grid(Math.ceil(count / threads)))
  }
  const halves: MatrixForm = {
    ...{ kind, result, feature: featureMap, reach: form.reach, local, blockI, blockO },
    inner: (blocksI * blockI) as 32 | 64 | 128,
  }
  let count = heads * segments * blocksI * blocksO
  const stateBuffers = [bufferOf(k), bufferOf(v), ...of, states]
  if (has) {
    const key = `linearAttentionMatrixStates:${matrixFormName(halves)}`
    const sums = engine.kernel(key, name, () => matrixStatesShader(halves, has))
    engine.run(sums, stateBuffers, { plan: planOf(count), k, v }, grid(count))
  } else {
    // The state's kernel does not depend on the tile.
    const stateKey = `linearAttentionStates:${formName({ ...form, tile: softwareTile })}`
    const sums = engine.kernel(stateKey, name, () => statesShader(whole))
    engine.run(sums, stateBuffers, { plan: planOf(count), k, v }, grid(count))
  }

  const segmentKey = `linearAttentionSegments:${form.reach}:${decay !== undefined}`
  const add = engine.kernel(segmentKey, name, () => segmentsShader(form))
  count = heads * stateSize
  engine.run(add, [states, ...(decay ? of : [])], { plan: planOf(count) }, grid(Math.ceil(count / threads)))

  count = heads * Math.ceil(rows / (has ? matrixRows : rowsOf(whole.tile))) * blocksO
  const buffers = [
    ...[...all, ...(factor ? [factor] : [])].map(bufferOf),
    ...[...of, states, bufferOf(y)],
    ...(norm ? [bufferOf(norm)] : []),
  ]
  const values = { plan: planOf(count), x, k, v, f: factor, yAt: y.offset, normAt: norm?.offset }
  if (has) {
    const finish = engine.kernel(`linearAttentionMatrix:${matrixFormName(halves)}`, name, () =>
      matrixOutputsShader(halves, has),
    )
    engine.run(finish, buffers, values, grid(count))
  } else {
    const finish = engine.kernel(`linearAttention:${formName(whole)}`, name, () => outputsShader(whole))
    engine.run(finish, buffers, values, grid(count))
  }
  engine.pool.free(states)
  if (decay) for (const fade of of) engine.pool.free(fade)
}

/** `tile`: instead of the best one for the GPU. */
export function linearAttention(engine: Engine, tile?: Tile): KernelOf<LinearAttentionAttrs> {
  return {
    dtypes: dtypesOf(engine),
    supports: (inputs) => fits(inputs) && takesDtypes(engine, inputs),
    run(outputs, inputs, attrs) {
      const [y, norm] = outputs
      const [q, k, v] = inputs
      compute(engine, { kind: 'mean', result: 'out', x: q, k, v, y, norm }, attrs, tile)
    },
  }
}

export function linearAttentionBackward(
  engine: Engine,
  tile?: Tile,
): KernelOf<GradientAttrs<LinearAttentionAttrs>> {
  return {
    dtypes: dtypesOf(engine),
    supports: (inputs) =>
      fits(inputs) && takesDtypes(engine, [...inputs.slice(0, 4), ...inputs.slice(5)], inputs.slice(4, 5)),
    run(outputs, inputs, attrs) {
      const [q, k, v, out, norm, dout] = inputs
      const [b, h, t, width] = out.shape
      const rows = b * h * t
      const stat = engine.pool.alloc(2 * rows, 'float32')
      if (rows > 0) {
        const name = 'linear_attentionBackward'
        const places = { g: dout, oAt: out.offset, normAt: norm.offset }
        const values = { rows, heads: h, queries: t, width, ...places }
        const buffers = [dout, out, norm].map(bufferOf).concat(stat)
        if (out.dtype === 'float16') {
          const kernel = engine.kernel('linearAttentionMatrixStat', name, matrixStatShader)
          engine.run(kernel, buffers, values, grid(Math.ceil(rows / matrixStatRows)))
        } else {
          const vectors = [out, dout].every(isVectors)
          const kernel = engine.kernel(`linearAttentionStat:${vectors}`, name, () => statShader(vectors))
          engine.run(kernel, buffers, values, grid(Math.ceil(rows / statRows)))
        }
      }
      const [needQ, needK, needV] = attrs.needs
      const rest = [...outputs]
      const next = (): View => rest.shift() as View
      const run = (call: Omit<Call, 'kind' | 'stat' | 'y'>): void =>
        compute(engine, { kind: 'mean', ...call, stat, y: next() }, attrs, tile)
      if (needQ) run({ result: 'q', x: dout, k: v, v: k, factor: q })
      if (needK) run({ result: 'k', x: v, k: dout, v: q, factor: k })
      if (needV) run({ result: 'v', x: k, k: q, v: dout })
      engine.pool.free(stat)
    },
  }
}
