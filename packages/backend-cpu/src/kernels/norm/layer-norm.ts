/**
 * Layer norm and RMS norm over dense trailing dims, and their gradients.
 *
 * Forward, per row: mean; Σ(x − mean)² in a second pass, so that nothing cancels; y. Statistics in float64, kept as
 * float32. Where the mean is larger than the deviation, its own rounding counts: then Σ(x − mean) tells what it misses
 * by, and both are taken again, so that a row of one value is 0 exactly; what float32 still misses of the mean is taken off each
 * result. Backward, with x̂ = (x − mean) · rstd and g = dy · weight, per row: Σ g and Σ g x̂; then
 * dx = rstd · (g − mean g − x̂ · mean g x̂), and in the same pass dy x̂ and dy are added to the sums of dweight and
 * dbias. Those are kept per block of 32 … 256 rows (the shape decides how many, not the threads) and then added in
 * order. RMS norm is the same without the mean and without Σ g. What else x has received, as where a residual stream
 * passes the norm by, is added to dx as that is stored.
 *
 * Measured, Node 20, one thread, rows of 1024 in the cache, ns per element: forward 0.30, RMS norm 0.18; backward 0.65
 * as written in papers, 0.55 with (x − mean) and dy · rstd shared by the three gradients, RMS norm 0.41.
 *
 * Reference: `LAYER_NORM`, `RMS_NORM` in core's ops/norm.ts. Test: norm.test.ts.
 */

import { type GradientAttrs, type LayerNormAttrs, layout, type RmsNormAttrs, type View } from '@tilegrad/core'
import { denseFrom, leadOf } from '@tilegrad/core/kernel'
import { address, block as declare, double, optional, word } from '../../block.ts'
import type { Engine, KernelFactory } from '../../engine.ts'
import { f32, f32x4, f64, type I32, i32, type ModuleBuilder, type V128, v128 } from '../../wasm/index.ts'
import { sumPieces } from '../reduce/columns.ts'
import {
  eachRow,
  eachVector,
  floatFolds,
  foldRow,
  grainOf,
  leadingNest,
  runRows,
  total,
  type Vector,
  Words,
  writeNest,
} from '../rows.ts'
import { splat } from '../softmax.ts'

const forwardParams = declare({
  ...{ x: address, y: address, n: word, eps: double },
  ...{ means: optional(address), rstds: address, weight: optional(address), bias: optional(address) },
})
/** Blocks are of rows, whose sums of dweight and dbias lie in `partial`. */
const backwardParams = declare({
  ...{ x: address, dy: address, dx: address, rest: optional(address) },
  ...{ means: optional(address), rstds: address, weight: optional(address) },
  ...{ partial: word, n: word, rows: word, block: word, blocks: word },
})

const params = { none: 0, weight: 1, both: 2 } as const

const fits = (x: View, others: readonly View[], weights: readonly View[], size: number): boolean =>
  layout.numel(x.shape) > 0 &&
  [x, ...others].every((v) => denseFrom(leadOf(v, size), v)) &&
  weights.every((v) => denseFrom(0, v))

const forward =
  (centred: boolean): KernelFactory<LayerNormAttrs> =>
  (engine) => ({
    dtypes: [['float32']],
    supports: ([x, ...weights], { size }) => fits(x, [], weights, size),
    run([y, ...stats], [x, ...weights], { size, eps, affine }) {
      const [means, rstds] = centred ? stats : [null, stats[0]]
      runRows(
        engine,
        `norm ${centred} ${affine}`,
        [x, y],
        leadOf(x, size),
        size,
        forwardParams,
        { x, y, n: size, eps, means, rstds, weight: weights[0], bias: weights[1] },
        (m, rank) => buildForward(m, centred, affine, rank),
      )
    },
  })

const backward =
  (centred: boolean): KernelFactory<GradientAttrs<LayerNormAttrs>> =>
  (engine) => ({
    adds: true,
    dtypes: [['float32']],
    supports: ([x, ...rest], { size, affine, adds }) =>
      fits(x, rest.slice(adds ? -2 : -1), rest.slice(0, params[affine]), size),
    run(outputs, inputs, { size, affine, needs, adds }) {
      const count = params[affine]
      const x = inputs[0]
      const weight = count > 0 ? inputs[1] : undefined
      // After x, the parameters and y: the statistics, then dy.
      const last = inputs.length - (adds ? 2 : 1)
      const stats = inputs.slice(count + 2, last)
      const dy = inputs[last]
      const rest = adds ? inputs[last + 1] : undefined
      let next = 0
      const [dx, dweight, dbias] = [0, 1, 2].map((i) => (needs[i] ? outputs[next++] : undefined))
      runBackward(engine, centred, size, { x, dy, rest, weight, stats, dx, dweight, dbias })
    },
  })

