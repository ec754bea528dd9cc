import { addMethods } from '../add-methods.ts'
import { describe, expectInt, expectOptions } from '../checks.ts'
import { DTypeError, ShapeError, ValueError } from '../errors.ts'
import { numbersOf } from '../tensor/dtype.ts'
import { broadcastShapes } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { data, tensor } from './create.ts'
import { indexSelect } from './indexing.ts'

/**
 * Operators whose result has as many elements as are found, which only the device knows: they read, and so give promises.
 */

const indices = (list: ArrayLike<number>, shape: readonly number[], x: Tensor): Tensor =>
  tensor(Int32Array.from(list), shape, { device: x.backend })

/** The places of what is not 0, among all elements of a tensor. */
async function placesOf(x: Tensor): Promise<number[]> {
  const found: number[] = []
  for (const [i, v] of (await data(x)).entries()) if (v !== 0) found.push(i)
  return found
}

/**
 * Finds the places of all elements that are not 0, in order: for each dim of x an int32 tensor (N), so that
 * `x.at(...await mask.nonzero())` takes what a mask lets through. It reads x. PyTorch gives this with `as_tuple=True`; see
 * `argwhere` for one tensor (N, rank).
 *
 * @example
 * const [rows, columns] = await tensor([[0, 7], [8, 0]]).nonzero()
 * await rows.toArray() // → [0, 1]
 * await columns.toArray() // → [1, 0]
 */
export async function nonzero(x: Tensor): Promise<Tensor[]> {
  x = asTensor('nonzero', x)
  const places = await placesOf(x)
  let step = 1
  return x.shape
    .map((_, i) => x.rank - 1 - i)
    .map((d) => {
      const [n, by] = [x.shape[d], step]
      step *= n
      return indices(
        places.map((p) => Math.floor(p / by) % n),
        [places.length],
        x,
      )
    })
    .reverse()
}

/**
 * Finds the places of all elements that are not 0, in order, as one int32 tensor (N, rank). It reads x.
 *
 * @example
 * await (await tensor([[0, 7], [8, 0]]).argwhere()).toArray() // → [[0, 1], [1, 0]]
 */
export async function argwhere(x: Tensor): Promise<Tensor> {
  x = asTensor('argwhere', x)
  const places = await placesOf(x)
  const rows = places.flatMap((p) => {
    let left = p
    const row = new Array<number>(x.rank)
    for (let d = x.rank - 1; d >= 0; d--) {
      row[d] = left % x.shape[d]
      left = Math.floor(left / x.shape[d])
    }
    return row
  })
  return indices(rows, [places.length, x.rank], x)
}

/**
 * Takes the elements where the mask (bool) is true, in order, as one dim (N); x and the mask broadcast. It reads the mask;
 * gradients flow back to x.
 *
 * @throws DTypeError for a mask that is not bool, ShapeError if the shapes do not broadcast.
 * @example
 * const x = tensor([3, -1, 2])
 * await (await x.maskedSelect(x.gt(0))).toArray() // → [3, 2]
 */
export async function maskedSelect(x: Tensor, mask: Tensor | ArrayOperand): Promise<Tensor> {
  const op = 'masked_select'
  x = asTensor(op, x)
  const m = asTensor(op, mask, x, 'bool')
  if (m.dtype !== 'bool')
    throw new DTypeError(`${op}: the mask must be bool, not ${m.dtype}; convert it with .to('bool')`)
  const shape = broadcastShapes(op, [x.shape, m.shape])
  const places = await placesOf(m.expand(shape))
  return indexSelect(x.expand(shape).reshape([-1]), 0, indices(places, [places.length], x))
}

/** Options of `unique`. */
export interface UniqueOptions {
  /** Also give, for each element of x, where its value stands in the result: int32, in x's shape. Default: false. */
  returnInverse?: boolean
  /** Also give how often each value occurs: int32. Default: false. */
  returnCounts?: boolean
}

