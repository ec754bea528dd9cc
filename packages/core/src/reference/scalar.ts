import type { DType } from '../dtype.ts'
import type { Binary, Unary } from '../expr.ts'
import { type Typed, typedPostOrder } from '../program.ts'

/**
 * The scalar functions in double precision: what every backend's kernels are measured against. float32 tensors round
 * when an element is stored.
 */
const unaries: Record<Unary, (x: number) => number> = {
  neg: (x) => -x,
  abs: Math.abs,
  sign: (x) => Number(x > 0) - Number(x < 0),
  floor: Math.floor,
  ceil: Math.ceil,
  round: roundEven,
  sqrt: Math.sqrt,
  exp: Math.exp,
  log: Math.log,
  log1p: Math.log1p,
  expm1: Math.expm1,
  sin: Math.sin,
  cos: Math.cos,
  tanh: Math.tanh,
  sigmoid: (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x))),
  erf,
  isnan: (x) => Number(Number.isNaN(x)),
  not: (x) => Number(x === 0),
}

const floats: Record<Binary, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  // C's pow: 1 where the base is 1 or the exponent 0, whatever the other is.
  pow: (a, b) => (a === 1 || (a === -1 && !Number.isFinite(b) && !Number.isNaN(b)) ? 1 : a ** b),
  max: Math.max,
  min: Math.min,
  lt: (a, b) => Number(a < b),
  le: (a, b) => Number(a <= b),
  gt: (a, b) => Number(a > b),
  ge: (a, b) => Number(a >= b),
  eq: (a, b) => Number(a === b),
  ne: (a, b) => Number(a !== b),
  and: (a, b) => a & b,
  or: (a, b) => a | b,
  xor: (a, b) => a ^ b,
  shl: (a, b) => a << b,
  shr: (a, b) => (a >>> b) | 0,
}

/** Functions that jump: rounding their operand is not made good by rounding the result. */
const steps: ReadonlySet<Unary> = new Set(['floor', 'ceil', 'round'])

/** int32 arithmetic wraps. */
const integers: Partial<Record<Binary, (a: number, b: number) => number>> = {
  add: (a, b) => (a + b) | 0,
  sub: (a, b) => (a - b) | 0,
  mul: Math.imul,
  pow: (a, b) => {
    if (b < 0) return a === 1 ? 1 : a === -1 ? (b % 2 === 0 ? 1 : -1) : 0
    let out = 1
    for (let base = a, n = b; n > 0; n >>>= 1, base = Math.imul(base, base))
      if (n & 1) out = Math.imul(out, base)
    return out
  },
}

function roundEven(x: number): number {
  const r = Math.round(x)
  return Math.abs(x % 1) === 0.5 && r % 2 !== 0 ? r - 1 : r
}

/** erf by its all-positive series below 3, by the continued fraction of erfc above: accurate to about 1e-16. */
export function erf(x: number): number {
  const a = Math.abs(x)
  if (Number.isNaN(x)) return x
  if (a < 3) {
    let term = x
    let sum = x
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1)
      sum += term
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
  }
  if (a > 6) return Math.sign(x)
  let f = a
  for (let k = 60; k >= 1; k--) f = a + k / 2 / f
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * f))
}

/** Float to int32 truncates and saturates; NaN becomes 0. Anything to bool asks whether it differs from 0. */
export function convert(x: number, from: DType, to: DType): number {
  if (to === 'bool') return Number(x !== 0)
  if (to === 'int32' && from !== 'int32') return Math.max(-2147483648, Math.min(2147483647, x)) | 0
  return to === 'float32' ? Math.fround(x) : x
}

/** What an element's expression can see beside its inputs. */
export interface Place {
  index: number
  coords: readonly number[]
}

/**
 * Lowers typed expressions to one JavaScript function: it reads the inputs' elements and writes one value per
 * expression into `out`. Shared subexpressions are computed once.
 */
export function lower(
  exprs: readonly Typed[],
  params: readonly number[],
): (inputs: readonly number[], place: Place, out: number[]) => void {
  const order = typedPostOrder(exprs)
  const slot = new Map(order.map((t, i) => [t, i]))
  const values = new Array<number>(order.length).fill(0)
  const at = (t: Typed): number => slot.get(t) as number
  const step = (t: Typed): ((inputs: readonly number[], place: Place) => number) => {
    const [a, b, c] = t.args.map(at)
    switch (t.kind) {
      case 'input':
        return (inputs) => inputs[t.index]
      case 'param':
        return () => convert(params[t.slot], 'float64', t.dtype)
      case 'const': {
        const value = convert(t.value, 'float64', t.dtype)
        return () => value
      }
      case 'index':
        return (_, place) => place.index
      case 'coord':
        return (_, place) => place.coords[place.coords.length + t.dim] ?? 0
      case 'unary': {
        const f = unaries[t.op]
        // Whole numbers of what a float32 holds: of 1 / 0.1 in double precision they would be one less.
        if (t.dtype === 'float32' && steps.has(t.op)) return () => f(Math.fround(values[a]))
        return t.dtype === 'int32' ? () => f(values[a]) | 0 : () => f(values[a])
      }
      case 'binary': {
        const f = (t.dtype === 'int32' && integers[t.op]) || floats[t.op]
        return () => f(values[a], values[b])
      }
      case 'select':
        return () => (values[a] !== 0 ? values[b] : values[c])
      case 'cast': {
        const [from] = t.args
        return () => convert(values[a], from.dtype, t.dtype)
      }
    }
  }
  const all = order.map(step)
  const roots = exprs.map(at)
  return (inputs, place, out) => {
    for (let i = 0; i < all.length; i++) values[i] = all[i](inputs, place)
    for (let i = 0; i < roots.length; i++) out[i] = values[roots[i]]
  }
}
