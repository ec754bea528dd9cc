/** Where the workers of a pool and the pool meet in shared memory. */

// The control block, in words of 4 bytes; what different threads write lies 128 bytes apart.
export const remaining = 0
export const pending = 32
export const task = 64 // entry, params, total, rows per chunk, chunks, whether `thread` is the number of the chunk
export const callerWaits = 96
export const failed = 128 // whether an error was reported, the length of its text, the text
export const failedBytes = 1016
export const firstLine = 384
/** Words of each worker: whether it owns or seeks a chunk, whether it sleeps, whether it has started. */
export const busy = 0
export const asleep = 1
export const up = 2
export const lineWords = 32
