// The part of the browser's Worker that jax-js needs for its threads, on Node's worker_threads: a script from a blob
// URL, postMessage, onmessage, onerror.
import { resolveObjectURL } from 'node:buffer'
import { Worker as Thread } from 'node:worker_threads'

const prelude = `
const { parentPort } = require('node:worker_threads')
globalThis.self = globalThis
globalThis.postMessage = (data) => parentPort.postMessage(data)
parentPort.on('message', (data) => self.onmessage({ data }))
`

class BrowserWorker {
  onmessage = (/** @type {{ data: unknown }} */ _) => {}
  onerror = (/** @type {unknown} */ _) => {}
  #thread
  /** @param {string} url */
  constructor(url) {
    // The URL is only good now; its text comes later.
    const blob = resolveObjectURL(url)
    if (!blob) throw new Error(`${url} is no blob URL`)
    this.#thread = blob.text().then((source) => {
      const thread = new Thread(prelude + source, { eval: true })
      thread.on('message', (data) => this.onmessage({ data }))
      thread.on('error', (error) => this.onerror(error))
      return thread
    })
  }
  /** @param {unknown} data */
  postMessage(data) {
    this.#thread.then((thread) => thread.postMessage(data))
  }
}

/** Makes `Worker` and the number of threads known; before jax-js is loaded. @param {number} threads */
export function installWorkers(threads) {
  Object.assign(globalThis, { Worker: BrowserWorker })
  Object.defineProperty(globalThis, 'navigator', {
    value: { hardwareConcurrency: threads },
    configurable: true,
  })
}
