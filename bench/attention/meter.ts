/** Time and memory on either engine. */
import { createCpuBackend, createPeaks } from '@tilegrad/backend-cpu'
import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { type Backend, memory, resetPeakMemory } from '@tilegrad/core'
import { ms, timed } from '../cpu/harness.ts'
import { createGpuPeaks, timed as timedOnGpu } from '../gpu/harness.ts'

/** One run over so many milliseconds is enough, and not repeated. */
export const LONG = 10_000

export interface First {
  readonly ms: number
  /** The most bytes in use meanwhile, beyond those before. */
  readonly bytes: number
}

export interface Meter {
  readonly backend: Backend
  readonly engine: string
  /** One execution, with kernels compiled. */
  first(run: () => void): Promise<First>
  /** The median of several after a warm-up, in milliseconds, and of how many. */
  time(run: () => void): Promise<{ readonly ms: number; readonly runs: number }>
  close(): Promise<void>
}

export async function openMeter(name: string, threads: number, runs: number): Promise<Meter> {
  if (name === 'webgpu') return gpuMeter(runs)
  const backend = createCpuBackend({ threads })
  await backend.ready()
  const context = { backend, peaks: createPeaks(backend), runs }
  return {
    backend,
    engine: `CPU, ${backend.threads} threads, ${backend.level}`,
    async first(run) {
      backend.resetPeak()
      const before = backend.stats().liveBytes
      const time = ms(run)
      return { ms: time, bytes: backend.stats().peakBytes - before }
    },
    async time(run) {
      const time = timed({ run, values: () => [] }, context).ms
      return { ms: time, runs: time > 1000 ? 3 : runs }
    },
    close: () => backend.close(),
  }
}

async function gpuMeter(runs: number): Promise<Meter> {
  const backend = await createWebGpuBackend({ limits: 'all' })
  const context = { backend, peaks: createGpuPeaks(backend), runs }
  return {
    backend,
    engine: `WebGPU, ${backend.gpu.adapterName}`,
    async first(run) {
      run()
      await backend.finished()
      // Kernels keep little of their own there: tensors are counted.
      resetPeakMemory()
      const before = memory().bytes
      const begin = performance.now()
      run()
      await backend.finished()
      return { ms: performance.now() - begin, bytes: memory().peakBytes - before }
    },
    time: async (run) => ({ ms: (await timedOnGpu({ run, dispose() {} }, context)).ms, runs }),
    close: async () => backend.close(),
  }
}
