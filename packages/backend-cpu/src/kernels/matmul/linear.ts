/**
 * x · Wᵀ followed by an elementwise program: bias, activation, residual, in the pass that computes the product.
 *
 *   product[…, n] = Σₖ x[…, k] · weight[n, k],  outputs = epilogue(product, ...extras)
 *
 * Inputs: x (…, K), weight (N, K), extras that broadcast to the outputs (…, N), each a matrix of rows that lie at one
 * distance, contiguous or repeated along N. Tiles apply the program to what is still in the first-level cache
 * (`matmul/epilogue.ts`). Few rows or columns, which other kernels than tiles compute, are small: there it is a
 * second pass.
 *
 * LADDER.md beside this file compares this with a product and then an elementwise kernel. Today, 4096 × 384 × 1536 and a
 * residual on 2 threads: 27.6 ms instead of 28.0 on Node 24, 54.7 instead of 58.6 on Node 20. Two outputs lose by it as yet.
 *
 * Reference: `linear` in core's ops/linear.ts. Test: linear.test.ts.
 */

import {
  type KernelOf,
  type LinearAttrs,
  type Primitives,
  type TypedProgram,
  typedPostOrder,
  type View,
} from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import { wordOf } from '../../element.ts'
import type { Engine } from '../../engine.ts'
import { isLowerable } from '../../lowering/expressions.ts'
import type { Access } from '../elementwise/access.ts'
import { epilogueFunc } from './epilogue.ts'
import { matmulInto } from './matmul.ts'
import { packed } from './packed-start.ts'

export const linear = (
  engine: Engine,
  { matmul, elementwise }: Pick<Primitives, 'matmul' | 'elementwise'>,
): KernelOf<LinearAttrs> => ({
  supports(inputs, attrs) {
    const { exprs } = attrs.epilogue
    const [x, weight, ...extras] = inputs
    // A plain product has kernels of its own.
    if (weight.dtype === 'float32' && exprs.length === 1 && exprs[0].kind === 'input') return false
    if (inputs.some((v) => v.dtype !== 'float32')) return packed.takes(engine.features, inputs, attrs)
    const shape = [...x.shape.slice(0, -1), weight.shape[0]]
    return (
      x.shape.length > 0 &&
      weight.shape.length === 2 &&
      fits(attrs.epilogue) &&
      extras.every((v) => rowsOf(v, shape) !== undefined)
    )
  },
  run(outputs, inputs, attrs, numbers): void {
    const [x, weight, ...extras] = inputs
    const { epilogue } = attrs
    if (weight.dtype !== 'float32') return packed.run(engine, elementwise, outputs, inputs, attrs, numbers)
    const { shape } = outputs[0]
    const [out, a] = shape.length === 1 ? [matrix(outputs[0]), matrix(x)] : [outputs[0], x]
    const batch = a.shape.slice(0, -2)
    const b = viewOf(
      weight,
      [...batch, weight.shape[1], weight.shape[0]],
      [...batch.map(() => 0), weight.strides[1], weight.strides[0]],
    )
    const rows = extras.map((v) => rowsOf(v, shape) as Rows)
    const access = rows.map((r) => r.access)
    const done = matmulInto(engine, out, a, b, {
      key: `:${epilogue.name} ${epilogue.id} ${access}`,
      build: (m) => ({ epilogue: epilogueFunc(m, epilogue, access) }),
      write({ i32 }, word) {
        let at = word
        for (const o of outputs.slice(1)) i32[at++] = engine.address(o)
        extras.forEach((v, n) => {
          i32[at++] = engine.address(v)
          i32[at++] = 4 * rows[n].stride
        })
        for (const { source, dtype } of epilogue.params) i32[at++] = wordOf(dtype, numbers[source])
      },
    })
    if (done) return
    matmul.run([out], [a, b], {}, [])
    elementwise.run(outputs, [outputs[0], ...extras], { kernel: epilogue }, numbers)
  },
})

/** A vector as a matrix of one row. */
const matrix = (v: View): View => viewOf(v, [1, v.shape[0]], [v.shape[0], v.strides[0]])

/** Whether a program of float32 can be lowered where neither an index nor coordinates are known. */
function fits({ exprs }: TypedProgram): boolean {
  const order = typedPostOrder(exprs)
  return (
    isLowerable(order) &&
    order.every((t) => t.kind !== 'index' && t.kind !== 'coord') &&
    exprs.every((t) => t.dtype === 'float32')
  )
}

interface Rows {
  readonly access: Access
  /** Elements from row to row. */
  readonly stride: number
}

/**
 * An operand that broadcasts to `shape`, as a matrix of the last dim by all others; undefined if it is none. Every call
 * asks it twice for each extra: the strides that `collapse` would need are not made.
 */
function rowsOf(v: View, shape: readonly number[]): Rows | undefined {
  const missing = shape.length - v.shape.length
  if (missing < 0) return undefined
  const stride = (d: number): number =>
    d < missing || v.shape[d - missing] === 1 ? 0 : v.strides[d - missing]
  const last = shape.length - 1
  if (stride(last) !== 0 && stride(last) !== 1) return undefined
  let [rows, step] = [1, 0]
  for (let d = last - 1; d >= 0; d--) {
    if (shape[d] === 1) continue
    if (rows === 1) step = stride(d)
    else if (stride(d) !== step * rows) return undefined
    rows *= shape[d]
  }
  return { access: stride(last) === 1 ? 'unit' : 'zero', stride: step }
}
