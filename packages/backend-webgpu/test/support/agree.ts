/** Runs the same on a GPU and on the reference backend, and compares. */

import {
  type Backend,
  type DType,
  data,
  dtypeInfo,
  type KernelOf,
  type Layout,
  layout,
  manualSeed,
  type Primitives,
  reference,
  type Tensor,
  type TypedArray,
  type View,
  withBackend,
} from '@tilegrad/core'
import { expect } from 'vitest'

/** The first place where two results differ by more than `atol + rtol · |want|`, or null. NaN equals NaN. */
export function mismatch(got: TypedArray, want: TypedArray, atol = 0, rtol = 0): string | null {
  if (got.length !== want.length) return `${got.length} elements, expected ${want.length}`
  for (let i = 0; i < got.length; i++) {
    const [g, w] = [got[i] as number, want[i] as number]
    if (Object.is(g, w) || g === w) continue
    if (!(Math.abs(g - w) <= atol + rtol * Math.abs(w))) return `element ${i}: ${g}, expected ${w}`
  }
  return null
}

/** Tensors that `make` returns, on a GPU and on the reference, from the same random numbers. */
export async function agree(
  gpu: Backend,
  make: () => Tensor | readonly Tensor[],
  { atol = 1e-6, rtol = 1e-5 } = {},
): Promise<void> {
  const on = async (backend: Backend) => {
    manualSeed(1)
    const made = withBackend(backend, make)
    const tensors = Array.isArray(made) ? (made as Tensor[]) : [made as Tensor]
    return Promise.all(tensors.map(async (t) => ({ shape: t.shape, dtype: t.dtype, values: await data(t) })))
  }
  const [got, want] = [await on(gpu), await on(reference)]
  expect(got.map(({ shape, dtype }) => ({ shape, dtype }))).toEqual(
    want.map(({ shape, dtype }) => ({ shape, dtype })),
  )
  got.forEach(({ values }, i) => {
    expect(mismatch(values, want[i].values, atol, rtol), `output ${i} of ${make}`).toBeNull()
  })
}

/** A storage's content and the layout of the view that an operand is. */
export interface Operand {
  readonly layout: Layout
  readonly dtype: DType
  readonly data: TypedArray
}

/** How many elements a storage needs for a layout. */
export function extent(l: Layout): number {
  let end = l.offset
  for (let d = 0; d < l.shape.length; d++)
    end += Math.max(0, ((l.shape[d] as number) - 1) * (l.strides[d] as number))
  return end + 1
}

/** `value`: by position in the storage. */
export function operand(l: Layout, dtype: DType, value: (i: number) => number): Operand {
  const values = new dtypeInfo[dtype].Memory(extent(l))
  for (let i = 0; i < values.length; i++) values[i] = value(i)
  return { layout: l, dtype, data: values }
}

/** As tensors are: the buffer is a getter, which `{ ...view }` would lose. */
class Placed implements View {
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly offset: number
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

/**
 * Runs a primitive; returns the outputs' whole storages: what lies between their elements must not have changed.
 * Operands that are the same object share their memory.
 */
export async function runKernel<K extends keyof Primitives>(
  backend: Backend,
  kernel: K,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  attrs: Parameters<Primitives[K]['run']>[2],
): Promise<TypedArray[]> {
  const views = new Map<Operand, View>()
  const whole = (buffer: object, o: Operand): View => ({
    buffer,
    dtype: o.dtype,
    ...layout.contiguous([o.data.length]),
  })
  const place = (o: Operand): View => {
    let view = views.get(o)
    if (!view) {
      view = whole(backend.alloc(o.data.byteLength, o.dtype), o)
      backend.write(view, o.data)
      views.set(o, view)
    }
    return new Placed(view.buffer, o)
  }
  const ins = inputs.map(place)
  const outs = outputs.map(place)
  // A union of kernels takes what all of them take.
  const { run } = backend.kernels[kernel] as KernelOf<unknown>
  run(outs, ins, attrs, [])
  const results = await Promise.all(outputs.map((o) => backend.read(views.get(o) as View)))
  for (const { buffer } of views.values()) backend.free(buffer)
  return results
}

/** A primitive on both backends. */
export async function agreeKernel<K extends keyof Primitives>(
  gpu: Backend,
  kernel: K,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  attrs: Parameters<Primitives[K]['run']>[2],
  { atol = 0, rtol = 0 } = {},
): Promise<void> {
  const got = await runKernel(gpu, kernel, outputs, inputs, attrs)
  const want = await runKernel(reference, kernel, outputs, inputs, attrs)
  got.forEach((values, i) => {
    const why = mismatch(values, want[i], atol, rtol)
    if (why !== null) {
      const call = JSON.stringify([outputs, inputs].map((list) => list.map((o) => [o.dtype, o.layout])))
      expect.fail(`output ${i} of ${kernel} ${call} ${JSON.stringify(attrs)}: ${why}`)
    }
  })
}

/** A contiguous output, full of rubbish. */
export const output = (shape: readonly number[], dtype: DType): Operand =>
  operand(layout.contiguous(shape), dtype, () => (dtype === 'bool' ? 1 : -77))
