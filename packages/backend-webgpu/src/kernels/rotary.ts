/**
 * Rotary position embedding: a thread turns four pairs of elements (one, where vectors do not fit) by its row's cosines
 * and sines, which heads and batches share; others copy what is not turned. The gradient is the same with the sines'
 * sign turned.
 *
 * Reference: `ROTARY` in core's ops/attention/rotary.ts. Test: rotary.test.ts.
 */

import { type KernelOf, layout, type RotaryAttrs, type View } from '@tilegrad/core'
import { denseFrom, viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../commands/queue.ts'
import { bufferOf } from '../device/buffers.ts'
import { block, u32, type ValuesOf } from '../wgsl/block.ts'
import type { Shader } from '../wgsl/shader.ts'
import { grid } from './layout.ts'
import { along, itemOfWidth, type RowWalk, rowWalk, startOf, widthOf } from './rows.ts'

const workgroup = 256

/** A view as if it had the leading dims of another one. */
function spread(view: View, rows: readonly number[]): View {
  const { shape, strides } = layout.expandLayout('rotary_embedding', view, [
    ...rows,
    view.shape.at(-1) as number,
  ])
  return viewOf(view, shape, strides)
}

const denseRow = (v: View): boolean => denseFrom(v.shape.length - 1, v)

export const rotaryEmbedding = (engine: Engine): KernelOf<RotaryAttrs> => ({
  dtypes: [['float32']],
  supports: (inputs) => {
    const [x, cos] = inputs
    return inputs.every(denseRow) && cos.shape.at(-1) !== 0 && layout.numel(x.shape) > 0
  },
  run([out], inputs, { interleaved, inverse }) {
    const [x, cos, sin] = inputs
    const y = out
    const lead = x.shape.length - 1
    const rows = x.shape.slice(0, lead)
    const [d, half] = [x.shape[lead], cos.shape.at(-1) as number]
    const views = [x, spread(cos, rows), spread(sin, rows), y] as const
    const width = Math.min(widthOf(d, lead, [x, y]), widthOf(half, lead, views.slice(1, 3))) as 4 | 1
    const walk = rowWalk(lead, views)
    const key = `rotary:${width}:${walk.rank}:${interleaved}:${inverse}`
    const kernel = engine.kernel(key, 'rotary_embedding', () => shader(width, walk, interleaved, inverse))
    const units = (d - half) / width
    const count = walk.rows * units
    const buffers = [x, cos, sin, y].map(bufferOf)
    const values = { count, units, half: half / width, walk }
    engine.run(kernel, buffers, values, grid(Math.ceil(count / workgroup)))
  },
})

const params = (walk: RowWalk) => block({ count: u32, units: u32, half: u32, walk: along(walk) })

function shader(
  width: 4 | 1,
  walk: RowWalk,
  interleaved: boolean,
  inverse: boolean,
): Shader<ValuesOf<typeof params>> {
  const item = itemOfWidth(width)
  const [x, cos, sin, y] = [0, 1, 2, 3].map((i) => startOf(width, i))
  const [plus, minus] = inverse ? ['-', '+'] : ['+', '-']
  const pairs = interleaved
    ? { first: '2u * u', second: '2u * u + 1u' }
    : { first: 'u', second: 'p.half + u' }
  const mixed = interleaved && width === 4
  return {
    params: params(walk),
    bindings: [
      { name: 'x', item },
      { name: 'cosines', item },
      { name: 'sines', item },
      { name: 'y', item, write: true },
    ],
    workgroup: [workgroup],
    body: `let i = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (i >= p.count) { return; }
let u = i % p.units;
${walk.code('i / p.units')}
if (u >= p.half) {
  y[${y} + p.half + u] = x[${x} + p.half + u];
  return;
}
let v0 = x[${x} + ${pairs.first}];
let v1 = x[${x} + ${pairs.second}];
let a = ${mixed ? 'vec4(v0.xz, v1.xz)' : 'v0'};
let b = ${mixed ? 'vec4(v0.yw, v1.yw)' : 'v1'};
let c = cosines[${cos} + u];
let s = sines[${sin} + u];
let first = a * c ${minus} b * s;
let second = b * c ${plus} a * s;
y[${y} + ${pairs.first}] = ${mixed ? 'vec4(first.x, second.x, first.y, second.y)' : 'first'};
y[${y} + ${pairs.second}] = ${mixed ? 'vec4(first.z, second.z, first.w, second.w)' : 'second'};`,
  }
}