export const layerNorm = forward(true)
export const layerNormBackward = backward(true)
export const rmsNorm: KernelFactory<RmsNormAttrs> = forward(false)
export const rmsNormBackward: KernelFactory<GradientAttrs<RmsNormAttrs>> = backward(false)

function buildForward(
  m: ModuleBuilder,
  centred: boolean,
  affine: LayerNormAttrs['affine'],
  rank: number,
): void {
  m.kernel('main', (f, start, end, parameters) => {
    const own = forwardParams.load(f, parameters)
    const { x, y, n, rstds } = own
    const eps = f.let(f64.load(parameters, forwardParams.offset('epsLow')))
    const means = centred ? own.means : undefined
    const weight = affine === 'none' ? undefined : own.weight
    const bias = affine === 'both' ? own.bias : undefined
    const words = new Words(f, parameters, forwardParams)
    const share = f.let(f64.div(1, f64.convertI32S(n)))
    eachRow(f, words, rank, [x, y], start, end, ([from, to], row) => {
      const at = f.let(row.shl(2))
      const mean = means && f.local.v128(f32x4.const(0))
      const sum = total(f, floatFolds.sum)
      if (means && mean) {
        foldRow(f, n, 8, floatFolds.sum, [sum], (v) => [v.load(from)])
        sum.set(sum.mul(share))
        f.store(means.add(at), f32.demoteF64(sum))
        mean.set(splat(sum))
      }
      const centre = (v: Vector): V128 => (mean ? f32x4.sub(v.load(from), mean) : v.load(from))
      /** What the mean misses by, as float32, far from 0: −0 adds nothing. */
      const missed = mean && f.local.v128(f32x4.const(-0))
      const squares = total(f, floatFolds.sum)
      foldRow(f, n, 8, floatFolds.sum, [squares], (v) => {
        const x = f.let(centre(v))
        return [[x, x]]
      })
      if (means && mean && missed) {
        f.if(f64.lt(squares.mul(share), sum.mul(sum)), () => {
          const rest = total(f, floatFolds.sum)
          foldRow(f, n, 8, floatFolds.sum, [rest], (v) => [centre(v)])
          const exact = f.let(f64.promoteF32(f32x4.extractLane(mean, 0)).add(rest.mul(share)))
          mean.set(splat(exact))
          f.store(means.add(at), f32x4.extractLane(mean, 0))
          squares.set(0)
          rest.set(0)
          foldRow(f, n, 4, floatFolds.sum, [squares, rest], (v) => {
            const x = f.let(centre(v))
            return [[x, x], x]
          })
          squares.set(f64.max(squares.sub(rest.mul(rest).mul(share)), 0))
          missed.set(splat(f.let(rest.mul(share).mul(-1))))
        })
      }
      const rstd = f.let(f32.demoteF64(f64.div(1, squares.mul(share).add(eps).sqrt())))
      f.store(rstds.add(at), rstd)
      const scale = f.let(f32x4.splat(rstd))
      const shift = missed && f.let(f32x4.mul(missed, scale))
      eachVector(f, 0, n, 4, (v) => {
        const normal = shift ? f32x4.madd(centre(v), scale, shift) : f32x4.mul(centre(v), scale)
        const w = weight && v.load(weight)
        v.store(to, w && bias ? f32x4.madd(normal, w, v.load(bias)) : w ? f32x4.mul(normal, w) : normal)
      })
    })
  })
}

interface Gradient {
  readonly x: View
  readonly dy: View
  /** A tensor that is added to dx. */
  readonly rest: View | undefined
  readonly weight: View | undefined
  readonly stats: readonly View[]
  readonly dx: View | undefined
  readonly dweight: View | undefined
  readonly dbias: View | undefined
}

/** Rows whose parts of dweight and dbias one unit adds up. */
const blockRows = (rows: number): number => Math.min(256, Math.max(32, Math.ceil(rows / 64)))

