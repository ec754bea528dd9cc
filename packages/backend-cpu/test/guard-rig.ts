/** A backend, and tables of kernels of which one computes wrongly, to test what checks V8's pairs of instructions. */
import { type Backend, type KernelTable, type Tensor, tensor, type View, wrapKernels } from '@tilegrad/core'
import { afterAll } from 'vitest'
import { type CpuBackend, createCpuBackend } from '../src/backend.ts'
import type { Engine } from '../src/engine.ts'

const made: CpuBackend[] = []
afterAll(() => Promise.all(made.map((b) => b.close())))

/** A backend with two threads, closed after the tests. */
export function make(...args: Parameters<typeof createCpuBackend>): CpuBackend {
  const backend = createCpuBackend({ threads: 2, maxBytes: 2 ** 26, ...args[0] }, args[1])
  made.push(backend)
  return backend
}

/** A table in which one kernel changes one lane of its first output. */
export const spoil = (table: KernelTable, spoiled: keyof KernelTable, engine: Engine): KernelTable =>
  wrapKernels(table, (kernel, name) => {
    if (name !== spoiled) return kernel
    const wrong: typeof kernel = {
      ...kernel,
      run(outputs, inputs, attrs, numbers) {
        kernel.run(outputs, inputs, attrs, numbers)
        engine.memory.u8[engine.address(outputs[0] as View)] ^= 1
      },
    }
    return wrong
  })

export const rows = (device: Backend): Tensor =>
  tensor(
    Float32Array.from({ length: 40 }, (_, i) => i % 7),
    [4, 10],
    { device },
  )
