/** Primitives: on the backends of an engine, and on the reference. */

import {
  type Backend,
  type KernelOf,
  layout,
  type Primitives,
  reference,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { expect } from 'vitest'
import type { Engine } from './fused.ts'
import { mismatch, type Operand } from './operand.ts'

/** As tensors are: the buffer is a getter, which `{ ...view }` would lose. */
class Placed implements View {
  readonly dtype
  readonly shape
  readonly strides
  readonly offset
  readonly #buffer: object
  constructor(buffer: object, { dtype, layout: l }: Operand) {
    this.#buffer = buffer
    this.dtype = dtype
    this.shape = l.shape
    this.strides = l.strides
    this.offset = l.offset
  }
  get buffer(): object {
    return this.#buffer
  }
}

type Attrs<K extends keyof Primitives> = Parameters<Primitives[K]['run']>[2]
type Given<K extends keyof Primitives> = [
  kernel: K,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  attrs: Attrs<K>,
  numbers?: readonly number[],
]

/** Places operands and launches; the outputs' whole storages, and what frees all. */
function launch<K extends keyof Primitives>(
  backend: Backend,
  ...[kernel, outputs, inputs, attrs, numbers = []]: Given<K>
): { wholes: View[]; free: () => void } {
  const views = new Map<Operand, View>()
  const place = (o: Operand): View => {
    let view = views.get(o)
    if (!view) {
      const buffer = backend.alloc(o.data.byteLength, o.dtype)
      view = { buffer, dtype: o.dtype, ...layout.contiguous([o.data.length]) }
      backend.write(view, o.data)
      views.set(o, view)
    }
    return new Placed(view.buffer, o)
  }
  const free = (): void => {
    for (const { buffer } of views.values()) backend.free(buffer)
  }
  const ins = inputs.map(place)
  const outs = outputs.map(place)
  // A union of kernels takes what all of them take.
  const { run } = backend.kernels[kernel] as KernelOf<unknown>
  try {
    run(outs, ins, attrs, numbers)
  } catch (error) {
    free()
    throw error
  }
  return { wholes: outputs.map((o) => views.get(o) as View), free }
}

/**
 * Runs a primitive; returns the outputs' whole storages: what lies between their elements must not have changed.
 * Operands that are the same object share their memory.
 */
export async function runKernel<K extends keyof Primitives>(
  backend: Backend,
  ...given: Given<K>
): Promise<TypedArray[]> {
  const { wholes, free } = launch(backend, ...given)
  const results = await Promise.all(wholes.map((view) => backend.read(view)))
  free()
  return results
}

/** Does what `runKernel` does at once, on a backend that can. */
export function runKernelSync<K extends keyof Primitives>(
  backend: Backend,
  ...given: Given<K>
): TypedArray[] {
  const { wholes, free } = launch(backend, ...given)
  const results = wholes.map((view) => backend.readSync?.(view) as TypedArray)
  free()
  return results
}

const widened = (o: Operand): Operand =>
  o.data instanceof Float32Array ? { ...o, dtype: 'float64', data: Float64Array.from(o.data) } : o

/**
 * A primitive on all backends: within the tolerance of what the reference computes (`wide`: from float32 in float64), and
 * bit by bit alike where the backends are of one kind.
 */
export async function agree<K extends keyof Primitives>(
  { backends }: Engine,
  kernel: K,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  attrs: Attrs<K>,
  { atol = 0, rtol = 0, wide = true } = {},
): Promise<void> {
  const twins = new Map([...outputs, ...inputs].map((o) => [o, wide ? widened(o) : o]))
  const twin = (o: Operand): Operand => twins.get(o) as Operand
  const want = await runKernel(reference, kernel, outputs.map(twin), inputs.map(twin), attrs)
  const first = new Map<string, TypedArray[]>()
  for (const { name, backend, kind } of backends) {
    const got = await runKernel(backend, kernel, outputs, inputs, attrs)
    const same = first.get(kind) ?? got
    first.set(kind, same)
    got.forEach((values, i) => {
      const why = mismatch(values, want[i], atol, rtol) ?? mismatch(values, same[i])
      if (why === null) return
      const call = JSON.stringify([outputs, inputs].map((list) => list.map((o) => [o.dtype, o.layout])))
      expect.fail(`${name}: output ${i} of ${kernel} ${call} ${JSON.stringify(attrs)}: ${why}`)
    })
  }
}
