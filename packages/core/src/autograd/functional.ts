/** Derivatives of functions as tensors, and functions over the slices of a dim. */

import { describe, expectFunction, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { eye, zeros } from '../ops/create.ts'
import { select, stack } from '../ops/shape.ts'
import { alias, reshapeView } from '../primitives/views.ts'
import { wrapDim } from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import { expectTensor } from '../tensor/operands.ts'
import { refuseAsync } from '../tensor/scope.ts'
import { Tensor } from '../tensor/tensor.ts'
import { grad } from './backward.ts'
import { enableGrad } from './tape.ts'

/** A tensor, or several. */
type Several = Tensor | readonly Tensor[]

/** Something for each of several tensors, or for one alone. */
type ForEach<I extends Several, T> = I extends Tensor ? T : { -readonly [K in keyof I]: T }

/** What a function of these inputs is called with. */
type Arguments<I extends Several> = I extends readonly Tensor[] ? { [K in keyof I]: Tensor } : [Tensor]

/** Options of `jacobian` and `hessian`. */
export interface JacobianOptions {
  /** Lets the result be differentiated itself, with respect to the inputs that require a gradient; default false. */
  createGraph?: boolean
}

/** The tensors of an array, or one alone as an array. @throws ValueError for anything else. */
function listed(op: string, what: string, value: Several): readonly Tensor[] {
  if (value instanceof Tensor) return [value]
  if (!Array.isArray(value))
    throw new ValueError(`${op}: ${what} must be a tensor or an array of tensors, got ${describe(value)}`)
  for (const x of value) expectTensor(op, x)
  return value
}

/** Blocks by output and input, and whether the function gave one output alone. */
interface Blocks {
  readonly blocks: Tensor[][]
  readonly alone: boolean
}

function blocksOf(
  op: string,
  fn: (...inputs: Tensor[]) => Several,
  inputs: Several,
  { createGraph = false }: JacobianOptions,
): Blocks {
  const xs = listed(op, 'inputs', inputs).map((x) => {
    // Views of their own, so that an input that is given twice is two.
    if (createGraph && x.requiresGrad) return alias(x)
    const own = x.detach()
    own.requiresGrad = true
    return own
  })
  const result = fn(...xs)
  refuseAsync(op, result, 'it must be synchronous')
  const blocks = listed(op, 'the result', result).map((y) => {
    const rows: (Tensor | null)[][] = []
    const units = eye(y.numel, y.numel, { dtype: y.dtype, device: y.backend })
    for (let i = 0; i < y.numel && y.requiresGrad; i++) {
      const gradOutputs = [reshapeView(select(units, 0, i), y.shape)]
      rows.push(grad([y], xs, { gradOutputs, retainGraph: true, createGraph, allowUnused: true }))
    }
    return xs.map((x, k) => {
      const like = { dtype: x.dtype, device: x.backend }
      const parts = rows.map((row) => row[k] ?? zeros(x.shape, like))
      const shape = [...y.shape, ...x.shape]
      return parts.length > 0 ? reshapeView(stack(parts), shape) : zeros(shape, like)
    })
  })
  return { blocks, alone: result instanceof Tensor }
}

/**
 * All partial derivatives of a function, for each output and input a tensor (…output's shape, …input's shape), as
 * `torch.autograd.functional.jacobian` gives them: J[i…, j…] = ∂ output[i…] / ∂ input[j…]. One backward pass for each
 * element of the outputs; zeros where there is no dependence.
 *
 * @param fn from one tensor, or as many as `inputs` lists, to a tensor or an array of them; synchronous.
 * @param inputs a tensor, or an array of them, floating. Their `.grad` and graph are left alone.
 * @returns for one output and one input a tensor; for several inputs, or several outputs, an array; for both, an array for
 * each output.
 * @throws GradError if `fn` is asynchronous, ValueError for other inputs.
 * @example
 * const x = tensor([1, 2, 3])
 * await jacobian((x) => x.square(), x).toArray() // → [[2, 0, 0], [0, 4, 0], [0, 0, 6]]
 * const [da, db] = jacobian((a, b) => a.matmul(b), [randn([2, 3]), randn([3, 4])])
 * da.shape // → 2,4,2,3
 * db.shape // → 2,4,3,4
 */
export function jacobian<const I extends Several, O extends Several>(
  fn: (...inputs: Arguments<I>) => O,
  inputs: I,
  options: JacobianOptions = {},
): ForEach<O, ForEach<I, Tensor>> {
  expectFunction('jacobian', fn)
  expectOptions('jacobian', options, { createGraph: 1 })
  return enableGrad(() =>
    scope(() => {
      const { blocks, alone } = blocksOf(
        'jacobian',
        fn as unknown as (...xs: Tensor[]) => Several,
        inputs,
        options,
      )
      const rows = inputs instanceof Tensor ? blocks.map(([block]) => block) : blocks
      return (alone ? rows[0] : rows) as ForEach<O, ForEach<I, Tensor>>
    }),
  )
}

/**
 * All second derivatives of a function of one element, for each pair of inputs a tensor (…first's shape, …second's shape), as
 * `torch.autograd.functional.hessian` gives them: H[i…, j…] = ∂² fn / ∂ a[i…] ∂ b[j…]. One backward pass for each element of
 * the inputs.
 *
 * @param fn from one tensor, or as many as `inputs` lists, to a tensor of one element; synchronous.
 * @param inputs a tensor, or an array of them, floating. Their `.grad` and graph are left alone.
 * @returns for one input a tensor; for several an array of arrays.
 * @throws GradError if `fn` is asynchronous, ShapeError if it gives more than one element, ValueError for other inputs.
 * @example
 * await hessian((x) => x.pow(3).sum(), tensor([1, 2])).toArray() // → [[6, 0], [0, 12]]
 */
export function hessian<const I extends Several>(
  fn: (...inputs: Arguments<I>) => Tensor,
  inputs: I,
  options: JacobianOptions = {},
): ForEach<I, ForEach<I, Tensor>> {
  expectFunction('hessian', fn)
  expectOptions('hessian', options, { createGraph: 1 })
  const gradient = (...xs: Tensor[]): Tensor[] => {
    const y = (fn as (...xs: Tensor[]) => Tensor)(...xs)
    refuseAsync('hessian', y, 'it must be synchronous')
    expectTensor('hessian', y)
    if (y.numel !== 1)
      throw new ShapeError(
        `hessian: the function must give one element, got ${show(y.shape)}; reduce it (sum, mean)`,
      )
    const found = y.requiresGrad
      ? grad([y], xs, { createGraph: true, allowUnused: true, gradOutputs: [null] })
      : []
    return xs.map((x, i) => found[i] ?? zeros(x.shape, { dtype: x.dtype, device: x.backend }))
  }
  return enableGrad(() =>
    scope(() => {
      const { blocks } = blocksOf('hessian', gradient, inputs, options)
      return (inputs instanceof Tensor ? blocks[0][0] : blocks) as ForEach<I, ForEach<I, Tensor>>
    }),
  )
}

/** Options of `vmap`. */
export interface VmapOptions {
  /**
   * The dim of each argument over which the function runs, or null for one that it gets whole, such as what is no tensor; a
   * number alone stands for all. Default 0.
   */
  inDims?: number | readonly (number | null)[]
  /** Where the results' new dim goes, one for each result or for all. Default 0. */
  outDims?: number | readonly number[]
}

/**
 * A function of batches made of one of single examples: it runs `fn` on each slice along a dim and stacks what comes out
 * (`torch.vmap`). **It runs `fn` once for each slice**, one after the other: right for whatever `fn` does, gradients and
 * random draws (others for each slice) included, but as slow as a loop. Operators of this library broadcast over leading
 * dims by themselves, which is faster where it is possible.
 *
 * @param fn from the arguments, each without its dim, to a tensor or an array of tensors; synchronous.
 * @returns a function of the batches.
 * @throws ShapeError for dims that there are not or that differ in size, ValueError for no slices at all and for arguments that
 * are no tensors, GradError if `fn` is asynchronous.
 * @example
 * const dots = vmap((a: Tensor, b: Tensor) => a.mul(b).sum())
 * await dots(tensor([[1, 2], [3, 4]]), tensor([[1, 0], [0, 1]])).toArray() // → [1, 4]
 * // Gradients of each example:
 * const w = tensor([1, 2], { requiresGrad: true })
 * const each = vmap((x: Tensor) => grad(w.mul(x).sum().square(), [w])[0] as Tensor)
 * await each(tensor([[1, 0], [0, 1]])).toArray() // → [[2, 0], [0, 4]]
 */
export function vmap<A extends readonly unknown[], O extends Several>(
  fn: (...args: A) => O,
  options: VmapOptions = {},
): (...args: A) => O {
  const op = 'vmap'
  expectFunction(op, fn)
  const { inDims = 0, outDims = 0 } = expectOptions(op, options, { inDims: 1, outDims: 1 })
  return (...args) =>
    scope(() => {
      const dims = typeof inDims === 'number' ? args.map(() => inDims) : inDims
      if (dims.length !== args.length)
        throw new ValueError(`${op}: inDims has ${dims.length} entries for ${args.length} arguments`)
      const sizes: number[] = []
      const places = args.map((x, i) => {
        const dim = dims[i]
        if (dim === null) return null
        if (!(x instanceof Tensor))
          throw new ValueError(
            `${op}: argument ${i} must be a tensor, got ${describe(x)}; give it null in inDims`,
          )
        const place = wrapDim(op, dim, x.rank)
        sizes.push(x.shape[place])
        return place
      })
      const [size] = sizes
      if (!size)
        throw new ValueError(
          `${op}: ${sizes.length > 0 ? 'there is not one slice' : 'all of inDims are null, so there are no slices'}`,
        )
      if (sizes.some((n) => n !== size))
        throw new ShapeError(`${op}: arguments must have equally many slices, got ${sizes.join(', ')}`)
      let alone = true
      const results = Array.from({ length: size }, (_, n) => {
        const slices = args.map((x, i) => (places[i] === null ? x : select(x as Tensor, places[i], n)))
        const result = scope(() => fn(...(slices as unknown as A)))
        refuseAsync(op, result, 'it must be synchronous')
        alone = result instanceof Tensor
        return listed(op, 'the result', result)
      })
      const out = results[0].map((y, k) => {
        const dim = typeof outDims === 'number' ? outDims : outDims[k]
        return stack(
          results.map((all) => all[k]),
          wrapDim(op, dim, y.rank + 1),
        )
      })
      return (alone ? out[0] : out) as unknown as O
    })
}
