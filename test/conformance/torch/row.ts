import type { Tensor } from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { CLOSE, LOOSE, type Tolerance } from '../compare.ts'

/** How a PyTorch operator is called here. */
export interface TorchOp {
  /** PyTorch's argument names, in order; see `bind`. */
  readonly signature: string
  run(a: Arguments): Tensor | readonly Tensor[]
  /** What the outputs may differ by; of gradients see `GRADIENT`. */
  readonly tolerance: Tolerance | ((a: Arguments) => Tolerance)
  /**
   * Where PyTorch leaves a choice: 'selection' gives values and indices of ties in any order, 'dropout' draws random
   * numbers of its own.
   */
  readonly choice?: 'selection' | 'dropout'
}

const table = new Map<string, TorchOp>()

type Run = TorchOp['run']
interface Extra {
  tolerance?: TorchOp['tolerance']
  choice?: 'selection' | 'dropout'
}

/** Adds an operator under all its names. */
export function op(
  names: string,
  signature: string,
  run: Run,
  { tolerance = CLOSE, choice }: Extra = {},
): void {
  for (const name of names.split(' '))
    table.set(name, { signature, run, tolerance, ...(choice && { choice }) })
}

/** The operator for PyTorch's name (where two have one name, in full), with or without `torch.`, `nn.functional.`. */
export function torchOp(name: string): TorchOp | undefined {
  const bare = name.replace(/^(torch\.)?(nn\.functional\.|special\.|Tensor\.)?/, '')
  // In-place variants end in _, overloads are named after a dot.
  return (
    table.get(name) ?? table.get(bare) ?? table.get(bare.replace(/_$/, '')) ?? table.get(bare.split('.')[0])
  )
}

export const LONG: Extra = { tolerance: LOOSE }

export const torchOpNames = (): string[] => [...table.keys()]
