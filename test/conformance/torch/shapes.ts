import type { PadMode } from '@tilegrad/core'
import * as tg from '@tilegrad/core'
import { LONG, op } from './row.ts'

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
