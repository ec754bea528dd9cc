import fc from 'fast-check'
import { derivative, parse } from 'mathjs'
import { describe, expect, test } from 'vitest'
import { derive } from '../src/expr/derive.ts'
import * as e from '../src/expr/expr.ts'
import { namedProgram } from '../src/expr/named.ts'
import { program, specialize } from '../src/expr/program.ts'
import { elementwise, parseFormula } from '../src/formula.ts'
import {
  applyProgram,
  applyProgramInto,
  dataSync,
  grad,
  type Tensor,
  tensor,
  ValueError,
} from '../src/index.ts'

const float64 = (values: readonly number[]): Tensor =>
  tensor(new Float64Array(values), { requiresGrad: true })

/** Points in (0.2, 2) where roots and logarithms are defined, and in (−2, 2) where not needed. */
const positive = [0.21, 0.5, 0.83, 1, 1.37, 1.9]
const both = [-1.9, -1.1, -0.4, 0.3, ...positive]

/**
 * Both sides evaluate formulas of a few operations in float64: they agree to rounding, 1e-12 of the size, which grows
 * where terms cancel; 1e-9 is far below any wrong term.
 */
function expectClose(got: ArrayLike<number>, want: readonly number[]): void {
  want.forEach((w, i) =>
    expect(Math.abs(got[i] - w), `${got[i]} ≈ ${w}`).toBeLessThanOrEqual(1e-9 * (1 + Math.abs(w))),
  )
}

/** Our gradient of a formula at some values of x (and y), against mathjs's symbolic derivative of `oracle`. */
function check(formula: string, xs: readonly number[], oracle = formula): void {
  const { variables } = parseFormula(formula)
  const inputs = variables.map((_, k) =>
    float64(xs.map((v, i) => (k === 0 ? v : xs[(i * 5 + 3) % xs.length]))),
  )
  const f = elementwise(formula)
  const out = f(...inputs)
  const points = xs.map((_, i) =>
    Object.fromEntries(variables.map((name, k) => [name, dataSync(inputs[k])[i]])),
  )
  expectClose(
    dataSync(out),
    points.map((p) => parse(oracle).evaluate(p) as number),
  )
  const grads = grad(out.sum(), inputs, { allowUnused: true })
  variables.forEach((name, k) => {
    // Simplifying takes mathjs far longer than all else here, and gives the same numbers.
    const symbolic = derivative(oracle, name, { simplify: false })
    const g = grads[k]
    expectClose(
      g ? dataSync(g) : new Float64Array(xs.length),
      points.map((p) => symbolic.evaluate(p) as number),
    )
  })
}

