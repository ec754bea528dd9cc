/**
 * The CPU backend of tilegrad: WebAssembly SIMD kernels, made at run time, on all cores.
 *
 * @packageDocumentation
 */

import './globals.ts'

export type { CpuBackend, CpuOptions } from './backend.ts'
export { createCpuBackend, createPeaks, loadPackedProducts } from './entry.ts'
export { WorkerDiedError } from './errors.ts'
export type { FeatureLevel } from './machine/features.ts'
export type { HeapStats } from './machine/heap.ts'
export type { Peaks } from './machine/peaks.ts'
