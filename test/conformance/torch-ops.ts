import type { LossReduction, Operand, PadMode, Tensor } from '@tilegrad/core'
import * as tg from '@tilegrad/core'
import type { Arguments } from './arguments.ts'
import { CLOSE, LOOSE, type Tolerance } from './compare.ts'
import { Skip } from './manifest.ts'

/** How a PyTorch operator is called here. */
export interface TorchOp {
  /** PyTorch's argument names, in order; see `bind`. */
  readonly signature: string
  run(a: Arguments): Tensor | readonly Tensor[]
  /** What the outputs may differ by; gradients by `LOOSE` if that is more. */
  readonly tolerance: Tolerance | ((a: Arguments) => Tolerance)
  /**
   * Where PyTorch leaves a choice: 'selection' gives values and indices of ties in any order, 'dropout' draws random
   * numbers of its own.
   */
  readonly choice?: 'selection' | 'dropout'
}

const table = new Map<string, TorchOp>()

type Run = TorchOp['run']
interface Extra {
  tolerance?: TorchOp['tolerance']
  choice?: 'selection' | 'dropout'
}

function op(names: string, signature: string, run: Run, { tolerance = CLOSE, choice }: Extra = {}): void {
  for (const name of names.split(' '))
    table.set(name, { signature, run, tolerance, ...(choice && { choice }) })
}

/** The operator for PyTorch's name, with or without `torch.`, `nn.functional.` and the `_` of in-place variants. */
export function torchOp(name: string): TorchOp | undefined {
  const bare = name.replace(/^(torch\.)?(nn\.functional\.|special\.|Tensor\.)?/, '')
  return table.get(bare) ?? table.get(bare.replace(/_$/, ''))
}

const LONG: Extra = { tolerance: LOOSE }

// One tensor in, one out.
const unaries = {
  exp: tg.exp,
  log: tg.log,
  log1p: tg.log1p,
  expm1: tg.expm1,
  sqrt: tg.sqrt,
  rsqrt: tg.rsqrt,
  sin: tg.sin,
  cos: tg.cos,
  tanh: tg.tanh,
  sigmoid: tg.sigmoid,
  erf: tg.erf,
  abs: tg.abs,
  neg: tg.neg,
  negative: tg.neg,
  sign: tg.sign,
  floor: tg.floor,
  ceil: tg.ceil,
  square: tg.square,
  reciprocal: tg.reciprocal,
  isnan: tg.isnan,
  logical_not: tg.logicalNot,
  T: tg.T,
} satisfies Record<string, (x: Tensor) => Tensor>
for (const [name, f] of Object.entries(unaries)) op(name, 'input', (a) => f(a.tensor('input')))
op('round', 'input * decimals', (a) => tg.round(a.tensor('input'), { decimals: a.number('decimals', 0) }))
op('relu', 'input inplace', (a) => tg.relu(a.tensor('input')))
op('silu', 'input inplace', (a) => tg.silu(a.tensor('input')))
op('leaky_relu', 'input negative_slope inplace', (a) =>
  tg.leakyRelu(a.tensor('input'), { negativeSlope: a.number('negative_slope', 0.01) }),
)
op('elu', 'input alpha inplace', (a) => tg.elu(a.tensor('input'), { alpha: a.number('alpha', 1) }))
op('softplus', 'input beta threshold', (a) =>
  tg.softplus(a.tensor('input'), { beta: a.number('beta', 1), threshold: a.number('threshold', 20) }),
)
op('gelu', 'input * approximate', (a) =>
  tg.gelu(a.tensor('input'), { approximate: a.text('approximate', 'none') as 'none' | 'tanh' }),
)

