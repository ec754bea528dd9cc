/**
 * Gradients of layer norm and RMS norm. With x̂ = (x − mean) · rstd and g = dy · weight, per row:
 * dx = rstd · (g − mean g − x̂ · mean g x̂); dweight = Σ dy x̂ and dbias = Σ dy over the rows.
 *
 * One kernel does all of it where rows fit in registers: a workgroup goes through a block of rows, its lanes keeping
 * the sums for their columns, and writes the sums of its block; a second kernel adds those of all blocks, in order, so
 * that the result is the same every time. Longer rows: dx in loops over each row, and the sums by another kernel, whose
 * threads own columns. Where there is little to read, one kernel does both: to read it twice costs less than a second
 * launch. RMS norm is the same without the mean and without mean g. What else x has received, as where a residual
 * stream passes the norm by, is added to dx as that is stored.
 *
 * Reference: `LAYER_NORM`, `RMS_NORM` in core's ops/norm.ts. Test: norm.test.ts.
 */

import type { View } from '@tilegrad/core'
import { leadOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, f32, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Binding, Shader } from '../../wgsl/shader.ts'
import {
  along,
  each,
  enablesOf,
  hold,
  itemOfWidth,
  laneCode,
  plus,
  type RowWalk,
  reduction,
  rowCode,
  rowGrid,
  rowWalk,
  type Stream,
  scoped,
  startOf,
  type Tiling,
  tilingKey,
  tilingOf,
  vectorCode,
  widthOf,
} from '../rows.ts'

interface Gradient {
  readonly centred: boolean
  readonly size: number
  readonly x: View
  readonly dy: View
  /** A tensor that is added to dx. */
  readonly rest: View | undefined
  readonly weight: View | undefined
  readonly stats: readonly View[]
  readonly dx: View | undefined
  readonly dweight: View | undefined
  readonly dbias: View | undefined
}

/** All that a kernel's code depends on besides the tiling. */
interface Shape {
  readonly centred: boolean
  readonly weighted: boolean
  readonly adds: boolean
  readonly dx: boolean
  readonly dweight: boolean
  readonly dbias: boolean
}

/** Blocks of rows whose sums are kept apart: enough for every core of a GPU. */
const mostBlocks = 512
/** The most elements, rows, and elements of a row of what is read twice. */
const small = { all: 2 ** 20, rows: 2048, size: 2 ** 16 }

export function runBackward(engine: Engine, g: Gradient): void {
  const { x, dy, rest, dx, weight, dweight, dbias, size } = g
  const lead = leadOf(x, size)
  const views = [x, dy, ...(dx ? [dx] : []), ...(rest ? [rest] : [])]
  const width = Math.min(widthOf(size, lead, views), widthOf(size, 0, weight ? [weight] : [])) as 4 | 1
  const t = tilingOf(engine, size, width, 4)
  const walk = rowWalk(lead, views)
  const sums = [dweight, dbias].filter((v) => v !== undefined)
  const shape: Shape = {
    centred: g.centred,
    weighted: weight !== undefined,
    adds: rest !== undefined,
    dx: dx !== undefined,
    dweight: dweight !== undefined,
    dbias: dbias !== undefined,
  }
  const name = g.centred ? 'layer_normBackward' : 'rms_normBackward'
  const inputs = [x, dy, ...(rest ? [rest] : []), ...(weight ? [weight] : []), ...g.stats]
  const call: Call = { engine, name, g, inputs, walk, width }
  const without = { dweight: false, dbias: false }
  if (sums.length === 0) {
    runRows(call, t, { ...shape, ...without }, 1, Math.ceil(walk.rows / t.slots))
    return
  }
  const together = inputs.length + 1 + sums.length
  if (dx && isSmall(walk.rows, size) && together <= engine.gpu.limits.maxStorageBuffersPerShaderStage) {
    runBoth(call, t, shape, sums)
    return
  }
  const fused = t.held > 0
  const columns = wide(width)
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
  const buffers = [partial, ...sums.map(bufferOf)]
  engine.run(kernel, buffers, { blocks, vectors: size / width }, [tiles, sums.length])
  engine.pool.free(partial)
}

