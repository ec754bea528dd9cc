/**
 * Element types: how each dtype that a GPU stores lies in memory, and what kernels compute with. Elements of float32, int32
 * and bool fill a word each; those of 16 bits lie two to a word, the first in its low half, on every GPU alike. What
 * depends on the dtype asks here, or has a table of its own over `Lane` or `Stored`: a dtype that is added is then
 * missing wherever the compiler says so.
 */

import { type DType, DTypeError, dtypeInfo, type TypedArray } from '@tilegrad/core'
import { pack, unpack } from '@tilegrad/core/kernel'
import type { MathName } from './math.ts'

/** The dtypes that kernels compute with; an element of theirs is a word in memory. */
export type Lane = 'float32' | 'int32' | 'bool'

/** The dtypes of 16 bits, which are computed with as float32. */
export type Packed = 'float16' | 'bfloat16'

/** The dtypes that GPUs store. */
export type Stored = Lane | Packed

export interface Element {
  /** The WGSL type in memory. */
  readonly item: 'f32' | 'i32' | 'u32'
  /** The WGSL type that kernels compute with. */
  readonly value: 'f32' | 'i32' | 'bool'
  /** The items 0 and 1. */
  readonly zero: string
  readonly one: string
  /** An item as a value. */
  load(item: string): string
  /** A value as an item. */
  store(value: string): string
  /** Puts a number of a call among a kernel's parameters, as an item. */
  put(value: number, at: number, f32: Float32Array, u32: Uint32Array): void
}

const same = (x: string): string => x

export const elements: Readonly<Record<Lane, Element>> = {
  float32: {
    item: 'f32',
    value: 'f32',
    zero: '0.0',
    one: '1.0',
    load: same,
    store: same,
    put: (value, at, f32) => {
      f32[at] = value
    },
  },
  int32: {
    item: 'i32',
    value: 'i32',
    zero: '0',
    one: '1',
    load: same,
    store: same,
    put: (value, at, _, u32) => {
      u32[at] = value
    },
  },
  // 4 bytes: WGSL has no storage of bools, nor of bytes that threads could write side by side.
  bool: {
    item: 'u32',
    value: 'bool',
    zero: '0u',
    one: '1u',
    load: (item) => `(${item} != 0u)`,
    store: (value) => `select(0u, 1u, ${value})`,
    put: (value, at, _, u32) => {
      u32[at] = Number(value !== 0)
    },
  },
}

/** Functions of WGSL for two elements of 16 bits: of a word the two values, of two values the word. */
export const packings: Readonly<Record<Packed, { readonly load: MathName; readonly store: MathName }>> = {
  float16: { load: 'tg_load_f16', store: 'tg_store_f16' },
  bfloat16: { load: 'tg_load_bf16', store: 'tg_store_bf16' },
}

/** How elements lie in memory. */
interface Memory {
  /** Bytes of an element. */
  readonly bytes: number
  /** What kernels compute with. */
  readonly lane: Lane
  /** Elements on the host as they lie in memory. */
  write(elements: TypedArray): ArrayBufferView
  /** What was read from memory as elements on the host. */
  read(memory: ArrayBuffer): TypedArray
}

/** One whose elements lie in memory as they do on the host. */
const plain = (lane: Lane): Memory => ({
  bytes: 4,
  lane,
  write: (elements) => elements,
  read: (memory) => new dtypeInfo[lane].Memory(memory, 0, memory.byteLength / 4),
})
const packed = (dtype: Packed): Memory => ({
  bytes: 2,
  lane: 'float32',
  write: (elements) => pack(dtype, elements),
  read: (memory) => unpack(dtype, new Uint16Array(memory)),
})

const memories: Readonly<Record<Stored, Memory>> = {
  float32: plain('float32'),
  int32: plain('int32'),
  bool: {
    bytes: 4,
    lane: 'bool',
    write: (elements) => Uint32Array.from(elements),
    read: (memory) => Uint8Array.from(new Uint32Array(memory)),
  },
  float16: packed('float16'),
  bfloat16: packed('bfloat16'),
}

const byName: Readonly<Partial<Record<DType, Memory>>> = memories

/** Tells how elements of a dtype lie in memory. Throws DTypeError for dtypes that GPUs do not store. */
export function memoryOf(dtype: DType): Memory {
  const memory = byName[dtype]
  if (memory) return memory
  throw new DTypeError(
    `webgpu: ${dtype} is not stored on GPUs here; convert with .to('float32') before moving there`,
  )
}

/** What kernels compute with where elements are of a dtype. Throws DTypeError for dtypes that GPUs do not store. */
export const laneOf = (dtype: DType): Lane => memoryOf(dtype).lane

export const isPacked = (dtype: DType): dtype is Packed => dtype in packings

/** Tells of a dtype whose elements fill words. Throws DTypeError for others. */
export function elementOf(dtype: DType): Element {
  const element = elements[laneOf(dtype)]
  if (isPacked(dtype)) throw new DTypeError(`webgpu: elements of ${dtype} fill no words`)
  return element
}

/** What is bound of a buffer whose elements are reached one by one: of 16 bits the words, two elements each. */
export const itemOf = (dtype: DType, write: boolean): Element['item'] | 'atomic<u32>' =>
  isPacked(dtype) ? (write ? 'atomic<u32>' : 'u32') : elementOf(dtype).item

/** The item of element `at` (an i32), of 16 bits as float32. `written`: the binding may be written. */
export function itemAt(dtype: DType, name: string, at: string, written = false): string {
  if (!isPacked(dtype)) return `${name}[${at}]`
  const word = `${name}[(${at}) >> 1u]`
  return `${packings[dtype].load}(${written ? `atomicLoad(&${word})` : word})[(${at}) & 1]`
}

/** Stores an item, of 16 bits a float32, as element `at` (an i32): half of a word whose other half may be another thread's. */
export function putItem(dtype: DType, name: string, at: string, item: string): string {
  if (!isPacked(dtype)) return `${name}[${at}] = ${item};`
  return `{
let at = ${at};
let low = 16u * u32(at & 1);
atomicAnd(&${name}[at >> 1u], ~(0xffffu << low));
atomicOr(&${name}[at >> 1u], ${packings[dtype].store}(vec2(${item}, 0.0)) << low);
}`
}

/** Functions that loads of some dtypes and stores of others call. */
export const packingsOf = (loads: readonly DType[], stores: readonly DType[]): MathName[] => [
  ...loads.filter(isPacked).map((dtype) => packings[dtype].load),
  ...stores.filter(isPacked).map((dtype) => packings[dtype].store),
]
