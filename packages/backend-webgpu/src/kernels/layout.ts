/** From the shapes and strides of operands to as few dims as possible. */

import type { View } from '@tilegrad/core'

/** Dims that all operands walk, outermost first; at least one. Strides in elements, by operand. */
export interface Nest {
  readonly sizes: readonly number[]
  readonly strides: readonly (readonly number[])[]
}

/** The dims of views that broadcast to `shape`; merged where every view allows it, unless `asIs`. */
export function nestOf(shape: readonly number[], views: readonly View[], asIs = false): Nest {
  const sizes: number[] = []
  const strides: number[][] = []
  for (let d = 0; d < shape.length; d++) {
    const size = shape[d] as number
    if (size === 1 && !asIs) continue
    const own = views.map((v) => {
      const at = d - (shape.length - v.shape.length)
      return at < 0 || (v.shape[at] === 1 && size !== 1) ? 0 : (v.strides[at] as number)
    })
    const last = strides.at(-1)
    if (!asIs && last?.every((s, i) => s === size * (own[i] as number))) {
      sizes[sizes.length - 1] = (sizes.at(-1) as number) * size
      strides[strides.length - 1] = own
    } else {
      sizes.push(size)
      strides.push(own)
    }
  }
  if (sizes.length === 0) return { sizes: [1], strides: [views.map(() => 0)] }
  return { sizes, strides }
}

/** Workgroups for `count` of them: WebGPU allows 65,535 along a dim. The kernel's index is wg.x + wg.y * groups.x. */
export function grid(count: number): [x: number, y: number] {
  if (count <= 65535) return [count, count === 0 ? 0 : 1]
  const y = Math.ceil(count / 65535)
  return [Math.ceil(count / y), y]
}

/** The sizes and strides of one operand over the dims of a nest, as parameters of a kernel: fields and their values. */
export const walkFields = (name: string, rank: number): string[] => [
  ...Array.from({ length: rank }, (_, d) => `${name}_n${d}: u32`),
  ...Array.from({ length: rank }, (_, d) => `${name}_s${d}: i32`),
]
export const walkWords = ({ sizes, strides }: Nest, operand: number): number[] => [
  ...sizes,
  ...strides.map((s) => s[operand] as number),
]

/** `fn name(i: u32) -> i32`: how far from its first element the operand's i-th one lies, in row-major order. */
export function walkFunction(name: string, rank: number): string {
  const lines = ['var rest = i;', 'var at = 0;']
  for (let d = rank - 1; d > 0; d--)
    lines.push(`at += i32(rest % p.${name}_n${d}) * p.${name}_s${d};`, `rest = rest / p.${name}_n${d};`)
  lines.push(`return at + i32(rest) * p.${name}_s0;`)
  return `fn ${name}(i: u32) -> i32 {\n${lines.join('\n')}\n}`
}

/** Makes a view of another shape on a view's memory. (Tensors are views with getters: `{ ...v }` would lose them.) */
export const viewOf = (
  v: View,
  shape: readonly number[],
  strides: readonly number[],
  offset = v.offset,
): View => ({
  buffer: v.buffer,
  dtype: v.dtype,
  shape,
  strides,
  offset,
})

/** A view with only some of its dims. */
export const pickDims = (v: View, dims: readonly number[]): View =>
  viewOf(
    v,
    dims.map((d) => v.shape[d] as number),
    dims.map((d) => v.strides[d] as number),
  )

/** All dims but one. */
export const otherDims = (v: View, dim: number): number[] => v.shape.map((_, d) => d).filter((d) => d !== dim)

export const numel = (shape: readonly number[]): number => shape.reduce((n, s) => n * s, 1)
