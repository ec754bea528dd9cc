import type { Backend } from '../backend.ts'
import { defaultBackend, getBackend, isDevice } from '../device.ts'
import { type DType, dtypeOf, info, isFloat, type TypedArray } from '../dtype.ts'
import { DeviceError, DTypeError, ShapeError, show, UnsupportedOpError, ValueError } from '../errors.ts'
import * as e from '../expr.ts'
import { checkShape, numel, sameShape } from '../layout.ts'
import { copy, fill, generate } from '../primitives/elementwise.ts'
import { contiguous } from '../primitives/views.ts'
import { type Program, program } from '../program.ts'
import { record, shouldRecord } from '../tape.ts'
import { type Tensor, upload } from '../tensor.ts'

export interface TensorOptions {
  /** Default: float32, or what the data says. */
  dtype?: DType
  /** A backend's name or the backend itself. Default: `defaultBackend()`. */
  device?: Backend | string
  requiresGrad?: boolean
}

/** Numbers or booleans, nested to any depth. */
export type Nested = number | boolean | readonly Nested[]

const finish = (t: Tensor, options: TensorOptions): Tensor => {
  if (options.requiresGrad) t.requiresGrad = true
  return t
}

const backendFor = (options: TensorOptions): Backend =>
  options.device === undefined ? defaultBackend() : getBackend(options.device)

/**
 * A tensor from nested arrays, a number, or a typed array (copied) with an optional shape.
 *
 * @param data plain numbers become float32, booleans bool; typed arrays keep their dtype (Uint8Array is bool).
 * @param shape default: that of the nesting; a typed array is one-dimensional.
 * @throws ShapeError if the nesting is ragged or `shape` has another number of elements.
 * @example
 * const a = tensor([[1, 2], [3, 4]], { requiresGrad: true })
 * const b = tensor(new Float32Array(6), [2, 3])
 */
export function tensor(
  data: Nested | TypedArray,
  shape?: readonly number[] | TensorOptions,
  options: TensorOptions = {},
): Tensor {
  if (shape && !Array.isArray(shape)) return tensor(data, undefined, shape as TensorOptions)
  const want = shape as readonly number[] | undefined
  let flat: ArrayLike<number>
  let natural: readonly number[]
  let dtype = options.dtype
  if (ArrayBuffer.isView(data)) {
    flat = data as TypedArray
    natural = [flat.length]
    dtype ??= dtypeOf(data)
  } else {
    natural = nesting(data)
    const list: (number | boolean)[] = []
    flatten(data, natural, 0, list)
    dtype ??= list.length > 0 && list.every((v) => typeof v === 'boolean') ? 'bool' : 'float32'
    flat = list.map(Number)
  }
  const to = want ?? natural
  checkShape('tensor', to)
  if (numel(to) !== flat.length)
    throw new ShapeError(`tensor: shape ${show(to)} has ${numel(to)} elements, the data ${flat.length}`)
  if (dtype === 'float16') throw new UnsupportedOpError('float16: no backend stores it yet; use float32')
  const array = info[dtype].make(flat.length)
  if (dtype === 'bool') for (let i = 0; i < flat.length; i++) array[i] = Number(flat[i] !== 0)
  else array.set(flat)
  return finish(upload(backendFor(options), array, to, dtype), options)
}

function nesting(data: Nested): number[] {
  const shape: number[] = []
  for (let at: Nested | undefined = data; Array.isArray(at); at = (at as readonly Nested[])[0])
    shape.push(at.length)
  return shape
}

function flatten(data: Nested, shape: readonly number[], depth: number, out: (number | boolean)[]): void {
  if (depth === shape.length) {
    if (typeof data !== 'number' && typeof data !== 'boolean')
      throw new ShapeError(
        `tensor: ragged nesting; expected numbers at depth ${depth} for shape ${show(shape)}`,
      )
    out.push(data)
    return
  }
  if (!Array.isArray(data) || data.length !== shape[depth]) {
    throw new ShapeError(
      `tensor: ragged nesting at depth ${depth}; expected ${shape[depth]} entries everywhere for shape ${show(shape)}`,
    )
  }
  for (const item of data) flatten(item, shape, depth + 1, out)
}

/** Every element `value`. dtype: float32 unless said. */
export function full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
  checkShape('full', shape)
  return finish(fill(backendFor(options), shape, value, options.dtype ?? 'float32'), options)
}

