/** The code that the workers of a pool run; control.ts says where they meet. */

import {
  asleep,
  busy,
  callerWaits,
  failed,
  failedBytes,
  firstLine,
  lineWords,
  pending,
  remaining,
  task,
  up,
} from './control.ts'

/**
 * What a worker runs. It is a string, so that it needs no file and no bundler; it must not import anything. The
 * module's bytes are read from shared memory, and compiled when a kernel first comes up: V8 recognises bytes that
 * another thread has compiled. `scripts/bundle.mjs` makes it short: no bundler looks into a string.
 */
export const workerSource = `'use strict'
const start = ({ memory, control, words, thread, spin }, announce) => {
  const i32 = new Int32Array(memory.buffer, control, words)
  const { load, store, sub, compareExchange, wait, notify } = Atomics
  const pause = Atomics.pause ? () => Atomics.pause() : () => {}
  const line = ${firstLine} + ${lineWords} * thread
  const instances = new Map()
  const kernels = new Map()
  const read = (ptr, length) => {
    // Another thread may have grown the memory; growing by nothing makes this thread notice.
    if (ptr + length > memory.buffer.byteLength) memory.grow(0)
    return new Uint8Array(memory.buffer, ptr, length).slice()
  }
  const compile = (entry) => {
    const [at, length, nameLength] = new Uint32Array(read(entry, 12).buffer)
    const name = new TextDecoder().decode(read(entry + 12, nameLength))
    let instance = instances.get(at)
    if (instance === undefined) {
      instance = new WebAssembly.Instance(new WebAssembly.Module(read(at, length)), { env: { memory } })
      instances.set(at, instance)
    }
    const kernel = instance.exports[name]
    kernels.set(entry, kernel)
    return kernel
  }
  const report = (error) => {
    if (compareExchange(i32, ${failed}, 0, 1) !== 0) return
    const encode = (length) => {
      const { name, message } = error instanceof Error ? error : { name: 'Error', message: String(error) }
      return new TextEncoder().encode(JSON.stringify([name.slice(0, 30), message.slice(0, length), thread]))
    }
    const long = encode(500)
    const utf8 = long.length <= ${failedBytes} ? long : encode(100)
    new Uint8Array(memory.buffer, control + ${4 * failed + 8}, utf8.length).set(utf8)
    store(i32, ${failed + 1}, utf8.length)
  }
  const work = (chunk) => {
    const entry = i32[${task}] >>> 0
    const params = i32[${task + 1}]
    const total = i32[${task + 2}]
    const rows = i32[${task + 3}]
    const first = Math.min(chunk * rows, total)
    const kernel = kernels.get(entry) || compile(entry)
    kernel(first, Math.min(first + rows, total), params, i32[${task + 5}] ? chunk : thread)
  }
  store(i32, line + ${up}, 1)
  announce()
  for (;;) {
    if (load(i32, ${remaining}) === 0) {
      const until = performance.now() + spin
      for (let n = 1; load(i32, ${remaining}) === 0; n++) {
        pause()
        if ((n & 31) !== 0 || performance.now() < until) continue
        store(i32, line + ${asleep}, 1)
        wait(i32, ${remaining}, 0)
        store(i32, line + ${asleep}, 0)
        break
      }
    }
    // Before the claim: a worker that is not busy owns nothing, whenever it may have died.
    store(i32, line + ${busy}, 1)
    for (let left; (left = load(i32, ${remaining})) > 0; ) {
      if (compareExchange(i32, ${remaining}, left, left - 1) !== left) continue
      try {
        work(i32[${task + 4}] - left)
      } catch (error) {
        report(error)
      }
      if (sub(i32, ${pending}, 1) === 1 && load(i32, ${callerWaits})) notify(i32, ${pending})
    }
    store(i32, line + ${busy}, 0)
  }
}
const node = globalThis.process?.getBuiltinModule?.('node:worker_threads')
if (node) setImmediate(() => start(node.workerData, () => node.parentPort.postMessage('ready')))
else globalThis.onmessage = (event) => start(event.data, () => postMessage('ready'))
`
