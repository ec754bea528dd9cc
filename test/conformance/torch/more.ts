import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { Skip } from '../manifest.ts'
import { LONG, op } from './row.ts'

/** Names that are compositions: fixtures of theirs lie in a folder of their own. */

const unaries = {
  ...{ tan: tg.tan, atan: tg.atan, asin: tg.asin, acos: tg.acos, sinh: tg.sinh, cosh: tg.cosh },
  ...{ asinh: tg.asinh, acosh: tg.acosh, atanh: tg.atanh, log2: tg.log2, log10: tg.log10, exp2: tg.exp2 },
  ...{ trunc: tg.trunc, frac: tg.frac, isinf: tg.isinf, isfinite: tg.isfinite, isposinf: tg.isposinf },
  ...{
    isneginf: tg.isneginf,
    erfc: tg.erfc,
    erfinv: tg.erfinv,
    trace: tg.trace,
    selu: tg.selu,
    mish: tg.mish,
  },
  ...{ hardswish: tg.hardswish, hardsigmoid: tg.hardsigmoid, relu6: tg.relu6, logsigmoid: tg.logsigmoid },
  ...{ softsign: tg.softsign, tanhshrink: tg.tanhshrink },
}
for (const [name, fn] of Object.entries(unaries))
  op(name, 'input inplace', (a) => fn(a.tensor('input')), LONG)
const binaries = {
  ...{ remainder: tg.remainder, fmod: tg.fmod, floor_divide: tg.floorDivide, logaddexp: tg.logaddexp },
  ...{ hypot: tg.hypot, logical_xor: tg.logicalXor },
}
for (const [name, fn] of Object.entries(binaries))
  op(name, 'input other', (a) => fn(a.operand('input'), a.operand('other')), LONG)
op('atan2', 'input other', (a) => tg.atan2(a.tensor('input'), a.tensor('other')), LONG)
op('nan_to_num', 'input nan posinf neginf', (a) => tg.nanToNum(a.tensor('input')))
op('lerp', 'input end weight', (a) => tg.lerp(a.tensor('input'), a.tensor('end'), a.operand('weight')), LONG)
op('isclose', 'input other rtol atol equal_nan', (a) => tg.isclose(a.tensor('input'), a.tensor('other')))
for (const [name, fn] of Object.entries({ addcmul: tg.addcmul, addcdiv: tg.addcdiv }))
  op(name, 'input tensor1 tensor2 * value', (a) => {
    const options = { value: a.number('value', 1) }
    return fn(a.tensor('input'), a.tensor('tensor1'), a.tensor('tensor2'), options)
  })

// The largest, the smallest, the middle.
const keepdim = (a: Arguments) => ({ keepdim: a.flag('keepdim', false) })
for (const [name, fn] of Object.entries({ max: tg.max, min: tg.min }))
  op(
    name,
    'input dim|other keepdim',
    (a) => {
      if (!a.has('dim')) return fn(a.tensor('input'))
      return typeof a.get('dim') === 'number'
        ? fn(a.tensor('input'), a.number('dim'), keepdim(a))
        : fn(a.tensor('input'), a.tensor('dim'))
    },
    { choice: 'selection' },
  )
op('aminmax', 'input * dim keepdim', (a) =>
  tg.aminmax(a.tensor('input'), a.has('dim') ? a.number('dim') : null, keepdim(a)),
)
op(
  'median',
  'input dim keepdim',
  (a) =>
    a.has('dim') ? tg.median(a.tensor('input'), a.number('dim'), keepdim(a)) : tg.median(a.tensor('input')),
  { choice: 'selection' },
)
op(
  'quantile',
  'input q dim keepdim * interpolation',
  (a) => {
    const q = a.get('q')
    // A tensor of shares would have to be read.
    if (typeof q !== 'number') throw new Skip('shares are numbers here')
    const interpolation = a.text('interpolation', 'linear') as tg.Interpolation
    return tg.quantile(a.tensor('input'), q, a.has('dim') ? a.number('dim') : null, {
      ...keepdim(a),
      interpolation,
    })
  },
  LONG,
)
op('cummax', 'input dim', (a) => tg.cummax(a.tensor('input'), a.number('dim')))
op('cummin', 'input dim', (a) => tg.cummin(a.tensor('input'), a.number('dim')))

