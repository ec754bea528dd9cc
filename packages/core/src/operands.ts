/**
 * What backends need that bind few pieces of memory at once: on its own, as bundlers load with a page whatever shares an
 * entry with what the page needs.
 *
 * @module operands
 */
export { operandLimit } from './primitives/parts.ts'
