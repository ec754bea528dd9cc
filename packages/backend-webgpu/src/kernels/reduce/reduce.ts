/**
 * Sum, product, largest or smallest over some dims.
 *
 * Threads of a workgroup share out each row (all elements of one output), four running results each, and combine
 * theirs in a tree through workgroup memory; see lanes.ts for who reads what. Where that gives too few threads, rows
 * are cut into parts whose results are reduced in a second pass. Longer runs of a thread add up their runs of 32. Sums of
 * float32 are thus trees over runs of some tens of elements, and their order depends on shapes and strides only.
 *
 * Reference: `reduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { type DType, isFloat, layout, type Primitives, type Reduction, type View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
import { elements, itemAt, itemOf, type Lane, laneOf, packingsOf, putItem } from '../../wgsl/element.ts'
import { type MathName, mathCode } from '../../wgsl/math.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { type Lanes, laneCode, neighbour, shareOut, workgroup } from '../lanes.ts'
import { grid, nestOf, pickDims, walk, walkFunction, walkOf } from '../layout.ts'

/** The number of threads that keep a large GPU busy. */
const enoughThreads = 2 ** 17
/** Elements that a running result of a thread takes before it is added to those before. */
const run = 32
/** The elements below which no thread is worth starting; fewer once there is a second pass and most of a large GPU idles. */
const fewestEach = (parts: number, threads: number): number => (parts > 1 && threads < 2 ** 14 ? 8 : 32)

export function reduce(engine: Engine): Primitives['reduce'] {
  return { run: ([out], [x], { kind, dims }) => reduceInto(engine, out, x, kind, dims) }
}

/** `out` is contiguous and has an element for each of x's along the other dims. */
export function reduceInto(
  engine: Engine,
  out: View,
  x: View,
  kind: Reduction,
  dims: readonly number[],
): void {
  const kept = pickDims(
    x,
    x.shape.map((_, d) => d).filter((d) => !dims.includes(d)),
  )
  // In which order a row is taken does not matter: best as it lies in memory.
  const along = pickDims(
    x,
    [...dims].sort((a, b) => Math.abs(x.strides[b]) - Math.abs(x.strides[a])),
  )
  const rows = layout.numel(kept.shape)
  const length = layout.numel(along.shape)
  if (rows === 0) return
  const outer = nestOf(kept.shape, [kept])
  const inner = nestOf(along.shape, [along])
  const how = shareOut(
    kept,
    inner.strides.map(([s]) => s),
    length,
    8,
  )
  let parts = 1
  while (
    parts < 1024 &&
    parts * rows * how.lanes < enoughThreads &&
    length > 2 * parts * how.lanes * fewestEach(parts, parts * rows * how.lanes)
  )
    parts *= 2
  const chunk = how.lanes * Math.ceil(length / (parts * how.lanes))
  parts = Math.max(1, Math.ceil(length / Math.max(1, chunk)))

  const ranks = [outer.sizes.length, inner.sizes.length] as const
  // What is reduced again has not been rounded.
  const lane = laneOf(x.dtype)
  const to = parts === 1 ? out.dtype : lane
  const key = `reduce ${kind} ${x.dtype} ${to} ${how.lanes} ${how.across} ${ranks}`
  const kernel = engine.kernel(key, kind, () => shader(kind, x.dtype, to, how, ranks))
  const target = parts === 1 ? bufferOf(out) : engine.pool.alloc(parts * rows, lane)
  const [y0, x0] = [parts === 1 ? out.offset : 0, x.offset]
  const values = { rows, length, chunk, y0, x0, outer: walkOf(outer, 0), inner: walkOf(inner, 0) }
  const groups = grid(Math.ceil(rows / (workgroup / how.lanes)))
  engine.run(kernel, [target, bufferOf(x)], values, [...groups, parts])
  if (parts > 1) {
    const partial: View = {
      buffer: target,
      dtype: lane,
      shape: [parts, rows],
      strides: [rows, 1],
      offset: 0,
    }
    reduceInto(engine, out, partial, kind, [0])
    engine.pool.free(target)
  }
}

