import { expectOptions, rotaryEmbedding, type Tensor, ValueError } from '@tilegrad/core'

/** How frequencies are slowed for sequences longer than a model was trained on. */
export type RopeScaling =
  /** Positions divided by `factor` (Chen et al. 2023). */
  | { readonly type: 'linear'; readonly factor: number }
  /**
   * Llama 3.1's: waves longer than originalMaxPositions / lowFreqFactor are slowed by `factor`, those shorter than
   * originalMaxPositions / highFreqFactor stay, and the share of each changes linearly in between.
   */
  | {
      readonly type: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly originalMaxPositions: number
    }

/** Rotary positions (Su et al. 2021): the base of their frequencies and how these are scaled. */
export interface RopeOptions {
  /** The base of θᵢ = base^(−2i/dim); default 10000. */
  base?: number
  /** How many elements of a head are turned, the first ones; even; default all. */
  dim?: number
  /** Turns neighbours (GPT-J) instead of halves (GPT-NeoX, Llama). Default false. */
  interleaved?: boolean
  /** How frequencies are slowed for long sequences. Default: they are not. */
  scaling?: RopeScaling | null
}

/** A layer's rotary position embedding. @internal */
export class Rope {
  readonly #dim: number
  readonly #interleaved: boolean
  readonly #frequencies: readonly number[]

  constructor(op: string, headDim: number, options: RopeOptions) {
    const {
      base = 10000,
      dim = headDim,
      interleaved = false,
      scaling = null,
    } = expectOptions(`${op}'s rope`, options, {
      base: 1,
      dim: 1,
      interleaved: 1,
      scaling: 1,
    })
    if (!(Number.isInteger(dim) && dim > 0 && dim <= headDim && dim % 2 === 0))
      throw new ValueError(
        `${op}: rope turns ${dim} elements of a head; expected an even number up to ${headDim}`,
      )
    if (!(base > 0 && Number.isFinite(base)))
      throw new ValueError(`${op}: rope's base must be > 0, got ${base}`)
    if (scaling) checkScaling(op, scaling)
    this.#dim = dim
    this.#interleaved = interleaved
    const slow = (f: number): number => (scaling ? scaled(f, scaling) : f)
    this.#frequencies = Array.from({ length: dim / 2 }, (_, i) => slow(base ** ((-2 * i) / dim)))
  }

  /** x (B, H, T, D), whose first row stands at position `offset`, or whose rows stand at positions (B, T). */
  turn(x: Tensor, offset: number, positions: Tensor | null): Tensor {
    return rotaryEmbedding(x, {
      frequencies: this.#frequencies,
      ...(positions ? { positions: positions.unsqueeze(1) } : { offset }),
      interleaved: this.#interleaved,
      rotaryDim: this.#dim,
    })
  }
}

function checkScaling(op: string, scaling: RopeScaling): void {
  const { type, ...numbers } = scaling
  if (type !== 'linear' && type !== 'llama3')
    throw new ValueError(`${op}: rope scaling '${String(type)}' is unknown; expected 'linear' or 'llama3'`)
  for (const [name, value] of Object.entries(numbers)) {
    if (!(value > 0)) throw new ValueError(`${op}: rope scaling's ${name} must be > 0, got ${value}`)
  }
  if (scaling.type === 'llama3' && !(scaling.lowFreqFactor < scaling.highFreqFactor)) {
    throw new ValueError(
      `${op}: rope scaling's lowFreqFactor ${scaling.lowFreqFactor} must be below highFreqFactor ${scaling.highFreqFactor}`,
    )
  }
}

function scaled(frequency: number, scaling: RopeScaling): number {
  if (scaling.type === 'linear') return frequency / scaling.factor
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositions } = scaling
  /** Turns within the original length. */
  const turns = (originalMaxPositions * frequency) / (2 * Math.PI)
  const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)))
  return (1 - kept) * (frequency / factor) + kept * frequency
}
