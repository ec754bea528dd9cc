import {
  applyProgramInto,
  describeValue,
  type Expr,
  expr as e,
  expectOptions,
  hostRandom,
  narrow,
  noGrad,
  program,
  rand,
  randn,
  ShapeError,
  scope,
  show,
  type Tensor,
  tensor,
  ValueError,
} from '@tilegrad/core'

/**
 * Initialisers. Each overwrites its tensor in place, untaped, and returns it; random ones draw from `manualSeed`'s
 * generator. Weights are (out, in, …): fan-in counts the inputs of one output, fan-out the outputs of one input.
 */

const write = (t: Tensor, values: () => void): Tensor => {
  noGrad(() => scope(values))
  return t
}

/** @throws ValueError for what is no number: an object of options would make every weight NaN. */
function numbers(op: string, values: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(values))
    if (typeof value !== 'number' || Number.isNaN(value))
      throw new ValueError(`${op}: ${name} must be a number, got ${describeValue(value)}`)
}

/** @throws ValueError for a name that is none of those known. */
function expectName(op: string, what: string, name: unknown, known: readonly string[]): void {
  if (!known.includes(name as string))
    throw new ValueError(`${op}: ${what} must be '${known.join("' or '")}', got ${describeValue(name)}`)
}

const like = (t: Tensor) => ({ dtype: t.dtype, device: t.backend })

/**
 * Every element `value`.
 *
 * @example
 * await init.constant_(zeros([2]), 3).toArray() // → [3, 3]
 */
export const constant_ = (t: Tensor, value: number): Tensor => write(t, () => void t.fill_(value))

/**
 * Every element 0.
 *
 * @example
 * await init.zeros_(ones([2])).toArray() // → [0, 0]
 */
export const zeros_ = (t: Tensor): Tensor => constant_(t, 0)

/**
 * Every element 1.
 *
 * @example
 * await init.ones_(zeros([2])).toArray() // → [1, 1]
 */
export const ones_ = (t: Tensor): Tensor => constant_(t, 1)

/**
 * Uniform in [low, high).
 *
 * @example
 * init.uniform_(zeros([2, 3])).shape // → [2, 3]
 */
export function uniform_(t: Tensor, low = 0, high = 1): Tensor {
  numbers('uniform_', { low, high })
  return write(t, () => void t.copy_(rand(t.shape, { low, high, ...like(t) })))
}

/**
 * Normal with the given mean and standard deviation.
 *
 * @example
 * init.normal_(zeros([2, 3])).shape // → [2, 3]
 */
export function normal_(t: Tensor, mean = 0, std = 1): Tensor {
  numbers('normal_', { mean, std })
  return write(t, () => void t.copy_(randn(t.shape, { mean, std, ...like(t) })))
}

/** Inverse error function in single precision (Giles 2010): a polynomial near 0, another in the tails. */
function erfinv(x: Expr): Expr {
  const poly = (w: Expr, coefficients: readonly number[]): Expr =>
    coefficients.slice(1).reduce((p: Expr, c) => e.add(e.mul(p, w), c), e.constant(coefficients[0] as number))
  const w = e.neg(e.log(e.mul(e.sub(1, x), e.add(1, x))))
  const centre = poly(
    e.sub(w, 2.5),
    [
      2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3,
      -4.17768164e-3, 0.246640727, 1.50140941,
    ],
  )
  const tail = poly(
    e.sub(e.sqrt(w), 3),
    [
      -2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3,
      9.43887047e-3, 1.00167406, 2.83297682,
    ],
  )
  return e.mul(e.select(e.lt(w, 5), centre, tail), x)
}

// The normal distribution's quantile of a uniform number between the bounds' probabilities; params mean, std, bounds.
const TRUNCATED = program(
  'trunc_normal_',
  1,
  ([u], [mean, std, low, high]) => {
    const edge = (bound: Expr): Expr => e.erf(e.div(e.sub(bound, mean), e.mul(std, Math.SQRT2)))
    const p = e.add(edge(low), e.mul(u, e.sub(edge(high), edge(low))))
    // Bounds far out round to probability ±1, whose quantile is infinite.
    const inside = e.max(e.min(p, 1 - 2 ** -24), 2 ** -24 - 1)
    return e.min(e.max(e.add(mean, e.mul(e.mul(std, Math.SQRT2), erfinv(inside))), low), high)
  },
  4,
)

/**
 * Normal, but only values within [a, b], which are absolute bounds and not multiples of std.
 *
 * @throws ValueError unless a < b.
 * @example
 * init.truncNormal_(zeros([2, 3]), 0, 0.02).shape // → [2, 3]
 */
