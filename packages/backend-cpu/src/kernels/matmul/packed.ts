/**
 * Products of a few rows with a weight of 16 bits, or of 8 with a scale for each block of them, and what follows. All that
 * takes time is to read the weight, and there is half or a quarter of it. Its numbers are widened in registers as they come,
 * from five rows on once for all groups of rows, into the first cache. The terms are those of its numbers as float32, in the
 * order of `skinny.ts`: the bits are those of the product with the widened weight.
 *
 * Measured against 32 bits on 2 threads of a Zen 4, which others used as well, Node 20: 1 × 768 · 768 × 50257 takes 12.5 ms in 32
 * bits, 8.3 in float16, 8.2 in bfloat16 and 5.3 in 8 bits; 5 rows in turn 47, 48, 47 and 35. float16 with infinity and NaN told
 * from numbers one by one: 14.9 ms; so a strip with any of them is computed again. What slows float16 down
 * is that numbers below 2⁻¹⁴ are multiplied as float32 without a leading one: of deviation 0.02 as weights are, 11.9 ms.
 *
 * Reference: `quantized_linear` in core's ops/quantized.ts, `linear` in ops/linear.ts. Test: packed.test.ts.
 */

import {
  type DType,
  type LinearAttrs,
  layout,
  type Primitives,
  program as programOf,
  specialize,
  type View,
} from '@tilegrad/core'
import { block, word } from '../../block.ts'
import { align64, type Engine } from '../../engine.ts'
import type { Features } from '../../machine/features.ts'
import {
  type FunctionBuilder,
  f32x4,
  type I32,
  i8x16,
  i16x8,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { load } from '../elementwise/access.ts'
import { madd } from './micro.ts'
import { least } from './panels.ts'
import { dotsRows, groups, pointers } from './skinny.ts'

/** How a weight lies in memory. */
interface Packed {
  readonly dtype: 'float16' | 'bfloat16' | 'int32'
  /** With int32, which hold four numbers of 8 bits each: how many of these have one scale, and of which dtype that is. */
  readonly blockSize: number
  readonly scale: DType
}

/** The parameters. Strides are bytes, `n` and `taskColumns` rows of the weight. */
const params = block({
  ...{ n: word, k: word, taskColumns: word },
  ...{ x: word, weight: word, weightRow: word, scales: word, out: word },
  ...{ scratch: word, scratchStep: word },
})

const COPY = programOf('copy', 1, ([x]) => x)

/** Rows from which on numbers are widened once, for all groups of rows. */
const stagedRows = 5
/** Multiply-adds below which a task is not worth handing to another thread. */
const taskWork = 1 << 16

/** Few rows, and rows of the weight that are contiguous and, with scales, end with a block. */
export function takesPacked(
  features: Features,
  inputs: readonly View[],
  { program, blockSize }: LinearAttrs,
): boolean {
  const [x, weight, scales] = inputs
  const dtypes: readonly DType[] = program ? ['float32', 'float16', 'bfloat16'] : ['float32']
  if (!inputs.every((v, i) => i === 1 || dtypes.includes(v.dtype))) return false
  const k = x.shape[x.shape.length - 1]
  if (x.shape.length === 0 || k === 0 || layout.numel(x.shape) > dotsRows(features) * k) return false
  if (blockSize === undefined) return x.dtype === weight.dtype && k % 8 === 0 && weight.strides[1] === 1
  return (
    weight.dtype === 'int32' &&
    k === 4 * weight.shape[1] &&
    blockSize % 16 === 0 &&
    weight.strides[1] === 1 &&
    layout.isContiguous(scales)
  )
}

/** Computes what `takesPacked` has taken. */
export function linearPacked(
  engine: Engine,
  elementwise: Primitives['elementwise'],
  outputs: readonly View[],
  [x, weight, ...extras]: readonly View[],
  { epilogue, program, blockSize = 0 }: LinearAttrs,
  numbers: readonly number[],
): void {
  const [out] = outputs
  if (layout.numel(out.shape) === 0) return
  const made: number[] = []
  /** float32 in memory of its own. */
  const plain = (shape: readonly number[]): View => {
    const ptr = engine.memory.alloc(4 * layout.numel(shape))
    made.push(ptr)
    return { ...layout.contiguous(shape), buffer: { ptr }, dtype: 'float32' }
  }
  const isPlain = (v: View): boolean => v.dtype === 'float32' && layout.isContiguous(v)
  try {
    const a = isPlain(x) ? x : plain(x.shape)
    if (a !== x) elementwise.run([a], [x], { kernel: specialize(COPY, [x.dtype], [], ['float32']) }, [])
    const y = isPlain(out) ? out : plain(out.shape)
    product(engine, y, a, weight, blockSize > 0 ? extras[0] : null, blockSize)
    const rest = blockSize > 0 ? extras.slice(1) : extras
    const [first] = epilogue.exprs
    if (y === out && epilogue.exprs.length === 1 && first.kind === 'input') return
    const dtypes = [y, ...rest].map((v) => v.dtype)
    const results = outputs.map((v) => v.dtype)
    const typed = program ? specialize(program, dtypes, [], results) : epilogue
    elementwise.run(outputs, [y, ...rest], { kernel: typed }, numbers)
  } finally {
    for (const ptr of made) engine.memory.free(ptr)
  }
}

function product(
  engine: Engine,
  out: View,
  x: View,
  weight: View,
  scales: View | null,
  blockSize: number,
): void {
  const k = x.shape[x.shape.length - 1]
  const rows = layout.numel(x.shape) / k
  const [n] = weight.shape
  const packed: Packed = {
    dtype: weight.dtype as Packed['dtype'],
    blockSize,
    scale: scales ? scales.dtype : 'float32',
  }
  const key = `matmul:packed:${rows}:${Object.values(packed).join()}`
  const kernel = engine.kernel(key, (m) => buildPacked(m, rows, packed))
  const wanted = Math.max(1, Math.min(2 * engine.features.threads, Math.floor((rows * n * k) / taskWork)))
  const taskColumns = Math.max(8, 4 * Math.ceil(n / wanted / 4))
  const scratchBytes = rows < stagedRows ? 64 : 8 * k
  // May renew the views of memory: before they are used.
  const scratch = engine.scratch(scratchBytes)
  params.write(engine, {
    ...{ n, k, taskColumns },
    x: engine.address(x),
    weight: engine.address(weight),
    weightRow: weight.strides[0] * (blockSize > 0 ? 4 : 2),
    scales: scales ? engine.address(scales) : 0,
    out: engine.address(out),
    ...{ scratch, scratchStep: align64(scratchBytes) },
  })
  engine.launch(
    kernel,
    Math.ceil(n / taskColumns),
    Math.max(1, Math.ceil(taskWork / (rows * taskColumns * k))),
  )
}

/** Parts of 16 bytes as lanes of 32 bits, in whose highest bytes they are; four lanes to a vector. */
function lanes(all: V128, bytes: 1 | 2): V128[] {
  return Array.from({ length: 4 / bytes }, (_, v) => {
    const at = (i: number): number => 4 * bytes * v + bytes * (i >> 2) + (i % 4) - (4 - bytes)
    const from = Array.from({ length: 16 }, (_, i) => (i % 4 < 4 - bytes ? -128 : at(i)))
    return i8x16.swizzle(all, i8x16.const(...from))
  })
}

/** Makes numbers of 16 bytes, in their order. */
type Widen = (all: V128) => V128[]

/** The largest numbers that were seen in each lane of 16 bits, by sign. */
interface Seen {
  readonly positive: Var<'v128'>
  readonly negative: Var<'v128'>
}

/**
 * Numbers of float16 with the exponent of float32, which is larger by 112, also those without a leading one. Infinity and NaN
 * become numbers, too, which `seen` will tell, unless it is null: then what is larger than any number is made one of these.
 */
function halves(f: FunctionBuilder, mask: V128, factor: V128, seen: Seen | null): Widen {
  return (all) => {
    if (seen) {
      seen.positive.set(i16x8.maxS(seen.positive, all))
      seen.negative.set(i16x8.maxU(seen.negative, all))
    }
    return lanes(all, 2).map((x) => {
      const y = f32x4.mul(v128.and(i32x4.shrS(x, 3), mask), factor)
      if (seen) return y
      const value = f.let(y)
      return v128.or(value, v128.and(f32x4.ge(f32x4.abs(value), 65536), i32x4.const(0x7f800000)))
    })
  }
}

/** Whether a largest exponent was seen: one more in its lowest bit overflows into the sign. */
const hasSpecial = ({ positive, negative }: Seen): I32 => {
  const over = (x: V128): V128 => i32x4.add(v128.and(x, i32x4.const(0x7c007c00)), i32x4.const(0x04000400))
  return v128.anyTrue(v128.and(v128.or(over(positive), over(negative)), i32x4.const(0x80008000)))
}

/** What goes along rows of the weight: `body` gets the next vectors of each, as many as `at` has to be moved on by. */
function along(
  f: FunctionBuilder,
  { dtype, blockSize, scale }: Packed,
  widen: Widen,
  k: I32,
  columns: readonly Var<'i32'>[],
  scales: readonly Var<'i32'>[],
  at: Var<'i32'>,
  body: (vectors: readonly (readonly V128[])[]) => void,
): void {
  const next = (change: (y: V128, j: number) => V128): void => {
    body(columns.map((p, j) => widen(f.let(v128.load(p))).map((y) => change(y, j))))
    for (const p of columns) p.set(p.add(16))
  }
  const stop = f.let(at.add(k.shl(2)))
  f.while(at.ne(stop), () => {
    if (dtype !== 'int32') return next((y) => y)
    const by = scales.map((p) =>
      f.let(f32x4.mul(load(f, { dtype: scale, access: 'zero', stride: 0 }, p, 4), 2 ** -24)),
    )
    for (let first = 0; first < blockSize; first += 16) next((y, j) => f32x4.mul(y, by[j]))
    for (const p of scales) p.set(p.add(scale === 'float32' ? 4 : 2))
  })
}

/** Builds the kernel, whose rows are tasks: runs of rows of the weight. */
export function buildPacked(m: ModuleBuilder, rows: number, packed: Packed): void {
  const columnsAtOnce = [4, 4, 3, 2][Math.min(rows, 4) - 1]
  const staged = rows >= stagedRows
  m.kernel('main', (f, start, end, address, thread) => {
    const { n, k, taskColumns, x, weightRow, ...p } = params.load(f, address)
    const [mask, factor] = [f.let(i32x4.const(0x8fffffff)), f.let(f32x4.const(2 ** 112))]
    const rowBytes = f.let(k.shl(2))
    const outRow = f.let(n.shl(2))
    const stage = f.let(p.scratch.add(thread.mul(p.scratchStep)))
    const scaleRow = f.let(
      packed.blockSize > 0 ? k.divU(packed.blockSize).shl(packed.scale === 'float32' ? 2 : 1) : k,
    )
    f.for(start, end, 1, (task) => {
      const n0 = f.let(task.mul(taskColumns))
      const [weight, scale, out] = [
        f.let(p.weight.add(n0.mul(weightRow))),
        f.let(p.scales.add(n0.mul(scaleRow))),
        f.let(p.out.add(n0.shl(2))),
      ]
      const strip = (width: number, widen: Widen): void => {
        if (staged) {
          const to = f.let(stage)
          const by = pointers(f, scale, scaleRow, width)
          pointers(f, weight, weightRow, width).forEach((from, j) => {
            along(f, packed, widen, k, [from], [by[j]], to, ([vectors]) => {
              vectors.forEach((v, i) => f.store(to, v, 16 * i))
              to.set(to.add(16 * vectors.length))
            })
          })
        }
        for (const { first, count } of groups(rows)) {
          const left = pointers(f, x.add(rowBytes.mul(first)), rowBytes, count)
          const sums = left.map(() => Array.from({ length: width }, () => f.let(f32x4.const(0))))
          const add = (vectors: readonly (readonly V128[])[]): void => {
            vectors[0].forEach((_, v) => {
              const xs = left.map((q) => f.let(v128.load(q, 16 * v)))
              const ys = vectors.map((column) => f.let(column[v]))
              sums.forEach((row, i) => row.forEach((sum, j) => sum.set(madd.float32(xs[i], ys[j], sum))))
            })
            for (const q of left) q.set(q.add(16 * vectors[0].length))
          }
          if (staged) {
            const right = pointers(f, stage, rowBytes, width)
            const stop = f.let(left[0].add(rowBytes))
            f.while(left[0].ne(stop), () => {
              add(right.map((q) => [v128.load(q)]))
              for (const q of right) q.set(q.add(16))
            })
          } else {
            const by = packed.blockSize > 0 ? pointers(f, scale, scaleRow, width) : []
            along(f, packed, widen, k, pointers(f, weight, weightRow, width), by, left[0], add)
          }
          sums.forEach((row, i) => {
            const to = f.let(out.add(outRow.mul(first + i)))
            row.forEach((sum, j) => {
              const pairs = f.let(f32x4.add(sum, i32x4.shuffle(sum, sum, [2, 3, 0, 1])))
              f.storeLane(32, to, f32x4.add(pairs, i32x4.shuffle(pairs, pairs, [1, 0, 3, 2])), 0, 4 * j)
            })
          })
        }
      }
      f.strips(0, least(n.sub(n0), taskColumns), [columnsAtOnce, 1], (_, width) => {
        if (packed.dtype === 'float16') {
          const seen = { positive: f.let(i32x4.const(0)), negative: f.let(i32x4.const(0x80008000)) }
          strip(width, halves(f, mask, factor, seen))
          f.if(hasSpecial(seen), () => strip(width, halves(f, mask, factor, null)))
        } else if (packed.dtype === 'bfloat16') strip(width, (all) => lanes(all, 2))
        // 2²⁴ times as large, which scales take back.
        else strip(width, (all) => lanes(all, 1).map(f32x4.convertI32x4S))
        weight.set(weight.add(weightRow.mul(width)))
        scale.set(scale.add(scaleRow.mul(width)))
        out.set(out.add(4 * width))
      })
    })
  })
}
