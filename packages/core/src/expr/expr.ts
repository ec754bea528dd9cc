/**
 * Scalar expressions as data: what one element of an elementwise operator computes. Core differentiates them
 * (`expr/derive.ts`) and types them (`program.ts`); every backend lowers them once (JS closure, WebAssembly, WGSL).
 *
 * Nodes are hash-consed: equal expressions are the same object, so a shared subexpression is computed once and
 * `a === b` is structural equality.
 */

/** The scalar functions of one argument. */
export type Unary =
  | 'neg'
  | 'abs'
  | 'sign'
  | 'floor'
  | 'ceil'
  | 'round'
  | 'sqrt'
  | 'exp'
  | 'log'
  | 'log1p'
  | 'expm1'
  | 'sin'
  | 'cos'
  | 'tanh'
  | 'sigmoid'
  | 'erf'
  | 'isnan'
  | 'not'

/** The scalar functions of two numbers that give a number. */
export type Arithmetic = 'add' | 'sub' | 'mul' | 'div' | 'pow' | 'max' | 'min'

/** The comparisons of two numbers, which give bools. */
export type Compare = 'lt' | 'le' | 'gt' | 'ge' | 'eq' | 'ne'
/** Operators of bits: `and`, `or`, `xor` are logical on bools, bitwise on int32; `shl` and `shr` (zeros in) int32 only. */
export type Bits = 'and' | 'or' | 'xor' | 'shl' | 'shr'

/** The scalar functions of two arguments. */
export type Binary = Arithmetic | Compare | Bits

/** A scalar expression: a node with its operands. Equal expressions are the same object. */
export type Expr =
  | { readonly id: number; readonly kind: 'input'; readonly index: number }
  /** A number passed with each call, so that a new value needs no new kernel. */
  | { readonly id: number; readonly kind: 'param'; readonly index: number }
  | { readonly id: number; readonly kind: 'const'; readonly value: number }
  /** Row-major position of the element in the output, int32. */
  | { readonly id: number; readonly kind: 'index' }
  /** The element's coordinate along a dim of the output, int32; dim is negative, counted from the last. */
  | { readonly id: number; readonly kind: 'coord'; readonly dim: number }
  | { readonly id: number; readonly kind: 'unary'; readonly op: Unary; readonly a: Expr }
  | { readonly id: number; readonly kind: 'binary'; readonly op: Binary; readonly a: Expr; readonly b: Expr }
  | { readonly id: number; readonly kind: 'select'; readonly cond: Expr; readonly a: Expr; readonly b: Expr }
  | {
      readonly id: number
      readonly kind: 'cast'
      readonly to: 'int32' | 'float32' | 'bool'
      readonly a: Expr
    }

type Bare<T> = T extends unknown ? Omit<T, 'id'> : never

const table = new Map<string, Expr>()

function intern(key: string, bare: Bare<Expr>): Expr {
  let node = table.get(key)
  if (!node) {
    node = { id: table.size, ...bare } as Expr
    table.set(key, node)
  }
  return node
}

/** What a builder takes: an expression, or a number that becomes a constant. */
export type Arg = Expr | number

/** Makes a constant. */
export const constant = (value: number): Expr =>
  intern(`c${Object.is(value, -0) ? '-0' : value}`, { kind: 'const', value })
const wrap = (a: Arg): Expr => (typeof a === 'number' ? constant(a) : a)

/** Stands for the element of input number `index`. */
export const input = (index: number): Expr => intern(`i${index}`, { kind: 'input', index })

/** Stands for number `index` of those passed with each call, so that a new value needs no new kernel. */
export const param = (index: number): Expr => intern(`p${index}`, { kind: 'param', index })

/** Stands for the row-major position of the element in the output, int32. */
export const index: Expr = intern('x', { kind: 'index' })

/**
 * Stands for the element's coordinate along a dim of the output, int32; dim is negative, counted from the last.
 */
export const coord = (dim: number): Expr => intern(`d${dim}`, { kind: 'coord', dim })

/** Converts to another type; towards int32 fractions are cut off. */
export const cast = (to: 'int32' | 'float32' | 'bool', a: Arg): Expr => {
  const e = wrap(a)
  return intern(`t${to},${e.id}`, { kind: 'cast', to, a: e })
}

/** Builds a node of one operand; the negative of a constant is a constant. */
export function unary(op: Unary, x: Arg): Expr {
  const a = wrap(x)
  if (op === 'neg' && a.kind === 'const') return constant(-a.value)
  return intern(`u${op},${a.id}`, { kind: 'unary', op, a })
}

const is = (e: Expr, value: number): boolean => e.kind === 'const' && e.value === value

/** Builds a binary node; constants fold and neutral elements vanish (0 · x does so only where a derivative made the 0). */
export function binary(op: Binary, x: Arg, y: Arg): Expr {
  const a = wrap(x)
  const b = wrap(y)
  if (a.kind === 'const' && b.kind === 'const') {
    if (op === 'add') return constant(a.value + b.value)
    if (op === 'sub') return constant(a.value - b.value)
    if (op === 'mul') return constant(a.value * b.value)
  }
  if (op === 'add' && is(a, 0)) return b
  if ((op === 'add' || op === 'sub') && is(b, 0)) return a
  if (op === 'mul' && is(a, 1)) return b
  if ((op === 'mul' || op === 'div') && is(b, 1)) return a
  if (op === 'mul' && is(b, -1)) return unary('neg', a)
  return intern(`b${op},${a.id},${b.id}`, { kind: 'binary', op, a, b })
}

/** Takes x where the condition holds, y elsewhere. */
export function select(cond: Expr, x: Arg, y: Arg): Expr {
  const a = wrap(x)
  const b = wrap(y)
  return a === b ? a : intern(`s${cond.id},${a.id},${b.id}`, { kind: 'select', cond, a, b })
}