// Two operands, either of which may be a number.
function pair(a: Arguments): [Operand, Operand] {
  const [x, y] = [a.operand('input'), a.operand('other')]
  if (typeof x === 'number' && typeof y === 'number') throw new Skip('two numbers make no tensor here')
  return [x, y]
}
const binaries = {
  mul: tg.mul,
  multiply: tg.mul,
  pow: tg.pow,
  maximum: tg.maximum,
  minimum: tg.minimum,
  eq: tg.eq,
  ne: tg.ne,
  lt: tg.lt,
  le: tg.le,
  gt: tg.gt,
  ge: tg.ge,
} satisfies Record<string, (a: Operand, b: Operand) => Tensor>
for (const [name, f] of Object.entries(binaries)) op(name, 'input other|exponent', (a) => f(...pair(a)))
op('add', 'input other * alpha', (a) => {
  if (a.get('alpha') === false) throw new Skip('add: alpha is a number here')
  return tg.add(...pair(a), { alpha: a.number('alpha', 1) })
})
op('sub subtract', 'input other * alpha', (a) => tg.sub(...pair(a), { alpha: a.number('alpha', 1) }))
op('div divide true_divide', 'input other * rounding_mode', (a) =>
  tg.div(...pair(a), {
    roundingMode: a.has('rounding_mode') ? (a.text('rounding_mode', '') as 'floor' | 'trunc') : null,
  }),
)
op('clamp clip', 'input min max', (a) =>
  tg.clamp(a.tensor('input'), a.maybeOperand('min'), a.maybeOperand('max')),
)
op('where', 'condition input other', (a) => {
  // The samples call it as a method of the values, x.where(condition, y); the function takes the condition first.
  const [first, second] = [a.operand('condition'), a.operand('input')]
  if (typeof first === 'number') throw new Skip('where: the condition is a number')
  const asMethod = typeof second !== 'number' && second.dtype === 'bool'
  return asMethod ? tg.where(second, first, a.operand('other')) : tg.where(first, second, a.operand('other'))
})
op('masked_fill', 'input mask value', (a) =>
  tg.maskedFill(a.tensor('input'), a.tensor('mask'), a.operand('value')),
)

// Reductions.
op(
  'sum nansum',
  'input dim|axis keepdim * dtype',
  (a) => tg.sum(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false), ...a.dtype() }),
  LONG,
)
op(
  'mean',
  'input dim|axis keepdim * dtype',
  (a) => tg.mean(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false), ...a.dtype() }),
  LONG,
)
op(
  'prod',
  'input dim|axis keepdim * dtype',
  (a) => tg.prod(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false), ...a.dtype() }),
  LONG,
)
op('amax', 'input dim|axis keepdim', (a) =>
  tg.amax(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false) }),
)
op('amin', 'input dim|axis keepdim', (a) =>
  tg.amin(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false) }),
)
op('argmax', 'input dim|axis keepdim', (a) =>
  tg.argmax(a.tensor('input'), a.has('dim') ? a.number('dim') : null, { keepdim: a.flag('keepdim', false) }),
)
op('argmin', 'input dim|axis keepdim', (a) =>
  tg.argmin(a.tensor('input'), a.has('dim') ? a.number('dim') : null, { keepdim: a.flag('keepdim', false) }),
)
/** var and std have three overloads: (unbiased), (dim, unbiased, keepdim) and (dim, *, correction, keepdim). */
function spread(a: Arguments): [dim: tg.Dims, options: tg.VarOptions] {
  const first = a.get('dim')
  const unbiased = typeof first === 'boolean' ? first : a.flag('unbiased', true)
  return [
    typeof first === 'boolean' ? undefined : a.dims('dim'),
    { correction: a.number('correction', unbiased ? 1 : 0), keepdim: a.flag('keepdim', false) },
  ]
}
op(
  'var',
  'input dim|axis unbiased keepdim * correction',
  (a) => tg.var(a.tensor('input'), ...spread(a)),
  LONG,
)
op(
  'std',
  'input dim|axis unbiased keepdim * correction',
  (a) => tg.std(a.tensor('input'), ...spread(a)),
  LONG,
)
op('logsumexp', 'input dim|axis keepdim', (a) =>
  tg.logsumexp(a.tensor('input'), a.dims('dim'), { keepdim: a.flag('keepdim', false) }),
)
const SOFTMAX = 'input dim _stacklevel dtype'
op('softmax', SOFTMAX, (a) => tg.softmax(a.tensor('input'), a.number('dim'), a.dtype()))
op('log_softmax', SOFTMAX, (a) => tg.logSoftmax(a.tensor('input'), a.number('dim'), a.dtype()))
op('softmin', SOFTMAX, (a) => tg.softmin(a.tensor('input'), a.number('dim'), a.dtype()))
op('cumsum', 'input dim|axis * dtype', (a) => tg.cumsum(a.tensor('input'), a.number('dim'), a.dtype()), LONG)
op(
  'cumprod',
  'input dim|axis * dtype',
  (a) => tg.cumprod(a.tensor('input'), a.number('dim'), a.dtype()),
  LONG,
)
op(
  'sort',
  'input dim descending stable',
  (a) => tg.sort(a.tensor('input'), a.number('dim', -1), { descending: a.flag('descending', false) }),
  { choice: 'selection' },
)
op(
  'topk',
  'input k dim largest sorted',
  (a) => tg.topk(a.tensor('input'), a.number('k'), a.number('dim', -1), { largest: a.flag('largest', true) }),
  { choice: 'selection' },
)

