/**
 * Gather and its adjoint, for any rank and layout.
 *
 * gather: the innermost dim of the index is a loop; where the index does not change along it (an expanded index, as
 * `indexSelect` and embeddings have) that loop is a copy of a row. Outer dims, and blocks of a long innermost one, in
 * parallel.
 *
 * scatterAdd: a copy of x, then additions. Dims other than `dim` are independent, so they are what threads share
 * out; along `dim` one thread adds in order. Rows are cut into blocks of columns, and where that gives too few parts,
 * destinations into ranges: every part then reads the whole index and keeps to its own range. So no two threads
 * write to one place, and every element gets its terms in the order of the index: the bits do not depend on threads.
 *
 * An index out of range sets a flag; the host then looks for the first one and throws.
 *
 * Reference: `gather`, `scatterAdd` in core's reference/kernels.ts. Test: indexing.test.ts.
 */

import { dtypeInfo, layout, ValueError, type View } from '@tilegrad/core'
import { collapse, type Nest } from '@tilegrad/core/kernel'
import { block as declare, word } from '../../block.ts'
import type { Engine, KernelFactory } from '../../engine.ts'
import {
  type FunctionBuilder,
  f32,
  f32x4,
  f64,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  v128,
} from '../../wasm/index.ts'
import { eachRow, eachVector, grainOf, streamGrain, Words, walk, writeNest } from '../rows.ts'

/** The dtypes of elements that are moved and added. */
const moved = ['float32', 'float64', 'int32', 'bool'] as const
type Moved = (typeof moved)[number]

/** Elements of one copied block. */
const blockElements = 8192

/** The address, for each engine, of a word that says whether an index was out of range, and of 8 zero bytes to copy. */
const flags = new WeakMap<Engine, number>()

/** Byte address of the flag that kernels set for an index out of range; see `checkIndex`. */
export function flagOf(engine: Engine): number {
  let flag = flags.get(engine)
  if (flag === undefined) {
    flag = engine.memory.alloc(16)
    flags.set(engine, flag)
    engine.memory.view(flag, Int32Array, 4).fill(0)
  }
  return flag
}

/** Byte address of 8 zero bytes. */
export const zeroOf = (engine: Engine): number => flagOf(engine) + 8

/** Throws for the first index out of range, if the kernel that just ran saw one. */
export function checkIndex(
  engine: Engine,
  op: string,
  index: View,
  dim: number,
  size: number,
  ignore?: number,
): void {
  const flag = flagOf(engine) >>> 2
  if (engine.memory.i32[flag] === 0) return
  engine.memory.i32[flag] = 0
  throwFirstIndex(engine, op, index, dim, size, ignore)
}

export function throwFirstIndex(
  engine: Engine,
  op: string,
  index: View,
  dim: number,
  size: number,
  ignore?: number,
): void {
  const { i32 } = engine.memory
  const { shape, strides } = index
  layout.forEachOffset({ shape, strides, offset: engine.address(index) / 4 }, (at) => {
    const value = i32[at]
    if ((value < 0 || value >= size) && value !== ignore) {
      throw new ValueError(`${op}: index ${value} is out of range for dim ${dim} of size ${size}`)
    }
  })
}

/** `to` of [dims] = `from`, by the way of `index` where there is one. Strides in elements, addresses in bytes. */
export interface Copy {
  readonly bytes: 1 | 2 | 4 | 8
  readonly sizes: readonly number[]
  readonly from: number
  readonly fromStrides: readonly number[]
  readonly to: number
  readonly toStrides: readonly number[]
  readonly index?: {
    readonly address: number
    readonly strides: readonly number[]
    /** The size of the dim that the index chooses in. */
    readonly size: number
    readonly stride: number
  }
}

