/**
 * Cross-entropy of logits (N, C) with int32 classes (N), without weights or smoothing, and its gradient.
 *
 * Forward, per row: largest m; Σ exp(x − m); loss = (m − x[target]) + ln sum. The rows' losses are added in order by
 * one thread. Backward: (exp(x − m) / sum − [c = target]) · scale in one pass; no softmax is kept. m and the sum are
 * kept apart, [2, N]: as one float32, m + ln sum would lose the logarithm beside a large m. Rows whose target is
 * `ignoreIndex` cost nothing but zeros.
 *
 * Measured, Node 20, one thread, 1024 classes, in the cache, ns per logit: forward 0.50, backward 0.44; [768, 65]
 * takes 49 µs and 28 µs.
 *
 * Reference: `CROSS_ENTROPY` in core's ops/loss.ts. Test: cross-entropy.test.ts.
 */

import type { CrossEntropyAttrs, GradientAttrs, View } from '@tilegrad/core'
import { address, block, word } from '../block.ts'
import type { Engine, KernelFactory } from '../engine.ts'
import { mathF32x4 } from '../lowering/math.ts'
import { f32, f32x4, f64, i32, type ModuleBuilder } from '../wasm/index.ts'
import { checkIndex, flagOf } from './indexing/indexing.ts'
import {
  denseRows,
  eachRow,
  eachVector,
  floatFolds,
  foldRow,
  leadingNest,
  runRows,
  total,
  Words,
  writeNest,
} from './rows.ts'
import { expBelow, rowMax } from './softmax.ts'

const dtypes = [['float32'], ['int32'], ['float32']] as const

const fits = (inputs: readonly View[], { labelSmoothing }: CrossEntropyAttrs): boolean => {
  const [logits] = inputs
  return (
    labelSmoothing === 0 &&
    logits.shape.length === 2 &&
    denseRows(logits) &&
    logits.shape[0] > 0 &&
    logits.shape[1] > 0
  )
}

/** `tops` and `sums`: each row's maximum and sum; `flag` is set where a label is out of range. */
const forwardParams = block({
  ...{ logits: address, target: address, n: word },
  ...{ tops: address, sums: word, losses: word, ignore: word, flag: word },
})
const finishParams = block({
  ...{ target: address, losses: word, loss: address, count: address, n: word, ignore: word },
})
const backwardParams = block({
  ...{ logits: address, target: address, dloss: address, dlogits: address, n: word },
  ...{ tops: address, sums: word, count: address, ignore: word },
})

/** The address of the rows' sums, behind their maxima in [2, N]. */
const sumsOf = (engine: Engine, stats: View): number => engine.address(stats) + 4 * stats.shape[1]

export const crossEntropy: KernelFactory<CrossEntropyAttrs> = (engine) => ({
  dtypes,
  supports: (inputs, attrs) => inputs.length === 2 && fits(inputs, attrs),
  run([loss, stats, count], [logits, target], { ignoreIndex, reduction }) {
    const [rows, classes] = logits.shape
    const each = reduction === 'none' ? engine.address(loss) : engine.memory.alloc(4 * rows)
    try {
      runRows(
        engine,
        'cross_entropy',
        [logits, target],
        1,
        classes,
        forwardParams,
        {
          logits,
          target,
          n: classes,
          tops: stats,
          sums: sumsOf(engine, stats),
          losses: each,
          ignore: ignoreIndex,
          flag: flagOf(engine),
        },
        buildForward,
      )
      checkIndex(engine, 'cross_entropy', target, 1, classes, ignoreIndex)
      const nest = leadingNest(1, [target])
      const rank = nest.sizes.length
      const finish = engine.kernel(`cross_entropy.finish ${reduction} ${rank}`, (m) =>
        buildFinish(m, reduction, rank),
      )
      finishParams.write(engine, { target, losses: each, loss, count, n: rows, ignore: ignoreIndex })
      writeNest(engine, finishParams, nest, [4])
      engine.launch(finish, 1, 1)
    } finally {
      if (reduction !== 'none') engine.memory.free(each)
    }
  },
})

