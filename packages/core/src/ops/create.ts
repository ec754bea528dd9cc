import { record, shouldRecord } from '../autograd/tape.ts'
import { amongKnown, describe, expectDType, expectOptions, type Names } from '../checks.ts'
import type { Backend } from '../dispatch/backend.ts'
import { capturing } from '../dispatch/capturing.ts'
import { defaultBackend, deviceNames, getBackend, isDevice } from '../dispatch/device.ts'
import { paging } from '../dispatch/paging.ts'
import { DeviceError, DTypeError, ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { copy, fill, generate } from '../primitives/elementwise.ts'
import { contiguous } from '../primitives/views.ts'
import {
  checkFits,
  type DType,
  dtypeOf,
  info,
  isFloat,
  type NumberArray,
  numbersOf,
  type TypedArray,
} from '../tensor/dtype.ts'
import { flatOf, isTyped, type Nested } from '../tensor/from-arrays.ts'
import { checkShape, numel, sameShape } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import { type Tensor, upload } from '../tensor/tensor.ts'

/** Options of all functions that make tensors. */
export interface TensorOptions {
  /** The type of the elements. Default: float32, or what the data says. */
  dtype?: DType
  /** A backend's name or the backend itself. Default: `defaultBackend()`. */
  device?: Backend | string
  /** Compute gradients with respect to the tensor. Default: false. */
  requiresGrad?: boolean
}

/** @internal */
export const TENSOR: Names<TensorOptions> = { dtype: 1, device: 1, requiresGrad: 1 }

const finish = (t: Tensor, options: TensorOptions): Tensor => {
  if (options.requiresGrad) t.requiresGrad = true
  return t
}

const backendFor = (options: TensorOptions): Backend =>
  options.device === undefined ? defaultBackend() : getBackend(options.device)

/**
 * A tensor from nested arrays, a number, or a typed array (copied) with an optional shape.
 *
 * @param data plain numbers become float32, booleans bool; typed arrays keep their numbers: those of whole numbers become
 * int32, also of 8 and 16 bits, Float16Array float16. Bytes that are flags need `{ dtype: 'bool' }`.
 * @param shape default: that of the nesting; a typed array is one-dimensional.
 * @throws ShapeError if the nesting is ragged or `shape` has another number of elements, DTypeError for a number that
 * int32 cannot hold (out of range, infinite, NaN); fractions are cut off.
 * @example
 * const a = tensor([[1, 2], [3, 4]], { requiresGrad: true })
 * const b = tensor(new Float32Array(6), [2, 3])
 */
export function tensor(
  data: Nested | NumberArray,
  shape?: readonly number[] | TensorOptions,
  options: TensorOptions = {},
): Tensor {
  if (shape && !Array.isArray(shape)) return tensor(data, undefined, shape as TensorOptions)
  expectOptions('tensor', options, TENSOR)
  const want = shape as readonly number[] | undefined
  let flat: ArrayLike<number>
  let natural: readonly number[]
  let dtype = options.dtype && expectDType('tensor', options.dtype)
  if (isTyped(data)) {
    dtype ??= dtypeOf(data)
    const list = data as ArrayLike<number>
    flat = typeof list[0] === 'bigint' ? Array.from(list, Number) : list
    natural = [flat.length]
  } else {
    const { shape: nesting, list } = flatOf('tensor', data as Nested)
    natural = nesting
    dtype ??= list.length > 0 && list.every((v) => typeof v === 'boolean') ? 'bool' : 'float32'
    flat = list.map(Number)
  }
  const to = want ?? natural
  checkShape('tensor', to)
  if (numel(to) !== flat.length)
    throw new ShapeError(`tensor: shape ${show(to)} has ${numel(to)} elements, the data ${flat.length}`)
  const array = numbersOf(dtype, flat.length)
  if (dtype === 'bool') for (let i = 0; i < flat.length; i++) array[i] = Number(flat[i] !== 0)
  else {
    if (dtype === 'int32' && !(flat instanceof Int32Array))
      for (let i = 0; i < flat.length; i++) checkFits('tensor', flat[i], dtype)
    array.set(flat)
  }
  return finish(upload(backendFor(options), array, to, dtype), options)
}

/**
 * Shape and options as a factory gets them: sizes in an array, or one after the other, then options. @internal
 */
export function shapeAndOptions<O extends TensorOptions>(
  op: string,
  args: readonly unknown[],
  names: Names<O>,
): { shape: readonly number[]; options: O } {
  const counted = typeof args[0] === 'number'
  const at = counted ? args.findIndex((x) => typeof x !== 'number') : 1
  const shape = counted ? (at < 0 ? args : args.slice(0, at)) : args[0]
  if (!Array.isArray(shape))
    throw new ShapeError(`${op}: takes sizes, as ${op}([2, 3]) or ${op}(2, 3), got ${describe(shape)}`)
  const options = (args[at] ?? {}) as O
  return { shape, options: expectOptions(op, options, names) }
}

/**
 * Makes a tensor of the given shape with every element `value`; float32 unless said.
 *
 * @throws ShapeError for a shape that is none, DTypeError for a value that int32 cannot hold, if that is the dtype.
 * @example
 * await full([2], 7).toArray() // → [7, 7]
 */
export function full(shape: readonly number[] | number, value: number, options: TensorOptions = {}): Tensor {
  if (typeof value !== 'number')
    throw new ValueError(`full: takes a shape and a number, got ${describe(value)}`)
  return filled('full', shapeAndOptions('full', [shape, options], TENSOR), value)
}

function filled(
  op: string,
  { shape, options }: { shape: readonly number[]; options: TensorOptions },
  value: number,
): Tensor {
  checkShape(op, shape)
  return finish(fill(backendFor(options), shape, value, options.dtype ?? 'float32'), options)
}

/**
 * Makes a tensor of zeros of the given shape; float32 unless said.
 *
 * @throws ShapeError for a shape that is none.
 * @example
 * await zeros([2]).toArray() // → [0, 0]
 * zeros(2, 3).shape // → [2, 3]
 */
export function zeros(shape: readonly number[], options?: TensorOptions): Tensor
/** Makes a tensor of zeros of the given sizes. */
export function zeros(...sizes: number[]): Tensor
export function zeros(...args: readonly unknown[]): Tensor {
  return filled('zeros', shapeAndOptions('zeros', args, TENSOR), 0)
}

/**
 * Makes a tensor of ones of the given shape; float32 unless said.
 *
 * @throws ShapeError for a shape that is none.
 * @example
 * await ones([2]).toArray() // → [1, 1]
 * ones(2, 3).shape // → [2, 3]
 */
export function ones(shape: readonly number[], options?: TensorOptions): Tensor
/** Makes a tensor of ones of the given sizes. */
export function ones(...sizes: number[]): Tensor
export function ones(...args: readonly unknown[]): Tensor {
  return filled('ones', shapeAndOptions('ones', args, TENSOR), 1)
}

const like = (x: Tensor, options: TensorOptions): TensorOptions => ({
  dtype: x.dtype,
  device: x.backend,
  ...expectOptions('like', options, TENSOR),
})

/**
 * Makes a tensor of zeros of x's shape, and of its dtype and device unless said.
 *
 * @example
 * zerosLike(arange(3)).dtype // → int32
 */
export const zerosLike = (x: Tensor, options: TensorOptions = {}): Tensor => zeros(x.shape, like(x, options))

/**
 * Makes a tensor of ones of x's shape, and of its dtype and device unless said.
 *
 * @example
 * onesLike(arange(3)).dtype // → int32
 */
export const onesLike = (x: Tensor, options: TensorOptions = {}): Tensor => ones(x.shape, like(x, options))

/**
 * Makes a tensor of x's shape with every element `value`, of its dtype and device unless said.
 *
 * @example
 * await fullLike(arange(2), 7).toArray() // → [7, 7]
 */
export const fullLike = (x: Tensor, value: number, options: TensorOptions = {}): Tensor =>
  full(x.shape, value, like(x, options))

const ARANGE = program('arange', 0, (_, [start, step]) => e.add(start, e.mul(e.index, step)), 2)
const EYE = program('eye', 0, () => e.eq(e.coord(-1), e.coord(-2)))

/** `size` numbers in order, computed in float64 and rounded once: the same on every engine. */
function sequence(
  op: string,
  size: number,
  at: (i: number) => number,
  dtype: DType,
  options: TensorOptions,
): Tensor {
  if (size > 2 ** 31 - 1)
    throw new ShapeError(`${op}: a tensor holds at most 2^31 − 1 elements, this one ${size}`)
  const array = numbersOf(dtype, size)
  for (let i = 0; i < size; i++) array[i] = at(i)
  return finish(upload(backendFor(options), array, [size], dtype), options)
}

/**
 * start, start + step, … below `end`, ⌈(end − start) / step⌉ of them. `arange(n)` counts 0 … n−1. dtype: int32 if all
 * arguments are whole, else float32.
 *
 * @throws ShapeError for a step of 0 or bounds that are not finite, DTypeError where numbers do not fit int32.
 * @example
 * await arange(3).toArray() // → [0, 1, 2]
 * await arange(1, 2, 0.25).toArray() // → [1, 1.25, 1.5, 1.75]
 */
export function arange(start: number, end?: number, step = 1, options: TensorOptions = {}): Tensor {
  expectOptions('arange', options, TENSOR)
  for (const x of [start, end ?? 0, step])
    if (typeof x !== 'number')
      throw new ValueError(`arange: takes start, end and step, and options after them; got ${describe(x)}`)
  if (end === undefined) return arange(0, start, step, options)
  if (step === 0 || !Number.isFinite((end - start) / step))
    throw new ShapeError(`arange: cannot step from ${start} to ${end} by ${step}`)
  const whole = [start, end, step].every(Number.isInteger)
  const dtype = options.dtype ?? (whole ? 'int32' : 'float32')
  const size = Math.max(0, Math.ceil((end - start) / step))
  if (isFloat(dtype)) return sequence('arange', size, (i) => start + i * step, dtype, options)
  if (size > 0) checkFits('arange', start + (size - 1) * step, dtype)
  return finish(generate(ARANGE, backendFor(options), [size], dtype, [start, step]), options)
}

/**
 * `steps` values from start to end, both included exactly; computed from the nearer end, as PyTorch does.
 *
 * @example
 * await linspace(0, 1, 3).toArray() // → [0, 0.5, 1]
 */
export function linspace(start: number, end: number, steps: number, options: TensorOptions = {}): Tensor {
  checkShape('linspace', [steps])
  expectOptions('linspace', options, TENSOR)
  const dtype = options.dtype ?? 'float32'
  checkFits('linspace', start, dtype)
  checkFits('linspace', end, dtype)
  const last = steps - 1
  const step = (end - start) / last
  const at = (i: number): number =>
    i === 0 ? start : i === last ? end : 2 * i < last ? start + step * i : end - step * (last - i)
  return sequence('linspace', steps, at, dtype, options)
}

/**
 * Makes the identity matrix (n, m), ones on the diagonal and zeros elsewhere; m is n and float32 the dtype unless
 * said.
 *
 * @throws ShapeError for sizes that are none.
 * @example
 * await eye(2).toArray() // → [[1, 0], [0, 1]]
 */
export function eye(n: number, m = n, options: TensorOptions = {}): Tensor {
  checkShape('eye', [n, m])
  expectOptions('eye', options, TENSOR)
  return finish(generate(EYE, backendFor(options), [n, m], options.dtype ?? 'float32'), options)
}

/** Makes a tensor for random factories. @internal */
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

const MOVE = { dtype: 1, device: 1 } as const

/** What `to` takes: a dtype, a device by name or itself, or both. */
export type MoveTarget = DType | Backend | (string & {}) | { dtype?: DType; device?: Backend | string }

/**
 * x in another dtype or on another device; x itself where nothing changes. Differentiable between floating dtypes.
 * Floats become int32 by cutting off the fraction; what is out of range becomes the nearest int32, NaN becomes 0, on
 * every engine. bool asks what differs from 0 (NaN does).
 * Moving between devices reads from the first at once: where that is impossible it throws DeviceError (use `await
 * x.data()` and `tensor`).
 *
 * @example
 * tensor([1.5]).to('int32').dtype // → int32
 */
export function to(x: Tensor, target: MoveTarget): Tensor {
  x = asTensor('to', x)
  if (typeof target === 'string')
    return isDevice(target) ? to(x, { device: target }) : convert(x, target as DType)
  if (typeof target !== 'object' || target === null)
    throw new ValueError(`to: takes a dtype, a device or { dtype, device }, got ${describe(target)}`)
  const { dtype = x.dtype, device = x.backend } =
    'kernels' in target ? { device: target } : expectOptions('to', target, MOVE)
  const backend = getBackend(device)
  const converted = convert(x, dtype)
  if (backend === x.backend) return converted
  return move(converted, backend)
}

function convert(x: Tensor, dtype: DType): Tensor {
  if (!Object.hasOwn(info, dtype))
    throw new DTypeError(
      `to: ${describe(dtype)} is no dtype and no device${amongKnown(String(dtype), [...Object.keys(info), ...deviceNames()])}`,
    )
  return x.dtype === dtype ? x : copy(x, dtype)
}

function move(x: Tensor, backend: Backend): Tensor {
  const out = upload(backend, dataSync(x), x.shape, x.dtype)
  if (shouldRecord([x])) record('to', [x], [out], null, (node, [d]) => [d && move(d, node.inputs[0].backend)])
  return out
}

/** While a function is recorded, what it reads would be read once. */
const refuseRead = (op: string): void => {
  capturing()?.refuses(`reading a tensor (${op})`, 'return the tensor, and read it outside')
}

/**
 * Reads the elements in row-major order, as a typed array of their own; of bools a Uint8Array of 0 and 1.
 *
 * @throws DisposedError if the tensor was freed.
 * @example
 * await tensor([[1, 2], [3, 4]]).data() // → [1, 2, 3, 4]
 */
export async function data(x: Tensor): Promise<TypedArray> {
  x = asTensor('data', x)
  refuseRead('data')
  const dense = contiguous(x)
  try {
    paging()?.bring(x.backend, dense)
    return await x.backend.read(dense)
  } finally {
    if (dense !== x) dense.dispose()
  }
}

/**
 * Reads the elements in row-major order at once, as a typed array of their own; of bools a Uint8Array of 0 and 1.
 *
 * @throws DeviceError where the backend cannot answer at once: use `await x.data()`.
 * @example
 * tensor([1, 2]).dataSync() // → [1, 2]
 */
export function dataSync(x: Tensor): TypedArray {
  x = asTensor('dataSync', x)
  refuseRead('dataSync')
  const { readSync } = x.backend
  if (!readSync) throw new DeviceError(`dataSync: ${x.device} cannot read at once; use await x.data()`)
  const dense = contiguous(x)
  try {
    paging()?.bring(x.backend, dense)
    return readSync.call(x.backend, dense)
  } finally {
    if (dense !== x) dense.dispose()
  }
}

const one = (x: Tensor, op: string): void => {
  asTensor(op, x)
  if (x.numel !== 1)
    throw new ShapeError(
      `${op}: takes a tensor of one element, got ${show(x.shape)}; use ${op === 'item' ? 'data()' : 'dataSync()'}`,
    )
}

/**
 * A promise of something read. Used as a number or in a text before it is awaited it would be NaN or
 * "[object Promise]": it throws instead.
 */
const promised = <T>(op: string, read: Promise<T>): Promise<T> => {
  const value = (): never => {
    throw new ValueError(`${op}: gives a promise, which is no value yet; use await x.${op}()`)
  }
  // What numbers are most often asked for first: x.item().toFixed(3).
  return Object.defineProperties(read, { [Symbol.toPrimitive]: { value }, toFixed: { value } })
}

/**
 * Reads the value of a tensor of one element; of bools 0 or 1.
 *
 * @throws ShapeError for another number of elements.
 * @example
 * await tensor([1, 2]).sum().item() // → 3
 */
export function item(x: Tensor): Promise<number> {
  return promised('item', readItem(x))
}

async function readItem(x: Tensor): Promise<number> {
  one(x, 'item')
  return (await data(x))[0]
}

/**
 * Reads the value of a tensor of one element at once; of bools 0 or 1.
 *
 * @throws ShapeError for another number of elements, DeviceError where the backend cannot answer at once: use
 * `await x.item()`.
 * @example
 * tensor([1, 2]).sum().itemSync() // → 3
 */
export function itemSync(x: Tensor): number {
  one(x, 'itemSync')
  return dataSync(x)[0]
}

/**
 * Reads the elements as nested arrays; a scalar gives a number, and bools are booleans.
 *
 * @example
 * await tensor([[1, 2], [3, 4]]).toArray() // → [[1, 2], [3, 4]]
 */
export function toArray(x: Tensor): Promise<Nested> {
  return promised('toArray', readNested(x))
}

async function readNested(x: Tensor): Promise<Nested> {
  x = asTensor('toArray', x)
  const flat = await data(x)
  let next = 0
  const build = (depth: number): Nested => {
    if (depth === x.rank) return x.dtype === 'bool' ? flat[next++] !== 0 : flat[next++]
    return Array.from({ length: x.shape[depth] }, () => build(depth + 1))
  }
  return build(0)
}

/**
 * Says whether two tensors have the same shape, dtype and elements; NaN equals nothing. It reads both.
 *
 * @example
 * await tensor([1, 2]).equal(tensor([1, 2])) // → true
 */
export function equal(a: Tensor, b: Tensor): Promise<boolean> {
  return promised('equal', readEqual(a, b))
}

async function readEqual(a: Tensor, b: Tensor): Promise<boolean> {
  a = asTensor('equal', a)
  b = asTensor('equal', b, a)
  if (!sameShape(a.shape, b.shape) || a.dtype !== b.dtype) return false
  const [x, y] = [await data(a), await data(b)]
  return x.every((v, i) => v === y[i])
}

/** A tensor as `JSON.stringify` writes it. */
export interface TensorJSON {
  /** The type of the elements. */
  dtype: DType
  /** The size of each dim. */
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