const isSmall = (rows: number, size: number): boolean =>
  rows * size <= small.all && rows <= small.rows && size <= small.size

interface Call {
  readonly engine: Engine
  readonly name: string
  readonly g: Gradient
  /** The inputs, in the order of the bindings. */
  readonly inputs: readonly View[]
  readonly walk: RowWalk
  readonly width: 4 | 1
}

/** Computes dx and the sums in one launch. */
function runBoth(call: Call, t: Tiling, shape: Shape, sums: readonly View[]): void {
  const { engine, name, g, inputs, walk, width } = call
  const key = `${name}.both:${tilingKey(t)}:${walk.rank}:${Object.values(shape).map(Number).join('')}`
  const kernel = engine.kernel(key, name, () => bothShader(t, walk, shape))
  const vectors = g.size / width
  const tiles = Math.ceil(vectors / narrow(width))
  const views = [...inputs, g.dx as View, ...sums]
  const groups = tiles + Math.ceil(walk.rows / t.slots)
  engine.run(kernel, views.map(bufferOf), { ...valuesOf(call), per: 0, blocks: tiles }, [groups])
}

const params = (walk: RowWalk) =>
  block({ rows: u32, vectors: u32, ow: u32, per: u32, blocks: u32, share: f32, walk: along(walk) })
type Params = ValuesOf<typeof params>

/** What follows from the operands alone. */
const valuesOf = ({ g, walk, width }: Call): Omit<Params, 'per' | 'blocks'> => ({
  rows: walk.rows,
  vectors: g.size / width,
  ow: (g.weight?.offset ?? 0) / width,
  share: 1 / g.size,
  walk,
})

function runRows(
  call: Call,
  t: Tiling,
  shape: Shape,
  per: number,
  blocks: number,
  partial?: GpuBuffer,
): void {
  const { engine, name, g, inputs, walk } = call
  const key = `${name}:${tilingKey(t)}:${walk.rank}:${Object.values(shape).map(Number).join('')}`
  const kernel = engine.kernel(key, name, () => rowsShader(t, walk, shape))
  const views = [...inputs, ...(g.dx ? [g.dx] : [])]
  const buffers = [...views.map(bufferOf), ...(partial ? [partial] : [])]
  engine.run(kernel, buffers, { ...valuesOf(call), per, blocks }, partial ? [blocks] : rowGrid(t, walk.rows))
}

function runColumns(
  call: Call,
  shape: Shape,
  rowsPerBlock: number,
  blocks: number,
  tiles: number,
  partial: GpuBuffer,
): void {
  const { engine, name, g, walk, width } = call
  const which = { ...shape, weighted: false, adds: false, dx: false }
  const key = `${name}.columns:${width}:${walk.rank}:${walk.fields.length}:${Object.values(which).map(Number).join('')}`
  const kernel = engine.kernel(key, name, () => columnsShader(width, walk, which))
  const buffers = [g.x, g.dy, ...g.stats].map(bufferOf)
  engine.run(kernel, [...buffers, partial], { ...valuesOf(call), per: rowsPerBlock, blocks }, [tiles, blocks])
}

function bindings(width: 4 | 1, shape: Shape, sums: readonly string[] = ['partial']): Binding[] {
  const item = itemOfWidth(width)
  return [
    { name: 'x', item },
    { name: 'dy', item },
    ...(shape.adds ? [{ name: 'rest', item }] : []),
    ...(shape.weighted ? [{ name: 'w', item }] : []),
    ...(shape.centred ? [{ name: 'means', item: 'f32' } as const] : []),
    { name: 'rstds', item: 'f32' },
    ...(shape.dx ? [{ name: 'dx', item, write: true }] : []),
    ...(shape.dweight || shape.dbias ? sums.map((name) => ({ name, item, write: true })) : []),
  ]
}

/** Names of the sums over rows. */
const sumsOf = ({ dweight, dbias }: Shape): string[] => [...(dweight ? ['dw'] : []), ...(dbias ? ['db'] : [])]

