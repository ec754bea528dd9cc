/**
 * Tensors in tests: a matcher for vitest and Jest, and a function for every other runner. Neither runner is needed.
 *
 * @packageDocumentation
 */
import {
  type ArrayOperand,
  type DType,
  describeValue,
  expectOptions,
  flatOf,
  type Nested,
  Tensor,
  ValueError,
} from '@tilegrad/core'

/** What a tensor is compared with: another one, or its elements as nested or typed arrays. */
export type Expected = Tensor | ArrayOperand | number | boolean

/** How near is near enough: |received − expected| ≤ atol + rtol · |expected|. */
export interface CloseOptions {
  /**
   * Allowed difference relative to the expected value. Default, as `torch.testing.assert_close`: 1.3e-6 for float32,
   * 1e-7 for float64, 1e-3 for float16, 1.6e-2 for bfloat16, 0 for int32 and bool; the larger of two dtypes.
   */
  rtol?: number
  /** Allowed absolute difference. Default: 1e-5 for floats, 1e-7 for float64, 0 for int32 and bool. */
  atol?: number
  /** NaN equals NaN. Default: false. */
  equalNan?: boolean
  /** Tensors must be of one dtype. Default: true. Arrays take any. */
  checkDtype?: boolean
}

/** What a matcher gives back to vitest or Jest. */
export interface MatcherResult {
  /** Says whether the tensors match. */
  readonly pass: boolean
  /** Says what differs, for people. */
  message(): string
}

/** The matchers, as assertions have them. */
export interface TensorMatchers<R = void> {
  /**
   * Passes where the tensor has the shape and dtype of what is expected, and every element is near enough. Await it
   * where the tensor is on a device that cannot be read at once, such as a GPU.
   *
   * @example
   * import { tensorMatchers } from 'tilegrad/matchers'
   *
   * const matches = tensorMatchers.toBeCloseToTensor(tensor([0.1, 0.2]), [0.1, 0.2])
   * 'pass' in matches && matches.pass // → true
   */
  toBeCloseToTensor(expected: Expected, options?: CloseOptions): R | Promise<void>
}

declare global {
  // vitest and Jest both read this namespace; neither has to be installed for it.
  namespace jest {
    // The parameters must be those of its other declarations.
    // biome-ignore lint/complexity/noBannedTypes: as there
    interface Matchers<R, T = {}> extends TensorMatchers<R> {}
  }
}

const tolerances: Readonly<Record<DType, readonly [rtol: number, atol: number]>> = {
  bfloat16: [1.6e-2, 1e-5],
  float16: [1e-3, 1e-5],
  float32: [1.3e-6, 1e-5],
  float64: [1e-7, 1e-7],
  int32: [0, 0],
  bool: [0, 0],
}

/** A tensor or nested arrays, as far as comparing needs them. */
interface Side {
  readonly shape: readonly number[]
  /** Null for arrays of numbers. */
  readonly dtype: DType | null
  readonly values: ArrayLike<number>
}

function sideOf(what: string, x: unknown): Side | Promise<Side> {
  if (x instanceof Tensor) {
    const { shape, dtype } = x
    if (x.backend.readSync) return { shape, dtype, values: x.dataSync() }
    return x.data().then((values) => ({ shape, dtype, values }))
  }
  if (ArrayBuffer.isView(x) && !(x instanceof DataView)) {
    const values = x as Float32Array
    return { shape: [values.length], dtype: null, values }
  }
  if (typeof x !== 'number' && typeof x !== 'boolean' && !Array.isArray(x))
    throw new ValueError(
      `toBeCloseToTensor: ${what} must be a tensor or numbers in arrays, got ${describeValue(x)}`,
    )
  const { shape, list } = flatOf('toBeCloseToTensor', x as Nested)
  return { shape, dtype: null, values: list.map(Number) }
}

/** The index of an element, from its place in row-major order. */
function indexOf(at: number, shape: readonly number[]): string {
  const index: number[] = []
  for (const n of [...shape].reverse()) {
    index.unshift(at % n)
    at = Math.floor(at / n)
  }
  return `[${index.join(', ')}]`
}

const show = (shape: readonly number[]): string => `[${shape.join(', ')}]`

