import { gradcheck, reference, type Tensor } from '@tilegrad/core'
import type { Module } from '@tilegrad/nn'
import { expect } from 'vitest'

/** All elements, row-major. Tests run on the reference backend, which answers at once. */
export const values = (t: Tensor | null | undefined): number[] => {
  if (!t) throw new Error('expected a tensor')
  return Array.from(t.dataSync())
}

export interface Tolerance {
  atol: number
  rtol: number
}

/** Shapes equal, and |actual − expected| ≤ atol + rtol · |expected| for every element. */
export function expectClose(actual: Tensor, expected: Tensor, { atol, rtol }: Tolerance): void {
  expect(actual.shape).toEqual(expected.shape)
  expectNumbers(values(actual), values(expected), { atol, rtol })
}

/** As expectClose, for plain numbers. */
export function expectNumbers(
  actual: readonly number[],
  expected: readonly number[],
  tolerance: Tolerance,
): void {
  expect(actual.length).toBe(expected.length)
  actual.forEach((a, i) => {
    const limit = tolerance.atol + tolerance.rtol * Math.abs(expected[i])
    // Written so that NaN fails.
    if (!(Math.abs(a - expected[i]) <= limit)) {
      throw new Error(`element ${i}: got ${a}, expected ${expected[i]} within ${limit}`)
    }
  })
}

/** Puts a tensor where a dotted name says. */
export function assign(module: Module, name: string, value: Tensor): void {
  const path = name.split('.')
  const last = path.pop() as string
  const owner = path.reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], module)
  ;(owner as Record<string, Tensor>)[last] = value
}

/**
 * Finite differences for every input and every parameter, in float64 on the reference backend (which gradcheck moves
 * its tensors to; they take the places of the parameters). Tied parameters move together.
 */
export function gradcheckModule<M extends Module>(
  module: M,
  inputs: readonly Tensor[],
  forward: (module: M, ...inputs: Tensor[]) => Tensor,
): void {
  module.to({ dtype: 'float64', device: reference })
  const parameters = module.parameters()
  const slots = Object.entries(module.stateDict()).map(([name, t]) => [name, parameters.indexOf(t)] as const)
  const check = (...tensors: Tensor[]): Tensor => {
    for (const [name, i] of slots) if (i >= 0) assign(module, name, tensors[i])
    return forward(module, ...tensors.slice(parameters.length))
  }
  expect(gradcheck(check, [...parameters, ...inputs])).toBe(true)
}
