/**
 * Elementwise kernels against the reference backend: every operator on every dtype, random programs, layouts.
 *
 * Tolerances. Arithmetic, rounding, comparisons, bits and conversions are exact: one float32 operation rounds once,
 * and so does the reference, which computes in float64 and rounds when it stores. Transcendental functions: the bounds
 * that math.test.ts holds, plus half a unit for the reference's own rounding.
 */

import type { Binary, Unary } from '@tilegrad/core'
import {
  type DType,
  DTypeError,
  expr as e,
  type Layout,
  layout,
  type Program,
  program,
  reference,
  specialize,
  type Typed,
  type TypedProgram,
  typedPostOrder,
} from '@tilegrad/core'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { integer, pick, random, randomLayout } from '../../../test/kernels/random.ts'
import { type CpuBackend, type CpuOptions, createCpuBackend } from '../src/index.ts'
import {
  dense,
  differ,
  type Operand,
  operand,
  randomInput,
  randomOutput,
  randomShape,
  runOn,
} from './elementwise-rig.ts'

const backends: CpuBackend[] = []
const make = async (options: CpuOptions): Promise<CpuBackend> => {
  const backend = createCpuBackend({ maxBytes: 2 ** 29, ...options })
  backends.push(backend)
  await backend.ready()
  return backend
}
let cpu: CpuBackend
let simd: CpuBackend
/** Pairs vectors where V8 does; elsewhere it is like `cpu`. */
let paired: CpuBackend
beforeAll(async () => {
  cpu = await make({ threads: 2 })
  simd = await make({ threads: 1, level: 'simd' })
  paired = await make({ threads: 1, level: 'revectorized' })
})
afterAll(() => Promise.all(backends.map((b) => b.close())))

const dtypes = ['float32', 'int32', 'bool'] as const

const unaries: Record<Unary, number> = {
  neg: 0,
  abs: 0,
  sign: 0,
  floor: 0,
  ceil: 0,
  round: 0,
  sqrt: 0,
  isnan: 0,
  not: 0,
  exp: 2,
  log: 2,
  log1p: 2,
  expm1: 2.5,
  sin: 2.5,
  cos: 2.5,
  tanh: 6.5,
  sigmoid: 3,
  erf: 8,
}
const binaries: Record<Binary, number> = {
  add: 0,
  sub: 0,
  mul: 0,
  div: 0,
  max: 0,
  min: 0,
  pow: 1.5,
  lt: 0,
  le: 0,
  gt: 0,
  ge: 0,
  eq: 0,
  ne: 0,
  and: 0,
  or: 0,
  xor: 0,
  shl: 0,
  shr: 0,
}

/** All instruction sets against the reference, on one layout. */
function check(
  kernel: TypedProgram,
  outputs: readonly Operand[],
  inputs: readonly Operand[],
  ulp = 0,
  params: readonly number[] = [],
): void {
  const want = runOn(reference, kernel, outputs, inputs, params)
  for (const backend of [cpu, simd, paired]) {
    const got = runOn(backend, kernel, outputs, inputs, params)
    got.forEach((data, i) => {
      const where = `${kernel.name} ${backend.level}, output ${i}, inputs ${JSON.stringify(inputs.map((o) => o.layout))}, outputs ${JSON.stringify(outputs.map((o) => o.layout))}`
      expect(differ(data, want[i] as typeof data, ulp), where).toBeNull()
    })
  }
}

const isExactInt = (op: string, dtype: DType): boolean => op === 'pow' && dtype !== 'float32'

