/** The workers of a pool: how they are started in Node and in browsers. */

import { TilegradError } from '@tilegrad/core'
import { nodeProcess } from './features.ts'
import { workerSource } from './worker-source.ts'

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

/** Starts a worker; `onEnd` is called in a later turn of the event loop than that in which it ends. */
export function startWorker(data: StartData, onEnd: (helper: Helper) => void): Helper {
  const node = nodeProcess()?.getBuiltinModule('node:worker_threads')
  try {
    return node === undefined ? startInBrowser(data) : startInNode(node, data, onEnd)
  } catch (error) {
    // Workers can be forbidden (Node's --permission, a content security policy): the pool does without.
    return idleHelper(data.thread, Promise.reject(error))
  }
}

function idleHelper(thread: number, started: Promise<void>): Helper {
  // The failure is for `ready()` to tell; if nobody asks, it is no unhandled rejection.
  started.catch(() => {})
  return { thread, started, ended: false, alive: () => true, hold: () => {}, terminate: async () => {} }
}

function startInNode(
  threads: typeof import('node:worker_threads'),
  data: StartData,
  onEnd: (helper: Helper) => void,
): Helper {
  const worker = new threads.Worker(workerSource, {
    eval: true,
    workerData: data,
    // Loaders and flags of the main program are not for this code; they would cost tens of milliseconds.
    execArgv: [],
    env: threads.SHARE_ENV,
    trackUnmanagedFds: false,
  })
  worker.unref()
  const started = new Promise<void>((resolve, reject) => {
    worker.once('message', () => {
      // Asked once while it lives, Node tells later that it has gone.
      helper.alive()
      resolve()
    })
    worker.once('error', reject)
    worker.once('exit', (code) =>
      reject(new TilegradError(`pool: worker ${data.thread} ended, code ${code}`)),
    )
  })
  let exited = false
  const helper: Helper = {
    ...idleHelper(data.thread, started),
    // Reads the state of the thread without a turn of the caller's event loop. Node gives idle = −1 for a thread that
    // has gone, and zeros, whatever the thread does, until the caller's event loop has seen it start.
    alive: () => {
      const { idle, active } = worker.performance.eventLoopUtilization()
      if (exited || idle === -1) return false
      return active > 0 ? true : 'unknown'
    },
    hold: (on) => (on ? worker.ref() : worker.unref()),
    terminate: async () => {
      await worker.terminate()
    },
  }
  // An 'error' event that nobody listens to would end the process.
  worker.on('error', () => {})
  worker.once('exit', () => {
    exited = true
    onEnd(helper)
  })
  return helper
}

/** Starts a worker of a browser, which ends only with its page, or by `terminate`: it counts as alive. */
function startInBrowser(data: StartData): Helper {
  const url = URL.createObjectURL(new Blob([workerSource], { type: 'text/javascript' }))
  const worker = new Worker(url)
  const started = new Promise<void>((resolve, reject) => {
    worker.onmessage = () => resolve()
    worker.onerror = (event) => reject(new TilegradError(`pool: worker ${data.thread}: ${event.message}`))
  }).finally(() => URL.revokeObjectURL(url))
  worker.postMessage(data)
  const terminate = async () => {
    worker.terminate()
    // Browsers do not tell when it is gone; until then it reads the control block, which is freed after this.
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return { ...idleHelper(data.thread, started), terminate }
}
