import type { View } from '../dispatch/backend.ts'
import type { Primitives } from '../dispatch/kernels.ts'
import { ValueError } from '../errors.ts'
import { info, type TypedArray } from '../tensor/dtype.ts'
import { broadcastStrides, forEachOffset, type Layout, numel } from '../tensor/layout.ts'
import { evaluate } from './scalar.ts'

/** The dtypes that these kernels compute with; tensors of 16 bits come as float32, see primitives/widen.ts. */
const dtypes = [['float32', 'float64', 'int32', 'bool']] as const

/**
 * The primitives in plain JavaScript, to be read: where is each element, then one loop. They are slow and right, and
 * what every other backend is held against. `memoryOf` says where a view's storage is, so that another backend can run
 * them on its own memory.
 */
export function referenceKernels(memoryOf: (view: View) => TypedArray): Primitives {
  return {
    elementwise: {
      run(outputs, inputs, { kernel }, numbers) {
        const shape = outputs[0].shape
        const sources = inputs.map((v) => memoryOf(v))
        const where = inputs.map((v) =>
          offsets({ shape, strides: broadcastStrides(v, shape), offset: v.offset }),
        )
        const targets = outputs.map((v) => memoryOf(v))
        const to = outputs.map((v) => offsets(v))
        evaluate(
          kernel.exprs,
          kernel.params.map((p) => numbers[p.source]),
          shape,
          (input, from, n, row) => {
            const [data, at] = [sources[input], where[input]]
            for (let i = 0; i < n; i++) row[i] = data[at[from + i]]
            const { half } = info[inputs[input].dtype]
            if (half) for (let i = 0; i < n; i++) row[i] = half.load(row[i])
          },
          (output, from, n, row) => {
            const [data, at] = [targets[output], to[output]]
            const { half } = info[outputs[output].dtype]
            if (half) for (let i = 0; i < n; i++) row[i] = half.store(row[i])
            for (let i = 0; i < n; i++) data[at[from + i]] = row[i]
          },
        )
      },
    },

    reduce: {
      dtypes,
      run([out], [x], { kind, dims }) {
        const [data, result] = [memoryOf(x), memoryOf(out)]
        const within = offsets(pick(x, dims, 0))
        const start = kind === 'sum' ? 0 : kind === 'prod' ? 1 : kind === 'max' ? -Infinity : Infinity
        const int = x.dtype === 'int32'
        const bases = offsets({ ...dropDims(x, dims), offset: x.offset })
        forEachOffset(out, (o, i) => {
          let acc = start
          for (const w of within) {
            const v = data[bases[i] + w]
            if (kind === 'sum') acc = int ? (acc + v) | 0 : acc + v
            else if (kind === 'prod') acc = int ? Math.imul(acc, v) : acc * v
            else acc = kind === 'max' ? Math.max(acc, v) : Math.min(acc, v)
          }
          result[o] = acc
        })
      },
    },

    argReduce: {
      dtypes,
      run([out], [x], { kind, dim }) {
        const [data, result] = [memoryOf(x), memoryOf(out)]
        const bases = offsets({ ...dropDims(x, [dim]), offset: x.offset })
        forEachOffset(out, (o, i) => {
          let best = 0
          for (let j = 1; j < x.shape[dim]; j++) {
            const v = data[bases[i] + j * x.strides[dim]]
            const b = data[bases[i] + best * x.strides[dim]]
            if (Number.isNaN(b)) break
            if (Number.isNaN(v) || (kind === 'max' ? v > b : v < b)) best = j
          }
          result[o] = best
        })
      },
    },

    matmul: {
      dtypes,
      run([out], [a, b]) {
        const [left, right, result] = [memoryOf(a), memoryOf(b), memoryOf(out)]
        const rank = out.shape.length
        const [m, n, k] = [out.shape[rank - 2], out.shape[rank - 1], a.shape[rank - 1]]
        const batch = (v: View): Int32Array =>
          offsets({ shape: v.shape.slice(0, -2), strides: v.strides.slice(0, -2), offset: v.offset })
        const [am, ak, bk, bn, om, on] = [
          a.strides[rank - 2],
          a.strides[rank - 1],
          b.strides[rank - 2],
          b.strides[rank - 1],
          out.strides[rank - 2],
          out.strides[rank - 1],
        ]
        const [fromA, fromB] = [batch(a), batch(b)]
        const int = out.dtype === 'int32'
        // Rows and columns lie dense, whatever the strides and dtypes: the inner loop is nearly all the time.
        const row = new Float64Array(k)
        const columns = Array.from({ length: n }, () => new Float64Array(k))
        batch(out).forEach((o, i) => {
          columns.forEach((column, c) => {
            for (let j = 0; j < k; j++) column[j] = right[fromB[i] + j * bk + c * bn]
          })
          for (let r = 0; r < m; r++) {
            for (let j = 0; j < k; j++) row[j] = left[fromA[i] + r * am + j * ak]
            columns.forEach((column, c) => {
              result[o + r * om + c * on] = int ? dotInt(row, column) : dot(row, column)
            })
          }
        })
      },
    },

    gather: {
      dtypes,
      run([out], [x, index], { dim }) {
        const [data, at, result] = [memoryOf(x), memoryOf(index), memoryOf(out)]
        const where = offsets(index)
        const to = offsets(out)
        forEachOffset(starts(x, index, dim), (from, i) => {
          result[to[i]] = data[from + stepTo(x, dim, at[where[i]])]
        })
      },
    },

    scatterAdd: {
      dtypes,
      run([out], [x, index, source], { dim }) {
        const [data, at, added, result] = [memoryOf(x), memoryOf(index), memoryOf(source), memoryOf(out)]
        const to = offsets(out)
        forEachOffset(x, (o, i) => {
          result[to[i]] = data[o]
        })
        const where = offsets(index)
        const from = offsets({ shape: index.shape, strides: source.strides, offset: source.offset })
        forEachOffset(starts(out, index, dim), (start, i) => {
          result[start + stepTo(out, dim, at[where[i]])] += added[from[i]]
        })
      },
    },

    scan: {
      dtypes,
      run([out], inputs, { kind, dim, reverse }) {
        const arrays = inputs.map((v) => memoryOf(v))
        const result = memoryOf(out)
        const bases = inputs.map((v) => offsets({ ...dropDims(v, [dim]), offset: v.offset }))
        const n = out.shape[dim] ?? 1
        const int = out.dtype === 'int32'
        forEachOffset(dropDims(out, [dim]), (o, i) => {
          let acc = kind === 'prod' ? 1 : 0
          for (let s = 0; s < n; s++) {
            const j = reverse ? n - 1 - s : s
            const v = arrays.map((data, a) => data[bases[a][i] + j * (inputs[a].strides[dim] ?? 0)])
            if (kind === 'affine') acc = v[0] * acc + v[1]
            else if (kind === 'sum') acc = int ? (acc + v[0]) | 0 : acc + v[0]
            else acc = int ? Math.imul(acc, v[0]) : acc * v[0]
            result[o + j * (out.strides[dim] ?? 0)] = acc
          }
        })
      },
    },

    sort: {
      dtypes,
      run([values, indices], [x], { dim, descending }) {
        const [data, sorted, order] = [memoryOf(x), memoryOf(values), memoryOf(indices)]
        const n = x.shape[dim] ?? 1
        const stride = (v: View): number => v.strides[dim] ?? 0
        const bases = offsets({ ...dropDims(x, [dim]), offset: x.offset })
        const toIndex = offsets(dropDims(indices, [dim]))
        // NaN counts as the largest: an order that is total, unlike <.
        const compare = (a: number, b: number): number =>
          Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a < b ? -1 : Number(a > b)
        forEachOffset(dropDims(values, [dim]), (o, i) => {
          const at = (j: number): number => data[bases[i] + j * stride(x)]
          const ranks = Array.from({ length: n }, (_, j) => j).sort((p, q) =>
            descending ? compare(at(q), at(p)) : compare(at(p), at(q)),
          )
          ranks.forEach((from, to) => {
            sorted[o + to * stride(values)] = at(from)
            order[toIndex[i] + to * stride(indices)] = from
          })
        })
      },
    },
  }
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let j = 0; j < a.length; j++) sum += a[j] * b[j]
  return sum
}

