import { noGrad, record, shouldRecord } from '../autograd/tape.ts'
import { isHalf } from '../tensor/dtype.ts'
import type { Layout } from '../tensor/layout.ts'
import * as L from '../tensor/layout.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { addInto, copy, copyInto, fill } from './elementwise.ts'

/** Windows that slide along one dim. */
export interface Span {
  /** How many elements a window has. */
  readonly size: number
  /** From one window to the next. */
  readonly stride: number
  /** From one element of a window to the next. */
  readonly dilation: number
  /** Where the first window begins: so many elements before the first one. */
  readonly padding: number
  /** How many windows there are. */
  readonly count: number
}

/** x with `value` around its last dims, as far as windows reach. */
export function padded(x: Tensor, spans: readonly Span[], value = 0): Tensor {
  const lead = x.rank - spans.length
  const shape = x.shape.map((n, d) => {
    if (d < lead) return n
    const { size, stride, dilation, padding, count } = spans[d - lead]
    return Math.max(n + padding, (count - 1) * stride + (size - 1) * dilation + 1)
  })
  if (L.sameShape(shape, x.shape)) return x
  const out = fill(x.backend, shape, value, x.dtype)
  const hole = out.viewAs({
    shape: x.shape,
    strides: out.strides,
    offset: out.offset + spans.reduce((o, s, i) => o + s.padding * out.strides[lead + i], 0),
  })
  copyInto(hole, x)
  hole.dispose()
  return out
}

/**
 * All windows over the last dims of x, with zeros around it: (…, L₁, L₂) → (…, K₁, K₂, W₁, W₂), the elements of windows and then
 * the windows. A view, of x or of a padded copy: windows overlap in it.
 */
export function windowsOf(x: Tensor, spans: readonly Span[]): Tensor {
  const out = noGrad(() => {
    const whole = padded(x, spans)
    const view = whole.viewAs(windowsLayout(whole, spans))
    if (whole !== x) whole.dispose()
    return view
  })
  if (shouldRecord([x]))
    record('windows', [x], [out], spans, (node, [d]) => [
      d && sumOfWindows(d, node.inputs[0].shape, node.attrs),
    ])
  return out
}

function windowsLayout(x: Layout, spans: readonly Span[]): Layout {
  const lead = x.shape.length - spans.length
  const strides = x.strides.slice(lead)
  return {
    shape: [...x.shape.slice(0, lead), ...spans.map((s) => s.size), ...spans.map((s) => s.count)],
    strides: [
      ...x.strides.slice(0, lead),
      ...spans.map((s, i) => s.dilation * strides[i]),
      ...spans.map((s, i) => s.stride * strides[i]),
    ],
    offset: x.offset,
  }
}

/** Calls `fn` with the place of each element of windows, in row-major order. */
function forEachElement(spans: readonly Span[], fn: (at: readonly number[], index: number) => void): void {
  const shape = spans.map((s) => s.size)
  const strides = L.contiguousStrides(shape)
  for (let i = 0; i < L.numel(shape); i++)
    fn(
      shape.map((n, d) => Math.floor(i / strides[d]) % n),
      i,
    )
}

/** Where the windows' elements `at` lie in a tensor, and which windows have them there rather than in the padding. */
function placesOf(
  x: Layout,
  spans: readonly Span[],
  at: readonly number[],
): { readonly layout: Layout; readonly from: readonly number[] } {
  const lead = x.shape.length - spans.length
  const places = spans.map((span, i) => {
    const first = at[i] * span.dilation - span.padding
    const from = Math.max(0, Math.ceil(-first / span.stride))
    const end = Math.min(span.count, Math.floor((x.shape[lead + i] - 1 - first) / span.stride) + 1)
    return { from, count: Math.max(0, end - from), start: first + from * span.stride }
  })
  return {
    layout: {
      shape: [...x.shape.slice(0, lead), ...places.map((p) => p.count)],
      strides: [...x.strides.slice(0, lead), ...spans.map((s, i) => s.stride * x.strides[lead + i])],
      offset: x.offset + places.reduce((o, p, i) => o + p.start * x.strides[lead + i], 0),
    },
    from: places.map((p) => p.from),
  }
}

