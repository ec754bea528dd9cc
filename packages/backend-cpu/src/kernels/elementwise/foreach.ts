/**
 * One expression over many groups of tensors as one launch: an optimiser's step. The work of all calls lies end to end
 * on one line of elements, which threads share as if it were one tensor. A table in memory says where each call begins;
 * from there on the code is that of `elementwise` for contiguous operands, with one parameter block per call.
 *
 * Measured, AdamW, 2 threads, Node 24, µs per step with a launch each and with one for all: 27 tensors of 64 elements 78
 * and 27; 300 of 64: 725 and 273, almost all of it JavaScript; 300 of 4096: 4256 and 981. One tensor alone is left to
 * `elementwise`.
 *
 * Reference: `applyProgramIntoEach` with a launch per call, core's primitives/foreach.ts. Test: foreach.test.ts.
 */

import {
  type ElementwiseAttrs,
  type KernelOf,
  layout,
  type TypedProgram,
  typedPostOrder,
  type View,
} from '@tilegrad/core'
import type { Engine } from '../../engine.ts'
import { costOf, isLowerable } from '../../lowering/expressions.ts'
import type { Kernel } from '../../machine/pool.ts'
import { type Func, i32, ModuleBuilder } from '../../wasm/index.ts'
import type { Access } from './access.ts'
import { buildElementwise } from './code.ts'

/** What is known of an expression. */
interface Plan {
  readonly takes: boolean
  /** Elements per chunk. */
  readonly grain: number
  /** Words of a call's entry in the table: its first element on the line, its size, its parameter block. */
  readonly words: number
  /** The compiled kernels, by the inputs that are one element for all, which are bits of the key. */
  readonly kernels: Map<number, Kernel>
}

/** Every call starts at a multiple of so many elements, so that chunks end between cache lines. */
const alignment = 16
const aligned = (n: number): number => alignment * Math.ceil(n / alignment)

export const foreach = (engine: Engine): KernelOf<ElementwiseAttrs> => {
  const { memory } = engine
  const plans: (Plan | undefined)[] = []
  let table = 0
  let capacity = 0

  const planOf = (expression: TypedProgram): Plan => {
    let plan = plans[expression.id]
    if (plan === undefined) {
      plan = makePlan(expression)
      plans[expression.id] = plan
    }
    return plan
  }

  const reserve = (words: number): void => {
    if (words <= capacity) return
    if (table !== 0) memory.free(table)
    // There is none if the next line throws.
    capacity = 0
    table = 0
    table = memory.alloc(8 * words)
    capacity = 2 * words
  }

  /** Runs the calls in `which`, whose inputs are one element for all where the bit of `mask` is set. */
  const launch = (
    plan: Plan,
    expression: TypedProgram,
    which: readonly number[],
    mask: number,
    outputs: readonly View[],
    inputs: readonly View[],
    numbers: readonly number[],
  ): void => {
    let kernel = plan.kernels.get(mask)
    if (kernel === undefined) {
      kernel = compile(engine, expression, plan, mask)
      plan.kernels.set(mask, kernel)
    }
    reserve(plan.words * which.length)
    const { i32, f32 } = memory
    const [outs, ins, slots] = [expression.exprs.length, expression.inputs.length, expression.params]
    let at = table >>> 2
    let first = 0
    for (const c of which) {
      const size = layout.numel((outputs[c * outs] as View).shape)
      i32[at++] = first
      i32[at++] = size
      for (let o = 0; o < outs; o++) i32[at++] = engine.address(outputs[c * outs + o] as View)
      for (let n = 0; n < ins; n++) i32[at++] = engine.address(inputs[c * ins + n] as View)
      const from = c * expression.numbers
      for (let s = 0; s < slots.length; s++)
        f32[at++] = numbers[from + (slots[s] as TypedProgram['params'][number]).source] as number
      first += aligned(size)
    }
    engine.run(kernel, first, plan.grain, [table, which.length])
  }

  return {
    dtypes: [['float32']],
    supports(views, { kernel }) {
      if (!planOf(kernel).takes) return false
      const { shape } = views[0] as View
      for (let i = 0; i < views.length; i++) {
        const v = views[i] as View
        if (layout.sameShape(v.shape, shape) && layout.isContiguous(v)) continue
        if (i < kernel.exprs.length || layout.numel(v.shape) !== 1) return false
      }
      return true
    },
    run(outputs, inputs, { kernel: expression }, numbers) {
      const plan = planOf(expression)
      const [outs, ins] = [expression.exprs.length, expression.inputs.length]
      const byMask = new Map<number, number[]>()
      const singles: number[] = []
      for (let c = 0; c * outs < outputs.length; c++) {
        const { shape } = outputs[c * outs] as View
        const size = layout.numel(shape)
        if (size === 0) continue
        if (size === 1) {
          singles.push(c)
          continue
        }
        let mask = 0
        for (let n = 0; n < ins; n++)
          if (layout.numel((inputs[c * ins + n] as View).shape) === 1) mask += 2 ** n
        const list = byMask.get(mask)
        if (list) list.push(c)
        else byMask.set(mask, [c])
      }
      // A call on one element goes with any others.
      if (singles.length > 0) {
        const [first] = byMask.values()
        if (first) first.push(...singles)
        else byMask.set(0, singles)
      }
      for (const [mask, which] of byMask) launch(plan, expression, which, mask, outputs, inputs, numbers)
    },
  }
}