// Products.
op('matmul', 'input other|mat2|tensor2', (a) => tg.matmul(a.tensor('input'), a.tensor('other')), LONG)
op('mm', 'input mat2|other', (a) => tg.mm(a.tensor('input'), a.tensor('mat2')), LONG)
op('bmm', 'input mat2|other', (a) => tg.bmm(a.tensor('input'), a.tensor('mat2')), LONG)
function scale(a: Arguments): tg.Scale {
  const [beta, alpha] = [a.number('beta', 1), a.number('alpha', 1)]
  // PyTorch converts the two to the tensors' dtype; here a fraction makes the result floating.
  const int = a.tensor('input').dtype === 'int32'
  return int ? { beta: Math.trunc(beta), alpha: Math.trunc(alpha) } : { beta, alpha }
}
op(
  'addmm',
  'input mat1 mat2 * beta alpha',
  (a) => tg.addmm(a.tensor('input'), a.tensor('mat1'), a.tensor('mat2'), scale(a)),
  LONG,
)
op(
  'baddbmm',
  'input batch1 batch2 * beta alpha',
  (a) => tg.baddbmm(a.tensor('input'), a.tensor('batch1'), a.tensor('batch2'), scale(a)),
  LONG,
)
op('outer ger', 'input vec2|other', (a) => tg.outer(a.tensor('input'), a.tensor('vec2')))
op(
  'einsum',
  'operands equation...',
  (a) => {
    // The samples give the operands as the input and the equation after them; the function takes the equation first.
    const rest = a.get('equation')
    const [equation] = Array.isArray(rest) ? rest : [rest]
    if (typeof equation === 'string') return tg.einsum(equation, ...a.tensors('operands'))
    return tg.einsum(a.text('operands', ''), ...a.tensors('equation'))
  },
  LONG,
)
op(
  'linear',
  'input weight bias',
  (a) => tg.linear(a.tensor('input'), a.tensor('weight'), a.maybeTensor('bias')),
  LONG,
)

