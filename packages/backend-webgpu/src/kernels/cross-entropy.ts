/**
 * Cross-entropy of logits (N, C) with int32 classes (N), without weights or smoothing, and its gradient.
 *
 * Forward, per row, each logit read once: largest m and Σ exp(x − m), both kept for the gradient; loss =
 * (m − x[target]) + ln sum. One workgroup then counts the targets and adds the rows' losses. Backward: (exp(x − m) / sum −
 * [c = target]) · scale in one pass; no softmax is kept. Rows whose target is `ignoreIndex` have no gradient. The GPU cannot throw: a class out
 * of range counts as one of loss 0 and no gradient, as where `gather` reads 0.
 *
 * Reference: `CROSS_ENTROPY` in core's ops/loss.ts. Test: cross-entropy.test.ts.
 */

import type { CrossEntropyAttrs, DType, GradientAttrs, KernelOf, View } from '@tilegrad/core'
import { denseFrom, viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../commands/queue.ts'
import { bufferOf } from '../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../wgsl/block.ts'
import { itemOf, packingsOf, putItem } from '../wgsl/element.ts'
import { mathCode } from '../wgsl/math.ts'
import type { Shader } from '../wgsl/shader.ts'
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
  startOf,
  storeAt,
  subgroupOf,
  type Tiling,
  tilingKey,
  tilingOf,
  vectorCode,
  widthOf,
} from './rows.ts'
import { ifValid, statistics, statisticsCode } from './softmax.ts'

const dtypes = [['float32', 'float16', 'bfloat16'], ['int32'], ['float32']] as const

const fits = (inputs: readonly View[], { labelSmoothing }: CrossEntropyAttrs): boolean => {
  const [logits] = inputs
  return (
    labelSmoothing === 0 &&
    denseFrom(1, logits) &&
    logits.shape.length === 2 &&
    logits.shape.every((n) => n > 0)
  )
}

export const crossEntropy = (engine: Engine): KernelOf<CrossEntropyAttrs> => ({
  dtypes,
  wide: true,
  supports: (inputs, attrs) => inputs.length === 2 && fits(inputs, attrs),
  run(outputs, inputs, { ignoreIndex, reduction }) {
    const [loss, stats, count] = outputs
    const [logits, target] = inputs
    const [rows, n] = logits.shape
    const t = tilingOf(engine, n, widthOf(n, 1, [logits]), 8)
    const walk = rowWalk(1, [logits, target])
    const to = reduction === 'none' ? loss.dtype : 'float32'
    const each = reduction === 'none' ? bufferOf(loss) : engine.pool.alloc(rows, 'float32')
    const kernel = engine.kernel(`cross_entropy:${logits.dtype}${to}${tilingKey(t)}`, 'cross_entropy', () =>
      forwardShader(t, walk, logits.dtype, to),
    )
    const buffers = [bufferOf(logits), bufferOf(target), bufferOf(stats), each]
    const values = { rows, vectors: n / t.width, n, ignored: ignoreIndex, walk }
    engine.run(kernel, buffers, values, rowGrid(t, rows))
    if (reduction === 'none') return
    const mean = reduction === 'mean'
    const finish = engine.kernel(`cross_entropy.finish:${mean}${loss.dtype}`, 'cross_entropy', () =>
      finishShader(mean, subgroupOf(engine), loss.dtype),
    )
    const labels = { rows, ignored: ignoreIndex, o: target.offset, s: target.strides[0] }
    engine.run(finish, [bufferOf(target), each, bufferOf(loss), bufferOf(count)], labels, [1])
    engine.pool.free(each)
  },
})

const params = (walk: RowWalk) => block({ rows: u32, vectors: u32, n: u32, ignored: i32, walk: along(walk) })
type Params = ValuesOf<typeof params>