function runBackward(engine: Engine, centred: boolean, size: number, g: Gradient): void {
  const { x, dy, rest, weight, stats, dx, dweight, dbias } = g
  const rows = layout.numel(x.shape) / size
  const block = blockRows(rows)
  const blocks = Math.ceil(rows / block)
  const sums = [dweight, dbias].filter((v) => v !== undefined)
  const partial = sums.length > 0 ? engine.memory.alloc(sums.length * blocks * size * 4) : 0
  try {
    // dx is contiguous like any output; without it x stands in, and is not written to.
    const views = [x, dy, dx ?? x, ...(rest ? [rest] : [])]
    const nest = leadingNest(leadOf(x, size), views)
    const shape: Shape = {
      centred,
      weighted: weight !== undefined,
      adds: rest !== undefined,
      dx: dx !== undefined,
      dweight: dweight !== undefined,
      dbias: dbias !== undefined,
      rank: nest.sizes.length,
    }
    const kernel = engine.kernel(`normBackward ${Object.values(shape)}`, (m) => buildBackward(m, shape))
    const [means, rstds] = centred ? stats : [null, stats[0]]
    const sizes = { partial, n: size, rows, block, blocks }
    backwardParams.write(engine, { x, dy, dx: views[2], rest, means, rstds, weight, ...sizes })
    writeNest(
      engine,
      backwardParams,
      nest,
      views.map(() => 4),
    )
    engine.launch(kernel, blocks, grainOf(block * size))
    sums.forEach((out, i) => {
      sumPieces(engine, partial + i * blocks * size * 4, engine.address(out), blocks, size)
    })
  } finally {
    if (partial !== 0) engine.memory.free(partial)
  }
}

interface Shape {
  readonly centred: boolean
  readonly weighted: boolean
  readonly adds: boolean
  readonly dx: boolean
  readonly dweight: boolean
  readonly dbias: boolean
  readonly rank: number
}

function buildBackward(m: ModuleBuilder, shape: Shape): void {
  m.kernel('main', (f, start, end, parameters) => {
    const own = backwardParams.load(f, parameters)
    const { rstds, weight, partial, n, rows, block, blocks } = own
    const operands = [own.x, own.dy, own.dx, ...(shape.adds ? [own.rest] : [])]
    const means = shape.centred ? own.means : undefined
    const words = new Words(f, parameters, backwardParams)
    const share = f.let(f64.div(1, f64.convertI32S(n)))
    const bytes = f.let(n.shl(2))
    f.for(start, end, 1, (unit) => {
      const first = f.let(unit.mul(block))
      const left = f.let(rows.sub(first))
      const last = f.let(first.add(i32.select(left.ltS(block), left, block)))
      const place = (i: number): I32 => f.let(partial.add(blocks.mul(i).add(unit).mul(bytes)))
      const dweight = shape.dweight ? place(0) : undefined
      const dbias = shape.dbias ? place(shape.dweight ? 1 : 0) : undefined
      for (const sums of [dweight, dbias]) if (sums) f.fill(sums, 0, bytes)
      eachRow(f, words.fork(), shape.rank, operands, first, last, ([from, grad, to, rest], row) => {
        const at = f.let(row.shl(2))
        const mean = means && f.let(v128.load32Splat(means.add(at)))
        const rstd = f.let(f32.load(rstds.add(at)))
        const scale = f.let(f32x4.splat(rstd))
        const centre = (v: Vector): V128 => f.let(mean ? f32x4.sub(v.load(from), mean) : v.load(from))
        let slope: V128 | undefined
        let level: V128 | undefined
        if (shape.dx) {
          const dot = total(f, floatFolds.sum)
          const sum = total(f, floatFolds.sum)
          foldRow(f, n, 2, floatFolds.sum, mean ? [dot, sum] : [dot], (v) => {
            const d = v.load(grad)
            const g = f.let(shape.weighted ? f32x4.mul(d, v.load(weight)) : d)
            const product = [g, centre(v)] as const
            return mean ? [product, g] : [product]
          })
          const r = f.let(f64.promoteF32(rstd))
          dot.set(dot.mul(share).mul(r).mul(r).mul(r))
          slope = f.let(splat(dot))
          sum.set(sum.mul(share).mul(r))
          if (mean) level = f.let(splat(sum))
        }
        // (x − mean) and dy · rstd are all that the three gradients need of x and dy.
        eachVector(f, 0, n, 2, (v) => {
          const d = f.let(v.load(grad))
          const scaled = f.let(f32x4.mul(d, scale))
          const x = centre(v)
          if (slope) {
            const g = shape.weighted ? f32x4.mul(scaled, v.load(weight)) : scaled
            const dx = f32x4.nmadd(x, slope, level ? f32x4.sub(g, level) : g)
            v.store(to, shape.adds ? f32x4.add(dx, v.load(rest)) : dx)
          }
          if (dweight) v.store(dweight, f32x4.madd(scaled, x, v.load(dweight)))
          if (dbias) v.store(dbias, f32x4.add(d, v.load(dbias)))
        })
      })
    })
  })
}