describe('every operator', () => {
  const n = 531
  let rnd = random(1)
  // A test's numbers are the same whichever ran before it.
  beforeEach(() => {
    rnd = random(1)
  })
  const out = (dtype: DType): Operand => operand(rnd, dense([n]), dtype)

  for (const [op, ulp] of Object.entries(unaries) as [Unary, number][]) {
    it.each(dtypes)(`${op} of %s`, (dtype) => {
      const kernel = specialize(
        program(op, 1, ([x]) => e.unary(op, x as e.Expr)),
        [dtype],
        [],
      )
      const x = operand(rnd, dense([n]), dtype)
      check(kernel, [out((kernel.exprs[0] as Typed).dtype)], [x], ulp)
    })
  }

  for (const [op, ulp] of Object.entries(binaries) as [Binary, number][]) {
    for (const a of dtypes) {
      it.each(dtypes)(`${op} of ${a} and %s`, (b) => {
        const p = program(op, 2, ([x, y]) => e.binary(op, x as e.Expr, y as e.Expr))
        const bits = op === 'and' || op === 'or' || op === 'xor'
        if (bits && (a === 'float32' || b === 'float32')) {
          expect(() => specialize(p, [a, b], [])).toThrow('bool or int32')
          return
        }
        const kernel = specialize(p, [a, b], [])
        const { dtype } = kernel.exprs[0] as Typed
        // Every pair of awkward values comes up: 531 of them, and the second operand walks at another pace.
        check(
          kernel,
          [out(dtype)],
          [operand(rnd, dense([n]), a), operand(rnd, dense([n]), b)],
          isExactInt(op, dtype) ? 0 : ulp,
        )
      })
    }
  }

  it.each(dtypes)('select of %s', (dtype) => {
    const kernel = specialize(
      program('where', 3, ([c, a, b]) => e.select(c as e.Expr, a as e.Expr, b as e.Expr)),
      ['bool', dtype, dtype],
      [],
    )
    check(
      kernel,
      [out(dtype)],
      [operand(rnd, dense([n]), 'bool'), operand(rnd, dense([n]), dtype), operand(rnd, dense([n]), dtype)],
    )
  })

  for (const from of dtypes) {
    it.each(dtypes)(`cast of ${from} to %s`, (to) => {
      const kernel = specialize(
        program('cast', 1, ([x]) => e.cast(to, x as e.Expr)),
        [from],
        [],
      )
      check(kernel, [out(to)], [operand(rnd, dense([n]), from)])
    })
  }

  it('index and coordinates', () => {
    const count = program('count', 0, () => [e.index, e.coord(-1), e.coord(-2), e.coord(-3), e.coord(-7)])
    const kernel = specialize(count, [], [])
    for (const shape of [[], [1], [37], [3, 5], [4, 1, 19], [2, 3, 4, 5], [1, 1]]) {
      check(
        kernel,
        kernel.exprs.map(() => operand(rnd, dense(shape), 'int32')),
        [],
      )
      check(
        kernel,
        kernel.exprs.map(() => randomOutput(rnd, shape, 'int32')),
        [],
      )
    }
  })

  it('params of every dtype, converted as the reference does', () => {
    const of = (whole: boolean): Program =>
      program(
        'params',
        3,
        ([x, i, b], [u]) => [
          e.mul(x as e.Expr, u as e.Expr),
          e.add(e.cast('float32', i as e.Expr), u as e.Expr),
          e.select(b as e.Expr, u as e.Expr, x as e.Expr),
          e.and(b as e.Expr, e.cast('bool', u as e.Expr)),
          ...(whole ? [e.max(i as e.Expr, e.cast('int32', u as e.Expr))] : []),
        ],
        1,
      )
    const [whole, rest] = [of(true), of(false)]
    for (const u of [0, 1, -7, 0.1, 1e10, -1e10, 2.5, Infinity, -Infinity, NaN, -0]) {
      const fits = Math.abs(u) < 2 ** 31
      if (!fits) expect(() => specialize(whole, ['float32', 'int32', 'bool'], [u])).toThrow(DTypeError)
      const kernel = specialize(fits ? whole : rest, ['float32', 'int32', 'bool'], [u])
      const inputs = dtypes.map((dtype) => operand(rnd, dense([37]), dtype))
      check(
        kernel,
        kernel.exprs.map((t) => operand(rnd, dense([37]), t.dtype)),
        inputs,
        0,
        [u],
      )
    }
  })

  it('powers with an exponent known before the loop', () => {
    const p = program(
      'pow',
      1,
      ([x], [y]) => [e.pow(x as e.Expr, y as e.Expr), e.pow(x as e.Expr, e.sub(y as e.Expr, 1))],
      1,
    )
    for (const y of [-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 2.1, Infinity]) {
      const kernel = specialize(p, ['float32'], [y])
      // x · x · x rounds twice.
      check(kernel, [out('float32'), out('float32')], [operand(rnd, dense([n]), 'float32')], 1.5, [y])
    }
  })

  it('shifts by constants', () => {
    const p = program('shifts', 1, ([x]) =>
      [0, 1, 5, 31, 32, 33].flatMap((by) => [e.shl(x as e.Expr, by), e.shr(x as e.Expr, by)]),
    )
    const kernel = specialize(p, ['int32'], [])
    check(
      kernel,
      kernel.exprs.map(() => out('int32')),
      [operand(rnd, dense([n]), 'int32')],
    )
  })
})

