/**
 * Tensors, autograd and transformers in pure TypeScript.
 *
 * Everything of core and nn, with the CPU engine as the default device.
 *
 * @packageDocumentation
 */
import { createCpuBackend } from '@tilegrad/backend-cpu'
import { registerBackend, setDefaultBackend } from '@tilegrad/core'

// Made at first use, so that importing costs nothing.
registerBackend('cpu', () => createCpuBackend())
setDefaultBackend('cpu')

export * from '@tilegrad/backend-cpu'
export * from '@tilegrad/core'
export * from '@tilegrad/nn'
