import {
  createWebGpuBackend,
  DeviceError,
  getBackend,
  manualSeed,
  reference,
  registerAsyncBackend,
  registerBackend,
  setDefaultBackend,
  setPrintOptions,
  type WebGpuBackend,
} from 'tilegrad'

const cpu = getBackend('cpu')
const printed = { ...setPrintOptions({}) }

/** Closes the GPU that is open under the device's name, if there is one. */
function closeGpu(): void {
  try {
    ;(getBackend('webgpu') as WebGpuBackend).close()
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error
  }
}

/**
 * Takes back what a program may change for all that follows it: devices, the default one, how tensors are printed, the
 * random numbers. What else there is (grad mode, scopes, profiles) ends with the function that changed it.
 */
export function startAnew(): void {
  closeGpu()
  // Opened by whoever asks for it, as in a new process; the CPU's threads are the same ones, which costs nothing.
  registerAsyncBackend('webgpu', () => createWebGpuBackend())
  registerBackend('reference', () => reference)
  registerBackend('cpu', () => cpu)
  setDefaultBackend('cpu')
  setPrintOptions(printed)
  manualSeed(Math.trunc(2 ** 32 * Math.random()))
}
