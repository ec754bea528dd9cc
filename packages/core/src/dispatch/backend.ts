import type { TypedProgram } from '../expr/program.ts'
import type { DType, TypedArray } from '../tensor/dtype.ts'
import type { Layout } from '../tensor/layout.ts'
import type { Call } from './call.ts'
import type { KernelTable } from './kernels.ts'

/** A backend's own handle of a piece of memory; core never looks inside. */
export type BackendBuffer = object

/** What kernels see of a tensor: its memory and how to walk it. Tensors are views. */
export interface View extends Layout {
  /** The backend's handle of the memory. */
  readonly buffer: BackendBuffer
  /** The type of the elements. */
  readonly dtype: DType
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
  /** Says whether operands are too many for one call. */
  exceeded(outputs: readonly View[], inputs: readonly View[]): boolean
  /** Computes an expression in several calls, each made by `launch`. */
  split(
    backend: Backend,
    program: TypedProgram,
    outputs: readonly View[],
    inputs: readonly View[],
    launch: (part: TypedProgram, outputs: readonly View[], inputs: readonly View[]) => void,
  ): void
}

/** Calls that were made ready to run again and again, in order, on the memory that their views name. */
export interface Prepared {
  /** How many launches one run takes. */
  readonly launches: number
  /** Runs all calls once. Numbers are those that the `numbers` of each call, the very same array, holds then. */
  run(): void
  /** Gives back what the preparation took, such as temporaries of kernels. The views' memory is the caller's. */
  release(): void
}

/** What a backend brings whose tensors may lie elsewhere for a while, in the host's memory or a file; see `offload`. */
export interface Exchange {
  /** Bytes that are taken now, by tensors and by kernels for their work. */
  usedBytes(): number
  /** Gives the memory of a buffer back and keeps the buffer, which nobody uses until `enter`. */
  leave(buffer: BackendBuffer): void
  /** Takes memory for a buffer again; its contents are undefined. Throws OutOfMemoryError where there is none left. */
  enter(buffer: BackendBuffer, bytes: number, dtype: DType): void
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
  /** Fills a contiguous view with as many elements as it has; those of 16 bits come as numbers, see `pack`. */
  write(view: View, data: TypedArray): void
  /** A copy of a contiguous view's elements. */
  read(view: View): Promise<TypedArray>
  /** Copies a contiguous view's elements at once; absent where the device answers later only. */
  readSync?(view: View): TypedArray
  /**
   * Makes calls ready to run many times: what kernels work out from layouts and attributes is worked out once. It runs
   * none of them. Absent: they are run kernel by kernel.
   */
  prepare?(calls: readonly Call[]): Prepared
  /** Lets tensors lie elsewhere for a while; absent where memory is the host's own. */
  readonly exchange?: Exchange
  /** The primitives, and the fused kernels by the names of their operators. */
  readonly kernels: KernelTable
  /** The device's own clock, where it has one. */
  readonly timer?: DeviceTimer
}
