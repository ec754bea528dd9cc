/** What the tests of elementwise kernels share: the same storages on two backends, run and compared. */

import {
  type Backend,
  type DType,
  dtypeInfo,
  type Layout,
  layout,
  type TypedArray,
  type TypedProgram,
  type View,
} from '@tilegrad/core'
import { extent, integer, pick, randomLayout } from './row-rig.ts'

/** A storage's content and the layout of the view that an operand is. */
export interface Operand {
  readonly layout: Layout
  readonly dtype: DType
  readonly data: TypedArray
}

const specials = [0, -0, 1, -1, 0.5, -0.5, 2, -2.5, 3, Infinity, -Infinity, NaN, 1e-40, -1e-40, 1e30, -3e9]

/** A value that is likely to be trouble for its dtype. */
export function value(rnd: () => number, dtype: DType): number {
  if (dtype === 'bool') return Number(rnd() < 0.5)
  if (dtype === 'int32') {
    return pick(rnd, [
      integer(rnd, -9, 9),
      integer(rnd, -9, 9),
      integer(rnd, -(2 ** 31), 2 ** 31 - 1),
      -(2 ** 31),
    ])
  }
  const kind = rnd()
  if (kind < 0.15) return pick(rnd, specials)
  return (rnd() < 0.5 ? -1 : 1) * 2 ** (kind < 0.6 ? rnd() * 8 - 4 : rnd() * 60 - 30)
}

export function operand(rnd: () => number, l: Layout, dtype: DType): Operand {
  const data = new dtypeInfo[dtype].Memory(extent(l))
  for (let i = 0; i < data.length; i++) data[i] = value(rnd, dtype)
  return { layout: l, dtype, data }
}

export const dense = (shape: readonly number[]): Layout => layout.contiguous(shape)

/** An input of `shape` or of something that broadcasts to it. */
export function randomInput(rnd: () => number, shape: readonly number[], dtype: DType): Operand {
  const own = shape.map((n) => (rnd() < 0.2 ? 1 : n)).slice(rnd() < 0.2 ? integer(rnd, 0, shape.length) : 0)
  return operand(rnd, randomLayout(rnd, own), dtype)
}

export const randomOutput = (rnd: () => number, shape: readonly number[], dtype: DType): Operand =>
  operand(rnd, randomLayout(rnd, shape, { expand: 0, plain: 0.5 }), dtype)

export function randomShape(rnd: () => number, most = 2000): number[] {
  for (;;) {
    const shape = Array.from({ length: integer(rnd, 0, 5) }, () => pick(rnd, [1, 2, 3, 4, 5, 7, 16, 19, 37]))
    if (layout.numel(shape) <= most) return shape
  }
}

const whole = (buffer: object, { dtype, data }: Operand): View => ({
  buffer,
  dtype,
  ...layout.contiguous([data.length]),
})

/**
 * Runs an elementwise kernel on a backend, and returns the outputs' whole storages: what lies between their elements
 * must not have changed. Operands that are the same object share their memory.
 */
export function runOn(
  backend: Backend,
  kernel: TypedProgram,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  params: readonly number[] = [],
): TypedArray[] {
  const buffers = new Map<Operand, object>()
  const place = (o: Operand): View => {
    let buffer = buffers.get(o)
    if (buffer === undefined) {
      buffer = backend.alloc(o.data.byteLength, o.dtype)
      backend.write(whole(buffer, o), o.data)
      buffers.set(o, buffer)
    }
    return { buffer, dtype: o.dtype, ...o.layout }
  }
  const ins = inputs.map(place)
  const outs = outputs.map(place)
  backend.kernels.elementwise.run(outs, ins, { kernel }, params)
  const results = outputs.map((o) => backend.readSync?.(whole(buffers.get(o) as object, o)) as TypedArray)
  for (const buffer of buffers.values()) backend.free(buffer)
  return results
}

const bits = new Float32Array(1)
const words = new Int32Array(bits.buffer)

/** The distance of two neighbours among the float32 at x. */
export function spacing(x: number): number {
  bits[0] = Math.abs(x)
  const exponent = ((words[0] as number) >>> 23) - 127
  return 2 ** (Math.max(exponent, -126) - 23)
}

/**
 * The first place where two results differ by more than `ulp` units of the last place, or null. 0: by anything but
 * the bits of a NaN (so that −0 is not 0). With `ulp` > 0 results below 2⁻¹²⁶ count as 0.
 */
export function differ(got: TypedArray, want: TypedArray, ulp = 0): string | null {
  if (got.length !== want.length) return `${got.length} elements, expected ${want.length}`
  for (let i = 0; i < got.length; i++) {
    const [g, w] = [got[i] as number, want[i] as number]
    if (Object.is(g, w)) continue
    const close = ulp > 0 && Math.abs(g - w) <= Math.max(2 ** -126, ulp * spacing(w))
    if (!close) return `element ${i}: ${g}, expected ${w}`
  }
  return null
}
