/**
 * Running sums, running products, and h[i] = a[i]·h[i−1] + b[i], along any dim, forwards or backwards.
 *
 * All three are compositions of maps: a row is cut into runs of four elements per thread, whose maps are composed in
 * a tree through workgroup memory, block after block with a carry. Where rows are few and long they are cut into
 * chunks: a first pass finds each chunk's map, these are scanned in turn, and the second pass starts every chunk with
 * what comes before it. Rows too short to share take one thread each, in order.
 *
 * Reference: `scan` in core's reference/kernels.ts. Test: scan.test.ts.
 */

import { type DType, layout, type Primitives, type ScanAttrs, type View } from '@tilegrad/core'
import type { Engine } from '../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../device/buffers.ts'
import { block, type Part, several, u32, type ValuesOf, when } from '../wgsl/block.ts'
import { elementOf } from '../wgsl/element.ts'
import type { Binding, Shader } from '../wgsl/shader.ts'
import { type Lanes, laneCode, neighbour, shareOut, workgroup } from './lanes.ts'
import { grid, nestOf, otherDims, pickDims, type Walk, walkFields, walkFunction, walkOf } from './layout.ts'

type Kind = ScanAttrs['kind']

const run = 4
const enoughThreads = 2 ** 16

export function scan(engine: Engine): Primitives['scan'] {
  return { run: ([out], inputs, attrs) => scanInto(engine, out, inputs, attrs) }
}

function scanInto(engine: Engine, out: View, inputs: readonly View[], attrs: ScanAttrs): void {
  const { kind, dim } = attrs
  const x = inputs[0]
  const others = otherDims(out, dim)
  const rows = layout.numel(others.map((d) => out.shape[d]))
  const length = out.shape[dim] ?? 1
  if (rows === 0 || length === 0) return
  const kept = pickDims(x, others)
  const serial = length <= 16
  const how: Lanes = serial ? { lanes: 1, across: true } : shareOut(kept, [x.strides[dim] ?? 1], length, run)
  const atOnce = how.lanes * run
  const wanted = Math.floor(enoughThreads / (rows * how.lanes))
  // Chunks are worth their three passes only where each is several blocks long.
  const chunks = serial ? 1 : Math.max(1, Math.min(wanted, Math.floor(length / (4 * atOnce)), 1024))
  const chunk = atOnce * Math.ceil(length / (chunks * atOnce))
  const count = Math.ceil(length / chunk)
  if (count === 1) {
    pass(engine, [out], inputs, attrs, how, length, 1, 'whole')
    return
  }
  const { dtype } = out
  const maps = inputs.map(() => scratch(engine, rows, count, dtype))
  const carries = scratch(engine, rows, count, dtype)
  pass(engine, maps, inputs, attrs, how, chunk, count, 'totals')
  scanInto(engine, carries, maps, { kind, dim: 1, reverse: false })
  pass(engine, [out], [...inputs, carries], attrs, how, chunk, count, 'carried')
  for (const v of [...maps, carries]) engine.pool.free(bufferOf(v))
}

const scratch = (engine: Engine, rows: number, count: number, dtype: DType): View => ({
  buffer: engine.pool.alloc(rows * count, dtype),
  dtype,
  shape: [rows, count],
  strides: [count, 1],
  offset: 0,
})

type Pass = 'whole' | 'totals' | 'carried'

/** Scans of whole rows; the maps of chunks; or scans of chunks from what comes before (the last input). */
function pass(
  engine: Engine,
  outputs: readonly View[],
  inputs: readonly View[],
  { kind, dim, reverse }: ScanAttrs,
  how: Lanes,
  chunk: number,
  chunks: number,
  what: Pass,
): void {
  const terms = what === 'carried' ? inputs.slice(0, -1) : inputs
  const [x] = terms
  const y = what === 'totals' ? null : outputs[0]
  const [a, b] = kind === 'affine' ? terms : [null, x]
  const walked = [y, a, b].filter((v) => v !== null)
  const others = otherDims(x, dim)
  const rows = layout.numel(others.map((d) => x.shape[d]))
  const length = x.shape[dim] ?? 1
  const nest = nestOf(
    others.map((d) => x.shape[d]),
    walked.map((v) => pickDims(v, others)),
  )
  const rank = nest.sizes.length
  // The same tensor may be both inputs of an affine scan.
  const buffers: GpuBuffer[] = []
  const place = [...outputs, ...inputs].map((v) => {
    const at = buffers.indexOf(bufferOf(v))
    return at >= 0 ? at : buffers.push(bufferOf(v)) - 1
  })
  const key = `scan ${kind} ${x.dtype} ${what} ${how.lanes} ${how.across} ${rank} ${place}`
  const kernel = engine.kernel(key, kind === 'affine' ? 'scan' : `cum${kind}`, () =>
    shader(kind, x.dtype, what, how, rank, outputs.length, place),
  )
  const line = (v: View | null): Line | null => {
    if (!v) return null
    const step = v.strides[dim] ?? 0
    const start = v.offset + (reverse ? (length - 1) * step : 0)
    return { start, step: reverse ? -step : step, ...walkOf(nest, walked.indexOf(v)) }
  }
  const values = { rows, length, chunk, chunks, y: line(y), a: line(a), b: line(b) }
  const groups = grid(Math.ceil(rows / (workgroup / how.lanes)))
  engine.run(kernel, buffers, values, [...groups, chunks])
}

/** An operand's lines along the dim that is scanned: where the first one starts, and the way to others. */
interface Line extends Walk {
  readonly start: number
  readonly step: number
}
const lines = (rank: number): Part<Line> =>
  several(
    (name) => [`${name}_0: i32`, `${name}_step: i32`, ...walkFields(`${name}_at`, rank)],
    ({ start, step, sizes, strides }) => [start, step, ...sizes, ...strides],
  )

