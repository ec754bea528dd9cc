/**
 * What follows a matrix product in the same pass: an elementwise program whose input 0 is the product, applied to
 * each block of rows of a panel (at most 96 × 16) as soon as its sums are complete. They were stored to output 0 and
 * are read back from the first-level cache, one load and store more per vector: the registers of a tile are all taken.
 */

import { type Typed, type TypedProgram, typedPostOrder } from '@tilegrad/core'
import { costOf, lowerNodes, type Values } from '../../lowering/expressions.ts'
import { hoistConstants } from '../../lowering/math.ts'
import { type Func, i32, type ModuleBuilder, type V128, v128 } from '../../wasm/index.ts'
import { type Access, load } from '../elementwise/access.ts'
import { moreParams, reader } from './tiles.ts'

const words = ['i32', 'i32', 'i32', 'i32', 'i32'] as const
/** Parameter block, first row, first column, numbers of rows and columns. */
export type EpilogueFunc = Func<typeof words, null>

/**
 * Adds the function for a program of float32 inputs and outputs. `access`: how each input but the first moves along a
 * row. Parameters, from `moreParams` on: addresses of the outputs but the first; address and bytes from row to row of
 * each input but the first; the program's params.
 */
export function epilogueFunc(
  m: ModuleBuilder,
  program: TypedProgram,
  access: readonly Access[],
): EpilogueFunc {
  const order = typedPostOrder(program.exprs)
  const varying = new Set<Typed>()
  for (const t of order) if (t.kind === 'input' || t.args.some((arg) => varying.has(arg))) varying.add(t)
  const once = order.filter((t) => !varying.has(t))
  const each = order.filter((t) => varying.has(t))
  const leaves = each.filter((t) => t.kind === 'input')
  const cost = each.reduce((sum, t) => sum + costOf(t), 0)
  // Two vectors at a time, which V8 pairs, as in elementwise/code.ts.
  const pairs = each.every((t) => costOf(t) < 50)
  const powers = new Map()
  return m.func(words, (f, params, row, column, rows, columns) => {
    const word = (n: number): ReturnType<typeof i32.load> => i32.load(params, 4 * n)
    const k = hoistConstants(f, (trial, constants, x) => {
      lowerNodes(trial, constants, order, new Map(), () => x, powers)
    })
    const named = reader(params)
    const extras = moreParams + program.exprs.length - 1
    const uniform: Values = new Map()
    const param = (slot: number): V128 => v128.load32Splat(params, 4 * (extras + 2 * access.length + slot))
    lowerNodes(f, k, once, uniform, (t) => param(t.kind === 'param' ? t.slot : 0), powers)
    const outRow = f.let(named('outRow'))
    const here = f.let(row.mul(outRow).add(column.shl(2)))
    const outputs = program.exprs.map((_, o) =>
      f.let((o === 0 ? named('out') : word(moreParams + o - 1)).add(here)),
    )
    const steps = access.map((_, n) => f.let(word(extras + 2 * n + 1)))
    const inputs = access.map((how, n) => {
      const first = word(extras + 2 * n).add(row.mul(steps[n]))
      return f.let(how === 'unit' ? first.add(column.shl(2)) : first)
    })
    f.for(0, rows, 1, () => {
      f.strips(0, columns, pairs && cost <= 160 ? [8, 4, 1] : [4, 1], (j, width) => {
        const ahead = f.let(j.shl(2))
        const count = width === 1 ? 1 : 4
        // Everything is read before anything is written: the product lies in output 0.
        const vectors = Array.from({ length: Math.ceil(width / 4) }, (_, v): Values => {
          const values: Values = new Map(uniform)
          for (const t of leaves) {
            const how = t.index === 0 ? 'unit' : access[t.index - 1]
            const from = t.index === 0 ? outputs[0] : inputs[t.index - 1]
            const ptr = how === 'unit' ? f.let(from.add(ahead)) : from
            values.set(t, f.let(load(f, { dtype: 'float32', access: how, stride: 4 }, ptr, count, 4 * v)))
          }
          return values
        })
        for (const values of vectors) lowerNodes(f, k, each, values, () => param(0), powers)
        program.exprs.forEach((t, o) => {
          // The product itself is there already.
          if (o === 0 && t.kind === 'input' && t.index === 0) return
          const to = f.let(outputs[o].add(ahead))
          vectors.forEach((values, v) => {
            if (width === 1) f.storeLane(32, to, values.get(t) as V128, 0)
            else f.store(to, values.get(t) as V128, 16 * v)
          })
        })
      })
      for (const p of outputs) p.set(p.add(outRow))
      inputs.forEach((p, n) => {
        p.set(p.add(steps[n]))
      })
    })
  })
}
