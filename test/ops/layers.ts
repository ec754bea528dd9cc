import {
  createBlockMask,
  dropout,
  manualSeed,
  scaledDotProductAttention,
  type Tensor,
  tensor,
  topkBlocks,
} from '@tilegrad/core'
import { type Arg, away, bool, f, int, ints, pos } from '../samples.ts'
import { FUNCTION, LONG, op } from './row.ts'

/** Rows of norms, losses and attention. */

// Norms.
op(
  'layerNorm',
  2,
  [
    [f([3, 4]), [4], f([4]), f([4])],
    [f([2, 3, 4]), [3, 4]],
    [f([3, 4]), [4], null, f([4]), { eps: 0.1 }],
    [f([20, 70]), [70], f([70]), f([70])],
  ],
  { ...FUNCTION, ...LONG },
)
op(
  'rmsNorm',
  2,
  [
    [f([3, 4]), [4], f([4]), { eps: 1e-3 }],
    [f([2, 3, 4]), [3, 4]],
    [f([20, 70]), [70], f([70])],
  ],
  { ...FUNCTION, ...LONG },
)
op(
  'groupNorm',
  2,
  [
    [f([2, 4, 3]), 2, f([4]), f([4])],
    [f([2, 4]), 1],
  ],
  { ...FUNCTION, ...LONG },
)

op(
  'totalNorm',
  2,
  [[[f([3, 4])]], [[f([2]), f([]), f([0, 3]), f([2, 2, 2])]], [[f([5000]), f([3]), f([4096])]]],
  { ...FUNCTION, ...LONG },
)

// Losses. The smooth ones meet their kinks nowhere near these differences.
const LOSS = { ...FUNCTION, ...LONG }
for (const name of ['mseLoss', 'l1Loss'])
  op(
    name,
    2,
    [
      [f([3, 4], 1, 2), f([3, 4], -2, 0)],
      [f([5], 1, 2), f([5], -2, 0), { reduction: 'sum' }],
      [f([5], 1, 2), f([5], -2, 0), { reduction: 'none' }],
    ],
    LOSS,
  )
op(
  'smoothL1Loss',
  2,
  [
    [f([3, 4], 0, 1), f([3, 4], -2, -1), { beta: 0.5 }],
    [f([9]), f([9]), { beta: 10, reduction: 'none' }],
    [f([4], 1, 2), f([4], -2, 0), { beta: 0 }],
  ],
  LOSS,
)
op(
  'huberLoss',
  2,
  [
    [f([3, 4], 0, 1), f([3, 4], -2, -1), { delta: 0.5 }],
    [f([9]), f([9]), { delta: 10, reduction: 'sum' }],
  ],
  LOSS,
)
op(
  'binaryCrossEntropyWithLogits',
  2,
  [
    [away([3, 4]), f([3, 4], 0, 1)],
    [away([3, 4]), f([3, 4], 0, 1), { weight: pos([4]), posWeight: pos([4]), reduction: 'sum' }],
    [away([5]), f([5], 0, 1), { reduction: 'none' }],
  ],
  LOSS,
)
op(
  'nllLoss',
  2,
  [
    [f([4, 3]), int([4], 0, 3)],
    [f([4, 3]), ints([4], [0, 2, 1, 2]), { weight: pos([3]), ignoreIndex: 2 }],
    [f([2, 3, 2]), int([2, 2], 0, 3), { reduction: 'none' }],
  ],
  LOSS,
)
op(
  'crossEntropy',
  2,
  [
    [f([4, 3]), int([4], 0, 3)],
    [f([4, 3]), ints([4], [0, -100, 1, 2]), { weight: pos([3]), labelSmoothing: 0.2 }],
    [f([2, 3, 2]), int([2, 2], 0, 3), { reduction: 'sum' }],
    [f([4, 3]), f([4, 3], 0, 1)],
    [f([20, 65], -5, 5), int([20], 0, 65)],
  ],
  LOSS,
)

