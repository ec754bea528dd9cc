/** Loops over operands, of as few dims as possible, as parameters and code of kernels. */

import type { View } from '@tilegrad/core'
import { collapse, type Nest, stridesOver, viewOf } from '@tilegrad/core/kernel'
import { type Part, several } from '../wgsl/block.ts'

/** The loops over views that broadcast to `shape`, of one dim at least; merged where every view allows it, unless `asIs`. */
export function nestOf(shape: readonly number[], views: readonly View[], asIs = false): Nest {
  const strides = views.map((v) => stridesOver(v, shape))
  const nest = asIs ? { sizes: shape, strides } : collapse(shape, strides)
  return nest.sizes.length > 0 ? nest : { sizes: [1], strides: views.map(() => [0]) }
}

/** Workgroups for `count` of them: WebGPU allows 65,535 along a dim. The kernel's index is wg.x + wg.y * groups.x. */
export function grid(count: number): [x: number, y: number] {
  if (count <= 65535) return [count, count === 0 ? 0 : 1]
  const y = Math.ceil(count / 65535)
  return [Math.ceil(count / y), y]
}

/** One operand's way over the dims of a nest. */
export interface Walk {
  readonly sizes: readonly number[]
  readonly strides: readonly number[]
}

export const walkOf = ({ sizes, strides }: Nest, operand: number): Walk => ({
  sizes,
  strides: strides[operand],
})

/** The parameters that `walkFunction` needs. */
export const walk = (rank: number): Part<Walk> =>
  several(
    (name) => walkFields(name, rank),
    ({ sizes, strides }) => [...sizes, ...strides],
  )

export const walkFields = (name: string, rank: number): string[] => [
  ...Array.from({ length: rank }, (_, d) => `${name}_n${d}: u32`),
  ...Array.from({ length: rank }, (_, d) => `${name}_s${d}: i32`),
]

/** `fn name(i: u32) -> i32`: how far from its first element the operand's i-th one lies, in row-major order. */
export function walkFunction(name: string, rank: number): string {
  const lines = ['var rest = i;', 'var at = 0;']
  for (let d = rank - 1; d > 0; d--)
    lines.push(`at += i32(rest % p.${name}_n${d}) * p.${name}_s${d};`, `rest = rest / p.${name}_n${d};`)
  lines.push(`return at + i32(rest) * p.${name}_s0;`)
  return `fn ${name}(i: u32) -> i32 {\n${lines.join('\n')}\n}`
}

/** A view with only some of its dims. */
export const pickDims = (v: View, dims: readonly number[]): View =>
  viewOf(
    v,
    dims.map((d) => v.shape[d]),
    dims.map((d) => v.strides[d]),
  )

/** All dims but one. */
export const otherDims = (v: View, dim: number): number[] => v.shape.map((_, d) => d).filter((d) => d !== dim)
