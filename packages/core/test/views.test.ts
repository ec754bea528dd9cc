import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { add, dataSync, grad, layout, mul, reshape, type Tensor, tensor } from '../src/index.ts'

/**
 * Views against a model that knows no strides: a shape, and a function from an index to the number of the element of
 * the original it shows. All comparisons are exact: views do not compute.
 */
interface Model {
  readonly shape: readonly number[]
  at(index: readonly number[]): number
}

const indices = (shape: readonly number[]): number[][] =>
  shape.reduce<number[][]>(
    (all, n) => all.flatMap((index) => Array.from({ length: n }, (_, i) => [...index, i])),
    [[]],
  )
const flat = (m: Model): number[] => indices(m.shape).map((index) => m.at(index))

/** Python's range(*slice(start, end, step).indices(n)), step by step. */
function positions(n: number, start: number | undefined, end: number | undefined, step: number): number[] {
  const bound = (v: number | undefined, otherwise: number): number => {
    if (v === undefined) return otherwise
    const at = v < 0 ? v + n : v
    return step > 0 ? Math.min(Math.max(at, 0), n) : Math.min(Math.max(at, -1), n - 1)
  }
  const out: number[] = []
  const last = bound(end, step > 0 ? n : -1)
  for (let i = bound(start, step > 0 ? 0 : n - 1); step > 0 ? i < last : i > last; i += step) out.push(i)
  return out
}

type Step = readonly [name: string, a: number, b: number, c: number]
type Both = readonly [Tensor, Model]
const mod = (a: number, n: number): number => ((a % n) + n) % n

/** One view operator on the tensor and on the model; steps that do not fit the shape change nothing. */
function apply([t, m]: Both, [name, a, b, c]: Step): Both {
  const { shape } = m
  const rank = shape.length
  const d = rank === 0 ? 0 : mod(a, rank)
  const e = rank === 0 ? 0 : mod(b, rank)
  switch (name) {
    case 'permute': {
      // The a-th permutation, by picking dims one after the other.
      const left = shape.map((_, i) => i)
      const dims = shape.map((_, i) => left.splice(mod(a + i * b, left.length), 1)[0])
      const at: Model['at'] = (i) => m.at(shape.map((_, k) => i[dims.indexOf(k)]))
      return [t.permute(dims), { shape: dims.map((k) => shape[k]), at }]
    }
    case 'transpose': {
      if (rank === 0) return [t, m]
      const swap = (list: readonly number[]): number[] =>
        list.map((v, k) => (k === d ? list[e] : k === e ? list[d] : v))
      return [t.transpose(d, e - rank), { shape: swap(shape), at: (i) => m.at(swap(i)) }]
    }
    case 'slice': {
      if (rank === 0) return [t, m]
      const n = shape[d]
      const step = mod(c, 5) - 2 || 1
      const [start, end] = [
        a % 3 === 0 ? undefined : mod(a, 11) - 5,
        b % 3 === 0 ? undefined : mod(b, 11) - 5,
      ]
      const picked = positions(n, start, end, step)
      return [
        t.slice(start, end, { dim: d, step }),
        { shape: shape.with(d, picked.length), at: (i) => m.at(i.with(d, picked[i[d]])) },
      ]
    }
    case 'select': {
      if (rank === 0 || shape[d] === 0) return [t, m]
      const at = mod(b, shape[d])
      return [
        t.select(d, c % 2 === 0 ? at : at - shape[d]),
        { shape: shape.toSpliced(d, 1), at: (i) => m.at(i.toSpliced(d, 0, at)) },
      ]
    }
    case 'flip': {
      if (rank === 0) return [t, m]
      return [t.flip(d), { shape, at: (i) => m.at(i.with(d, shape[d] - 1 - i[d])) }]
    }
    case 'diagonal': {
      if (rank < 2 || d === e) return [t, m]
      const offset = mod(c, 7) - 3
      const [row, column] = [Math.max(0, -offset), Math.max(0, offset)]
      const size = Math.max(0, Math.min(shape[d] - row, shape[e] - column))
      const rest = shape.map((_, k) => k).filter((k) => k !== d && k !== e)
      const at: Model['at'] = (i) =>
        m.at(
          shape.map((_, k) =>
            k === d ? row + i[rest.length] : k === e ? column + i[rest.length] : i[rest.indexOf(k)],
          ),
        )
      return [t.diagonal({ offset, dim1: d, dim2: e }), { shape: [...rest.map((k) => shape[k]), size], at }]
    }
    case 'unsqueeze': {
      if (rank > 4) return [t, m]
      const at = mod(a, rank + 1)
      return [t.unsqueeze(at), { shape: shape.toSpliced(at, 0, 1), at: (i) => m.at(i.toSpliced(at, 1)) }]
    }
    case 'squeeze': {
      const keep = shape.map((_, k) => k).filter((k) => shape[k] !== 1)
      return [
        t.squeeze(),
        {
          shape: keep.map((k) => shape[k]),
          at: (i) => m.at(shape.map((_, k) => (keep.includes(k) ? i[keep.indexOf(k)] : 0))),
        },
      ]
    }
    case 'expand': {
      if (rank > 4) return [t, m]
      const lead = mod(a, 2)
      const to = [...(lead ? [mod(b, 3)] : []), ...shape.map((n) => (n === 1 ? mod(c, 4) : n))]
      return [
        t.expand(to.map((n, k) => (k >= lead && n === shape[k - lead] ? -1 : n))),
        { shape: to, at: (i) => m.at(shape.map((n, k) => (n === 1 ? 0 : i[k + lead]))) },
      ]
    }
    default: {
      // reshape: the elements in order, cut anew.
      const values = flat(m)
      const total = values.length
      const divisors = Array.from({ length: total }, (_, k) => k + 1).filter((k) => total % k === 0)
      const first = total === 0 ? 0 : divisors[mod(a, divisors.length)]
      const to = total === 0 ? [mod(a, 3), 0] : [first, total / first]
      return [
        reshape(t, c % 2 === 0 && total > 0 ? [first, -1] : to),
        { shape: to, at: (i) => values[i[0] * to[1] + i[1]] },
      ]
    }
  }
}

