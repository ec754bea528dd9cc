/** What products have in common: parameters, places of matrices, and what happens to an element before it is stored. */

import type { KernelOf, Primitives } from '@tilegrad/core'
import type { Binding, Item } from '../shader.ts'
import { lower } from '../wgsl/lowering.ts'
import { mathCode } from '../wgsl/math.ts'
import { aligned, type Matrix, type Problem } from './matmul-problem.ts'

type Attrs = Primitives['elementwise'] extends KernelOf<infer A> ? A : never
export type Program = Attrs['kernel']

/** How elements are stored, and how what the program adds is read: all that code depends on. */
export interface Epilogue {
  readonly type: 'f32' | 'i32'
  readonly outs: number
  /** Outputs are written in vectors of four. */
  readonly vectors: boolean
  /** For each extra: one per row ('r'), vectors ('v') or single elements ('s'); '1' after that: the same in all rows. */
  readonly extras: readonly string[]
  /** Of the product and extras; none: the product itself. */
  readonly program: Program | undefined
}

export function epilogueOf(p: Problem, program: Program | undefined): Epilogue {
  return {
    type: p.type,
    outs: p.outs.length,
    vectors: p.n % 4 === 0 && p.outs.every((x) => x.column === 1 && aligned(x, x.row)),
    extras: p.extras.map((x) => {
      const kind = x.column === 0 ? 'r' : x.column === 1 && p.n % 4 === 0 && aligned(x, x.row) ? 'v' : 's'
      return x.row === 0 ? `${kind}1` : kind
    }),
    program,
  }
}

export const epilogueKey = (e: Epilogue): string =>
  `${e.type}${e.outs}${e.vectors ? 'v' : 's'}${e.extras.join()}:${e.program?.id ?? ''}`

/** Numbers every kernel gets before its matrices'. */
const scalars = ['total', 'tilesN', 'tilesM', 'splits', 'kStep', 'm', 'n', 'k']

/** Names of the parameters for so many matrices and dims of the batch; `values` gives them in this order. */
export function fields(matrices: number, dims: number): string[] {
  const names = [...scalars]
  for (let i = 0; i < matrices; i++) {
    names.push(`o${i}`, `r${i}`, `c${i}`)
    for (let d = 0; d < dims; d++) names.push(`t${i}_${d}`)
  }
  for (let d = 0; d < dims; d++) names.push(`n${d}`)
  return names.map((n) => `${n}: i32`)
}

export function values(
  first: readonly number[],
  matrices: readonly Matrix[],
  sizes: readonly number[],
): number[] {
  const words = [...first]
  for (const x of matrices) {
    words.push(x.offset, x.row, x.column)
    for (const stride of x.batch) words.push(stride)
  }
  words.push(...sizes)
  return words
}

/** `q0`, `q1` …: where matrices start for the item of the batch that `item` counts (which this uses up). */
export function places(matrices: number, dims: number): string {
  const lines = Array.from({ length: matrices }, (_, i) => `var q${i} = p.o${i};`)
  for (let d = dims - 1; d >= 0; d--) {
    lines.push(`let at${d} = item % p.n${d}; item /= p.n${d};`)
    for (let i = 0; i < matrices; i++) lines.push(`q${i} += at${d} * p.t${i}_${d};`)
  }
  return lines.join('\n')
}

/** The outputs and extras as bindings `x{first}` and so on. */
export function bindings(e: Epilogue, first: number): Binding[] {
  const of = (vector: boolean): Item => (vector ? `vec4<${e.type}>` : e.type)
  return [
    ...Array.from({ length: e.outs }, (_, i) => ({
      name: `x${first + i}`,
      item: of(e.vectors),
      write: true,
    })),
    ...e.extras.map((kind, i) => ({ name: `x${first + e.outs + i}`, item: of(kind[0] === 'v') })),
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

/** Loads extras at row `m` and columns `n` and on as `y{j}{name}`; those that are the same in all rows, or the others. */
export function loadExtras(e: Epilogue, first: number, m: string, n: string, name: string, all: boolean) {
  const lines: string[] = []
  e.extras.forEach((kind, j) => {
    if (kind.endsWith('1') !== all) return
    const x = first + e.outs + j
    const row = all ? `q${x}` : `q${x} + ${m} * p.r${x}`
    const value =
      kind[0] === 'r'
        ? `vec4(x${x}[${row}])`
        : kind[0] === 'v'
          ? `x${x}[(${row} + min(${n}, p.n - 4)) >> 2u]`
          : `vec4(${[0, 1, 2, 3].map((c) => `x${x}[${row} + min(${n} + ${c}, p.n - 1) * p.c${x}]`).join(', ')})`
    lines.push(`let y${j}${name} = ${value};`)
  })
  return lines.join('\n')
}

/**
 * Stores four columns from (m, n) on, `value` being a vector; columns past the end are left out, the row must exist.
 * `name` and `nameOfAll`: those of the extras' variables.
 */
export function store(
  e: Epilogue,
  first: number,
  m: string,
  n: string,
  value: string,
  names: readonly [string, string],
) {
  const lines: string[] = []
  let results = [[0, 1, 2, 3].map((c) => `${value}[${c}]`)]
  if (e.program) {
    for (let c = 0; c < 4; c++) {
      const args = e.extras.map((kind, j) => `y${j}${names[kind.endsWith('1') ? 1 : 0]}[${c}]`)
      lines.push(`let f${c} = finish(${[`${value}[${c}]`, ...args].join(', ')});`)
    }
    results = Array.from({ length: e.outs }, (_, o) => [0, 1, 2, 3].map((c) => `f${c}.r${o}`))
  }
  results.forEach((parts, o) => {
    const x = first + o
    const row = `q${x} + ${m} * p.r${x}`
    if (e.vectors) {
      const all = e.program ? `vec4(${parts.join(', ')})` : value
      lines.push(`x${x}[(${row} + ${n}) >> 2u] = ${all};`)
    } else
      parts.forEach((part, c) => {
        lines.push(`if (${n} + ${c} < p.n) { x${x}[${row} + (${n} + ${c}) * p.c${x}] = ${part}; }`)
      })
  })
  return lines.join('\n')
}
