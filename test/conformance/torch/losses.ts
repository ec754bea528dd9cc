import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { LONG, op } from './row.ts'

/** Losses, and an activation, that only their modules stand for. */

const reduction = (a: Arguments) => ({ reduction: a.text('reduction', 'mean') as tg.LossReduction })

op('hardshrink', 'input lambd', (a) => tg.hardshrink(a.tensor('input'), { lambd: a.number('lambd', 0.5) }))
op(
  'hinge_embedding_loss',
  'input target margin size_average reduce reduction',
  (a) =>
    tg.hingeEmbeddingLoss(a.tensor('input'), a.tensor('target'), {
      margin: a.number('margin', 1),
      ...reduction(a),
    }),
  LONG,
)
op(
  'soft_margin_loss',
  'input target size_average reduce reduction',
  (a) => tg.softMarginLoss(a.tensor('input'), a.tensor('target'), reduction(a)),
  LONG,
)