// Norms and statistics.
op(
  'norm',
  'input p dim keepdim dtype',
  (a) => {
    const p = a.has('p') ? a.get('p') : 2
    if (p === 'nuc') throw new Skip('the nuclear norm is no norm of vectors')
    return tg.norm(a.tensor('input'), p as number | 'fro', a.dims('dim'), keepdim(a))
  },
  LONG,
)
for (const [name, fn] of Object.entries({ var_mean: tg.varMean, std_mean: tg.stdMean }))
  op(
    name,
    'input dim unbiased keepdim * correction',
    (a) => {
      const first = a.get('dim')
      const unbiased = typeof first === 'boolean' ? first : a.flag('unbiased', true)
      const correction = a.number('correction', unbiased ? 1 : 0)
      const dim = typeof first === 'boolean' ? undefined : a.dims('dim')
      return fn(a.tensor('input'), dim, { correction, ...keepdim(a) })
    },
    LONG,
  )
op('count_nonzero', 'input dim', (a) => tg.countNonzero(a.tensor('input'), a.dims('dim')))
op(
  'nansum',
  'input dim keepdim * dtype',
  (a) => tg.nansum(a.tensor('input'), a.dims('dim'), keepdim(a)),
  LONG,
)
op(
  'nanmean',
  'input dim keepdim * dtype',
  (a) => tg.nanmean(a.tensor('input'), a.dims('dim'), keepdim(a)),
  LONG,
)
op('diff', 'input n dim prepend append', (a) => {
  if (a.maybeTensor('prepend') || a.maybeTensor('append')) throw new Skip('cat puts more at the ends')
  return tg.diff(a.tensor('input'), { n: a.number('n', 1), dim: a.number('dim', -1) })
})
op('logcumsumexp', 'input dim', (a) => tg.logcumsumexp(a.tensor('input'), a.number('dim')), LONG)
op(
  'dist',
  'input other p',
  (a) => tg.dist(a.tensor('input'), a.tensor('other'), { p: a.number('p', 2) }),
  LONG,
)
op(
  'cdist',
  'x1 x2 p compute_mode',
  (a) => tg.cdist(a.tensor('x1'), a.tensor('x2'), { p: a.number('p', 2) }),
  LONG,
)
op(
  'normalize',
  'input p dim eps',
  (a) => tg.normalize(a.tensor('input'), { p: a.number('p', 2), dim: a.number('dim', 1) }),
  LONG,
)
op(
  'cosine_similarity',
  'x1 x2 dim eps',
  (a) =>
    tg.cosineSimilarity(a.tensor('x1'), a.tensor('x2'), {
      dim: a.number('dim', 1),
      eps: a.number('eps', 1e-8),
    }),
  LONG,
)

// Matrices and grids.
op('diag', 'input diagonal', (a) => tg.diag(a.tensor('input'), a.number('diagonal', 0)))
op('diag_embed', 'input offset dim1 dim2', (a) =>
  tg.diagEmbed(a.tensor('input'), { offset: a.number('offset', 0) }),
)
op('kron', 'input other', (a) => tg.kron(a.tensor('input'), a.tensor('other')))
op(
  'tensordot',
  'a b dims',
  (a) => tg.tensordot(a.tensor('a'), a.tensor('b'), a.get('dims') as Parameters<typeof tg.tensordot>[2]),
  LONG,
)
op('cross', 'input other dim', (a) => {
  const x = a.tensor('input')
  // The old form takes the first dim of three.
  const dim = a.has('dim') && a.get('dim') !== null ? a.number('dim') : x.shape.indexOf(3)
  return tg.cross(x, a.tensor('other'), dim)
})
op('repeat_interleave', 'input repeats dim * output_size', (a) => {
  if (typeof a.get('repeats') !== 'number') throw new Skip('counts are numbers of the host here')
  return tg.repeatInterleave(a.tensor('input'), a.number('repeats'), a.has('dim') ? a.number('dim') : null)
})
op('hstack', 'tensors', (a) => tg.hstack(a.tensors('tensors')))
op('vstack', 'tensors', (a) => tg.vstack(a.tensors('tensors')))
op('unfold', 'input dimension size step', (a) =>
  tg.unfold(a.tensor('input'), a.number('dimension'), a.number('size'), a.number('step')),
)
op('searchsorted', 'sorted_sequence input * out_int32 right side sorter', (a) => {
  if (a.maybeTensor('sorter')) throw new Skip('what is not in order is sorted first')
  const right = a.flag('right', false) || a.text('side', 'left') === 'right'
  return tg.searchsorted(a.tensor('sorted_sequence'), a.tensor('input'), { right })
})

