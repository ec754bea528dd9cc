import { gradcheck, manualSeed, randn, type Tensor, tensor, zeros } from '@tilegrad/core'
import { alibiSlopes, type Linear, MultiHeadAttention, type MultiHeadAttentionOptions } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectNumbers, gradcheckModule, values } from './helpers.ts'
import { type Written, writtenAttention } from './written-attention.ts'

beforeEach(() => manualSeed(31))

// float64 in another order of sums; angles of core's rotary embedding are right to 1e-15 per position.
const CLOSE = { atol: 1e-12, rtol: 1e-10 }

const powers = (base: number, dim: number): number[] =>
  Array.from({ length: dim / 2 }, (_, i) => base ** ((-2 * i) / dim))

/** Llama 3.1's slowing by 8 as its authors wrote it, by wave length. */
const llama3 = (f: number): number => {
  const [factor, low, high, original] = [8, 1, 4, 64]
  const wave = (2 * Math.PI) / f
  if (wave < original / high) return f
  if (wave > original / low) return f / factor
  const smooth = (original / wave - low) / (high - low)
  return ((1 - smooth) * f) / factor + smooth * f
}

const cases: [string, MultiHeadAttentionOptions, Written][] = [
  ['nothing', {}, {}],
  ['causal, grouped heads', { numKvHeads: 2, isCausal: true }, { causal: true }],
  ['a head size of its own', { headDim: 6, numKvHeads: 1, bias: false }, {}],
  ['no bias at the end', { outBias: false }, {}],
  ['rope', { rope: true, isCausal: true }, { causal: true, frequencies: powers(10000, 4) }],
  [
    'rope of neighbours, base and part of a head',
    { headDim: 6, rope: { base: 500, dim: 4, interleaved: true } },
    { frequencies: powers(500, 4), interleaved: true },
  ],
  [
    'rope with positions divided',
    { headDim: 8, rope: { scaling: { type: 'linear', factor: 4 } } },
    { frequencies: powers(10000, 8).map((f) => f / 4) },
  ],
  [
    'rope scaled as in Llama 3.1',
    {
      headDim: 8,
      rope: {
        base: 300,
        scaling: { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 64 },
      },
    },
    { frequencies: powers(300, 8).map(llama3) },
  ],
  ['norms of queries and keys, rope', { qkNorm: true, rope: true }, { frequencies: powers(10000, 4) }],
  ['a window', { isCausal: true, window: 3 }, { causal: true, window: 3 }],
  ['ALiBi', { alibi: true }, { slopes: [0.25, 0.0625, 0.015625, 0.00390625] }],
  [
    'ALiBi, causal, a window, grouped heads',
    { alibi: true, isCausal: true, window: 5, numKvHeads: 2 },
    { causal: true, window: 5, slopes: [0.25, 0.0625, 0.015625, 0.00390625] },
  ],
  ['a scale', { scale: 0.7 }, { scale: 0.7 }],
]

/** A layer in float64 whose norms are not all ones. */
function layerOf(options: MultiHeadAttentionOptions): MultiHeadAttention {
  const layer = new MultiHeadAttention(16, 4, options).to('float64')
  for (const norm of [layer.q_norm, layer.k_norm]) norm?.weight?.detach().copy_(randn(norm.weight.shape))
  return layer
}

const input = (t: number, width = 16, batch = 2): Tensor => randn([batch, t, width], { dtype: 'float64' })

/** Copies the parameters of a packed layer to one of separate projections. */
function unpack(from: MultiHeadAttention, to: MultiHeadAttention): void {
  const { numHeads, numKvHeads, headDim } = from
  const [q, kv] = [numHeads * headDim, numKvHeads * headDim]
  const { 'c_attn.weight': weight, 'c_attn.bias': bias, ...rest } = from.stateDict()
  const parts = { q_proj: [0, q], k_proj: [q, kv], v_proj: [q + kv, kv] } as const
  for (const [name, [start, length]] of Object.entries(parts)) {
    rest[`${name}.weight`] = weight.narrow(0, start, length)
    if (bias) rest[`${name}.bias`] = bias.narrow(0, start, length)
  }
  const named = Object.entries(rest).map(([name, t]) => [name.replace('c_proj', 'o_proj'), t] as const)
  to.loadStateDict(Object.fromEntries(named))
}

describe.each(cases)('%s', (_, options, told) => {
  it.each([1, 7, 63])('is the definition written out, at T = %d', (t) => {
    const layer = layerOf({ ...options, packed: false })
    const x = input(t)
    expectNumbers(values(layer.forward(x)), writtenAttention(layer, x, x, told), CLOSE)
  })

  it('gives the same packed and separate', () => {
    const packed = layerOf(options)
    const separate = layerOf({ ...options, packed: false })
    unpack(packed, separate)
    const x = input(9)
    expectNumbers(values(packed.forward(x)), values(separate.forward(x)), CLOSE)
  })

  it('has gradients that agree with finite differences', () => {
    const layer = new MultiHeadAttention(3, 4, { headDim: 4, ...options })
    gradcheckModule(layer, [randn([1, 3, 3])], (module, x) => module.forward(x))
  })
})

