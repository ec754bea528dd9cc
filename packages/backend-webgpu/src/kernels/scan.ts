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
import { elementOf } from '../wgsl/element.ts'
import type { Binding, Shader } from '../wgsl/shader.ts'
import { type Lanes, laneCode, neighbour, shareOut, workgroup } from './lanes.ts'
import { grid, nestOf, otherDims, pickDims, walkFields, walkFunction, walkWords } from './layout.ts'

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
  const block = how.lanes * run
  const wanted = Math.floor(enoughThreads / (rows * how.lanes))
  // Chunks are worth their three passes only where each is several blocks long.
  const chunks = serial ? 1 : Math.max(1, Math.min(wanted, Math.floor(length / (4 * block)), 1024))
  const chunk = block * Math.ceil(length / (chunks * block))
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
  const walked = what === 'totals' ? terms : [...outputs, ...terms]
  const [x] = terms
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
  const steps = walked.map((v) => v.strides[dim] ?? 0)
  const words = [rows, length, chunk, chunks]
  walked.forEach((v, i) => {
    const step = steps[i]
    words.push(v.offset + (reverse ? (length - 1) * step : 0), reverse ? -step : step, ...walkWords(nest, i))
  })
  const [gx, gy] = grid(Math.ceil(rows / (workgroup / how.lanes)))
  engine.runWords(kernel, buffers, words, gx, gy, chunks)
}

function shader(
  kind: Kind,
  dtype: DType,
  what: Pass,
  how: Lanes,
  rank: number,
  outputs: number,
  place: readonly number[],
): Shader {
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
  const lines = [laneCode(how), 'let safe = select(0u, row, row < p.rows);']
  for (const name of walked) lines.push(`let ${name}_row = p.${name}_0 + ${name}_at(safe);`)
  lines.push('let first = wg.z * p.chunk;', 'let end = min(first + p.chunk, p.length);')
  const carry = `m${place.at(-1)}[safe * p.chunks + wg.z - 1u]`
  lines.push(`var h = ${start};`)
  if (what === 'carried') lines.push(`if (wg.z > 0u) { h = ${carry}; }`)
  if (affine) lines.push('var all_a = 1.0;')
  lines.push(`for (var block = first; block < end; block += ${lanes * run}u) {`)
  lines.push(`let i = block + lane * ${run}u;`)
  // This thread's elements and the composition of their maps.
  if (affine) lines.push(`var a = ${one};`)
  lines.push(`var b = ${start};`)
  for (let j = 0; j < run; j++) {
    for (const name of both) {
      const nothing = name === 'a' ? one : start
      lines.push(`var ${name}${j} = ${nothing};`)
    }
    lines.push(
      `if (i + ${j}u < end) { ${both.map((name) => `${name}${j} = ${at(name, `(i + ${j}u)`)};`).join(' ')} }`,
      `b = ${after(`a${j}`, `b${j}`, 'b')};`,
    )
    if (affine) lines.push(`a = a${j} * a;`)
  }
  // Inclusive over lanes; then what comes before this thread.
  if (lanes > 1) {
    for (const name of both) lines.push(`shared_${name}[li] = ${name};`)
    lines.push('workgroupBarrier();')
    for (let by = 1; by < lanes; by *= 2) {
      const from = `li - ${neighbour(how, by)}u`
      lines.push(
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
      lines.push(
        'var now = h;',
        'if (lane > 0u) {',
        ...both.map((name) => `let before_${name} = shared_${name}[li - ${neighbour(how, 1)}u];`),
        `now = ${after('before_a', 'before_b', 'h')};`,
        '}',
      )
    }
    lines.push(
      ...both.map((name) => `let total_${name} = shared_${name}[${last}];`),
      `h = ${after('total_a', 'total_b', 'h')};`,
      ...(affine ? ['all_a = total_a * all_a;'] : []),
      'workgroupBarrier();',
    )
  } else {
    if (what !== 'totals') lines.push('var now = h;')
    lines.push(`h = ${after('a', 'b', 'h')};`)
    if (affine) lines.push('all_a = a * all_a;')
  }
  if (what !== 'totals') {
    for (let j = 0; j < run; j++)
      lines.push(
        `now = ${after(`a${j}`, `b${j}`, 'now')};`,
        `if (row < p.rows && i + ${j}u < end) { ${at('y', `(i + ${j}u)`)} = now; }`,
      )
    // In order, where one thread has the whole row.
    if (lanes === 1) lines.push('h = now;')
  }
  lines.push('}')
  if (what === 'totals') {
    const to = '[row * p.chunks + wg.z]'
    lines.push(
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
    params: [
      'rows: u32',
      'length: u32',
      'chunk: u32',
      'chunks: u32',
      ...walked.flatMap((name) => [`${name}_0: i32`, `${name}_step: i32`, ...walkFields(`${name}_at`, rank)]),
    ],
    bindings,
    workgroup: [workgroup],
    declarations: `${lanes > 1 ? both.map((name) => `var<workgroup> shared_${name}: array<${item}, ${workgroup}>;`).join('\n') : ''}
${walked.map((name) => walkFunction(`${name}_at`, rank)).join('\n')}`,
    body: lines.join('\n'),
  }
}
