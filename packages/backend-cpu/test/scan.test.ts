/** Scans against the reference backend in float64. */

import { type DType, layout, reference, type TypedArray } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { Engine } from '../src/engine.ts'
import { scan } from '../src/kernels/scan.ts'
import {
  expected,
  integer,
  makeEngines,
  mismatch,
  pick,
  random,
  randomLayout,
  run,
  type Twin,
  twin,
} from './row-rig.ts'

let engines: { name: string; engine: Engine }[]
beforeAll(async () => {
  engines = await makeEngines()
})

interface Attrs {
  kind: 'sum' | 'prod' | 'affine'
  dim: number
  reverse: boolean
}

function check(inputs: readonly Twin[], attrs: Attrs, atol: number, rtol: number): void {
  const { dtype, layout: l } = inputs[0] as Twin
  const specs = [{ shape: l.shape, dtype }]
  const want = expected(reference.kernels.scan, specs, inputs, attrs)[0] as TypedArray
  const first = new Map<boolean, TypedArray>()
  for (const { name, engine } of engines) {
    const [got] = run(engine, scan, specs, inputs, attrs) as [TypedArray]
    const context = () => `${name}: ${JSON.stringify([attrs, dtype, inputs.map((t) => t.layout)])}`
    expect(mismatch(got, want, atol, rtol), context()).toBeNull()
    // Fused multiply-add rounds differently: only engines of one kind agree bit by bit.
    const { relaxed } = engine.features
    expect(mismatch(got, first.get(relaxed) ?? got, 0, 0), `${context()} bits`).toBeNull()
    first.set(relaxed, got)
  }
}

test('any layout', () => {
  const rnd = random(9)
  for (let i = 0; i < 300; i++) {
    const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32', 'float64'])
    const kind = pick(rnd, ['sum', 'prod', 'affine'] as const)
    const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 9, 35]))
    const value =
      dtype === 'int32'
        ? () => (kind === 'affine' ? integer(rnd, -1, 1) : integer(rnd, -100, 100))
        : kind === 'sum'
          ? () => rnd() - 0.3
          : () => 0.8 + 0.3 * rnd()
    const make = () => twin(randomLayout(rnd, shape), dtype, value)
    const attrs = { kind, dim: integer(rnd, 0, shape.length - 1), reverse: rnd() < 0.5 }
    // The reference does not wrap affine int32: kept small. At most 35 terms near 1: a few units in the last place for sums in float64, more for float32 affine lanes.
    check(
      kind === 'affine' ? [make(), make()] : [make()],
      attrs,
      dtype === 'float32' ? 1e-6 : 0,
      dtype === 'float32' ? 1e-6 : 1e-14,
    )
  }
})

test('long ones, along rows and along columns', () => {
  const rnd = random(10)
  for (const [shape, dim] of [
    [[5, 20_000], 1],
    [[5000, 70], 0],
  ] as const) {
    for (const reverse of [false, true]) {
      const x = twin(layout.contiguous(shape), 'float32', () => rnd())
      // Carried in float64: only the final rounding is left.
      check([x], { kind: 'sum', dim, reverse }, 0, 1e-7)
      const decay = twin(layout.contiguous(shape), 'float32', () => 0.9 + 0.1 * rnd())
      // Float32 lanes forget their errors at the rate of the decay: about 20 steps' worth remain.
      check([decay, x], { kind: 'affine', dim, reverse }, 0, 2e-6)
    }
  }
})

test('NaN and infinities stay from where they are on', () => {
  const x = twin(layout.contiguous([3, 9]), 'float32', (i) =>
    i === 4 ? Number.NaN : i === 12 ? Infinity : 1,
  )
  for (const dim of [0, 1]) {
    for (const reverse of [false, true]) {
      for (const kind of ['sum', 'prod'] as const) check([x], { kind, dim, reverse }, 0, 0)
      check([x, x], { kind: 'affine', dim, reverse }, 0, 1e-7)
    }
  }
})