it('is the definition written out at T = 127, with everything at once', () => {
  const told = {
    causal: true,
    window: 40,
    frequencies: powers(100, 4),
    slopes: [0.25, 0.0625, 0.015625, 0.00390625],
  }
  const layer = layerOf({
    numKvHeads: 2,
    headDim: 6,
    isCausal: true,
    window: 40,
    alibi: true,
    qkNorm: true,
    rope: { base: 100, dim: 4 },
    packed: false,
  })
  const x = input(127, 16, 1)
  expectNumbers(values(layer.forward(x)), writtenAttention(layer, x, x, told), CLOSE)
})

it('adds a residual', () => {
  const layer = layerOf({})
  const x = input(5)
  expectNumbers(values(layer.forward(x, { residual: x })), values(layer.forward(x).add(x)), CLOSE)
})

it('has the slopes of Press et al., for any number of heads', () => {
  expect(alibiSlopes(8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i))
  expect(alibiSlopes(1)).toEqual([2 ** -8])
  // Their code for 6 heads: those of 4, then the first and third of 8.
  expect(alibiSlopes(6)).toEqual([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])
  expect(alibiSlopes(12)).toHaveLength(12)
})

it('names its parameters: packed as GPT-2, separate as Llama', () => {
  const names = (options: MultiHeadAttentionOptions): string[] =>
    new MultiHeadAttention(16, 4, options).namedParameters().map(([name, p]) => `${name} ${p.shape}`)
  expect(names({ packed: false, headDim: 6, numKvHeads: 2, outBias: false, qkNorm: true })).toEqual([
    'q_proj.weight 24,16',
    'q_proj.bias 24',
    'k_proj.weight 12,16',
    'k_proj.bias 12',
    'v_proj.weight 12,16',
    'v_proj.bias 12',
    'q_norm.weight 6',
    'k_norm.weight 6',
    'o_proj.weight 16,24',
  ])
  expect(names({ bias: false, outBias: true, alibi: true })).toEqual([
    'c_attn.weight 48,16',
    'c_proj.weight 16,16',
    'c_proj.bias 16',
  ])
  const { c_attn, o_proj, outProj } = new MultiHeadAttention(16, 4, { packed: false })
  expect([c_attn, outProj === (o_proj as Linear)]).toEqual([null, true])
})

it('shows what it does', () => {
  const all = { headDim: 6, numKvHeads: 2, rope: true, isCausal: true, window: 3, alibi: true }
  expect(new MultiHeadAttention(16, 4, all).extraRepr()).toBe(
    'embedDim=16, numHeads=4, numKvHeads=2, headDim=6, rope=true, isCausal=true, window=3, alibi=true',
  )
})

describe.each([
  ['packed', { numKvHeads: 2 }, 16],
  ['separate', { numKvHeads: 2, packed: false }, 16],
  ['of another width', { headDim: 6, kvDim: 5 }, 5],
] as const)('a context, %s', (_, options, width) => {
  it.each([
    [1, 7],
    [7, 1],
    [63, 20],
    [5, 127],
  ])('of another length: T = %d, S = %d', (t, s) => {
    const { isCausal, rope } = { isCausal: true, rope: true }
    for (const more of [{}, { isCausal }, { rope }]) {
      const layer = layerOf({ ...options, ...more })
      const separate = layerOf({ ...options, ...more, packed: false })
      if (layer.c_attn) unpack(layer, separate)
      else separate.loadStateDict(layer.stateDict())
      const [x, context] = [input(t), input(s, width)]
      const told = {
        causal: more === undefined || 'isCausal' in more,
        frequencies: 'rope' in more ? powers(10000, layer.headDim) : [],
      }
      expectNumbers(
        values(layer.forward(x, { context })),
        writtenAttention(separate, x, context, told),
        CLOSE,
      )
    }
  })

  it('has gradients that agree with finite differences', () => {
    const layer = new MultiHeadAttention(16, 4, { bias: false, ...options })
    // The layer's own parameters are checked without a context; here what flows into the context.
    layer.requiresGrad_(false).to('float64')
    const [x, context] = [input(3, 16, 1), input(2, width, 1)]
    expect(gradcheck((a, c) => layer.forward(a, { context: c }), [x, context])).toBe(true)
  })
})

