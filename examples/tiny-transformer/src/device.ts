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
  const refuse = (why: string): never => {
    throw new UsageError(`--backend ${backend}: ${why}`)
  }
  if (backend === 'webgpu' && process.platform === 'linux') {
    const missing = missingLibrary('libvulkan.so.1')
    if (missing)
      refuse(
        `there is no GPU that WebGPU can use: ${missing}. Install Vulkan's loader (libvulkan1) and the GPU's driver, or take --backend cpu; npm start finds a software adapter by itself`,
      )
  }
  try {
    const device = await setDevice(backend)
    return backend === 'webgpu'
      ? `${(device as WebGpuBackend).gpu.adapterName} (WebGPU)`
      : 'plain JavaScript (slow)'
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error
    return refuse(error.message.replaceAll(/\s*\n\s*/g, '; '))
  }
}

/**
 * Why the dynamic linker does not load a library, or null if it does: asked first, since Dawn prints a stack trace of its
 * own where it fails.
 */
function missingLibrary(name: string): string | null {
  try {
    process.dlopen({ exports: {} }, name)
    return null
  } catch (error) {
    const { message } = error as Error
    // What Node says of a library that has loaded, and is no addon.
    return /self-register/.test(message) ? null : message
  }
}