/** Copies strided elements or rows. */
export function runCopy(engine: Engine, c: Copy): void {
  const { bytes, index } = c
  const nest = collapse(c.sizes, [c.fromStrides, c.toStrides, ...(index ? [index.strides] : [])])
  const depth = Math.max(0, nest.sizes.length - 1)
  const n = nest.sizes[depth] ?? 1
  const [fromStep, toStep, indexStep] = [0, 1, 2].map((k) => (n > 1 ? (nest.strides[k]?.[depth] ?? 0) : 0))
  const whole = n === 1 || (fromStep === 1 && toStep === 1 && indexStep === 0)
  const fill = bytes === 4 && !index && fromStep === 0 && toStep === 1
  const kind = fill ? 'fill' : whole ? 'row' : 'elements'
  const blocks = Math.ceil(n / blockElements)
  const units = collapse(
    [...nest.sizes.slice(0, depth), blocks],
    nest.strides.map((s) => [...s.slice(0, depth), blockElements * (n > 1 ? s[depth] : 0)]),
  )
  const rank = units.sizes.length
  const kernel = engine.kernel(`indexing.copy ${kind} ${bytes} ${index !== undefined} ${rank}`, (m) =>
    buildCopy(m, kind, bytes, index !== undefined, rank),
  )
  copyParams.write(engine, {
    from: c.from,
    to: c.to,
    index: index ? index.address : 0,
    size: index ? index.size : 0,
    stride: index ? index.stride * bytes : 0,
    flag: index ? flagOf(engine) : 0,
    n,
    blocks,
    fromStep: fromStep * bytes,
    toStep: toStep * bytes,
    indexStep: indexStep * 4,
  })
  writeNest(engine, copyParams, units, index ? [bytes, bytes, 4] : [bytes, bytes])
  const grain = grainOf(Math.min(n, blockElements), streamGrain)
  engine.launch(kernel, layout.numel(units.sizes), grain)
}

/** Steps are bytes from one element to the next; `size` and `stride` are those of the dim that the index chooses in. */
const copyParams = declare({
  ...{ from: word, to: word, index: word, size: word, stride: word, flag: word },
  ...{ n: word, blocks: word, fromStep: word, toStep: word, indexStep: word },
})

function buildCopy(
  m: ModuleBuilder,
  kind: 'row' | 'fill' | 'elements',
  bytes: 1 | 2 | 4 | 8,
  indexed: boolean,
  rank: number,
): void {
  m.kernel('main', (f, start, end, params) => {
    const own = copyParams.load(f, params)
    const { n, blocks, fromStep, toStep, indexStep } = own
    const choose = indexed ? chooser(f, own.size, own.stride, own.flag) : undefined
    const operands = [own.from, own.to, ...(indexed ? [own.index] : [])]
    const words = new Words(f, params, copyParams)
    eachRow(f, words, rank, operands, start, end, ([from, to, at], unit) => {
      const left = f.let(n.sub(unit.remU(blocks).mul(blockElements)))
      const count = f.let(i32.select(left.ltS(blockElements), left, blockElements))
      if (kind === 'elements') {
        const [p, q] = [f.let(from), f.let(to)]
        const i = at && f.let(at)
        f.for(0, count, 1, () => {
          const source = i && choose ? f.let(p.add(choose(i32.load(i)))) : p
          copyOne(f, bytes, source, q)
          p.set(p.add(fromStep))
          q.set(q.add(toStep))
          i?.set(i.add(indexStep))
        })
        return
      }
      if (kind === 'fill') {
        const value = f.let(v128.load32Splat(from))
        eachVector(f, 0, count, 4, (v) => v.store(to, value))
        return
      }
      const source = at && choose ? f.let(from.add(choose(i32.load(at)))) : from
      if (bytes < 4) f.copy(to, source, bytes === 1 ? count : count.shl(1))
      else {
        eachVector(f, 0, bytes === 8 ? count.shl(1) : count, 4, (v) => v.store(to, v.load(source)))
      }
    })
  })
}

function copyOne(f: FunctionBuilder, bytes: 1 | 2 | 4 | 8, from: I32, to: I32): void {
  if (bytes === 1) f.storeLow(8, to, i32.load8U(from))
  else if (bytes === 2) f.storeLow(16, to, i32.load16U(from))
  else if (bytes === 4) f.store(to, i32.load(from))
  else f.store(to, f64.load(from))
}

/** Index → bytes to add to an address; one out of range sets the flag and counts as 0. */
function chooser(f: FunctionBuilder, size: I32, stride: I32, flag: I32): (index: I32) => I32 {
  return (index) => {
    const i = f.let(index)
    f.if(i.geU(size), () => {
      f.store(flag, i32.const(1))
      i.set(0)
    })
    return i.mul(stride)
  }
}

