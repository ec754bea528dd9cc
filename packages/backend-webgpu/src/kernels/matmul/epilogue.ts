/** What products have in common: parameters, places of matrices, and what happens to an element before it is stored. */

import type { TypedProgram } from '@tilegrad/core'
import { several } from '../../wgsl/block.ts'
import { lower } from '../../wgsl/lowering.ts'
import { mathCode } from '../../wgsl/math.ts'
import type { Binding, Item } from '../../wgsl/shader.ts'
import { aligned, type Matrix, type Problem } from './problem.ts'

/** How elements are stored and the program's extras are read: all that the code of an epilogue depends on. */
export interface Epilogue {
  readonly type: 'f32' | 'i32'
  readonly outs: number
  /** Outputs are written in vectors of four. */
  readonly vectors: boolean
  /** How each extra is read: 'r' one per row, 'v' in vectors, 's' one by one; '1' after that if all rows have the same. */
  readonly extras: readonly string[]
  /** Which of the outputs, and then of the extras, are float16; what is computed of them is float32. */
  readonly halves: readonly boolean[]
  /** The program of the product and the extras; without one the product itself is stored. */
  readonly program: TypedProgram | undefined
}

export function epilogueOf(p: Problem, program: TypedProgram | undefined): Epilogue {
  return {
    type: p.type === 'f16' ? 'f32' : p.type,
    outs: p.outs.length,
    vectors: p.n % 4 === 0 && p.outs.every((x) => x.column === 1 && aligned(x, x.row)),
    extras: p.extras.map((x) => {
      const kind = x.column === 0 ? 'r' : x.column === 1 && p.n % 4 === 0 && aligned(x, x.row) ? 'v' : 's'
      return x.row === 0 ? `${kind}1` : kind
    }),
    halves: [...p.outs, ...p.extras].map((x) => x.half === true),
    program,
  }
}

export const epilogueKey = (e: Epilogue): string =>
  `${e.type}${e.outs}${e.vectors ? 'v' : 's'}${e.extras.join()}${e.halves.includes(true) ? e.halves.map(Number).join('') : ''}:${e.program?.id ?? ''}`

/** The extensions that its code needs. */
export const enablesOfEpilogue = ({ halves }: Epilogue): readonly string[] =>
  halves.includes(true) ? ['f16'] : []

/** Parameters of matrices, each with so many dims of the batch, and the sizes of those. */
export function places(matrices: number, dims: number) {
  const batch = Array.from({ length: dims }, (_, d) => d)
  const names = Array.from({ length: matrices }, (_, i) => [
    ...[`o${i}`, `r${i}`, `c${i}`],
    ...batch.map((d) => `t${i}_${d}`),
  ])
  return {
    matrices: several(
      () => names.flat().map((name) => `${name}: i32`),
      (all: readonly Matrix[]) => all.flatMap((x) => [x.offset, x.row, x.column, ...x.batch]),
    ),
    sizes: several(
      () => batch.map((d) => `n${d}: i32`),
      (sizes: readonly number[]) => sizes,
    ),
  }
}

/** `q0`, `q1` …: where matrices start for the item of the batch that `item` counts (which this uses up). */
export function starts(matrices: number, dims: number): string {
  const lines = Array.from({ length: matrices }, (_, i) => `var q${i} = p.o${i};`)
  for (let d = dims - 1; d >= 0; d--) {
    lines.push(`let at${d} = item % p.n${d}; item /= p.n${d};`)
    for (let i = 0; i < matrices; i++) lines.push(`q${i} += at${d} * p.t${i}_${d};`)
  }
  return lines.join('\n')
}

/** The outputs and extras as bindings `x{first}` and so on. */
export function bindings(e: Epilogue, first: number): Binding[] {
  const of = (vector: boolean, i: number): Item => {
    const type = e.halves[i] ? 'f16' : e.type
    return vector ? `vec4<${type}>` : type
  }
  return [
    ...Array.from({ length: e.outs }, (_, i) => ({
      name: `x${first + i}`,
      item: of(e.vectors, i),
      write: true,
    })),
    ...e.extras.map((kind, i) => ({
      name: `x${first + e.outs + i}`,
      item: of(kind[0] === 'v', e.outs + i),
    })),
  ]
}