const params = (kind: Kind, what: Pass, rank: number) =>
  block({
    ...{ rows: u32, length: u32, chunk: u32, chunks: u32 },
    y: when(what !== 'totals', lines(rank)),
    a: when(kind === 'affine', lines(rank)),
    b: when(true, lines(rank)),
  })

function shader(
  kind: Kind,
  dtype: DType,
  what: Pass,
  how: Lanes,
  rank: number,
  outputs: number,
  place: readonly number[],
): Shader<ValuesOf<typeof params>> {
  const { item, zero, one } = elementOf(dtype)
  const affine = kind === 'affine'
  const start = kind === 'prod' ? one : zero
  const inputs = affine ? ['a', 'b'] : ['b']
  const walked = what === 'totals' ? inputs : ['y', ...inputs]
  const at = (name: string, i: string): string =>
    `m${place[name === 'y' ? 0 : outputs + inputs.indexOf(name)]}[${name}_row + i32(${i}) * p.${name}_step]`
  // A map h → a·h + b, or for sums and products b alone: what a step adds or multiplies.
  const after = (a: string, b: string, h: string): string =>
    affine ? `(${a} * ${h} + ${b})` : kind === 'sum' ? `(${h} + ${b})` : `(${h} * ${b})`
  const both = affine ? ['a', 'b'] : ['b']
  const { lanes } = how
  const code = [laneCode(how), 'let safe = select(0u, row, row < p.rows);']
  for (const name of walked) code.push(`let ${name}_row = p.${name}_0 + ${name}_at(safe);`)
  code.push('let first = wg.z * p.chunk;', 'let end = min(first + p.chunk, p.length);')
  const carry = `m${place.at(-1)}[safe * p.chunks + wg.z - 1u]`
  code.push(`var h = ${start};`)
  if (what === 'carried') code.push(`if (wg.z > 0u) { h = ${carry}; }`)
  if (affine) code.push('var all_a = 1.0;')
  code.push(`for (var block = first; block < end; block += ${lanes * run}u) {`)
  code.push(`let i = block + lane * ${run}u;`)
  // This thread's elements and the composition of their maps.
  if (affine) code.push(`var a = ${one};`)
  code.push(`var b = ${start};`)
  for (let j = 0; j < run; j++) {
    for (const name of both) {
      const nothing = name === 'a' ? one : start
      code.push(`var ${name}${j} = ${nothing};`)
    }
    code.push(
      `if (i + ${j}u < end) { ${both.map((name) => `${name}${j} = ${at(name, `(i + ${j}u)`)};`).join(' ')} }`,
      `b = ${after(`a${j}`, `b${j}`, 'b')};`,
    )
    if (affine) code.push(`a = a${j} * a;`)
  }
  // Inclusive over lanes; then what comes before this thread.
  if (lanes > 1) {
    for (const name of both) code.push(`shared_${name}[li] = ${name};`)
    code.push('workgroupBarrier();')
    for (let by = 1; by < lanes; by *= 2) {
      const from = `li - ${neighbour(how, by)}u`
      code.push(
        `if (lane >= ${by}u) {`,
        ...both.map((name) => `let before_${name} = shared_${name}[${from}];`),
        `b = ${after('a', 'b', 'before_b')};`,
        ...(affine ? ['a = a * before_a;'] : []),
        '}',
        'workgroupBarrier();',
        ...both.map((name) => `shared_${name}[li] = ${name};`),
        'workgroupBarrier();',
      )
    }
    const last = `li + (${lanes - 1}u - lane) * ${neighbour(how, 1)}u`
    if (what !== 'totals') {
      code.push(
        'var now = h;',
        'if (lane > 0u) {',
        ...both.map((name) => `let before_${name} = shared_${name}[li - ${neighbour(how, 1)}u];`),
        `now = ${after('before_a', 'before_b', 'h')};`,
        '}',
      )
    }
    code.push(
      ...both.map((name) => `let total_${name} = shared_${name}[${last}];`),
      `h = ${after('total_a', 'total_b', 'h')};`,
      ...(affine ? ['all_a = total_a * all_a;'] : []),
      'workgroupBarrier();',
    )
  } else {
    if (what !== 'totals') code.push('var now = h;')
    code.push(`h = ${after('a', 'b', 'h')};`)
    if (affine) code.push('all_a = a * all_a;')
  }
  if (what !== 'totals') {
    for (let j = 0; j < run; j++)
      code.push(
        `now = ${after(`a${j}`, `b${j}`, 'now')};`,
        `if (row < p.rows && i + ${j}u < end) { ${at('y', `(i + ${j}u)`)} = now; }`,
      )
    // In order, where one thread has the whole row.
    if (lanes === 1) code.push('h = now;')
  }
  code.push('}')
  if (what === 'totals') {
    const to = '[row * p.chunks + wg.z]'
    code.push(
      'if (lane == 0u && row < p.rows) {',
      affine ? `m${place[0]}${to} = all_a; m${place[1]}${to} = h;` : `m${place[0]}${to} = h;`,
      '}',
    )
  }
  const bindings = Array.from(
    { length: Math.max(...place) + 1 },
    (_, b): Binding => ({ name: `m${b}`, item, ...(place.indexOf(b) < outputs && { write: true }) }),
  )
  return {
    params: params(kind, what, rank),
    bindings,
    workgroup: [workgroup],
    declarations: `${lanes > 1 ? both.map((name) => `var<workgroup> shared_${name}: array<${item}, ${workgroup}>;`).join('\n') : ''}
${walked.map((name) => walkFunction(`${name}_at`, rank)).join('\n')}`,
    body: code.join('\n'),
  }
}