const names = [
  'permute',
  'transpose',
  'slice',
  'select',
  'flip',
  'diagonal',
  'unsqueeze',
  'squeeze',
  'expand',
  'reshape',
]
const shapes = fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 })
const number = fc.integer({ min: 0, max: 1000 })
const steps = fc.array(fc.tuple(fc.constantFrom(...names), number, number, number), { maxLength: 6 })

function start(shape: readonly number[]): Both {
  const n = layout.numel(shape)
  const x = tensor(
    Float64Array.from({ length: n }, (_, i) => i),
    shape,
    { requiresGrad: true },
  )
  const strides = layout.contiguousStrides(shape)
  return [x, { shape, at: (index) => index.reduce((sum, i, d) => sum + i * strides[d], 0) }]
}

describe('views', () => {
  test('chains of them show the elements of the model, and send gradients back to them', () => {
    fc.assert(
      fc.property(shapes, steps, (shape, chain) => {
        const [x, model] = start(shape)
        const [y, m] = chain.reduce(apply, [x, model])
        expect(y.shape).toEqual(m.shape)
        const seen = flat(m)
        expect([...dataSync(y)]).toEqual(seen)
        expect(y.isContiguous).toBe(
          y.numel === 0 || indices(y.shape).every((index, i) => offset(y, index) === y.offset + i),
        )
        if (!y.requiresGrad || y === x) return
        const weights = Float64Array.from(seen, (_, i) => 3 ** (i % 7))
        const want = new Float64Array(x.numel)
        seen.forEach((from, i) => {
          want[from] += weights[i]
        })
        const [g] = grad(y, [x], { gradOutputs: [tensor(weights, y.shape)], allowUnused: true })
        expect(g ? dataSync(g) : new Float64Array(x.numel)).toEqual(want)
      }),
      { numRuns: 500, seed: 1 },
    )
  })

  test('of one storage share its memory', () => {
    const x = tensor([1, 2, 3, 4], [2, 2])
    const y = x.transpose(0, 1).select(0, 1)
    x.fill_(7)
    expect(y.storage).toBe(x.storage)
    expect([...dataSync(y)]).toEqual([7, 7])
  })
})

const offset = (l: { strides: readonly number[]; offset: number }, index: readonly number[]): number =>
  index.reduce((sum, i, d) => sum + i * l.strides[d], l.offset)