function forwardShader(t: Tiling, walk: RowWalk, dtype: DType, to: DType): Shader<Params> {
  const x: Stream = { name: 'x', binding: 'x', base: startOf(t.width, 0), dtype }
  const hit = (at: string): string =>
    t.width === 4
      ? `${loadOf({ ...x, base: '0u' }, `(${at} >> 2u)`)}[${at} & 3u]`
      : loadOf({ ...x, base: '0u' }, at, 1)
  return {
    params: params(walk),
    bindings: [
      { name: 'x', item: itemOfWidth(t.width, dtype) },
      { name: 'labels', item: 'i32' },
      { name: 'stats', item: 'f32', write: true },
      { name: 'losses', item: itemOf(to, true), write: true },
    ],
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}\n${packedCode([dtype, to])}\n${statisticsCode(t)}`,
    body: `${laneCode(t)}
${rowCode(t)}
${walk.code('row')}
${hold(t, [x])}
${statistics(t, x, false)}
if (!live || lane != 0u) { return; }
let logarithm = ${ifValid('log(total)')};
let label = labels[at1];
stats[row] = largest;
stats[p.rows + row] = ${ifValid('total')};
var loss = 0.0;
if (label != p.ignored && u32(label) < p.n) {
  let hit = at0 + u32(label);
  loss = (largest - ${hit('hit')}) + logarithm;
}
${putItem(to, 'losses', 'i32(row)', 'loss')}`,
  }
}

const finishParams = block({ rows: u32, ignored: i32, o: i32, s: i32 })

/** Counts the targets and adds the losses, in one workgroup. */
function finishShader(mean: boolean, subgroup: number, to: DType): Shader<ValuesOf<typeof finishParams>> {
  const all = { lanes: 256, subgroup }
  return {
    params: finishParams,
    bindings: [
      { name: 'labels', item: 'i32' },
      { name: 'losses', item: 'f32' },
      { name: 'loss', item: itemOf(to, true), write: true },
      { name: 'count', item: 'f32', write: true },
    ],
    workgroup: [256],
    ...enablesOf(all),
    declarations: `${mathCode(['tg_bits', ...packingsOf([], [to])])}\n${reduction(all, 'group_sum', 'vec2f', plus)}`,
    // In runs of 32 rows: one after the other, millions of losses would be rounded as often.
    body: `var part = vec2f();
var i = li;
for (; i < p.rows;) {
  var run = vec2f();
  let end = min(p.rows, i + ${32 * 256}u);
  for (; i < end; i += 256u) {
    run += vec2f(losses[i], select(0.0, 1.0, labels[p.o + i32(i) * p.s] != p.ignored));
  }
  part += run;
}
let sum = group_sum(part, li);
if (li == 0u) {
  count[0] = sum.y;
  ${putItem(to, 'loss', '0', mean ? 'select(sum.x / sum.y, tg_bits(0x7fc00000u), sum.y == 0.0)' : 'sum.x')}
}`,
  }
}

export const crossEntropyBackward = (engine: Engine): KernelOf<GradientAttrs<CrossEntropyAttrs>> => ({
  dtypes,
  supports: (inputs, attrs) => inputs.length === 6 && fits(inputs, attrs) && attrs.needs[0] === true,
  run(outputs, inputs, { ignoreIndex, reduction }) {
    const [dlogits] = outputs
    const [logits, target, , stats, count, dloss] = inputs
    const [rows, n] = logits.shape
    const grads = reduction === 'none' ? dloss : viewOf(dloss, [rows], [0])
    const t = tilingOf(engine, n, widthOf(n, 1, [logits]), 8)
    const walk = rowWalk(1, [logits, target, grads, dlogits])
    const mean = reduction === 'mean'
    const kernel = engine.kernel(
      `cross_entropyBackward:${logits.dtype}${tilingKey(t)}:${mean}`,
      'cross_entropyBackward',
      () => backwardShader(t, walk, mean, logits.dtype),
    )
    const buffers = [logits, target, stats, count, dloss, dlogits].map(bufferOf)
    const values = { rows, vectors: n / t.width, n, ignored: ignoreIndex, walk }
    engine.run(kernel, buffers, values, rowGrid(t, rows))
  },
})

function backwardShader(t: Tiling, walk: RowWalk, mean: boolean, dtype: DType): Shader<Params> {
  const x: Stream = { name: 'x', binding: 'x', base: startOf(t.width, 0), dtype }
  return {
    params: params(walk),
    bindings: [
      { name: 'x', item: itemOfWidth(t.width, dtype) },
      { name: 'labels', item: 'i32' },
      { name: 'stats', item: 'f32' },
      { name: 'count', item: 'f32' },
      { name: 'dloss', item: 'f32' },
      { name: 'dx', item: itemOfWidth(t.width, dtype, true), write: true },
    ],
    workgroup: [256],
    declarations: `${vectorCode(t.width)}\n${packedCode([dtype])}`,
    body: `${laneCode(t)}
${rowCode(t)}
if (!live) { return; }
${walk.code('row')}
${hold(t, [x])}
let label = labels[at1];
let counts = label != p.ignored && u32(label) < p.n;
let largest = stats[row];
let share = 1.0 / stats[p.rows + row];
let scale = dloss[at2]${mean ? ' / count[0]' : ''};
${each(t, [x], ({ of, j }) => {
  const column = t.width === 4 ? `(vec4(4u * ${j}) + vec4(0u, 1u, 2u, 3u))` : j
  return `let e = exp(${of('x')} - largest) * share;
let d = select(e, e - 1.0, ${column} == U(u32(label))) * scale;
${storeAt(t.width, dtype, 'dx', `${startOf(t.width, 3)} + ${j}`, 'select(V(), d, counts)')}`
})}`,
  }
}
