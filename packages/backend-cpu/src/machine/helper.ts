/** What a pool knows of its workers, wherever they run. */

/** A worker as the pool sees it, in Node and in browsers alike. */
export interface Helper {
  readonly thread: number
  /** Settles when it has started, or cannot. */
  readonly started: Promise<void>
  /** Whether the worker is gone and accounted for. */
  ended: boolean
  /** Asks, without the event loop, whether the thread still runs; 'unknown' until the event loop saw it start. */
  alive(): boolean | 'unknown'
  /** Makes the process stay up for the worker, or not. */
  hold(on: boolean): void
  /** Ends it, wherever it is. */
  terminate(): Promise<void>
}

/** What a worker is given when it starts. */
export interface StartData {
  readonly memory: WebAssembly.Memory
  readonly control: number
  readonly words: number
  readonly thread: number
  readonly spin: number
}

/** A worker that does nothing as yet, or cannot be started. */
export function idleHelper(thread: number, started: Promise<void>): Helper {
  // The failure is for `ready()` to tell; if nobody asks, it is no unhandled rejection.
  started.catch(() => {})
  return { thread, started, ended: false, alive: () => true, hold: () => {}, terminate: async () => {} }
}