/** Programs whose outputs are exact, with inputs and outputs of every dtype. */
const exact = [
  program('axpy', 3, ([a, x, y]) => [
    e.add(e.mul(a as e.Expr, 2), x as e.Expr),
    e.max(y as e.Expr, e.cast('int32', x as e.Expr)),
    e.lt(a as e.Expr, x as e.Expr),
  ]),
  program('masks', 3, ([x, b, c]) => [
    e.and(b as e.Expr, e.gt(x as e.Expr, 0)),
    e.select(c as e.Expr, x as e.Expr, -1),
  ]),
  program('numbered', 1, ([x]) => [e.add(e.index, e.cast('int32', x as e.Expr))]),
  program('triangle', 2, ([x, y]) => [
    e.select(e.le(e.coord(-1), e.coord(-2)), x as e.Expr, y as e.Expr),
    e.coord(-3),
  ]),
] as const

describe('layouts', () => {
  it.each(exact.map((p) => [p.name, p] as const))(
    '%s: broadcast, strided, reversed, scattered outputs',
    (_, p) => {
      const rnd = random(2)
      for (let round = 0; round < 150; round++) {
        const shape = randomShape(rnd)
        const inputs = Array.from({ length: p.inputs }, (_, i) =>
          randomInput(rnd, shape, p.name === 'masks' && i > 0 ? 'bool' : pick(rnd, dtypes)),
        )
        const kernel = specialize(
          p,
          inputs.map((o) => o.dtype),
          [],
        )
        const outputs = kernel.exprs.map((t) => randomOutput(rnd, shape, t.dtype))
        check(kernel, outputs, inputs)
      }
    },
  )

  it('every length of a row and of its remainder', () => {
    const rnd = random(3)
    const kernel = specialize(exact[0], ['float32', 'float32', 'int32'], [])
    const outputs = (l: Layout): Operand[] => kernel.exprs.map((t) => operand(rnd, l, t.dtype))
    for (let n = 0; n <= 40; n++) {
      for (const shape of [[n], [3, n]]) {
        check(
          kernel,
          outputs(dense(shape)),
          kernel.inputs.map((d) => operand(rnd, dense(shape), d)),
        )
        const strided = { shape, strides: shape.length === 1 ? [2] : [2 * n + 1, 2], offset: 1 }
        check(
          kernel,
          outputs(strided),
          kernel.inputs.map((d) => operand(rnd, strided, d)),
        )
      }
    }
  })

  it('empty tensors write nothing', () => {
    const rnd = random(4)
    const kernel = specialize(exact[0], ['float32', 'float32', 'int32'], [])
    for (const shape of [[0], [3, 0], [0, 4], [2, 0, 3]]) {
      const outputs = kernel.exprs.map((t) =>
        operand(rnd, { shape, strides: shape.map(() => 1), offset: 0 }, t.dtype),
      )
      check(
        kernel,
        outputs,
        kernel.inputs.map((d) => operand(rnd, dense(shape), d)),
      )
    }
  })

  it('an output may be the very view of an input', () => {
    const rnd = random(5)
    const p = program('update', 2, ([a, b]) => [
      e.add(a as e.Expr, e.mul(b as e.Expr, 2)),
      e.sub(a as e.Expr, b as e.Expr),
    ])
    const kernel = specialize(p, ['float32', 'float32'], [])
    for (let round = 0; round < 60; round++) {
      const shape = randomShape(rnd)
      const [a, b] = [randomOutput(rnd, shape, 'float32'), randomOutput(rnd, shape, 'float32')]
      check(kernel, [b, a], [a, b])
    }
  })

  it('more dims than anyone needs', () => {
    const rnd = random(6)
    const shape = new Array<number>(9).fill(2)
    const strides = layout.contiguousStrides(shape).reverse()
    const kernel = specialize(exact[1], ['int32', 'bool', 'bool'], [])
    const inputs = kernel.inputs.map((d, i) =>
      operand(rnd, i === 1 ? dense(shape) : { shape, strides, offset: 0 }, d),
    )
    check(
      kernel,
      kernel.exprs.map((t) => operand(rnd, dense(shape), t.dtype)),
      inputs,
    )
  })
})

