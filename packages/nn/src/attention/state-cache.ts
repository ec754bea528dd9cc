import { type Backend, type DType, expectOptions, noGrad, type Tensor, zeros } from '@tilegrad/core'
import { positive } from '../layers/linear.ts'
import { AttentionCache } from './cache.ts'

/** Options of `StateCache`. */
export interface StateCacheOptions {
  /** How many sequences it holds. */
  batch: number
  /** The number of heads. */
  numHeads: number
  /** The size of a key. */
  headDim: number
  /** Columns of a head's state: headDim, and one more with a normaliser. */
  columns: number
  /** The type of its elements. Default: float32. */
  dtype?: DType
  /** The device of the cache. Default: the default device. */
  device?: Backend | string
}

/** What a recurrence starts from and is asked for: options of core's linearAttention and its relatives. */
export interface Memory {
  /** The state to start from. */
  readonly initialState: Tensor | null
  /** Return the state after the last token, too. */
  readonly returnState: true
}

/**
 * The state of a linear recurrence, (B, H, D, columns): all that it remembers of any number of tokens, written in place.
 *
 * @example
 * const cache = new StateCache({ batch: 1, numHeads: 2, headDim: 4, columns: 5 })
 * const qkv = randn([1, 2, 3, 4])
 * cache.advance(3, [qkv], (memory) => linearAttention(qkv, qkv, qkv, { isCausal: true, ...memory })).shape // → 1,2,3,4
 */
export class StateCache extends AttentionCache {
  /** The state, (batch, numHeads, headDim, columns). */
  readonly state: Tensor

  constructor(options: StateCacheOptions) {
    super(options.batch, Number.POSITIVE_INFINITY)
    this.steady = true
    const {
      batch,
      numHeads,
      headDim,
      columns,
      dtype = 'float32',
      device,
    } = expectOptions('StateCache', options, {
      batch: 1,
      numHeads: 1,
      headDim: 1,
      columns: 1,
      dtype: 1,
      device: 1,
    })
    positive('StateCache', { numHeads, headDim, columns })
    const where = device === undefined ? { dtype } : { dtype, device }
    this.state = zeros([batch, numHeads, headDim, columns], where)
  }

  /**
   * Takes in `tokens` more: `step` computes their outputs from what is remembered and returns what is to be.
   *
   * @param made what the outputs are made of.
   * @throws GradError if one of `made` needs a gradient.
   */
  advance(
    tokens: number,
    made: readonly Tensor[],
    step: (memory: Memory) => readonly [Tensor, Tensor | null],
  ): Tensor {
    const initialState = this.length > 0 ? this.state : null
    this.admit(tokens, made)
    return noGrad(() => {
      const [out, state] = step({ initialState, returnState: true })
      if (state) this.state.copy_(state)
      return out
    })
  }

  dispose(): void {
    this.state.dispose()
  }
}
