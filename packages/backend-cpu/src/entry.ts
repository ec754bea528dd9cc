/**
 * What the engine is entered by. In the files for Node entry-on-demand.ts stands in for this one, and this one is the file
 * that it loads.
 */
export { createCpuBackend } from './backend.ts'
export { loadPackedProducts } from './kernels/matmul/load-packed.ts'
export { createPeaks } from './machine/peaks.ts'
