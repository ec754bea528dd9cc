/**
 * Elementary functions of four float32 lanes, as code for kernels. Every lane is computed by the same instructions,
 * so that a result never depends on where in a vector an element lies.
 *
 * ```ts
 * const { exp, tanh } = mathF32x4(f, ['exp', 'tanh']) // before the loops: this emits the constants
 * f.for(start, end, 4, (i) => { … exp(v128.load(p)) … })
 * ```
 *
 * Largest errors found, in units of the last place of a float32 against float64, with fused multiply-add and
 * without, over 4 million floats spread over all of them, and 10 million of 0.5 … 10 (`test/math.test.ts` holds bounds a little above):
 *
 * | function | ulp | method |
 * |---|---|---|
 * | exp | 0.87, 1.16 | 2ⁿ · polynomial of degree 6; results below 2⁻¹²⁶ are flushed to 0 |
 * | expNonPositive | 0.87, 1.16 | the same with fewer instructions; for x ≤ 0, −∞ or NaN only |
 * | expm1 | 1.44, 1.52 | the same reduction, recombined without cancellation |
 * | log | 0.86 | m · 2ᵉ with m in [√½, √2), polynomial of degree 10 |
 * | log1p | 0.81 | log(1 + x) with the rounding error of 1 + x carried along |
 * | tanh | 5.3, 5.8 | x · P(x²) / Q(x²), both of degree 4; |x| ≤ 9.02, where the result rounds to 1 |
 * | sigmoid | 2.1 | 1 / (1 + exp(−x)); results below 2⁻¹²⁷ are flushed to 0 |
 * | erf | 5.1, 7.2 | x · P(x²) / Q(x²), both of degree 5; |x| ≤ 3.93, where the result rounds to 1 |
 * | sin, cos | 1.56 | reduction by π/2 in float64 up to 10⁶, beyond in the manner of Payne and Hanek (1983) |
 * | pow | 0.51 | exp2(y · log2(x)) in float64; C's special cases |
 *
 * tanh and erf err most where they are almost ±1, by up to 4.3 · 10⁻⁷ (3.1 · 10⁻⁷ with fused multiply-add); they never
 * leave [−1, 1]. By way of the exponential both would be right to 2 ulp, and take 1.5 and 2 times as long.
 *
 * The polynomials and fractions are minimax fits in relative error (Lawson's algorithm), their coefficients rounded
 * to float32 one by one, each time fitting the others anew.
 */

import { FunctionBuilder, f32x4, f64x2, i32x4, i64x2, type V128, v128 } from '../wasm/index.ts'

/**
 * Vectors with one constant in every lane. As variables, set before the loops: V8 since Node 24 builds a vector
 * constant anew wherever it stands, which made exp 2.4 times slower (1.9 instead of 0.8 ns for 4 elements).
 */
export interface Constants {
  f32(value: number): V128
  f64(value: number): V128
  i32(value: number): V128
}

const inline: Constants = {
  f32: (value) => f32x4.const(value),
  f64: (value) => f64x2.const(value),
  i32: (value) => i32x4.const(value),
}

/**
 * Emits, here, all constants that `code` will ask for, and returns them. `code` is tried on a function of its own
 * that is thrown away; it gets that function, and two vectors as stand-ins for arguments.
 */
export function hoistConstants(
  f: FunctionBuilder,
  code: (f: FunctionBuilder, k: Constants, x: V128, y: V128) => void,
): Constants {
  const known = new Map<string, V128>()
  const through = (make: (key: string, type: keyof Constants, value: number) => V128): Constants => {
    const of = (type: keyof Constants) => (value: number) =>
      make(`${type}${Object.is(value, -0) ? '-0' : value}`, type, value)
    return { f32: of('f32'), f64: of('f64'), i32: of('i32') }
  }
  const trial = new FunctionBuilder(['v128', 'v128'], false)
  const [x, y] = trial.params(['v128', 'v128'])
  const recording = through((key, type, value) => {
    if (!known.has(key)) known.set(key, f.let(inline[type](value)))
    return inline[type](value)
  })
  code(trial, recording, x, y)
  return through((key, type, value) => known.get(key) ?? inline[type](value))
}

