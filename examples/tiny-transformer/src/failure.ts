import { OutOfMemoryError, TilegradError } from 'tilegrad'
import { WriteError } from './files.ts'
import { RunError } from './usage-error.ts'

const SMALLER = 'try a smaller --batch, --block, --width, --layers or --eval-batches'

/** What to say of an error that is no fault of the program: one line; null for all others. */
export function failureOf(error: unknown): string | null {
  if (!(error instanceof Error)) return null
  const line = error.message.replaceAll(/\s*\n\s*/g, '; ')
  if (error instanceof RunError || error instanceof WriteError) return line
  if (error instanceof OutOfMemoryError) return `${line.replace(/; free tensors.*$/, '')}; ${SMALLER}`
  if (error instanceof TilegradError) return line
  // What JavaScript engines say when a buffer or a string cannot be had.
  if (error instanceof RangeError && /alloc|array length|string length|buffer|memory/i.test(error.message))
    return `out of memory (${line}); ${SMALLER}`
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ERR_WORKER_OUT_OF_MEMORY') return `out of memory: JavaScript's heap is full; ${SMALLER}`
  return null
}
