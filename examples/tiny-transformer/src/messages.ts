import type { Options } from './options.ts'

/** What the thread that computes tells the one that has the terminal. */
export type Message =
  /** Lines for the standard output. */
  | { readonly say: string }
  /** A line for the standard error, behind the program's name. */
  | { readonly warn: string }
  /** Training begins: there may be a bar now. */
  | { readonly begin: number }
  | { readonly step: number; readonly loss: number; readonly tokensPerSecond: number }
  | { readonly validated: number; readonly loss: number }
  /** Training is over: no bar any more. */
  | { readonly end: true }
  /** The last message: why the run failed, or null, and the exit code. */
  | { readonly failed: string | null; readonly code: number }

/** What the thread that computes is started with. */
export interface Task {
  readonly job: 'tour' | 'recipe'
  readonly options: Options
  /** Memory of both threads, int32; places below. */
  readonly shared: SharedArrayBuffer
  /** Columns of the terminal, and whether it has colours. */
  readonly columns: number
  readonly colors: boolean
}

/** In the shared memory: how often the run was asked to stop; the second time it ends at once. */
export const STOP = 0
/** In the shared memory: 1 as soon as there is something to keep. */
export const LEARNED = 1
