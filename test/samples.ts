import { type Backend, type DType, type Layout, layout, Tensor, tensor } from '@tilegrad/core'
import { extent } from './kernels/operand.ts'
import { random } from './kernels/random.ts'

/** Arguments of operators as data, so that each test makes them on its backend, in its dtype and memory layout. */

/** What a tensor argument holds. `range` are random numbers, `distinct` are 0.25 apart in random order. */
export interface TensorSpec {
  readonly shape: readonly number[]
  readonly dtype: 'float' | 'int32' | 'bool'
  readonly fill: 'range' | 'away' | 'distinct' | 'list'
  readonly low: number
  readonly high: number
  readonly list: readonly number[]
}

export type Arg =
  | TensorSpec
  | number
  | string
  | boolean
  | null
  | undefined
  | readonly Arg[]
  | { readonly [key: string]: Arg }

const spec = (shape: readonly number[], more: Partial<TensorSpec>): TensorSpec => ({
  shape,
  dtype: 'float',
  fill: 'range',
  low: -2,
  high: 2,
  list: [],
  ...more,
})

/** Floats in a range. */
export const f = (shape: readonly number[], low = -2, high = 2): TensorSpec => spec(shape, { low, high })
/** Floats well above 0. */
export const pos = (shape: readonly number[]): TensorSpec => f(shape, 0.3, 2.5)
/** Floats of both signs that stay away from 0, where many operators have a kink. */
export const away = (shape: readonly number[]): TensorSpec =>
  spec(shape, { fill: 'away', low: 0.3, high: 2.5 })
/** Floats that all differ, for maxima and sorting. */
export const distinct = (shape: readonly number[]): TensorSpec => spec(shape, { fill: 'distinct' })
/** Floats as listed. */
export const list = (shape: readonly number[], values: readonly number[]): TensorSpec =>
  spec(shape, { fill: 'list', list: values })
/** Whole numbers low … high − 1. */
export const int = (shape: readonly number[], low = -5, high = 6): TensorSpec =>
  spec(shape, { dtype: 'int32', low, high })
export const ints = (shape: readonly number[], values: readonly number[]): TensorSpec =>
  spec(shape, { dtype: 'int32', fill: 'list', list: values })
export const bool = (shape: readonly number[]): TensorSpec => spec(shape, { dtype: 'bool', low: 0, high: 2 })

export const isSpec = (a: Arg): a is TensorSpec =>
  typeof a === 'object' && a !== null && !Array.isArray(a) && 'fill' in a

function valuesOf(s: TensorSpec, draw: () => number): number[] {
  const n = layout.numel(s.shape)
  if (s.fill === 'list') return [...s.list]
  if (s.fill === 'distinct') {
    const out = Array.from({ length: n }, (_, i) => (i - n / 2) * 0.25 + 0.125 * draw())
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(draw() * (i + 1))
      ;[out[i], out[j]] = [out[j], out[i]]
    }
    return out
  }
  return Array.from({ length: n }, () => {
    const v = s.low + draw() * (s.high - s.low)
    if (s.dtype !== 'float') return Math.floor(v)
    return s.fill === 'away' && draw() < 0.5 ? -v : v
  })
}

/** How a tensor lies in memory. All but 'dense' have gaps or an order of their own. */
export const LAYOUTS = ['dense', 'strided', 'transposed', 'flipped', 'expanded'] as const
export type LayoutKind = (typeof LAYOUTS)[number]

function layoutOf(kind: LayoutKind, shape: readonly number[]): Layout {
  const dense = layout.contiguousStrides(shape)
  switch (kind) {
    case 'dense':
      return { shape, strides: dense, offset: 0 }
    case 'strided':
      return { shape, strides: dense.map((s) => 2 * s), offset: 3 }
    case 'transposed':
      return { shape, strides: layout.contiguousStrides([...shape].reverse()).reverse(), offset: 1 }
    case 'flipped':
      return { shape, strides: dense.map((s) => -s), offset: Math.max(0, layout.numel(shape) - 1) + 2 }
    case 'expanded':
      return { shape, strides: dense.map((s, i) => (i === 0 ? 0 : s)), offset: 2 }
  }
}

/**
 * A view with the given elements and strides over memory whose other elements are poison (NaN, or a large integer).
 * Where strides of 0 make elements share memory the last one stays.
 */
export function placed(values: ArrayLike<number>, at: Layout, dtype: DType, device: Backend): Tensor {
  const poison = dtype === 'bool' ? 1 : dtype === 'int32' ? 0x55555555 : Number.NaN
  const memory = new Array<number>(extent(at) + 2).fill(poison)
  layout.forEachOffset(at, (offset, i) => {
    memory[offset] = values[i]
  })
  const base = tensor(memory, [memory.length], { dtype, device })
  const view = base.viewAs(at)
  base.dispose()
  return view
}

export interface Making {
  readonly backend: Backend
  /** What 'float' means. */
  readonly float: Extract<DType, `${string}float${string}`>
  readonly layout: LayoutKind
  readonly seed: number
  readonly requiresGrad?: boolean
}

/** An operator's arguments as tensors; the same seed gives the same elements on every backend and in every layout. */
export function make(args: readonly Arg[], how: Making): unknown[] {
  const draw = random(how.seed)
  const build = (a: Arg): unknown => {
    if (isSpec(a)) {
      const dtype = a.dtype === 'float' ? how.float : a.dtype
      const t = placed(valuesOf(a, draw), layoutOf(how.layout, a.shape), dtype, how.backend)
      if (how.requiresGrad && a.dtype === 'float') t.requiresGrad = true
      return t
    }
    if (Array.isArray(a)) return a.map(build)
    if (typeof a === 'object' && a !== null)
      return Object.fromEntries(Object.entries(a).map(([k, v]) => [k, build(v)]))
    return a
  }
  return args.map(build)
}

/** Every tensor among arguments, in order. */
export function tensorsIn(args: unknown): Tensor[] {
  if (args instanceof Tensor) return [args]
  if (typeof args !== 'object' || args === null) return []
  return Object.values(args).flatMap(tensorsIn)
}

/** The arguments with their tensors replaced, in order. */
export function replaced(args: readonly unknown[], tensors: readonly Tensor[]): unknown[] {
  let next = 0
  const build = (a: unknown): unknown => {
    if (a instanceof Tensor) return tensors[next++]
    if (Array.isArray(a)) return a.map(build)
    if (typeof a === 'object' && a !== null)
      return Object.fromEntries(Object.entries(a).map(([k, v]) => [k, build(v)]))
    return a
  }
  return args.map(build)
}
