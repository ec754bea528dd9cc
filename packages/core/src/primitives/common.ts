import type { Backend } from '../dispatch/backend.ts'
import { DeviceError, ShapeError, show } from '../errors.ts'
import { largestSize } from '../tensor/layout.ts'
import type { Tensor } from '../tensor/tensor.ts'

/** Throws for a view, expanded, of a size that kernels would count wrongly. */
export function checkSizes(op: string, { shape }: Tensor): void {
  for (const n of shape)
    if (n > largestSize)
      throw new ShapeError(
        `${op}: ${show(shape)} has a dim of more than 2^31 − 1 elements, more than kernels count`,
      )
}

/** The one backend all inputs live on. */
export function backendOf(op: string, inputs: readonly Tensor[]): Backend {
  const backend = inputs[0].storage.backend
  for (let i = 0; i < inputs.length; i++) {
    if (inputs[i].numel > largestSize) checkSizes(op, inputs[i])
    const other = inputs[i].storage.backend
    if (other !== backend) {
      throw new DeviceError(
        `${op}: its inputs live on different devices: ${show(inputs[0].shape)} on ${backend.name}, ${show(inputs[i].shape)} on ${other.name}; move one with .to(device)`,
      )
    }
  }
  return backend
}
