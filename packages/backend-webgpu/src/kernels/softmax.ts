/**
 * Softmax and log-softmax along a dense last dim, and their gradients. Rows that fit are held in registers: one read
 * and one write. Longer ones are read twice: once for the largest element m and Σ exp(x − m) together, where every lane
 * shifts its sum as its m grows, and once for the result.
 *
 * softmax: exp(x − m) / sum; log_softmax: (x − m) − ln sum. A row with NaN or +∞, or of −∞ alone, is all NaN, as in
 * PyTorch; tests of bits say so, since WGSL need not know NaN and infinities. Gradients, with Σ along the row:
 * dx = y (dy − Σ y dy); dx = dy − exp(y) Σ dy.
 *
 * Reference: `SOFTMAX`, `LOG_SOFTMAX` in core's ops/reduction.ts. Test: softmax.test.ts.
 */

import type { DimAttrs, DType, GradientAttrs, KernelOf, View } from '@tilegrad/core'
import { denseFrom } from '@tilegrad/core/kernel'
import type { Engine } from '../commands/queue.ts'
import { bufferOf } from '../device/buffers.ts'
import { block, u32, type ValuesOf } from '../wgsl/block.ts'
import type { Shader } from '../wgsl/shader.ts'
import {
  along,
  each,
  enablesOf,
  hold,
  itemOfWidth,
  laneCode,
  larger,
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
} from './rows.ts'

/** Whether the kernels take these views: dense along the last dim, none of them empty. */
const fits = (views: readonly View[], dim: number): boolean =>
  views.every((v) => denseFrom(dim, v) && v.shape.length === dim + 1 && v.shape.every((n) => n > 0)) &&
  views.every((v) => v.dtype === views[0].dtype) &&
  takesWidth(views[0].shape[dim], dim, views)

/** All operands of one of these. */
const rowDtypes = [['float32', 'float16', 'bfloat16']] as const

const forward =
  (log: boolean) =>
  (engine: Engine): KernelOf<DimAttrs> => ({
    dtypes: rowDtypes,
    supports: (inputs, { dim }) => fits(inputs, dim),
    run([y], [x], { dim }) {
      run(engine, log ? 'log_softmax' : 'softmax', dim, [x], y, 8, (t, walk) =>
        forwardShader(t, walk, log, x.dtype),
      )
    },
  })

const backward =
  (log: boolean) =>
  (engine: Engine): KernelOf<GradientAttrs<DimAttrs>> => ({
    dtypes: rowDtypes,
    supports: ([, y, dy], { dim }) => fits([y, dy], dim),
    run([dx], [, y, dy], { dim }) {
      const name = log ? 'log_softmaxBackward' : 'softmaxBackward'
      run(engine, name, dim, [y, dy], dx, 4, (t, walk) => backwardShader(t, walk, log, dx.dtype))
    },
  })

export const softmax = forward(false)
export const softmaxBackward = backward(false)
export const logSoftmax = forward(true)
export const logSoftmaxBackward = backward(true)

function run(
  engine: Engine,
  name: string,
  dim: number,
  inputs: readonly View[],
  output: View,
  most: number,
  shader: (t: Tiling, walk: RowWalk) => Shader<Params>,
): void {
  const views = [...inputs, output]
  const n = output.shape[dim]
  const t = tilingOf(engine, n, widthOf(n, dim, views), most)
  const walk = rowWalk(dim, views)
  const kernel = engine.kernel(`${name}:${output.dtype}${tilingKey(t)}:${walk.rank}`, name, () =>
    shader(t, walk),
  )
  const values = { rows: walk.rows, vectors: n / t.width, walk }
  engine.run(kernel, views.map(bufferOf), values, rowGrid(t, walk.rows))
}

const params = (walk: RowWalk) => block({ rows: u32, vectors: u32, walk: along(walk) })
type Params = ValuesOf<typeof params>

export const statisticsCode = (t: Tiling): string =>
  `${reduction(t, 'group_max', 'f32', larger)}
${reduction(t, 'group_sum', 'f32', plus)}
${
  t.width === 4
    ? 'fn shift(m: V) -> V { return select(m, V(), bitcast<U>(m) == U(0xff800000u)); }'
    : 'fn shift(m: f32) -> f32 { return select(m, 0.0, bitcast<u32>(m) == 0xff800000u); }'
}`

