/** Running sums and products, and recurrences. */

import { type DType, layout } from '@tilegrad/core'
import { test } from 'vitest'
import type { Engine } from './fused.ts'
import { dense, type Operand, operand, output } from './operand.ts'
import { agree } from './primitive.ts'
import { integer, pick, random, randomLayout } from './random.ts'

interface Attrs {
  kind: 'sum' | 'prod' | 'affine'
  dim: number
  reverse: boolean
}
const kinds = ['sum', 'prod', 'affine'] as const

interface Options {
  /** How many random cases. */
  readonly random: number
  /** The dtypes of recurrences. */
  readonly affine: readonly DType[]
  /** How long their dims are. */
  readonly sizes: readonly number[]
  /** By how much they may differ. */
  readonly within: { readonly atol: number; readonly rtol: number }
}

export function testScan(engine: Engine, options: Options): void {
  const check = (inputs: readonly Operand[], attrs: Attrs, within = {}): Promise<void> =>
    agree(engine, 'scan', [output(inputs[0].layout.shape, inputs[0].dtype)], inputs, attrs, within)
  const inputs = (kind: Attrs['kind'], make: () => Operand): Operand[] =>
    kind === 'affine' ? [make(), make()] : [make()]

  test('scan: any layout', async () => {
    const rnd = random(9)
    for (let i = 0; i < options.random; i++) {
      const kind = pick(rnd, kinds)
      const dtype = pick(rnd, kind === 'affine' ? options.affine : engine.dtypes)
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, options.sizes))
      if (layout.numel(shape) > 20000) continue
      const draw =
        dtype === 'int32'
          ? // The reference does not wrap recurrences of int32: kept small.
            () => (kind === 'affine' ? integer(rnd, -1, 1) : integer(rnd, -100, 100))
          : kind === 'sum'
            ? () => rnd() - 0.3
            : // Of either sign; products stay in range.
              () => (rnd() < 0.2 ? -1 : 1) * (kind === 'prod' ? 0.99 + 0.02 * rnd() : 0.8 + 0.3 * rnd())
      await check(
        inputs(kind, () => operand(randomLayout(rnd, shape), dtype, draw)),
        { kind, dim: integer(rnd, 0, shape.length - 1), reverse: rnd() < 0.5 },
        dtype === 'float32' ? options.within : dtype === 'float64' ? { rtol: 1e-14 } : {},
      )
    }
  })

  test('scan: long rows in chunks, and columns', async () => {
    const rnd = random(8)
    for (const [shape, dim] of [
      [[100_003], 0],
      [[2, 30_000], 1],
      [[9000, 9], 0],
    ] as const)
      for (const kind of kinds) {
        const draw = () =>
          kind === 'affine' ? rnd() * 1.8 - 0.9 : kind === 'sum' ? rnd() - 0.5 : rnd() < 0.5 ? -1 : 1
        const given = inputs(kind, () => dense(shape, draw))
        for (const reverse of [false, true]) await check(given, { kind, dim, reverse }, { atol: 2e-4 })
      }
  })

  test('scan: NaN and infinities stay from where they are on', async () => {
    const x = dense([3, 9], (i) => (i === 4 ? NaN : i === 12 ? Infinity : 1))
    for (const dim of [0, 1])
      for (const reverse of [false, true]) {
        for (const kind of ['sum', 'prod'] as const) await check([x], { kind, dim, reverse })
        await check([x, x], { kind: 'affine', dim, reverse }, { rtol: 1e-7 })
      }
  })

  test('scan: one tensor as both inputs', async () => {
    const x = dense([3, 40], (i) => Math.sin(i))
    await check([x, x], { kind: 'affine', dim: 1, reverse: false }, { atol: 1e-5 })
  })
}
