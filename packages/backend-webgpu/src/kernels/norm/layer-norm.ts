/**
 * Layer norm and RMS norm over dense trailing dims.
 *
 * Per row: mean, counted from the row's first element, so that a row of one value has no rounding; Σ(x − mean)² in a second
 * pass, so that nothing cancels, and Σ(x − mean) with it, which takes back the rounding of the mean; y. Rows that fit are held in registers and read once, longer ones are read for every pass. The
 * statistics are kept for the gradients, which norm/backward.ts computes. RMS norm is the same without the mean.
 *
 * Reference: `LAYER_NORM`, `RMS_NORM` in core's ops/norm.ts. Test: norm.test.ts.
 */

import {
  type DType,
  type GradientAttrs,
  type KernelOf,
  type LayerNormAttrs,
  layout,
  type View,
} from '@tilegrad/core'
import { denseFrom, leadOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, f32, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import {
  along,
  each,
  enablesOf,
  hold,
  itemOfWidth,
  laneCode,
  loadOf,
  packedCode,
  plus,
  type RowWalk,
  reduction,
  rowCode,
  rowGrid,
  rowWalk,
  type Stream,
  scoped,
  startOf,
  stored,
  type Tiling,
  takesWidth,
  tilingKey,
  tilingOf,
  vectorCode,
  widthOf,
} from '../rows.ts'
import { runBackward } from './backward.ts'

/**
 * So few rows leave a GPU idle, as one token that is decoded does: their parameters are under way while the statistics are
 * computed. With many rows it would only take registers.
 */
const fewRows = 64

type Affine = 'none' | 'weight' | 'both'
const parameters = { none: 0, weight: 1, both: 2 } as const

/** x and what comes from `grads` on have dense rows; parameters, `count` of them after x, are dense. */
function fits(
  inputs: readonly View[],
  count: number,
  size: number,
  grads = Number.POSITIVE_INFINITY,
): boolean {
  for (let i = 0; i < inputs.length; i++) {
    const v = inputs[i]
    if (i === 0 && layout.numel(v.shape) === 0) return false
    if ((i === 0 || i >= grads) && !denseFrom(leadOf(v, size), v)) return false
    if (i > 0 && i <= count && !denseFrom(0, v)) return false
  }
  return true
}

const forward =
  (centred: boolean) =>
  (engine: Engine): KernelOf<LayerNormAttrs> => ({
    dtypes: [['float32', 'float16', 'bfloat16']],
    supports: (inputs, { size }) =>
      fits(inputs, inputs.length - 1, size) &&
      takesWidth(size, leadOf(inputs[0], size), inputs.slice(0, 1)) &&
      takesWidth(size, 0, inputs.slice(1)),
    run([y, ...stats], [x, ...weights], { size, eps, affine }) {
      const views = [x, y]
      const lead = leadOf(views[0], size)
      const width = Math.min(widthOf(size, lead, views), widthOf(size, 0, weights)) as 4 | 1
      const t = tilingOf(engine, size, width, 8)
      const walk = rowWalk(lead, views)
      const name = centred ? 'layer_norm' : 'rms_norm'
      const early = affine !== 'none' && t.held > 0 && walk.rows <= fewRows
      const dtypes = [x, ...weights].map(({ dtype }) => dtype)
      const key = `${name}:${tilingKey(t)}:${walk.rank}:${affine}${early ? ':early' : ''}${dtypes}`
      const kernel = engine.kernel(key, name, () => forwardShader(t, walk, centred, affine, early, dtypes))
      const [ow, ob] = [0, 1].map((i) => (weights[i]?.offset ?? 0) / width)
      const values = { rows: walk.rows, vectors: size / width, ow, ob, share: 1 / size, eps, walk }
      const buffers = [...views, ...stats, ...weights].map(bufferOf)
      engine.run(kernel, buffers, values, rowGrid(t, walk.rows))
    },
  })

const backward =
  (centred: boolean) =>
  (engine: Engine): KernelOf<GradientAttrs<LayerNormAttrs>> => ({
    adds: true,
    dtypes: [['float32']],
    supports: (inputs, { size, affine, adds }) =>
      fits(inputs, parameters[affine], size, inputs.length - (adds ? 2 : 1)),
    run(outputs, inputs, { size, affine, needs, adds }) {
      const count = parameters[affine]
      const weight = count > 0 ? inputs[1] : undefined
      // After x, the parameters and y: the statistics, then dy.
      const last = inputs.length - (adds ? 2 : 1)
      const stats = inputs.slice(count + 2, last)
      const [x, dy] = [inputs[0], inputs[last]]
      const rest = adds ? inputs[last + 1] : undefined
      let next = 0
      const [dx, dweight, dbias] = [0, 1, 2].map((i) => (needs[i] ? outputs[next++] : undefined))
      runBackward(engine, { centred, size, x, dy, rest, weight, stats, dx, dweight, dbias })
    },
  })

export const layerNorm = forward(true)
export const layerNormBackward = backward(true)
export const rmsNorm = forward(false)
export const rmsNormBackward = backward(false)

const params = (walk: RowWalk) =>
  block({ rows: u32, vectors: u32, ow: u32, ob: u32, share: f32, eps: f32, walk: along(walk) })

/** `early`: parameters are read before they are needed. */
function forwardShader(
  t: Tiling,
  walk: RowWalk,
  centred: boolean,
  affine: Affine,
  early: boolean,
  dtypes: readonly DType[],
): Shader<ValuesOf<typeof params>> {
  const [own, ofWeight = own, ofBias = own] = dtypes
  const item = itemOfWidth(t.width, own)
  const x: Stream = { name: 'x', binding: 'x', base: startOf(t.width, 0), dtype: own }
  const w: Stream = { name: 'w', binding: 'w', base: 'p.ow', dtype: ofWeight }
  const b: Stream = { name: 'b', binding: 'b', base: 'p.ob', dtype: ofBias }
  const used = affine === 'none' ? [] : affine === 'weight' ? [w] : [w, b]
  const squares = `var squares = V();
${centred ? 'var rest = V();' : ''}
${scoped(
  each(t, [x], ({ of }) =>
    centred
      ? `let d = ${of('x')} - rough; rest += d; squares += d * d;`
      : `squares += ${of('x')} * ${of('x')};`,
  ),
)}`
  const statistics = centred
    ? `var part = V();
let first = ${loadOf(x, '0u')}${t.width === 4 ? '.x' : ''};
${scoped(each(t, [x], ({ of }) => `part += ${of('x')} - first;`))}
let rough = first + group_sum(hsum(part), li) * p.share;
${squares}
let moments = group_pair(vec2f(hsum(squares), hsum(rest)), li) * p.share;
let rstd = 1.0 / sqrt((moments.x - moments.y * moments.y) + p.eps);
if (live && lane == 0u) { means[row] = rough + moments.y; rstds[row] = rstd; }`
    : `${squares}
let rstd = 1.0 / sqrt(group_sum(hsum(squares), li) * p.share + p.eps);
if (live && lane == 0u) { rstds[row] = rstd; }`
  return {
    params: params(walk),
    bindings: [
      { name: 'x', item },
      { name: 'y', item, write: true },
      ...(centred ? [{ name: 'means', item: 'f32', write: true } as const] : []),
      { name: 'rstds', item: 'f32', write: true },
      ...(affine !== 'none' ? [{ name: 'w', item: itemOfWidth(t.width, ofWeight) }] : []),
      ...(affine === 'both' ? [{ name: 'b', item: itemOfWidth(t.width, ofBias) }] : []),
    ],
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}
${packedCode(dtypes)}
${reduction(t, 'group_sum', 'f32', plus)}
${centred ? reduction(t, 'group_pair', 'vec2f', plus) : ''}`,
    body: `${laneCode(t)}
${rowCode(t)}
${walk.code('row')}
${hold(t, early ? [x, ...used] : [x])}
${statistics}
if (!live) { return; }
${each(t, [x], ({ of, j }) => {
  const parameter = (stream: Stream): string => (early ? of(stream.name) : loadOf(stream, j))
  const normal = centred ? `((${of('x')} - rough) - moments.y) * rstd` : `${of('x')} * rstd`
  const weighted = affine === 'none' ? normal : `${normal} * ${parameter(w)}`
  const result = affine === 'both' ? `${weighted} + ${parameter(b)}` : weighted
  return `y[${startOf(t.width, 1)} + ${j}] = ${stored(own, result)};`
})}`,
  }
}