describe('derivatives agree with the symbolic ones of mathjs', () => {
  test.each([
    ['-x', both],
    ['abs(x)', both],
    ['sqrt(x)', positive],
    ['exp(x)', both],
    ['log(x)', positive],
    ['sin(x)', both],
    ['cos(x)', both],
    ['tanh(x)', both],
    ['x + y', both],
    ['x - y', both],
    ['x * y', both],
    ['x / y', both],
    ['x ^ 3', both],
    ['x ^ y', positive],
    ['2 ^ x', both],
    ['x ^ 2.5', positive],
    ['x * tanh(log(1 + exp(x)))', both],
    ['exp(-x^2 / 2) / sqrt(2 * pi)', both],
    ['(x - y) / (x + y)', positive],
    ['log(exp(x) + exp(y))', both],
  ])('%s', (formula, xs) => check(formula, xs))

  // Functions that mathjs does not know, by ones it does.
  test.each([
    ['log1p(x)', 'log(1 + x)', positive],
    ['expm1(x)', 'exp(x) - 1', both],
    ['square(x)', 'x^2', both],
    ['sigmoid(x)', '1 / (1 + exp(-x))', both],
    ['x * sigmoid(x)', 'x / (1 + exp(-x))', both],
    ['max(x, y)', '(x + y + abs(x - y)) / 2', [-1.7, 0.3, 1.1, -0.2, 2.3, 0.9]],
    ['min(x, y)', '(x + y - abs(x - y)) / 2', [-1.7, 0.3, 1.1, -0.2, 2.3, 0.9]],
    ['relu(x)', '(x + abs(x)) / 2', both],
    ['x > 0.35 ? x * x : sin(x)', 'x * x', positive.slice(1)],
    ['x > 3 ? x * x : sin(x)', 'sin(x)', both],
  ])('%s', (formula, oracle, xs) => check(formula, xs, oracle))

  test('erf', () => {
    const x = float64(both)
    const [g] = grad(elementwise('erf(x)')(x).sum(), [x])
    expectClose(
      dataSync(g),
      both.map((v) => (2 / Math.sqrt(Math.PI)) * Math.exp(-v * v)),
    )
  })

  test('sign, floor, ceil and round have derivative 0', () => {
    for (const name of ['sign', 'floor', 'ceil', 'round']) {
      const x = float64(both)
      expect([...dataSync(grad(elementwise(`${name}(x) * x`)(x).sum(), [x])[0])]).toEqual([
        ...dataSync(elementwise(`${name}(x)`)(float64(both))),
      ])
    }
  })

  test('random compositions', () => {
    const leaf = fc.constantFrom('x', 'y', '0.7', '2')
    const { formula } = fc.letrec((tie) => ({
      formula: fc.oneof(
        { depthSize: 'small', withCrossShrink: true },
        leaf,
        fc.tuple(fc.constantFrom('sin', 'cos', 'tanh', ''), tie('formula')).map(([f, a]) => `${f}(${a})`),
        fc
          .tuple(tie('formula'), fc.constantFrom('+', '-', '*'), tie('formula'))
          .map(([a, o, b]) => `(${a} ${o} ${b})`),
        fc.tuple(tie('formula'), tie('formula')).map(([a, b]) => `((${a}) / (2 + (${b})^2))`),
        tie('formula').map((a) => `sqrt(1 + (${a})^2)`),
      ),
    }))
    fc.assert(
      fc.property(formula as fc.Arbitrary<string>, (text) => {
        fc.pre(/[xy]/.test(text))
        const size = dataSync(elementwise(text)(...parseFormula(text).variables.map(() => float64(positive))))
        // Towers of squares leave the range where 1e-9 means something.
        fc.pre([...size].every((v) => Math.abs(v) < 1e3))
        check(text, positive)
      }),
      { numRuns: 200, seed: 1 },
    )
  })
})

describe('expressions', () => {
  const [x, y] = [e.input(0), e.input(1)]

  test('equal ones are one object', () => {
    expect(e.add(e.mul(x, y), 1)).toBe(e.add(e.mul(e.input(0), e.input(1)), e.constant(1)))
    expect(e.add(x, y)).not.toBe(e.add(y, x))
    expect(e.constant(0)).not.toBe(e.constant(-0))
  })

  test('neutral elements vanish and constants fold', () => {
    expect(e.mul(x, 1)).toBe(x)
    expect(e.add(0, x)).toBe(x)
    expect(e.sub(x, 0)).toBe(x)
    expect(e.div(x, 1)).toBe(x)
    expect(e.mul(x, -1)).toBe(e.neg(x))
    expect(e.add(2, 3)).toBe(e.constant(5))
    expect(e.select(e.lt(x, y), x, x)).toBe(x)
  })

  test('0 · x stays, because x may be infinite', () => {
    expect(e.mul(x, 0)).not.toBe(e.constant(0))
    const run = program('zero', 1, ([a]) => e.mul(a, 0))
    expect(dataSync(applyProgram(run, [tensor([Infinity, 2])]))).toEqual(new Float32Array([Number.NaN, 0]))
  })

  test('substitution replaces every occurrence', () => {
    const f = e.mul(e.sin(x), e.add(x, y))
    expect(e.substitute(f, new Map([[x, e.exp(y)]]))).toBe(e.mul(e.sin(e.exp(y)), e.add(e.exp(y), y)))
  })

  test('a derivative names only the inputs it depends on', () => {
    expect([...derive(e.sin(y), e.constant(1)).keys()]).toEqual([1])
    expect(derive(e.isnan(x), e.constant(1)).size).toBe(0)
    expect(derive(e.cast('int32', x), e.constant(1)).size).toBe(0)
  })

  test('post order has operands before their users, each once', () => {
    const f = e.mul(e.add(x, y), e.add(x, y))
    const order = e.postOrder([f])
    expect(order).toHaveLength(4)
    for (const node of order)
      for (const o of e.operands(node)) expect(order.indexOf(o)).toBeLessThan(order.indexOf(node))
  })
})

