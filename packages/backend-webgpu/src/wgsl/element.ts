/**
 * Element types: how each dtype that a GPU stores lies in memory (an item), what kernels compute with (a value), and the
 * way from one to the other. What depends on the dtype asks here, or has a table of its own over `Stored`: a dtype that
 * is added is then missing wherever the compiler says so.
 */

import { type DType, DTypeError, type TypedArray } from '@tilegrad/core'

/** The dtypes that GPUs store. */
export type Stored = 'float32' | 'int32' | 'bool'

/** Items on the host, as they are written to a buffer. */
export type Words = Uint32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>

export interface Element {
  /** The WGSL type in memory. */
  readonly item: 'f32' | 'i32' | 'u32'
  /** The WGSL type that kernels compute with. */
  readonly value: 'f32' | 'i32' | 'bool'
  /** Bytes of an item. */
  readonly bytes: number
  /** The items 0 and 1. */
  readonly zero: string
  readonly one: string
  /** An item as a value. */
  load(item: string): string
  /** A value as an item. */
  store(value: string): string
  /** Elements on the host as items. */
  write(elements: TypedArray): Words
  /** Items that were read as elements on the host. */
  read(items: ArrayBuffer): TypedArray
  /** Puts a number of a call among a kernel's parameters, as an item. */
  put(value: number, at: number, f32: Float32Array, u32: Uint32Array): void
}

const same = (x: string): string => x

export const elements: Readonly<Record<Stored, Element>> = {
  float32: {
    item: 'f32',
    value: 'f32',
    bytes: 4,
    zero: '0.0',
    one: '1.0',
    load: same,
    store: same,
    write: (x) => x as Words,
    read: (items) => new Float32Array(items),
    put: (value, at, f32) => {
      f32[at] = value
    },
  },
  int32: {
    item: 'i32',
    value: 'i32',
    bytes: 4,
    zero: '0',
    one: '1',
    load: same,
    store: same,
    write: (x) => x as Words,
    read: (items) => new Int32Array(items),
    put: (value, at, _, u32) => {
      u32[at] = value
    },
  },
  // 4 bytes: WGSL has no storage of bools, nor of bytes that threads could write side by side.
  bool: {
    item: 'u32',
    value: 'bool',
    bytes: 4,
    zero: '0u',
    one: '1u',
    load: (item) => `(${item} != 0u)`,
    store: (value) => `select(0u, 1u, ${value})`,
    write: (x) => Uint32Array.from(x),
    read: (items) => Uint8Array.from(new Uint32Array(items)),
    put: (value, at, _, u32) => {
      u32[at] = Number(value !== 0)
    },
  },
}

const byName: Readonly<Partial<Record<DType, Element>>> = elements
const isStored = (dtype: DType): dtype is Stored => byName[dtype] !== undefined

function refuse(dtype: DType): never {
  throw new DTypeError(
    `webgpu: ${dtype} is not stored on GPUs here; convert with .to('float32') before moving there`,
  )
}

/** A dtype as one that GPUs store. Throws DTypeError for others. */
export const storedOf = (dtype: DType): Stored => (isStored(dtype) ? dtype : refuse(dtype))

/** Tells how elements of a dtype are stored. Throws DTypeError for dtypes that GPUs do not store. */
export const elementOf = (dtype: DType): Element => byName[dtype] ?? refuse(dtype)