type Code = (f: FunctionBuilder, k: Constants, x: V128) => V128

/** c[0] + c[1]·x + c[2]·x² + … by Horner's rule. */
export function polynomial(k: Constants, x: V128, c: readonly number[]): V128 {
  let sum = k.f32(c[c.length - 1] as number)
  for (let i = c.length - 2; i >= 0; i--) sum = f32x4.madd(sum, x, k.f32(c[i] as number))
  return sum
}

function polynomial64(k: Constants, x: V128, c: readonly number[]): V128 {
  let sum = k.f64(c[c.length - 1] as number)
  for (let i = c.length - 2; i >= 0; i--) sum = f64x2.madd(sum, x, k.f64(c[i] as number))
  return sum
}

// Adding 1.5 · 2²³ rounds to an integer, and leaves it in the low bits; plus an offset that is wanted there.
const magic32 = 1.5 * 2 ** 23
const magic64 = 1.5 * 2 ** 52

// ln 2 in two parts; the first has 16 bits, so that its product with an exponent is exact.
const ln2High = 0.693145751953125
const ln2Low = 1.4286068203094173e-6

/** (eˣ − 1 − x) / x² for |x| ≤ ½ ln 2. */
const expTail = [
  0.4999999403953552, 0.1666652113199234, 0.04166828840970993, 0.008368703536689281, 0.0013818938750773668,
]

/** x = n ln 2 + r: r, and n + offset as an integer in the low bits of a float (`bits`). */
function reduceExp(f: FunctionBuilder, k: Constants, x: V128, offset: number): { r: V128; bits: V128 } {
  const magic = k.f32(magic32 + offset)
  const bits = f.let(f32x4.madd(x, k.f32(Math.LOG2E), magic))
  const n = f.let(f32x4.sub(bits, magic))
  const r = f.let(f32x4.nmadd(n, k.f32(ln2Low), f32x4.nmadd(n, k.f32(ln2High), x)))
  return { r, bits }
}

const exp: Code = (f, k, argument) => {
  const x = f.let(argument)
  const { r, bits } = reduceExp(f, k, x, 0)
  // n is added to the exponent as an integer: 2ⁿ itself would overflow for n = 128, where eˣ may not.
  const y = i32x4.add(polynomial(k, r, [1, 1, ...expTail]), i32x4.shl(bits, 23))
  const normal = v128.and(y, f32x4.ge(x, k.f32(-87.33654)))
  // x + ∞ is ∞ for what is too large, and NaN for NaN.
  return f32x4.select(f32x4.le(x, k.f32(88.72283)), normal, f32x4.add(x, k.f32(Infinity)))
}

const expNonPositive: Code = (f, k, argument) => {
  const x = f.let(argument)
  const { r, bits } = reduceExp(f, k, x, 127)
  const y = f32x4.mul(polynomial(k, r, [1, 1, ...expTail]), i32x4.shl(bits, 23))
  return v128.andnot(y, f32x4.lt(x, k.f32(-87.33654)))
}

/** 2^−g − 1 over −g for |g| ≤ ½: relative error of 1 − g·P below 9.4e-8 (minimax, Lawson's algorithm). */
const exp2Tail = [
  0.6931470036506653, -0.24022246897220612, 0.0555071085691452, -0.009671293199062347, 0.0013269565533846617,
]

/**
 * 2^(scale · x) for a product in [−127.5, 0] or NaN; 0 below about −126.5. Of few instructions: without fused
 * multiply-add the product is rounded, and its rounding error multiplied.
 */
export function exp2Below(f: FunctionBuilder, k: Constants, x: V128, scale: number): V128 {
  const magic = k.f32(magic32 + 127)
  const bits = f.let(f32x4.madd(x, k.f32(scale), magic))
  const g = f.let(f32x4.nmadd(x, k.f32(scale), f32x4.sub(bits, magic)))
  return f32x4.mul(f32x4.nmadd(polynomial(k, g, exp2Tail), g, k.f32(1)), i32x4.shl(bits, 23))
}

