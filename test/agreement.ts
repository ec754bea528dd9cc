import * as tg from '@tilegrad/core'
import { type Backend, data, grad, isFloat, reference, type Tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { CLOSE, difference, EXACT, LOOSE, type Tolerance } from './conformance/compare.ts'
import { type Row, table } from './op-table.ts'
import { type Arg, LAYOUTS, type LayoutKind, list, make, tensorsIn } from './samples.ts'

interface Result {
  readonly what: string
  readonly shape: readonly number[]
  readonly dtype: tg.DType
  readonly values: tg.TypedArray
}

/** What the floats of a sample are. */
type Float = 'float32' | 'float16' | 'bfloat16'

/**
 * What single elements may differ by, and what sums of many terms and gradients. Results of 16 bits are rounded from nearly
 * the same number to neighbours, and gradients are made of results that were rounded so.
 */
const tolerances: Readonly<Record<Float, readonly [Tolerance, Tolerance]>> = {
  float32: [CLOSE, LOOSE],
  float16: [
    { rtol: 2 ** -10, atol: 1e-6 },
    { rtol: 2 ** -8, atol: 1e-3, cancels: true },
  ],
  bfloat16: [
    { rtol: 2 ** -7, atol: 1e-6 },
    { rtol: 2 ** -5, atol: 1e-2, cancels: true },
  ],
}

/** Outputs, and where the operator has them gradients, of one call. */
async function results(
  row: Row,
  sample: readonly Arg[],
  layout: LayoutKind,
  backend: Backend,
  float: Float,
): Promise<Result[]> {
  const requiresGrad = row.order > 0
  const args = make(sample, { backend, float, layout, seed: 5, requiresGrad })
  const out = (row.run as (...a: unknown[]) => Tensor | readonly Tensor[])(...args)
  const outputs = Array.isArray(out) ? (out as Tensor[]) : [out as Tensor]
  const leaves = tensorsIn(args).filter((t) => t.requiresGrad)
  const ys = outputs.filter((y) => y.requiresGrad)
  const weights = ys.map(
    (y) =>
      make([list(y.shape, cosines(y.numel))], {
        backend,
        float,
        layout: 'dense',
        seed: 0,
      })[0] as Tensor,
  )
  const grads =
    ys.length === 0 ? [] : grad(ys, leaves, { gradOutputs: weights, allowUnused: true, retainGraph: true })
  const named = [
    ...outputs.map((t, i) => [`output ${i}`, t] as const),
    ...grads.map((t, i) => [`gradient ${i}`, t] as const),
  ]
  return Promise.all(
    named.flatMap(([what, t]) =>
      t ? [data(t).then((values) => ({ what, shape: t.shape, dtype: t.dtype, values }))] : [],
    ),
  )
}

const cosines = (n: number): number[] => Array.from({ length: n }, (_, i) => Math.cos(2 * i) + 1.3)

async function compare(
  row: Row,
  sample: readonly Arg[],
  layout: LayoutKind,
  backend: Backend,
  float: Float = 'float32',
): Promise<void> {
  const want = await results(row, sample, layout, reference, float)
  const got = await results(row, sample, layout, backend, float)
  const place = `${row.name}(${JSON.stringify(sample)}) ${layout} ${float}`
  const [close, loose] = tolerances[float]
  expect(
    got.map((r) => [r.what, r.dtype, r.shape]),
    place,
  ).toEqual(want.map((r) => [r.what, r.dtype, r.shape]))
  for (const [i, { what, shape, dtype, values }] of want.entries()) {
    const tolerance = !isFloat(dtype) ? EXACT : row.long || what.startsWith('gradient') ? loose : close
    expect(difference(got[i].values, values, shape, tolerance), `${what} of ${place}`).toBeNull()
  }
}

/** Ends of the range, signed zeros, halves, and what is no number. */
const SPECIAL = [
  0,
  -0,
  1,
  -1,
  0.5,
  -0.5,
  1e-30,
  -1e-30,
  1e30,
  -1e30,
  88,
  -88,
  104,
  -104,
  Infinity,
  -Infinity,
  Number.NaN,
]

/**
 * Tests of every operator on a backend against the reference, which computes in float64 and rounds when it stores. Single
 * elements may differ by a few float32 roundings (CLOSE), sums of many terms and gradients by more (LOOSE).
 */
export function testAgreement(device: string, backend: Backend): void {
  describe(`${device} agrees with the reference`, () => {
    for (const [i, row] of table.entries()) {
      test(`${row.name} (row ${i})`, async () => {
        for (const sample of row.samples)
          for (const layout of row.dense ? (['dense'] as const) : LAYOUTS)
            await compare(row, sample, layout, backend)
      })
    }
  })

  for (const float of ['float16', 'bfloat16'] as const)
    describe(`${device} agrees with the reference in ${float}`, () => {
      for (const [i, row] of table.entries()) {
        test(`${row.name} (row ${i})`, async () => {
          for (const sample of row.samples)
            for (const layout of row.dense ? (['dense'] as const) : (['dense', 'strided'] as const))
              await compare(row, sample, layout, backend, float)
        })
      }
    })

  describe(`${device} agrees on special values`, () => {
    for (const [i, row] of table.entries()) {
      if (!row.pointwise) continue
      test(`${row.name} (row ${i})`, async () => {
        // Values only: a gradient at an infinity is a matter of which formula is written down.
        await compare({ ...row, order: 0 }, [list([SPECIAL.length], SPECIAL)], 'dense', backend)
      })
    }

    const pairs = SPECIAL.flatMap((a) => SPECIAL.map((b) => [a, b] as const))
    const both = [0, 1].map((i) =>
      list(
        [pairs.length],
        pairs.map((p) => p[i]),
      ),
    )
    for (const name of [
      'add',
      'sub',
      'mul',
      'div',
      'pow',
      'maximum',
      'minimum',
      'eq',
      'ne',
      'lt',
      'le',
      'gt',
      'ge',
    ])
      test(name, async () => {
        const row = table.find((r) => r.name === name) as Row
        await compare({ ...row, order: 0 }, both, 'dense', backend)
      })
  })

  describe(`${device} draws the same random numbers`, () => {
    const draws: Record<string, (device: Backend) => Tensor> = {
      rand: (device) => tg.rand([100, 33], { device }),
      randn: (device) => tg.randn([100, 33], { device, mean: 2, std: 3 }),
      bernoulli: (device) => tg.bernoulli([1000], 0.3, { device }),
      randint: (device) => tg.randint(-7, 12, [1000], { device }),
      randperm: (device) => tg.randperm(500, { device }),
      dropout: (device) => tg.dropout(tg.ones([1000], { device }), 0.25),
    }
    for (const [name, draw] of Object.entries(draws))
      test(name, async () => {
        const from = async (device: Backend): Promise<tg.TypedArray> => {
          tg.manualSeed(11)
          draw(device)
          return data(draw(device))
        }
        const want = await from(reference)
        // The bits are the same; a logarithm and a cosine may round differently.
        expect(
          difference(await from(backend), want, [want.length], name === 'randn' ? CLOSE : EXACT),
        ).toBeNull()
      })
  })
}
