import { noGrad } from '../../autograd/tape.ts'
import { expectFloat, expectInt, expectOptions } from '../../checks.ts'
import type { Backend } from '../../dispatch/backend.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise, elementwiseAll } from '../../primitives/elementwise.ts'
import { reshapeView } from '../../primitives/views.ts'
import type { DType } from '../../tensor/dtype.ts'
import { broadcastShapes, sameShape } from '../../tensor/layout.ts'
import { scope } from '../../tensor/memory.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { arange, tensor } from '../create.ts'
import { cat, narrow, select, stack, unsqueeze } from '../shape.ts'

/** What decides how pairs are turned. */
export interface RotaryAttrs {
  /** Pairs are neighbours, (x₀, x₁), not halves, (x₀, x_{R/2}). */
  interleaved: boolean
  /** Pairs are turned by the negative angle, which is the adjoint. */
  inverse: boolean
}

const name = 'rotary_embedding'
const FIRST = program(name, 4, ([a, b, c, s]) => e.sub(e.mul(a, c), e.mul(b, s)))
const SECOND = program(name, 4, ([a, b, c, s]) => e.add(e.mul(b, c), e.mul(a, s)))

declare module '../../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Rotary position embedding (Su et al. 2021). */
    readonly rotary_embedding?: KernelOf<RotaryAttrs>
  }
}

/** Inputs x (…, D), cos and sin (…, R/2) that broadcast to x's leading dims, and have no gradient. */
const ROTARY: Op<RotaryAttrs> = {
  name,
  kernel: (kernels) => kernels.rotary_embedding,
  flops: ([x, cos]) => 6 * x.shape.slice(0, -1).reduce((n, d) => n * d, cos.shape[cos.shape.length - 1]),
  infer: ([x]) => [{ shape: x.shape, dtype: x.dtype }],
  compose: ([x, cos, sin], { interleaved, inverse }) => {
    const [dim, half] = [x.rank - 1, cos.shape[cos.rank - 1]]
    const turned = narrow(x, dim, 0, 2 * half)
    const pairs = interleaved ? reshapeView(turned, [...x.shape.slice(0, dim), half, 2]) : null
    const a = pairs ? select(pairs, dim + 1, 0) : narrow(turned, dim, 0, half)
    const b = pairs ? select(pairs, dim + 1, 1) : narrow(turned, dim, half, half)
    // The inverse of (a, b) → (first, second) is the same of (b, a), the other way round.
    const first = elementwise(inverse ? SECOND : FIRST, inverse ? [b, a, cos, sin] : [a, b, cos, sin])
    const second = elementwise(inverse ? FIRST : SECOND, inverse ? [b, a, cos, sin] : [a, b, cos, sin])
    const rest = narrow(x, dim, 2 * half, x.shape[dim] - 2 * half)
    if (!pairs) return [cat([first, second, rest], dim)]
    return [cat([reshapeView(stack([first, second], -1), turned.shape), rest], dim)]
  },
  backward: (node, [dy]) => [
    dy &&
      apply(ROTARY, [dy, node.input(1), node.input(2)], { ...node.attrs, inverse: !node.attrs.inverse })[0],
    null,
    null,
  ],
}

/**
 * cos and sin of position · frequency. In float32 the product itself would be wrong by whole radians at large positions:
 * turns are counted in units of 2⁻³², whose whole parts int32 multiplies exactly, whole turns dropping out of it.
 * Inputs: position, units per position rounded, and what rounding left.
 */
const ANGLES = program('rotary_angles', 3, ([position, whole, left]) => {
  const units = e.add(e.cast('float32', e.mul(position, whole)), e.mul(e.cast('float32', position), left))
  const angle = e.mul(units, (2 * Math.PI) / 2 ** 32)
  return [e.cos(angle), e.sin(angle)]
})
/** The cosine and sine of position · frequency in float64. Inputs: position, frequency. */
const ANGLES64 = program('rotary_angles', 2, ([position, frequency]) => {
  const angle = e.mul(position, frequency)
  return [e.cos(angle), e.sin(angle)]
})

/** Computes θᵢ = base^(−2i/R). */
const powers = (base: number, rotaryDim: number): Float64Array =>
  Float64Array.from({ length: rotaryDim / 2 }, (_, i) => base ** ((-2 * i) / rotaryDim))

type Table = readonly [cos: Tensor, sin: Tensor]

/** Turns positions of any shape into cos and sin, of that shape and R/2, untaped. */
function angles(positions: Tensor, frequencies: ArrayLike<number>, dtype: DType): Table {
  const device = positions.backend
  const [cos, sin] = scope(() => {
    const at = unsqueeze(positions, -1)
    if (dtype === 'float64') {
      return elementwiseAll(
        ANGLES64,
        [at, tensor(Float64Array.from(frequencies), { device })],
        [],
        [dtype, dtype],
      )
    }
    const units = Float64Array.from(frequencies, (f) => (f / (2 * Math.PI)) * 2 ** 32)
    const whole = Int32Array.from(units, (u) => Math.round(u))
    const left = Float32Array.from(units, (u) => u - Math.round(u))
    return elementwiseAll(
      ANGLES,
      [at, tensor(whole, { device }), tensor(left, { device })],
      [],
      [dtype, dtype],
    )
  })
  return [cos, sin]
}

