import type { Binary, Unary } from '../expr/expr.ts'
import { type Typed, typedPostOrder } from '../expr/program.ts'
import { type DType, info } from '../tensor/dtype.ts'
import { numel } from '../tensor/layout.ts'

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
  const { half } = info[to]
  return half ? half.load(half.store(x)) : to === 'float32' ? Math.fround(x) : x
}

/** How many elements are computed at a time. */
const BLOCK = 256

/**
 * Computes typed expressions of all elements of a shape, a block at a time and in it one operation after the other, so
 * that each is one loop. Shared subexpressions are computed once. `load` puts `n` elements of an input, from one on,
 * into a row; `store` gets what is to be written of one expression. Nothing of a block is stored before all of it is
 * computed: an output may lie where an input does.
 */
export function evaluate(
  exprs: readonly Typed[],
  params: readonly number[],
  shape: readonly number[],
  load: (input: number, from: number, n: number, row: Float64Array) => void,
  store: (output: number, from: number, n: number, row: Float64Array) => void,
): void {
  const total = numel(shape)
  const size = Math.min(BLOCK, total)
  const rows = new Map<Typed, Float64Array>()
  const row = (t: Typed): Float64Array => rows.get(t) as Float64Array
  /** Makes the operation that fills a row; what does not depend on the element is filled at once. */
  const step = (t: Typed): ((from: number, n: number) => void) | null => {
    const out = new Float64Array(size)
    rows.set(t, out)
    const [a, b, c] = t.args.map(row)
    switch (t.kind) {
      case 'input':
        return (from, n) => load(t.index, from, n, out)
      case 'param':
      case 'const':
        // What is computed of 16 bits is float32, numbers beside them too.
        out.fill(
          convert(
            t.kind === 'param' ? params[t.slot] : t.value,
            'float64',
            info[t.dtype].half ? 'float32' : t.dtype,
          ),
        )
        return null
      case 'index':
        return (from, n) => {
          for (let i = 0; i < n; i++) out[i] = from + i
        }
      case 'coord': {
        const dim = shape.length + t.dim
        const [extent, inner] = [shape[dim] ?? 1, numel(shape.slice(Math.max(0, dim + 1)))]
        return (from, n) => {
          for (let i = 0; i < n; i++) out[i] = Math.floor((from + i) / inner) % extent
        }
      }
      case 'unary': {
        const f = unaries[t.op]
        // Whole numbers of what a float32 holds: of 1 / 0.1 in double precision they would be one less.
        const narrow = t.dtype === 'float32' && steps.has(t.op)
        const int = t.dtype === 'int32'
        return (_, n) => {
          for (let i = 0; i < n; i++) {
            const y = f(narrow ? Math.fround(a[i]) : a[i])
            out[i] = int ? y | 0 : y
          }
        }
      }
      case 'binary': {
        const int = t.dtype === 'int32'
        // Most are these: loops of their own spare them a call, and numbers on the heap.
        if (t.op === 'add' && !int) {
          return (_, n) => {
            for (let i = 0; i < n; i++) out[i] = a[i] + b[i]
          }
        }
        if (t.op === 'mul' && !int) {
          return (_, n) => {
            for (let i = 0; i < n; i++) out[i] = a[i] * b[i]
          }
        }
        const f = (int && integers[t.op]) || floats[t.op]
        return (_, n) => {
          for (let i = 0; i < n; i++) out[i] = f(a[i], b[i])
        }
      }
      case 'select':
        return (_, n) => {
          for (let i = 0; i < n; i++) out[i] = a[i] !== 0 ? b[i] : c[i]
        }
      case 'cast': {
        const from = t.args[0].dtype
        return (_, n) => {
          for (let i = 0; i < n; i++) out[i] = convert(a[i], from, t.dtype)
        }
      }
    }
  }
  const all = typedPostOrder(exprs).map(step)
  for (let from = 0; from < total; from += size) {
    const n = Math.min(size, total - from)
    for (const run of all) run?.(from, n)
    exprs.forEach((t, output) => {
      store(output, from, n, row(t))
    })
  }
}