/** Expressions over x (float32), i (int32), b (bool) and a number u. */
function randomExpr(rnd: () => number, depth: number): e.Expr {
  if (depth === 0 || rnd() < 0.1) {
    return pick(rnd, [
      e.input(0),
      e.input(0),
      e.input(1),
      e.input(2),
      e.param(0),
      e.index,
      e.coord(-1),
      e.constant(0.5),
      e.constant(3),
    ])
  }
  const sub = (): e.Expr => randomExpr(rnd, depth - 1)
  const kind = rnd()
  if (kind < 0.35) return e.unary(pick(rnd, Object.keys(unaries) as Unary[]), sub())
  if (kind < 0.5) return e.cast(pick(rnd, dtypes), sub())
  if (kind < 0.6) return e.select(e.cast('bool', sub()), sub(), sub())
  const op = pick(rnd, Object.keys(binaries) as Binary[])
  if (op === 'and' || op === 'or' || op === 'xor') {
    const to = pick(rnd, ['int32', 'bool'] as const)
    return e.binary(op, e.cast(to, sub()), e.cast(to, sub()))
  }
  return e.binary(op, sub(), sub())
}

let steps = 0
/** The node alone, over inputs for its operands: a kernel as `specialize` would make it. */
function single(t: Typed, kernel: TypedProgram): TypedProgram {
  const args = t.args.map(
    (arg, index): Typed => ({ id: index, kind: 'input', dtype: arg.dtype, index, args: [] }),
  )
  const usesIndex = t.kind === 'index' || t.kind === 'coord'
  return {
    id: 1e6 + steps++,
    name: t.kind,
    program: kernel.program,
    exprs: [{ ...t, args } as Typed],
    inputs: args.map((a) => a.dtype),
    numbers: kernel.numbers,
    params: kernel.params,
    usesIndex,
    whole: false,
    lost: null,
  }
}

describe('random programs', () => {
  it('give the bits of their operators one by one', () => {
    const rnd = random(7)
    for (let round = 0; round < 120; round++) {
      const roots = Array.from({ length: integer(rnd, 1, 3) }, () => randomExpr(rnd, integer(rnd, 1, 5)))
      const u = pick(rnd, [0.3, 2, -1.5, 3])
      const kernel = specialize(
        program('random', 3, () => roots, 1),
        ['float32', 'int32', 'bool'],
        [u],
      )
      const shape = pick(rnd, [[23], [5, 7], [2, 3, 4]])
      const inputs = dtypes.map((dtype) => operand(rnd, randomLayout(rnd, shape), dtype))
      for (const backend of [cpu, simd]) {
        const outputs = kernel.exprs.map((t) => operand(rnd, dense(shape), t.dtype))
        const got = runOn(backend, kernel, outputs, inputs, [u])
        const done = new Map<Typed, Operand>()
        for (const t of typedPostOrder(kernel.exprs)) {
          if (t.kind === 'input') {
            done.set(t, inputs[t.index] as Operand)
            continue
          }
          const out = operand(rnd, dense(shape), t.dtype)
          const args = t.args.map((arg) => done.get(arg) as Operand)
          const [data] = runOn(backend, single(t, kernel), [out], args, [u])
          done.set(t, { ...out, data: data as typeof out.data })
        }
        kernel.exprs.forEach((t, i) => {
          const step = done.get(t) as Operand
          const copy: TypedProgram = {
            ...single(t, kernel),
            exprs: [{ id: 0, kind: 'input', dtype: t.dtype, index: 0, args: [] }],
            inputs: [t.dtype],
            params: [],
          }
          const want = runOn(backend, copy, [outputs[i] as Operand], [step])
          expect(
            differ(got[i] as typeof step.data, want[0] as typeof step.data),
            JSON.stringify(roots[i]),
          ).toBeNull()
        })
      }
    }
  })
})