/** The program as a function of one element. */
export function declarations(e: Epilogue): string {
  if (!e.program) return ''
  const { code, values, functions } = lower(e.program.exprs, (node) =>
    node.kind === 'input' ? `z${node.index}` : 'unreachable',
  )
  const args = Array.from({ length: 1 + e.extras.length }, (_, i) => `z${i}: ${e.type}`)
  return `${mathCode(functions)}
struct Out { ${values.map((_, i) => `r${i}: ${e.type}`).join(', ')} }
fn finish(${args.join(', ')}) -> Out {
${code}
return Out(${values.join(', ')});
}`
}

/** Columns that are handled at once: vectors of four, or single elements. */
export type Width = 1 | 4

/**
 * Loads extras at row `m` and from column `n` on as `y{j}{name}`; those that are the same in all rows, or the others.
 */
export function loadExtras(
  e: Epilogue,
  first: number,
  m: string,
  n: string,
  name: string,
  all: boolean,
  width: Width = 4,
) {
  const lines: string[] = []
  e.extras.forEach((kind, j) => {
    if (kind.endsWith('1') !== all) return
    const x = first + e.outs + j
    const half = e.halves[e.outs + j]
    const row = all ? `q${x}` : `q${x} + ${m} * p.r${x}`
    const single = (element: string): string => (half ? `f32(${element})` : element)
    const element = (c: number): string => single(`x${x}[${row} + min(${n} + ${c}, p.n - 1) * p.c${x}]`)
    const value =
      kind[0] === 'r'
        ? single(`x${x}[${row}]`)
        : kind[0] === 's'
          ? [0, 1, 2, 3].slice(0, width).map(element).join(', ')
          : width === 4
            ? `${half ? 'vec4<f32>' : ''}(x${x}[(${row} + min(${n}, p.n - 4)) >> 2u])`
            : single(`x${x}[(${row} + min(${n}, p.n - 1)) >> 2u][(${row} + min(${n}, p.n - 1)) & 3]`)
    lines.push(`let y${j}${name} = ${width === 4 && kind[0] !== 'v' ? `vec4(${value})` : value};`)
  })
  return lines.join('\n')
}

/**
 * Stores `width` columns from (m, n) on, of which `value` has the products; columns past the end are left out, the row
 * must exist. `names`: those of the extras' variables, one per row and the same in all rows.
 */
export function store(
  e: Epilogue,
  first: number,
  m: string,
  n: string,
  value: string,
  names: readonly [string, string],
  width: Width = 4,
) {
  const lines: string[] = []
  const columns = [0, 1, 2, 3].slice(0, width)
  const part = (vector: string, c: number): string => (width === 4 ? `${vector}[${c}]` : vector)
  let results = [columns.map((c) => part(value, c))]
  if (e.program) {
    for (const c of columns) {
      const args = e.extras.map((kind, j) => part(`y${j}${names[kind.endsWith('1') ? 1 : 0]}`, c))
      lines.push(`let f${c} = finish(${[part(value, c), ...args].join(', ')});`)
    }
    results = Array.from({ length: e.outs }, (_, o) => columns.map((c) => `f${c}.r${o}`))
  }
  results.forEach((parts, o) => {
    const x = first + o
    const row = `q${x} + ${m} * p.r${x}`
    if (e.vectors) {
      const all = e.program ? `vec4(${parts.join(', ')})` : value
      lines.push(`x${x}[(${row} + ${n}) >> 2u] = ${e.halves[o] ? `vec4<f16>(${all})` : all};`)
    } else
      parts.forEach((part, c) => {
        const item = e.halves[o] ? `f16(${part})` : part
        lines.push(`if (${n} + ${c} < p.n) { x${x}[${row} + (${n} + ${c}) * p.c${x}] = ${item}; }`)
      })
  })
  return lines.join('\n')
}
