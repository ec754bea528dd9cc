import {
  compile,
  manualSeed,
  matmul,
  memory,
  noGrad,
  ones,
  profile,
  randn,
  scope,
  softmax,
  type Tensor,
  tensor,
  zeros,
} from '@tilegrad/core'
import {
  LayerNorm,
  MultiheadAttention,
  type MultiheadAttentionForwardOptions,
  SGD,
  Transformer,
  TransformerDecoder,
  TransformerDecoderLayer,
  TransformerEncoder,
  TransformerEncoderLayer,
  type TransformerLayerOptions,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectClose, gradcheckModule, values } from './helpers.ts'

// float32 with sums of up to 20 products in another order; PyTorch's own numbers are in test/conformance.
const CLOSE = { atol: 3e-6, rtol: 1e-5 }
const [B, H, T, S, E] = [2, 3, 5, 4, 12]

beforeEach(() => manualSeed(29))

/** Attention by its formula, batch first, every head on its own; `hidden` is (B, H, T, S), true where PyTorch hides. */
function written(layer: MultiheadAttention, q: Tensor, kv: Tensor, hidden: Tensor): [Tensor, Tensor] {
  const [w, b] = [layer.in_proj_weight as Tensor, layer.in_proj_bias as Tensor]
  const made = (x: Tensor, i: number): Tensor =>
    matmul(x, w.narrow(0, i * E, E).T)
      .add(b.narrow(0, i * E, E))
      .unflatten(-1, [H, E / H])
      .transpose(1, 2)
  const scores = matmul(made(q, 0), made(kv, 1).transpose(-2, -1)).div(Math.sqrt(E / H))
  const weights = softmax(scores.maskedFill(hidden, -Infinity), -1)
  const y = matmul(weights, made(kv, 2)).transpose(1, 2).flatten(2)
  return [matmul(y, layer.out_proj.weight.T).add(layer.out_proj.bias as Tensor), weights]
}

const future = ones([T, S]).tril().eq(0)
// Key 0 is never hidden, so that every row sees something.
const padding = tensor([
  [false, false, true, true],
  [false, true, false, false],
])
const perHead = randn([B * H, T, S])
  .gt(0)
  .logicalAnd(tensor([false, true, true, true]))
const none = zeros([B, H, T, S], { dtype: 'bool' })
const padded = padding.unsqueeze(1).unsqueeze(1)
const additive = (mask: Tensor): Tensor => zeros(mask.shape).maskedFill(mask, -Infinity)

const cases: [string, MultiheadAttentionForwardOptions, Tensor][] = [
  ['no mask', {}, none],
  ['a bool mask', { attnMask: future }, none.logicalOr(future)],
  ['isCausal alone', { isCausal: true }, none.logicalOr(future)],
  ['isCausal beside its mask', { isCausal: true, attnMask: additive(future) }, none.logicalOr(future)],
  ['an additive mask', { attnMask: additive(future) }, none.logicalOr(future)],
  ['a mask for each head', { attnMask: perHead }, perHead.unflatten(0, [B, H])],
  ['bool padding', { keyPaddingMask: padding }, none.logicalOr(padded)],
  ['additive padding', { keyPaddingMask: additive(padding) }, none.logicalOr(padded)],
  [
    'causal and padding',
    { isCausal: true, keyPaddingMask: padding },
    padded.logicalOr(future).logicalOr(none),
  ],
  ['bool and bool', { attnMask: future, keyPaddingMask: padding }, none.logicalOr(padded).logicalOr(future)],
  [
    'bool and additive padding',
    { attnMask: future, keyPaddingMask: additive(padding) },
    none.logicalOr(padded).logicalOr(future),
  ],
  [
    'additive and bool padding',
    { attnMask: additive(perHead), keyPaddingMask: padding },
    perHead.unflatten(0, [B, H]).logicalOr(padded),
  ],
  [
    'both additive',
    { attnMask: additive(future), keyPaddingMask: additive(padding) },
    none.logicalOr(padded).logicalOr(future),
  ],
]

