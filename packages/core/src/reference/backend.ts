import type { Backend, View } from '../dispatch/backend.ts'
import { OutOfMemoryError } from '../errors.ts'
import { type DType, info, pack, type TypedArray, unpack } from '../tensor/dtype.ts'
import { counts } from '../tensor/storage.ts'
import { referenceKernels } from './kernels.ts'

class Memory {
  readonly data: TypedArray
  constructor(data: TypedArray) {
    this.data = data
  }
}

const dataOf = (view: View): TypedArray => (view.buffer as Memory).data

const read = (view: View): TypedArray =>
  unpack(view.dtype, dataOf(view).subarray(view.offset, view.offset + view.shape.reduce((p, n) => p * n, 1)))

function alloc(bytes: number, dtype: DType): Memory {
  try {
    return new Memory(new info[dtype].Memory(bytes / info[dtype].bytes))
  } catch {
    // A RangeError: longer than arrays can be, or than there is memory for.
    throw new OutOfMemoryError(bytes, counts.bytes, Number.POSITIVE_INFINITY)
  }
}

/** The plain-JavaScript backend: typed arrays and loops, in float32 and float64. The meaning of everything, at no speed. */
export const reference: Backend = {
  name: 'reference',
  alloc,
  free: () => {},
  write: (view, data) => dataOf(view).set(pack(view.dtype, data), view.offset),
  read: (view) => Promise.resolve(read(view)),
  readSync: read,
  kernels: referenceKernels(dataOf) as Backend['kernels'],
}