function buildForward(m: ModuleBuilder, rank: number): void {
  m.kernel('main', (f, start, end, params) => {
    const { logits, target, n, tops, sums, losses, ignore, flag } = forwardParams.load(f, params)
    const words = new Words(f, params, forwardParams)
    const exp = expBelow(f)
    const math = mathF32x4(f, ['log'])
    eachRow(f, words, rank, [logits, target], start, end, ([row, at], i) => {
      const to = f.let(i.shl(2))
      f.store(tops.add(to), f32.const(0))
      f.store(sums.add(to), f32.const(0))
      f.store(losses.add(to), f32.const(0))
      const label = f.let(i32.load(at))
      f.if(label.ne(ignore), () => {
        f.if(
          label.geU(n),
          () => f.store(flag, i32.const(1)),
          () => {
            const largest = rowMax(f, n, row)
            const sum = total(f, floatFolds.sum)
            foldRow(f, n, 4, floatFolds.sum, [sum], (v) => [exp(v.load(row), largest)])
            const m = f.let(f32x4.extractLane(largest, 0))
            const all = f.let(f32.demoteF64(sum))
            const logSum = f.let(f32x4.extractLane(math.log(f32x4.splat(all)), 0))
            f.store(tops.add(to), m)
            f.store(sums.add(to), all)
            f.store(losses.add(to), m.sub(f32.load(row.add(label.shl(2)))).add(logSum))
          },
        )
      })
    })
  })
}

/** Builds a kernel of one row that counts the targets and adds the losses. */
function buildFinish(m: ModuleBuilder, reduction: CrossEntropyAttrs['reduction'], rank: number): void {
  m.kernel('main', (f, _start, _end, params) => {
    const { target, losses, loss, count, n, ignore } = finishParams.load(f, params)
    const words = new Words(f, params, finishParams)
    const counted = f.local.i32(0)
    eachRow(f, words, rank, [target], i32.const(0), n, ([at]) => {
      counted.set(counted.add(i32.load(at).ne(ignore)))
    })
    f.store(count, f32.convertI32S(counted))
    if (reduction === 'none') return
    const sum = total(f, floatFolds.sum)
    foldRow(f, n, 8, floatFolds.sum, [sum], (v) => [v.load(losses)])
    f.store(loss, f32.demoteF64(reduction === 'sum' ? sum : f64.div(sum, f64.convertI32S(counted))))
  })
}

export const crossEntropyBackward: KernelFactory<GradientAttrs<CrossEntropyAttrs>> = (engine) => ({
  dtypes,
  supports: (inputs, attrs) => inputs.length === 6 && fits(inputs, attrs) && attrs.needs[0],
  run([dlogits], [logits, target, , stats, count, dloss], { ignoreIndex, reduction }) {
    const { buffer, dtype, offset } = dloss
    const scalar = { buffer, dtype, offset, shape: [logits.shape[0]], strides: [0] }
    const grads = reduction === 'none' ? dloss : scalar
    runRows(
      engine,
      `cross_entropyBackward ${reduction}`,
      [logits, target, grads, dlogits],
      1,
      logits.shape[1],
      backwardParams,
      {
        logits,
        target,
        dloss,
        dlogits,
        n: logits.shape[1],
        tops: stats,
        sums: sumsOf(engine, stats),
        count,
        ignore: ignoreIndex,
      },
      (m, rank) => buildBackward(m, reduction, rank),
    )
  },
})

function buildBackward(m: ModuleBuilder, reduction: CrossEntropyAttrs['reduction'], rank: number): void {
  m.kernel('main', (f, start, end, params) => {
    const { logits, target, dloss, dlogits, n, tops, sums, count, ignore } = backwardParams.load(f, params)
    const words = new Words(f, params, backwardParams)
    const exp = expBelow(f)
    eachRow(f, words, rank, [logits, target, dloss, dlogits], start, end, ([row, at, grad, to], i) => {
      const label = f.let(i32.load(at))
      f.if(
        label.eq(ignore),
        () => f.fill(to, 0, n.shl(2)),
        () => {
          const d = f32.load(grad)
          const scale = f.let(reduction === 'mean' ? d.div(f32.load(count)) : d)
          const scales = f.let(f32x4.splat(scale.div(f32.load(sums.add(i.shl(2))))))
          const shift = f.let(f32x4.splat(f32.load(tops.add(i.shl(2)))))
          eachVector(f, 0, n, 4, (v) => v.store(to, f32x4.mul(exp(v.load(row), shift), scales)))
          // Forward has refused other labels, but a store must not depend on that.
          f.if(label.ltU(n), () => {
            const hit = f.let(to.add(label.shl(2)))
            f.store(hit, f32.load(hit).sub(scale))
          })
        },
      )
    })
  })
}