export const zeros = (shape: readonly number[], options?: TensorOptions): Tensor => full(shape, 0, options)
export const ones = (shape: readonly number[], options?: TensorOptions): Tensor => full(shape, 1, options)

const like = (x: Tensor, options: TensorOptions): TensorOptions => ({
  dtype: x.dtype,
  device: x.backend,
  ...options,
})

/** Zeros of x's shape, dtype and device. */
export const zerosLike = (x: Tensor, options: TensorOptions = {}): Tensor => zeros(x.shape, like(x, options))
/** Ones of x's shape, dtype and device. */
export const onesLike = (x: Tensor, options: TensorOptions = {}): Tensor => ones(x.shape, like(x, options))
/** `value` in x's shape, dtype and device. */
export const fullLike = (x: Tensor, value: number, options: TensorOptions = {}): Tensor =>
  full(x.shape, value, like(x, options))

const ARANGE = program(
  'arange',
  0,
  (_, [start, step]) => e.add(start, e.mul(e.cast('float32', e.index), step)),
  2,
)
const IARANGE = program('arange', 0, (_, [start, step]) => e.add(start, e.mul(e.index, step)), 2)
const EYE = program('eye', 0, () => e.cast('float32', e.eq(e.coord(-1), e.coord(-2))))

/**
 * start, start + step, … below `end`. `arange(n)` counts 0 … n−1. dtype: int32 if all arguments are whole, else float32.
 */
export function arange(start: number, end?: number, step = 1, options: TensorOptions = {}): Tensor {
  if (end === undefined) return arange(0, start, step, options)
  if (step === 0 || !Number.isFinite((end - start) / step))
    throw new ShapeError(`arange: cannot step from ${start} to ${end} by ${step}`)
  const whole = [start, end, step].every(Number.isInteger)
  const dtype = options.dtype ?? (whole ? 'int32' : 'float32')
  const size = Math.max(0, Math.ceil((end - start) / step))
  return finish(
    generate(isFloat(dtype) ? ARANGE : IARANGE, backendFor(options), [size], dtype, [start, step]),
    options,
  )
}

/** `steps` values from start to end, both included. */
export function linspace(start: number, end: number, steps: number, options: TensorOptions = {}): Tensor {
  checkShape('linspace', [steps])
  return finish(
    generate(ARANGE, backendFor(options), [steps], options.dtype ?? 'float32', [
      start,
      steps > 1 ? (end - start) / (steps - 1) : 0,
    ]),
    options,
  )
}

/** The identity matrix, (n, m). */
export function eye(n: number, m = n, options: TensorOptions = {}): Tensor {
  checkShape('eye', [n, m])
  return finish(generate(EYE, backendFor(options), [n, m], options.dtype ?? 'float32'), options)
}

/** Used by random factories. @internal */
export function generated(
  op: string,
  p: Program,
  shape: readonly number[],
  options: TensorOptions,
  params: readonly number[],
): Tensor {
  checkShape(op, shape)
  return finish(generate(p, backendFor(options), shape, options.dtype ?? 'float32', params), options)
}

/** What `to` takes: a dtype, a device by name or itself, or both. */
export type MoveTarget = DType | Backend | (string & {}) | { dtype?: DType; device?: Backend | string }

/**
 * x in another dtype or on another device; x itself where nothing changes. Differentiable between floating dtypes.
 * Moving between devices reads from the first at once: where that is impossible it throws DeviceError (use `await
 * x.data()` and `tensor`).
 */
export function to(x: Tensor, target: MoveTarget): Tensor {
  if (typeof target === 'string')
    return isDevice(target) ? to(x, { device: target }) : convert(x, target as DType)
  const { dtype = x.dtype, device = x.backend } = 'kernels' in target ? { device: target } : target
  const backend = getBackend(device)
  const converted = convert(x, dtype)
  if (backend === x.backend) return converted
  return move(converted, backend)
}

function convert(x: Tensor, dtype: DType): Tensor {
  if (!(dtype in info))
    throw new DTypeError(
      `to: '${dtype}' is no dtype; expected one of ${Object.keys(info).join(', ')}, or a device that is known here`,
    )
  return x.dtype === dtype ? x : copy(x, dtype)
}

function move(x: Tensor, backend: Backend): Tensor {
  const out = upload(backend, dataSync(x), x.shape, x.dtype)
  if (shouldRecord([x])) record('to', [x], [out], null, (node, [d]) => [d && move(d, node.inputs[0].backend)])
  return out
}

