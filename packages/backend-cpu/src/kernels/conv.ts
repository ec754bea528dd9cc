/**
 * Convolution of float32 and the gradient of its filters, as products by tiles (`matmul/tiles.ts`) whose one operand is made of
 * windows: they are packed from the input itself into the panels of the product, and are stored nowhere else.
 *
 *   y[n][o][p]  = Σₖ w[o][k] · window[n][k][p]        k: channel and element of a window, p: its place
 *   dw[k][o]    = Σₙ,ₚ window[n][k][p] · dy[o][n, p]
 *
 * The input is padded already. Where a window is, and where its elements are from there, are two tables of offsets.
 *
 * Reference: `conv2d` in core's ops/conv.ts. Test: conv.test.ts.
 */

import { type ConvAttrs, layout, type View } from '@tilegrad/core'
import type { Engine, KernelFactory } from '../engine.ts'
import { type Problem, tileOf, tiles } from './matmul/matmul.ts'
import { windowsPacking } from './matmul/pack-windows.ts'
import type { Form } from './matmul/tiles.ts'
import { sumPieces } from './reduce/columns.ts'

/** Offsets of combined positions in bytes, the last dim fastest. */
function offsets(shape: readonly number[], strides: readonly number[]): Int32Array {
  let table = Int32Array.of(0)
  for (let d = shape.length - 1; d >= 0; d--) {
    const { length } = table
    const next = new Int32Array(shape[d] * length)
    for (let i = 0; i < shape[d]; i++)
      for (let j = 0; j < length; j++) next[i * length + j] = table[j] + 4 * i * strides[d]
    table = next
  }
  return table
}

/** Writes the tables of a group of channels and of windows to memory, for the time of a call. */
function withTables(
  engine: Engine,
  elements: Int32Array,
  places: Int32Array,
  run: (elements: number, places: number) => void,
): void {
  const { memory } = engine
  const ptr = memory.alloc(4 * (elements.length + places.length))
  try {
    const at = ptr >>> 2
    memory.i32.set(elements, at)
    memory.i32.set(places, at + elements.length)
    run(ptr, ptr + 4 * elements.length)
  } finally {
    memory.free(ptr)
  }
}

/** Shape and strides of the elements of windows over the channels of a group. */
const elementsOf = (x: View, { spans, groups }: ConvAttrs): Int32Array =>
  offsets(
    [x.shape[1] / groups, ...spans.map((s) => s.size)],
    [x.strides[1], ...spans.map((s, i) => s.dilation * x.strides[2 + i])],
  )

const sliding = (x: View, { spans }: ConvAttrs): number[] => spans.map((s, i) => s.stride * x.strides[2 + i])

const view = (of: View, shape: readonly number[], strides: readonly number[]): View => ({
  buffer: of.buffer,
  dtype: of.dtype,
  shape,
  strides,
  offset: of.offset,
})

const takes = (inputs: readonly View[]): boolean => inputs.every((v) => layout.numel(v.shape) > 0)

/** The products of filters have windows for b, those of gradients for a. */
const ofFilters: Form = {
  key: ':windows b',
  build: (m) => ({ packB: windowsPacking(m) }),
  write() {},
}
const ofGradients: Form = {
  key: ':windows a',
  build: (m) => ({ packA: windowsPacking(m) }),
  write() {},
}

/** Fewest windows of a sample that make a product by themselves; where there are fewer, those of several samples make one. */
const leastWindows = 8

/** Filters times windows. */
const conv: KernelFactory<ConvAttrs> = (engine) => ({
  dtypes: [['float32']],
  supports: ([x, w], { spans }) =>
    takes([x, w]) && layout.isContiguous(w) && spans.reduce((n, s) => n * s.count, 1) >= leastWindows,
  run([y], [x, w], attrs) {
    const { groups, spans } = attrs
    const [n, o] = y.shape
    const m = o / groups
    const places = spans.map((s) => s.count)
    const columns = layout.numel(places)
    const elements = elementsOf(x, attrs)
    const k = elements.length
    withTables(engine, elements, offsets(places, sliding(x, attrs)), (rowTable, columnTable) => {
      const p: Problem = {
        ...{ m, n: columns, k, aRow: 4 * k, aK: 4, bK: rowTable, bColumn: columnTable },
        ...{ outRow: 4 * columns, outColumn: 4, items: n * groups, batchDims: 2 },
        a: view(w, [n, groups], [0, m * k]),
        b: view(x, [n, groups], [x.strides[0], (x.shape[1] / groups) * x.strides[1]]),
      }
      tiles(
        engine,
        tileOf(engine, p),
        p,
        view(y, [n, groups], [o * columns, m * columns]),
        'float32',
        ofFilters,
      )
    })
  },
})

/**
 * Into how many parts of samples a gradient is cut, whose sum it is then: where it is small, its rows are too few for all threads.
 * Sizes alone decide, so that results are the same bits on any number of threads.
 */
function partsOf(samples: number, size: number, inner: number): number {
  if (size > 2 ** 14 || inner < 4096) return 1
  for (let parts = 8; parts > 1; parts--) if (samples % parts === 0) return parts
  return 1
}

/** Windows times the gradients of results, which are rows (g, O / g, N · P). */
const convWeight: KernelFactory<ConvAttrs> = (engine) => ({
  dtypes: [['float32']],
  supports: ([x, rows]) => takes([x, rows]) && layout.isContiguous(rows),
  run([dw], [x, rows], attrs) {
    const { groups, spans } = attrs
    const [, o, all] = rows.shape
    const elements = elementsOf(x, attrs)
    const m = elements.length
    const size = groups * m * o
    const parts = partsOf(x.shape[0], size, all)
    const [samples, inner] = [x.shape[0] / parts, all / parts]
    const places = offsets([samples, ...spans.map((s) => s.count)], [x.strides[0], ...sliding(x, attrs)])
    const ptr = parts > 1 ? engine.memory.alloc(4 * parts * size) : 0
    const sums: View =
      parts > 1 ? { ...layout.contiguous([parts, size]), buffer: { ptr }, dtype: 'float32' } : dw
    try {
      withTables(engine, elements, places, (rowTable, columnTable) => {
        const p: Problem = {
          ...{ m, n: o, k: inner, aRow: rowTable, aK: columnTable, bK: 4, bColumn: 4 * all },
          ...{ outRow: 4 * o, outColumn: 4, items: parts * groups, batchDims: 2 },
          a: view(x, [parts, groups], [samples * x.strides[0], (x.shape[1] / groups) * x.strides[1]]),
          b: view(rows, [parts, groups], [inner, o * all]),
        }
        tiles(
          engine,
          tileOf(engine, p),
          p,
          view(sums, [parts, groups], [size, m * o]),
          'float32',
          ofGradients,
        )
      })
      if (parts > 1) sumPieces(engine, ptr, engine.address(dw), parts, size)
    } finally {
      if (parts > 1) engine.memory.free(ptr)
    }
  },
})

/** The kernels of this file. `conv-none.ts`, which bundles for browsers get, has none. */
export const convKernels = (engine: Engine) => ({ conv: conv(engine), convBackward: convWeight(engine) })
