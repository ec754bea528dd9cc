import type { Operand, Tensor } from '@tilegrad/core'
import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { Skip } from '../manifest.ts'
import { op } from './row.ts'

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
  const asMethod = second instanceof tg.Tensor && second.dtype === 'bool'
  return asMethod ? tg.where(second, first, a.operand('other')) : tg.where(first, second, a.operand('other'))
})
op('masked_fill', 'input mask value', (a) =>
  tg.maskedFill(a.tensor('input'), a.tensor('mask'), a.operand('value')),
)