/** The elements in row-major order, as a typed array of their own (bool: Uint8Array of 0 and 1). */
export async function data(x: Tensor): Promise<TypedArray> {
  const dense = contiguous(x)
  try {
    return await x.backend.read(dense)
  } finally {
    if (dense !== x) dense.dispose()
  }
}

/** As `data`, at once. @throws DeviceError where the backend cannot answer synchronously. */
export function dataSync(x: Tensor): TypedArray {
  const { readSync } = x.backend
  if (!readSync) throw new DeviceError(`dataSync: ${x.device} cannot read at once; use await x.data()`)
  const dense = contiguous(x)
  try {
    return readSync.call(x.backend, dense)
  } finally {
    if (dense !== x) dense.dispose()
  }
}

const one = (x: Tensor, op: string): void => {
  if (x.numel !== 1)
    throw new ShapeError(
      `${op}: takes a tensor of one element, got ${show(x.shape)}; use ${op === 'item' ? 'data()' : 'dataSync()'}`,
    )
}

/**
 * A promise of something read. Used as a number or in a text before it is awaited it would be NaN or
 * "[object Promise]": it throws instead.
 */
const promised = <T>(op: string, read: Promise<T>): Promise<T> =>
  Object.defineProperty(read, Symbol.toPrimitive, {
    value: () => {
      throw new ValueError(`${op}: gives a promise, which is no value yet; use await x.${op}()`)
    },
  })

/** The value of a one-element tensor (bool: 0 or 1). */
export function item(x: Tensor): Promise<number> {
  return promised('item', readItem(x))
}

async function readItem(x: Tensor): Promise<number> {
  one(x, 'item')
  return (await data(x))[0]
}

/** As `item`, at once. */
export function itemSync(x: Tensor): number {
  one(x, 'itemSync')
  return dataSync(x)[0]
}

/** The elements as nested arrays; a scalar gives a number. bool elements are booleans. */
export function toArray(x: Tensor): Promise<Nested> {
  return promised('toArray', readNested(x))
}

async function readNested(x: Tensor): Promise<Nested> {
  const flat = await data(x)
  let next = 0
  const build = (depth: number): Nested => {
    if (depth === x.rank) return x.dtype === 'bool' ? flat[next++] !== 0 : flat[next++]
    return Array.from({ length: x.shape[depth] }, () => build(depth + 1))
  }
  return build(0)
}

/** Same shape, dtype and elements (NaN equals nothing)? Reads both. */
export function equal(a: Tensor, b: Tensor): Promise<boolean> {
  return promised('equal', readEqual(a, b))
}

async function readEqual(a: Tensor, b: Tensor): Promise<boolean> {
  if (!sameShape(a.shape, b.shape) || a.dtype !== b.dtype) return false
  const [x, y] = [await data(a), await data(b)]
  return x.every((v, i) => v === y[i])
}

/** A tensor as `JSON.stringify` writes it. */
export interface TensorJSON {
  dtype: DType
  shape: readonly number[]
  /** The elements in row-major order. JSON has no NaN and no infinities: they become null in its text. */
  data: (number | boolean)[] | string
}

/** JSON.stringify writes tensors of so many elements at most. */
const mostInJson = 2 ** 20

/** Test runners that print what differs get at most so many elements as numbers. */
const mostInDiffs = 1000

/**
 * What `JSON.stringify` writes of a tensor: `{ dtype, shape, data }`, which `tensor(data, shape, { dtype })` takes back.
 * Called without a key, as test runners do to print what differs, it gives the text in place of more than 1000 elements.
 *
 * @throws DeviceError where the backend cannot read at once: use `await x.toArray()`; ValueError for more than 2²⁰
 * elements: use `saveSafetensors`.
 * @example
 * JSON.stringify(tensor([1, 2])) // → {"dtype":"float32","shape":[2],"data":[1,2]}
 */
export function toJSON(x: Tensor, key?: string): TensorJSON {
  const { dtype, shape } = x
  if (key === undefined && x.numel > mostInDiffs) return { dtype, shape, data: String(x) }
  if (!x.backend.readSync)
    throw new DeviceError(`JSON: ${x.device} cannot be read at once; write what await x.toArray() gives`)
  if (x.numel > mostInJson)
    throw new ValueError(
      `JSON: a tensor ${show(shape)} is too large to be written as text; use saveSafetensors, or await x.data()`,
    )
  const flat = Array.from(dataSync(x))
  return { dtype, shape, data: dtype === 'bool' ? flat.map((v) => v !== 0) : flat }
}