/** dx of the thread's row, and its share of the sums. */
function rowCodeOf(t: Tiling, walk: RowWalk, shape: Shape, first?: string): string {
  const { centred, weighted } = shape
  const streams = streamsOf(t)
  const rest: Stream[] = shape.adds ? [{ name: 'q', binding: 'rest', base: startOf(t.width, 3) }] : []
  const all = weighted ? [...streams, weights] : streams
  const scaled = (of: (name: string) => string): string =>
    `let h = ${centred ? `(${of('x')} - mean)` : of('x')} * rstd; let g = ${of('d')}${weighted ? ` * ${of('w')}` : ''};`
  return `${rowCode(t, first)}
${walk.code('row')}
${centred ? 'let mean = means[row];' : ''}
let rstd = rstds[row];
${hold(t, [...streams, ...rest])}
${
  shape.dx
    ? `var level = V();
var slope = V();
${scoped(each(t, all, ({ of }) => `${scaled(of)} ${centred ? 'level += g;' : ''} slope += g * h;`))}
let c = group_pair(vec2f(hsum(level), hsum(slope)), li) * p.share;`
    : ''
}
if (live) {
${each(t, [...all, ...rest], ({ of, j }) => {
  const value = `((g${centred ? ' - c.x' : ''}) - h * c.y) * rstd${shape.adds ? ` + ${of('q')}` : ''}`
  const dx = `dx[${startOf(t.width, 2)} + ${j}] = ${value};`
  return `${scaled(of)} ${shape.dx ? dx : ''} ${shape.dweight ? `${of('dw')} += ${of('d')} * h;` : ''} ${shape.dbias ? `${of('db')} += ${of('d')};` : ''}`
})}
}`
}

const streamsOf = ({ width }: Tiling): Stream[] => [
  { name: 'x', binding: 'x', base: startOf(width, 0) },
  { name: 'd', binding: 'dy', base: startOf(width, 1) },
]
const weights: Stream = { name: 'w', binding: 'w', base: 'p.ow' }

