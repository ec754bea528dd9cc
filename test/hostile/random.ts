/** Random choices from one seed (mulberry32), so that a failure can be had again. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** In [0, 1). */
  real(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let x = this.#state
    x = Math.imul(x ^ (x >>> 15), x | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number in [0, n). */
  below(n: number): number {
    return Math.floor(this.real() * n)
  }

  one<T>(of: readonly T[]): T {
    return of[this.below(of.length)]
  }

  chance(p: number): boolean {
    return this.real() < p
  }
}

/** Numbers that programs tend to mishandle. */
export const hostileNumbers = [
  0,
  -0,
  1,
  -1,
  0.5,
  -1.5,
  1e-320,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 32 + 1,
  2 ** 53,
  2 ** 53 + 2,
  2 ** 63,
  1e100,
  1e308,
] as const

/** Values that programs tend to mishandle, all of JSON. */
export const hostileValues = (random: Random): unknown => {
  const nested = (open: string, close: string, depth: number): unknown =>
    JSON.parse(`${open.repeat(depth)}${close.repeat(depth)}`)
  return random.one<() => unknown>([
    () => random.one(hostileNumbers),
    () => null,
    () => true,
    () => '',
    () => random.one(['__proto__', 'constructor', 'toString', 'F32', 'gelu', '\u0000', '\ud800', 'NaN', '1']),
    () => 'x'.repeat(random.below(5000)),
    () => [],
    () => ({}),
    () => nested('[', ']', 1 + random.below(1000)),
    () => ({ toString: 1, length: -1 }),
    () => Array.from({ length: random.below(200) }, () => random.one(hostileNumbers)),
    () => JSON.parse('{"__proto__": {"polluted": true}}'),
  ])()
}
