/**
 * Position of the first largest or smallest along a dim; NaN wins. Threads of a workgroup share out each row and
 * combine pairs of value and position in a tree; of equal values the one that comes first wins, so any order is right.
 *
 * Reference: `argReduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { type DType, isFloat, layout, type Primitives, type View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import type { GpuBuffer } from '../../device/buffers.ts'
import { elementOf } from '../../wgsl/element.ts'
import { mathCode } from '../../wgsl/math.ts'
import { type Lanes, laneCode, neighbour, shareOut, workgroup } from '../lanes.ts'
import { grid, nestOf, otherDims, pickDims, walkFields, walkFunction, walkWords } from '../layout.ts'

export function argReduce(engine: Engine): Primitives['argReduce'] {
  return {
    run([out], [x], { kind, dim }) {
      const [y, source] = [out as View, x as View]
      const kept = pickDims(source, otherDims(source, dim))
      const rows = layout.numel(kept.shape)
      const length = source.shape[dim] ?? 1
      const step = source.strides[dim] ?? 1
      if (rows === 0) return
      const nest = nestOf(kept.shape, [kept])
      const how = shareOut(kept, [step], length, 8)
      const rank = nest.sizes.length
      const kernel = engine.kernel(
        `argReduce ${kind} ${source.dtype} ${how.lanes} ${how.across} ${rank}`,
        `arg${kind}`,
        () => shader(kind, source.dtype, how, rank),
      )
      const words = [rows, length, y.offset, source.offset, step, ...walkWords(nest, 0)]
      const [gx, gy] = grid(Math.ceil(rows / (workgroup / how.lanes)))
      engine.run(kernel, [y.buffer as GpuBuffer, source.buffer as GpuBuffer], words, gx, gy)
    },
  }
}

function shader(kind: 'max' | 'min', dtype: DType, how: Lanes, rank: number) {
  const { item } = elementOf(dtype)
  const better = kind === 'max' ? 'v > a' : 'v < a'
  const nan = isFloat(dtype) ? ['tg_isnan(v)', 'tg_isnan(a)'] : ['false', 'false']
  const lines = [
    laneCode(how),
    'let base = p.x0 + outer(select(0u, row, row < p.rows));',
    'var at = none;',
    `var a = x[base];`,
    `for (var i = lane; i < p.length; i += ${how.lanes}u) {`,
    'let v = x[base + i32(i) * p.step];',
    'if (wins(v, i, a, at)) { a = v; at = i; }',
    '}',
  ]
  if (how.lanes > 1) {
    lines.push('shared_a[li] = a;', 'shared_at[li] = at;')
    for (let by = how.lanes / 2; by >= 1; by /= 2) {
      lines.push(
        'workgroupBarrier();',
        `if (lane < ${by}u) {`,
        `let v = shared_a[li + ${neighbour(how, by)}u];`,
        `let i = shared_at[li + ${neighbour(how, by)}u];`,
        'if (wins(v, i, a, at)) { a = v; at = i; shared_a[li] = a; shared_at[li] = at; }',
        '}',
      )
    }
  }
  lines.push('if (lane == 0u && row < p.rows) { y[u32(p.y0) + row] = i32(at); }')
  return {
    params: ['rows: u32', 'length: u32', 'y0: i32', 'x0: i32', 'step: i32', ...walkFields('outer', rank)],
    bindings: [
      { name: 'y', item: 'i32' as const, write: true },
      { name: 'x', item },
    ],
    workgroup: [workgroup] as const,
    declarations: `${mathCode(isFloat(dtype) ? ['tg_isnan'] : [])}
const none = 0xffffffffu;
${how.lanes > 1 ? `var<workgroup> shared_a: array<${item}, ${workgroup}>;\nvar<workgroup> shared_at: array<u32, ${workgroup}>;` : ''}
fn wins(v: ${item}, i: u32, a: ${item}, at: u32) -> bool {
  if (i == none || at == none) { return at == none && i != none; }
  let vn = ${nan[0]};
  let an = ${nan[1]};
  if (vn || an) { return vn && (!an || i < at); }
  return ${better} || (v == a && i < at);
}
${walkFunction('outer', rank)}`,
    body: lines.join('\n'),
  }
}