describe('reshapeLayout', () => {
  test('finds strides exactly where there are some', () => {
    fc.assert(
      fc.property(shapes, steps, number, number, (shape, chain, a, b) => {
        const [x, m] = start(shape)
        const [y] = chain.reduce(apply, [x, m])
        const total = y.numel
        fc.pre(total > 0)
        const divisors = Array.from({ length: total }, (_, k) => k + 1).filter((k) => total % k === 0)
        const first = divisors[a % divisors.length]
        const rest = Array.from({ length: total / first }, (_, k) => k + 1).filter(
          (k) => (total / first) % k === 0,
        )
        const second = rest[b % rest.length]
        const to = [first, second, total / first / second]
        const from = indices(y.shape).map((index) => offset(y, index))
        // A view exists if one stride per dim explains where every element is.
        const places = indices(to)
        const unit = (d: number): number => {
          const at = places.findIndex((index) => index.every((v, k) => v === (k === d ? 1 : 0)))
          return at < 0 ? 0 : from[at] - from[0]
        }
        const strides = to.map((_, d) => unit(d))
        const exists = places.every(
          (index, i) => from[i] === from[0] + index.reduce((s, v, d) => s + v * strides[d], 0),
        )
        const found = layout.reshapeLayout(y, to)
        expect(found !== null).toBe(exists)
        if (found) expect(places.map((index) => offset(found, index))).toEqual(from)
      }),
      { numRuns: 500, seed: 1 },
    )
  })
})

describe('broadcasting', () => {
  /** NumPy's rule, one dim at a time from the right. */
  const rule = (a: readonly number[], b: readonly number[]): number[] | null => {
    const out: number[] = []
    for (let i = 1; i <= Math.max(a.length, b.length); i++) {
      const [m, n] = [a[a.length - i] ?? 1, b[b.length - i] ?? 1]
      if (m !== n && m !== 1 && n !== 1) return null
      out.unshift(m === 1 ? n : m)
    }
    return out
  }

  test('two operands follow the rule, in values and in gradients', () => {
    fc.assert(
      fc.property(shapes, shapes, fc.boolean(), (left, right, mostlyOnes) => {
        // Random shapes rarely fit; sizes of 1 and 3 often do.
        const soften = (s: readonly number[]): number[] =>
          mostlyOnes ? s.map((n) => (n < 3 ? 1 : 3)) : [...s]
        const [a, b] = [soften(left), soften(right)]
        const shape = rule(a, b)
        const [[x], [y]] = [start(a), start(b)]
        if (shape === null) {
          expect(() => add(x, y)).toThrow(/add: shapes \[.*\] and \[.*\] do not broadcast/)
          return
        }
        const z = add(mul(x, 10), y)
        expect(z.shape).toEqual(shape)
        const at = (s: readonly number[], index: readonly number[]): number => {
          const own = index.slice(index.length - s.length).map((i, d) => (s[d] === 1 ? 0 : i))
          const strides = layout.contiguousStrides(s)
          return own.reduce((sum, i, d) => sum + i * strides[d], 0)
        }
        expect([...dataSync(z)]).toEqual(indices(shape).map((index) => 10 * at(a, index) + at(b, index)))
        const [dx, dy] = grad(z, [x, y], { gradOutputs: [tensor(new Float64Array(z.numel).fill(1), shape)] })
        const times = (s: readonly number[]): number[] => {
          const counts = new Array<number>(layout.numel(s)).fill(0)
          for (const index of indices(shape)) counts[at(s, index)]++
          return counts
        }
        expect([...dataSync(dx)]).toEqual(times(a).map((n) => 10 * n))
        expect([...dataSync(dy)]).toEqual(times(b))
      }),
      { numRuns: 300, seed: 1 },
    )
  })

  test('of many shapes is that of pairs', () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.constantFrom(1, 1, 3), { maxLength: 4 }), { minLength: 1, maxLength: 4 }),
        (all) => {
          const pairwise = all.reduce<number[] | null>((p, s) => p && rule(p, s), [])
          expect(pairwise).not.toBeNull()
          expect(layout.broadcastShapes('op', all)).toEqual(pairwise)
        },
      ),
    )
  })
})