/** What is wrong with `received`; null if nothing is. */
function difference(received: Side, expected: Side, options: CloseOptions): string | null {
  if (show(received.shape) !== show(expected.shape))
    return `the shapes differ: received ${show(received.shape)}, expected ${show(expected.shape)}`
  const { dtype } = received
  if (dtype && expected.dtype && dtype !== expected.dtype && options.checkDtype !== false)
    return `the dtypes differ: received ${dtype}, expected ${expected.dtype}; pass { checkDtype: false } to compare the numbers`
  const [rtol, atol] = [0, 1].map((i) => {
    const given = i === 0 ? options.rtol : options.atol
    const defaults = [dtype, expected.dtype].map((d) => (d ? (tolerances[d][i] as number) : 0))
    return given ?? (dtype || expected.dtype ? Math.max(...defaults) : (tolerances.float32[i] as number))
  }) as [number, number]
  let differ = 0
  const worst = { absolute: -1, relative: -1, at: 0, relativeAt: 0 }
  const n = received.values.length
  for (let i = 0; i < n; i++) {
    const [a, b] = [received.values[i] as number, expected.values[i] as number]
    if (Object.is(a, b) ? !Number.isNaN(a) || options.equalNan === true : a === b) continue
    const distance = Math.abs(a - b)
    if (distance <= atol + rtol * Math.abs(b) && Number.isFinite(b)) continue
    differ++
    // What is no number is farthest.
    const absolute = Number.isNaN(distance) ? Infinity : distance
    const relative = b === 0 || Number.isNaN(distance) ? Infinity : distance / Math.abs(b)
    if (absolute > worst.absolute) Object.assign(worst, { absolute, at: i })
    if (relative > worst.relative) Object.assign(worst, { relative, relativeAt: i })
  }
  if (differ === 0) return null
  const row = (kind: string, size: number, at: number, allowed: number): string =>
    `  largest ${kind} difference: ${Number.isFinite(size) ? Number(size.toPrecision(6)) : 'not finite'} at ${indexOf(at, received.shape)}: ` +
    `received ${received.values[at]}, expected ${expected.values[at]} (${kind === 'absolute' ? 'atol' : 'rtol'} ${allowed})`
  return [
    `${differ} of ${n} elements differ (${Number(((100 * differ) / n).toPrecision(3))} %)`,
    row('absolute', worst.absolute, worst.at, atol),
    row('relative', worst.relative, worst.relativeAt, rtol),
  ].join('\n')
}

const names = { rtol: 1, atol: 1, equalNan: 1, checkDtype: 1 } as const

/** Hands both sides on, at once where they can be read at once. */
function compare<T>(
  received: unknown,
  expected: unknown,
  options: CloseOptions,
  then: (problem: string | null) => T,
): T | Promise<T> {
  expectOptions('toBeCloseToTensor', options, names)
  const [a, b] = [sideOf('what is received', received), sideOf('what is expected', expected)]
  if (a instanceof Promise || b instanceof Promise)
    return Promise.all([a, b]).then(([x, y]) => then(difference(x, y, options)))
  return then(difference(a, b, options))
}

const shown = (x: unknown): string => (x instanceof Tensor ? String(x) : describeValue(x))

/**
 * Matchers for `expect.extend(tensorMatchers)`, in vitest and Jest, typed in both.
 *
 * @example
 * import { tensorMatchers } from 'tilegrad/matchers'
 *
 * const { toBeCloseToTensor } = tensorMatchers // expect.extend(tensorMatchers) in a test's setup
 * const result = toBeCloseToTensor(tensor([1, 2.5]), [1, 2])
 * 'message' in result && result.message().includes('1 of 2 elements differ') // → true
 */
export const tensorMatchers = {
  toBeCloseToTensor(
    received: unknown,
    expected: Expected,
    options: CloseOptions = {},
  ): MatcherResult | Promise<MatcherResult> {
    return compare(received, expected, options, (problem) => ({
      pass: problem === null,
      message: () =>
        problem === null
          ? `toBeCloseToTensor: expected the tensors not to be close, but they are\n\nReceived: ${shown(received)}`
          : `toBeCloseToTensor: ${problem}\n\nReceived: ${shown(received)}\nExpected: ${shown(expected)}`,
    }))
  },
}

/**
 * Throws unless a tensor is near enough to what is expected, as `toBeCloseToTensor`, for other test runners. Await it
 * where a tensor is on a device that cannot be read at once.
 *
 * @throws Error called AssertionError that says how many elements differ, and which one most.
 * @example
 * import { assertClose } from 'tilegrad/matchers'
 *
 * assertClose(tensor([0.1, 0.2]), [0.1, 0.2])
 * assertClose(tensor([1, 2]), tensor([1, 2.01]), { rtol: 0.1 })
 */
export function assertClose(
  received: Tensor,
  expected: Expected,
  options: CloseOptions = {},
): void | Promise<void> {
  return compare(received, expected, options, (problem) => {
    if (problem === null) return
    const error = new Error(
      `assertClose: ${problem}\n\nReceived: ${shown(received)}\nExpected: ${shown(expected)}`,
    )
    error.name = 'AssertionError'
    throw error
  })
}