const expm1: Code = (f, k, argument) => {
  const x = f.let(argument)
  // In this order of operands NaN stays NaN.
  const clamped = f.let(f32x4.pmin(f32x4.pmax(x, k.f32(-20)), k.f32(89)))
  const { r, bits } = reduceExp(f, k, clamped, 126)
  const y = f32x4.madd(f32x4.mul(r, r), polynomial(k, r, expTail), r)
  // Half of 2ⁿ · (y + 1) − 1, as 2¹²⁸ is no float.
  const scale = f.let(i32x4.shl(bits, 23))
  const half = f.let(f32x4.madd(scale, y, f32x4.sub(scale, k.f32(0.5))))
  return f32x4.select(f32x4.lt(f32x4.abs(x), k.f32(2 ** -25)), x, f32x4.add(half, half))
}

/** (log(1 + x) − x + ½x²) / x³ for 1 + x in [√½, √2). */
const logTail = [
  0.3333333134651184, -0.2500081956386566, 0.2000124156475067, -0.166234090924263, 0.14201579988002777,
  -0.13159610331058502, 0.12762217223644257, -0.07636439055204391,
]
/** The bits of √½. */
const sqrtHalfBits = 0x3f3504f3

/** x = 2ᵉ · (1 + m) with 1 + m in [√½, √2), for x > 0, finite and not subnormal; e as an integer. */
function splitExponent(f: FunctionBuilder, k: Constants, x: V128): { e: V128; m: V128 } {
  const bits = f.let(i32x4.sub(x, k.i32(sqrtHalfBits)))
  const one = i32x4.add(v128.and(bits, k.i32(0x7fffff)), k.i32(sqrtHalfBits))
  return { e: i32x4.shrS(bits, 23), m: f.let(f32x4.sub(one, k.f32(1))) }
}

/** e ln 2 + log(1 + m) + low. */
function logOf(f: FunctionBuilder, k: Constants, e: V128, m: V128, low: V128 | null): V128 {
  const square = f.let(f32x4.mul(m, m))
  let tail = f32x4.mul(e, k.f32(ln2Low))
  if (low !== null) tail = f32x4.add(tail, low)
  tail = f32x4.madd(f32x4.mul(square, m), polynomial(k, m, logTail), tail)
  tail = f32x4.nmadd(square, k.f32(0.5), tail)
  return f32x4.madd(e, k.f32(ln2High), f32x4.add(m, tail))
}

const log: Code = (f, k, argument) => {
  const x = f.let(argument)
  const tiny = f.let(f32x4.lt(x, k.f32(2 ** -126)))
  const { e, m } = splitExponent(f, k, f32x4.select(tiny, f32x4.mul(x, k.f32(2 ** 25)), x))
  const exponent = f.let(f32x4.sub(f32x4.convertI32x4S(e), v128.and(tiny, k.f32(25))))
  const y = f32x4.select(f32x4.lt(x, k.f32(Infinity)), logOf(f, k, exponent, m, null), x)
  const real = v128.or(y, f32x4.lt(x, k.f32(0)))
  return f32x4.select(f32x4.eq(x, k.f32(0)), k.f32(-Infinity), real)
}

const log1p: Code = (f, k, argument) => {
  const x = f.let(argument)
  const one = k.f32(1)
  const u = f.let(f32x4.add(x, one))
  // u + error is exactly 1 + x (Knuth's two-sum).
  const part = f.let(f32x4.sub(u, one))
  const error = f32x4.add(f32x4.sub(one, f32x4.sub(u, part)), f32x4.sub(x, part))
  const { e, m } = splitExponent(f, k, u)
  const y = logOf(f, k, f.let(f32x4.convertI32x4S(e)), m, f32x4.div(error, u))
  const finite = f32x4.select(f32x4.lt(x, k.f32(Infinity)), y, x)
  const real = v128.or(finite, f32x4.lt(x, k.f32(-1)))
  const pole = f32x4.select(f32x4.eq(x, k.f32(-1)), k.f32(-Infinity), real)
  // Only −0 has lost its sign.
  return v128.or(pole, v128.and(x, k.f32(-0)))
}

