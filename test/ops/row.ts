import type { Tensor } from '@tilegrad/core'
import * as tilegrad from '@tilegrad/core'
import type { Arg } from '../samples.ts'

/**
 * One row per operator: how to call it, on what, and what is to be expected of it. The tests of gradients, of second
 * derivatives, of agreement between backends and of methods are written by this table.
 */
export interface Row {
  /** Our name of it; the method's as well. */
  readonly name: string
  readonly run: (...args: never[]) => Tensor | readonly Tensor[]
  readonly samples: readonly (readonly Arg[])[]
  /** How often it can be differentiated at the samples: 0, 1, or 2 for any number of times. */
  readonly order: 0 | 1 | 2
  /** Is its first argument's method of the same name the same? */
  readonly method: boolean
  /** Works on each element by itself, so that special values can be tried. */
  readonly pointwise: boolean
  /** Takes only contiguous tensors. */
  readonly dense: boolean
  /** Adds up many terms, so that backends differ by more than the last digit. */
  readonly long: boolean
}

export const rows: Row[] = []

const exported: ReadonlyMap<string, unknown> = new Map(Object.entries(tilegrad))

/** Adds a row. */
export function op(
  name: string,
  order: 0 | 1 | 2,
  samples: readonly (readonly Arg[])[],
  more: Partial<Pick<Row, 'run' | 'method' | 'pointwise' | 'dense' | 'long'>> = {},
): void {
  const run = (more.run ?? exported.get(name)) as Row['run'] | undefined
  if (!run) throw new Error(`the package has no ${name}`)
  rows.push({ method: true, pointwise: false, dense: false, long: false, ...more, name, run, samples, order })
}

export const POINTWISE = { pointwise: true }
export const LONG = { long: true }
export const FUNCTION = { method: false }