describe('dtypes of programs', () => {
  const type = (
    build: (a: e.Expr, b: e.Expr, p: e.Expr) => e.Expr,
    inputs: Parameters<typeof specialize>[1],
    p = 1,
  ) =>
    specialize(
      program('typed', 2, ([a, b], [q]) => build(a, b, q), 1),
      inputs,
      [p],
    ).exprs[0].dtype

  test.each([
    ['float32', 'float64', 'float64'],
    ['int32', 'float32', 'float32'],
    ['bool', 'int32', 'int32'],
    ['bool', 'bool', 'bool'],
  ] as const)('%s and %s add up to %s', (a, b, out) => {
    expect(type(e.add, [a, b])).toBe(out)
  })

  test('a number takes the dtype of what it meets, a fraction makes integers floating', () => {
    expect(type((a, _, p) => e.add(a, p), ['int32', 'int32'], 2)).toBe('int32')
    expect(type((a, _, p) => e.add(a, p), ['int32', 'int32'], 2.5)).toBe('float32')
    expect(type((a, _, p) => e.add(a, p), ['float64', 'int32'], 2.5)).toBe('float64')
    expect(type((a, _, p) => e.add(a, p), ['bool', 'bool'], 2)).toBe('int32')
  })

  test('division and transcendental functions of integers are float32', () => {
    expect(type(e.div, ['int32', 'int32'])).toBe('float32')
    expect(type((a) => e.exp(a), ['int32', 'int32'])).toBe('float32')
    expect(type((a) => e.exp(a), ['float64', 'int32'])).toBe('float64')
  })

  test('comparisons are bool', () => {
    expect(type(e.lt, ['float32', 'int32'])).toBe('bool')
  })

  test('numbers among themselves are computed in the dtype of what they meet', () => {
    const run = program('thirds', 1, ([a], [p]) => e.mul(a, e.div(p, 3)), 1)
    expect(dataSync(applyProgram(run, [tensor(new Float64Array([1]))], [0.1]))[0]).toBe(0.1 / 3)
    expect(dataSync(applyProgram(run, [tensor([1])], [0.1]))[0]).toBe(Math.fround(Math.fround(0.1) / 3))
  })

  test('a program is typed once per combination of dtypes', () => {
    const p = program('cached', 1, ([a], [q]) => e.add(a, q), 1)
    expect(specialize(p, ['float32'], [1.5])).toBe(specialize(p, ['float32'], [2.5]))
    expect(specialize(p, ['float32'], [1.5])).not.toBe(specialize(p, ['int32'], [1.5]))
  })
})

