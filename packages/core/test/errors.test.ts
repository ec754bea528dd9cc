import { describe, expect, test } from 'vitest'
import * as tg from '../src/index.ts'
import { ones, tensor, zeros } from '../src/index.ts'

const int = (shape: readonly number[]): tg.Tensor => zeros(shape, { dtype: 'int32' })
const { ShapeError, DTypeError, DeviceError, ValueError } = tg

/** Messages name the operator first, then what was given, what was expected and often the fix. */
const cases: readonly (readonly [
  what: string,
  run: () => unknown,
  type: new (m: string) => Error,
  text: string,
])[] = [
  [
    'broadcasting',
    () => zeros([2, 3]).add(zeros([2, 4])),
    ShapeError,
    'add: shapes [2, 3] and [2, 4] do not broadcast: sizes 3 and 4 differ in dim -1; expected equal sizes or 1',
  ],
  [
    'matmul',
    () => zeros([2, 3]).matmul(zeros([4, 3])),
    ShapeError,
    'matmul: inner dimensions differ: [2, 3] × [4, 3]; expected a.shape[-1] = b.shape[-2]. Did you mean b.transpose(-2, -1)?',
  ],
  [
    'matmul of scalars',
    () => zeros([]).matmul(zeros([2])),
    ShapeError,
    'matmul: takes vectors and matrices, got [] × [2]; use mul for scalars',
  ],
  [
    'matmul of bools',
    () => tg.matmul(ones([2, 2], { dtype: 'bool' }), ones([2, 2], { dtype: 'bool' })),
    DTypeError,
    'matmul: takes floating or int32 tensors, not bool',
  ],
  [
    'mm',
    () => tg.mm(zeros([2]), zeros([2, 2])),
    ShapeError,
    'mm: takes tensors of rank 2, got [2] × [2, 2]; use matmul',
  ],
  [
    'bmm',
    () => tg.bmm(zeros([2, 1, 1]), zeros([3, 1, 1])),
    ShapeError,
    'bmm: batch sizes differ: [2, 1, 1] × [3, 1, 1]',
  ],
  [
    'linear',
    () => tg.linear(zeros([2, 3]), zeros([4, 5])),
    ShapeError,
    'linear: input [2, 3] and weight [4, 5] do not fit; expected weight [outFeatures, 3]',
  ],
  [
    'linear bias',
    () => tg.linear(zeros([2, 3]), zeros([4, 3]), zeros([5])),
    ShapeError,
    'linear: bias [5] does not fit weight [4, 3]; expected [4]',
  ],
  [
    'a dim',
    () => zeros([2, 3]).sum(2),
    ShapeError,
    'sum: dim 2 is out of range for a tensor of rank 2; expected -2 … 1',
  ],
  ['a dim twice', () => zeros([2, 3]).sum([0, -2]), ShapeError, 'sum: dim 0 appears twice in [0, -2]'],
  [
    'reshape',
    () => zeros([2, 3]).reshape([4]),
    ShapeError,
    'reshape: [2, 3] has 6 elements, [4] has 4; expected equal counts',
  ],
  [
    'reshape with a hole',
    () => zeros([2, 3]).reshape([-1, 4]),
    ShapeError,
    'reshape: cannot infer −1 in [-1, 4] from [2, 3] (6 elements)',
  ],
  [
    'reshape with two holes',
    () => zeros([2, 3]).reshape([-1, -1]),
    ShapeError,
    'reshape: only one size may be −1, got [-1, -1]',
  ],
  [
    'view',
    () => zeros([2, 3]).T.view([6]),
    ShapeError,
    'view: [3, 2] with strides [1, 3] cannot be seen as [6] without a copy; use reshape',
  ],
  [
    'permute',
    () => zeros([2, 3]).permute([0, 0]),
    ShapeError,
    'permute: [0, 0] must name each of the 2 dims of [2, 3] once',
  ],
  [
    'expand',
    () => zeros([2, 3]).expand([4, 3]),
    ShapeError,
    'expand: cannot expand [2, 3] to [4, 3]; only dims of size 1 grow and new dims come first',
  ],
  [
    'narrow',
    () => zeros([4]).narrow(0, 2, 3),
    ShapeError,
    'narrow: 3 elements from 2 do not lie within dim 0 of [4]',
  ],
  ['select', () => zeros([4]).select(0, 4), ShapeError, 'select: index 4 is out of range for dim 0 of [4]'],
  [
    'slice',
    () => zeros([4]).slice(0, 4, { step: 0 }),
    ShapeError,
    'slice: step must be a non-zero integer, got 0',
  ],
  [
    'split',
    () => zeros([4]).split([1, 2]),
    ShapeError,
    'split: sizes [1, 2] must sum to 4, the size of dim 0',
  ],
  [
    'cat',
    () => tg.cat([zeros([2, 3]), zeros([2, 4])]),
    ShapeError,
    'cat: [2, 3] and [2, 4] must agree in every dim but 0',
  ],
  ['cat of nothing', () => tg.cat([]), ValueError, 'cat: needs at least one tensor'],
  ['stack', () => tg.stack([zeros([2]), zeros([3])]), ShapeError, 'stack: shapes [2] and [3] differ'],
  [
    'pad',
    () => zeros([2]).pad([1]),
    ShapeError,
    'pad: padding [1] must be pairs of integers, at most one pair per dim of [2]',
  ],
  [
    'reflection',
    () => zeros([3]).pad([3, 0], { mode: 'reflect' }),
    ShapeError,
    'pad: reflect padding of 3 and 0 does not fit dim 0 of [3]',
  ],
  [
    'diagonal',
    () => zeros([3]).diagonal(),
    ShapeError,
    'diagonal: dim 1 is out of range for a tensor of rank 1',
  ],
  [
    'the maximum of nothing',
    () => zeros([2, 0]).amax(1),
    ShapeError,
    'amax: the maximum of no elements is undefined: [2, 0] is empty in dim 1',
  ],
  ['argmax of nothing', () => zeros([0]).argmax(), ShapeError, 'argmax: [0] has no elements'],
  [
    'mean of integers',
    () => int([3]).mean(),
    DTypeError,
    "mean: takes floating tensors, not int32; convert with .to('float32')",
  ],
  [
    'softmax of integers',
    () => int([3]).softmax(0),
    DTypeError,
    'softmax: takes floating tensors, not int32',
  ],
  [
    'topk',
    () => zeros([3]).topk(4),
    ValueError,
    'topk: k = 4 must lie within 0 … 3, the size of dim -1 of [3]',
  ],
  [
    'a float index',
    () => zeros([3]).gather(0, zeros([2])),
    DTypeError,
    "gather: index must be int32, not float32; convert with .to('int32')",
  ],
  [
    'an index of another rank',
    () => zeros([3]).gather(0, int([1, 1])),
    ShapeError,
    'gather: index [1, 1] must have as many dims as the tensor [3]',
  ],
  [
    'an index too large',
    () => zeros([3]).gather(0, tensor([3], { dtype: 'int32' })),
    ValueError,
    'index 3 is out of range for dim 0 of size 3',
  ],
  [
    'scatterAdd',
    () => zeros([3]).scatterAdd(0, int([2]), zeros([1])),
    ShapeError,
    'scatter_add: source [1] must be at least as large as index [2] in every dim',
  ],
  [
    'scatterAdd of another dtype',
    () => zeros([3]).scatterAdd(0, int([1]), int([1])),
    DTypeError,
    'scatter_add: source is int32, the tensor float32; expected the same',
  ],
  [
    'embedding',
    () => tg.embedding(zeros([2]), zeros([3, 4])),
    DTypeError,
    "embedding: indices must be int32, not float32; convert with .to('int32')",
  ],
  [
    'paddingIdx',
    () => tg.embedding(int([2]), zeros([3, 4]), { paddingIdx: 3 }),
    ValueError,
    'embedding: paddingIdx 3 must lie within −3 … 2',
  ],
  [
    'layerNorm',
    () => tg.layerNorm(zeros([2, 3]), [2]),
    ShapeError,
    'layer_norm: normalized shape [2] must be the last dims of the input [2, 3]',
  ],
  [
    'layerNorm weight',
    () => tg.layerNorm(zeros([2, 3]), [3], zeros([2])),
    ShapeError,
    'layer_norm: weight and bias must have the normalized shape [3], got [2]',
  ],
  [
    'groupNorm',
    () => tg.groupNorm(zeros([2, 3]), 2),
    ShapeError,
    'group_norm: [2, 3] must be (N, C, …) with C a multiple of numGroups = 2',
  ],
  [
    'crossEntropy',
    () => tg.crossEntropy(zeros([2, 3]), int([3])),
    ShapeError,
    'cross_entropy: target [3] does not fit input [2, 3]; expected [2]',
  ],
  [
    'a reduction',
    () => tg.nllLoss(zeros([2, 3]), int([2]), { reduction: 'max' as 'mean' }),
    ValueError,
    "nll_loss: reduction must be 'mean', 'sum' or 'none', not 'max'",
  ],
  [
    'a class that does not exist',
    () => tg.crossEntropy(zeros([1, 3]), tensor([3], { dtype: 'int32' })),
    ValueError,
    'index 3 is out of range',
  ],
  [
    'attention',
    () => tg.scaledDotProductAttention(zeros([1, 2, 3, 4]), zeros([1, 2, 3, 5]), zeros([1, 2, 3, 5])),
    ShapeError,
    'scaled_dot_product_attention: q [1, 2, 3, 4], k [1, 2, 3, 5], v [1, 2, 3, 5] do not fit',
  ],
  [
    'attention heads',
    () => tg.scaledDotProductAttention(zeros([1, 3, 1, 2]), zeros([1, 2, 1, 2]), zeros([1, 2, 1, 2])),
    ShapeError,
    '2 key and 2 value heads do not serve 3 query heads; expected equal numbers that divide it',
  ],
  [
    'global tokens without a window',
    () => tg.scaledDotProductAttention(zeros([2, 2]), zeros([2, 2]), zeros([2, 2]), { globalTokens: 1 }),
    ValueError,
    'globalTokens are exceptions from a window; give one, such as window: 256',
  ],
  [
    'ALiBi slopes',
    () => tg.scaledDotProductAttention(zeros([2, 2]), zeros([2, 2]), zeros([2, 2]), { alibi: zeros([2]) }),
    ShapeError,
    'alibi must be one float slope per head, [1], got float32 [2]',
  ],
  [
    'a block mask of another length',
    () =>
      tg.scaledDotProductAttention(zeros([65, 2]), zeros([65, 2]), zeros([65, 2]), {
        blockMask: tg.createBlockMask([[true]]),
      }),
    ShapeError,
    'the block mask has 1 × 1 blocks of 64; 65 queries and 65 keys need 2 × 2',
  ],
  [
    'a block size',
    () => tg.createBlockMask([[true]], { blockSize: 24 }),
    ValueError,
    'create_block_mask: blockSize must be a multiple of 16, got 24',
  ],
  [
    'a predicate without lengths',
    () => tg.createBlockMask(() => true, { qLen: 3 }),
    ValueError,
    'create_block_mask: a predicate needs the lengths qLen and kvLen',
  ],
  [
    'a block mask of numbers',
    () => tg.createBlockMask(zeros([2, 2])),
    DTypeError,
    'create_block_mask: takes a bool tensor, not float32',
  ],
  [
    'a block mask with too few dims',
    () => tg.createBlockMask([true, false]),
    ShapeError,
    'create_block_mask: expected (nQ, nK), (H, nQ, nK) or (B, H, nQ, nK), got [2]',
  ],
  [
    'no blocks to keep',
    () => tg.topkBlocks(zeros([1, 1, 2, 2]), zeros([1, 1, 2, 2]), { keep: 0 }),
    ValueError,
    'topk_blocks: keep must be at least 1, got 0',
  ],
  [
    'heads of block selection',
    () => tg.topkBlocks(zeros([1, 3, 2, 2]), zeros([1, 2, 2, 2]), { keep: 1 }),
    ShapeError,
    'topk_blocks: q [1, 3, 2, 2] and k [1, 2, 2, 2] do not fit',
  ],
  [
    'causal linear attention',
    () =>
      tg.linearAttention(zeros([1, 1, 2, 2]), zeros([1, 1, 3, 2]), zeros([1, 1, 3, 2]), { isCausal: true }),
    ShapeError,
    'linear_attention: causal attention needs as many keys as queries, got 3 and 2',
  ],
  [
    'einsum letters',
    () => tg.einsum('ij->ik', zeros([2, 3])),
    ValueError,
    "einsum: output letter 'k' is in no operand of 'ij->ik'",
  ],
  [
    'einsum sizes',
    () => tg.einsum('ij,jk', zeros([2, 3]), zeros([4, 5])),
    ShapeError,
    "einsum: 'j' has sizes 3 and 4 in 'ij,jk'",
  ],
  [
    'einsum operands',
    () => tg.einsum('ij,jk', zeros([2, 3])),
    ValueError,
    "einsum: 'ij,jk' has 2 operands, 1 were given",
  ],
  ['two numbers', () => tg.add(1, 2), ValueError, 'add: at least one operand must be a tensor'],
  ['clamp', () => zeros([2]).clamp(), ValueError, 'clamp: needs min, max or both'],
  [
    'gelu',
    () => zeros([2]).gelu({ approximate: 'erf' as 'tanh' }),
    ValueError,
    "gelu: approximate must be 'none' or 'tanh', not 'erf'",
  ],
  [
    'a rounding mode',
    () => tg.div(zeros([2]), 2, { roundingMode: 'up' as 'floor' }),
    ValueError,
    "div: roundingMode must be 'floor', 'trunc' or null, not 'up'",
  ],
  [
    'bits of floats',
    () =>
      tg.applyProgram(
        tg.program('mask', 1, ([x]) => tg.expr.and(x, 1)),
        [zeros([2])],
      ),
    DTypeError,
    'mask: and takes bool or int32, not float32',
  ],
  [
    'ragged arrays',
    () => tensor([[1, 2], [3]]),
    ShapeError,
    'tensor: ragged nesting at depth 1; expected 2 entries everywhere for shape [2, 2]',
  ],
  [
    'data of another size',
    () => tensor(new Float32Array(5), [2, 3]),
    ShapeError,
    'tensor: shape [2, 3] has 6 elements, the data 5',
  ],
  ['a negative size', () => zeros([-1]), ShapeError, 'zeros: [-1] is no shape; sizes are integers ≥ 0'],
  [
    'an unknown dtype',
    () => zeros([1]).to('int64' as 'int32'),
    DTypeError,
    "to: 'int64' is no dtype and no device; did you mean 'int32'? known: bool, int32, float16, bfloat16, float32, float64",
  ],
  [
    'item',
    () => zeros([2]).itemSync(),
    ShapeError,
    'itemSync: takes a tensor of one element, got [2]; use dataSync()',
  ],
  [
    'an unknown device',
    () => zeros([1], { device: 'abacus' }),
    DeviceError,
    "device 'abacus' is not known here; known: reference",
  ],
]

describe('errors', () => {
  test.each(cases)('of %s', (_, run, type, text) => {
    expect(run).toThrow(type)
    expect(run).toThrow(text)
    expect(run).toThrow(tg.TilegradError)
  })

  test('of tensors on different devices name both', () => {
    const other: tg.Backend = { ...tg.reference, name: 'other' }
    expect(() => zeros([2]).add(zeros([3], { device: other }))).toThrow(
      'add: its inputs live on different devices: [2] on reference, [3] on other; move one with .to(device)',
    )
  })

  test('of a backend that cannot read at once name the fix', () => {
    const { readSync: _, ...rest } = tg.reference
    const lazy: tg.Backend = { ...rest, name: 'lazy' }
    expect(() => zeros([2], { device: lazy }).dataSync()).toThrow(
      'dataSync: lazy cannot read at once; use await x.data()',
    )
  })
})
