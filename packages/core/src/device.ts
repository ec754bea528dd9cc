import type { Backend } from './backend.ts'
import { DeviceError } from './errors.ts'
import { reference } from './reference/backend.ts'

/** How to get each known backend when it is first asked for. */
const known = new Map<string, () => Backend>([['reference', () => reference]])
const made = new Map<string, Backend>([['reference', reference]])
let chosen: Backend | string = 'reference'

/** Makes a backend known by name; `make` runs at its first use. */
export function registerBackend(name: string, make: () => Backend): void {
  known.set(name, make)
  made.delete(name)
}

/** A device by name, or the backend itself. @throws DeviceError for an unknown name. */
export function getBackend(device: Backend | string): Backend {
  if (typeof device !== 'string') return device
  let backend = made.get(device)
  if (!backend) {
    const make = known.get(device)
    if (!make)
      throw new DeviceError(
        `device '${device}' is not known here; known: ${[...known.keys()].join(', ')}. Import the package that brings it`,
      )
    backend = make()
    made.set(device, backend)
  }
  return backend
}

/** The backend that new tensors live on. */
export function defaultBackend(): Backend {
  if (typeof chosen === 'string') chosen = getBackend(chosen)
  return chosen
}

/** Sets where new tensors live: a name or a backend. */
export function setDefaultBackend(device: Backend | string): void {
  chosen = typeof device === 'string' && known.has(device) ? device : getBackend(device)
}

/** Runs `fn` with another default backend. */
export function withBackend<T>(device: Backend | string, fn: () => T): T {
  const before = chosen
  chosen = getBackend(device)
  try {
    return fn()
  } finally {
    chosen = before
  }
}
