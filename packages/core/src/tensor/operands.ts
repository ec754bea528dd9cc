import { describe } from '../checks.ts'
import { defaultBackend } from '../dispatch/device.ts'
import { ValueError } from '../errors.ts'
import { type DType, dtypeOf, isFloat, type NumberArray, numbersOf, type TypedArray } from './dtype.ts'
import { flatOf, isTyped, type Nested } from './from-arrays.ts'
import { Tensor, upload } from './tensor.ts'

/** What is made a tensor where one is due: nested arrays of numbers or booleans, or a typed array. */
export type ArrayOperand = readonly Nested[] | NumberArray

/**
 * A tensor where one is due: arrays become one, on the device of `like` and, as plain numbers do, of its dtype unless
 * fractions need a float; everything else is an error that says what it is. `dtype` decides where it is given.
 *
 * @example
 * asTensor('mine', [1, 2]).shape // → [2]
 */
export const asTensor = (op: string, x: Tensor | ArrayOperand, like?: Tensor, dtype?: DType): Tensor =>
  x instanceof Tensor ? x : converted(op, x, like, dtype)

/** Makes sure that x is a tensor. Throws ValueError saying what it is, where only a tensor will do. */
export function expectTensor(op: string, x: Tensor): void {
  if (!(x instanceof Tensor)) throw notTensor(op, x)
}

function notTensor(op: string, x: unknown): ValueError {
  const list = typeof x === 'number' || Array.isArray(x)
  const foreign = typeof Object(x).dtype === 'string'
  const named = !foreign && Object.getPrototypeOf(Object(x)) === Object.prototype
  const fix = list
    ? '; make it one with tensor(…)'
    : named
      ? '; arguments before the options have no names'
      : foreign && Object(x).constructor?.name === 'Tensor'
        ? '; it is of another copy of tilegrad: npm ls @tilegrad/core'
        : ''
  return new ValueError(`${op}: takes a tensor, got ${describe(x)}${fix}`)
}

/** Makes tensors of all operands; returns the very same array where they are. */
export function tensorsOf(op: string, inputs: readonly (Tensor | ArrayOperand)[]): readonly Tensor[] {
  for (let i = 0; i < inputs.length; i++) if (!(inputs[i] instanceof Tensor)) return mixed(op, inputs)
  return inputs as readonly Tensor[]
}

function mixed(op: string, inputs: readonly (Tensor | ArrayOperand)[]): readonly Tensor[] {
  const like = inputs.find((x) => x instanceof Tensor)
  return inputs.map((x) => asTensor(op, x, like))
}

function converted(op: string, x: unknown, like?: Tensor, dtype?: DType): Tensor {
  const backend = like?.backend ?? defaultBackend()
  if (isTyped(x)) {
    const data = x as TypedArray
    const to = dtype ?? dtypeOf(data)
    const same = to !== 'bool' && data.constructor === numbersOf(to, 0).constructor
    return upload(backend, same ? data : arrayOf(to, Array.from(data, Number)), [data.length], to)
  }
  if (!Array.isArray(x)) throw notTensor(op, x)
  const { shape, list } = flatOf(op, x)
  const to = dtype ?? dtypeFor(list, like)
  return upload(backend, arrayOf(to, list.map(Number)), shape, to)
}

function dtypeFor(list: readonly (number | boolean)[], like: Tensor | undefined): DType {
  if (list.length > 0 && list.every((v) => typeof v === 'boolean')) return 'bool'
  if (like && isFloat(like.dtype)) return like.dtype
  return like && list.every((v) => Number.isInteger(Number(v))) ? 'int32' : 'float32'
}

/** Plain numbers as elements of a dtype. @throws ValueError where an int32 cannot hold them. */
function arrayOf(dtype: DType, list: readonly number[]): TypedArray {
  const array = numbersOf(dtype, list.length)
  for (let i = 0; i < list.length; i++) {
    const v = list[i]
    array[i] = dtype === 'bool' ? Number(v !== 0) : v
    if (dtype === 'int32' && array[i] !== v)
      throw new ValueError(`int32 cannot hold ${v}; indices and classes are whole numbers`)
  }
  return array
}
