/** Expressions with more operands than a backend binds at once. */
import { describe, expect, test } from 'vitest'
import type { Backend } from '../src/dispatch/backend.ts'
import type { Primitives } from '../src/dispatch/kernels.ts'
import * as e from '../src/expr/expr.ts'
import { type Program, program, specialize, typedPostOrder } from '../src/expr/program.ts'
import {
  applyProgram,
  applyProgramAll,
  applyProgramInto,
  applyProgramIntoEach,
  DeviceError,
  type DType,
  dataSync,
  grad,
  memory,
  noGrad,
  profile,
  rand,
  reference,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '../src/index.ts'
import { operandLimit, partsOf } from '../src/primitives/parts.ts'
import { collected } from './support/collected.ts'

/** The reference, but for this: it refuses what touches more than `most` pieces of memory. */
function narrow(most: number): Backend & { calls: number } {
  const elementwise: Primitives['elementwise'] = {
    run(outputs, inputs, attrs, numbers) {
      const buffers = new Set([...outputs, ...inputs].map((v) => v.buffer))
      if (buffers.size > most) throw new DeviceError(`needs ${buffers.size} of ${most}`)
      self.calls++
      reference.kernels.elementwise.run(outputs, inputs, attrs, numbers)
    },
  }
  const kernels = { ...reference.kernels, elementwise }
  const self = { ...reference, name: `narrow ${most}`, operands: operandLimit(most), kernels, calls: 0 }
  return self
}

type List = readonly e.Expr[]
const sumOf = (xs: List): e.Expr => xs.reduce((a, b) => e.add(a, b))
/** Every gradient needs all the inputs: those of `product` on a chain that they share, those of `mixed` on another. */
const product = (xs: List): e.Expr => xs.reduce((a, b) => e.mul(a, b))
const mixed = (xs: List): e.Expr =>
  e.tanh(
    sumOf(xs.map((x, i) => e.mul(e.sin(e.mul(x, i + 1)), e.exp(e.neg(xs[(i + 3) % xs.length] as e.Expr))))),
  )
const chosen = (xs: List): e.Expr =>
  xs.reduce((a, x, i) => e.select(e.gt(x, 0.5), e.add(a, e.square(x)), e.mul(a, 0.9 - 0.01 * i)))
const builds = { product, mixed, chosen }

const float64 = (count: number, shapes: readonly (readonly number[])[] = [[3]]): Tensor[] =>
  Array.from({ length: count }, (_, k) => {
    const shape = shapes[k % shapes.length] as readonly number[]
    return withBackend(reference, () => rand([...shape], { dtype: 'float64' }).add(0.2))
  })

/** Outputs and gradients on a backend of inputs that are on the reference. */
function on(backend: Backend, p: Program, inputs: readonly Tensor[]): (readonly number[])[] {
  return withBackend(backend, () => {
    const xs = inputs.map((x) => tensor(dataSync(x) as Float64Array, [...x.shape], { requiresGrad: true }))
    const outputs = applyProgramAll(p, xs)
    // Not the same from every output, so that none takes another's place.
    const total = outputs.map((y, i) => y.mul(i + 1).sum()).reduce((a, b) => a.add(b))
    return [...outputs, ...grad(total, xs)].map((t) => [...dataSync(t)])
  })
}

function expectClose(
  got: readonly (readonly number[])[],
  want: readonly (readonly number[])[],
  by: number,
): void {
  expect(got.map((x) => x.length)).toEqual(want.map((x) => x.length))
  got.forEach((xs, k) =>
    xs.forEach((x, i) => {
      const w = want[k]?.[i] as number
      expect(Math.abs(x - w), `${k}[${i}]: ${x}, ${w}`).toBeLessThanOrEqual(by * (1 + Math.abs(w)))
    }),
  )
}

const limits = [4, 8, 16]
const counts = [3, 8, 10, 16, 20]

describe.each(limits)('a backend that binds %i operands', (most) => {
  test.each(Object.entries(builds))('%s: outputs and gradients of any number of inputs', (name, build) => {
    for (const count of counts) {
      const p = program(`${name}${count}`, count, build)
      const inputs = float64(count)
      const few = narrow(most)
      const got = on(few, p, inputs)
      // float64 is stored as it is computed.
      expectClose(got, on(reference, p, inputs), 1e-13)
      if (count >= most) expect(few.calls).toBeGreaterThan(2)
    }
  })

  test('the gradients are those of finite differences', () => {
    const p = program('mixed', 10, mixed)
    const inputs = float64(10, [[1]])
    const few = narrow(most)
    const at = (values: readonly number[]): number =>
      on(
        few,
        p,
        values.map((v) => tensor([v], { dtype: 'float64' })),
      )[0]?.[0] as number
    const values = inputs.map((x) => dataSync(x)[0] as number)
    const gradients = on(few, p, inputs).slice(1)
    const step = 1e-6
    const differences = values.map((_, k) => {
      const moved = (by: number): number => at(values.map((v, i) => (i === k ? v + by : v)))
      return [(moved(step) - moved(-step)) / (2 * step)]
    })
    // Central differences are good to step² and to rounding over the step.
    expectClose(gradients, differences, 1e-8)
  })

  test('several outputs, and inputs that broadcast', () => {
    const shapes = [[2, 1, 3], [3], [4, 1], [1], []]
    const p = program('several', 12, (xs) => [
      product(xs.slice(0, 9)),
      mixed(xs.slice(3)),
      e.add(xs[0] as e.Expr, 1),
      mixed(xs),
      xs[7] as e.Expr,
    ])
    const inputs = float64(12, shapes)
    expectClose(on(narrow(most), p, inputs), on(reference, p, inputs), 1e-13)
  })

  test('second derivatives', () => {
    const p = program('product', 10, product)
    const inputs = float64(10, [[2]])
    const second = (backend: Backend): (readonly number[])[] =>
      withBackend(backend, () => {
        const xs = inputs.map((x) => tensor(dataSync(x) as Float64Array, { requiresGrad: true }))
        const first = grad(applyProgram(p, xs).sum(), xs, { createGraph: true })
        const total = first.map((g, i) => g.mul(i + 1).sum()).reduce((a, b) => a.add(b))
        return grad(total, xs).map((t) => [...dataSync(t)])
      })
    expectClose(second(narrow(most)), second(reference), 1e-12)
  })

  test('bools and int32 among them, positions and numbers of the call', () => {
    const p = program(
      'kinds',
      12,
      (xs, [scale]) => {
        const floats = xs.slice(0, 6)
        const ints = xs.slice(6)
        const odd = e.and(e.eq(e.and(sumOf(ints), 1), 1), e.gt(sumOf(floats), 3))
        const place = e.add(e.index, e.mul(e.coord(-1), 10))
        return [
          e.select(odd, e.mul(sumOf(floats), scale as e.Expr), e.cast('float32', e.add(sumOf(ints), place))),
          odd,
          e.add(product(ints), place),
        ]
      },
      1,
    )
    const run = (backend: Backend): { dtype: DType; values: number[] }[] =>
      withBackend(backend, () => {
        const floats = Array.from({ length: 6 }, (_, k) => tensor([0.1 * k, 0.9, 0.7 - 0.2 * k]))
        const ints = Array.from({ length: 6 }, (_, k) => tensor(Int32Array.of(k + 1, 2), [2, 1]))
        return applyProgramAll(p, [...floats, ...ints], [0.3]).map((t) => ({
          dtype: t.dtype,
          values: [...dataSync(t)],
        }))
      })
    const [got, want] = [run(narrow(most)), run(reference)]
    expect(got.map((t) => t.dtype)).toEqual(want.map((t) => t.dtype))
    expect(got.slice(1)).toEqual(want.slice(1))
    // The reference rounds to float32 where something is stored.
    expectClose([got[0]?.values as number[]], [want[0]?.values as number[]], 1e-6)
  })

  test('in place: what one part overwrites, later ones read as it was', () => {
    const p = program('swap', 10, (xs) =>
      xs.map((_, i) => sumOf(xs.map((x, k) => e.mul(x, 1 + ((i * k) % 7))))),
    )
    const run = (backend: Backend): number[][] =>
      withBackend(backend, () => {
        const xs = Array.from({ length: 10 }, (_, k) => tensor([k + 1, 2 * k - 3], { dtype: 'float64' }))
        noGrad(() => applyProgramInto(xs, p, xs))
        applyProgramIntoEach(p, [{ outputs: xs, inputs: xs.map((x) => x.mul(1)) }])
        return xs.map((x) => [...dataSync(x)])
      })
    expect(run(narrow(most))).toEqual(run(reference))
  })

  test('in place into views of one piece of memory, from views that lie across them', () => {
    const p = program('across', 10, (xs) => [product(xs), mixed(xs), e.sub(xs[0] as e.Expr, xs[9] as e.Expr)])
    const run = (backend: Backend): number[] =>
      withBackend(backend, () => {
        const base = tensor(Float64Array.from({ length: 40 }, (_, i) => 0.5 + 0.02 * i))
        const xs = Array.from({ length: 10 }, (_, k) => base.narrow(0, 2 * k, 4))
        const others = Array.from({ length: 10 }, (_, k) => tensor([k, 1, 2, 3], { dtype: 'float64' }))
        const outputs = [0, 4, 8].map((i) => base.narrow(0, i, 4))
        applyProgramInto(outputs, p, [...xs.slice(0, 2), ...others.slice(2, 9), ...xs.slice(9)])
        return [...dataSync(base)]
      })
    const [got, want] = [run(narrow(most)), run(reference)]
    expectClose([got], [want], 1e-13)
  })

  test('no part reads and writes more, and every node keeps its dtype', () => {
    const p = program('mixed', 20, (xs) => [mixed(xs), product(xs), sumOf(xs.slice(4))])
    const kernel = specialize(p, new Array<DType>(20).fill('float32'), [])
    const parts = partsOf(kernel, most)
    expect(parts.length).toBeGreaterThan(1)
    for (const { kernel: part, reads, writes } of parts) {
      expect(reads.length + writes.length).toBeLessThanOrEqual(most)
      expect([part.inputs.length, part.exprs.length]).toEqual([reads.length, writes.length])
      const nodes = typedPostOrder(part.exprs)
      expect(new Set(nodes.map((t) => t.id)).size).toBe(nodes.length)
      expect(new Set(nodes.map((t) => t.dtype))).toEqual(new Set(['float32']))
      const used = nodes.flatMap((t) => (t.kind === 'input' ? [t.index] : []))
      expect([...used].sort((a, b) => a - b)).toEqual(reads.map((_, i) => i))
    }
    expect(parts.flatMap(({ writes }) => writes.filter((o) => o < 3)).sort()).toEqual([0, 1, 2])
  })
})

test('what fits takes one launch, memory that is shared counted once', () => {
  const few = narrow(8)
  const p = program('sum', 10, sumOf)
  withBackend(few, () => {
    const x = tensor([1, 2, 3, 4])
    const sum = applyProgram(
      p,
      Array.from({ length: 10 }, (_, k) => x.narrow(0, k % 3, 2)),
    )
    expect([...dataSync(sum)]).toEqual([19, 29])
    expect(few.calls).toBe(1)
    const { rows } = profile(() =>
      applyProgram(
        p,
        Array.from({ length: 10 }, () => tensor([1])),
      ),
    )
    expect(rows.map(({ op, calls }) => [op, calls])).toEqual([['sum', 2]])
  })
})

test('temporaries are freed, after their last use and after an error', async () => {
  const p = program('mixed', 20, mixed)
  await collected()
  withBackend(narrow(4), () => {
    const xs = Array.from({ length: 20 }, () => rand([1000]))
    const before = memory()
    const y = scope(() => applyProgram(p, xs))
    expect(memory().tensors - before.tensors).toBe(1)
    y.dispose()
    for (const x of xs) x.dispose()
  })
  const broken = narrow(4)
  broken.kernels.elementwise.run = () => {
    if (++broken.calls === 5) throw new DeviceError('lost')
  }
  withBackend(broken, () => {
    const xs = Array.from({ length: 20 }, () => tensor([1, 2]))
    const before = memory().tensors
    expect(() => scope(() => applyProgram(p, xs))).toThrow('lost')
    expect(memory().tensors).toBe(before)
  })
})
