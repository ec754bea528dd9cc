/**
 * Gradients of layer norm and RMS norm. With x̂ = (x − mean) · rstd and g = dy · weight, per row:
 * dx = rstd · (g − mean g − x̂ · mean g x̂); dweight = Σ dy x̂ and dbias = Σ dy over the rows.
 *
 * One kernel does all of it where rows fit in registers: a workgroup goes through a block of rows, its lanes keeping
 * the sums for their columns, and writes the sums of its block; a second kernel adds those of all blocks, in order, so
 * that the result is the same every time. Longer rows: dx in loops over each row, and the sums by another kernel, whose
 * threads own columns. RMS norm is the same without the mean and without mean g.
 */

import type { View } from '@tilegrad/core'
import type { GpuBuffer } from '../buffers.ts'
import type { Engine } from '../engine.ts'
import type { Binding, Shader } from '../shader.ts'
import {
  block,
  bufferOf,
  each,
  enablesOf,
  hold,
  itemOfWidth,
  laneCode,
  leadOf,
  plus,
  type RowWalk,
  reduction,
  rowCode,
  rowGrid,
  rowWalk,
  type Stream,
  startOf,
  type Tiling,
  tilingKey,
  tilingOf,
  vectorCode,
  widthOf,
} from './rows.ts'

interface Gradient {
  readonly centred: boolean
  readonly size: number
  readonly x: View
  readonly dy: View
  readonly weight: View | undefined
  readonly stats: readonly View[]
  readonly dx: View | undefined
  readonly dweight: View | undefined
  readonly dbias: View | undefined
}

/** What a kernel's code depends on, besides the tiling. */
interface Shape {
  readonly centred: boolean
  readonly weighted: boolean
  readonly dx: boolean
  readonly dweight: boolean
  readonly dbias: boolean
}

/** Blocks of rows whose sums are kept apart: enough for every core of a GPU. */
const mostBlocks = 512

export function runBackward(engine: Engine, g: Gradient): void {
  const { x, dy, dx, weight, dweight, dbias, size } = g
  const lead = leadOf(x, size)
  const views = dx ? [x, dy, dx] : [x, dy]
  const width = Math.min(widthOf(size, lead, views), widthOf(size, 0, weight ? [weight] : [])) as 4 | 1
  const t = tilingOf(engine, size, width, 4)
  const walk = rowWalk(lead, views)
  const sums = [dweight, dbias].filter((v) => v !== undefined)
  const shape: Shape = {
    centred: g.centred,
    weighted: weight !== undefined,
    dx: dx !== undefined,
    dweight: dweight !== undefined,
    dbias: dbias !== undefined,
  }
  const name = g.centred ? 'layer_normBackward' : 'rms_normBackward'
  const call: Call = { engine, name, g, walk, width }
  const without = { dweight: false, dbias: false }
  if (sums.length === 0) {
    runRows(call, t, { ...shape, ...without }, 1, Math.ceil(walk.rows / t.slots))
    return
  }
  const fused = t.held > 0
  const columns = 32 / width
  const parts = fused ? t.slots : 256 / columns
  const tiles = Math.ceil(size / 32)
  const blocks = Math.min(Math.ceil(walk.rows / parts), fused ? mostBlocks : Math.ceil(1024 / tiles))
  const per = Math.ceil(walk.rows / (parts * blocks))
  const partial = engine.pool.alloc(sums.length * blocks * size, 'float32')
  if (fused) runRows(call, t, shape, per, blocks, partial)
  else {
    if (dx) runRows(call, t, { ...shape, ...without }, 1, Math.ceil(walk.rows / t.slots))
    runColumns(call, shape, per * parts, blocks, tiles, partial)
  }
  const kernel = engine.kernel(`norm.blocks:${width}:${sums.length}`, name, () =>
    blocksShader(width, sums.length),
  )
  engine.run(kernel, [partial, ...sums.map(bufferOf)], [blocks, size / width], tiles, sums.length)
  engine.pool.free(partial)
}

interface Call {
  readonly engine: Engine
  readonly name: string
  readonly g: Gradient
  readonly walk: RowWalk
  readonly width: 4 | 1
}

const head = ['rows: u32', 'vectors: u32', 'ow: u32', 'per: u32', 'blocks: u32', 'share: f32'] as const