/** `value` if the row has a softmax, else NaN. */
export const ifValid = (value: string): string => `select(tg_bits(0x7fc00000u), ${value}, valid)`

/**
 * Statements that define `largest`, `total`, the row's Σ exp(x − largest), and whether they are `valid`. With `keep`
 * the exponentials take x's place in registers.
 */
export function statistics(t: Tiling, x: Stream, keep: boolean): string {
  const end = 'let valid = finite(largest);'
  if (t.held > 0)
    return `var top = V(tg_bits(0xff800000u));
${each(t, [x], ({ of }) => `top = vmax(top, ${of(x.name)});`)}
let largest = group_max(hmax(top), li);
var part = V();
${each(t, [x], ({ of }) => `let e = exp(${of(x.name)} - largest); part += e; ${keep ? `${of(x.name)} = e;` : ''}`)}
let total = group_sum(hsum(part), li);
${end}`
  // What is shifted by −∞ would be NaN: `shift` makes that 0.
  return `var top = V(tg_bits(0xff800000u));
var part = V();
${scoped(
  each(
    t,
    [x],
    ({ of }) =>
      `let m = vmax(top, ${of(x.name)}); let z = shift(m); part = part * exp(top - z) + exp(${of(x.name)} - z); top = m;`,
  ),
)}
let largest = group_max(hmax(top), li);
let total = group_sum(hsum(part * exp(top - ${t.width === 4 ? 'shift(V(largest))' : 'shift(largest)'})), li);
${end}`
}

function forwardShader(t: Tiling, walk: RowWalk, log: boolean, dtype: DType): Shader<Params> {
  const x: Stream = { name: 'x', binding: 'x', base: startOf(t.width, 0), dtype }
  const item = itemOfWidth(t.width, dtype)
  const result = (x: string): string =>
    log ? `(${x} - largest) - logarithm` : t.held > 0 ? `${x} * scale` : `exp(${x} - largest) * scale`
  return {
    params: params(walk),
    bindings: [
      { name: 'x', item },
      { name: 'y', item, write: true },
    ],
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}\n${packedCode([dtype])}\n${statisticsCode(t)}`,
    body: `${laneCode(t)}
${rowCode(t)}
${walk.code('row')}
${hold(t, [x])}
${statistics(t, x, !log)}
${log ? `let logarithm = ${ifValid('log(total)')};` : `let scale = ${ifValid('1.0 / total')};`}
if (!live) { return; }
${each(t, [x], ({ of, j }) => `y[${startOf(t.width, 1)} + ${j}] = ${stored(dtype, result(of('x')))};`)}`,
  }
}

function backwardShader(t: Tiling, walk: RowWalk, log: boolean, dtype: DType): Shader<Params> {
  const y: Stream = { name: 'y', binding: 'y', base: startOf(t.width, 0), dtype }
  const dy: Stream = { name: 'd', binding: 'dy', base: startOf(t.width, 1), dtype }
  const item = itemOfWidth(t.width, dtype)
  return {
    params: params(walk),
    bindings: [
      { name: 'y', item },
      { name: 'dy', item },
      { name: 'dx', item, write: true },
    ],
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}\n${packedCode([dtype])}\n${reduction(t, 'group_sum', 'f32', plus)}`,
    body: `${laneCode(t)}
${rowCode(t)}
${walk.code('row')}
${hold(t, [y, dy])}
var part = V();
${scoped(each(t, log ? [dy] : [y, dy], ({ of }) => `part += ${of('d')}${log ? '' : ` * ${of('y')}`};`))}
let sum = group_sum(hsum(part), li);
if (!live) { return; }
${each(t, [y, dy], ({ of, j }) => {
  const [v, d] = [of('y'), of('d')]
  return `dx[${startOf(t.width, 2)} + ${j}] = ${stored(dtype, log ? `${d} - exp(${v}) * sum` : `${v} * (${d} - sum)`)};`
})}`,
  }
}
