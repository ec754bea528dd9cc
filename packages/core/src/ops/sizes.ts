import { addMethods } from '../add-methods.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { wrapDim } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'

/** So many numbers: the sizes of a tensor of that rank. */
export type Sizes<N extends number, Found extends readonly number[] = readonly []> = number extends N
  ? readonly number[]
  : Found['length'] extends N
    ? Found
    : Sizes<N, readonly [...Found, number]>

/**
 * Tells all sizes, as `shape` has them.
 *
 * @example
 * zeros([2, 3]).size() // → [2, 3]
 */
export function size(x: Tensor): readonly number[]
/**
 * Tells the size of a dim; negative dims count from the end.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * zeros([2, 3]).size(-1) // → 3
 */
export function size(x: Tensor, dim: number): number
export function size(x: Tensor, dim?: number): number | readonly number[] {
  const { shape, rank } = asTensor('size', x)
  if (dim === undefined) return shape
  if (rank === 0) throw new ShapeError('size: a scalar has no dims')
  return shape[wrapDim('size', dim, rank)]
}

/**
 * Tells all sizes of a tensor that has `rank` dims, as a tuple of so many numbers: `const [B, T, C] = x.sizes(3)` needs no
 * cast, and is refused where x has other dims.
 *
 * @throws ShapeError if x has another number of dims.
 * @example
 * const [B, T] = zeros([2, 3]).sizes(2)
 * B * T // → 6
 */
export function sizes<const N extends number>(x: Tensor, rank: N): Sizes<N> {
  const { shape } = asTensor('sizes', x)
  if (!Number.isInteger(rank)) throw new ValueError(`sizes: takes the number of dims, got ${String(rank)}`)
  if (shape.length !== rank) throw new ShapeError(`sizes: expected ${rank} dims, got ${show(shape)}`)
  return shape as unknown as Sizes<N>
}

/** The method, whose type follows the number. */
export interface SizesMethod {
  /**
   * Tells all sizes, as `shape` has them.
   *
   * @example
   * zeros([2, 3]).size() // → [2, 3]
   */
  size(): readonly number[]
  /**
   * Tells the size of a dim; negative dims count from the end.
   *
   * @throws ShapeError for a dim that x does not have.
   * @example
   * zeros([2, 3]).size(-1) // → 3
   */
  size(dim: number): number
  /**
   * Tells all sizes of a tensor that has `rank` dims, as a tuple of so many numbers: `const [B, T, C] = x.sizes(3)` needs no
   * cast, and is refused where x has other dims.
   *
   * @throws ShapeError if x has another number of dims.
   * @example
   * const [B, T] = zeros([2, 3]).sizes(2)
   * B * T // → 6
   */
  sizes<const N extends number>(rank: N): Sizes<N>
}

addMethods({ size, sizes })
