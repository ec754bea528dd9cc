import { arange, type Backend, noGrad, type Tensor, tensor } from '@tilegrad/core'
import { eachRun, expected } from '@tilegrad/core/kernel'

/**
 * The fewest rows that are seen: for every size that occurs there is a recording. Where launches are prepared, a recording
 * takes longer than the rows that are hidden: of 400 tokens through 12 layers, doubling from 64, recordings were a quarter.
 */
const least = ({ prepare }: Backend): number => (prepare ? 512 : 64)

/**
 * A place in sequences where the next tokens stand, known to the device: one token after another is then taken in by the
 * very same calls, which can be recorded (see `compile`). Caches show so many rows as the next power of two, and those
 * that hold nothing yet are hidden.
 *
 * @internal
 */
export class Place {
  /** The position of the next token, int32 (1). */
  readonly position: Tensor
  readonly #slots: Tensor
  readonly #capacity: number
  readonly #least: number
  #length: number

  /** After `length` tokens, in caches of so many rows. */
  constructor(length: number, capacity: number, device: Backend) {
    this.#length = length
    this.#capacity = capacity
    this.#least = least(device)
    this.position = tensor([length], { dtype: 'int32', device })
    this.#slots = arange(0, capacity, 1, { dtype: 'int32', device })
  }

  /** How many rows of a cache are in sight of the next token. */
  get rows(): number {
    return expected(this, () =>
      Math.min(this.#capacity, Math.max(this.#least, 2 ** Math.ceil(Math.log2(this.#length + 1)))),
    )
  }

  /** Says which of the rows in sight hold a token, the next one among them: bool (batch, rows). */
  visible(batch: number): Tensor {
    const { rows } = this
    return this.#slots.narrow(0, 0, rows).le(this.position).unsqueeze(0).expand([batch, rows])
  }

  /** Goes on to the next token. */
  advance(): void {
    eachRun(() => void this.#length++)
    noGrad(() => this.position.add_(1))
  }

  /** Frees its tensors. */
  dispose(): void {
    this.position.dispose()
    this.#slots.dispose()
  }
}
