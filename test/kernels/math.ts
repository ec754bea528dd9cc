/** Elementary functions in float64, and the floats on which engines compute them. */

import type { TypedArray } from '@tilegrad/core'
import { random } from './random.ts'

export const awkward = [
  ...[0, 1, Infinity, 88.72283, 88.72284, 87.33654, 87.33655, 103.97, 1.1754944e-38, 3.4028235e38].flatMap(
    (x) => [x, -x],
  ),
  ...[9.02, 3.93, 1e6, 0.5, 710, 20].flatMap((x) => [x, -x]),
  ...[NaN, 1000001, 16777216, 0.99999994, 1.0000001, 12800, 12801, Math.PI / 2, Math.PI, 2 * Math.PI],
]

/** `n` floats of every size and sign, with subnormals only if asked for, and more of those that matter. */
export function samples(n: number, { subnormals }: { subnormals: boolean }): Float32Array {
  const rnd = random(11)
  const words = new Int32Array(n)
  const out = new Float32Array(words.buffer)
  const [most, step] = [0.7 * n, (15339 * 400_000) / n]
  for (let i = 0; i < most; i++) {
    words[i] = i * step + Math.floor(rnd() * step)
    if (!subnormals && out[i] !== 0 && Math.abs(out[i]) < 2 ** -126) out[i] = 0
  }
  for (let i = most; i < n; i++) out[i] = (rnd() - 0.5) * (i % 2 === 0 ? 8 : 200)
  out.set(subnormals ? [...awkward, 1.4e-45, -1.4e-45] : awkward, most)
  return out
}

/** Exponents of every size for bases, of which most have a finite power. */
export function exponentsFor(bases: Float32Array, { subnormals }: { subnormals: boolean }): Float32Array {
  const rnd = random(12)
  return bases.map((base, i) => {
    const kind = i % 3
    if (kind === 0) return bases[Math.floor(rnd() * bases.length)]
    // So that the result is finite, mostly.
    if (kind === 1) {
      const y = ((rnd() - 0.5) * 240) / Math.log2(Math.abs(base))
      return !subnormals && Math.abs(y) < 2 ** -126 ? 0 : y
    }
    return Math.round((rnd() - 0.5) * 40) / (rnd() < 0.3 ? 2 : 1)
  })
}

/** Bases and exponents for which C names the power, in a number divisible by 4. */
export function specialPowers(bases: readonly number[]): [bases: Float32Array, exponents: Float32Array] {
  const list = [...bases, 2, -2, 3, -3, 2.5, -2.5, 16777215, -16777217, 1e10, -1e10]
  const pairs = list.flatMap((x) => list.map((y) => [x, y] as const))
  while (pairs.length % 4 !== 0) pairs.push([1, 1])
  return [Float32Array.from(pairs, (p) => p[0]), Float32Array.from(pairs, (p) => p[1])]
}

/** The floats nearest to k · π/2, for k of every size: what is left of them is tiny. */
export const nearQuarters = Float32Array.from(
  { length: 4096 },
  (_, i) => (i < 2048 ? i : Math.round(2 ** (i / 34))) * (Math.PI / 2),
)

/** 1 − erf(x) for x ≥ 1, by its continued fraction. */
export function erfc(x: number): number {
  let fraction = x
  for (let n = 60; n > 0; n--) fraction = x + n / 2 / fraction
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction
}

/** By its series, and the continued fraction of erfc. */
export function erf(x: number): number {
  const a = Math.abs(x)
  if (Number.isNaN(x)) return x
  if (a > 6) return Math.sign(x)
  if (a >= 3) return Math.sign(x) * (1 - erfc(a))
  let term = x
  let sum = x
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1)
    sum += term
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
}

export const sigmoid = (x: number): number =>
  x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x))

export const power = (x: number, y: number): number =>
  x === 1 || (x === -1 && Math.abs(y) === Infinity) ? 1 : x ** y

const bits = new Float32Array(1)
const words = new Int32Array(bits.buffer)

/** The distance of two neighbours among the float32 at x. */
export function spacing(x: number): number {
  bits[0] = Math.abs(x)
  return 2 ** (Math.max((words[0] >>> 23) - 127, -126) - 23)
}

/**
 * The largest error in ulp; an error at once for anything that is not finite or has the wrong sign. `flush`: results
 * below 2⁻¹²⁶ may be 0.
 */
export function worst(
  got: TypedArray,
  want: (i: number) => number,
  name: (i: number) => string,
  { flush = false, used = (_: number): boolean => true } = {},
): number {
  let most = 0
  for (let i = 0; i < got.length; i++) {
    if (!used(i)) continue
    const [y, exact] = [got[i], want(i)]
    const rounded = Math.fround(exact)
    if (Object.is(y, rounded) || (flush && y === 0 && Math.abs(exact) < 2 ** -126)) continue
    const error = Number.isFinite(rounded) && rounded !== 0 ? Math.abs(y - exact) / spacing(exact) : Infinity
    if (!(error <= 100)) throw new Error(`${name(i)} is ${y}; expected ${rounded}`)
    if (error > most) most = error
  }
  return most
}
