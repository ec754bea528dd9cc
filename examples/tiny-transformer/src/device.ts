import { availableParallelism } from 'node:os'
import { createCpuBackend, DeviceError, setDefaultBackend, setDevice, type WebGpuBackend } from 'tilegrad'
import type { Options } from './options.ts'
import { UsageError } from './usage-error.ts'

/**
 * Makes the chosen device the one that everything is computed on, and says what it is.
 *
 * @throws UsageError where there is none, saying how to get one.
 */
export async function chooseDevice({ backend, threads = availableParallelism() }: Options): Promise<string> {
  if (backend === 'cpu') {
    setDefaultBackend(createCpuBackend({ threads }))
    return `${threads} CPU thread${threads === 1 ? '' : 's'}`
  }
  try {
    const device = await setDevice(backend)
    return backend === 'webgpu'
      ? `${(device as WebGpuBackend).gpu.adapterName} (WebGPU)`
      : 'plain JavaScript (slow)'
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error
    throw new UsageError(`--backend ${backend}: ${error.message.replaceAll(/\s*\n\s*/g, '; ')}`)
  }
}
