import seedrandom from 'seedrandom/seedrandom.js'
import { describe } from './checks.ts'
import { capturing } from './dispatch/capturing.ts'
import { ValueError } from './errors.ts'
import type { Expr } from './expr/expr.ts'
import * as e from './expr/expr.ts'
import { Printable } from './tensor/printing.ts'
import { refuseAsync } from './tensor/scope.ts'

/**
 * Randomness from one seed: seedrandom on the host (batches, shuffles), and for tensors the counter-based generator
 * Threefry-2x32 (Salmon, Moraes, Dror & Shaw 2011) as a scalar expression, so that every backend draws the same bits:
 * element i of draw number n is a pure function of (seed, n, i), whatever thread computes it.
 */

/** 13 rounds are the fewest the authors found to pass BigCrush. */
const ROUNDS = 13
const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24] as const
const PARITY = 0x1bd11bda

const rotl = (x: Expr, n: number): Expr => e.or(e.shl(x, n), e.shr(x, 32 - n))

/** Both output words of Threefry-2x32 for counter (c0, c1) and key (k0, k1), all int32. */
export function threefry(c0: Expr, c1: Expr, k0: Expr, k1: Expr, rounds = ROUNDS): [Expr, Expr] {
  const keys = [k0, k1, e.xor(e.xor(k0, k1), PARITY)]
  let x = e.add(c0, k0)
  let y = e.add(c1, k1)
  for (let r = 0; r < rounds; r++) {
    x = e.add(x, y)
    y = e.xor(rotl(y, ROTATIONS[r % 8]), x)
    if (r % 4 === 3) {
      const s = (r + 1) / 4
      x = e.add(x, keys[s % 3])
      y = e.add(y, e.add(keys[(s + 1) % 3], s))
    }
  }
  return [x, y]
}

/** Uniform in [0, 1) from a random word: its upper 24 bits, exact in float32. */
export const uniform01 = (word: Expr): Expr => e.mul(e.cast('float32', e.shr(word, 8)), 2 ** -24)

/** Uniform in (0, 1): never 0, for logarithms. */
export const uniformOpen = (word: Expr): Expr =>
  e.mul(e.add(e.cast('float32', e.shr(word, 8)), 0.5), 2 ** -24)

interface State {
  key: readonly [number, number]
  draw: number
  host: seedrandom.StatefulPRNG<seedrandom.State.Arc4>
}

const fresh = (seed: number | string): State => {
  if (typeof seed !== 'number' && typeof seed !== 'string')
    throw new ValueError(`seed: takes a number or a text, got ${describe(seed)}`)
  const host = seedrandom(String(seed), { state: true })
  return { key: [host.int32(), host.int32()], draw: 0, host }
}

/** Whose state is drawn from: everybody's, or that of the generator that runs. */
const everybody = { state: fresh((Math.random() * 2 ** 32) >>> 0) }
let from = everybody

/**
 * Makes everything random that follows a function of `seed`: tensors, dropout, host-side choices.
 *
 * @example
 * manualSeed(1)
 * const first = await randn([2]).toArray()
 * manualSeed(1)
 * String(await randn([2]).toArray()) === String(first) // → true
 */
export function manualSeed(seed: number | string): void {
  capturing()?.refuses('manualSeed', 'call it outside')
  from.state = fresh(seed)
}

/**
 * A generator beside the global one, with a seed of its own, as torch.Generator.
 *
 * @example
 * const generator = new RandomGenerator(7)
 * const noise = generator.run(() => randn([3])) // the global generator stays where it was
 */
export class RandomGenerator extends Printable {
  readonly #own: { state: State }

  constructor(seed: number | string) {
    super()
    this.#own = { state: fresh(seed) }
  }

  /** The generator as text: how many draws it has made. */
  toString(): string {
    const { key, draw } = this.#own.state
    return `RandomGenerator(key=[${key.join(', ')}], draws=${draw})`
  }

  /** Runs `fn`, which is synchronous: what it draws comes from this generator, and goes on where the last run ended. */
  run<T>(fn: () => T): T {
    const outer = from
    from = this.#own
    try {
      const result = fn()
      refuseAsync('RandomGenerator.run', result, 'what it draws later is not from here. Await outside')
      return result
    } finally {
      from = outer
    }
  }
}

/** The parameters of the next draw: key and draw number, as a random program expects them. @internal */
export function nextDraw(): readonly [number, number, number] {
  const take = (source: object | null): readonly [number, number, number] => {
    const { state } = (source ?? from) as typeof from
    return [state.key[0], state.key[1], state.draw++ | 0]
  }
  const draw = take(from)
  return capturing()?.draw(draw, from, take) ?? draw
}

/** Whose random numbers are drawn now. @internal */
export const generatorNow = (): object => from

/**
 * Draws a number from [0, 1) on the host, from the stream that `manualSeed` sets.
 *
 * @example
 * hostRandom() < 1 // → true
 */
export function hostRandom(): number {
  capturing()?.refuses('drawing a number on the host', 'draw it outside, and pass it as an argument')
  return from.state.host.double()
}

/**
 * Draws a whole number from 0 … n − 1 on the host, from the stream that `manualSeed` sets.
 *
 * @example
 * hostRandint(1) // → 0
 */
export const hostRandint = (n: number): number => Math.floor(hostRandom() * n)

/** What `setRngState` needs to continue exactly here. Plain data: it can be written to a file. */
export interface RngState {
  /** What the seed became. */
  key: readonly [number, number]
  /** How many draws there were. */
  draw: number
  /** The state of the numbers that the host draws. */
  host: unknown
}

/**
 * The state of the random numbers, to continue exactly here with `setRngState`.
 *
 * @example
 * const saved = getRngState()
 * const first = hostRandom()
 * setRngState(saved)
 * hostRandom() === first // → true
 */
export const getRngState = (): RngState => {
  const { key, draw, host } = from.state
  return { key, draw, host: host.state() }
}

const isInt32 = (value: unknown): value is number => typeof value === 'number' && value === (value | 0)
const isByte = (value: unknown): value is number => isInt32(value) && value >= 0 && value < 256

/** What seedrandom's generator (RC4) holds: two places, and each byte once. */
function isHost(value: unknown): value is seedrandom.State.Arc4 {
  const { i, j, S: bytes } = Object(value) as { i?: unknown; j?: unknown; S?: unknown }
  return (
    isByte(i) &&
    isByte(j) &&
    Array.isArray(bytes) &&
    bytes.length === 256 &&
    new Set(bytes.filter(isByte)).size === 256
  )
}

/**
 * Makes all that is random go on as it did after `getRngState` had returned `saved`.
 *
 * @throws ValueError for what is no such state; nothing has changed then.
 * @example
 * const saved = getRngState()
 * const first = hostRandom()
 * setRngState(saved)
 * hostRandom() === first // → true
 */
export function setRngState(saved: RngState): void {
  const { key, draw, host } = Object(saved) as RngState
  if (
    !Array.isArray(key) ||
    key.length !== 2 ||
    !key.every(isInt32) ||
    !Number.isSafeInteger(draw) ||
    !isHost(host)
  )
    throw new ValueError('setRngState: takes what getRngState returned, { key, draw, host }, unchanged')
  from.state = {
    key: [key[0], key[1]],
    draw,
    host: seedrandom('', { state: host }) as State['host'],
  }
}