export function truncNormal_(t: Tensor, mean = 0, std = 1, a = -2, b = 2): Tensor {
  numbers('truncNormal_', { mean, std, a, b })
  if (!(a < b)) throw new ValueError(`truncNormal_: needs a < b, got ${a} and ${b}`)
  return write(t, () => applyProgramInto([t], TRUNCATED, [rand(t.shape, like(t))], [mean, std, a, b]))
}

/** Fan-in and fan-out of a weight (out, in, …); dims after the second are a receptive field. */
function fans(op: string, t: Tensor): { fanIn: number; fanOut: number } {
  const [out, inputs, ...field] = t.shape
  if (out === undefined || inputs === undefined) {
    throw new ShapeError(`${op}: fan-in and fan-out need at least two dims, got ${show(t.shape)}`)
  }
  const size = field.reduce((p, n) => p * n, 1)
  return { fanIn: inputs * size, fanOut: out * size }
}

/** What an activation does to the scale of its input, for `calculateGain` and Kaiming initialisation. */
export type Nonlinearity = 'linear' | 'sigmoid' | 'tanh' | 'relu' | 'leakyRelu' | 'selu'

/**
 * The factor that keeps the variance constant through a nonlinearity: 1 for linear and sigmoid, 5/3 for tanh, √2 for
 * ReLU, √(2 / (1 + a²)) for leaky ReLU with slope a (default 0.01), 3/4 for SELU.
 *
 * @throws ValueError for another name.
 * @example
 * init.calculateGain('tanh') // → 1.6666666666666667
 */
export function calculateGain(nonlinearity: Nonlinearity, a = 0.01): number {
  const known = ['linear', 'sigmoid', 'tanh', 'relu', 'leakyRelu', 'selu']
  expectName('calculateGain', 'nonlinearity', nonlinearity, known)
  numbers('calculateGain', { a })
  if (nonlinearity === 'tanh') return 5 / 3
  if (nonlinearity === 'relu') return Math.SQRT2
  if (nonlinearity === 'selu') return 3 / 4
  return nonlinearity === 'leakyRelu' ? Math.sqrt(2 / (1 + a * a)) : 1
}

/**
 * Uniform within ±factor · √(6 / (fan-in + fan-out)) (Glorot & Bengio 2010). @throws ShapeError below two dims.
 *
 * @example
 * init.xavierUniform_(zeros([2, 3])).shape // → [2, 3]
 */
export function xavierUniform_(t: Tensor, factor = 1): Tensor {
  numbers('xavierUniform_', { factor })
  const { fanIn, fanOut } = fans('xavierUniform_', t)
  const bound = factor * Math.sqrt(6 / (fanIn + fanOut))
  return uniform_(t, -bound, bound)
}

/**
 * Normal with standard deviation factor · √(2 / (fan-in + fan-out)) (Glorot & Bengio 2010). @throws ShapeError below two dims.
 *
 * @example
 * init.xavierNormal_(zeros([2, 3])).shape // → [2, 3]
 */
export function xavierNormal_(t: Tensor, factor = 1): Tensor {
  numbers('xavierNormal_', { factor })
  const { fanIn, fanOut } = fans('xavierNormal_', t)
  return normal_(t, 0, factor * Math.sqrt(2 / (fanIn + fanOut)))
}

/** Options of `kaimingUniform_` and `kaimingNormal_`. */
export interface KaimingOptions {
  /** Slope of the leaky ReLU; default 0. */
  a?: number
  /** Keep the variance of the forward pass (default) or of the backward pass. */
  mode?: 'fanIn' | 'fanOut'
  /** The activation that follows. Default 'leakyRelu'. */
  nonlinearity?: Nonlinearity
}

function kaimingStd(op: string, t: Tensor, options: KaimingOptions): number {
  const {
    a = 0,
    mode = 'fanIn',
    nonlinearity = 'leakyRelu',
  } = expectOptions(op, options, {
    a: 1,
    mode: 1,
    nonlinearity: 1,
  })
  expectName(op, 'mode', mode, ['fanIn', 'fanOut'])
  return calculateGain(nonlinearity, a) / Math.sqrt(fans(op, t)[mode])
}

/**
 * Uniform within ±gain · √(3 / fan) (He et al. 2015). @throws ShapeError below two dims.
 *
 * @example
 * init.kaimingUniform_(zeros([2, 3])).shape // → [2, 3]
 */
export function kaimingUniform_(t: Tensor, options: KaimingOptions = {}): Tensor {
  const bound = Math.sqrt(3) * kaimingStd('kaimingUniform_', t, options)
  return uniform_(t, -bound, bound)
}