// Places.
op('scatter', 'input dim index src|value * reduce', (a) => {
  const reduce = a.text('reduce', 'replace')
  if (reduce === 'multiply') throw new Skip('products are not scattered here')
  const src = a.get('src')
  const source = typeof src === 'number' ? src : a.tensor('src')
  const options = reduce === 'add' ? ({ reduce: 'add' } as const) : {}
  return tg.scatter(a.tensor('input'), a.number('dim'), a.tensor('index'), source, options)
})
op(
  'index_add',
  'input dim index source * alpha',
  (a) =>
    tg.indexAdd(a.tensor('input'), a.number('dim'), a.tensor('index'), a.tensor('source'), {
      alpha: a.number('alpha', 1),
    }),
  LONG,
)
op('index_copy', 'input dim index source', (a) =>
  tg.indexCopy(a.tensor('input'), a.number('dim'), a.tensor('index'), a.tensor('source')),
)
op('index_fill', 'input dim index value', (a) => {
  if (typeof a.get('value') !== 'number') throw new Skip('values are numbers here')
  return tg.indexFill(a.tensor('input'), a.number('dim'), a.tensor('index'), a.number('value'))
})
op('take', 'input index', (a) => tg.take(a.tensor('input'), a.tensor('index')))
op('take_along_dim', 'input indices dim', (a) =>
  tg.takeAlongDim(a.tensor('input'), a.tensor('indices'), a.has('dim') ? a.number('dim') : null),
)
op('masked_scatter', 'input mask source', (a) =>
  tg.maskedScatter(a.tensor('input'), a.tensor('mask'), a.tensor('source')),
)
op('index_put', 'input indices values accumulate', (a) =>
  tg.indexPut(a.tensor('input'), a.tensors('indices'), a.tensor('values'), {
    accumulate: a.flag('accumulate', false),
  }),
)

// Activations and losses.
op('celu', 'input alpha inplace', (a) => tg.celu(a.tensor('input'), { alpha: a.number('alpha', 1) }))
op('hardtanh', 'input min_val max_val inplace', (a) =>
  tg.hardtanh(a.tensor('input'), { minVal: a.number('min_val', -1), maxVal: a.number('max_val', 1) }),
)
op('softshrink', 'input lambd', (a) => tg.softshrink(a.tensor('input'), { lambd: a.number('lambd', 0.5) }))
op('threshold', 'input threshold value inplace', (a) =>
  tg.threshold(a.tensor('input'), a.number('threshold'), a.number('value')),
)
op('prelu', 'input weight', (a) => tg.prelu(a.tensor('input'), a.tensor('weight')))
op('glu', 'input dim', (a) => tg.glu(a.tensor('input'), a.number('dim', -1)))
const reduction = (a: Arguments) => a.text('reduction', 'mean') as tg.LossReduction
op(
  'kl_div',
  'input target size_average reduce reduction log_target',
  (a) =>
    tg.klDiv(a.tensor('input'), a.tensor('target'), {
      reduction: reduction(a) as tg.LossReduction | 'batchmean',
      logTarget: a.flag('log_target', false),
    }),
  LONG,
)
op(
  'binary_cross_entropy',
  'input target weight size_average reduce reduction',
  (a) =>
    tg.binaryCrossEntropy(a.tensor('input'), a.tensor('target'), {
      weight: a.maybeTensor('weight'),
      reduction: reduction(a),
    }),
  LONG,
)
op(
  'pairwise_distance',
  'x1 x2 p eps keepdim',
  (a) => tg.pairwiseDistance(a.tensor('x1'), a.tensor('x2'), { p: a.number('p', 2), ...keepdim(a) }),
  LONG,
)
op(
  'margin_ranking_loss',
  'input1 input2 target margin size_average reduce reduction',
  (a) =>
    tg.marginRankingLoss(a.tensor('input1'), a.tensor('input2'), a.tensor('target'), {
      margin: a.number('margin', 0),
      reduction: reduction(a),
    }),
  LONG,
)
op(
  'cosine_embedding_loss',
  'input1 input2 target margin size_average reduce reduction',
  (a) =>
    tg.cosineEmbeddingLoss(a.tensor('input1'), a.tensor('input2'), a.tensor('target'), {
      margin: a.number('margin', 0),
      reduction: reduction(a),
    }),
  LONG,
)
op(
  'triplet_margin_loss',
  'anchor positive negative margin p eps swap size_average reduce reduction',
  (a) =>
    tg.tripletMarginLoss(a.tensor('anchor'), a.tensor('positive'), a.tensor('negative'), {
      margin: a.number('margin', 1),
      p: a.number('p', 2),
      swap: a.flag('swap', false),
      reduction: reduction(a),
    }),
  LONG,
)
op('meshgrid', 'tensors... * indexing', (a) =>
  tg.meshgrid(a.tensors('tensors'), { indexing: a.text('indexing', 'ij') as 'ij' | 'xy' }),
)
