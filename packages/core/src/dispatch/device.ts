import { amongKnown, describe } from '../checks.ts'
import { DeviceError } from '../errors.ts'
import { reference } from '../reference/backend.ts'
import { refuseAsync } from '../tensor/scope.ts'
import type { Backend } from './backend.ts'

/** How to get each known backend when it is first asked for. */
const makers = new Map<string, () => Backend>([['reference', () => reference]])
/** The same for those that take time to open. */
const openers = new Map<string, () => Promise<Backend>>()
const made = new Map<string, Backend>([['reference', reference]])
const opening = new Map<string, Promise<Backend>>()
let chosen: Backend | string = 'reference'

/**
 * Makes a backend known by name; `make` runs at its first use.
 *
 * @example
 * registerBackend('plain', () => reference)
 * zeros([2], { device: 'plain' }).backend === reference // → true
 */
export function registerBackend(name: string, make: () => Backend): void {
  makers.set(name, make)
  openers.delete(name)
  made.delete(name)
}

/**
 * Makes a backend known by name that opens asynchronously: `openDevice` and `setDevice` do so.
 *
 * @example
 * registerAsyncBackend('later', async () => reference)
 * await openDevice('later') === reference // → true
 */
export function registerAsyncBackend(name: string, open: () => Promise<Backend>): void {
  openers.set(name, open)
  makers.delete(name)
  made.delete(name)
}

/** @internal Is this the name of a device? */
export const isDevice = (name: string): boolean => makers.has(name) || openers.has(name)

/** @internal All names of devices. */
export const deviceNames = (): string[] => [...makers.keys(), ...openers.keys()]

/**
 * Finds a device by name, or gives the backend itself.
 *
 * @throws DeviceError for an unknown name, or one that must be opened first.
 * @example
 * getBackend('reference').name // → reference
 */
export function getBackend(device: Backend | string): Backend {
  if (typeof device !== 'string') {
    if (typeof device === 'object' && device !== null && 'kernels' in device) return device
    throw new DeviceError(`device: takes a name or a backend, got ${describe(device)}`)
  }
  const known = made.get(device)
  if (known && !known.closed) return known
  if (openers.has(device))
    throw new DeviceError(
      `device '${device}' is not open; open it first with await setDevice('${device}'), or await openDevice('${device}') to keep the default`,
    )
  const make = makers.get(device)
  if (!make)
    throw new DeviceError(
      `device '${device}' is not known here${amongKnown(device, deviceNames())}. Import the package that brings it`,
    )
  const backend = make()
  made.set(device, backend)
  return backend
}

/**
 * Opens a device by name, once; a device that was closed or lost is opened anew. Afterwards its name works wherever a
 * device is expected.
 *
 * @throws DeviceError for an unknown name, or if there is no such device on this machine, saying what to do.
 * @example
 * const gpu = await openDevice('webgpu')
 * const x = ones([2, 3], { device: 'webgpu' })
 * x.device // → webgpu
 */
export async function openDevice(device: Backend | string): Promise<Backend> {
  const open = typeof device === 'string' ? openers.get(device) : undefined
  if (!open || typeof device !== 'string') return getBackend(device)
  const known = made.get(device)
  if (known && !known.closed) return known
  let pending = opening.get(device)
  if (!pending) {
    pending = open().finally(() => opening.delete(device))
    opening.set(device, pending)
  }
  const backend = await pending
  made.set(device, backend)
  return backend
}

/**
 * Opens a device and makes it the one that new tensors live on: 'cpu', 'webgpu', 'reference'. What is on other devices
 * stays there; `.to(device)` moves it.
 *
 * @returns the device's backend, with what it tells of itself
 * @throws DeviceError as `openDevice`.
 * @example
 * const before = defaultBackend()
 * await setDevice('webgpu')
 * const product = randn([64, 32]).matmul(randn([32, 16]))
 * product.device // → webgpu
 * product.shape // → 64,16
 * setDefaultBackend(before)
 */
export async function setDevice(device: Backend | string): Promise<Backend> {
  const backend = await openDevice(device)
  setDefaultBackend(backend)
  return backend
}

/**
 * Gives the backend that new tensors live on.
 *
 * @example
 * defaultBackend().name // → cpu
 */
export function defaultBackend(): Backend {
  if (typeof chosen === 'string') chosen = getBackend(chosen)
  return chosen
}

/** @internal Do new tensors live there? Makes no backend that is not there yet. */
export const isDefaultBackend = (backend: Backend): boolean => chosen === backend || chosen === backend.name

/**
 * Sets where new tensors live: a name or a backend.
 *
 * @throws DeviceError for an unknown name, or one that must be opened first: `await setDevice(name)` does both.
 * @example
 * setDefaultBackend('reference')
 * zeros([2]).device // → reference
 * setDefaultBackend('cpu')
 */
export function setDefaultBackend(device: Backend | string): void {
  chosen = typeof device === 'string' && makers.has(device) ? device : getBackend(device)
}

/**
 * Runs `fn` with another default backend and returns what it returns.
 *
 * @throws DeviceError for an unknown name, or one that must be opened first.
 * @example
 * withBackend('reference', () => zeros([2]).device) // → reference
 */
export function withBackend<T>(device: Backend | string, fn: () => T): T {
  const before = chosen
  chosen = getBackend(device)
  try {
    const result = fn()
    refuseAsync('withBackend', result, 'the device is the default until it returns. Await outside')
    return result
  } finally {
    chosen = before
  }
}
