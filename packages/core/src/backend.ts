import type { DType, TypedArray } from './dtype.ts'
import type { Layout } from './layout.ts'
import type { Kernel as ElementwiseKernel } from './program.ts'

/** A backend's own handle of a piece of memory; core never looks inside. */
export type BackendBuffer = object

/** What kernels see of a tensor: its memory and how to walk it. Tensors are views. */
export interface View extends Layout {
  /** The backend's handle of the memory. */
  readonly buffer: BackendBuffer
  /** The type of the elements. */
  readonly dtype: DType
}

/**
 * One operator on one backend. Core has validated the inputs and allocated the outputs (contiguous, unless stated
 * otherwise, or `infer` of the operator asks for another layout); inputs may have any strides.
 */
export interface KernelOf<A> {
  /** Asked on every call; a fused kernel that declines leaves the work to the operator's composition. */
  supports?(inputs: readonly View[], attrs: A): boolean
  /**
   * Says of a kernel for the gradient of a composed operator that, where attribute `adds` is true, there is one
   * more input, of the layout of the first output, which is added to that as it is stored.
   */
  readonly adds?: boolean
  /**
   * Computes the outputs from the inputs; it may return before that is done, if later calls keep their order.
   */
  run(outputs: readonly View[], inputs: readonly View[], attrs: A): void
}

/** What the primitive `reduce` computes of the elements along its dims. */
export type Reduction = 'sum' | 'prod' | 'max' | 'min'

/** The primitives every backend must bring. Everything else in the framework is made of these. */
export interface Primitives {
  /**
   * Any scalar expression over inputs that broadcast to the outputs' common shape, by NumPy's rules. Outputs may be
   * strided (never overlapping in themselves) and may be the very same view as an input: each element is read before
   * it is written.
   */
  elementwise: KernelOf<{ kernel: ElementwiseKernel; params: readonly number[] }>
  /** Reduces `dims` (sorted); the output keeps them with size 1. Max and min give NaN if there is one; sums of int32 wrap. */
  reduce: KernelOf<{ kind: Reduction; dims: readonly number[] }>
  /** Position of the first largest or smallest along `dim`, int32; the output keeps the dim with size 1. NaN wins. */
  argReduce: KernelOf<{ kind: 'max' | 'min'; dim: number }>
  /** out[…, M, N] = a[…, M, K] · b[…, K, N]: equal ranks ≥ 2, equal batch dims (strides may be 0). float or int32. */
  matmul: KernelOf<Record<never, never>>
  /** out[i][j]… = x[…, index[i][j]…, …] along `dim`; inputs x, index (int32). Index sizes elsewhere may be smaller than x's. An index out of range throws ValueError where the backend can look, else reads as 0. */
  gather: KernelOf<{ dim: number }>
  /** out = x; out[…, index[i][j]…, …] += source[i][j]…; inputs x, index (int32), source. Deterministic. */
  scatterAdd: KernelOf<{ dim: number }>
  /**
   * Inclusive running sum or product of x along `dim`, or (affine; inputs a, b) h[i] = a[i]·h[i−1] + b[i] with
   * h[−1] = 0. `reverse` runs from the end.
   */
  scan: KernelOf<{ kind: 'sum' | 'prod' | 'affine'; dim: number; reverse: boolean }>
  /** Stable sort along `dim`; outputs values and int32 indices. NaN counts as the largest. */
  sort: KernelOf<{ dim: number; descending: boolean }>
}

/**
 * Many calls of `elementwise` with one expression as one launch: a fused kernel that a backend may have under the name
 * `foreach`. Call c has the outputs from c · (outputs of the expression) on, the inputs likewise, and `params[c]`.
 * No call reads or writes what another one writes. `supports` is asked call by call, with outputs and inputs in a row.
 */
export type Foreach = KernelOf<{
  kernel: ElementwiseKernel
  params: readonly (readonly number[])[]
}>

/** What a backend brings: all primitives, and fused kernels by the names of their operators. */
export type KernelTable = Primitives & { readonly foreach?: Foreach } & {
  readonly [fused: string]: KernelOf<never> | undefined
}

/** What one launch on a device took, by the device's clock. */
export interface DeviceSpan {
  /** The name of the kernel. */
  readonly label: string
  /** Milliseconds after the first launch that was timed. */
  readonly start: number
  /** How long it took, in milliseconds. */
  readonly ms: number
}

/** Times by the clock of a device that computes after the call has returned; see `profileAsync`. */
export interface DeviceTimer {
  /** From now on launches are timed, which keeps them from overlapping. False: they are already. */
  start(): boolean
  /** How many launches have been timed so far. */
  count(): number
  /** Ends timing: all of them, in order. */
  stop(): Promise<readonly DeviceSpan[]>
}

/** How many operands a backend binds, and what is done about expressions that have more; see `operandLimit`. */
export interface OperandLimit {
  /** The most pieces of memory of one call, outputs and inputs together. */
  readonly most: number
  /** Computes in several calls what has more operands; false, and nothing is done, where all fit in one. */
  split(
    name: string,
    backend: Backend,
    outputs: readonly View[],
    inputs: readonly View[],
    attrs: { kernel: ElementwiseKernel; params: readonly number[] },
  ): boolean
}

/** A computing device: its memory, the primitives, and whichever fused kernels it has, by operator name. */
export interface Backend {
  /** 'reference', 'cpu', 'webgpu' …: what `tensor.device` says. */
  readonly name: string
  /** The device is gone, by its owner's will or not: asked for by name, another one is opened. */
  readonly closed?: boolean
  /**
   * Takes memory for so many bytes of elements of a dtype. Throws OutOfMemoryError where there is none left.
   */
  alloc(bytes: number, dtype: DType): BackendBuffer
  /** Gives memory back that `alloc` gave. */
  free(buffer: BackendBuffer): void
  /**
   * The most bytes that tensors may take, where that is known: core collects garbage when a quarter of it was handed
   * over to the collector. A backend that has none left may call `reclaim` itself.
   */
  readonly limitBytes?: number
  /**
   * How many pieces of memory one call of `elementwise` may touch, and how core computes what has more: made by
   * `operandLimit`. Absent: any number.
   */
  readonly operands?: OperandLimit
  /** What `alloc` of so many bytes takes where that is more, as sizes are rounded up. */
  sizeOf?(bytes: number): number
  /** Fills a contiguous view with as many elements as it has. */
  write(view: View, data: TypedArray): void
  /** A copy of a contiguous view's elements. */
  read(view: View): Promise<TypedArray>
  /** Copies a contiguous view's elements at once; absent where the device answers later only. */
  readSync?(view: View): TypedArray
  /** The primitives, and the fused kernels by the names of their operators. */
  readonly kernels: KernelTable
  /** The device's own clock, where it has one. */
  readonly timer?: DeviceTimer
}
