/**
 * The CPU backend of tilegrad: WebAssembly SIMD kernels, made at run time, on all cores.
 *
 * @packageDocumentation
 */

import './globals.ts'

export { type CpuBackend, type CpuOptions, createCpuBackend } from './backend.ts'
export type { FeatureLevel } from './features.ts'
export type { HeapStats } from './memory.ts'
export { createPeaks, type Peaks } from './peaks.ts'
export { WorkerDiedError } from './pool.ts'