/** Negates, −a. */
export const neg = (a: Arg): Expr => unary('neg', a)

/** Takes the absolute value. */
export const abs = (a: Arg): Expr => unary('abs', a)

/** Takes the sign: −1, 0 or 1; 0 for NaN. */
export const sign = (a: Arg): Expr => unary('sign', a)

/** Rounds down. */
export const floor = (a: Arg): Expr => unary('floor', a)

/** Rounds up. */
export const ceil = (a: Arg): Expr => unary('ceil', a)

/** Rounds to the nearest whole number, half to even, as IEEE and PyTorch do. */
export const round = (a: Arg): Expr => unary('round', a)

/** Takes the square root. */
export const sqrt = (a: Arg): Expr => unary('sqrt', a)

/** Takes the exponential. */
export const exp = (a: Arg): Expr => unary('exp', a)

/** Takes the natural logarithm. */
export const log = (a: Arg): Expr => unary('log', a)

/** Takes ln(1 + a), exact near 0. */
export const log1p = (a: Arg): Expr => unary('log1p', a)

/** Takes exp(a) − 1, exact near 0. */
export const expm1 = (a: Arg): Expr => unary('expm1', a)

/** Takes the sine, of radians. */
export const sin = (a: Arg): Expr => unary('sin', a)

/** Takes the cosine, of radians. */
export const cos = (a: Arg): Expr => unary('cos', a)

/** Takes the hyperbolic tangent. */
export const tanh = (a: Arg): Expr => unary('tanh', a)

/** Takes 1 / (1 + exp(−a)). */
export const sigmoid = (a: Arg): Expr => unary('sigmoid', a)

/** Takes the error function. */
export const erf = (a: Arg): Expr => unary('erf', a)

/** Says whether it is NaN. */
export const isnan = (a: Arg): Expr => unary('isnan', a)

/** Says whether it is 0. */
export const not = (a: Arg): Expr => unary('not', a)

/** Adds a + b. */
export const add = (a: Arg, b: Arg): Expr => binary('add', a, b)

/** Subtracts a − b. */
export const sub = (a: Arg, b: Arg): Expr => binary('sub', a, b)

/** Multiplies a · b. */
export const mul = (a: Arg, b: Arg): Expr => binary('mul', a, b)

/** Divides a / b; the result is a float. */
export const div = (a: Arg, b: Arg): Expr => binary('div', a, b)

/** Raises a to the power b. */
export const pow = (a: Arg, b: Arg): Expr => binary('pow', a, b)

/** Takes the larger of two; NaN if either is NaN. */
export const max = (a: Arg, b: Arg): Expr => binary('max', a, b)

/** Takes the smaller of two; NaN if either is NaN. */
export const min = (a: Arg, b: Arg): Expr => binary('min', a, b)

/** Says whether a < b. */
export const lt = (a: Arg, b: Arg): Expr => binary('lt', a, b)

/** Says whether a ≤ b. */
export const le = (a: Arg, b: Arg): Expr => binary('le', a, b)

/** Says whether a > b. */
export const gt = (a: Arg, b: Arg): Expr => binary('gt', a, b)

/** Says whether a ≥ b. */
export const ge = (a: Arg, b: Arg): Expr => binary('ge', a, b)

/** Says whether a = b. */
export const eq = (a: Arg, b: Arg): Expr => binary('eq', a, b)

/** Says whether a ≠ b. */
export const ne = (a: Arg, b: Arg): Expr => binary('ne', a, b)

/** Says whether both hold; of int32 the bits that both have. */
export const and = (a: Arg, b: Arg): Expr => binary('and', a, b)

/** Says whether one holds; of int32 the bits that either has. */
export const or = (a: Arg, b: Arg): Expr => binary('or', a, b)

/** Says whether exactly one holds; of int32 the bits that one has. */
export const xor = (a: Arg, b: Arg): Expr => binary('xor', a, b)

/** Shifts the bits of an int32 to the left. */
export const shl = (a: Arg, b: Arg): Expr => binary('shl', a, b)

/** Shifts the bits of an int32 to the right, zeros in. */
export const shr = (a: Arg, b: Arg): Expr => binary('shr', a, b)

/** Squares, a · a. */
export const square = (a: Arg): Expr => mul(a, a)

/** The direct operands of a node. */
export function operands(e: Expr): readonly Expr[] {
  switch (e.kind) {
    case 'unary':
    case 'cast':
      return [e.a]
    case 'binary':
      return [e.a, e.b]
    case 'select':
      return [e.cond, e.a, e.b]
    default:
      return []
  }
}

/** Rebuilds an expression with some nodes replaced (the map is consulted first; it also memoises). */
export function substitute(e: Expr, map: Map<Expr, Expr>): Expr {
  const hit = map.get(e)
  if (hit) return hit
  let out = e
  if (e.kind === 'unary') out = unary(e.op, substitute(e.a, map))
  else if (e.kind === 'cast') out = cast(e.to, substitute(e.a, map))
  else if (e.kind === 'binary') out = binary(e.op, substitute(e.a, map), substitute(e.b, map))
  else if (e.kind === 'select')
    out = select(substitute(e.cond, map), substitute(e.a, map), substitute(e.b, map))
  map.set(e, out)
  return out
}

/** Every node of some expressions once, operands before their users. */
export function postOrder(roots: readonly Expr[]): Expr[] {
  const seen = new Set<Expr>()
  const out: Expr[] = []
  const visit = (e: Expr): void => {
    if (seen.has(e)) return
    seen.add(e)
    for (const o of operands(e)) visit(o)
    out.push(e)
  }
  for (const r of roots) visit(r)
  return out
}
