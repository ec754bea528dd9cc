import { describe, expectFunction, expectOptions } from '../checks.ts'
import { capturing } from '../dispatch/capturing.ts'
import { defaultBackend } from '../dispatch/device.ts'
import { DeviceError, ValueError } from '../errors.ts'
import { refuseAsync } from '../tensor/scope.ts'
import { type Limit, pager } from './pager.ts'
import { storeOf } from './store.ts'

/** Where tensors go that are not needed now, and how much may stay; see `offload`. */
export interface OffloadOptions {
  /**
   * 'host': arrays in the host's memory, outside of the backend's. Else the path of a folder: a file there, which
   * disappears with the process, however that ends.
   */
  to: 'host' | (string & {})
  /**
   * Bytes of the backend's memory that may be in use. Default: all that it has. What one operator reads and writes has to
   * fit. Within another `offload` the smaller number holds.
   */
  maxBytes?: number
}

/**
 * Runs `fn` in so much of the default backend's memory: tensors that were not used for longest are moved to the host's
 * memory or to a file, and come back by themselves as soon as anything uses them, also after `fn` has ended. The results
 * are the same bits. A training step whose activations do not fit a WebAssembly memory of 4 GiB runs like this, with
 * parameters and the state of optimisers moved as well.
 *
 * `compile` and `checkpoint` have an option of the same name: a compiled step knows when everything is needed, and moves
 * less.
 *
 * @throws OutOfMemoryError if one operator alone needs more than `maxBytes`; DeviceError on backends that answer later
 * (WebGPU: use the option of `checkpoint`) or that use the host's memory anyway; ValueError for a folder that cannot be
 * written; TilegradError if the disk is full, without loss: what could not be moved stays.
 * @example
 * const x = randn([256, 256], { requiresGrad: true })
 * offload(() => x.exp().sin().square().sum().backward(), { to: 'host', maxBytes: 2 ** 28 })
 * x.grad?.shape // → 256,256
 */
export function offload<T>(fn: () => T, options: OffloadOptions): T {
  expectFunction('offload', fn)
  const { to, maxBytes } = expectOptions('offload', options, { to: 1, maxBytes: 1 })
  capturing()?.refuses('offload()', 'use the option offload of compile')
  return pager.within(limitOf('offload', 'to', to, maxBytes), () => {
    const result = fn()
    refuseAsync('offload', result, 'tensors are moved while it runs. Await outside')
    return result
  })
}

/** @internal The limit that options ask for, on the default backend. */
export function limitOf(op: string, option: string, to: string, maxBytes: number | undefined): Limit {
  if (maxBytes !== undefined && !(typeof maxBytes === 'number' && maxBytes > 0))
    throw new ValueError(`${op}: maxBytes must be a number of bytes > 0, got ${describe(maxBytes)}`)
  const backend = defaultBackend()
  if (!backend.exchange)
    throw new DeviceError(
      `${op}: tensors on ${backend.name} lie in the host's memory already; there is no other to offload`,
    )
  if (!backend.readSync)
    throw new DeviceError(
      `${op}: ${backend.name} cannot read at once, so nothing can be moved while this runs; use checkpoint(fn, x, { offload }), and await offloaded()`,
    )
  return {
    backend,
    maxBytes: maxBytes ?? backend.limitBytes ?? Number.POSITIVE_INFINITY,
    store: storeOf(op, option, to),
  }
}

/**
 * Resolves when everything that `checkpoint` was told to offload has left the device's memory. On the CPU that is so at
 * once; a GPU has to be waited for.
 *
 * @example
 * const x = randn([64, 64], { requiresGrad: true })
 * const y = checkpoint((x) => x.exp().sin(), x.mul(2), { offload: 'host' })
 * await offloaded()
 * y.sum().backward()
 */
export const offloaded = (): Promise<void> => pager.settled()
