/** What a backend dispatches, for tests of how it comes about. */

import { Recorder } from '../../src/commands/replay.ts'
import type { GpuBuffer } from '../../src/device/buffers.ts'
import { createWebGpuBackend } from '../../src/index.ts'
import type { Scalar } from '../../src/wgsl/block.ts'

/** A backend 'null' that writes down its dispatches. With `anew` its kernels never do again what they did before. */
export async function observed({ anew = false } = {}) {
  const backend = await createWebGpuBackend({ backend: 'null' })
  const { engine } = backend
  // Within another's recording nothing is recorded or done again.
  if (anew) engine.listener = new Recorder('all', [])
  const dispatches: string[] = []
  const seen = { dispatches, again: 0 }
  const [dispatch, runAgain] = [engine.dispatch.bind(engine), engine.runAgain.bind(engine)]
  const note = (
    label: string,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: readonly number[],
    scalars: readonly Scalar[],
    values: readonly number[],
  ): void => {
    const floats = new Float32Array(words.buffer)
    for (const { at, source, dtype } of scalars) {
      const value = values[source] as number
      if (dtype === 'float32') floats[at] = value
      else words[at] = dtype === 'bool' ? Number(value !== 0) : value
    }
    dispatches.push(`${label} ${grid} ${buffers.map((b) => b.id)} ${words}`)
  }
  engine.dispatch = (kernel, buffers, words, grid, scalars, values) => {
    note(kernel.label, buffers, words.slice(), grid, scalars, values)
    dispatch(kernel, buffers, words, grid, scalars, values)
  }
  engine.runAgain = (step, buffers, values) => {
    seen.again++
    note(step.kernel.label, buffers, step.words.slice(), step.grid, step.scalars, values)
    runAgain(step, buffers, values)
  }
  return { backend, seen }
}