// Shapes.
op('permute', 'input dims...', (a) => tg.permute(a.tensor('input'), a.numbers('dims')))
op('transpose swapaxes swapdims', 'input dim0|axis0 dim1|axis1', (a) =>
  tg.transpose(a.tensor('input'), a.number('dim0'), a.number('dim1')),
)
op('movedim moveaxis', 'input source destination', (a) =>
  tg.movedim(a.tensor('input'), a.numbers('source'), a.numbers('destination')),
)
op('reshape', 'input shape...', (a) => tg.reshape(a.tensor('input'), a.numbers('shape')))
op('view', 'input size|shape...', (a) => tg.view(a.tensor('input'), a.numbers('size')))
op('flatten', 'input start_dim end_dim', (a) =>
  tg.flatten(a.tensor('input'), a.number('start_dim', 0), a.number('end_dim', -1)),
)
op('expand', 'input size|sizes... * implicit', (a) => tg.expand(a.tensor('input'), a.numbers('size')))
op('broadcast_to', 'input size|shape...', (a) => tg.broadcastTo(a.tensor('input'), a.numbers('size')))
op('repeat', 'input repeats|sizes...', (a) => tg.repeat(a.tensor('input'), a.numbers('repeats')))
op('tile', 'input dims|reps...', (a) => tg.tile(a.tensor('input'), a.numbers('dims')))
op('cat concat concatenate', 'tensors dim|axis', (a) => tg.cat(a.tensors('tensors'), a.number('dim', 0)))
op('stack', 'tensors dim', (a) => tg.stack(a.tensors('tensors'), a.number('dim', 0)))
op('split split_with_sizes', 'input|tensor split_size_or_sections|split_size|split_sizes dim', (a) => {
  const size = a.get('split_size_or_sections')
  const by = Array.isArray(size) ? a.numbers('split_size_or_sections') : a.number('split_size_or_sections')
  return tg.split(a.tensor('input'), by, a.number('dim', 0))
})
op('chunk', 'input chunks dim', (a) => tg.chunk(a.tensor('input'), a.number('chunks'), a.number('dim', 0)))
op('narrow', 'input dim start length', (a) =>
  tg.narrow(a.tensor('input'), a.number('dim'), a.number('start'), a.number('length')),
)
op('unbind', 'input dim', (a) => tg.unbind(a.tensor('input'), a.number('dim', 0)))
op('squeeze', 'input dim', (a) => tg.squeeze(a.tensor('input'), a.dims('dim')))
op('unsqueeze', 'input dim', (a) => tg.unsqueeze(a.tensor('input'), a.number('dim')))
op('flip', 'input dims...', (a) => tg.flip(a.tensor('input'), a.numbers('dims')))
op('roll', 'input shifts dims', (a) => tg.roll(a.tensor('input'), a.numbers('shifts'), a.dims('dims')))
op('diagonal', 'input offset dim1 dim2', (a) =>
  tg.diagonal(a.tensor('input'), {
    offset: a.number('offset', 0),
    dim1: a.number('dim1', 0),
    dim2: a.number('dim2', 1),
  }),
)
op('tril', 'input diagonal', (a) => tg.tril(a.tensor('input'), a.number('diagonal', 0)))
op('triu', 'input diagonal', (a) => tg.triu(a.tensor('input'), a.number('diagonal', 0)))
op('pad constant_pad_nd', 'input pad mode value', (a) =>
  tg.pad(a.tensor('input'), a.numbers('pad'), {
    mode: a.text('mode', 'constant') as PadMode,
    value: a.number('value', 0),
  }),
)

// Indices.
op('index_select', 'input dim index', (a) =>
  tg.indexSelect(a.tensor('input'), a.number('dim'), a.tensor('index')),
)
op('gather', 'input dim index * sparse_grad', (a) =>
  tg.gather(a.tensor('input'), a.number('dim'), a.tensor('index')),
)
op(
  'scatter_add',
  'input dim index src',
  (a) => tg.scatterAdd(a.tensor('input'), a.number('dim'), a.tensor('index'), a.tensor('src')),
  LONG,
)
op('embedding', 'input weight padding_idx max_norm norm_type scale_grad_by_freq sparse', (a) => {
  a.only('max_norm', null)
  a.only('scale_grad_by_freq', false)
  // The samples give the weight first, the function the indices.
  const [first, second] = [a.tensor('input'), a.tensor('weight')]
  const paddingIdx = a.has('padding_idx') ? a.number('padding_idx') : null
  return first.dtype === 'int32'
    ? tg.embedding(first, second, { paddingIdx })
    : tg.embedding(second, first, { paddingIdx })
})

// Layers.
/**
 * PyTorch computes x·r − mean·r with r = 1 / √(variance + eps). Of a single element the variance is 0, and its two terms,
 * up to 9 · 316, cancel to ± 3e-4 instead of 0.
 */