const params = ([outer, inner]: readonly [number, number]) =>
  block({ rows: u32, length: u32, chunk: u32, y0: i32, x0: i32, outer: walk(outer), inner: walk(inner) })

function shader(
  kind: Reduction,
  dtype: DType,
  to: DType,
  how: Lanes,
  ranks: readonly [number, number],
): Shader<ValuesOf<typeof params>> {
  const { item } = elements[laneOf(dtype)]
  const [start, combine, functions] = operation(kind, laneOf(dtype))
  const x = (at: string): string => itemAt(dtype, 'x', at)
  const lines = [
    laneCode(how),
    // What is beyond the last row reads the first one and writes nothing: all threads reach the barriers.
    'let base = p.x0 + outer(select(0u, row, row < p.rows));',
    'let first = wg.z * p.chunk;',
    'let end = min(first + p.chunk, p.length);',
    ...[0, 1, 2, 3].map((j) => `var a${j} = ${start};`),
    'var i = first + lane;',
    `for (; i + ${3 * how.lanes}u < end;) {`,
    ...[0, 1, 2, 3].map((j) => `var r${j} = ${start};`),
    `let stop = min(end, i + ${4 * run * how.lanes}u);`,
    `for (; i + ${3 * how.lanes}u < stop; i += ${4 * how.lanes}u) {`,
    ...[0, 1, 2, 3].map((j) => `r${j} = ${combine(`r${j}`, x(`base + inner(i + ${j * how.lanes}u)`))};`),
    '}',
    ...[0, 1, 2, 3].map((j) => `a${j} = ${combine(`a${j}`, `r${j}`)};`),
    '}',
    `for (; i < end; i += ${how.lanes}u) { a0 = ${combine('a0', x('base + inner(i)'))}; }`,
    `var a = ${combine(combine('a0', 'a1'), combine('a2', 'a3'))};`,
  ]
  if (how.lanes > 1) {
    lines.push('shared_a[li] = a;')
    for (let by = how.lanes / 2; by >= 1; by /= 2) {
      lines.push(
        'workgroupBarrier();',
        `if (lane < ${by}u) { a = ${combine('a', `shared_a[li + ${neighbour(how, by)}u]`)}; shared_a[li] = a; }`,
      )
    }
  }
  lines.push(
    `if (lane == 0u && row < p.rows) { ${putItem(to, 'y', 'p.y0 + i32(wg.z * p.rows + row)', 'a')} }`,
  )
  return {
    params: params(ranks),
    bindings: [
      { name: 'y', item: itemOf(to, true), write: true },
      { name: 'x', item: itemOf(dtype, false) },
    ],
    workgroup: [workgroup],
    declarations: `${mathCode([...functions, ...packingsOf([dtype], [to])])}
${how.lanes > 1 ? `var<workgroup> shared_a: array<${item}, ${workgroup}>;` : ''}
${walkFunction('outer', ranks[0])}
${walkFunction('inner', ranks[1])}`,
    body: lines.join('\n'),
  }
}

/** The items that largest and smallest elements are looked for from. */
const ends: Readonly<Record<Lane, Readonly<Record<'max' | 'min', string>>>> = {
  float32: { max: 'tg_bits(0xff800000u)', min: 'tg_bits(0x7f800000u)' },
  int32: { max: 'i32(-2147483648)', min: '2147483647i' },
  bool: { max: '0u', min: '1u' },
}

/** The code of a reduction's start and of its next step, and the functions that it calls. */
function operation(
  kind: Reduction,
  dtype: Lane,
): [start: string, combine: (a: string, b: string) => string, functions: MathName[]] {
  const { zero, one } = elements[dtype]
  if (kind === 'sum') return [zero, (a, b) => `(${a} + ${b})`, []]
  if (kind === 'prod') return [one, (a, b) => `(${a} * ${b})`, []]
  const start = ends[dtype][kind]
  return isFloat(dtype)
    ? [start, (a, b) => `tg_${kind}(${a}, ${b})`, [`tg_${kind}`, 'tg_bits']]
    : [start, (a, b) => `${kind}(${a}, ${b})`, []]
}