/** The last tables of positions in a row, by device: all layers of a model want the same ones. */
const tables = new WeakMap<Backend, Map<string, Table>>()
const remembered = 4

function tableFrom(
  device: Backend,
  offset: number,
  length: number,
  frequencies: ArrayLike<number>,
  dtype: DType,
): Table {
  let known = tables.get(device)
  if (!known) {
    known = new Map()
    tables.set(device, known)
  }
  const key = [offset, length, dtype, ...Array.from(frequencies)].join()
  let table = known.get(key)
  if (!table) {
    const positions = arange(offset, offset + length, 1, { dtype: 'int32', device })
    const [cos, sin] = angles(positions, frequencies, dtype)
    table = [cos.keep(), sin.keep()]
    positions.dispose()
    const [oldest] = known.keys()
    if (known.size === remembered && oldest !== undefined) {
      for (const t of known.get(oldest) as Table) t.dispose()
      known.delete(oldest)
    }
  } else known.delete(key)
  // Set anew: a map's keys stand in the order of setting, so that the first is the one not used for longest.
  known.set(key, table)
  // Views of the caller's: the table may be forgotten while a graph still needs it.
  return [table[0].detach(), table[1].detach()]
}

/** Options of `rotaryEmbedding`. */
export interface RotaryOptions {
  /** The base of θᵢ = base^(−2i/R); default 10000. */
  base?: number
  /** θ₀ … θ_{R/2−1} themselves instead, in radians per position: for scaled ones (Llama 3.1). */
  frequencies?: ArrayLike<number> | null
  /** Position of the first row, when they are in a row: how many tokens a key-value cache holds. Default 0. */
  offset?: number
  /** Positions instead, int32, that broadcast to x's shape without D: (T), or (B, 1, T) for x (B, H, T, D). */
  positions?: Tensor | null
  /** Turns neighbours (GPT-J) instead of halves (GPT-NeoX, Llama). Default false. */
  interleaved?: boolean
  /** R, how many of the D elements are turned, the first ones; even; default D. */
  rotaryDim?: number
}

/**
 * Rotary position embedding (Su et al. 2021): turns pairs of elements by angles that grow with the position m,
 * (a, b) → (a cos mθᵢ − b sin mθᵢ, b cos mθᵢ + a sin mθᵢ), θᵢ = base^(−2i/R), so that q·k depends on positions by their
 * difference only. Pair i < R/2 is (xᵢ, x_{i+R/2}), Llama's rotate_half, or with `interleaved` (x₂ᵢ, x₂ᵢ₊₁). Angles
 * are right to 5e-7 in float32, for positions up to 2²⁴ in size.
 *
 * @param x (…, T, D)
 * @returns (…, T, D)
 * @throws ShapeError unless R is even and at most D, frequencies are R/2 and positions broadcast, ValueError for positions or a base out of
 * range, DTypeError for integers.
 * @example
 * const q = randn([2, 4, 10, 64]) // (B, H, T, D)
 * rotaryEmbedding(q).shape // → 2,4,10,64
 * rotaryEmbedding(q.narrow(2, 9, 1), { offset: 9 }) // the last row alone, as in decoding
 */
export function rotaryEmbedding(x: Tensor, options: RotaryOptions = {}): Tensor {
  const {
    base = 10000,
    offset = 0,
    positions = null,
    interleaved = false,
  } = expectOptions('rotary_embedding', options, {
    base: 1,
    frequencies: 1,
    offset: 1,
    positions: 1,
    interleaved: 1,
    rotaryDim: 1,
  })
  expectTensor(name, x)
  expectFloat(name, x.dtype)
  if (x.rank < 2) throw new ShapeError(`${name}: takes (…, T, D), got ${show(x.shape)}`)
  const [t, d] = x.shape.slice(-2)
  const r = options.rotaryDim ?? d
  if (!(Number.isInteger(r) && r >= 0 && r <= d && r % 2 === 0))
    throw new ShapeError(`${name}: rotaryDim ${r} must be even, from 0 to D = ${d}`)
  if (!(base > 0 && Number.isFinite(base))) throw new ValueError(`${name}: base must be > 0, got ${base}`)
  const frequencies = options.frequencies ?? powers(base, r)
  if (frequencies.length !== r / 2)
    throw new ShapeError(`${name}: ${frequencies.length} frequencies for rotaryDim ${r}; expected ${r / 2}`)
  if (!Number.isInteger(offset) || Math.max(-offset, offset + t) > 2 ** 24)
    throw new ValueError(`${name}: offset ${offset} must be whole, and positions at most 2^24 in size`)
  const [cos, sin] = noGrad((): Table => {
    if (!positions) return tableFrom(x.backend, offset, t, frequencies, x.dtype)
    if (offset !== 0) throw new ValueError(`${name}: takes an offset or positions, not both`)
    expectInt(name, 'positions', positions.dtype)
    const rows = x.shape.slice(0, -1)
    if (!sameShape(broadcastShapes(name, [positions.shape, rows]), rows))
      throw new ShapeError(
        `${name}: positions ${show(positions.shape)} do not broadcast to ${show(rows)}, x's shape without D`,
      )
    return angles(positions, frequencies, x.dtype)
  })
  return apply(ROTARY, [x, cos, sin], { interleaved, inverse: false })[0]
}