function makePlan(expression: TypedProgram): Plan {
  const order = typedPostOrder(expression.exprs)
  const operands = expression.inputs.length + expression.exprs.length
  const cost = order.reduce((sum, t) => sum + costOf(t), 2 * operands)
  return {
    // Powers have code of their own for some exponents, which would have to be those of all calls.
    takes:
      isLowerable(order) &&
      order.every((t) => t.kind !== 'coord' && !(t.kind === 'binary' && t.op === 'pow')) &&
      expression.params.every((p) => p.dtype === 'float32'),
    // About 10 µs of work, as in elementwise.ts.
    grain: Math.min(32768, Math.max(1024, alignment * Math.ceil(8192 / cost))),
    words: 2 + operands + expression.params.length,
    kernels: new Map(),
  }
}

function compile(engine: Engine, expression: TypedProgram, plan: Plan, mask: number): Kernel {
  const access = [
    ...expression.exprs.map((): Access => 'unit'),
    ...expression.inputs.map((_, n): Access => (Math.floor(mask / 2 ** n) % 2 === 1 ? 'zero' : 'unit')),
  ]
  const m = new ModuleBuilder(engine.features)
  const body = buildElementwise(m, expression, { outer: 0, access, tiled: false, powers: new Map() })
  buildEach(m, body, 4 * plan.words)
  return { ...engine.pool.compile(m.build(), 'each'), name: `foreach ${expression.name} ${mask}` }
}

/** Adds the kernel over elements [start, end) of the line; `body` is run on the part of each call that lies in there. */
function buildEach(m: ModuleBuilder, body: Func, bytes: number): void {
  m.kernel('each', (f, start, end, params, thread) => {
    const table = f.let(i32.load(params, 0))
    // The last call that begins at `start` or before.
    const low = f.local.i32(0)
    const high = f.local.i32(i32.load(params, 4))
    const past = f.let(table.add(high.mul(bytes)))
    f.while(low.add(1).ltS(high), () => {
      const middle = f.let(low.add(high).shrU(1))
      f.if(
        i32.load(table.add(middle.mul(bytes))).leS(start),
        () => low.set(middle),
        () => high.set(middle),
      )
    })
    const at = f.local.i32(table.add(low.mul(bytes)))
    f.while(at.ltU(past), (exit) => {
      const first = f.let(i32.load(at))
      exit.brIf(first.geS(end))
      const size = f.let(i32.load(at, 4))
      const from = f.let(start.sub(first))
      const to = f.let(end.sub(first))
      from.set(i32.select(from.ltS(0), 0, from))
      to.set(i32.select(to.ltS(size), to, size))
      f.if(from.ltS(to), () =>
        f.call(body as Func<readonly ['i32', 'i32', 'i32', 'i32'], null>, from, to, at.add(8), thread),
      )
      at.set(at.add(bytes))
    })
  })
}