op(
  'linearCrossEntropy',
  2,
  [
    [f([4, 3]), f([5, 3]), int([4], 0, 5), { chunkSize: 3 }],
    [f([2, 3, 2]), f([4, 2]), ints([2, 3], [0, 3, -1, 2, 1, 3]), { ignoreIndex: -1, chunkSize: 2 }],
    [f([4, 3]), f([5, 3]), int([4], 0, 5), { reduction: 'sum', bias: f([5]), chunkSize: 2 }],
    [f([5, 3]), f([4, 3]), int([5], 0, 4), { reduction: 'none', bias: f([4]), chunkSize: 2 }],
    [f([70, 20]), f([300, 20]), int([70], 0, 300), { chunkSize: 33 }],
  ],
  LOSS,
)

// Weights of 8 bits.
const words = (shape: readonly number[]): Arg => int(shape, -(2 ** 31), 2 ** 31)
const scales = (shape: readonly number[]): Arg => f(shape, 0.001, 0.02)
op(
  'dequantize',
  2,
  [
    [words([3, 4]), scales([3, 1])],
    [words([5, 12]), scales([5, 3]), 35],
    [words([4, 2]), scales([4, 2]), 7],
  ],
  FUNCTION,
)
op(
  'quantizedLinear',
  0,
  [
    [f([3, 32]), words([7, 8]), scales([7, 2])],
    [f([2, 2, 64]), words([9, 16]), scales([9, 1]), f([9]), { activation: 'gelu', residual: f([2, 2, 9]) }],
    [f([48]), words([5, 12]), scales([5, 3]), f([5]), { activation: 'relu' }],
    [f([33, 32]), words([17, 8]), scales([17, 1]), null, { residual: f([33, 17]) }],
    [f([2, 30]), words([6, 8]), scales([6, 2])],
  ],
  { ...FUNCTION, ...LONG },
)