export const gather: KernelFactory<{ dim: number }> = (engine) => ({
  dtypes: [moved, ['int32']],
  run([out], [x, index], { dim }) {
    if (layout.numel(out.shape) === 0) return
    const size = x.shape[dim]
    if (size === 0) throwFirstIndex(engine, 'gather', index, dim, size)
    runCopy(engine, {
      bytes: dtypeInfo[x.dtype].bytes as Copy['bytes'],
      sizes: index.shape,
      from: engine.address(x),
      fromStrides: x.strides.with(dim, 0),
      to: engine.address(out),
      toStrides: out.strides,
      index: { address: engine.address(index), strides: index.strides, size, stride: x.strides[dim] },
    })
    checkIndex(engine, 'gather', index, dim, size)
  },
})

/** Additions out[…, index[along, …], …] += source[along, …]. Strides in elements, addresses in bytes. */
export interface Adds {
  readonly dtype: Moved
  /** Dims that are independent of each other: strides of out, index, source. */
  readonly free: Nest
  /** The dims along which the index chooses, in order: strides of index, source. */
  readonly along: Nest
  readonly out: number
  readonly index: number
  readonly source: number
  /** Size and stride of out's dim that the index chooses in. */
  readonly size: number
  readonly stride: number
  /** An index that is left out; −1 for none. */
  readonly skip: number
}

/** Additions worth being shared out by ranges of destinations. */
const rangesFrom = 32768

export function runAdds(engine: Engine, a: Adds): void {
  const bytes = dtypeInfo[a.dtype].bytes
  const depth = Math.max(0, a.free.sizes.length - 1)
  const n = a.free.sizes[depth] ?? 1
  const [toStep, indexStep, fromStep] = [0, 1, 2].map((k) => (n > 1 ? (a.free.strides[k][depth] ?? 0) : 0))
  const rows = n > 1 && a.dtype in addFour && toStep === 1 && indexStep === 0 && fromStep === 1
  const alongStep = a.along.strides[1].at(-1) ?? 0
  const kind = rows ? 'rows' : Math.abs(alongStep) <= Math.abs(fromStep) ? 'lines' : 'elements'
  const outer = layout.numel(a.free.sizes.slice(0, depth))
  const along = layout.numel(a.along.sizes)
  const block = outer >= 16 ? n : Math.min(n, Math.max(32, Math.ceil(n / 128) * 16))
  const blocks = Math.ceil(n / block)
  const ranges = outer * blocks < 8 && along * n >= rangesFrom ? Math.min(8, a.size) : 1
  const units = collapse(
    [...a.free.sizes.slice(0, depth), blocks, ranges],
    a.free.strides.map((s) => [...s.slice(0, depth), n > 1 ? block * s[depth] : 0, 0]),
  )
  const ranks = [units.sizes.length, a.along.sizes.length] as const
  const kernel = engine.kernel(`indexing.adds ${kind} ${a.dtype} ${ranks}`, (m) =>
    buildAdds(m, kind, a.dtype, ranks),
  )
  addParams.write(engine, {
    out: a.out,
    index: a.index,
    source: a.source,
    size: a.size,
    stride: a.stride * bytes,
    flag: flagOf(engine),
    skip: a.skip,
    count: along,
    n,
    block,
    blocks,
    ranges,
    rangeSize: Math.ceil(a.size / ranges),
    toStep: toStep * bytes,
    indexStep: indexStep * 4,
    fromStep: fromStep * bytes,
  })
  writeNest(engine, addParams, units, [bytes, 4, bytes], a.along, [4, bytes])
  engine.launch(kernel, outer * blocks * ranges, grainOf(along * block))
}

const addParams = declare({
  ...{ out: word, index: word, source: word, size: word, stride: word, flag: word, skip: word },
  ...{ count: word, n: word, block: word, blocks: word, ranges: word, rangeSize: word },
  ...{ toStep: word, indexStep: word, fromStep: word },
})

