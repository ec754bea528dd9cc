/** Fused kernels by the way of the public operators, on GPU backends and on the reference in float64. */

import {
  backward,
  type DType,
  dtypeInfo,
  type Layout,
  layout,
  profile,
  reference,
  type Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { expect } from 'vitest'
import type { WebGpuBackend } from '../../src/index.ts'
import { mismatch } from './agree.ts'
import { gpus } from './gpus.ts'
import { pick } from './random.ts'

export const backends = gpus.map(({ name, gpu }) => ({ name, backend: gpu }))
/** A view's layout and the elements of its storage. */
export interface Operand {
  readonly layout: Layout
  readonly data: TypedArray
}

/**
 * Rows of any kind, permuted, with gaps, backwards, expanded; the dims of `dense` are one run. `value`: by position in
 * the storage.
 */
export function operand(
  rnd: () => number,
  lead: readonly number[],
  dense: readonly number[],
  value: (i: number) => number,
  dtype: DType = 'float32',
): Operand {
  const plain = rnd() < 0.4
  const unit = layout.numel(dense)
  const order = lead.map((_, d) => d)
  if (!plain) order.sort(() => rnd() - 0.5)
  const strides = lead.map(() => 0)
  let [step, offset] = [unit, plain ? 0 : pick(rnd, [0, 1, 4])]
  let end = unit
  for (const d of order.reverse()) {
    if (!plain && rnd() < 0.15) continue
    if (!plain) step += pick(rnd, [0, 0, 1, 4]) + (rnd() < 0.1 ? step : 0)
    const span = (Math.max(1, lead[d]) - 1) * step
    const turned = !plain && rnd() < 0.2
    strides[d] = turned ? -step : step
    if (turned) offset += span
    end += span
    step = end
  }
  const shape = [...lead, ...dense]
  const data = new dtypeInfo[dtype].Memory(offset + end)
  for (let i = 0; i < data.length; i++) data[i] = value(i)
  return { layout: { shape, strides: [...strides, ...layout.contiguousStrides(dense)], offset }, data }
}

export const plain = (
  shape: readonly number[],
  value: (i: number) => number,
  dtype: DType = 'float32',
): Operand => {
  const data = new dtypeInfo[dtype].Memory(layout.numel(shape))
  for (let i = 0; i < data.length; i++) data[i] = value(i)
  return { layout: layout.contiguous(shape), data }
}

/** An operator's inputs, which of them are differentiated, and the gradient of its output. */
export interface Case {
  readonly inputs: readonly Operand[]
  readonly needs: readonly boolean[]
  readonly dout: Operand | null
  readonly call: (inputs: readonly Tensor[]) => Tensor
}

type Device = WebGpuBackend | typeof reference

const load = (device: Device, { layout: l, data }: Operand): Tensor => {
  const wide = device === reference && data instanceof Float32Array
  return tensor(wide ? Float64Array.from(data) : data, { device }).viewAs(l)
}

/** The output and the wanted gradients, which kernels ran fused and which were composed, and how often each did. */
export async function evaluate(
  device: Device,
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
 * GPU backends against the reference within the tolerances of each result (the output, then the gradients), and twice
 * with the same bits. The kernels named must have run.
 */
export async function check(
  backends: readonly { name: string; backend: WebGpuBackend }[],
  c: Case,
  kernels: readonly string[],
  tolerances: readonly (readonly [atol: number, rtol: number])[],
): Promise<void> {
  const want = (await evaluate(reference, c)).results
  for (const { name, backend } of backends) {
    const { results, fused } = await evaluate(backend, c)
    const again = (await evaluate(backend, c)).results
    const context = (i: number) => `${name}: result ${i} of ${JSON.stringify(c.inputs.map((t) => t.layout))}`
    expect(fused, context(0)).toEqual([...kernels].sort())
    results.forEach((got, i) => {
      const [atol, rtol] = tolerances[Math.min(i, tolerances.length - 1)]
      expect(mismatch(got, want[i], atol, rtol), context(i)).toBeNull()
      expect(mismatch(again[i], got, 0, 0), `${context(i)}, again`).toBeNull()
    })
  }
}