describe('long code', () => {
  const [x, y] = [e.input(0), e.input(1)]

  it('numbers the elements of several vectors', () => {
    /** About 70 instructions without a branch, as in random generators: two vectors at a time. */
    const hash = (n: e.Expr): e.Expr => {
      let h = n
      for (let i = 0; i < 12; i++) h = e.xor(e.mul(e.add(h, 0x9e3779b), 0x2545f), e.shr(h, (5 * i) % 17))
      return h
    }
    const p = program('hash', 1, () => [
      e.add(hash(e.index), e.cast('int32', x)),
      e.add(hash(e.add(e.coord(-1), e.mul(e.coord(-2), 1000))), e.cast('int32', x)),
    ])
    for (const expr of p.exprs) {
      const kernel = specialize({ ...p, exprs: [expr], kernels: new Map() }, ['float32'], [])
      for (const shape of [[1003], [7, 61], [2, 3, 37]]) {
        const rnd = random(13)
        const layouts = [dense(shape), randomLayout(rnd, shape, { plain: 0 })]
        for (const l of layouts) {
          if (shape.length === 1 && expr !== p.exprs[0]) continue
          const small = Float32Array.from({ length: 5000 }, () => integer(rnd, -9, 9))
          check(kernel, [operand(rnd, dense(shape), 'int32')], [{ layout: l, dtype: 'float32', data: small }])
        }
      }
    }
  })

  it('takes exp(−x²) for what it is, NaN and infinities included', () => {
    const kernels = [e.exp(e.neg(e.mul(x, x))), e.exp(e.neg(e.mul(x, y)))].map((expr) =>
      specialize(
        program('gaussian', 2, () => e.add(expr, e.mul(y, 0))),
        ['float32', 'float32'],
        [],
      ),
    )
    const rnd = random(14)
    const xs = Float32Array.from({ length: 403 }, (_, i) =>
      i < 12
        ? ([0, -0, Infinity, -Infinity, NaN, 9.3, -9.3, 9.4, 1e-40, 1e30, 1, -1][i] as number)
        : (rnd() - 0.5) * 24,
    )
    for (const sign of [1, -1]) {
      const ys = xs.map((v) => (Number.isFinite(v) ? sign * v : 1))
      const [a, b] = [xs, ys].map((data) => ({ layout: dense([403]), dtype: 'float32' as const, data }))
      // x² is rounded by up to 2⁻¹⁸ below 88, which is 64 units of the result's last place.
      for (const kernel of kernels)
        check(kernel, [operand(rnd, dense([403]), 'float32')], [a as Operand, b as Operand], 70)
    }
  })
})

