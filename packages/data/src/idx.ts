import {
  type Backend,
  type DType,
  expectOptions,
  type Tensor,
  type TensorOptions,
  tensor,
} from '@tilegrad/core'
import { type ByteSource, nameOf, readBytes } from './bytes.ts'
import { DataError } from './collate.ts'

/** Options of `readIdx`. */
export interface ReadIdxOptions {
  /** The dtype of the tensor. Default: int32 for whole numbers, else that of the file. */
  dtype?: DType
  /** The device of the tensor. Default: the default device. */
  device?: Backend | string
}

interface Kind {
  readonly bytes: number
  readonly from: {
    new (length: number): Uint8Array | Int8Array | Int16Array | Int32Array | Float32Array | Float64Array
  }
  readonly get: (view: DataView, at: number) => number
}

/** The types of IDX files, by the third byte. Numbers of more than one byte begin with the highest. */
const KINDS: Readonly<Record<number, Kind>> = {
  8: { bytes: 1, from: Uint8Array, get: (view, at) => view.getUint8(at) },
  9: { bytes: 1, from: Int8Array, get: (view, at) => view.getInt8(at) },
  11: { bytes: 2, from: Int16Array, get: (view, at) => view.getInt16(at) },
  12: { bytes: 4, from: Int32Array, get: (view, at) => view.getInt32(at) },
  13: { bytes: 4, from: Float32Array, get: (view, at) => view.getFloat32(at) },
  14: { bytes: 8, from: Float64Array, get: (view, at) => view.getFloat64(at) },
}

/**
 * Reads an IDX file, the format of MNIST (LeCun, Cortes & Burges 1998), packed by gzip or not, as a tensor.
 *
 * @param source a path, a URL, bytes, a Blob or a stream.
 * @throws DataError with the byte where the file is damaged.
 * @example
 * import { readIdx } from 'tilegrad/data'
 *
 * const file = Uint8Array.of(0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1)
 * const labels = await readIdx(file)
 * labels.dataSync() // → [7, 2, 1]
 */
export async function readIdx(source: ByteSource, options: ReadIdxOptions = {}): Promise<Tensor> {
  const { dtype, device } = expectOptions('readIdx', options, { dtype: 1, device: 1 })
  const bytes = await readBytes('readIdx', source)
  const fail = (what: string): never => {
    throw new DataError(`readIdx: ${nameOf(source)}: ${what}`)
  }
  const kind = KINDS[bytes[2]]
  if (bytes.length < 4 || bytes[0] !== 0 || bytes[1] !== 0 || kind === undefined)
    return fail(
      `at byte 0, expected 0, 0 and a type of 8, 9, 11 … 14, got ${bytes.length === 0 ? 'nothing' : [...bytes.subarray(0, 3)].join(', ')}; this is no IDX file`,
    )
  const rank = bytes[3]
  const start = 4 + 4 * rank
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < start) fail(`cut off at byte ${bytes.length}, within its header of ${start} bytes`)
  const shape = Array.from({ length: rank }, (_, i) => view.getUint32(4 + 4 * i))
  const count = shape.reduce((a, b) => a * b, 1)
  const end = start + count * kind.bytes
  if (bytes.length !== end)
    fail(
      `${bytes.length < end ? 'cut off' : 'goes on'} at byte ${Math.min(bytes.length, end)}: shape [${shape.join(', ')}] takes ${end} bytes, the file has ${bytes.length}`,
    )
  let data = new kind.from(0)
  if (kind.from === Uint8Array) data = bytes.subarray(start)
  else {
    data = new kind.from(count)
    for (let i = 0; i < count; i++) data[i] = kind.get(view, start + kind.bytes * i)
  }
  const made: TensorOptions = { ...(dtype && { dtype }), ...(device !== undefined && { device }) }
  return tensor(data, shape, made)
}
