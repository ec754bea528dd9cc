import { Worker } from 'node:worker_threads'

/** A thread that ends the process when one input takes too long, saying which: what hangs can say nothing itself. */
export interface Watchdog {
  begin(what: string, input: () => string): void
  end(): void
}

const CAPACITY = 8192
/** Milliseconds for one input, on a machine that does much else. */
const PATIENCE = 120_000

const watch = `
const { workerData } = require('node:worker_threads')
const { writeSync } = require('node:fs')
const head = new Int32Array(workerData.shared, 0, 2)
const text = new Uint8Array(workerData.shared, 8)
let [seen, since] = [0, Date.now()]
setInterval(() => {
  const now = Atomics.load(head, 0)
  if (now === 0 || now !== seen) [seen, since] = [now, Date.now()]
  else if (Date.now() - since > workerData.patience) {
    writeSync(2, '\\nHUNG  ' + new TextDecoder().decode(text.slice(0, head[1])) + '\\n')
    process.kill(process.pid, 'SIGKILL')
  }
}, 1000)
`

export function startWatchdog(): Watchdog {
  const shared = new SharedArrayBuffer(8 + CAPACITY)
  const head = new Int32Array(shared, 0, 2)
  const text = new Uint8Array(shared, 8)
  new Worker(watch, { eval: true, workerData: { shared, patience: PATIENCE } }).unref()
  let number = 0
  return {
    begin(what, input) {
      const bytes = new TextEncoder().encode(`${what}: ${input().slice(0, 4000)}`).subarray(0, CAPACITY)
      text.set(bytes)
      Atomics.store(head, 1, bytes.length)
      number = (number % 1_000_000_000) + 1
      Atomics.store(head, 0, number)
    },
    end: () => void Atomics.store(head, 0, 0),
  }
}