/** Adds the elements `at` of windows to `out`, where they came from; or stores them, where nothing else comes. */
function put(
  out: Tensor,
  d: Layout,
  of: Tensor,
  spans: readonly Span[],
  at: readonly number[],
  store: boolean,
): void {
  const { layout, from } = placesOf(out, spans, at)
  if (L.numel(layout.shape) === 0) return
  const lead = out.rank - spans.length
  const hole = out.viewAs(layout)
  const offset = from.reduce((o, n, i) => o + n * d.strides[lead + i], d.offset)
  const piece = of.viewAs({ shape: layout.shape, strides: d.strides, offset })
  if (store) copyInto(hole, piece)
  else addInto(hole, piece)
  hole.dispose()
  piece.dispose()
}

/** Whether no element is in two windows. */
const areApart = (spans: readonly Span[]): boolean =>
  spans.every((s) => s.size === 1 || (s.dilation === 1 && s.stride >= s.size))

/** Adds windows (…, K₁, K₂, W₁, W₂) to `out`, of zeros, where they came from: all first elements, then all second ones. */
export function addWindows(out: Tensor, windows: Tensor, spans: readonly Span[]): void {
  const [n, lead] = [spans.length, out.rank - spans.length]
  const { shape, strides, offset } = windows
  if (areApart(spans) && spans.every((s) => s.padding === 0)) {
    const all = out.viewAs(windowsLayout(out, spans))
    copyInto(all, windows)
    all.dispose()
    return
  }
  forEachElement(spans, (at) => {
    const layout = {
      shape: [...shape.slice(0, lead), ...shape.slice(lead + n)],
      strides: [...strides.slice(0, lead), ...strides.slice(lead + n)],
      offset: at.reduce((o, a, i) => o + a * strides[lead + i], offset),
    }
    put(out, layout, windows, spans, at, false)
  })
}

/** Zeros of `shape` to which `fill` adds gradients of `dtype`: those of 16 bits add up in float32. */
function summed(like: Tensor, shape: readonly number[], add: (sum: Tensor) => void): Tensor {
  return noGrad(() => {
    const sum = fill(like.backend, shape, 0, isHalf(like.dtype) ? 'float32' : like.dtype)
    add(sum)
    if (sum.dtype === like.dtype) return sum
    const narrow = copy(sum, like.dtype)
    sum.dispose()
    return narrow
  })
}

/** Adds windows up where they came from, in a tensor of `shape`: the adjoint of `windowsOf`. */
export function sumOfWindows(windows: Tensor, shape: readonly number[], spans: readonly Span[]): Tensor {
  const out = summed(windows, shape, (sum) => addWindows(sum, windows, spans))
  if (shouldRecord([windows]))
    record('fold', [windows], [out], spans, (node, [d]) => [d && windowsOf(d, node.attrs)])
  return out
}

/**
 * The elements of windows over the last dims of x, with `value` around it: one view for each element of a window, in row-major
 * order, (…, W₁, W₂). Padding passes no gradient.
 */
export function elementsOf(x: Tensor, spans: readonly Span[], value = 0): Tensor[] {
  const outs = noGrad(() => {
    const whole = padded(x, spans, value)
    const { shape, strides, offset } = windowsLayout(whole, spans)
    const [n, lead] = [spans.length, x.rank - spans.length]
    const views: Tensor[] = []
    forEachElement(spans, (at) =>
      views.push(
        whole.viewAs({
          shape: [...shape.slice(0, lead), ...shape.slice(lead + n)],
          strides: [...strides.slice(0, lead), ...strides.slice(lead + n)],
          offset: at.reduce((o, a, i) => o + a * strides[lead + i], offset),
        }),
      ),
    )
    if (whole !== x) whole.dispose()
    return views
  })
  if (shouldRecord([x]))
    record('windows', [x], outs, spans, (node, douts) => [
      sumOfElements(douts, node.inputs[0].shape, node.attrs),
    ])
  return outs
}

/** Adds the elements of windows up where they came from, in a tensor of `shape`: the adjoint of `elementsOf`. */
function sumOfElements(
  elements: readonly (Tensor | null)[],
  shape: readonly number[],
  spans: readonly Span[],
): Tensor | null {
  const given = elements.filter((d) => d !== null)
  if (given.length === 0) return null
  const apart = areApart(spans)
  const out = summed(given[0], shape, (sum) =>
    forEachElement(spans, (at, i) => {
      const d = elements[i]
      if (d) put(sum, d, d, spans, at, apart)
    }),
  )
  if (shouldRecord(given))
    record('fold', given, [out], spans, (node, [d]) =>
      d ? elementsOf(d, node.attrs).filter((_, i) => elements[i] !== null) : given.map(() => null),
    )
  return out
}