describe('masks', () => {
  const [t, s] = [6, 9]
  const x = (): Tensor => input(t)
  // Query 4 sees nothing at all, and key 8 is seen by nobody.
  const sees = (i: number, j: number): boolean => i !== 4 && j !== 8 && (i * 7 + j * 5) % 3 !== 0
  // The second sequence has no keys but padding.
  const padded = (b: number, j: number): boolean => b === 1 || j < 2
  const flags = (shape: number[], f: (...at: number[]) => boolean): Tensor => {
    const [n, m] = shape
    const list = Array.from({ length: n * m }, (_, i) => f(Math.floor(i / m), i % m))
    return tensor(Uint8Array.from(list, Number)).reshape(shape).to('bool')
  }
  const attnMask = flags([t, s], sees)
  const keyMask = flags([2, s], (b, j) => !padded(b, j))
  const additive = zeros([t, s], { dtype: 'float64' }).maskedFill(attnMask.logicalNot(), -Infinity)
  const both = (b: number, i: number, j: number): boolean => sees(i, j) && !padded(b, j)

  it.each([
    ['attnMask, true: may attend', { attnMask }, (_: number, i: number, j: number) => sees(i, j)],
    ['a float attnMask', { attnMask: additive }, (_: number, i: number, j: number) => sees(i, j)],
    ['keyMask, true: may be attended to', { keyMask }, (b: number, _: number, j: number) => !padded(b, j)],
    ['both', { attnMask, keyMask }, both],
    ['both, one of them float', { attnMask: additive, keyMask }, both],
  ])('%s; heads are zero where nothing is seen', (_, options, seen) => {
    const slopes = [0.25, 0.0625, 0.015625, 0.00390625]
    for (const [alibi, told] of [
      [false, {}],
      [true, { slopes }],
    ] as const) {
      const layer = layerOf({ packed: false, alibi })
      const [q, context] = [x(), input(s)]
      const out = layer.forward(q, { context, ...options })
      expectNumbers(values(out), writtenAttention(layer, q, context, { ...told, sees: seen }), CLOSE)
    }
  })

  it('keep gradients finite in rows that see nothing', () => {
    const layer = layerOf({})
    const [a, context] = [x(), input(s)]
    for (const input of [a, context]) input.requiresGrad = true
    layer.forward(a, { context, attnMask, keyMask }).square().sum().backward()
    for (const p of [a, context, ...layer.parameters()])
      expect(values(p.grad).every(Number.isFinite)).toBe(true)
    expect(values(a.grad?.select(0, 1)).every((v) => v === 0)).toBe(true)
  })

  it('must fit', () => {
    const layer = layerOf({})
    expect(() => layer.forward(x(), { keyMask })).toThrow(/keyMask must be \(B, S\) = \[2, 6\], got \[2, 9\]/)
    expect(() => layer.forward(x(), { keyMask: keyMask.to('int32').narrow(1, 0, t) })).toThrow(
      /keyMask must be bool, true for keys that may be attended to, not int32.*\.to\('bool'\)/,
    )
    expect(() => layer.forward(x(), { attnMask: attnMask.to('int32'), context: input(s), keyMask })).toThrow(
      /attnMask must be bool.*not int32.*\.to\('bool'\)/,
    )
    // PyTorch's name, in which true is hidden: refused rather than taken the other way round.
    const wrong: object = { keyPaddingMask: keyMask }
    expect(() => layer.forward(x(), wrong)).toThrow(
      /true is a key that may be attended to.*keyPaddingMask\.logicalNot/,
    )
    expect(() => layer.forward(x(), { attnMask })).toThrow(/\[6, 9\] and \[2, 4, 6, 6\] do not broadcast/)
  })
})

describe('errors', () => {
  const bad: [string, MultiHeadAttentionOptions, RegExp][] = [
    ['head size', { headDim: 0 }, /headDim must be a positive integer, got 0/],
    ['kvDim', { kvDim: 5, packed: true }, /kvDim 5 differs from embedDim 16, which needs packed: false/],
    ['window', { window: 1.5, isCausal: true }, /window must be a whole number ≥ 0, got 1.5/],
    ['window without an end', { window: 4 }, /a window needs isCausal: true/],
    ['scale', { scale: Number.NaN }, /scale must be finite, got NaN/],
    ['odd rope', { rope: { dim: 3 } }, /rope turns 3 elements of a head; expected an even number up to 4/],
    ['rope wider than a head', { rope: { dim: 6 } }, /expected an even number up to 4/],
    ['base', { rope: { base: 0 } }, /rope's base must be > 0, got 0/],
    [
      'factor',
      { rope: { scaling: { type: 'linear', factor: 0 } } },
      /rope scaling's factor must be > 0, got 0/,
    ],
    [
      'factors',
      {
        rope: {
          scaling: {
            type: 'llama3',
            factor: 8,
            lowFreqFactor: 4,
            highFreqFactor: 4,
            originalMaxPositions: 64,
          },
        },
      },
      /lowFreqFactor 4 must be below highFreqFactor 4/,
    ],
  ]
  it.each(bad)('%s', (_, options, message) =>
    expect(() => new MultiHeadAttention(16, 4, options)).toThrow(message),
  )
})