/** x · P(x²) / Q(x²) with |x| ≤ limit and a result in [−1, 1]. */
function oddFraction(limit: number, p: readonly number[], q: readonly number[]): Code {
  return (f, k, argument) => {
    const x = f.let(f32x4.pmin(f32x4.pmax(argument, k.f32(-limit)), k.f32(limit)))
    const square = f.let(f32x4.mul(x, x))
    const y = f32x4.div(f32x4.mul(x, polynomial(k, square, p)), polynomial(k, square, q))
    return f32x4.pmin(f32x4.pmax(y, k.f32(-1)), k.f32(1))
  }
}

const tanh = oddFraction(
  9.02,
  [1, 0.1338268518447876, 0.0034974159207195044, 2.063355168502312e-5, 1.3378169683164742e-8],
  [1, 0.46716007590293884, 0.02588430419564247, 0.0003288380685262382, 7.788373181938368e-7],
)

// The pair of leading coefficients is chosen so that their ratio, 2/√π, is exact to 10⁻¹⁴.
const erf = oddFraction(
  3.93,
  [
    1.4807621240615845, 0.2496553361415863, 0.06918925791978836, 0.004931094590574503, 0.00037333735963329673,
    2.6881912162934896e-6,
  ],
  [
    1.3122912645339966, 0.6586811542510986, 0.14965207874774933, 0.019623538479208946, 0.0015225182287395,
    4.993930633645505e-5,
  ],
)

const sigmoid: Code = (f, k, argument) => {
  const one = k.f32(1)
  // e⁻ˣ is nothing beside 1 at the one bound, and 2¹²⁸ or ∞ at the other. In this order of operands NaN stays NaN.
  const x = f.let(f32x4.pmax(f32x4.pmin(f32x4.neg(argument), k.f32(89)), k.f32(-87)))
  const { r, bits } = reduceExp(f, k, x, 127)
  const y = f32x4.mul(polynomial(k, r, [1, 1, ...expTail]), i32x4.shl(bits, 23))
  return f32x4.div(one, f32x4.add(one, y))
}

// π/2 in two parts; the first has 33 bits, so that its product with an integer below 2²⁰ is exact.
const halfPiHigh = 1.5707963267341256
const halfPiLow = 6.077100506506192e-11
const reduceLimit = 1e6
/** 2/π in pieces of 24 bits: their products with a float32 are exact in float64. */
const twoOverPi = [0xa2f983, 0x6e4e44, 0x1529fc, 0x2757d1, 0xf534dd, 0xc0db62, 0x95993c, 0x439041].map(
  (bits, i) => bits * 2 ** (-24 * (i + 1)),
)