function runRows(
  { engine, name, g, walk, width }: Call,
  t: Tiling,
  shape: Shape,
  per: number,
  blocks: number,
  partial?: GpuBuffer,
): void {
  const key = `${name}:${tilingKey(t)}:${walk.rank}:${Object.values(shape).map(Number).join('')}`
  const kernel = engine.kernel(key, name, () => rowsShader(t, walk, shape))
  const words = [walk.rows, g.size / width, (g.weight?.offset ?? 0) / width, per, blocks, 1 / g.size]
  const views = [g.x, g.dy, ...(g.weight ? [g.weight] : []), ...g.stats, ...(g.dx ? [g.dx] : [])]
  const buffers = [...views.map(bufferOf), ...(partial ? [partial] : [])]
  const size: [number, number] = partial ? [blocks, 1] : rowGrid(t, walk.rows)
  engine.run(kernel, buffers, [...words, ...walk.words], ...size, 1, [[5, 1 / g.size]])
}

function runColumns(
  { engine, name, g, walk, width }: Call,
  shape: Shape,
  rowsPerBlock: number,
  blocks: number,
  tiles: number,
  partial: GpuBuffer,
): void {
  const which = { ...shape, weighted: false, dx: false }
  const key = `${name}.columns:${width}:${walk.rank}:${walk.fields.length}:${Object.values(which).map(Number).join('')}`
  const kernel = engine.kernel(key, name, () => columnsShader(width, walk, which))
  const buffers = [g.x, g.dy, ...g.stats].map(bufferOf)
  const words = [walk.rows, g.size / width, 0, rowsPerBlock, blocks, 0, ...walk.words]
  engine.run(kernel, [...buffers, partial], words, tiles, blocks)
}

function bindings(width: 4 | 1, shape: Shape): Binding[] {
  const item = itemOfWidth(width)
  return [
    { name: 'x', item },
    { name: 'dy', item },
    ...(shape.weighted ? [{ name: 'w', item }] : []),
    ...(shape.centred ? [{ name: 'means', item: 'f32' } as const] : []),
    { name: 'rstds', item: 'f32' },
    ...(shape.dx ? [{ name: 'dx', item, write: true }] : []),
    ...(shape.dweight || shape.dbias ? [{ name: 'partial', item, write: true }] : []),
  ]
}

/** Names of the sums over rows. */
const sumsOf = ({ dweight, dbias }: Shape): string[] => [...(dweight ? ['dw'] : []), ...(dbias ? ['db'] : [])]

