import { beforeEach, describe, expect, test } from 'vitest'
import {
  arange,
  GradError,
  type Index,
  memory,
  noGrad,
  rand,
  reference,
  setDefaultBackend,
  type Tensor,
  TilegradError,
  tensor,
  zeros,
} from '../src/index.ts'

beforeEach(() => setDefaultBackend('reference'))

/** A small generator, so that failures can be repeated. */
function random(seed: number): (n: number) => number {
  let s = seed
  return (n) => {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0
    return Math.floor((s / 2 ** 32) * n)
  }
}

/** What an index means along one dim: the elements it takes, and whether the dim stays. */
interface Taken {
  readonly kind: 'one' | 'slice' | 'new' | 'list'
  readonly at: readonly number[]
}

/** Python's indices of a slice, step by step. */
function range(n: number, start: number | null, end: number | null, step: number): number[] {
  const clip = (v: number, low: number, high: number): number =>
    Math.min(Math.max(v < 0 ? v + n : v, low), high)
  const out: number[] = []
  if (step > 0)
    for (let i = clip(start ?? 0, 0, n); i < (end === null ? n : clip(end, 0, n)); i += step) out.push(i)
  else
    for (
      let i = start === null ? n - 1 : clip(start, -1, n - 1);
      i > (end === null ? -1 : clip(end, -1, n - 1));
      i += step
    )
      out.push(i)
  return out
}

/** A random index of a shape, what it means dim by dim, and the positions it takes in row-major order. */
function draw(pick: (n: number) => number): {
  shape: number[]
  indices: Index[]
  want: number[]
  out: number[]
} {
  const shape = Array.from({ length: 1 + pick(4) }, () => 1 + pick(5))
  const indices: Index[] = []
  const taken: Taken[] = []
  const listLength = 1 + pick(3)
  let lists = 0
  let d = 0
  const ellipsis = pick(3) === 0 ? pick(shape.length + 1) : -1
  let skipped = false
  while (d < shape.length) {
    const n = shape[d] as number
    if (d === ellipsis && !skipped) {
      skipped = true
      const count = pick(shape.length - d + 1)
      // Only where all that follows is mentioned.
      indices.push('...')
      for (let i = 0; i < count; i++, d++)
        taken.push({ kind: 'slice', at: range(shape[d] as number, null, null, 1) })
      continue
    }
    const kind = pick(6)
    if (kind === 0) {
      indices.push(null)
      taken.push({ kind: 'new', at: [0] })
      if (indices.length > 9) break
      continue
    }
    if (kind === 1) {
      const i = pick(2 * n) - n
      indices.push(i)
      taken.push({ kind: 'one', at: [i < 0 ? i + n : i] })
    } else if (kind === 2 || kind === 3) {
      const bound = (): number | null => (pick(3) === 0 ? null : pick(2 * n + 3) - n - 1)
      const [start, end] = [bound(), bound()]
      const step = [1, 1, 2, 3, -1, -2][pick(6)] as number
      const text = (v: number | null): string => (v === null ? '' : String(v))
      indices.push(pick(2) === 0 ? [start, end, step] : `${text(start)}:${text(end)}:${step}`)
      taken.push({ kind: 'slice', at: range(n, start, end, step) })
    } else if (kind === 4) {
      const length = pick(3) === 0 ? 1 : listLength
      const list = Array.from({ length }, () => pick(2 * n) - n)
      indices.push(pick(2) === 0 ? Int32Array.from(list) : tensor(Int32Array.from(list)))
      const wrapped = list.map((i) => (i < 0 ? i + n : i))
      taken.push({ kind: 'list', at: wrapped })
      lists++
    } else {
      indices.push(':')
      taken.push({ kind: 'slice', at: range(n, null, null, 1) })
    }
    d++
  }
  if (skipped === false && ellipsis >= 0 && d === shape.length && ellipsis === d) indices.push('...')
  // The oracle: dims of the view, then PyTorch's placing of the lists.
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((p, n) => p * n, 1))
  interface Dim {
    readonly offsets: readonly number[]
    readonly list: boolean
  }
  const dims: Dim[] = []
  let base = 0
  let source = 0
  for (const t of taken) {
    if (t.kind === 'new') dims.push({ offsets: [0], list: false })
    else {
      const step = strides[source++] as number
      if (t.kind === 'one') base += (t.at[0] as number) * step
      else dims.push({ offsets: t.at.map((i) => i * step), list: t.kind === 'list' })
    }
  }
  const longest = Math.max(1, ...dims.filter((x) => x.list).map((x) => x.offsets.length))
  const places = dims.flatMap((x, i) => (x.list ? [i] : []))
  let order: Dim[] = dims
  if (lists > 0) {
    const joint: Dim = {
      list: true,
      offsets: Array.from({ length: longest }, (_, k) =>
        places.reduce((sum, p) => {
          const { offsets } = dims[p] as Dim
          return sum + (offsets[offsets.length === 1 ? 0 : k] as number)
        }, 0),
      ),
    }
    const adjacent = places.every((p, i) => p === (places[0] as number) + i)
    const others = dims.filter((x) => !x.list)
    order = adjacent ? others.toSpliced(places[0] as number, 0, joint) : [joint, ...others]
  }
  const want: number[] = []
  const walk = (k: number, at: number): void => {
    if (k === order.length) want.push(at)
    else for (const o of (order[k] as Dim).offsets) walk(k + 1, at + o)
  }
  walk(0, base)
  return { shape, indices, want, out: order.map((x) => x.offsets.length) }
}