/** x = q · π/2 + r with |r| ≤ π/4: r as float32, q modulo 4 as the low bits of an integer. */
function reduceHalfPi(f: FunctionBuilder, k: Constants, x: V128): { r: V128; q: V128 } {
  const high = f.let(i32x4.shuffle(x, x, [2, 3, 2, 3]))
  const near = (half: V128): { bits: V128; r: V128 } => {
    const d = f.let(f64x2.promoteLowF32x4(half))
    const bits = f.let(f64x2.madd(d, k.f64(2 / Math.PI), k.f64(magic64)))
    const n = f.let(f64x2.sub(bits, k.f64(magic64)))
    const r = f64x2.nmadd(n, k.f64(halfPiLow), f64x2.nmadd(n, k.f64(halfPiHigh), d))
    return { bits, r: f32x4.demoteF64x2Zero(r) }
  }
  const [a, b] = [near(x), near(high)]
  const r = f.local.v128(i32x4.shuffle(a.r, b.r, [0, 1, 4, 5]))
  const q = f.local.v128(i32x4.shuffle(a.bits, b.bits, [0, 2, 4, 6]))
  const far = f.let(f32x4.gt(f32x4.abs(x), k.f32(reduceLimit)))
  f.if(v128.anyTrue(far), () => {
    // Rare: the constants stay here, and the halves take turns. Every piece's product is taken modulo 4, exactly.
    const left = f.local.v128(x)
    const slowR = f.local.v128()
    const slowQ = f.local.v128()
    f.for(0, 2, 1, () => {
      const d = f.let(f64x2.promoteLowF32x4(left))
      const rest = f.local.v128(f64x2.const(0))
      const count = f.local.v128(f64x2.const(0))
      for (const piece of twoOverPi) {
        const product = f.let(f64x2.mul(d, piece))
        const turns = f64x2.nearest(f64x2.mul(product, 0.25))
        const sum = f.let(f64x2.add(rest, f64x2.sub(product, f64x2.mul(turns, 4))))
        const whole = f.let(f64x2.nearest(sum))
        rest.set(f64x2.sub(sum, whole))
        count.set(f64x2.add(count, whole))
      }
      const bits = f.let(f64x2.add(count, magic64))
      slowR.set(i32x4.shuffle(slowR, f32x4.demoteF64x2Zero(f64x2.mul(rest, Math.PI / 2)), [2, 3, 4, 5]))
      slowQ.set(i32x4.shuffle(slowQ, bits, [2, 3, 4, 6]))
      left.set(i32x4.shuffle(left, left, [2, 3, 0, 1]))
    })
    r.set(f32x4.select(far, slowR, r))
    q.set(i32x4.select(far, slowQ, q))
  })
  return { r, q }
}

function sinOf(f: FunctionBuilder, k: Constants, x: V128, quarters: 0 | 1): V128 {
  const { r, q } = reduceHalfPi(f, k, x)
  const square = f.let(f32x4.mul(r, r))
  const sine = f32x4.madd(
    f32x4.mul(r, square),
    polynomial(k, square, [-0.16666655242443085, 0.008332190103828907, -0.0001951840822584927]),
    r,
  )
  const cosine = f32x4.madd(
    f32x4.mul(square, square),
    polynomial(k, square, [0.04166664555668831, -0.00138873013202101, 2.443066841806285e-5]),
    f32x4.nmadd(square, k.f32(0.5), k.f32(1)),
  )
  const n = f.let(quarters === 0 ? q : i32x4.add(q, k.i32(1)))
  const odd = i32x4.shrS(i32x4.shl(n, 31), 31)
  return v128.xor(f32x4.select(odd, cosine, sine), i32x4.shl(v128.and(n, k.i32(2)), 30))
}

const sin: Code = (f, k, argument) => {
  const x = f.let(argument)
  // −0 would lose its sign.
  return f32x4.select(f32x4.eq(x, k.f32(0)), x, sinOf(f, k, x, 0))
}

const cos: Code = (f, k, argument) => sinOf(f, k, f.let(argument), 1)

/** log2((1 + s) / (1 − s)) / s in powers of s². */
const log2Series = [
  2.885390081777849, 0.9617966941157586, 0.5770779416145485, 0.4122093320020278, 0.3199022901761491,
  0.2829507145038609,
]
/** 2ˣ for |x| ≤ ½. */
const exp2Series = [
  0.9999999999613784, 0.6931471807297975, 0.24022651201150105, 0.05550410350359761, 0.009618026848485827,
  0.0013333924028671568, 0.00015469422079252031, 1.5201818248943996e-5,
]

