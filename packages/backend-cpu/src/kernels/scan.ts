/**
 * Running sums, running products, and h[i] = a[i]·h[i−1] + b[i], along any dim, forwards or backwards.
 *
 * Where another dim is dense in all operands it goes 16 columns at a time, else element by element (each needs the one
 * before: what can be parallel is rows). Sums and products of float32 are carried in float64, so that long ones do
 * not drift; the affine scan is carried in float32 lanes where there are columns.
 *
 * Reference: `scan` in core's reference/kernels.ts. Test: scan.test.ts.
 */

import { dtypeInfo, layout } from '@tilegrad/core'
import { collapse } from '@tilegrad/core/kernel'
import { block, word } from '../block.ts'
import type { KernelFactory } from '../engine.ts'
import {
  type FunctionBuilder,
  f32,
  f32x4,
  f64,
  f64x2,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../wasm/index.ts'
import { grainOf, Words, walk, writeNest } from './rows.ts'

type Kind = 'sum' | 'prod' | 'affine'
const dtypes = ['float32', 'float64', 'int32'] as const
type ScanType = (typeof dtypes)[number]

/** Columns of one unit: a cache line. */
const strip = 16

export const scan: KernelFactory<{ kind: Kind; dim: number; reverse: boolean }> = (engine) => ({
  dtypes: [dtypes],
  run([out], inputs, { kind, dim, reverse }) {
    if (layout.numel(out.shape) === 0) return
    const type = out.dtype as ScanType
    const bytes = dtypeInfo[type].bytes
    const n = out.shape[dim] ?? 1
    const views = [out, ...inputs]
    const rest = out.shape.map((_, d) => d).filter((d) => d !== dim)
    const nest = collapse(
      rest.map((d) => out.shape[d]),
      views.map((v) => rest.map((d) => v.strides[d])),
    )
    const depth = nest.sizes.length - 1
    const columns = depth >= 0 && bytes === 4 && nest.strides.every((s) => s[depth] === 1)
    const width = columns ? nest.sizes[depth] : 1
    const strips = Math.ceil(width / strip)
    const units = columns
      ? collapse(
          [...nest.sizes.slice(0, depth), strips],
          nest.strides.map((s) => [...s.slice(0, depth), strip]),
        )
      : nest
    const steps = views.map((v) => (n > 1 ? v.strides[dim] : 0) * bytes)
    const first = views.map((v, k) => engine.address(v) + (reverse ? (n - 1) * steps[k] : 0))
    const rank = units.sizes.length
    const kernel = engine.kernel(`scan ${kind} ${type} ${columns} ${rank}`, (m) =>
      buildScan(m, kind, type, columns, rank),
    )
    const [out0, a0, b0 = 0] = first
    const [outStep, aStep, bStep = 0] = steps.map((s) => (reverse ? -s : s))
    scanParams.write(engine, { n, width, strips, out: out0, a: a0, b: b0, outStep, aStep, bStep })
    writeNest(
      engine,
      scanParams,
      units,
      views.map(() => bytes),
    )
    engine.launch(kernel, layout.numel(units.sizes), grainOf(n * Math.min(width, strip)))
  },
})

/** Operands are the output and one input, or two (`b`), with the bytes from one element of a line to the next. */
const scanParams = block({
  ...{ n: word, width: word, strips: word },
  ...{ out: word, a: word, b: word, outStep: word, aStep: word, bStep: word },
})

function buildScan(m: ModuleBuilder, kind: Kind, type: ScanType, columns: boolean, rank: number): void {
  const operands = kind === 'affine' ? 3 : 2
  m.kernel('main', (f, start, end, params) => {
    const { n, width, strips, out, a, b, outStep, aStep, bStep } = scanParams.load(f, params)
    const steps = [outStep, aStep, bStep]
    const words = new Words(f, params, scanParams)
    const units = walk(f, words, rank, [out, a, b].slice(0, operands), start)
    /** Runs `body` once per element along the dim, with pointers. */
    const along = (byte: I32, body: (at: readonly I32[]) => void): void => {
      const at = units.at.map((p) => f.let(p.add(byte)))
      f.for(0, n, 1, () => {
        body(at)
        for (let k = 0; k < at.length; k++) at[k].set(at[k].add(steps[k]))
      })
    }
    f.for(start, end, 1, (unit) => {
      if (columns) {
        const left = f.let(width.sub(unit.remU(strips).mul(strip)))
        f.strips(0, i32.select(left.ltS(strip), left, strip), [strip, 4, 1], (i, count) =>
          scanLanes(f, kind, type, count, (body) => along(i.shl(2), body)),
        )
      } else if (type === 'int32') scanInts(f, kind, (body) => along(i32.const(0), body))
      else scanFloats(f, kind, type, (body) => along(i32.const(0), body))
      units.next()
    })
  })
}

type Along = (body: (at: readonly I32[]) => void) => void

function scanInts(f: FunctionBuilder, kind: Kind, along: Along): void {
  const acc = f.local.i32(kind === 'prod' ? 1 : 0)
  along(([to, x, b]) => {
    const v = i32.load(x)
    acc.set(kind === 'sum' ? acc.add(v) : kind === 'prod' ? acc.mul(v) : v.mul(acc).add(i32.load(b)))
    f.store(to, acc)
  })
}

function scanFloats(f: FunctionBuilder, kind: Kind, type: 'float32' | 'float64', along: Along): void {
  const acc = f.local.f64(kind === 'prod' ? 1 : 0)
  const load = (p: I32) => (type === 'float64' ? f64.load(p) : f64.promoteF32(f32.load(p)))
  along(([to, x, b]) => {
    const v = load(x)
    acc.set(kind === 'sum' ? acc.add(v) : kind === 'prod' ? acc.mul(v) : v.mul(acc).add(load(b)))
    f.store(to, type === 'float64' ? acc : f32.demoteF64(acc))
  })
}

/** `count` columns at once, so that a row of them, a whole cache line, is touched only once. */
function scanLanes(f: FunctionBuilder, kind: Kind, type: ScanType, count: number, along: Along): void {
  const load = (p: I32, slot: number): V128 => (count === 1 ? v128.load32Zero(p) : v128.load(p, 16 * slot))
  const slots = Array.from({ length: Math.max(1, count / 4) }, (_, slot) => slot)
  const step = (type === 'float32' && kind !== 'affine' ? wideStep : narrowStep)(f, kind, type)
  const steps = slots.map(() => step())
  along(([to, x, b]) => {
    const sums = slots.map((slot) => steps[slot](load(x, slot), b && load(b, slot)))
    for (const slot of slots) {
      if (count === 1) f.storeLane(32, to, sums[slot], 0)
      else f.store(to, sums[slot], 16 * slot)
    }
  })
}

/** Starts four columns: from their next elements to their next results. */
type Step = () => (x: V128, b: V128) => V128

const narrowStep = (f: FunctionBuilder, kind: Kind, type: ScanType): Step => {
  const madd = type === 'int32' ? (a: V128, h: V128, b: V128) => i32x4.add(i32x4.mul(a, h), b) : f32x4.madd
  return () => {
    const acc = f.local.v128(i32x4.const(kind === 'prod' ? 1 : 0))
    return (x, b) => {
      acc.set(kind === 'sum' ? i32x4.add(acc, x) : kind === 'prod' ? i32x4.mul(acc, x) : madd(x, acc, b))
      return acc
    }
  }
}

const wideStep = (f: FunctionBuilder, kind: Kind): Step => {
  const put = kind === 'prod' ? f64x2.mul : f64x2.add
  const half = (): Var<'v128'> => f.local.v128(f64x2.const(kind === 'prod' ? 1 : 0))
  return () => {
    const [low, high] = [half(), half()]
    return (x) => {
      const v = f.let(x)
      low.set(put(low, f64x2.promoteLowF32x4(v)))
      high.set(put(high, f64x2.promoteLowF32x4(f32x4.shuffle(v, v, [2, 3, 2, 3]))))
      return f32x4.shuffle(f32x4.demoteF64x2Zero(low), f32x4.demoteF64x2Zero(high), [0, 1, 4, 5])
    }
  }
}
