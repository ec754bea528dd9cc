/**
 * Elementary functions of f32 in WGSL. WGSL's own may be off by much (its tanh and sin are only bounded absolutely, and
 * drivers differ), and may assume that there is no NaN and no infinity; these give nearly the same everywhere.
 *
 * Fits and reductions are those of the CPU backend's `math.ts`. Nothing here relies on a fused multiply-add, which
 * WGSL leaves to the driver, nor on sums that an optimiser might reorder: where a part of a number must be exact, it
 * is cut off by a mask of bits (`tg_high`: the upper 12 bits of the significand, so that products of two are exact).
 * (SPIRV-Tools does reorder: x + 1 − 1 becomes x.)
 *
 * Largest errors in units of the last place, found on SwiftShader by `math.test.ts`: exp 1.2, expm1 1.6, log and
 * log1p 0.9, tanh 6, sigmoid 2.2, erf 7.5, sin and cos 2.4, pow 2.8. Results below 2⁻¹²⁶ may be 0.
 */

interface Source<Name extends string> {
  readonly code: string
  /** Functions it calls. */
  readonly needs?: readonly Name[]
}
/** Functions by name, which call only each other. */
const library = <Name extends string>(functions: { readonly [N in Name]: Source<NoInfer<Name>> }) => functions

/** c[0] + c[1]·x + c[2]·x² + … by Horner's rule. */
const polynomial = (x: string, c: readonly number[]): string =>
  c.slice(0, -1).reduceRight((sum, a) => `(${sum} * ${x} + ${f32(a)})`, f32(c.at(-1) as number))

const f32 = (x: number): string => (x < 0 ? `(${x}f)` : `${x}f`)

const ln2High = 0.693145751953125 // 16 bits: its product with an exponent is exact
const ln2Low = 1.4286068203094173e-6

/** (eˣ − 1 − x) / x² for |x| ≤ ½ ln 2. */
const expTail = [
  0.4999999403953552, 0.1666652113199234, 0.04166828840970993, 0.008368703536689281, 0.0013818938750773668,
]

/** (log(1 + x) − x + ½x²) / x³ for 1 + x in [√½, √2). */
const logTail = [
  0.3333333134651184, -0.2500081956386566, 0.2000124156475067, -0.166234090924263, 0.14201579988002777,
  -0.13159610331058502, 0.12762217223644257, -0.07636439055204391,
]

/** x · P(x²) / Q(x²) with |x| ≤ limit and a result in [−1, 1]. */
const oddFraction = (name: string, limit: number, p: readonly number[], q: readonly number[]) => ({
  code: `fn ${name}(a: f32) -> f32 {
  let x = clamp(a, ${f32(-limit)}, ${f32(limit)});
  let s = x * x;
  let y = clamp(x * ${polynomial('s', p)} / ${polynomial('s', q)}, -1.0, 1.0);
  return select(y, a, tg_isnan(a));
}`,
  needs: ['tg_isnan'] as const,
})

/** π/2 in parts of 11 bits, so that their products with integers of 13 bits are exact; the last has all its bits. */
function halfPiParts(): number[] {
  const parts = []
  let rest = Math.PI / 2
  for (const step of [2 ** -10, 2 ** -21, 2 ** -32, 2 ** -43]) {
    const part = Math.floor(rest / step) * step
    parts.push(part)
    rest -= part
  }
  // What float64 has left of π/2, and what it has not.
  return [...parts, rest + 6.123233995736766e-17]
}
const reduceLimit = 12800

/** `quarters`: sin(x + quarters · π/2). */
const sine = (name: string, quarters: 0 | 1) => ({
  code: `fn ${name}(x: f32) -> f32 {
  let t = tg_half_pi(x);
  let n = t.n + ${quarters}u;
  let s = t.r * t.r;
  let sine = t.r + t.r * s * ${polynomial('s', [-0.16666655242443085, 0.008332190103828907, -0.0001951840822584927])};
  let cosine = 1.0 - 0.5 * s + s * s * ${polynomial('s', [0.04166664555668831, -0.00138873013202101, 2.443066841806285e-5])};
  let y = bitcast<f32>(bitcast<u32>(select(sine, cosine, (n & 1u) == 1u)) ^ ((n & 2u) << 30u));
  ${quarters === 0 ? 'let z = select(y, x, (bitcast<u32>(x) << 1u) == 0u);' : 'let z = y;'}
  return select(z, tg_bits(0x7fc00000u), (bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u);
}`,
  needs: ['tg_half_pi', 'tg_bits'] as const,
})

