import * as nn from '@tilegrad/nn'
import type { Arguments } from '../arguments.ts'
import { torchModule } from './module-row.ts'

const layer = (a: Arguments) => ({
  numLayers: a.number('num_layers', 1),
  bias: a.flag('bias', true),
  batchFirst: a.flag('batch_first', false),
  bidirectional: a.flag('bidirectional', false),
})
const sizes = (a: Arguments) => [a.number('input_size'), a.number('hidden_size')] as const
const nonlinearity = (a: Arguments) => a.text('nonlinearity', 'tanh') as 'tanh' | 'relu'

const LAYER = 'input_size hidden_size num_layers bias batch_first bidirectional'
torchModule('RNN', `${LAYER} nonlinearity`, (a) => {
  return new nn.RNN(...sizes(a), { ...layer(a), nonlinearity: nonlinearity(a) })
})
torchModule('LSTM', LAYER, (a) => new nn.LSTM(...sizes(a), layer(a)))
torchModule('GRU', LAYER, (a) => new nn.GRU(...sizes(a), layer(a)))

const CELL = 'input_size hidden_size bias'
torchModule('RNNCell', `${CELL} nonlinearity`, (a) => {
  return new nn.RNNCell(...sizes(a), { bias: a.flag('bias', true), nonlinearity: nonlinearity(a) })
})
torchModule('LSTMCell', CELL, (a) => new nn.LSTMCell(...sizes(a), { bias: a.flag('bias', true) }))
torchModule('GRUCell', CELL, (a) => new nn.GRUCell(...sizes(a), { bias: a.flag('bias', true) }))