describe('formulas', () => {
  test('name their variables in the order of appearance', () => {
    expect(parseFormula('y * exp(-x / tau0) + y').variables).toEqual(['y', 'x', 'tau0'])
  })

  test('know constants, comparisons and branches', () => {
    const f = elementwise('x >= 1 and x < 2 ? pi : -e')
    expect([...dataSync(f(tensor([0.5, 1, 2])))]).toEqual([-Math.E, Math.PI, -Math.E].map(Math.fround))
  })

  test('broadcast their tensors', () => {
    expect(elementwise('a * b')(tensor([[1], [2]]), tensor([3, 4])).shape).toEqual([2, 2])
  })

  test.each([
    ['x +', /Unexpected end/],
    ['gamma(x)', /gamma of 1 arguments is not known; known: abs/],
    ['[x, 1]', /ArrayNode is not supported/],
    ['x = 2', /AssignmentNode is not supported/],
    ['"x"', /'x' is no number/],
    ['1 + 2', /needs at least one variable/],
  ])("'%s' is refused", (formula, message) => {
    expect(() => elementwise(formula)).toThrow(message)
    expect(() => elementwise(formula)).toThrow(`elementwise('${formula}'): `)
  })

  test('know nothing of what JavaScript objects have by nature', () => {
    for (const formula of [
      'constructor(x)',
      'toString(x)',
      'valueOf(x)',
      '__proto__(x)',
      '__defineGetter__(x, x)',
    ])
      expect(() => elementwise(formula)).toThrow(/ of \d arguments is not known/)
    // As names of variables they are as good as any.
    expect(parseFormula('constructor + __proto__ * toString').variables).toEqual([
      'constructor',
      '__proto__',
      'toString',
    ])
    expect(() => elementwise('foo.exp(x)')).toThrow('calls something that is not a name')
  })

  test('of more than can be compiled in no time are refused, in short messages', () => {
    const long = [
      '-'.repeat(5000),
      'x+'.repeat(20000),
      'x^'.repeat(2000),
      'sin('.repeat(2000),
      '('.repeat(4000),
    ]
    const wide = [
      `max(${'x,'.repeat(200)}x)`,
      `${'x+'.repeat(200)}x`,
      `${'x'.repeat(5000)}`,
      `${'a'.repeat(3000)}(x)`,
    ]
    for (const formula of [...long.map((start) => `${start}x`), ...wide]) {
      let error: unknown
      try {
        elementwise(formula)
      } catch (caught) {
        error = caught
      }
      expect(error).toBeInstanceOf(ValueError)
      expect((error as Error).message.length).toBeLessThan(500)
    }
    expect([...dataSync(elementwise(`${'x+'.repeat(100)}x`)(tensor([2])))]).toEqual([202])
  })

  test('want one tensor per variable', () => {
    expect(() => elementwise('a * b')(tensor([1]))).toThrow('takes 2 tensors (a, b), got 1')
  })
})

test('a program knows how many inputs and numbers it has', () => {
  const sums = [
    program('sum', 2, ([a, b]) => e.add(a, b)),
    program('sum', 1, ([a], [n]) => e.add(a, n), 1),
    // @ts-expect-error two inputs, not three
    program('sum', 2, ([a, b, c]) => e.add(a, c ?? b)),
    // @ts-expect-error one number, not two
    program('sum', 1, ([a], [m, n]) => e.add(a, n ?? m), 1),
    program('sum', 1 + sumInputs, (inputs) => inputs.reduce((a, b) => e.add(a, b))),
  ]
  expect(sums.map((p) => p.inputs + p.params)).toEqual([2, 2, 2, 2, 2])
  for (const p of sums) expect(p.exprs.length).toBe(1)
})
const sumInputs: number = 1

describe('programs with names', () => {
  const STEP = namedProgram('step', ['p', 'g', 'm'], ['lr', 'keep'], ({ g, m, p }, { keep, lr }) => {
    const next = e.add(e.mul(keep, m), g)
    return [e.sub(p, e.mul(lr, next)), next]
  })
  const BY_PLACE = program(
    'step',
    3,
    ([p, g, m], [lr, keep]) => {
      const next = e.add(e.mul(keep, m), g)
      return [e.sub(p, e.mul(lr, next)), next]
    },
    2,
  )

  test('are those whose inputs and numbers stand in the order of the names', () => {
    expect([STEP.name, STEP.inputs, STEP.params]).toEqual(['step', 3, 2])
    expect(STEP.exprs).toEqual(BY_PLACE.exprs)
  })

  test('put numbers in order, and take a function that is asked for them', () => {
    expect(STEP.numbers({ keep: 0.5, lr: 2 })).toEqual([2, 0.5])
    const [p, g, m] = [[1], [3], [4]].map(float64)
    applyProgramInto(
      [p.detach(), m.detach()],
      STEP,
      [p, g, m].map((t) => t.detach()),
      () => STEP.numbers({ keep: 0.5, lr: 2 }),
    )
    expect([dataSync(p)[0], dataSync(m)[0]]).toEqual([1 - 2 * 5, 5])
    // @ts-expect-error there is no such number
    STEP.numbers({ keep: 0.5, rate: 2 })
  })
})
