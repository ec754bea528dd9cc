import { linearPacked, takesPacked } from './packed.ts'
import { packed } from './packed-start.ts'

/**
 * Brings in the kernels that multiply a few rows, as decoding has them, with weights of 8 and of 16 bits. Node has them
 * anyway. In a bundle for browsers, which has them only if this is called, such products otherwise widen the whole weight
 * first; `quantize` of the package `tilegrad` calls it.
 *
 * @example
 * loadPackedProducts()
 */
export function loadPackedProducts(): void {
  packed.takes = takesPacked
  packed.run = linearPacked
}
