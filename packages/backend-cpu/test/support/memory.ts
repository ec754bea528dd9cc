/** Operands of kernels that are called without a backend, in the memory of an engine. */

import { type DType, dtypeInfo, layout, type TypedArray, type View } from '@tilegrad/core'
import { output as filled, type Operand } from '../../../../test/kernels/operand.ts'
import { CpuBuffer, type Engine } from '../../src/engine.ts'

export function put(engine: Engine, { layout: l, dtype, data }: Operand): View {
  const ptr = engine.memory.alloc(data.byteLength)
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  engine.memory.view(ptr, Uint8Array, data.byteLength).set(bytes)
  return { buffer: new CpuBuffer(ptr, data.byteLength), dtype, ...l }
}

/** A contiguous output, full of rubbish. */
export const output = (engine: Engine, shape: readonly number[], dtype: DType): View =>
  put(engine, filled(shape, dtype))

/** The elements of a contiguous view. */
export function get(engine: Engine, view: View): TypedArray {
  const out = new dtypeInfo[view.dtype].Memory(layout.numel(view.shape))
  const bytes = engine.memory.view(engine.address(view), Uint8Array, out.byteLength)
  new Uint8Array(out.buffer).set(bytes)
  return out
}

export const release = (engine: Engine, views: readonly View[]): void => {
  for (const v of views) engine.memory.free((v.buffer as CpuBuffer).ptr)
}
