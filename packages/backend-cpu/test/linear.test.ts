/**
 * The fused linear layer against the engine's own product followed by its own elementwise kernel (which have tests
 * against the reference): the same bits, since both sum in the same order and round after every operation alike.
 */

import {
  expr as e,
  layout,
  type Program,
  program,
  specialize,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { takes } from '@tilegrad/core/kernel'
import { expect, test } from 'vitest'
import { mismatch } from '../../../test/kernels/operand.ts'
import { random } from '../../../test/kernels/random.ts'
import { linear } from '../src/kernels/matmul/linear.ts'
import { kernelTable } from '../src/kernels/table.ts'
import { engines as made, makeBackend } from './support/engine.ts'
import { get, output, put, release } from './support/memory.ts'

const engines = [
  ...made,
  { name: 'revectorized', engine: (await makeBackend({ level: 'revectorized', threads: 2 })).engine },
]

const gelu = (x: e.Expr): e.Expr => e.mul(e.mul(x, 0.5), e.add(1, e.erf(e.mul(x, Math.SQRT1_2))))
const programs: Readonly<Record<string, Program>> = {
  bias: program('bias', 2, ([y, b]) => e.add(y, b)),
  'before and after gelu': program('geluBoth', 2, ([y, b]) => [e.add(y, b), gelu(e.add(y, b))]),
  residual: program('residual', 3, ([y, b, r], [s]) => e.add(r, e.mul(e.add(y, b), s)), 1),
  'the product and gelu of it': program('geluToo', 1, ([y]) => [y, gelu(y)]),
  relu: program('relu', 1, ([y]) => e.max(y, 0)),
}

type Storage = ReturnType<typeof storage>
function storage(rnd: () => number, shape: readonly number[], strides = layout.contiguousStrides(shape)) {
  const size = shape.reduce((n, s, d) => n + (s - 1) * strides[d], 1)
  const data = Float32Array.from({ length: Math.max(0, size) + 3 }, () => 2 * rnd() - 1)
  return { layout: { shape, strides, offset: 3 }, dtype: 'float32', data } as const
}

function check(name: string, x: Storage, w: Storage, extras: readonly Storage[], fused: boolean): void {
  const p = programs[name]
  const params = p.params > 0 ? [0.75] : []
  const epilogue = specialize(p, ['float32', ...extras.map(() => 'float32' as const)], params)
  const shape = [...x.layout.shape.slice(0, -1), w.layout.shape[0]]
  const first = new Map<string, TypedArray[]>()
  for (const { name: engineName, engine } of engines) {
    const context = `${engineName}, ${name}: ${x.layout.shape} · ${w.layout.shape}`
    const table = kernelTable(engine)
    const ins = [x, w, ...extras].map((t) => put(engine, t))
    const outs = epilogue.exprs.map(() => output(engine, shape, 'float32'))
    const wants = epilogue.exprs.map(() => output(engine, shape, 'float32'))
    const product = output(engine, shape, 'float32')
    const batch = shape.slice(0, -2)
    const turned = {
      ...ins[1],
      shape: [...batch, w.layout.shape[1], w.layout.shape[0]],
      strides: [...batch.map(() => 0), w.layout.strides[1], w.layout.strides[0]],
    }
    // Of a vector x: a matrix of one row.
    const matrix = (v: View): View =>
      v.shape.length > 1 ? v : { ...v, shape: [1, v.shape[0]], strides: [0, v.strides[0]] }
    table.matmul.run([matrix(product)], [matrix(ins[0]), turned], {}, [])
    table.elementwise.run(wants, [product, ...ins.slice(2)], { kernel: epilogue }, params)
    const matmul = fused ? { run: () => expect.fail(`${context}: took two passes`) } : table.matmul
    const kernel = linear(engine, { matmul, elementwise: table.elementwise })
    expect(takes(kernel, ins, { epilogue }), context).toBe(true)
    kernel.run(outs, ins, { epilogue }, params)
    const got = outs.map((o) => get(engine, o))
    got.forEach((values, i) => {
      expect(mismatch(values, get(engine, wants[i]), 0, 0), `${context}, output ${i}`).toBeNull()
      const same = first.get(engine.features.level)?.[i] ?? values
      expect(mismatch(values, same, 0, 0), `${context}, bits of output ${i}`).toBeNull()
    })
    first.set(engine.features.level, got)
    release(engine, [...ins, ...outs, ...wants, product])
  }
}

const sizes: readonly (readonly [m: number, k: number, n: number])[] = [
  [64, 32, 48],
  [97, 300, 65],
  [50, 513, 130],
  [193, 1100, 19],
  [40, 1, 35],
]
for (const name of Object.keys(programs)) {
  test.each(sizes)(`${name}, %i × %i × %i, in one pass`, (m, k, n) => {
    const rnd = random(m + n)
    const extras = [storage(rnd, [n]), storage(rnd, [m, n], [n + 3, 1])]
    const [x, w] = [storage(rnd, [m, k]), storage(rnd, [n, k])]
    check(name, x, w, extras.slice(0, programs[name].inputs - 1), true)
  })
}

test('batches of rows, operands stored the other way round, extras that repeat', () => {
  const rnd = random(1)
  const [x, w] = [storage(rnd, [3, 20, 37]), storage(rnd, [41, 37], [1, 41])]
  check('residual', x, w, [storage(rnd, [41]), storage(rnd, [3, 20, 41])], true)
  check('residual', x, w, [storage(rnd, [1]), storage(rnd, [3, 20, 1])], true)
  check('residual', storage(rnd, [60, 37], [1, 60]), w, [storage(rnd, [60, 1]), storage(rnd, [])], true)
})

test('few rows, few columns, one row without a batch, nothing', () => {
  const rnd = random(2)
  const w = storage(rnd, [41, 30])
  check('bias', storage(rnd, [2, 30]), w, [storage(rnd, [41])], false)
  check('before and after gelu', storage(rnd, [30]), w, [storage(rnd, [41])], false)
  check('bias', storage(rnd, [90, 30]), storage(rnd, [3, 30]), [storage(rnd, [3])], false)
  check('bias', storage(rnd, [0, 30]), w, [storage(rnd, [41])], false)
})

test('NaN and infinity stay in their row and column', () => {
  const rnd = random(3)
  const [x, w] = [storage(rnd, [40, 20]), storage(rnd, [36, 20])]
  x.data[3 + 20 * 2] = Number.NaN
  x.data[3 + 20 * 5] = Infinity
  check('before and after gelu', x, w, [storage(rnd, [36])], true)
})

test('declines other dtypes, programs that count, and layouts without rows', () => {
  const { engine } = engines[0]
  const kernel = linear(engine, kernelTable(engine))
  const rnd = random(4)
  const views = [storage(rnd, [40, 20]), storage(rnd, [36, 20]), storage(rnd, [36])].map((t) =>
    put(engine, t),
  )
  const of = (p: Program) => ({ epilogue: specialize(p, ['float32', 'float32'], []), params: [] })
  expect(takes(kernel, views, of(programs.bias))).toBe(true)
  const [x, w, b] = views
  expect(takes(kernel, [x, w, { ...b, dtype: 'int32' }], of(programs.bias))).toBe(false)
  expect(takes(kernel, [{ ...x, dtype: 'float64' }, w, b], of(programs.bias))).toBe(false)
  expect(takes(kernel, [x, w, { ...b, strides: [2] }], of(programs.bias))).toBe(false)
  expect(takes(kernel, views, of(program('less', 2, ([y, c]) => e.lt(y, c))))).toBe(false)
  expect(takes(kernel, views, of(program('count', 2, ([y]) => e.add(y, e.index))))).toBe(false)
  release(engine, views)
})
