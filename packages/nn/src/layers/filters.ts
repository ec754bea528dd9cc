import { type Tensor, ValueError, type WindowSizes, zeros } from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import * as init from '../init.ts'
import { Module, parameter } from '../module/module.ts'
import { positive } from './linear.ts'

/** Options that all convolutions have, transposed or not. */
interface FilterOptions {
  stride?: WindowSizes
  dilation?: WindowSizes
  groups?: number
  bias?: boolean
}

/** @internal */
export const FILTER_OPTIONS = { stride: 1, dilation: 1, groups: 1, bias: 1 } as const

/** Sizes as Python shows them. @internal */
export const shownSizes = (sizes: readonly number[]): string =>
  `(${sizes.join(', ')}${sizes.length === 1 ? ',' : ''})`

/** Shows sizes by their name, unless they are the usual ones. @internal */
export const unless = (usual: number, name: string, sizes: readonly number[]): string[] =>
  sizes.every((n) => n === usual) ? [] : [`${name}=${shownSizes(sizes)}`]

/**
 * What convolutions and transposed ones have in common: filters that learn, and how they slide.
 *
 * @internal
 */
export abstract class Filters extends Module {
  /** How many channels the input has. */
  readonly inChannels: number
  /** How many channels the output has. */
  readonly outChannels: number
  /** The size of the windows, along each dim. */
  readonly kernelSize: readonly number[]
  /** Steps from one window to the next, along each dim: of the input, or where it is transposed of the output. */
  readonly stride: readonly number[]
  /** Steps from one element of a window to the next, along each dim. */
  readonly dilation: readonly number[]
  /** Into how many groups channels fall, each with filters of its own. */
  readonly groups: number
  /** The filters: (outChannels, inChannels / groups, …kernelSize), or transposed (inChannels, outChannels / groups, …kernelSize). */
  weight: Tensor
  /** What is added to each channel, (outChannels), or null. */
  bias: Tensor | null

  constructor(
    op: string,
    dims: 1 | 2,
    [inChannels, outChannels]: readonly [inChannels: number, outChannels: number],
    kernelSize: WindowSizes,
    { stride = 1, dilation = 1, groups = 1, bias = true }: FilterOptions,
    transposed: boolean,
  ) {
    super()
    positive(op, { inChannels, outChannels, groups })
    if (inChannels % groups !== 0 || outChannels % groups !== 0)
      throw new ValueError(
        `${op}: groups ${groups} must divide inChannels ${inChannels} and outChannels ${outChannels}`,
      )
    this.inChannels = inChannels
    this.outChannels = outChannels
    this.kernelSize = windowSizes(op, 'kernelSize', kernelSize, dims, 1)
    this.stride = windowSizes(op, 'stride', stride, dims, 1)
    this.dilation = windowSizes(op, 'dilation', dilation, dims, 1)
    this.groups = groups
    const [rows, columns] = transposed ? [inChannels, outChannels] : [outChannels, inChannels]
    this.weight = parameter(zeros([rows, columns / groups, ...this.kernelSize]))
    this.bias = bias ? parameter(zeros([outChannels])) : null
    this.resetParameters()
  }

  /** Draws the initial values again: uniform within ±1 / √(numbers of one row of the weight), weight and bias. */
  resetParameters(): void {
    init.kaimingUniform_(this.weight, { a: Math.sqrt(5) })
    const bound = 1 / Math.sqrt(this.weight.numel / (this.weight.shape[0] as number))
    if (this.bias) init.uniform_(this.bias, -bound, bound)
  }

  /** The padding as it is shown. */
  protected abstract shownPadding(): readonly string[]

  override extraRepr(): string {
    return [
      `${this.inChannels}, ${this.outChannels}, kernelSize=${shownSizes(this.kernelSize)}, stride=${shownSizes(this.stride)}`,
      ...this.shownPadding(),
      ...unless(1, 'dilation', this.dilation),
      ...(this.groups === 1 ? [] : [`groups=${this.groups}`]),
      ...(this.bias ? [] : ['bias=false']),
    ].join(', ')
  }
}
