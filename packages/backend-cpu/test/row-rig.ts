/** What the tests of row kernels share: engines, random views, and the same views on the reference backend. */

import {
  type DType,
  dtypeInfo,
  type KernelOf,
  type Layout,
  layout,
  reference,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { afterAll } from 'vitest'
import { CpuBuffer, createEngine, type Engine, type KernelFactory } from '../src/engine.ts'
import { detectFeatures, type FeatureOptions } from '../src/machine/features.ts'
import { Heap } from '../src/machine/heap.ts'
import { Pool } from '../src/machine/pool.ts'

/** A generator of numbers in [0, 1): the same ones in every run (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export const pick = <T>(rnd: () => number, list: readonly T[]): T =>
  list[Math.floor(rnd() * list.length)] as T
export const integer = (rnd: () => number, low: number, high: number): number =>
  low + Math.floor(rnd() * (high - low + 1))

const pools: Pool[] = []
afterAll(() => Promise.all(pools.map((pool) => pool.close())))

export async function makeEngine(options: FeatureOptions = {}): Promise<Engine> {
  const features = detectFeatures(options)
  const heap = new Heap({ shared: features.shared, maxBytes: 2 ** 30 })
  const pool = new Pool(heap, features)
  pools.push(pool)
  await pool.ready()
  return createEngine(features, heap, pool)
}

/** Engines that must agree: thread counts, instruction sets (best: the highest there is), memory that is not shared. */
export async function makeEngines(): Promise<{ name: string; engine: Engine }[]> {
  const list: [string, FeatureOptions][] = [
    ['best, 1 thread', { threads: 1 }],
    ['best, 2 threads', { threads: 2 }],
    ['best, 4 threads', { threads: 4 }],
    ['best, unshared', { shared: false }],
    ['relaxed, 2 threads', { level: 'relaxed', threads: 2 }],
    ['simd, 3 threads', { level: 'simd', threads: 3 }],
    ['simd, unshared', { level: 'simd', shared: false }],
  ]
  return Promise.all(list.map(async ([name, options]) => ({ name, engine: await makeEngine(options) })))
}

/** A layout of any kind: permuted, with gaps, backwards, expanded. */
export function randomLayout(
  rnd: () => number,
  shape: readonly number[],
  { expand = 0.15, plain = 0.3, lastDense = false } = {},
): Layout {
  if (rnd() < plain) return { shape, strides: layout.contiguousStrides(shape), offset: integer(rnd, 0, 3) }
  const order = shape.map((_, d) => d)
  for (let i = order.length - 1; i > 0; i--) {
    const j = integer(rnd, 0, i)
    ;[order[i], order[j]] = [order[j] as number, order[i] as number]
  }
  if (lastDense) order.sort((a, b) => Number(a === shape.length - 1) - Number(b === shape.length - 1))
  const strides = new Array<number>(shape.length).fill(0)
  let step = 1
  let offset = integer(rnd, 0, 3)
  for (let i = order.length - 1; i >= 0; i--) {
    const d = order[i] as number
    const dense = lastDense && d === shape.length - 1
    if (!dense && rnd() < expand) continue
    const gap = dense ? 1 : pick(rnd, [1, 1, 1, 2, 3])
    const n = Math.max(1, shape[d] as number)
    const backwards = !dense && rnd() < 0.2
    strides[d] = backwards ? -step * gap : step * gap
    if (backwards) offset += (n - 1) * step * gap
    step *= n * gap
  }
  return { shape, strides, offset }
}

/** How many elements a storage needs for a layout. */
export function extent(l: Layout): number {
  let end = l.offset
  for (let d = 0; d < l.shape.length; d++)
    end += Math.max(0, ((l.shape[d] as number) - 1) * (l.strides[d] as number))
  return end + 1
}

/** A storage on both backends; float32 is float64 on the reference, so that it can be taken for exact. */
export interface Twin {
  readonly layout: Layout
  readonly dtype: DType
  readonly data: TypedArray
  readonly exact: View
}

/** `value`: by position in the storage. */
export function twin(l: Layout, dtype: DType, value: (i: number) => number): Twin {
  const n = extent(l)
  const data = new dtypeInfo[dtype].Memory(n)
  for (let i = 0; i < n; i++) data[i] = value(i)
  return { layout: l, dtype, data, exact: onReference(l, dtype, data) }
}

function onReference(l: Layout, dtype: DType, data: TypedArray): View {
  const wide = dtype === 'float32' ? 'float64' : dtype
  const buffer = reference.alloc(data.length * dtypeInfo[wide].bytes, wide)
  const whole = { buffer, dtype: wide, shape: [data.length], strides: [1], offset: 0 }
  reference.write(whole, wide === dtype ? data : Float64Array.from(data))
  return { buffer, dtype: wide, ...l }
}

export function put(
  engine: Engine,
  { layout: l, dtype, data }: Pick<Twin, 'layout' | 'dtype' | 'data'>,
): View {
  const ptr = engine.memory.alloc(data.byteLength)
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  engine.memory.view(ptr, Uint8Array, data.byteLength).set(bytes)
  return { buffer: new CpuBuffer(ptr, data.byteLength), dtype, ...l }
}

/** A contiguous output, full of rubbish. */
export function output(engine: Engine, shape: readonly number[], dtype: DType): View {
  const data = new dtypeInfo[dtype].Memory(layout.numel(shape)).fill(dtype === 'bool' ? 1 : -77)
  return put(engine, { layout: { shape, strides: layout.contiguousStrides(shape), offset: 0 }, dtype, data })
}

/** The elements of a contiguous view. */
export function get(engine: Engine, view: View): TypedArray {
  const { Memory } = dtypeInfo[view.dtype]
  const out = new Memory(layout.numel(view.shape))
  const bytes = engine.memory.view(engine.address(view), Uint8Array, out.byteLength)
  new Uint8Array(out.buffer).set(bytes)
  return out
}

export const release = (engine: Engine, views: readonly View[]): void => {
  for (const v of views) engine.memory.free((v.buffer as CpuBuffer).ptr)
}

export interface Spec {
  readonly shape: readonly number[]
  readonly dtype: DType
}

/** Runs a kernel of ours; the outputs' elements. */
export function run<A>(
  engine: Engine,
  factory: KernelFactory<A>,
  outputs: readonly Spec[],
  inputs: readonly Pick<Twin, 'layout' | 'dtype' | 'data'>[],
  attrs: A,
): TypedArray[] {
  const kernel = factory(engine)
  const ins = inputs.map((t) => put(engine, t))
  const outs = outputs.map((s) => output(engine, s.shape, s.dtype))
  try {
    kernel.run(outs, ins, attrs, [])
    return outs.map((o) => get(engine, o))
  } finally {
    release(engine, [...ins, ...outs])
  }
}

/** Runs the reference kernel in float64. */
export function expected<A>(
  kernel: KernelOf<A>,
  outputs: readonly Spec[],
  inputs: readonly Twin[],
  attrs: A,
): TypedArray[] {
  const outs = outputs.map(({ shape, dtype }) => {
    const l = { shape, strides: layout.contiguousStrides(shape), offset: 0 }
    return onReference(l, dtype, new dtypeInfo[dtype].Memory(layout.numel(shape)))
  })
  kernel.run(
    outs,
    inputs.map((t) => t.exact),
    attrs,
    [],
  )
  return outs.map((o) => reference.readSync?.(o) as TypedArray)
}

/** The first place where two results differ by more than `atol + rtol · |want|`, or null. NaN equals NaN. */
export function mismatch(got: TypedArray, want: TypedArray, atol: number, rtol: number): string | null {
  if (got.length !== want.length) return `${got.length} elements, expected ${want.length}`
  for (let i = 0; i < got.length; i++) {
    const [g, w] = [got[i] as number, want[i] as number]
    if (Object.is(g, w) || g === w) continue
    if (!(Math.abs(g - w) <= atol + rtol * Math.abs(w))) return `element ${i}: ${g}, expected ${w}`
  }
  return null
}