describe.each(cases)('MultiheadAttention with %s', (_, options, hidden) => {
  it('is attention written out, batch first or not', () => {
    const layer = new MultiheadAttention(E, H, { batchFirst: true })
    const [q, kv] = [randn([B, T, E]), randn([B, S, E])]
    const [want, weights] = written(layer, q, kv, hidden)
    const [y, mean] = layer.forward(q, kv, kv, options)
    expectClose(y, want, CLOSE)
    expectClose(mean as Tensor, weights.mean(1), CLOSE)
    expectClose(
      layer.forward(q, kv, kv, { ...options, averageAttnWeights: false })[1] as Tensor,
      weights,
      CLOSE,
    )
    expect(layer.forward(q, kv, kv, { ...options, needWeights: false })[1]).toBe(null)

    const turned = new MultiheadAttention(E, H)
    turned.loadStateDict(layer.stateDict())
    const [a, b] = [q.transpose(0, 1), kv.transpose(0, 1)]
    const [z, same] = turned.forward(a, b, b, options)
    expectClose(z, want.transpose(0, 1), CLOSE)
    expectClose(same as Tensor, weights.mean(1), CLOSE)
  })
})

describe('MultiheadAttention', () => {
  it('has the names and the first values of PyTorch', () => {
    expect(Object.keys(new MultiheadAttention(6, 2, { kdim: 3, vdim: 4 }).stateDict())).toEqual([
      'q_proj_weight',
      'k_proj_weight',
      'v_proj_weight',
      'in_proj_bias',
      'out_proj.weight',
      'out_proj.bias',
    ])
    const { in_proj_weight, in_proj_bias, out_proj } = new MultiheadAttention(6, 2)
    const bound = Math.sqrt(6 / (18 + 6))
    const largest = Math.max(...values(in_proj_weight).map(Math.abs))
    // Of 108 draws one is nearly always in the last tenth; the seed is fixed.
    expect(largest).toBeLessThanOrEqual(bound)
    expect(largest).toBeGreaterThan(0.9 * bound)
    expect([...values(in_proj_bias), ...values(out_proj.bias)].every((x) => x === 0)).toBe(true)
  })

  it('takes three inputs, two, or one, and sequences without a batch', () => {
    const layer = new MultiheadAttention(E, H)
    const x = randn([T, B, E])
    const [one] = layer.forward(x, x, x)
    const [y, z] = [x.add(0), x.add(0)]
    expectClose(layer.forward(x, y, y)[0], one, CLOSE)
    expectClose(layer.forward(x, y, z)[0], one, CLOSE)
    const [alone, weights] = layer.forward(x.select(1, 1), y.select(1, 1), z.select(1, 1), {
      keyPaddingMask: tensor([false, false, false, false, true]),
    })
    expect(alone.shape).toEqual([T, E])
    expect(weights?.shape).toEqual([T, T])
    expect(values((weights as Tensor).select(1, 4))).toEqual(Array(T).fill(0))
  })

  it('gives zeros of its heads, and no NaN, where a query sees no key', () => {
    const layer = new MultiheadAttention(E, H, { batchFirst: true }).requiresGrad_(false)
    const x = randn([B, T, E], { requiresGrad: true })
    const keyPaddingMask = tensor([Array(T).fill(true), Array(T).fill(false)])
    const [y, weights] = layer.forward(x, x, x, { keyPaddingMask })
    expect(values(y.select(0, 0))).toEqual(Array(T).fill(values(layer.out_proj.bias)).flat())
    expect(values((weights as Tensor).select(0, 0))).toEqual(Array(T * T).fill(0))
    y.square()
      .sum()
      .add((weights as Tensor).square().sum())
      .backward()
    expect(values((x.grad as Tensor).select(0, 0)).every((g) => g === 0)).toBe(true)
    expect(values((x.grad as Tensor).select(0, 1)).every(Number.isFinite)).toBe(true)
  })

  it('drops weights while training only', () => {
    const layer = new MultiheadAttention(E, H, { dropout: 0.5 })
    const x = randn([T, B, E])
    const run = (): number[] => values(layer.forward(x, x, x)[0])
    expect(run()).not.toEqual(run())
    layer.eval()
    expect(run()).toEqual(run())
  })

  it('says what does not fit', () => {
    const layer = new MultiheadAttention(E, H, { batchFirst: true })
    const x = randn([B, T, E])
    const go = (options: MultiheadAttentionForwardOptions, kv = x) => layer.forward(x, kv, kv, options)
    expect(() => new MultiheadAttention(10, 4)).toThrow('embedDim 10 must be a multiple of numHeads 4')
    expect(() => go({ attnMask: future })).toThrow(
      'attnMask must be (T, S) = [5, 5] or (B·H, T, S) = [6, 5, 5]',
    )
    expect(() => go({ keyPaddingMask: padding })).toThrow(
      'keyPaddingMask must be (B, S) = [2, 5], got [2, 4]',
    )
    expect(() => go({ keyPaddingMask: zeros([B, T], { dtype: 'int32' }) })).toThrow(
      'true: hidden, as in PyTorch',
    )
    expect(() => go({}, randn([3, S, E]))).toThrow('of one batch')
    expect(() => go({ keyMask: padding } as never)).toThrow('known: keyPaddingMask, attnMask')
  })
})

