/** Reductions of any layout in the order in which they are best walked, and their element types. */

import type { Reduction, View } from '@tilegrad/core'
import { collapse, type Nest } from '@tilegrad/core/kernel'
import { double, word } from '../../block.ts'
import type { Engine } from '../../engine.ts'
import { type Exprs, type FunctionBuilder, f32, f64, type I32, i32 } from '../../wasm/index.ts'
import { type Fold, floatFolds, intFolds } from '../rows.ts'

/** Large reductions are cut into pieces of about this many elements. */
export const pieceElements = 16384

/** An element type: what totals are, and how one element gets into and out of memory. */
export interface Element<T extends 'f64' | 'i32'> {
  readonly bytes: number
  readonly folds: Readonly<Record<Reduction, Fold<T>>>
  load(ptr: I32): Exprs[T]
  store(f: FunctionBuilder, ptr: I32, value: Exprs[T]): void
}

const float32: Element<'f64'> = {
  bytes: 4,
  folds: floatFolds,
  load: (ptr) => f64.promoteF32(f32.load(ptr)),
  store: (f, ptr, value) => f.store(ptr, f32.demoteF64(value)),
}
const float64: Element<'f64'> = {
  bytes: 8,
  folds: floatFolds,
  load: (ptr) => f64.load(ptr),
  store: (f, ptr, value) => f.store(ptr, value),
}
const int32: Element<'i32'> = {
  bytes: 4,
  folds: intFolds,
  load: (ptr) => i32.load(ptr),
  store: (f, ptr, value) => f.store(ptr, value),
}
const bool: Element<'i32'> = {
  bytes: 1,
  folds: intFolds,
  load: (ptr) => i32.load8U(ptr),
  store: (f, ptr, value) => f.storeLow(8, ptr, value),
}
export const elements = { float32, float64, int32, bool } as const

/** A reduction, with its dims in the order in which it is walked. Strides in elements. */
export interface Plan {
  readonly kind: Reduction
  readonly dtype: keyof typeof elements
  /** Byte addresses of the first elements. */
  readonly x: number
  readonly out: number
  /** Strides of x and of out. */
  readonly kept: Nest
  readonly reduced: Nest
  /** The number of times that expanded elements are summed. */
  readonly factor: number
}

export function plan(engine: Engine, out: View, x: View, kind: Reduction, dims: readonly number[]): Plan {
  const dtype = x.dtype as keyof typeof elements
  const { bytes } = elements[dtype]
  let from = engine.address(x)
  let to = engine.address(out)
  let factor = 1
  const kept: Dim[] = []
  const reduced: Dim[] = []
  for (let d = 0; d < x.shape.length; d++) {
    const size = x.shape[d]
    if (size === 1) continue
    const isKept = !dims.includes(d)
    const backwards = x.strides[d] < 0
    const stride = Math.abs(x.strides[d])
    const step = isKept ? out.strides[d] : 0
    // Backwards is as good as forwards: the order only has to be fixed.
    if (backwards) {
      from -= (size - 1) * stride * bytes
      to += (size - 1) * step * bytes
    }
    if (isKept) kept.push({ size, stride, step: backwards ? -step : step })
    else if (stride !== 0 || kind === 'prod') reduced.push({ size, stride, step })
    else if (kind === 'sum') factor *= size
  }
  const none = { sizes: [1], strides: [[1]] }
  const inner = reduced.length > 0 ? nest(reduced, 1) : none
  return { kind, dtype, x: from, out: to, kept: nest(kept, 2), reduced: inner, factor }
}

interface Dim {
  readonly size: number
  readonly stride: number
  /** Stride of the result. */
  readonly step: number
}

/** The densest dim innermost; those that x repeats (only kept ones are left) outermost. */
function nest(dims: Dim[], operands: 1 | 2): Nest {
  if (dims.length > 1) dims.sort((a, b) => (b.stride || Infinity) - (a.stride || Infinity) || 0)
  const strides = [dims.map((d) => d.stride), dims.map((d) => d.step)]
  return collapse(
    dims.map((d) => d.size),
    operands === 2 ? strides : [strides[0]],
  )
}

/** Whether totals are i32. */
export const isInt = (dtype: keyof typeof elements): boolean => dtype === 'int32' || dtype === 'bool'

/** The factor as parameters: an i32, which wraps, as sums do, and a float64. */
export const scaleParams = { whole: word, factor: double }
export const scaleOf = ({ factor }: Pick<Plan, 'factor'>) => ({ whole: factor % 2 ** 32, factor })
