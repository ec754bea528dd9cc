/** Elementwise operators on operands of every layout: contiguous, rows of vectors, and none of these. */

import {
  add,
  applyProgramAll,
  applyProgramInto,
  type Backend,
  cat,
  data,
  expr,
  grad,
  manualSeed,
  mul,
  program,
  rand,
  randn,
  reference,
  type Tensor,
  where,
  withBackend,
} from '@tilegrad/core'
import { expect, test } from 'vitest'
import type { Engine } from './fused.ts'
import { mismatch } from './operand.ts'

/** Tensors that `make` returns, on all backends and on the reference, from the same random numbers. */
async function agree(
  { backends }: Engine,
  make: () => Tensor | readonly Tensor[],
  { atol = 1e-6, rtol = 1e-5 } = {},
): Promise<void> {
  const on = async (backend: Backend) => {
    manualSeed(1)
    const made = withBackend(backend, make)
    const tensors = Array.isArray(made) ? (made as Tensor[]) : [made as Tensor]
    return Promise.all(tensors.map(async (t) => ({ shape: t.shape, dtype: t.dtype, values: await data(t) })))
  }
  const want = await on(reference)
  for (const { name, backend } of backends) {
    const got = await on(backend)
    expect(got.map(({ shape, dtype }) => ({ shape, dtype }))).toEqual(
      want.map(({ shape, dtype }) => ({ shape, dtype })),
    )
    got.forEach(({ values }, i) => {
      expect(mismatch(values, want[i].values, atol, rtol), `${name}: output ${i} of ${make}`).toBeNull()
    })
  }
}

// One rounding per operator.
const exact = { atol: 1e-6, rtol: 1e-6 }

const cases: Readonly<Record<string, () => Tensor | readonly Tensor[]>> = {
  'heads swapped with positions, as attention does': () => rand([2, 5, 3, 8]).transpose(1, 2).contiguous(),
  'rows in steps of a packed projection': () => {
    const packed = rand([6, 24])
    return [0, 1, 2].map((i) => packed.narrow(1, 8 * i, 8).mul(2))
  },
  'rows that begin in the middle of a vector': () => rand([6, 24]).narrow(1, 2, 8).mul(2),
  'rows whose distance is no whole vector': () => rand([6, 10]).narrow(1, 0, 8).add(1),
  'one number per row, and one row for all': () => add(mul(rand([3, 4, 12]), rand([3, 4, 1])), rand([12])),
  'a matrix and its transpose': () => add(rand([8, 8]), rand([8, 8]).T),
  'rows backwards': () => rand([5, 8]).flip([0]).mul(3),
  'numbers of a row backwards': () => rand([5, 8]).flip([1]).mul(3),
  'bools and int32': () => where(rand([4, 3, 8]).transpose(0, 1).gt(0.5), rand([3, 4, 1]), rand([8])),
  'written in place into rows': () => {
    const x = rand([4, 16])
    x.narrow(1, 4, 8).mul_(2)
    return x
  },
  // Sizes that fill a GPU's buffer, where what comes after the last element is nobody's only if it is no tensor's.
  'written in place into all but the last elements': () =>
    [1, 2, 3].flatMap((left) =>
      [64, 256, 1024].map((n) => {
        const x = rand([n])
        x.narrow(0, 0, n - left).mul_(2)
        return x
      }),
    ),
  'put together along rows': () => cat([rand([3, 8]), rand([3, 4]), rand([3, 12])], 1),
}

/** More operands than a GPU binds: each output and each gradient needs all inputs. */
const weighed = (xs: readonly expr.Expr[]): expr.Expr =>
  xs
    .map((x, i) => expr.mul(x, expr.sin(expr.mul(xs.at(i - 3) as expr.Expr, 0.1 * i))))
    .reduce((a, b) => expr.add(a, b))
const product = (xs: readonly expr.Expr[]): expr.Expr => xs.reduce((a, b) => expr.mul(a, b))

const shapes = [[2, 1, 4], [4], [3, 1], []]
const manyOf = (count: number): Tensor[] =>
  Array.from({ length: count }, (_, k) => rand(shapes[k % shapes.length] as number[]).add(0.5))
const many = (count: number) => (): Tensor[] => {
  const p = program('many', count, (xs) => [weighed(xs), product(xs), expr.gt(product(xs), 1)])
  const xs = manyOf(count)
  for (const x of xs) x.requiresGrad = true
  const [a, b, c] = applyProgramAll(p, xs) as [Tensor, Tensor, Tensor]
  return [a, b, c, ...grad(a.mul(0.5).sum().add(b.sum()), xs)]
}
const manyInPlace = (count: number) => (): Tensor[] => {
  const p = program('in_place', count, (xs) =>
    xs.map((_, i) => xs.map((x, k) => expr.mul(x, 0.1 + ((i * k) % 7))).reduce((a, b) => expr.add(a, b))),
  )
  const memory = rand([count / 2, 2, 4])
  // Neighbours share their memory.
  const xs = Array.from({ length: count }, (_, k) =>
    k < 4 ? memory.select(0, k >> 1).select(0, k & 1) : rand([4]),
  )
  applyProgramInto(xs, p, xs)
  return [memory, ...xs]
}

export function testElementwise(engine: Engine): void {
  test.each(Object.entries(cases))('%s', async (_, make) => {
    await agree(engine, make, exact)
  })

  test.each([8, 10, 16, 20])('%i inputs, and the gradients of all', async (count) => {
    // Sums and products of 20 numbers of about 1.
    await agree(engine, many(count), { atol: 1e-5, rtol: 1e-5 })
  })

  test.each([10, 20])('%i tensors in place', async (count) => {
    await agree(engine, manyInPlace(count), { atol: 1e-5, rtol: 1e-5 })
  })

  test('random numbers, longer than a thread takes four of', async () => {
    // Near its zeros the cosine is off by some 10⁻⁷, times a radius of up to 6.
    await agree(engine, () => randn([1003]), { atol: 5e-6, rtol: 5e-6 })
  })
}
