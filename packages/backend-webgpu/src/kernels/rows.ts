/**
 * What row kernels share: the rows of strided operands, who takes which part of a row, and folding over a row.
 *
 * A workgroup is 256 threads: `slots` rows at a time with `lanes` threads each. A lane takes every `lanes`-th vector
 * of its row: short rows have few lanes, so that none idles; rows up to 32 lanes × 8 vectors need no barrier where
 * subgroups are that wide; longer ones have up to all 256 lanes. A row that fits is held in registers and read once;
 * longer ones are read again for every pass over them, in a loop with several loads under way.
 *
 * Vectors are of four elements where every row begins at a multiple of four and has a multiple of four elements.
 */

import type { DType, View } from '@tilegrad/core'
import { type Nest, viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../commands/queue.ts'
import { type Part, several } from '../wgsl/block.ts'
import { isPacked, itemAt, itemOf, packings, putItem } from '../wgsl/element.ts'
import { type MathName, mathCode } from '../wgsl/math.ts'
import type { Item } from '../wgsl/shader.ts'
import { grid, nestOf } from './layout.ts'

export const workgroup = 256
/** Loads under way per thread and operand in loops over long rows. */
const unroll = 4

/** How the threads of a workgroup share rows. */
export interface Tiling {
  /** Elements of a vector: 4 or 1. */
  readonly width: 4 | 1
  /** Threads to a row: a power of two. */
  readonly lanes: number
  /** Rows of a workgroup at a time. */
  readonly slots: number
  /** Vectors of a row that each lane holds in registers; 0: too many, loops. */
  readonly held: number
  /** Every lane has all its `held` vectors. */
  readonly exact: boolean
  /** Threads that exchange values directly; 1 without subgroups. */
  readonly subgroup: number
}

/** `most`: vectors of a row that a lane may hold; fewer where a kernel holds several operands. */
export function tilingOf(engine: Engine, n: number, width: 4 | 1, most: number): Tiling {
  const vectors = Math.ceil(n / width)
  let lanes = 1
  while (lanes < workgroup && vectors > lanes * (lanes < 32 ? 2 : most)) lanes *= 2
  const share = Math.ceil(vectors / lanes)
  const held = share <= most ? share : 0
  return {
    width,
    lanes,
    slots: workgroup / lanes,
    held,
    exact: held * lanes === vectors,
    subgroup: subgroupOf(engine),
  }
}

/** The part of a tiling that a kernel's code depends on, as a key. */
export const tilingKey = (t: Tiling): string => `${t.width}.${t.lanes}.${t.held}${t.exact ? 'x' : ''}`

/** Threads that are certainly in one subgroup, in order of their index, as all drivers have it. */
export function subgroupOf({ gpu }: Engine): number {
  const least = gpu.features.has('subgroups') ? (gpu.info.subgroupMinSize ?? 1) : 1
  return Math.min(32, Math.max(1, least))
}

/** The width of vectors: 4 if rows of `n` elements of all views begin at multiples of four, otherwise 1. */
export function widthOf(n: number, lead: number, views: readonly View[]): 4 | 1 {
  const fits = ({ shape, strides, offset }: View): boolean =>
    offset % 4 === 0 && strides.every((s, d) => d >= lead || shape[d] === 1 || s % 4 === 0)
  return n % 4 === 0 && views.every(fits) ? 4 : 1
}

/** The code of the place where an operand's row begins in its binding, which holds vectors. */
export const startOf = (width: 4 | 1, i: number): string => (width === 4 ? `(at${i} >> 2u)` : `at${i}`)

/** What is bound of an operand. */
export const itemOfWidth = (width: 4 | 1, dtype: DType = 'float32', write = false): Item =>
  width === 1 ? itemOf(dtype, write) : isPacked(dtype) ? 'vec2<u32>' : 'vec4<f32>'

/** Whether rows of `n` elements of these views can be loaded and stored: those of 16 bits only as vectors of four. */
export const takesWidth = (n: number, lead: number, views: readonly View[]): boolean =>
  !views.some(({ dtype }) => isPacked(dtype)) || widthOf(n, lead, views) === 4

/** A vector as it is stored. */
export const stored = (dtype: DType, value: string): string =>
  isPacked(dtype) ? `store_${dtype}(${value})` : value
/** Stores vector `at` of a binding, of any width. */
export const storeAt = (width: 4 | 1, dtype: DType, name: string, at: string, value: string): string =>
  width === 1 ? putItem(dtype, name, `i32(${at})`, value) : `${name}[${at}] = ${stored(dtype, value)};`

/** Functions that `loaded` and `stored` call. */
export function packedCode(dtypes: readonly DType[]): string {
  const used = [...new Set(dtypes)].filter(isPacked)
  const names = used.flatMap((dtype): MathName[] => [packings[dtype].load, packings[dtype].store])
  return `${mathCode(names)}
${used
  .map(
    (
      dtype,
    ) => `fn load_${dtype}(w: vec2u) -> vec4f { return vec4f(${packings[dtype].load}(w.x), ${packings[dtype].load}(w.y)); }
fn store_${dtype}(x: vec4f) -> vec2u { return vec2u(${packings[dtype].store}(x.xy), ${packings[dtype].store}(x.zw)); }`,
  )
  .join('\n')}`
}

/** The walk over the rows of several views of equal leading sizes: parameters, and where each row begins. */
export interface RowWalk {
  readonly rank: number
  readonly rows: number
  readonly fields: readonly string[]
  readonly words: readonly number[]
  /** Statements that define `at0`, `at1` …: the first element of each operand's row number `row`. */
  readonly code: (row: string) => string
}

export function rowWalk(lead: number, views: readonly View[]): RowWalk {
  const [first] = views
  const cut = views.map((v) => viewOf(v, v.shape.slice(0, lead), v.strides.slice(0, lead)))
  const shape = first.shape.slice(0, lead)
  const nest = nestOf(shape, cut)
  return { rows: shape.reduce((n, s) => n * s, 1), ...walkOf(nest, views) }
}

function walkOf({ sizes, strides }: Nest, views: readonly View[]): Omit<RowWalk, 'rows'> {
  const rank = sizes.length
  const names = views.map((_, i) => i)
  return {
    rank,
    fields: [
      ...names.map((i) => `o${i}: i32`),
      ...sizes.map((_, d) => `n${d}: u32`),
      ...names.flatMap((i) => sizes.map((_, d) => `s${d}_${i}: i32`)),
    ],
    words: [...views.map((v) => v.offset), ...sizes, ...strides.flat()],
    code: (row) => {
      const lines = [`var left = ${row};`]
      for (let d = rank - 1; d >= 0; d--) {
        lines.push(d > 0 ? `let k${d} = i32(left % p.n${d}); left /= p.n${d};` : 'let k0 = i32(left);')
      }
      for (const i of names) {
        const terms = sizes.map((_, d) => `k${d} * p.s${d}_${i}`)
        lines.push(`let at${i} = u32(${[`p.o${i}`, ...terms].join(' + ')});`)
      }
      return lines.join('\n')
    },
  }
}

/** The parameters of walks like this one. */
export const along = ({ fields }: RowWalk): Part<RowWalk> =>
  several(
    () => fields,
    ({ words }) => words,
  )

/** Workgroups for `rows` rows. */
export const rowGrid = (t: Tiling, rows: number): [number, number] => grid(Math.ceil(rows / t.slots))

/** The code that says who a thread is: `lane` of a row, `slot` of its workgroup. */
export const laneCode = (t: Tiling): string => `let lane = li % ${t.lanes}u;
let slot = li / ${t.lanes}u;`

/** The thread's row, `number` by default: `live` if it is there, and `row`, one that is. */
export const rowCode = (t: Tiling, first = `(wg.x + wg.y * groups.x) * ${t.slots}u`): string =>
  `let number = ${first} + slot;
let live = number < p.rows;
let row = min(number, p.rows - 1u);`

/** The vectors of an operand's row, one after the other in variables called `name`. */
export interface Stream {
  readonly name: string
  /** A binding, and the row's first vector in it. */
  readonly binding: string
  readonly base: string
  /** What lies there; default float32. */
  readonly dtype?: DType
}

/** Vector `j` of a stream. */
export function loadOf({ binding, base, dtype = 'float32' }: Stream, j: string, width: 4 | 1 = 4): string {
  if (!isPacked(dtype)) return `${binding}[${base} + ${j}]`
  return width === 1
    ? itemAt(dtype, binding, `i32(${base} + ${j})`)
    : `load_${dtype}(${binding}[${base} + ${j}])`
}

/** The value of a stream in the body of a loop, and the number of the vector. */
export interface Place {
  readonly of: (name: string) => string
  readonly j: string
}

/** Loads the vectors of streams into registers, where rows fit there. */
export function hold(t: Tiling, streams: readonly Stream[]): string {
  if (t.held === 0) return ''
  const lines: string[] = []
  for (const s of streams)
    for (let k = 0; k < t.held; k++) {
      const load = loadOf(s, vectorAt(t, k), t.width)
      if (k < t.held - 1 || t.exact) lines.push(`var ${s.name}${k} = ${load};`)
      else
        lines.push(`var ${s.name}${k} = V(); if (${vectorAt(t, k)} < p.vectors) { ${s.name}${k} = ${load}; }`)
    }
  return lines.join('\n')
}

const vectorAt = (t: Tiling, k: number): string => (k === 0 ? 'lane' : `(lane + ${k * t.lanes}u)`)

/** `body` for every vector of the row that is this lane's; the parameter `vectors` says how many the row has. */
export function each(t: Tiling, streams: readonly Stream[], body: (at: Place) => string): string {
  if (t.held > 0) {
    const bodies = Array.from({ length: t.held }, (_, k) => {
      const code = body({ of: (name) => `${name}${k}`, j: vectorAt(t, k) })
      return k < t.held - 1 || t.exact ? `{ ${code} }` : `if (${vectorAt(t, k)} < p.vectors) { ${code} }`
    })
    return bodies.join('\n')
  }
  const loads = (k: number, j: string): string =>
    streams.map((s) => `let ${s.name}${k} = ${loadOf(s, j, t.width)};`).join(' ')
  const step = (k: number): string => (k === 0 ? 'j' : `(j + ${k * t.lanes}u)`)
  const all = Array.from({ length: unroll }, (_, k) => k)
  return `var j = lane;
for (; j + ${(unroll - 1) * t.lanes}u < p.vectors; j += ${unroll * t.lanes}u) {
${all.map((k) => loads(k, step(k))).join('\n')}
${all.map((k) => `{ ${body({ of: (name) => `${name}${k}`, j: step(k) })} }`).join('\n')}
}
for (; j < p.vectors; j += ${t.lanes}u) { ${loads(0, 'j')} ${body({ of: (name) => `${name}0`, j: 'j' })} }`
}

/** Puts code in braces, so that its variables are its own. */
export const scoped = (code: string): string => `{\n${code}\n}`

/** The type V of a vector, and functions of it. */
export const vectorCode = (width: 4 | 1): string => `${mathCode(['tg_max', 'tg_bits'])}
alias V = ${width === 4 ? 'vec4<f32>' : 'f32'};
alias U = ${width === 4 ? 'vec4<u32>' : 'u32'};
fn nans(x: V) -> ${width === 4 ? 'vec4<bool>' : 'bool'} { return (bitcast<U>(x) & U(0x7fffffffu)) > U(0x7f800000u); }
fn vmax(a: V, b: V) -> V { return select(select(max(a, b), b, nans(b)), a, nans(a)); }
fn hsum(v: V) -> f32 { return ${width === 4 ? '(v.x + v.y) + (v.z + v.w)' : 'v'}; }
fn hmax(v: V) -> f32 { return ${width === 4 ? 'tg_max(tg_max(v.x, v.y), tg_max(v.z, v.w))' : 'v'}; }
fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }`

/** Extensions that `reduction` needs. */
export const enablesOf = (t: Pick<Tiling, 'lanes' | 'subgroup'>): { enables: string[] } => ({
  enables: t.subgroup > 1 && t.lanes > 1 ? ['subgroups'] : [],
})

/**
 * A function `name(x, li)` that folds a value of every lane of a row with `combine(a, b)`, and gives the result to all
 * of them. Subgroups exchange values directly; beyond them they go through workgroup memory. All threads must call it.
 */
export function reduction(
  { lanes, subgroup }: Pick<Tiling, 'lanes' | 'subgroup'>,
  name: string,
  type: 'f32' | 'vec2f' | 'vec4f',
  combine: (a: string, b: string) => string,
): string {
  const direct = Math.min(lanes, subgroup)
  const parts = lanes / direct
  const lines = ['var v = x;']
  for (let mask = 1; mask < direct; mask *= 2)
    lines.push(`v = ${combine('v', `subgroupShuffleXor(v, ${mask}u)`)};`)
  if (parts === 1) return `fn ${name}(x: ${type}, li: u32) -> ${type} { ${lines.join(' ')} return v; }`
  const tile = `${name}_tile`
  lines.push(`if (li % ${direct}u == 0u) { ${tile}[li / ${direct}u] = v; }`, 'workgroupBarrier();')
  const first = `(li / ${lanes}u) * ${parts}u`
  // Few parts are read by all; many are folded in halves.
  let left = parts
  for (; left > 8; left /= 2) {
    const half = left / 2
    lines.push(
      `if (li % ${lanes}u < ${half}u) { let i = ${first} + li % ${lanes}u; ${tile}[i] = ${combine(`${tile}[i]`, `${tile}[i + ${half}u]`)}; }`,
      'workgroupBarrier();',
    )
  }
  lines.push(`let first = ${first}; v = ${tile}[first];`)
  for (let k = 1; k < left; k++) lines.push(`v = ${combine('v', `${tile}[first + ${k}u]`)};`)
  // The next call writes there.
  lines.push('workgroupBarrier();', 'return v;')
  return `var<workgroup> ${tile}: array<${type}, ${workgroup / direct}>;
fn ${name}(x: ${type}, li: u32) -> ${type} {
${lines.join('\n')}
}`
}

export const plus = (a: string, b: string): string => `${a} + ${b}`
export const larger = (a: string, b: string): string => `tg_max(${a}, ${b})`