// Attention.
const attention = (b: number, h: number, hk: number, t: number, s: number, d: number): readonly Arg[] => [
  f([b, h, t, d]),
  f([b, hk, s, d]),
  f([b, hk, s, d]),
]
op(
  'scaledDotProductAttention',
  2,
  [
    attention(1, 2, 2, 3, 4, 2),
    [...attention(2, 2, 1, 3, 3, 2), { isCausal: true }],
    [...attention(1, 1, 1, 4, 4, 2), { isCausal: true, window: 2, scale: 0.5 }],
    [...attention(1, 2, 2, 3, 4, 2), { attnMask: f([3, 4]) }],
    [...attention(1, 2, 2, 3, 4, 2), { attnMask: bool([2, 1, 4]) }],
    [f([3, 2]), f([4, 2]), f([4, 3])],
    [...attention(2, 4, 2, 40, 40, 16), { isCausal: 'bottom-right' }],
    [...attention(1, 1, 1, 6, 6, 2), { isCausal: true, window: 2, globalTokens: 1 }],
    [...attention(1, 2, 2, 40, 50, 16), { window: 5, globalTokens: 20 }],
  ],
  LOSS,
)
// Options that are tensors without a gradient, made where q is. The same seed drops the same weights each time.
op('scaledDotProductAttention', 2, [attention(1, 2, 1, 3, 4, 2), attention(2, 2, 2, 70, 40, 16)], {
  ...LOSS,
  run: (q: Tensor, k: Tensor, v: Tensor) => {
    manualSeed(7)
    const slopes = Float64Array.of(0.5, 0.25)
    const alibi = tensor(slopes, { device: q.backend, dtype: q.dtype })
    return scaledDotProductAttention(q, k, v, { alibi, dropoutP: 0.3, isCausal: 'bottom-right' })
  },
})
op('scaledDotProductAttention', 2, [attention(1, 1, 1, 20, 33, 2), attention(2, 2, 1, 70, 70, 16)], {
  ...LOSS,
  run: (q: Tensor, k: Tensor, v: Tensor) => {
    const lengths = { qLen: q.shape[2] as number, kvLen: k.shape[2] as number, device: q.backend }
    const blockMask = createBlockMask((i, j) => (i + j) % 3 !== 1, { blockSize: 16, ...lengths })
    return scaledDotProductAttention(q, k, v, { blockMask })
  },
})
op('topkBlocks', 0, [attention(1, 2, 1, 100, 70, 8).slice(0, 2), attention(2, 4, 2, 70, 70, 8).slice(0, 2)], {
  method: false,
  run: (q: Tensor, k: Tensor) => {
    const mask = topkBlocks(q, k, { blockSize: 16, keep: 2, isCausal: true })
    return [mask.visible, mask.kvNumBlocks, mask.kvIndices, mask.qNumBlocks, mask.qIndices]
  },
})
op('createBlockMask', 0, [[bool([5, 7])], [bool([2, 3, 4, 4])]], {
  method: false,
  run: (visible: Tensor) => {
    const mask = createBlockMask(visible)
    return [mask.visible, mask.kvNumBlocks, mask.kvIndices, mask.qNumBlocks, mask.qIndices]
  },
})
op(
  'rotaryEmbedding',
  2,
  [
    [f([2, 3, 5, 8])],
    [f([3, 4]), { offset: 7, base: 100 }],
    [f([2, 3, 7]), { rotaryDim: 6, interleaved: true }],
    [f([2, 1, 3, 6]), { rotaryDim: 4, positions: ints([2, 1, 3], [4, 0, 9, 1, 1, 100000]) }],
    [f([2, 9, 40]), { interleaved: true }],
    [f([2, 3, 33, 64])],
  ],
  FUNCTION,
)
op(
  'linearAttention',
  2,
  [
    attention(1, 2, 2, 3, 4, 2),
    [...attention(2, 1, 1, 4, 4, 2), { isCausal: true }],
    [...attention(1, 2, 2, 70, 70, 16), { isCausal: true, eps: 1e-3 }],
    [...attention(1, 1, 1, 4, 4, 2), { isCausal: true, featureMap: 'exp', form: 'chunked', chunkSize: 2 }],
    [f([1, 2, 3, 2], 0.1, 2), f([1, 2, 5, 2], 0.1, 2), f([1, 2, 5, 3]), { featureMap: 'identity' }],
    [pos([1, 1, 70, 8]), pos([1, 1, 70, 8]), f([1, 1, 70, 5]), { isCausal: true, featureMap: 'relu' }],
  ],
  LOSS,
)
const gates = (shape: readonly number[]): Arg => f(shape, -1, -0.01)
op(
  'gatedLinearAttention',
  2,
  [
    [...attention(1, 2, 2, 3, 3, 2), gates([1, 2, 3]), { returnState: true, scale: 0.5 }],
    [...attention(1, 1, 1, 4, 4, 2), gates([1, 1, 4, 2]), { chunkSize: 2, initialState: f([1, 1, 2, 2]) }],
    [pos([1, 1, 3, 2]), pos([1, 1, 3, 2]), f([1, 1, 3, 2]), gates([1, 1, 3, 1]), { normalize: true }],
    [...attention(1, 2, 2, 70, 70, 16), gates([1, 2, 70, 16]), { returnState: true }],
  ],
  LOSS,
)
op(
  'retention',
  2,
  [[...attention(1, 2, 2, 3, 3, 2), { decays: [0.9, 1], returnState: true }], attention(2, 2, 2, 70, 70, 16)],
  LOSS,
)
op(
  'deltaRule',
  2,
  [
    [...attention(1, 2, 2, 3, 3, 2), f([1, 2, 3], 0, 1), { returnState: true }],
    [
      ...attention(1, 1, 1, 4, 4, 2),
      f([1, 1, 4], 0, 1),
      { chunkSize: 2, initialState: f([1, 1, 2, 2]), logDecay: gates([1, 1, 4]) },
    ],
    [
      f([1, 2, 70, 16]),
      f([1, 2, 70, 16], -0.25, 0.25),
      f([1, 2, 70, 5]),
      f([1, 2, 70], 0, 1),
      { logDecay: gates([1, 2, 70]) },
    ],
  ],
  LOSS,
)

// The same seed gives the same mask each time, which makes it a function to differentiate.
op('dropout', 2, [[f([6, 7]), 0.4]], {
  method: false,
  run: (x: Tensor, p: number) => {
    manualSeed(7)
    return dropout(x, p)
  },
})
