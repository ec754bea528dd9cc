/**
 * Position of the first largest or smallest along a dim; NaN wins. Threads of a workgroup share out each row, four loads
 * under way each, and combine pairs of value and position in a tree; of equal values the one that comes first wins, so any
 * order is right. A few long rows, as the logits of a token that is decoded, are cut into parts, whose pairs a second
 * pass combines.
 *
 * Reference: `argReduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { type DType, isFloat, layout, type Primitives, type View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
import { elementOf } from '../../wgsl/element.ts'
import { mathCode } from '../../wgsl/math.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { type Lanes, laneCode, neighbour, shareOut, workgroup } from '../lanes.ts'
import { grid, nestOf, otherDims, pickDims, walk, walkFunction, walkOf } from '../layout.ts'

/** Workgroups that no GPU is too large for: fewer than so many long rows are cut. */
const fewGroups = 64
/** Elements of a thread that are worth a second pass, and those that a thread of a part has at least. */
const manyEach = 32
const fewestEach = 8

export function argReduce(engine: Engine): Primitives['argReduce'] {
  return { run: ([out], [x], { kind, dim }) => argReduceInto(engine, out, x, kind, dim) }
}

/** `positions`: of the elements of x, which has their layout; otherwise they are their numbers along `dim`. */
function argReduceInto(
  engine: Engine,
  out: View,
  x: View,
  kind: Extreme,
  dim: number,
  positions?: GpuBuffer,
): void {
  const kept = pickDims(x, otherDims(x, dim))
  const rows = layout.numel(kept.shape)
  const length = x.shape[dim] ?? 1
  const step = x.strides[dim] ?? 1
  if (rows === 0) return
  const nest = nestOf(kept.shape, [kept])
  const how = shareOut(kept, [step], length, 8)
  const groups = Math.ceil(rows / (workgroup / how.lanes))
  let parts = 1
  if (length >= how.lanes * manyEach)
    while (parts * groups < fewGroups && length >= 2 * parts * how.lanes * fewestEach) parts *= 2
  const chunk = how.lanes * Math.ceil(length / (parts * how.lanes))
  parts = Math.ceil(length / chunk)

  const form: Form = {
    ...{ kind, dtype: x.dtype, how, rank: nest.sizes.length },
    values: parts > 1,
    positions: positions !== undefined,
  }
  const key = `argReduce ${kind} ${x.dtype} ${how.lanes} ${how.across} ${form.rank} ${form.values} ${form.positions}`
  const kernel = engine.kernel(key, `arg${kind}`, () => shader(form))
  const y0 = parts === 1 ? out.offset : 0
  const values = { rows, length, chunk, y0, x0: x.offset, step, outer: walkOf(nest, 0) }
  const source = [bufferOf(x), ...(positions ? [positions] : [])]
  if (parts === 1) {
    engine.run(kernel, [bufferOf(out), ...source], values, grid(groups))
    return
  }
  const found = engine.pool.alloc(parts * rows, 'int32')
  const extremes = engine.pool.alloc(parts * rows, x.dtype)
  engine.run(kernel, [found, ...source, extremes], values, [...grid(groups), parts])
  const best: View = {
    ...{ buffer: extremes, dtype: x.dtype, offset: 0 },
    shape: [parts, rows],
    strides: [rows, 1],
  }
  argReduceInto(engine, out, best, kind, 0, found)
  engine.pool.free(found)
  engine.pool.free(extremes)
}

type Extreme = 'max' | 'min'

/** All that the code depends on. */
interface Form {
  readonly kind: Extreme
  readonly dtype: DType
  readonly how: Lanes
  readonly rank: number
  /** The extremes themselves are kept, too. */
  readonly values: boolean
  /** Positions come from a buffer. */
  readonly positions: boolean
}

/** Loads of a thread that are under way together. */
const ahead = 4

const params = (rank: number) =>
  block({ rows: u32, length: u32, chunk: u32, y0: i32, x0: i32, step: i32, outer: walk(rank) })

function shader({ kind, dtype, how, rank, values, positions }: Form): Shader<ValuesOf<typeof params>> {
  const { item } = elementOf(dtype)
  const better = kind === 'max' ? 'v > a' : 'v < a'
  const nan = isFloat(dtype) ? ['tg_isnan(v)', 'tg_isnan(a)'] : ['false', 'false']
  const under = Array.from({ length: ahead }, (_, k) => k)
  const lines = [
    laneCode(how),
    'let base = p.x0 + outer(select(0u, row, row < p.rows));',
    'var at = none;',
    'var a = x[base];',
    'let first = wg.z * p.chunk;',
    'let end = min(first + p.chunk, p.length);',
    `for (var i = first + lane; i < end; i += ${ahead * how.lanes}u) {`,
    ...under.flatMap((k) => [
      `let n${k} = i + ${k * how.lanes}u;`,
      `let from${k} = base + i32(min(n${k}, end - 1u)) * p.step;`,
      `let v${k} = x[from${k}];`,
      `let i${k} = select(none, ${positions ? `u32(positions[from${k}])` : `n${k}`}, n${k} < end);`,
    ]),
    ...under.map((k) => `if (wins(v${k}, i${k}, a, at)) { a = v${k}; at = i${k}; }`),
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
  lines.push(
    'if (lane == 0u && row < p.rows) {',
    'let to = wg.z * p.rows + row;',
    'y[u32(p.y0) + to] = i32(at);',
    ...(values ? ['values[to] = a;'] : []),
    '}',
  )
  return {
    params: params(rank),
    bindings: [
      { name: 'y', item: 'i32', write: true },
      { name: 'x', item },
      ...(positions ? [{ name: 'positions', item: 'i32' } as const] : []),
      ...(values ? [{ name: 'values', item, write: true }] : []),
    ],
    workgroup: [workgroup],
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