function rowsShader(t: Tiling, walk: RowWalk, shape: Shape): Shader<Params> {
  const { weighted } = shape
  const sums = sumsOf(shape)
  const row = rowCodeOf(t, walk, shape, sums.length > 0 ? `(wg.x * p.per + r) * ${t.slots}u` : undefined)
  const body =
    sums.length === 0
      ? row
      : `${Array.from({ length: t.held }, (_, k) => sums.map((s) => `var ${s}${k} = V();`).join(' ')).join('\n')}
for (var r = 0u; r < p.per; r++) {
${row}
}
${sums.map((s, o) => gather(t, s, o)).join('\n')}`
  return {
    params: params(walk),
    bindings: bindings(t.width, shape),
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(t.width)}
${shape.dx ? reduction(t, 'group_pair', 'vec2f', plus) : ''}
${sums.length > 0 && t.slots > 1 ? 'var<workgroup> tile: array<V, 256>;' : ''}`,
    body: `${laneCode(t)}
${weighted && t.held > 0 ? hold(t, [weights]) : ''}
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

/** Vectors of a workgroup that adds up columns: its other threads take other rows. */
const wide = (width: 4 | 1): number => 32 / width
/** Vectors of a workgroup that adds up columns of few rows: more workgroups, and less for each thread. */
const narrow = (width: 4 | 1): number => 8 / width
const columnCode = (columns: number): string => `let part = li / ${columns}u;
let column = wg.x * ${columns}u + li % ${columns}u;`

/** Adds `name` over the parts of a column, in a tree; the first part's threads have the result. */
function foldParts(columns: number, name: string): string {
  const lines = [`tile[li] = ${name};`, 'workgroupBarrier();']
  for (let half = 128; half >= columns; half /= 2)
    lines.push(`if (li < ${half}u) { tile[li] += tile[li + ${half}u]; }`, 'workgroupBarrier();')
  return `${lines.join('\n')}\n${name} = tile[li];\nworkgroupBarrier();`
}

/** Sums of columns over rows from `first` to `end`, which `store` has in the variables that `sumsOf` names. */
function columnsCode(
  width: 4 | 1,
  columns: number,
  walk: RowWalk,
  shape: Shape,
  [first, end]: readonly [string, string],
  store: (name: string, output: number) => string,
): string {
  const sums = sumsOf(shape)
  return `${columnCode(columns)}
${sums.map((s) => `var ${s} = V();`).join(' ')}
let end = ${end};
if (column < p.vectors) {
  for (var row = ${first} + part; row < end; row += ${256 / columns}u) {
${walk.code('row')}
    let d = dy[${startOf(width, 1)} + column];
    ${shape.dweight ? `dw += d * ((x[${startOf(width, 0)} + column]${shape.centred ? ' - means[row]' : ''}) * rstds[row]);` : ''}
    ${shape.dbias ? 'db += d;' : ''}
  }
}
${sums.map((s) => foldParts(columns, s)).join('\n')}
if (part == 0u && column < p.vectors) {
${sums.map(store).join('\n')}
}`
}

function columnsShader(width: 4 | 1, walk: RowWalk, shape: Shape): Shader<Params> {
  const rows = ['wg.y * p.per', 'min((wg.y + 1u) * p.per, p.rows)'] as const
  return {
    params: params(walk),
    bindings: bindings(width, shape),
    workgroup: [256],
    declarations: `${vectorCode(width)}\nvar<workgroup> tile: array<V, 256>;`,
    body: columnsCode(
      width,
      wide(width),
      walk,
      shape,
      rows,
      (s, o) => `partial[(${o}u * p.blocks + wg.y) * p.vectors + column] = ${s};`,
    ),
  }
}

/** The first workgroups add up tiles of columns, as many as the parameter `blocks` says; the others compute dx. */
function bothShader(t: Tiling, walk: RowWalk, shape: Shape): Shader<Params> {
  const { width } = t
  const sums = sumsOf(shape)
  const columns = columnsCode(
    width,
    narrow(width),
    walk,
    shape,
    ['0u', 'p.rows'],
    (s) => `sum_${s}[column] = ${s};`,
  )
  const rows = { ...shape, dweight: false, dbias: false }
  return {
    params: params(walk),
    bindings: bindings(
      width,
      shape,
      sums.map((s) => `sum_${s}`),
    ),
    workgroup: [256],
    ...enablesOf(t),
    declarations: `${vectorCode(width)}
${reduction(t, 'group_pair', 'vec2f', plus)}
var<workgroup> tile: array<V, 256>;`,
    body: `if (wg.x < p.blocks) {
${columns}
} else {
${laneCode(t)}
${shape.weighted && t.held > 0 ? hold(t, [weights]) : ''}
${rowCodeOf(t, walk, rows, `(wg.x - p.blocks) * ${t.slots}u`)}
}`,
  }
}

const sumParams = block({ blocks: u32, vectors: u32 })

/** Adds the blocks' sums: workgroups (tiles of columns, outputs). */
function blocksShader(width: 4 | 1, outputs: number): Shader<ValuesOf<typeof sumParams>> {
  const item = itemOfWidth(width)
  const columns = wide(width)
  const parts = 256 / columns
  const names = Array.from({ length: outputs }, (_, o) => `out${o}`)
  return {
    params: sumParams,
    bindings: [{ name: 'partial', item }, ...names.map((name) => ({ name, item, write: true }))],
    workgroup: [256],
    declarations: `${vectorCode(width)}\nvar<workgroup> tile: array<V, 256>;`,
    body: `${columnCode(columns)}
var sum = V();
if (column < p.vectors) {
  for (var b = part; b < p.blocks; b += ${parts}u) { sum += partial[(wg.y * p.blocks + b) * p.vectors + column]; }
}
${foldParts(columns, 'sum')}
if (part == 0u && column < p.vectors) {
${names.map((name, o) => `if (wg.y == ${o}u) { ${name}[column] = sum; }`).join('\n')}
}`,
  }
}