const sizes = { dimFeedforward: 7, dropout: 0 }

describe('layers', () => {
  it.each<[string, TransformerLayerOptions]>([
    ['norms after', {}],
    ['norms before, gelu, batch first', { normFirst: true, activation: 'gelu', batchFirst: true }],
    ['no bias, a function', { bias: false, activation: (x: Tensor) => x.tanh() }],
  ])('have right gradients: %s', (_, options) => {
    const encoder = new TransformerEncoderLayer(4, 2, { ...sizes, ...options })
    gradcheckModule(encoder, [randn([3, 2, 4])], (m, x) => m.forward(x, { isCausal: true }).square().sum())
    const decoder = new TransformerDecoderLayer(4, 2, { ...sizes, ...options })
    const [tgt, memory] = [randn([2, 2, 4]), options.batchFirst ? randn([2, 3, 4]) : randn([3, 2, 4])]
    gradcheckModule(decoder, [tgt, memory], (m, x, y) =>
      m.forward(x, y, { tgtIsCausal: true, memoryIsCausal: true }).square().sum(),
    )
  })

  it('adds up the same with and without dropout layers in between', () => {
    const layer = new TransformerEncoderLayer(E, H, { ...sizes, dropout: 1 })
    const x = randn([T, B, E])
    // All that the parts add is dropped: two norms of x are left.
    expectClose(layer.forward(x), layer.norm2.forward(layer.norm1.forward(x)), CLOSE)
    const plain = new TransformerEncoderLayer(E, H, sizes)
    plain.loadStateDict(layer.stateDict())
    expectClose(layer.eval().forward(x), plain.forward(x), CLOSE)
  })

  it('hide later tokens, padding, and tokens of memory', () => {
    const model = new Transformer({ dModel: E, nhead: H, numEncoderLayers: 1, numDecoderLayers: 2, ...sizes })
    const [src, tgt] = [randn([S, B, E]), randn([T, B, E])]
    const options = { tgtIsCausal: true, srcKeyPaddingMask: padding, memoryKeyPaddingMask: padding }
    const y = model.forward(src, tgt, options)
    const other = model.forward(
      // The hidden tokens of both sequences, and the last of the target.
      src.add(padding.T.unsqueeze(-1).to('float32').mul(9)),
      tgt.add(tensor([0, 0, 0, 0, 9]).reshape([T, 1, 1])),
      options,
    )
    const seen = (t: Tensor): Tensor => t.narrow(0, 0, T - 1)
    expectClose(seen(other), seen(y), CLOSE)
    expect(values(other.narrow(0, T - 1, 1))).not.toEqual(values(y.narrow(0, T - 1, 1)))
    const masked = model.forward(src, tgt, {
      ...options,
      tgtIsCausal: false,
      tgtMask: Transformer.generateSquareSubsequentMask(T),
    })
    expectClose(masked, y, CLOSE)
  })

  it('are copied: equal at first, and on their own then', () => {
    const layer = new TransformerEncoderLayer(E, H, { ...sizes, normFirst: true }).to('float64').eval()
    layer.norm1.requiresGrad_(false)
    const encoder = new TransformerEncoder(layer, 2, { norm: new LayerNorm(E) })
    const [a, b] = encoder.layers as [TransformerEncoderLayer, TransformerEncoderLayer]
    expect(values(a.linear1.weight)).toEqual(values(layer.linear1.weight))
    expect([a.linear1.weight.dtype, a.training, a.norm1.weight?.requiresGrad]).toEqual([
      'float64',
      false,
      false,
    ])
    layer.dispose()
    noGrad(() => a.linear1.weight.zero_())
    expect(values(b.linear1.weight).some((x) => x !== 0)).toBe(true)
    expect(Object.keys(encoder.stateDict()).slice(-2)).toEqual(['norm.weight', 'norm.bias'])
    const decoder = new TransformerDecoder(new TransformerDecoderLayer(E, H, sizes), 2)
    expect(
      Object.keys(decoder.stateDict()).filter((name) => name.startsWith('layers.1.multihead_attn')),
    ).toEqual(
      ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'].map(
        (name) => `layers.1.multihead_attn.${name}`,
      ),
    )
  })

  it('begin as in PyTorch: matrices by Glorot, each its own', () => {
    const { encoder } = new Transformer({
      dModel: E,
      nhead: H,
      numEncoderLayers: 2,
      numDecoderLayers: 1,
      ...sizes,
    })
    const [a, b] = encoder.layers.map((layer) => values(layer.linear1.weight)) as [number[], number[]]
    expect(a).not.toEqual(b)
    expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(Math.sqrt(6 / (E + 7)))
    expect(Math.max(...a.map(Math.abs))).toBeGreaterThan(1 / Math.sqrt(E))
  })

  it('say what does not fit', () => {
    const model = new Transformer({ dModel: E, nhead: H, numEncoderLayers: 1, numDecoderLayers: 1, ...sizes })
    expect(() => model.forward(randn([S, B, E]), randn([T, 3, E]))).toThrow(
      'with one B, got [4, 2, 12] and [5, 3, 12]',
    )
    const [src, none] = [randn([S, B, E]), undefined as never]
    expect(() => model.forward(src, none)).toThrow('Transformer: tgt: takes a tensor, got undefined')
    expect(() => model.forward(src, { srcMask: null } as never)).toThrow('Transformer: tgt: takes a tensor')
    expect(() => model.forward(none, src)).toThrow('Transformer: src: takes a tensor, got undefined')
    expect(() => model.decoder.forward(src, none)).toThrow('TransformerDecoderLayer: memory: takes a tensor')
    expect(() => model.decoder.forward(none, src)).toThrow('TransformerDecoderLayer: tgt: takes a tensor')
    expect(() => new TransformerEncoderLayer(E, H, { activation: 'rely' as 'relu' })).toThrow(
      "did you mean 'relu'",
    )
    expect(() => new TransformerEncoder(new TransformerEncoderLayer(E, H, sizes), 0)).toThrow('numLayers')
    expect(() => new TransformerEncoder({} as TransformerEncoderLayer, 2)).toThrow(
      'new TransformerEncoderLayer(…)',
    )
    expect(() =>
      new MultiheadAttention(E, H).forward(randn([T, B, E]), undefined as never, undefined as never),
    ).toThrow('MultiheadAttention: ')
    expect(() => new TransformerEncoderLayer(E, H, { embedDim: 3 } as never)).toThrow(
      'TransformerEncoderLayer',
    )
    expect(() =>
      new TransformerEncoderLayer(E, H, sizes).forward(randn([T, B, E]), { mask: future } as never),
    ).toThrow("did you mean 'srcMask'")
  })

  it('train under compile, in flat memory', async () => {
    await collected()
    const build = (): Transformer => {
      manualSeed(3)
      return new Transformer({ dModel: 6, nhead: 2, numEncoderLayers: 1, numDecoderLayers: 1, ...sizes })
    }
    const [src, tgt, padded] = [
      randn([3, 2, 6]),
      randn([4, 2, 6]),
      tensor([
        [false, false, true],
        [false, false, false],
      ]),
    ]
    const stepOf = (model: Transformer) => {
      const optimizer = new SGD(model.parameters(), { lr: 0.1 })
      return (): Tensor => {
        const options = { tgtIsCausal: true, srcKeyPaddingMask: padded, memoryKeyPaddingMask: padded }
        const loss = model.forward(src, tgt, options).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      }
    }
    const plain = stepOf(build())
    const compiled = compile(stepOf(build()))
    const losses = (step: () => Tensor): number[] =>
      Array.from({ length: 4 }, () => scope(() => [values(scope(step))[0] as number])[0] as number)
    const want = losses(plain)
    const got = losses(compiled)
    got.forEach((loss, i) => {
      expect(loss).toBeCloseTo(want[i] as number, 5)
    })
    expect(want[3]).toBeLessThan(want[0] as number)
    const held = () => [memory().tensors, memory().bytes]
    const before = held()
    losses(plain)
    expect(held()).toEqual(before)
  })
})

describe('generateSquareSubsequentMask', () => {
  it('is 0 up to the diagonal and −∞ after it', () => {
    expect(values(Transformer.generateSquareSubsequentMask(3))).toEqual([
      0,
      -Infinity,
      -Infinity,
      0,
      0,
      -Infinity,
      0,
      0,
      0,
    ])
    expect(Transformer.generateSquareSubsequentMask(2, { dtype: 'float64' }).dtype).toBe('float64')
    expect(() => Transformer.generateSquareSubsequentMask(0)).toThrow('positive integer')
  })
})

it('stores no queries × keys', () => {
  const layer = new MultiheadAttention(E, H)
  const x = randn([T, B, E])
  const ops = profile(() => layer.forward(x, x, x, { needWeights: false, isCausal: true })).rows.map(
    (row) => row.op,
  )
  expect(ops).toContain('scaled_dot_product_attention')
  expect(ops).not.toContain('softmax')
})