const sources = library({
  tg_isnan: { code: 'fn tg_isnan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }' },
  // Two numbers of 16 bits in a word. Stored is the nearest one, of two that are equally near the even one: WGSL's own
  // packing may round as it likes, and leaves what it makes of numbers beyond the largest to the driver.
  tg_load_f16: { code: 'fn tg_load_f16(w: u32) -> vec2f { return unpack2x16float(w); }' },
  tg_store_f16: {
    code: `fn tg_round_f16(x: f32) -> u32 {
  let b = bitcast<u32>(x);
  let size = b & 0x7fffffffu;
  // Below 2⁻¹⁴ the last bit is worth 2⁻²⁴, as that of numbers from 1/2 to 1: adding 1/2 rounds.
  let tiny = bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000u;
  let usual = (size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u;
  let finite = select(usual, tiny, size < 0x38800000u);
  let large = select(0x7c00u, 0x7e00u, size > 0x7f800000u);
  return select(large, finite, size < 0x477ff000u) | ((b >> 16u) & 0x8000u);
}
fn tg_store_f16(x: vec2f) -> u32 { return tg_round_f16(x[0]) | (tg_round_f16(x[1]) << 16u); }`,
  },
  tg_load_bf16: {
    code: 'fn tg_load_bf16(w: u32) -> vec2f { return vec2f(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u)); }',
  },
  tg_store_bf16: {
    code: `fn tg_round_bf16(x: f32) -> u32 {
  let b = bitcast<u32>(x);
  let even = (b >> 16u) & 1u;
  // Rounding might make infinity of what is no number.
  return select((b + 0x7fffu + even) >> 16u, 0x7fc0u, (b & 0x7fffffffu) > 0x7f800000u);
}
fn tg_store_bf16(x: vec2f) -> u32 { return tg_round_bf16(x[0]) | (tg_round_bf16(x[1]) << 16u); }`,
  },
  // Not constants: WGSL refuses constant expressions that are infinite or NaN.
  tg_bits: { code: 'fn tg_bits(b: u32) -> f32 { var v = b; return bitcast<f32>(v); }' },
  tg_max: {
    code: 'fn tg_max(a: f32, b: f32) -> f32 { return select(select(max(a, b), b, tg_isnan(b)), a, tg_isnan(a)); }',
    needs: ['tg_isnan'],
  },
  tg_min: {
    code: 'fn tg_min(a: f32, b: f32) -> f32 { return select(select(min(a, b), b, tg_isnan(b)), a, tg_isnan(a)); }',
    needs: ['tg_isnan'],
  },
  tg_high: { code: 'fn tg_high(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }' },
  // 2ⁿ for −126 ≤ n ≤ 127.
  tg_exp2i: { code: 'fn tg_exp2i(n: i32) -> f32 { return bitcast<f32>((n + 127) << 23u); }' },

  // The integer next to x, |x| < 2²². Read from the bits of a sum, which no optimiser sees through.
  tg_nearest: {
    code: 'fn tg_nearest(x: f32) -> i32 { return bitcast<i32>(x + 12582912.0) - 0x4b400000; }',
  },
  // x = n ln 2 + r.
  tg_exp_parts: {
    code: `struct ExpParts { n: i32, r: f32 }
fn tg_exp_parts(x: f32) -> ExpParts {
  let n = tg_nearest(x * 1.44269504f);
  let f = f32(n);
  return ExpParts(n, (x - f * ${f32(ln2High)}) - f * ${f32(ln2Low)});
}`,
    needs: ['tg_nearest'],
  },
  tg_exp: {
    code: `fn tg_exp(x: f32) -> f32 {
  let t = tg_exp_parts(clamp(x, -88.0, 89.0));
  // n is added to the exponent as an integer: 2ⁿ itself would overflow for n = 128, where eˣ may not.
  let y = bitcast<f32>(bitcast<i32>(${polynomial('t.r', [1, 1, ...expTail])}) + (t.n << 23u));
  let z = select(select(y, 0.0, x < -87.33654), tg_bits(0x7f800000u), x > 88.72283);
  return select(z, x, tg_isnan(x));
}`,
    needs: ['tg_exp_parts', 'tg_bits', 'tg_isnan'],
  },
  tg_expm1: {
    code: `fn tg_expm1(x: f32) -> f32 {
  let t = tg_exp_parts(clamp(x, -20.0, 89.0));
  let y = t.r + t.r * t.r * ${polynomial('t.r', expTail)};
  // Half of 2ⁿ · (y + 1) − 1, as 2¹²⁸ is no float.
  let scale = bitcast<f32>((t.n + 126) << 23u);
  let h = scale * y + (scale - 0.5);
  return select(select(h + h, tg_bits(0x7f800000u), x > 88.72283), x, abs(x) < 0x1p-25f || tg_isnan(x));
}`,
    needs: ['tg_exp_parts', 'tg_bits', 'tg_isnan'],
  },
  // x = 2ᵉ · (1 + m) with 1 + m in [√½, √2), for x > 0 and finite. Subnormals are read as integers: drivers may take
  // them for 0.
  tg_log_parts: {
    code: `struct LogParts { e: f32, m: f32 }
fn tg_log_parts(x: f32) -> LogParts {
  let b = bitcast<u32>(x);
  let tiny = b < 0x00800000u;
  let c = select(b, bitcast<u32>(f32(b)), tiny) - 0x3f3504f3u;
  let e = f32((bitcast<i32>(c) >> 23u) - select(0, 149, tiny));
  return LogParts(e, bitcast<f32>((c & 0x7fffffu) + 0x3f3504f3u) - 1.0);
}`,
  },
  // e ln 2 + log(1 + m) + low.
  tg_log_sum: {
    code: `fn tg_log_sum(t: LogParts, low: f32) -> f32 {
  let s = t.m * t.m;
  let tail = t.e * ${f32(ln2Low)} + low + s * t.m * ${polynomial('t.m', logTail)};
  return t.e * ${f32(ln2High)} + (t.m + (tail - 0.5 * s));
}`,
    needs: ['tg_log_parts'],
  },
  tg_log: {
    code: `fn tg_log(x: f32) -> f32 {
  let b = bitcast<u32>(x);
  let y = tg_log_sum(tg_log_parts(x), 0.0);
  let z = select(y, tg_bits(select(0x7fc00000u, 0x7f800000u, b == 0x7f800000u)), b >= 0x7f800000u);
  return select(z, tg_bits(0xff800000u), (b << 1u) == 0u);
}`,
    needs: ['tg_log_sum', 'tg_bits'],
  },
  tg_log1p: {
    code: `fn tg_log1p(x: f32) -> f32 {
  let u = x + 1.0;
  var t = tg_log_parts(u);
  var low = 0.0;
  if (t.e == 0.0) {
    t.m = x;
  } else {
    // u + error is exactly 1 + x.
    let high = tg_high(u);
    low = ((x - (high - 1.0)) - (u - high)) / u;
  }
  let y = tg_log_sum(t, low);
  let b = bitcast<u32>(x);
  let z = select(y, tg_bits(select(0x7fc00000u, 0x7f800000u, b == 0x7f800000u)), (b & 0x7fffffffu) >= 0x7f800000u || x < -1.0);
  return select(select(z, tg_bits(0xff800000u), x == -1.0), x, abs(x) < 0x1p-25f);
}`,
    needs: ['tg_log_sum', 'tg_high', 'tg_bits'],
  },
  tg_tanh: oddFraction(
    'tg_tanh',
    9.02,
    [1, 0.1338268518447876, 0.0034974159207195044, 2.063355168502312e-5, 1.3378169683164742e-8],
    [1, 0.46716007590293884, 0.02588430419564247, 0.0003288380685262382, 7.788373181938368e-7],
  ),
  tg_erf: oddFraction(
    'tg_erf',
    3.93,
    [
      1.4807621240615845, 0.2496553361415863, 0.06918925791978836, 0.004931094590574503,
      0.00037333735963329673, 2.6881912162934896e-6,
    ],
    [
      1.3122912645339966, 0.6586811542510986, 0.14965207874774933, 0.019623538479208946, 0.0015225182287395,
      4.993930633645505e-5,
    ],
  ),
  tg_sigmoid: {
    code: `fn tg_sigmoid(x: f32) -> f32 {
  let t = tg_exp_parts(clamp(-x, -87.0, 87.5));
  let y = 1.0 / (1.0 + ${polynomial('t.r', [1, 1, ...expTail])} * tg_exp2i(t.n));
  return select(select(y, 0.0, x < -87.5), x, tg_isnan(x));
}`,
    needs: ['tg_exp_parts', 'tg_exp2i', 'tg_isnan'],
  },

  // x = n · π/2 + r with |r| ≤ π/4, for finite x: up to 12,800 in steps that are exact as long as they cancel (Cody &
  // Waite 1980); beyond, the fraction of x · 2/π from 96 bits of 2/π (Payne & Hanek 1983).
  tg_half_pi: {
    code: `struct HalfPi { n: u32, r: f32 }
fn tg_half_pi(x: f32) -> HalfPi {
  if (abs(x) > ${reduceLimit}.0) { return tg_half_pi_far(x); }
  let n = tg_nearest(x * ${f32(2 / Math.PI)});
  let f = f32(n);
  var r = x;
  ${halfPiParts()
    .map((part) => `r = r - f * ${f32(part)};`)
    .join(' ')}
  return HalfPi(bitcast<u32>(n), r);
}`,
    needs: ['tg_nearest', 'tg_half_pi_far'],
  },
  tg_half_pi_far: {
    code: `fn tg_two_over_pi(i: u32) -> u32 {
  // 2/π in words, after 2 words of zeros.
  switch (i) {
    case 2u: { return 0xa2f9836eu; }
    case 3u: { return 0x4e441529u; }
    case 4u: { return 0xfc2757d1u; }
    case 5u: { return 0xf534ddc0u; }
    case 6u: { return 0xdb629599u; }
    case 7u: { return 0x3c439041u; }
    case 8u: { return 0xfe5163abu; }
    default: { return 0u; }
  }
}
fn tg_half_pi_far(x: f32) -> HalfPi {
  let b = bitcast<u32>(x);
  let m = (b & 0x7fffffu) | 0x800000u;
  // x = m · 2ᵉ. Bits of 2/π worth 4 or more after the product are dropped: whole turns.
  let first = ((b >> 23u) & 0xffu) - 150u + 62u;
  let at = first >> 5u;
  let shift = first & 31u;
  var w: array<u32, 3>;
  for (var i = 0u; i < 3u; i++) {
    w[i] = tg_two_over_pi(at + i) << shift;
    if (shift > 0u) { w[i] |= tg_two_over_pi(at + i + 1u) >> (32u - shift); }
  }
  let low = tg_wide(m, w[2]);
  let mid = tg_wide(m, w[1]);
  let sum = mid.y + low.x;
  // Quarter turns with 2 bits before the point and 62 after it.
  var hi = m * w[0] + mid.x + select(0u, 1u, sum < low.x);
  var lo = sum;
  let n = (hi >> 30u) + ((hi >> 29u) & 1u);
  hi = hi - (n << 30u);
  let negative = (hi >> 31u) == 1u;
  if (negative) {
    lo = ~lo + 1u;
    hi = ~hi + select(0u, 1u, lo == 0u);
  }
  // To 32 significant bits.
  var scale = 0x1.921fb6p-30f;
  if (hi == 0u) {
    hi = lo;
    lo = 0u;
    scale *= 0x1p-32f;
  }
  let zeros = countLeadingZeros(hi) & 31u;
  if (zeros > 0u) { hi = (hi << zeros) | (lo >> (32u - zeros)); }
  let r = f32(hi) * (scale * tg_exp2i(-i32(zeros)));
  let back = (b >> 31u) == 1u;
  return HalfPi(select(n, 0u - n, back), select(r, -r, negative != back));
}`,
    needs: ['tg_wide', 'tg_exp2i'],
  },
  // a · b in two words, the upper one first.
  tg_wide: {
    code: `fn tg_wide(a: u32, b: u32) -> vec2<u32> {
  let a0 = a & 0xffffu; let a1 = a >> 16u;
  let b0 = b & 0xffffu; let b1 = b >> 16u;
  let low = a0 * b0;
  let mid = a1 * b0 + (low >> 16u);
  let top = a0 * b1 + (mid & 0xffffu);
  return vec2(a1 * b1 + (mid >> 16u) + (top >> 16u), (top << 16u) | (low & 0xffffu));
}`,
  },
  tg_sin: sine('tg_sin', 0),
  tg_cos: sine('tg_cos', 1),

  // xʸ for finite x > 0: 2 to the power of y · log2(x), both carried in two parts.
  tg_pow_of_size: {
    code: `fn tg_pow_of_size(x: f32, y: f32) -> f32 {
  let t = tg_log_parts(x);
  // log(1 + m) = 2 artanh(s) with s = m / (2 + m).
  let d = 2.0 + t.m;
  let sh = tg_high(t.m / d);
  let mh = tg_high(t.m);
  let sl = (((t.m - 2.0 * sh) - sh * mh) - sh * (t.m - mh)) / d;
  let s = sh + sl;
  let q = s * s;
  // 2 / ln 2 in two parts.
  let a = sh * 2.884765625f;
  let tail = sl * 2.88539008f + sh * 0.00062445617700182f
    + s * q * ${polynomial('q', [0.9617966939259756, 0.5770780163555854, 0.4121985831111324, 0.3205988979753252, 0.2623081892525388])};
  let high = tg_high(t.e + a);
  let low = ((t.e - high) + a) + tail;
  let yh = tg_high(y);
  let p = yh * high;
  let rest = (y - yh) * high + y * low;
  let w = p + rest;
  let n = tg_nearest(clamp(w, -200.0, 200.0));
  let r = (p - f32(n)) + rest;
  let z = ${polynomial('r', [1, Math.LN2, 0.2402265069591007, 0.05550410866482158, 0.009618129107628477, 0.0013333558146428443, 0.0001540353039338161])};
  let half = n >> 1u;
  let v = (z * tg_exp2i(half)) * tg_exp2i(n - half);
  return select(select(v, 0.0, w < -160.0), tg_bits(0x7f800000u), w > 130.0);
}`,
    needs: ['tg_log_parts', 'tg_high', 'tg_nearest', 'tg_exp2i', 'tg_bits'],
  },
  // With the special cases of C's pow.
  tg_pow: {
    code: `fn tg_pow(x: f32, y: f32) -> f32 {
  let infinity = 0x7f800000u;
  let xb = bitcast<u32>(x);
  let size = xb & 0x7fffffffu;
  let yb = bitcast<u32>(y);
  let extent = yb & 0x7fffffffu;
  if (xb == 0x3f800000u || extent == 0u) { return 1.0; }
  if (size > infinity || extent > infinity) { return tg_bits(0x7fc00000u); }
  let negative = (xb >> 31u) == 1u;
  let falls = (yb >> 31u) == 1u;
  if (extent == infinity) {
    if (size == 0x3f800000u) { return 1.0; }
    return tg_bits(select(0u, infinity, (size > 0x3f800000u) != falls));
  }
  let whole = extent >= 0x4b800000u || floor(y) == y;
  let odd = extent < 0x4b800000u && whole && (i32(y) & 1) == 1;
  let sign = select(0u, 0x80000000u, negative && odd);
  if (size == 0u || size == infinity) {
    return tg_bits(sign | select(0u, infinity, (size == 0u) == falls));
  }
  if (negative && !whole) { return tg_bits(0x7fc00000u); }
  return bitcast<f32>(bitcast<u32>(tg_pow_of_size(bitcast<f32>(size), y)) | sign);
}`,
    needs: ['tg_pow_of_size', 'tg_bits'],
  },
  tg_ipow: {
    code: `fn tg_ipow(a: i32, b: i32) -> i32 {
  if (b < 0) {
    if (a == -1) { return select(1, -1, (b & 1) == 1); }
    return select(0, 1, a == 1);
  }
  var y = 1;
  var base = a;
  for (var n = u32(b); n > 0u; n >>= 1u) {
    if ((n & 1u) == 1u) { y *= base; }
    base *= base;
  }
  return y;
}`,
  },
  // Truncates and saturates; NaN becomes 0.
  tg_to_i32: {
    code: `fn tg_to_i32(x: f32) -> i32 {
  let y = select(i32(clamp(x, -2147483648.0, 2147483520.0)), 2147483647, x >= 2147483648.0);
  return select(y, 0, tg_isnan(x));
}`,
    needs: ['tg_isnan'],
  },
})

/** The functions that kernels may call. */
export type MathName = keyof typeof sources

/** The code of functions and of all they call, each once. */
export function mathCode(names: Iterable<MathName>): string {
  const out = new Map<string, string>()
  const add = (name: MathName): void => {
    if (out.has(name)) return
    const { code, needs } = sources[name]
    needs?.forEach(add)
    out.set(name, code)
  }
  for (const name of names) add(name)
  return [...out.values()].join('\n')
}

/**
 * Code whose conversions to and from float16 are the GPU's own, which take one instruction instead of ten. For GPUs that round
 * to the nearest even number and to infinity: WGSL lets them choose.
 */
export function withOwnHalves(code: string): string {
  const { tg_load_f16, tg_store_f16 } = sources
  if (!code.includes(tg_load_f16.code) && !code.includes(tg_store_f16.code)) return code
  const own = code
    .replace(tg_load_f16.code, 'fn tg_load_f16(w: u32) -> vec2f { return vec2f(bitcast<vec2<f16>>(w)); }')
    .replace(tg_store_f16.code, 'fn tg_store_f16(x: vec2f) -> u32 { return bitcast<u32>(vec2<f16>(x)); }')
  return own.includes('enable f16;') ? own : `enable f16;\n${own}`
}
