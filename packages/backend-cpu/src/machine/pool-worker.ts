/** The workers of a pool: how they are started in Node and in browsers. */

import { TilegradError } from '@tilegrad/core'
import { type Helper, idleHelper, type StartData } from './helper.ts'
import { startInNode } from './node.ts'

/** Starts a worker; `onEnd` is called in a later turn of the event loop than that in which it ends. */
export function startWorker(data: StartData, onEnd: (helper: Helper) => void): Helper {
  try {
    return startInNode(data, onEnd) ?? startInBrowser(data)
  } catch (error) {
    // Workers can be forbidden (Node's --permission, a content security policy): the pool does without.
    return idleHelper(data.thread, Promise.reject(error))
  }
}

/** Starts a worker of a browser, which ends only with its page, or by `terminate`: it counts as alive. */
function startInBrowser(data: StartData): Helper {
  let worker: Worker | null = null
  let ended = false
  // What workers run is code that a page which has none need not load.
  const started = import('./worker-source-later.ts').then(async ({ workerSource }) => {
    if (ended) return
    const url = URL.createObjectURL(new Blob([workerSource], { type: 'text/javascript' }))
    const own = new Worker(url)
    worker = own
    await new Promise<void>((resolve, reject) => {
      own.onmessage = () => resolve()
      own.onerror = (event) => reject(new TilegradError(`pool: worker ${data.thread}: ${event.message}`))
      own.postMessage(data)
    }).finally(() => URL.revokeObjectURL(url))
  })
  const terminate = async () => {
    ended = true
    worker?.terminate()
    // Browsers do not tell when it is gone; until then it reads the control block, which is freed after this.
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return { ...idleHelper(data.thread, started), terminate }
}