/** Loops over the free dim inside (of rows: as vectors; of elements: one by one), or outside of the index: lines. */
function buildAdds(
  m: ModuleBuilder,
  kind: 'rows' | 'elements' | 'lines',
  dtype: Moved,
  [unitRank, alongRank]: readonly [number, number],
): void {
  m.kernel('main', (f, start, end, params) => {
    const own = addParams.load(f, params)
    const { size, stride, flag, skip, count, n, block, blocks } = own
    const { ranges, rangeSize, toStep, indexStep, fromStep } = own
    const words = new Words(f, params, addParams)
    const units = walk(f, words, unitRank, [own.out, own.index, own.source], start)
    f.for(start, end, 1, (unit) => {
      const low = f.let(unit.remU(ranges).mul(rangeSize))
      const left = f.let(n.sub(unit.divU(ranges).remU(blocks).mul(block)))
      const width = f.let(i32.select(left.ltS(block), left, block))
      const [out, index, source] = units.at
      /** Runs `add` with the address that an index means, if it is in this unit's range. */
      const at = (where: I32, add: (to: I32) => void): void => {
        const i = f.let(i32.load(where))
        f.if(i.geU(size), () => f.store(flag, i32.const(1)))
        f.if(i.sub(low).ltU(rangeSize).and(i.ne(skip)).and(i.ltU(size)), () => {
          add(f.let(out.add(i.mul(stride))))
        })
      }
      /** Runs `body` for every index, in order. */
      const each = (first: I32, firstSource: I32, body: (where: I32, from: I32) => void): void => {
        const along = walk(f, words.fork(), alongRank, [first, firstSource], i32.const(0))
        f.for(0, count, 1, () => {
          body(along.at[0], along.at[1])
          along.next()
        })
      }
      /** Runs `body` for every element of the free dim, with its index, source, and bytes from the first output. */
      const across = (
        first: I32,
        firstSource: I32,
        body: (where: I32, from: I32, step: I32) => void,
      ): void => {
        const [where, from, step] = [f.let(first), f.let(firstSource), f.local.i32(0)]
        f.for(0, width, 1, () => {
          body(where, from, step)
          where.set(where.add(indexStep))
          from.set(from.add(fromStep))
          step.set(step.add(toStep))
        })
      }
      const put = (where: I32, from: I32, step: I32): void =>
        at(where, (to) => addOne[dtype](f, f.let(to.add(step)), from))
      if (kind === 'lines') {
        across(index, source, (where, from, step) => each(where, from, (i, p) => put(i, p, step)))
      } else {
        each(index, source, (where, from) => {
          if (kind === 'elements') return across(where, from, put)
          const sum = addFour[dtype as 'float32' | 'int32']
          at(where, (to) => {
            eachVector(f, 0, width, 2, (v) => v.store(to, sum(v.load(to), v.load(from))))
          })
        })
      }
      units.next()
    })
  })
}

const addFour = { float32: f32x4.add, int32: i32x4.add }

/** Adds one element to another. */
const addOne: Readonly<Record<Moved, (f: FunctionBuilder, to: I32, from: I32) => void>> = {
  float32: (f, to, from) => f.store(to, f32.load(to).add(f32.load(from))),
  float64: (f, to, from) => f.store(to, f64.load(to).add(f64.load(from))),
  int32: (f, to, from) => f.store(to, i32.load(to).add(i32.load(from))),
  bool: (f, to, from) => f.storeLow(8, to, i32.load8U(to).add(i32.load8U(from))),
}

export const scatterAdd: KernelFactory<{ dim: number }> = (engine) => ({
  dtypes: [moved, ['int32'], moved],
  run([out], [x, index, source], { dim }) {
    if (layout.numel(out.shape) === 0) {
      if (layout.numel(index.shape) > 0) throwFirstIndex(engine, 'scatter_add', index, dim, x.shape[dim])
      return
    }
    const bytes = dtypeInfo[x.dtype].bytes as Copy['bytes']
    const to = engine.address(out)
    runCopy(engine, {
      bytes,
      sizes: x.shape,
      from: engine.address(x),
      fromStrides: x.strides,
      to,
      toStrides: out.strides,
    })
    if (layout.numel(index.shape) === 0) return
    const rest = x.shape.map((_, d) => d).filter((d) => d !== dim)
    const of = (list: readonly number[]): number[] => rest.map((d) => list[d])
    runAdds(engine, {
      dtype: x.dtype as Moved,
      free: collapse(of(index.shape), [of(out.strides), of(index.strides), of(source.strides)]),
      along: collapse([index.shape[dim]], [[index.strides[dim]], [source.strides[dim]]]),
      out: to,
      index: engine.address(index),
      source: engine.address(source),
      size: x.shape[dim],
      stride: out.strides[dim],
      skip: -1,
    })
    checkIndex(engine, 'scatter_add', index, dim, x.shape[dim])
  },
})