/**
 * Normal with standard deviation gain / √fan (He et al. 2015). @throws ShapeError below two dims.
 *
 * @example
 * init.kaimingNormal_(zeros([2, 3])).shape // → [2, 3]
 */
export const kaimingNormal_ = (t: Tensor, options: KaimingOptions = {}): Tensor =>
  normal_(t, 0, kaimingStd('kaimingNormal_', t, options))

/**
 * A random matrix whose rows (or columns, if there are more rows) are orthogonal with norm `factor` (Saxe et al.
 * 2014); dims after the first count as one. Computed on the host, in time rows · columns · min(rows, columns).
 *
 * @throws ShapeError below two dims.
 * @example
 * init.orthogonal_(zeros([2, 3])).shape // → [2, 3]
 */
export function orthogonal_(t: Tensor, factor = 1): Tensor {
  numbers('orthogonal_', { factor })
  fans('orthogonal_', t)
  const rows = t.shape[0]
  const columns = rows === 0 ? 0 : t.numel / rows
  const [count, length] = rows <= columns ? [rows, columns] : [columns, rows]
  const vectors: Float64Array[] = []
  while (vectors.length < count) {
    const v = Float64Array.from({ length }, normal)
    // Twice: one pass of Gram-Schmidt leaves a rest that rounding made.
    for (let pass = 0; pass < 2; pass++) for (const q of vectors) axpy(v, -dot(v, q), q)
    const norm = Math.sqrt(dot(v, v))
    if (norm > 1e-6) vectors.push(v.map((x) => x / norm))
  }
  const at = (i: number): number => {
    const [r, c] = [Math.floor(i / columns), i % columns]
    return factor * (rows <= columns ? vectors[r][c] : vectors[c][r])
  }
  return fill(t, (i) => at(i))
}

/** Writes numbers of the host, by their places. */
function fill(t: Tensor, at: (i: number) => number): Tensor {
  const values = Float64Array.from({ length: t.numel }, (_, i) => at(i))
  return write(t, () => void t.copy_(tensor(values, t.shape, like(t))))
}

/**
 * The identity matrix, or as much of it as fits. @throws ShapeError unless there are two dims.
 *
 * @example
 * await init.eye_(zeros([2, 3])).toArray() // → [[1, 0, 0], [0, 1, 0]]
 */
export function eye_(t: Tensor): Tensor {
  if (t.rank !== 2) throw new ShapeError(`eye_: needs two dims, got ${show(t.shape)}`)
  return fill(t, (i) => Number(i % (t.shape[1] + 1) === 0 && i < t.shape[1] ** 2))
}

/**
 * The weight (out, in, …) of a convolution that gives its input, of as many channels as fit: 1 in the middle of its window
 * (Zagoruyko & Komodakis 2017); in each of several groups.
 *
 * @throws ShapeError unless there are three to five dims, ValueError unless groups divide the outputs.
 * @example
 * await init.dirac_(zeros([2, 1, 3])).toArray() // → [[[0, 1, 0]], [[0, 0, 0]]]
 */
export function dirac_(t: Tensor, groups = 1): Tensor {
  if (t.rank < 3 || t.rank > 5) throw new ShapeError(`dirac_: needs three to five dims, got ${show(t.shape)}`)
  const [out, inputs, ...field] = t.shape
  if (!(Number.isInteger(groups) && groups > 0 && out % groups === 0))
    throw new ValueError(`dirac_: groups must divide the ${out} outputs, got ${describeValue(groups)}`)
  const size = field.reduce((p, n) => p * n, 1)
  const middle = field.reduce((at, n) => at * n + Math.floor(n / 2), 0)
  return fill(t, (i) => {
    const [o, c] = [Math.floor(i / size / inputs), Math.floor(i / size) % inputs]
    return Number(o % (out / groups) === c && i % size === middle)
  })
}

/** A normal number on the host (Box & Muller 1958); 1 − u keeps the logarithm finite. */
const normal = (): number => Math.sqrt(-2 * Math.log(1 - hostRandom())) * Math.cos(2 * Math.PI * hostRandom())

const dot = (a: Float64Array, b: Float64Array): number => a.reduce((s, v, i) => s + v * b[i], 0)

function axpy(y: Float64Array, alpha: number, x: Float64Array): void {
  for (let i = 0; i < y.length; i++) y[i] = y[i] + alpha * x[i]
}

/** Zeros along one index of the first dim: a padding row. @internal */
export const zeroRow_ = (t: Tensor, row: number): Tensor => write(t, () => void narrow(t, 0, row, 1).zero_())
