/** Fused kernels by the way of the public operators: on the backends of an engine, and on the reference in float64. */

import {
  type Backend,
  backward,
  type DType,
  profile,
  reference,
  type Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { expect } from 'vitest'
import { mismatch, type Operand } from './operand.ts'

/** An engine of which kernels are tested. */
export interface Engine {
  /** What its backends are called, and what of its machine code they have in common: results of one kind are the same bits. */
  readonly backends: readonly { readonly name: string; readonly backend: Backend; readonly kind: string }[]
  /** What part of the random cases it runs: where each new shape must be compiled, fewer. */
  readonly share: number
  /** The dtypes of random cases. */
  readonly dtypes: readonly DType[]
}

type Tolerance = readonly [atol: number, rtol: number]

/** By how much each result may differ: the output, then the gradients; the last of the list holds for all further ones. */
export type Tolerances = readonly Tolerance[]

/** An operator's inputs, which of them are differentiated, and the gradient of its output. */
export interface Case {
  readonly inputs: readonly Operand[]
  readonly needs: readonly boolean[]
  readonly dout: Operand | null
  readonly call: (inputs: readonly Tensor[]) => Tensor
}

const load = (device: Backend, { layout: l, data }: Operand): Tensor => {
  const wide = device === reference && data instanceof Float32Array
  return tensor(wide ? Float64Array.from(data) : data, { device }).viewAs(l)
}

/** The output and the wanted gradients, which kernels ran fused and which were composed, and how often each did. */
export async function evaluate(
  device: Backend,
  c: Case,
): Promise<{ results: TypedArray[]; fused: string[]; composed: string[]; calls: Record<string, number> }> {
  const inputs = c.inputs.map((t) => load(device, t))
  inputs.forEach((t, i) => {
    if (c.needs[i]) t.requiresGrad = true
  })
  const { result, rows } = profile(() => {
    const y = c.call(inputs)
    if (!c.needs.some(Boolean)) return [y]
    backward(y, c.dout ? { gradient: load(device, c.dout) } : {})
    return [y, ...inputs.flatMap((t, i) => (c.needs[i] ? [t.grad as Tensor] : []))]
  })
  const results: TypedArray[] = []
  for (const t of result) results.push(await t.data())
  const by = (path: string) => rows.filter((r) => r.path === path).map((r) => r.op)
  const calls = Object.fromEntries(rows.map((r) => [r.op, r.calls]))
  return { results, fused: by('fused').sort(), composed: by('composed').sort(), calls }
}

/**
 * All backends within the tolerances of what the reference computes, or of `want`, and bit by bit against another one of
 * their kind, or where there is none against themselves, a second time. The kernels named must have run, and no others.
 */
export async function check(
  { backends }: Engine,
  c: Case,
  kernels: readonly string[],
  tolerances: Tolerances | ((i: number, want: TypedArray) => Tolerance),
  want?: readonly TypedArray[],
): Promise<void> {
  const exact = want ?? (await evaluate(reference, c)).results
  const first = new Map<string, TypedArray[]>()
  for (const { name, backend, kind } of backends) {
    const { results, fused } = await evaluate(backend, c)
    const context = (i: number) => `${name}: result ${i} of ${JSON.stringify(c.inputs.map((t) => t.layout))}`
    expect(fused, context(0)).toEqual([...kernels].sort())
    const single = backends.filter((b) => b.kind === kind).length === 1
    const same = first.get(kind) ?? (single ? (await evaluate(backend, c)).results : results)
    first.set(kind, same)
    results.forEach((got, i) => {
      const [atol, rtol] =
        typeof tolerances === 'function'
          ? tolerances(i, exact[i])
          : tolerances[Math.min(i, tolerances.length - 1)]
      expect(mismatch(got, exact[i], atol, rtol), context(i)).toBeNull()
      expect(mismatch(got, same[i]), `${context(i)}, bits`).toBeNull()
    })
  }
}

/** How many of `n` random cases an engine runs. */
export const rounds = ({ share }: Engine, n: number): number => Math.ceil(share * n)