/** |x|ʸ for finite |x| > 0, in float64. */
function powMagnitude(f: FunctionBuilder, k: Constants, x: V128, y: V128): V128 {
  const tiny = f.let(f32x4.lt(x, k.f32(2 ** -126)))
  const { e, m } = splitExponent(f, k, f32x4.select(tiny, f32x4.mul(x, k.f32(2 ** 25)), x))
  const exponent = f.let(i32x4.sub(e, v128.and(tiny, k.i32(25))))
  const upper = (v: V128): V128 => i32x4.shuffle(v, v, [2, 3, 2, 3])
  const halves = [(v: V128): V128 => v, upper].map((half) => {
    const d = f.let(f64x2.promoteLowF32x4(half(m)))
    const s = f.let(f64x2.div(d, f64x2.add(d, k.f64(2))))
    const log2 = f64x2.madd(
      s,
      polynomial64(k, f.let(f64x2.mul(s, s)), log2Series),
      f64x2.convertLowI32x4S(half(exponent)),
    )
    const product = f64x2.mul(f64x2.promoteLowF32x4(half(y)), log2)
    // Beyond ±200 float32 has overflowed or vanished. In this order of operands NaN stays NaN.
    const w = f.let(f64x2.pmin(f64x2.pmax(product, k.f64(-200)), k.f64(200)))
    const bits = f.let(f64x2.add(w, k.f64(magic64 + 1023)))
    const r = f.let(f64x2.sub(w, f64x2.sub(bits, k.f64(magic64 + 1023))))
    return f32x4.demoteF64x2Zero(f64x2.mul(polynomial64(k, r, exp2Series), i64x2.shl(bits, 52)))
  })
  return i32x4.shuffle(halves[0] as V128, halves[1] as V128, [0, 1, 4, 5])
}

/** xʸ with the special cases of C's `pow`. */
export function pow(f: FunctionBuilder, k: Constants, base: V128, exponent: V128): V128 {
  const x = f.let(base)
  const y = f.let(exponent)
  const size = f.let(f32x4.abs(x))
  const infinity = k.f32(Infinity)
  const zero = k.f32(0)
  const one = k.f32(1)
  const general = powMagnitude(f, k, size, y)
  const extreme = v128.or(f32x4.eq(size, zero), f32x4.eq(size, infinity))
  const atExtreme = f32x4.select(f32x4.lt(y, zero), f32x4.div(one, size), size)
  const magnitude = f32x4.select(extreme, atExtreme, general)
  const whole = f.let(f32x4.eq(f32x4.floor(y), y))
  const half = f.let(f32x4.mul(y, k.f32(0.5)))
  const odd = v128.and(whole, f32x4.ne(f32x4.floor(half), half))
  const signed = v128.xor(magnitude, v128.and(odd, v128.and(x, k.f32(-0))))
  const root = v128.andnot(v128.and(f32x4.lt(x, zero), f32x4.lt(size, infinity)), whole)
  const nan = v128.or(root, v128.or(f32x4.ne(x, x), f32x4.ne(y, y)))
  const unit = v128.or(
    v128.or(f32x4.eq(x, one), f32x4.eq(y, zero)),
    v128.and(f32x4.eq(size, one), f32x4.eq(f32x4.abs(y), infinity)),
  )
  return f32x4.select(unit, one, v128.or(signed, nan))
}

const table = { exp, expNonPositive, expm1, log, log1p, tanh, sigmoid, erf, sin, cos } as const

/** Functions of one argument. */
export type MathName = keyof typeof table

/** Emits one function, for code that has hoisted its constants itself: see `hoistConstants`. */
export function mathCode(name: MathName, f: FunctionBuilder, k: Constants, x: V128): V128 {
  return table[name](f, k, x)
}

/**
 * The named functions for use in `f`, each from four float32 to four. Call it before the loops that use them: it
 * emits their constants. Their arguments are computed once.
 */
export function mathF32x4<N extends MathName>(
  f: FunctionBuilder,
  names: readonly N[],
): Readonly<Record<N, (x: V128) => V128>> {
  const k = hoistConstants(f, (trial, constants, x) => {
    for (const name of names) table[name](trial, constants, x)
  })
  return Object.fromEntries(names.map((name) => [name, (x: V128) => table[name](f, k, x)])) as Record<
    N,
    (x: V128) => V128
  >
}

/** eˣ with its constants in place: outside loops only; within, use `mathF32x4`. */
export const expF32x4 = (f: FunctionBuilder, x: V128): V128 => exp(f, inline, x)
