/** What the command layer hands around: dispatches, what they use, and who hears of them. */

import type { BufferListener, GpuBuffer } from '../device/buffers.ts'
import type { Scalar } from '../wgsl/block.ts'
import type { Bound, GpuKernel } from './pipelines.ts'

/** Workgroups along each dim. */
export type Grid = readonly [x: number, y: number, z: number]

/** A dispatch that is done again, maybe with other buffers. */
export interface Repeated {
  readonly kernel: GpuKernel
  /** Its parameters, but for those that are numbers of the call's. */
  readonly words: Uint32Array
  readonly grid: Grid
  readonly scalars: readonly Scalar[]
  /** Where its parameters lie, which is for `Params` to know: the offset in bytes, if `era` is the current one. */
  at: number
  era: number
}

/** Memory that the GPU may still have to use: which batch of commands used it last. */
export interface Used {
  readonly gpu: GPUBuffer
  batch: number
}

/** Dispatches with all that they need, to be encoded in one loop. */
export interface Ready {
  readonly kernels: readonly GpuKernel[]
  /** What they bind; the bind groups have been made. */
  readonly bound: readonly Bound[]
  /** Three numbers each: x, y, z. */
  readonly grids: Uint32Array
  /** All that they use, each once. */
  readonly uses: readonly Used[]
}

/** Hears of what a kernel does while it runs. */
export interface KernelListener extends BufferListener {
  /**
   * Hears of a dispatch: `words` are its parameters, but for those that are numbers of the call's, which `values` are.
   * True: it is kept for later, and does not run now.
   */
  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: Grid,
    scalars: readonly Scalar[],
    values: readonly number[],
  ): boolean
  /** Hears that something else is done, which `what` names. */
  other(what: string): void
}
