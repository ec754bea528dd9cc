import {
  compile,
  manualSeed,
  memory,
  noGrad,
  ones,
  randn,
  scope,
  type Tensor,
  TilegradError,
  zeros,
} from '@tilegrad/core'
import { Dropout1d, Dropout2d, Flatten, Identity, Linear, Sequential, Unflatten } from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { gradcheckModule, values } from './helpers.ts'

describe('Flatten, Unflatten, Identity', () => {
  it('reshape as the methods do', () => {
    const x = randn([2, 3, 4, 5])
    expect(new Flatten().forward(x).shape).toEqual([2, 60])
    expect(new Flatten(0, -2).forward(x).shape).toEqual([24, 5])
    expect(values(new Flatten().forward(x))).toEqual(values(x))
    const back = new Unflatten(1, [3, -1, 5])
    expect(back.forward(new Flatten().forward(x)).shape).toEqual([2, 3, 4, 5])
    expect(new Unflatten(-1, [5, 1]).forward(x).shape).toEqual([2, 3, 4, 5, 1])
    expect(new Identity().forward(x)).toBe(x)
    expect(new Identity().forward('anything')).toBe('anything')
  })

  it('print themselves, and run in a row', () => {
    const net = new Sequential(new Flatten(), new Linear(12, 6), new Identity(), new Unflatten(1, [2, 3]))
    expect(net.forward(ones([5, 3, 4])).shape).toEqual([5, 2, 3])
    expect(String(net)).toBe(
      'Sequential(\n  (0): Flatten(startDim=1, endDim=-1)\n  (1): Linear(inFeatures=12, outFeatures=6, bias=true)\n  (2): Identity()\n  (3): Unflatten(dim=1, sizes=[2, 3])\n)',
    )
    gradcheckModule(net, [randn([2, 3, 4])], (m, x) => m.forward(x))
  })

  it('of no rows have none', () => {
    expect(new Flatten().forward(zeros([0, 3, 4])).shape).toEqual([0, 12])
  })

  it.each([
    [
      'an option',
      () => new Flatten({ startDim: 1 } as never),
      'Flatten: startDim must be an integer, got an',
    ],
    ['no sizes', () => new Unflatten(1, undefined as never), 'Unflatten: sizes are an array, got undefined'],
    ['half a size', () => new Unflatten(1, [1.5]), 'Unflatten: 0 must be an integer, got 1.5'],
    ['a vector', () => new Flatten().forward(ones([3])), 'flatten'],
    ['what does not fit', () => new Unflatten(0, [2, 2]).forward(ones([3])), 'unflatten'],
  ])('refuse %s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })
})

describe('dropout of channels', () => {
  it.each([
    ['Dropout1d', new Dropout1d(0.4), [40, 7, 5], 1],
    ['Dropout1d of one', new Dropout1d(0.4), [280, 5], 1],
    ['Dropout2d', new Dropout2d(0.4), [40, 7, 2, 3], 2],
  ] as const)('%s drops whole ones, and scales the others', (_, layer, shape, dims) => {
    manualSeed(4)
    const y = layer.forward(ones(shape))
    expect(y.shape).toEqual(shape)
    const size = shape.slice(-dims).reduce((n: number, k) => n * k, 1)
    const flat = values(y)
    const channels = Array.from({ length: flat.length / size }, (_, i) =>
      flat.slice(i * size, (i + 1) * size),
    )
    for (const c of channels) expect(new Set(c).size).toBe(1)
    const dropped = channels.filter(([v]) => v === 0).length
    // 280 draws at 0.4: 112 ± 8 (one standard deviation); five of them on either side.
    expect(Math.abs(dropped - 112)).toBeLessThan(41)
    // 1 / 0.6 in float32.
    for (const [v] of channels) if (v !== 0) expect(v).toBe(Math.fround(1 / 0.6))
    expect(values(layer.eval().forward(ones(shape))).every((v) => v === 1)).toBe(true)
    layer.train()
  })

  it('has a gradient where it keeps', () => {
    gradcheckModule(new Dropout2d(0.5), [randn([2, 3, 2, 2])], (layer, x) => {
      manualSeed(5)
      return layer.forward(x)
    })
  })

  it('draws anew in a compiled step', () => {
    const layer = new Dropout1d(0.5)
    using step = compile((x: Tensor) => layer.forward(x))
    const x = ones([64, 3])
    const seen = new Set(Array.from({ length: 6 }, () => values(step(x)).join()))
    expect(step.plans.length).toBe(1)
    expect(seen.size).toBe(6)
  })

  it('keeps nothing that it makes on the way', async () => {
    await collected()
    const x = randn([2, 3, 4, 4])
    const before = memory().tensors
    const y = noGrad(() => new Dropout2d(0.5).forward(x))
    expect(memory().tensors).toBe(before + 1)
    expect(y.shape).toEqual(x.shape)
    const leaf = randn([2, 3, 4, 4], { requiresGrad: true })
    scope(() => new Dropout2d(0.5).forward(leaf).sum().backward())
    leaf.grad?.dispose()
    leaf.dispose()
    expect(memory().tensors).toBe(before + 1)
  })

  it.each([
    [
      'Dropout1d',
      () => new Dropout1d(0.1).forward(ones([3])),
      'Dropout1d: expected (N, C, L) or (C, L), got [3]',
    ],
    ['Dropout2d', () => new Dropout2d(0.1).forward(ones([3, 2, 2])), 'Dropout2d: expected (N, C, H, W), got'],
    ['Dropout2d p', () => new Dropout2d(1.1), 'probability must lie within 0 … 1, got 1.1'],
  ])('%s refuses what does not fit', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })

  it('keeps the dtype, and prints its probability', () => {
    expect(new Dropout2d(0.5).forward(ones([2, 3, 4, 4]).to('float16')).dtype).toBe('float16')
    expect(String(new Dropout2d(0.25))).toBe('Dropout2d(p=0.25)')
  })
})