const normTolerance = (size: number): Tolerance => (size === 1 ? { rtol: 1e-4, atol: 1e-3 } : LOOSE)
op(
  'layer_norm',
  'input normalized_shape weight bias eps',
  (a) =>
    tg.layerNorm(
      a.tensor('input'),
      a.numbers('normalized_shape'),
      a.maybeTensor('weight'),
      a.maybeTensor('bias'),
      {
        eps: a.number('eps', 1e-5),
      },
    ),
  { tolerance: (a) => normTolerance(a.numbers('normalized_shape').reduce((p, n) => p * n, 1)) },
)
op(
  'rms_norm',
  'input normalized_shape weight eps',
  (a) =>
    tg.rmsNorm(a.tensor('input'), a.numbers('normalized_shape'), a.maybeTensor('weight'), {
      eps: a.has('eps') ? a.number('eps') : null,
    }),
  LONG,
)
op(
  'group_norm',
  'input num_groups weight bias eps',
  (a) =>
    tg.groupNorm(a.tensor('input'), a.number('num_groups'), a.maybeTensor('weight'), a.maybeTensor('bias'), {
      eps: a.number('eps', 1e-5),
    }),
  {
    tolerance: (a) => {
      const { numel, shape } = a.tensor('input')
      return normTolerance(numel / (shape[0] * a.number('num_groups')))
    },
  },
)
op(
  'dropout',
  'input p training|train inplace',
  (a) => tg.dropout(a.tensor('input'), a.number('p', 0.5), a.flag('training', true)),
  { choice: 'dropout' },
)
op(
  'scaled_dot_product_attention',
  'query|input key value attn_mask dropout_p is_causal scale enable_gqa',
  (a) => {
    if (a.number('dropout_p', 0) > 0)
      throw new Skip('scaled_dot_product_attention: the dropout mask is random')
    return tg.scaledDotProductAttention(a.tensor('query'), a.tensor('key'), a.tensor('value'), {
      attnMask: a.maybeTensor('attn_mask'),
      isCausal: a.flag('is_causal', false),
      scale: a.has('scale') ? a.number('scale') : null,
      enableGqa: a.flag('enable_gqa', false),
    })
  },
  LONG,
)

// Losses.
/** The reduction, also by the two flags that came before it. */
function reduction(a: Arguments): { reduction: LossReduction } {
  if (a.has('size_average') || a.has('reduce')) {
    if (!a.flag('reduce', true)) return { reduction: 'none' }
    return { reduction: a.flag('size_average', true) ? 'mean' : 'sum' }
  }
  return { reduction: a.text('reduction', 'mean') as LossReduction }
}
op(
  'mse_loss',
  'input target size_average reduce reduction',
  (a) => tg.mseLoss(a.tensor('input'), a.tensor('target'), reduction(a)),
  LONG,
)
op(
  'l1_loss',
  'input target size_average reduce reduction',
  (a) => tg.l1Loss(a.tensor('input'), a.tensor('target'), reduction(a)),
  LONG,
)
op(
  'smooth_l1_loss',
  'input target size_average reduce reduction beta',
  (a) =>
    tg.smoothL1Loss(a.tensor('input'), a.tensor('target'), { ...reduction(a), beta: a.number('beta', 1) }),
  LONG,
)
op(
  'huber_loss',
  'input target reduction delta',
  (a) =>
    tg.huberLoss(a.tensor('input'), a.tensor('target'), { ...reduction(a), delta: a.number('delta', 1) }),
  LONG,
)
op(
  'binary_cross_entropy_with_logits',
  'input target weight size_average reduce reduction pos_weight',
  (a) =>
    tg.binaryCrossEntropyWithLogits(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      posWeight: a.maybeTensor('pos_weight'),
    }),
  LONG,
)
op(
  'nll_loss',
  'input target weight size_average ignore_index reduce reduction',
  (a) =>
    tg.nllLoss(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      ignoreIndex: a.number('ignore_index', -100),
    }),
  LONG,
)
op(
  'cross_entropy',
  'input target weight size_average ignore_index reduce reduction label_smoothing',
  (a) =>
    tg.crossEntropy(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      ignoreIndex: a.number('ignore_index', -100),
      labelSmoothing: a.number('label_smoothing', 0),
    }),
  LONG,
)

export const torchOpNames = (): string[] => [...table.keys()]
