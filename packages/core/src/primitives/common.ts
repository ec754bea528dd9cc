import type { Backend } from '../backend.ts'
import { DeviceError, show } from '../errors.ts'
import type { Tensor } from '../tensor.ts'

/** The one backend all inputs live on. */
export function backendOf(op: string, inputs: readonly Tensor[]): Backend {
  const backend = inputs[0].storage.backend
  for (let i = 1; i < inputs.length; i++) {
    const other = inputs[i].storage.backend
    if (other !== backend) {
      throw new DeviceError(
        `${op}: its inputs live on different devices: ${show(inputs[0].shape)} on ${backend.name}, ${show(inputs[i].shape)} on ${other.name}; move one with .to(device)`,
      )
    }
  }
  return backend
}
