import type { Backend } from '../src/dispatch/backend.ts'
import { reference } from '../src/index.ts'
import { allocate, type Tensor } from '../src/tensor/tensor.ts'

/** A backend that counts memory and has none: what is made on it cannot be computed with. */
export function bareBackend(limitBytes?: number): Backend & { live: number; peak: number } {
  const self = {
    ...reference,
    name: 'bare',
    live: 0,
    peak: 0,
    ...(limitBytes !== undefined && { limitBytes }),
    alloc(bytes: number) {
      self.live += bytes
      self.peak = Math.max(self.peak, self.live)
      return { bytes }
    },
    free(buffer: object) {
      self.live -= (buffer as { bytes: number }).bytes
    },
  }
  return self
}

/** A tensor of so many bytes, with nothing in it. */
export const bytesOn = (backend: Backend, bytes: number): Tensor => allocate(backend, [bytes], 'bool')
