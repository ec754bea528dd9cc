/**
 * Formulas as operators; the one entry point that needs the package mathjs.
 *
 * @module formula
 */
import { type MathNode, parse } from 'mathjs'
import { ValueError } from './errors.ts'
import * as e from './expr/expr.ts'
import { type Program, program } from './expr/program.ts'
import { elementwise as run } from './primitives/elementwise.ts'
import type { Tensor } from './tensor/tensor.ts'

/** What formulas call the scalar functions; null: bools and bits, which formulas have no names for. */
const unaryNames: Readonly<Record<e.Unary, string | null>> = {
  abs: 'abs',
  sign: 'sign',
  floor: 'floor',
  ceil: 'ceil',
  round: 'round',
  sqrt: 'sqrt',
  exp: 'exp',
  log: 'log',
  log1p: 'log1p',
  expm1: 'expm1',
  sin: 'sin',
  cos: 'cos',
  tanh: 'tanh',
  sigmoid: 'sigmoid',
  erf: 'erf',
  neg: 'unaryMinus',
  not: 'not',
  isnan: null,
}
const binaryNames: Readonly<Record<e.Binary, string | null>> = {
  add: 'add',
  sub: 'subtract',
  mul: 'multiply',
  div: 'divide',
  pow: 'pow',
  max: 'max',
  min: 'min',
  gt: 'larger',
  ge: 'largerEq',
  lt: 'smaller',
  le: 'smallerEq',
  eq: 'equal',
  ne: 'unequal',
  and: 'and',
  or: 'or',
  xor: null,
  shl: null,
  shr: null,
}
type One = (x: e.Expr) => e.Expr
type Two = (a: e.Expr, b: e.Expr) => e.Expr

// Maps, not objects: those would also know 'constructor' and '__proto__'.
function byName<Op extends string, F>(names: Record<Op, string | null>, make: (op: Op) => F): Map<string, F> {
  const out = new Map<string, F>()
  for (const op in names) if (names[op] !== null) out.set(names[op], make(op))
  return out
}
const unary = byName<e.Unary, One>(unaryNames, (op) => (x) => e.unary(op, x))
  .set('square', e.square)
  .set('unaryPlus', (x) => x)
  .set('relu', (x) => e.select(e.gt(x, 0), x, 0))
const binary = byName<e.Binary, Two>(binaryNames, (op) => (a, b) => e.binary(op, a, b)).set('pow', power)
const constants = new Map(
  Object.entries({
    pi: Math.PI,
    PI: Math.PI,
    e: Math.E,
    E: Math.E,
    tau: 2 * Math.PI,
    Infinity: Number.POSITIVE_INFINITY,
  }),
)

/** Longer formulas are refused: what they take to parse, derive and compile grows with them. */
const longest = 4096
/** The most operators and functions in a formula: a power and its gradient alone are hundreds of instructions. */
const most = 128

/** Small whole exponents become products: exact, and right for negative bases. */
function power(a: e.Expr, b: e.Expr): e.Expr {
  if (b.kind === 'const' && Number.isInteger(b.value) && b.value >= 1 && b.value <= 4) {
    return Array.from({ length: b.value - 1 }).reduce((p: e.Expr) => e.mul(p, a), a)
  }
  return e.pow(a, b)
}

const called = (formula: string): string =>
  `elementwise('${formula.length > 100 ? `${formula.slice(0, 100)}…` : formula}')`

/**
 * Parses a formula into a scalar expression and the names of its variables, in order of appearance.
 *
 * @throws ValueError for a formula that does not parse or uses unknown functions.
 * @example
 * import { parseFormula } from '@tilegrad/core/formula'
 *
 * parseFormula('a * tanh(b)').variables // → [a, b]
 */
export function parseFormula(formula: string): { expr: e.Expr; variables: string[] } {
  const variables: string[] = []
  const fail = (what: string): never => {
    throw new ValueError(`${called(formula)}: ${what}`)
  }
  if (typeof formula !== 'string') fail('takes a formula as a string')
  if (formula.length > longest) fail(`is ${formula.length} characters long; at most ${longest} are read`)
  const tooMuch = (): never =>
    fail(`has more than ${most} operators and functions; make operators of its parts`)
  let operators = 0
  const build = (node: MathNode): e.Expr => {
    switch (node.type) {
      case 'ConstantNode': {
        const { value } = node as unknown as { value: unknown }
        return typeof value === 'number' ? e.constant(value) : fail(`'${String(value)}' is no number`)
      }
      case 'SymbolNode': {
        const { name } = node as unknown as { name: string }
        const value = constants.get(name)
        if (value !== undefined) return e.constant(value)
        if (!variables.includes(name)) variables.push(name)
        return e.input(variables.indexOf(name))
      }
      case 'ParenthesisNode':
        if (++operators > most) tooMuch()
        return build((node as unknown as { content: MathNode }).content)
      case 'ConditionalNode': {
        const { condition, trueExpr, falseExpr } = node as unknown as Record<
          'condition' | 'trueExpr' | 'falseExpr',
          MathNode
        >
        if (++operators > most) tooMuch()
        return e.select(build(condition), build(trueExpr), build(falseExpr))
      }
      case 'OperatorNode':
      case 'FunctionNode': {
        const { fn, args: parts } = node as unknown as {
          fn: string | (MathNode & { name: string })
          args: MathNode[]
        }
        // What is called may also be a part of something, as in a.exp(x).
        if (typeof fn !== 'string' && fn.type !== 'SymbolNode') fail('calls something that is not a name')
        const name = typeof fn === 'string' ? fn : fn.name
        operators += Math.max(1, parts.length - 1)
        if (operators > most) tooMuch()
        const args = parts.map(build)
        const [one, two] = [unary.get(name), binary.get(name)]
        if (args.length === 1 && one) return one(args[0])
        if (args.length >= 2 && two) return args.slice(1).reduce((a, b) => two(a, b), args[0])
        return fail(
          `${name.slice(0, 40)} of ${args.length} arguments is not known; known: ${[...unary.keys()].join(', ')} and + - * / ^ max min, comparisons, c ? a : b`,
        )
      }
      default:
        return fail(
          `${node.type} is not supported; write one expression of numbers, variables, operators and functions`,
        )
    }
  }
  let tree: MathNode
  try {
    tree = parse(formula)
  } catch (error) {
    return error instanceof RangeError ? tooMuch() : fail((error as Error).message)
  }
  const expr = build(tree)
  if (variables.length === 0) fail('needs at least one variable')
  return { expr, variables }
}

/**
 * An elementwise operator from a formula, with a fused forward and backward on every backend.
 *
 * @param formula numbers, variables, + − * / ^, comparisons, `c ? a : b` and functions (exp, log, tanh, erf, max …), as mathjs parses them.
 * @returns a function of one tensor per variable, in order of appearance; the tensors broadcast.
 * @throws ValueError for a formula that does not parse or uses unknown functions.
 * @example
 * import { elementwise } from '@tilegrad/core/formula'
 *
 * const mish = elementwise('x * tanh(log(1 + exp(x)))')
 * const y = mish(randn([4]))
 */
export function elementwise(formula: string): (...inputs: Tensor[]) => Tensor {
  const { expr, variables } = parseFormula(formula)
  const p: Program = program(formula, variables.length, () => expr)
  return (...inputs) => {
    if (inputs.length !== variables.length)
      throw new ValueError(
        `${called(formula)}: takes ${variables.length} tensors (${variables.join(', ')}), got ${inputs.length}`,
      )
    return run(p, inputs)
  }
}