describe('threads and instruction sets', () => {
  const rnd = random(8)
  const shape = [3, 301, 257]
  const p = program('mixed', 3, ([x, y, b]) => [
    e.select(b as e.Expr, e.tanh(e.max(x as e.Expr, y as e.Expr)), e.sin(x as e.Expr)),
    e.gt(x as e.Expr, y as e.Expr),
    e.add(e.index, e.cast('int32', x as e.Expr)),
  ])
  const kernel = specialize(p, ['float32', 'float32', 'bool'], [])
  const transposed = { shape, strides: [1, 3, 3 * 301], offset: 0 }
  const inputs = [
    operand(rnd, dense(shape), 'float32'),
    operand(rnd, dense([301, 1]), 'float32'),
    operand(rnd, transposed, 'bool'),
  ]
  const outputs = kernel.exprs.map((t) => operand(rnd, dense(shape), t.dtype))

  it.each(['simd', 'relaxed', 'revectorized'] as const)(
    '%s: any number of threads and any memory give the same bits',
    async (level) => {
      const alone = runOn(await make({ level, threads: 1 }), kernel, outputs, inputs)
      for (const options of [{ threads: 2 }, { threads: 3 }, { threads: 4 }, { shared: false }]) {
        const got = runOn(await make({ level, ...options }), kernel, outputs, inputs)
        got.forEach((data, i) => {
          expect(differ(data, alone[i] as typeof data), JSON.stringify(options)).toBeNull()
        })
      }
      // tanh: see above.
      const want = runOn(reference, kernel, outputs, inputs)
      expect(differ(alone[0] as Float32Array, want[0] as Float32Array, 6.5)).toBeNull()
      expect(differ(alone[1] as Uint8Array, want[1] as Uint8Array)).toBeNull()
      expect(differ(alone[2] as Int32Array, want[2] as Int32Array)).toBeNull()
    },
  )

  it('an element does not depend on where in a vector it lies', () => {
    const x = operand(rnd, dense([64]), 'float32')
    const all = specialize(
      program('all', 1, ([v]) => (Object.keys(unaries) as Unary[]).map((op) => e.unary(op, v as e.Expr))),
      ['float32'],
      [],
    )
    for (const backend of [cpu, simd, paired]) {
      const run = (n: number, offset: number) =>
        runOn(
          backend,
          all,
          all.exprs.map((t) => operand(() => 0, dense([n]), t.dtype)),
          [{ ...x, layout: { shape: [n], strides: [1], offset } }],
        )
      const want = run(64, 0)
      for (let n = 1; n < 20; n++) {
        run(n, 3).forEach((data, i) => {
          expect(
            differ(data, (want[i] as typeof data).slice(3, 3 + n)),
            `${n} elements of output ${i}`,
          ).toBeNull()
        })
      }
    }
  })
})

describe('large memories', () => {
  it('operands above 2 GiB are found, with negative strides too', async () => {
    const backend = await make({ threads: 2, maxBytes: 2 ** 32 })
    // Only address space: nothing is written there.
    const held = backend.alloc(2 ** 31, 'float32')
    const rnd = random(10)
    const kernel = specialize(exact[0], ['float32', 'float32', 'int32'], [])
    for (let round = 0; round < 20; round++) {
      const shape = randomShape(rnd)
      const inputs = kernel.inputs.map((d) => randomInput(rnd, shape, d))
      const outputs = kernel.exprs.map((t) => randomOutput(rnd, shape, t.dtype))
      const want = runOn(reference, kernel, outputs, inputs)
      runOn(backend, kernel, outputs, inputs).forEach((data, i) => {
        expect(differ(data, want[i] as typeof data)).toBeNull()
      })
    }
    expect(backend.stats().heapBytes).toBeGreaterThan(2 ** 31)
    const probe = backend.alloc(5000, 'float32') as { ptr: number }
    expect(probe.ptr).toBeGreaterThan(2 ** 31)
    backend.free(probe)
    backend.free(held)
  })
})

describe('float64', () => {
  it('is computed by the JavaScript kernels, to the last bit', () => {
    const rnd = random(9)
    const p = program('wide', 2, ([x, y]) => [
      e.mul(e.exp(x as e.Expr), y as e.Expr),
      e.lt(x as e.Expr, y as e.Expr),
    ])
    const kernel = specialize(p, ['float64', 'float32'], [])
    for (let round = 0; round < 20; round++) {
      const shape = randomShape(rnd, 300)
      const inputs = kernel.inputs.map((d) => randomInput(rnd, shape, d))
      check(
        kernel,
        kernel.exprs.map((t) => randomOutput(rnd, shape, t.dtype)),
        inputs,
      )
    }
  })
})
