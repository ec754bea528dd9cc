import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { LONG, op } from './row.ts'

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
