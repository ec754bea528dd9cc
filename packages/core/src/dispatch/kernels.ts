/**
 * Everything that a backend brings, by name, and what decides the code of each kernel. Fused kernels are beside their operators.
 * A backend that lacks a primitive, misspells a kernel or reads an attribute that does not exist does not compile.
 */

import type { TypedProgram } from '../expr/program.ts'
import type { DType } from '../tensor/dtype.ts'
import type { View } from './backend.ts'

/**
 * One operator on one backend. Core has validated the inputs and allocated the outputs (contiguous, unless stated
 * otherwise, or `infer` of the operator asks for another layout); inputs may have any strides.
 */
export interface KernelOf<A> {
  /**
   * The dtypes that its code is for: of each input in its order, the last entry also of all that follow. A fused kernel
   * leaves others to the operator's composition, a primitive to the backend's slow way. Absent: all that are stored.
   */
  readonly dtypes?: readonly (readonly DType[])[]
  /**
   * Asked on every call, of inputs of those dtypes; a fused kernel that declines leaves the work to the operator's
   * composition.
   */
  supports?(inputs: readonly View[], attrs: A): boolean
  /**
   * Says that it fills outputs of float32 as well where inputs have 16 bits, for which `autocast` asks of norms and losses.
   * Without it their operands are converted for it.
   */
  readonly wide?: boolean
  /**
   * Says of a kernel for the gradient of a composed operator that, where attribute `adds` is true, there is one
   * more input, of the layout of the first output, which is added to that as it is stored.
   */
  readonly adds?: boolean
  /**
   * Computes the outputs from the inputs; it may return before that is done, if later calls keep their order. `numbers`
   * are of this call alone (a learning rate, the draw of random numbers): no code depends on them.
   */
  run(outputs: readonly View[], inputs: readonly View[], attrs: A, numbers: readonly number[]): void
}

/** What the primitive `reduce` computes of the elements along its dims. */
export type Reduction = 'sum' | 'prod' | 'max' | 'min'

/** Attributes of `elementwise` and `foreach`. */
export interface ElementwiseAttrs {
  /** What is computed of each element. */
  readonly kernel: TypedProgram
}

/** Attributes of `reduce`. */
export interface ReduceAttrs {
  /** What is computed of the elements along the dims. */
  readonly kind: Reduction
  /** The dims that are reduced, sorted. */
  readonly dims: readonly number[]
}

/** Attributes of `argReduce`. */
export interface ArgReduceAttrs {
  /** Which element is looked for. */
  readonly kind: 'max' | 'min'
  /** The dim along which it is looked for. */
  readonly dim: number
}

/** Attributes of what works along one dim. */
export interface DimAttrs {
  /** The dim. */
  readonly dim: number
}

/** Attributes of `scan`. */
export interface ScanAttrs {
  /** What runs along the dim. */
  readonly kind: 'sum' | 'prod' | 'affine'
  /** The dim. */
  readonly dim: number
  /** From the end to the start. */
  readonly reverse: boolean
}

/** Attributes of `sort`. */
export interface SortAttrs {
  /** The dim. */
  readonly dim: number
  /** The largest first. */
  readonly descending: boolean
}

/** The primitives every backend must bring. Everything else in the framework is made of these. */
export interface Primitives {
  /**
   * Any scalar expression over inputs that broadcast to the outputs' common shape, by NumPy's rules. Outputs may be
   * strided (never overlapping in themselves) and may be the very same view as an input: each element is read before
   * it is written. The numbers are those of the expression's program.
   */
  readonly elementwise: KernelOf<ElementwiseAttrs>
  /** Reduces `dims` (sorted); the output keeps them with size 1. Max and min give NaN if there is one; sums of int32 wrap. */
  readonly reduce: KernelOf<ReduceAttrs>
  /** Position of the first largest or smallest along `dim`, int32; the output keeps the dim with size 1. NaN wins. */
  readonly argReduce: KernelOf<ArgReduceAttrs>
  /** out[…, M, N] = a[…, M, K] · b[…, K, N]: equal ranks ≥ 2, equal batch dims (strides may be 0). float or int32. */
  readonly matmul: KernelOf<object>
  /** out[i][j]… = x[…, index[i][j]…, …] along `dim`; inputs x, index (int32). Index sizes elsewhere may be smaller than x's. An index out of range throws ValueError where the backend can look, else reads as 0. */
  readonly gather: KernelOf<DimAttrs>
  /** out = x; out[…, index[i][j]…, …] += source[i][j]…; inputs x, index (int32), source. Deterministic. */
  readonly scatterAdd: KernelOf<DimAttrs>
  /**
   * Inclusive running sum or product of x along `dim`, or (affine; inputs a, b) h[i] = a[i]·h[i−1] + b[i] with
   * h[−1] = 0. `reverse` runs from the end.
   */
  readonly scan: KernelOf<ScanAttrs>
  /** Stable sort along `dim`; outputs values and int32 indices. NaN counts as the largest. */
  readonly sort: KernelOf<SortAttrs>
}

/** The attributes of an operator's gradient kernel. */
export type GradientAttrs<A> = A & {
  /** Which inputs of the operator need a gradient: those are the outputs, in order. */
  readonly needs: readonly boolean[]
  /** There is one more input, which is added to the first output: see `KernelOf.adds`. */
  readonly adds?: boolean
}

/**
 * The fused kernels that a backend may bring, and what decides the code of each: every operator that has one adds it here,
 * in its own file. The kernel of an operator's gradient gets the operator's inputs, its outputs and what it saved, and the
 * gradients of its outputs.
 *
 * Operators of your own can have kernels, too: `declare module '@tilegrad/core' { interface FusedKernels { … } }`.
 */
export interface FusedKernels {
  /**
   * Many calls of `elementwise` with one expression as one launch. Call c has the outputs from c · (outputs of the
   * expression) on, the inputs and the numbers likewise. No call reads or writes what another one writes. `supports` is
   * asked call by call, with outputs and inputs in a row.
   */
  readonly foreach?: KernelOf<ElementwiseAttrs>
}

/** What a backend brings: all primitives, and those of the fused kernels that it has. */
export interface KernelTable extends Primitives, FusedKernels {}

/**
 * A table with every kernel replaced by what `wrap` makes of it. `same` picks the kernel of the same name from another
 * table.
 *
 * @example
 * const { kernels } = defaultBackend()
 * const names: string[] = []
 * wrapKernels(kernels, (kernel, name) => {
 *   names.push(name)
 *   return kernel
 * })
 * names.includes('matmul') // → true
 */
export function wrapKernels<T extends FusedKernels>(
  table: T,
  wrap: <A extends object>(
    kernel: KernelOf<A>,
    name: string,
    same: (other: T) => KernelOf<A> | undefined,
  ) => KernelOf<A>,
): T {
  // The type of a kernel's attributes goes with its name, which TypeScript cannot say of a loop.
  type Any = Readonly<Record<string, KernelOf<object> | undefined>>
  const wrapped: Record<string, KernelOf<object>> = {}
  for (const [name, kernel] of Object.entries(table as unknown as Any))
    if (kernel) wrapped[name] = wrap(kernel, name, (other) => (other as unknown as Any)[name])
  return wrapped as unknown as T
}