function rowsShader(t: Tiling, walk: RowWalk, shape: Shape): Shader {
  const { centred, weighted } = shape
  const streams: Stream[] = [
    { name: 'x', binding: 'x', base: startOf(t.width, 0) },
    { name: 'd', binding: 'dy', base: startOf(t.width, 1) },
  ]
  const w: Stream = { name: 'w', binding: 'w', base: 'p.ow' }
  const all = weighted ? [...streams, w] : streams
  const sums = sumsOf(shape)
  const scaled = (of: (name: string) => string): string =>
    `let h = ${centred ? `(${of('x')} - mean)` : of('x')} * rstd; let g = ${of('d')}${weighted ? ` * ${of('w')}` : ''};`
  const row = `${rowCode(t, sums.length > 0 ? `(wg.x * p.per + r) * ${t.slots}u` : undefined)}
${walk.code('row')}
${centred ? 'let mean = means[row];' : ''}
let rstd = rstds[row];
${hold(t, streams)}
${
  shape.dx
    ? `var level = V();
var slope = V();
${block(each(t, all, ({ of }) => `${scaled(of)} ${centred ? 'level += g;' : ''} slope += g * h;`))}
let c = group_pair(vec2f(hsum(level), hsum(slope)), li) * p.share;`
    : ''
}
if (live) {
${each(t, all, ({ of, j }) => {
  const dx = `dx[${startOf(t.width, 2)} + ${j}] = ((g${centred ? ' - c.x' : ''}) - h * c.y) * rstd;`
  return `${scaled(of)} ${shape.dx ? dx : ''} ${shape.dweight ? `${of('dw')} += ${of('d')} * h;` : ''} ${shape.dbias ? `${of('db')} += ${of('d')};` : ''}`
})}
}`
  const body =
    sums.length === 0
      ? row
      : `${Array.from({ length: t.held }, (_, k) => sums.map((s) => `var ${s}${k} = V();`).join(' ')).join('\n')}
for (var r = 0u; r < p.per; r++) {
${row}
}
${sums.map((s, o) => gather(t, s, o)).join('\n')}`
  return {
    params: [...head, ...walk.fields],
    bindings: bindings(t.width, shape),
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}
${shape.dx ? reduction(t, 'group_pair', 'vec2f', plus) : ''}
${sums.length > 0 && t.slots > 1 ? 'var<workgroup> tile: array<V, 256>;' : ''}`,
    body: `${laneCode(t)}
${weighted && t.held > 0 ? hold(t, [w]) : ''}
${body}`,
  }
}

/** Adds the columns' sums of all slots, in order, and writes them as the block's. */
function gather(t: Tiling, name: string, output: number): string {
  const write = ({ of, j }: { of: (name: string) => string; j: string }): string =>
    `partial[(${output}u * p.blocks + wg.x) * p.vectors + ${j}] = ${of(name)};`
  if (t.slots === 1) return each(t, [], write)
  // Barriers must not depend on which columns there are.
  const shares = Array.from({ length: t.held }, (_, k) => {
    const sum = `${name}${k}`
    return `tile[li] = ${sum};
workgroupBarrier();
if (slot == 0u) {
  for (var q = 1u; q < ${t.slots}u; q++) { ${sum} += tile[q * ${t.lanes}u + lane]; }
}
workgroupBarrier();`
  })
  return `${shares.join('\n')}
if (slot == 0u) {
${each(t, [], write)}
}`
}

/** Columns of a workgroup that adds up columns; its other threads take other rows. */
const columnsOf = (width: 4 | 1): number => 32 / width
const columnCode = (width: 4 | 1): string => `let part = li / ${columnsOf(width)}u;
let column = wg.x * ${columnsOf(width)}u + li % ${columnsOf(width)}u;`

/** Adds `name` over the parts of a column, in a tree; the first part's threads have the result. */
function foldParts(width: 4 | 1, name: string): string {
  const columns = columnsOf(width)
  const lines = [`tile[li] = ${name};`, 'workgroupBarrier();']
  for (let half = 128; half >= columns; half /= 2)
    lines.push(`if (li < ${half}u) { tile[li] += tile[li + ${half}u]; }`, 'workgroupBarrier();')
  return `${lines.join('\n')}\n${name} = tile[li];\nworkgroupBarrier();`
}

function columnsShader(width: 4 | 1, walk: RowWalk, shape: Shape): Shader {
  const sums = sumsOf(shape)
  const parts = 256 / columnsOf(width)
  return {
    params: [...head, ...walk.fields],
    bindings: bindings(width, shape),
    workgroup: [256],
    declarations: `${vectorCode(width)}\nvar<workgroup> tile: array<V, 256>;`,
    body: `${columnCode(width)}
${sums.map((s) => `var ${s} = V();`).join(' ')}
let end = min((wg.y + 1u) * p.per, p.rows);
if (column < p.vectors) {
  for (var row = wg.y * p.per + part; row < end; row += ${parts}u) {
${walk.code('row')}
    let d = dy[${startOf(width, 1)} + column];
    ${shape.dweight ? `dw += d * ((x[${startOf(width, 0)} + column]${shape.centred ? ' - means[row]' : ''}) * rstds[row]);` : ''}
    ${shape.dbias ? 'db += d;' : ''}
  }
}
${sums.map((s) => foldParts(width, s)).join('\n')}
if (part == 0u && column < p.vectors) {
${sums.map((s, o) => `partial[(${o}u * p.blocks + wg.y) * p.vectors + column] = ${s};`).join('\n')}
}`,
  }
}

/** Adds the blocks' sums: workgroups (tiles of columns, outputs). */
function blocksShader(width: 4 | 1, outputs: number): Shader {
  const item = itemOfWidth(width)
  const parts = 256 / columnsOf(width)
  const names = Array.from({ length: outputs }, (_, o) => `out${o}`)
  return {
    params: ['blocks: u32', 'vectors: u32'],
    bindings: [{ name: 'partial', item }, ...names.map((name) => ({ name, item, write: true }))],
    workgroup: [256],
    declarations: `${vectorCode(width)}\nvar<workgroup> tile: array<V, 256>;`,
    body: `${columnCode(width)}
var sum = V();
if (column < p.vectors) {
  for (var b = part; b < p.blocks; b += ${parts}u) { sum += partial[(wg.y * p.blocks + b) * p.vectors + column]; }
}
${foldParts(width, 'sum')}
if (part == 0u && column < p.vectors) {
${names.map((name, o) => `if (wg.y == ${o}u) { ${name}[column] = sum; }`).join('\n')}
}`,
  }
}
