/** What the tests of elementwise kernels share: operands likely to be trouble, run and compared. */

import {
  type Backend,
  type DType,
  type Layout,
  layout,
  type TypedArray,
  type TypedProgram,
} from '@tilegrad/core'
import { spacing } from '../../../test/kernels/math.ts'
import { operand as filled, type Operand } from '../../../test/kernels/operand.ts'
import { runKernelSync } from '../../../test/kernels/primitive.ts'
import { integer, pick, randomLayout } from '../../../test/kernels/random.ts'

export type { Operand }

const specials = [0, -0, 1, -1, 0.5, -0.5, 2, -2.5, 3, Infinity, -Infinity, NaN, 1e-40, -1e-40, 1e30, -3e9]

/** A value that is likely to be trouble for its dtype. */
export function value(rnd: () => number, dtype: DType): number {
  if (dtype === 'bool') return Number(rnd() < 0.5)
  if (dtype === 'int32') {
    return pick(rnd, [
      integer(rnd, -9, 9),
      integer(rnd, -9, 9),
      integer(rnd, -(2 ** 31), 2 ** 31 - 1),
      -(2 ** 31),
    ])
  }
  const kind = rnd()
  if (kind < 0.15) return pick(rnd, specials)
  return (rnd() < 0.5 ? -1 : 1) * 2 ** (kind < 0.6 ? rnd() * 8 - 4 : rnd() * 60 - 30)
}

export const operand = (rnd: () => number, l: Layout, dtype: DType): Operand =>
  filled(l, dtype, () => value(rnd, dtype))

export const dense = (shape: readonly number[]): Layout => layout.contiguous(shape)

/** An input of `shape` or of something that broadcasts to it. */
export function randomInput(rnd: () => number, shape: readonly number[], dtype: DType): Operand {
  const own = shape.map((n) => (rnd() < 0.2 ? 1 : n)).slice(rnd() < 0.2 ? integer(rnd, 0, shape.length) : 0)
  return operand(rnd, randomLayout(rnd, own), dtype)
}

export const randomOutput = (rnd: () => number, shape: readonly number[], dtype: DType): Operand =>
  operand(rnd, randomLayout(rnd, shape, { expand: 0, plain: 0.5 }), dtype)

export function randomShape(rnd: () => number, most = 2000): number[] {
  for (;;) {
    const shape = Array.from({ length: integer(rnd, 0, 5) }, () => pick(rnd, [1, 2, 3, 4, 5, 7, 16, 19, 37]))
    if (layout.numel(shape) <= most) return shape
  }
}

/** Runs an elementwise kernel on a backend, and returns the outputs' whole storages. */
export const runOn = (
  backend: Backend,
  kernel: TypedProgram,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  params: readonly number[] = [],
): TypedArray[] => runKernelSync(backend, 'elementwise', outputs, inputs, { kernel }, params)

/**
 * The first place where two results differ by more than `ulp` units of the last place, or null. 0: by anything but
 * the bits of a NaN (so that −0 is not 0). With `ulp` > 0 results below 2⁻¹²⁶ count as 0.
 */
export function differ(got: TypedArray, want: TypedArray, ulp = 0): string | null {
  if (got.length !== want.length) return `${got.length} elements, expected ${want.length}`
  for (let i = 0; i < got.length; i++) {
    const [g, w] = [got[i] as number, want[i] as number]
    if (Object.is(g, w)) continue
    const close = ulp > 0 && Math.abs(g - w) <= Math.max(2 ** -126, ulp * spacing(w))
    if (!close) return `element ${i}: ${g}, expected ${w}`
  }
  return null
}