describe('at', () => {
  test('takes what Python would, over 3,000 random indices', async () => {
    const pick = random(7)
    for (let i = 0; i < 3000; i++) {
      const { shape, indices, want, out } = draw(pick)
      const n = shape.reduce((p, s) => p * s, 1)
      const x = arange(n).reshape(shape)
      const y = x.at(...indices)
      const text = `${JSON.stringify(shape)} ${indices.map(String)}`
      expect(y.shape, text).toEqual(out)
      expect([...(await y.data())], text).toEqual(want)
    }
  })

  test('is a view without tensors', async () => {
    const x = zeros([3, 4])
    x.at('1:', 0).fill_(5)
    expect(await x.toArray()).toEqual([
      [0, 0, 0, 0],
      [5, 0, 0, 0],
      [5, 0, 0, 0],
    ])
  })

  test('is one view, whatever the number of indices, and never x itself', () => {
    const x = zeros([3, 4], { requiresGrad: true })
    const before = memory().tensors
    const y = x.at('1:', 0, null)
    const all = x.at()
    expect(memory().tensors - before).toBe(2)
    expect(all).not.toBe(x)
    expect(y.shape).toEqual([2, 1])
    y.sum().backward()
    expect([...(x.grad as Tensor).dataSync()]).toEqual([0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
  })

  test('gives gradients to every place as often as it was taken', async () => {
    const x = rand([4, 3], { requiresGrad: true })
    x.at(tensor([0, 2, 2], { dtype: 'int32' }), '1:')
      .sum()
      .backward()
    expect(await x.grad?.toArray()).toEqual([
      [0, 1, 1],
      [0, 0, 0],
      [0, 2, 2],
      [0, 0, 0],
    ])
  })

  test('says what is wrong', () => {
    const x = zeros([2, 3])
    const wrong: [() => unknown, string][] = [
      [() => x.at(2), 'at: index 2 is out of range for dim 0 of [2, 3]'],
      [() => x.at(0, 1.5), 'at: index 1.5 is out of range for dim 0 of [3]'],
      [() => x.at(0, 0, 0), 'at: 3 indices for 2 dims of [2, 3]'],
      [() => x.at('...', '...'), "at: '...' may occur once"],
      [() => x.at('a'), "at: 'a' is no slice; expected whole numbers, as in '1:-1' or '::2'"],
      [() => x.at('1:2:3:4'), "at: '1:2:3:4' is no slice"],
      [
        () => x.at([0, 1, 2, 3]),
        'at: an array is a slice, [from, to] or [from, to, step], got an array [0, 1, 2, 3]',
      ],
      [() => x.at(x.gt(0)), 'at: how many elements a mask takes only the device knows'],
      [() => x.at(tensor([0.5])), 'at: a tensor that indexes must be int32, or bool as a mask, not float32'],
      [() => x.at(true as never), 'at: cannot index by true; expected numbers, slices'],
      [() => x.at(tensor([5], { dtype: 'int32' })).dataSync(), 'out of range'],
      [
        () => x.at(tensor([0], { dtype: 'int32' }), tensor([3], { dtype: 'int32' })).dataSync(),
        'out of range',
      ],
      [() => x.set(0 as never, 1), "set: takes the indices in an array, as x.set([0, '1:'], 5), got 0"],
      [() => x.set([x.gt(0)], tensor([1, 2, 3, 4, 5])), 'set: values [5] for a mask must be one for all'],
      [() => x.slice(0, 1, 2 as never), 'slice: takes (start, end, { dim, step })'],
      [() => x.sizes(3), 'sizes: expected 3 dims, got [2, 3]'],
    ]
    for (const [run, message] of wrong) expect(run, message).toThrow(message)
  })
})

test('set leaves nothing behind, also where it is refused', () => {
  const x = zeros([3, 4])
  const i = tensor([0, 2], { dtype: 'int32' })
  const before = memory().tensors
  x.set([0, '1:'], 5).set([i], 2).set(['1:', 0], 1, { accumulate: true }).clamp_(0, 3)
  expect(() => x.set([0], [1, 2])).toThrow(TilegradError)
  const leaf = zeros([2], { requiresGrad: true })
  expect(() => leaf.clamp_(0, 1)).toThrow(GradError)
  expect(memory().tensors - before).toBe(1)
})

describe('set', () => {
  test('puts what Python would, over 1,500 random indices', async () => {
    const pick = random(11)
    for (let i = 0; i < 1500; i++) {
      const { shape, indices, want, out } = draw(pick)
      const n = shape.reduce((p, s) => p * s, 1)
      const accumulate = pick(2) === 0
      const x = arange(n).reshape(shape).to('float32')
      const full = pick(3) > 0
      const value = full ? arange(want.length).add(100).reshape(out).to('float32') : tensor([7]).reshape([])
      const expected = Array.from({ length: n }, (_, k) => k)
      want.forEach((p, k) => {
        const v = full ? 100 + k : 7
        expected[p] = accumulate ? (expected[p] as number) + v : v
      })
      const text = `${JSON.stringify(shape)} ${indices.map(String)} ${accumulate}`
      const copy = x.indexPut(indices, value, { accumulate })
      expect([...(await x.data())], text).toEqual(Array.from({ length: n }, (_, k) => k))
      expect([...(await copy.data())], text).toEqual(expected)
      x.set(indices, value, { accumulate })
      expect([...(await x.data())], text).toEqual(expected)
    }
  })

  test('takes masks and numbers', async () => {
    const x = tensor([
      [1, -2],
      [-3, 4],
    ])
    await x.set([x.lt(0)], 0)
    expect(await x.toArray()).toEqual([
      [1, 0],
      [0, 4],
    ])
    x.set([tensor([false, true])], tensor([8, 9]))
    expect(await x.toArray()).toEqual([
      [1, 0],
      [8, 9],
    ])
    x.set(['...', 0], 5, { accumulate: true })
    expect(await x.toArray()).toEqual([
      [6, 0],
      [13, 9],
    ])
  })

  test('is refused on the tape, where indexPut gives gradients', async () => {
    const x = rand([3], { requiresGrad: true })
    expect(() => x.set([0], 1)).toThrow(GradError)
    noGrad(() => x.set([0], 1))
    const v = tensor([2], { requiresGrad: true })
    const y: Tensor = x.indexPut(['1:2'], v)
    y.mul(tensor([1, 10, 100]))
      .sum()
      .backward()
    expect(await x.grad?.toArray()).toEqual([1, 0, 100])
    expect(await v.grad?.toArray()).toEqual([10])
  })
})

test('what is found', async () => {
  const x = tensor([
    [0, 7],
    [8, 0],
  ])
  const places = await x.nonzero()
  expect(await (await x.argwhere()).toArray()).toEqual([
    [0, 1],
    [1, 0],
  ])
  expect(await x.at(...places).toArray()).toEqual([7, 8])
  expect(await (await x.maskedSelect(x.gt(0))).toArray()).toEqual([7, 8])
  const y = tensor([3, Number.NaN, 1, 3])
  const { values, inverse, counts } = await y.unique({ returnInverse: true, returnCounts: true })
  expect(await values.toArray()).toEqual([1, 3, Number.NaN])
  expect(await inverse?.toArray()).toEqual([1, 2, 0, 1])
  expect(await counts?.toArray()).toEqual([1, 2, 1])
  expect(await (await tensor([1, 3, 1], { dtype: 'int32' }).bincount({ minlength: 6 })).toArray()).toEqual([
    0, 2, 0, 1, 0, 0,
  ])
  expect(await tensor([1, 2]).allclose(tensor([1, 2.1]))).toBe(false)
  expect(x.backend).toBe(reference)
})

test('sizes of a known rank are numbers', () => {
  const [b, t, c] = zeros([2, 3, 4]).sizes(3)
  const product: number = b * t * c
  expect(product).toBe(24)
  expect(zeros([2, 3]).size(-1)).toBe(3)
  // @ts-expect-error there is no fourth
  const [, , , fourth] = zeros([2, 3, 4]).sizes(3)
  expect(fourth).toBe(undefined)
})