/** What `unique` finds. */
export interface Unique {
  /** The values in ascending order, each once; NaN last, each by itself. */
  readonly values: Tensor
  /** For each element of x where its value stands, where it was asked for. */
  readonly inverse: Tensor | null
  /** How often each value occurs, where it was asked for. */
  readonly counts: Tensor | null
}

/**
 * Finds the different values of x, in ascending order. It reads x.
 *
 * @example
 * const { values, counts } = await tensor([3, 1, 3]).unique({ returnCounts: true })
 * await values.toArray() // → [1, 3]
 * await counts?.toArray() // → [1, 2]
 */
export async function unique(x: Tensor, options: UniqueOptions = {}): Promise<Unique> {
  const { returnInverse = false, returnCounts = false } = expectOptions('unique', options, {
    returnInverse: 1,
    returnCounts: 1,
  })
  x = asTensor('unique', x)
  const all = await data(x)
  // NaN, which is not even itself, sorts behind everything.
  const order = Array.from(all.keys()).sort((i, j) => {
    const [a, b] = [all[i], all[j]]
    return a === b ? i - j : Number.isNaN(a) ? (Number.isNaN(b) ? i - j : 1) : Number.isNaN(b) ? -1 : a - b
  })
  const values: number[] = []
  const counts: number[] = []
  const inverse = new Int32Array(all.length)
  for (const i of order) {
    if (values.length === 0 || values[values.length - 1] !== all[i]) {
      values.push(all[i])
      counts.push(0)
    }
    counts[counts.length - 1]++
    inverse[i] = values.length - 1
  }
  const array = numbersOf(x.dtype, values.length)
  array.set(values)
  return {
    values: tensor(array, { device: x.backend, dtype: x.dtype }),
    inverse: returnInverse ? indices(inverse, x.shape, x) : null,
    counts: returnCounts ? indices(counts, [counts.length], x) : null,
  }
}

/** Options of `bincount`. */
export interface BincountOptions {
  /** What each element counts, in x's shape. Default: 1. */
  weights?: Tensor | null
  /** The result has at least so many bins. Default: 0. */
  minlength?: number
}

/**
 * Counts how often each whole number from 0 on occurs: x (N), int32, gives max(x) + 1 counts, int32, or sums of weights. It
 * reads x.
 *
 * @throws ValueError for negative numbers, DTypeError unless x is int32, ShapeError unless it has one dim.
 * @example
 * await (await tensor([1, 3, 1], { dtype: 'int32' }).bincount()).toArray() // → [0, 2, 0, 1]
 */
export async function bincount(x: Tensor, options: BincountOptions = {}): Promise<Tensor> {
  const { weights = null, minlength = 0 } = expectOptions('bincount', options, { weights: 1, minlength: 1 })
  x = asTensor('bincount', x)
  expectInt('bincount', 'what is counted', x.dtype)
  if (x.rank !== 1) throw new ShapeError(`bincount: takes one dim, got ${x.rank}`)
  if (!Number.isInteger(minlength) || minlength < 0)
    throw new ValueError(`bincount: minlength must be a whole number ≥ 0, got ${describe(minlength)}`)
  const list = await data(x)
  let size = minlength
  for (const v of list) size = Math.max(size, v + 1)
  const by = weights && (await data(asTensor('bincount', weights, x)))
  if (by && by.length !== list.length)
    throw new ShapeError(`bincount: got ${by.length} weights for ${list.length} elements`)
  const bins = by ? new Float64Array(size) : new Int32Array(size)
  for (const [i, v] of list.entries()) {
    if (v < 0) throw new ValueError(`bincount: counts whole numbers from 0 on, got ${v}`)
    bins[v] += by ? by[i] : 1
  }
  return tensor(by ? Float32Array.from(bins) : bins, { device: x.backend })
}

addMethods({ nonzero, argwhere, maskedSelect, unique, bincount })