/** The dot product of int32 numbers, which wraps. */
function dotInt(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let j = 0; j < a.length; j++) sum = (sum + Math.imul(a[j], b[j])) | 0
  return sum
}

/** The storage offsets of a layout's elements in row-major order. */
function offsets(layout: Layout): Int32Array {
  const out = new Int32Array(numel(layout.shape))
  forEachOffset(layout, (o, i) => {
    out[i] = o
  })
  return out
}

/** Makes a layout of only some dims of another, from a given offset. */
const pick = (l: Layout, dims: readonly number[], offset: number): Layout => ({
  shape: dims.map((d) => l.shape[d]),
  strides: dims.map((d) => l.strides[d]),
  offset,
})

const dropDims = (l: Layout, dims: readonly number[]): Layout =>
  pick(
    l,
    l.shape.map((_, d) => d).filter((d) => !dims.includes(d)),
    l.offset,
  )

/** For each element of an index, where in x the elements begin among which it chooses. */
const starts = (x: Layout, index: Layout, dim: number): Layout => ({
  shape: index.shape,
  strides: x.strides.map((s, d) => (d === dim ? 0 : s)),
  offset: x.offset,
})

/** How far it is from there to the chosen one. */
function stepTo(x: Layout, dim: number, index: number): number {
  const size = x.shape[dim] ?? 1
  if (index < 0 || index >= size)
    throw new ValueError(`index ${index} is out of range for dim ${dim} of size ${size}`)
  return index * (x.strides[dim] ?? 0)
}
