/**
 * How things are shown as text: tensors as PyTorch shows them (torch/_tensor_str.py), four digits each, and only the
 * edges of what is large. Nothing here computes: elements are read straight from memory, so that a print never changes
 * the tape, allocates nothing on the device, and works where memory has run out.
 */

import { expectOptions, type Names } from '../checks.ts'
import type { Backend, View } from '../dispatch/backend.ts'
import { isDefaultBackend } from '../dispatch/device.ts'
import { paging } from '../dispatch/paging.ts'
import { show } from '../errors.ts'
import { type DType, isFloat } from './dtype.ts'
import { isContiguous, type Layout, numel } from './layout.ts'

/** What is shown of tensors, as `torch.set_printoptions` has it. */
export interface PrintOptions {
  /** Digits after the point. */
  precision: number
  /** Tensors of more elements are elided. */
  threshold: number
  /** How many entries are shown at the beginning and the end of each dim of an elided tensor. */
  edgeitems: number
  /** Characters in a line. */
  linewidth: number
  /** Write 1.0000e+03: always, never, or null where ranges need it. */
  sciMode: boolean | null
}

const options: PrintOptions = { precision: 4, threshold: 1000, edgeitems: 3, linewidth: 80, sciMode: null }

const PRINT: Names<PrintOptions> = { precision: 1, threshold: 1, edgeitems: 1, linewidth: 1, sciMode: 1 }

/**
 * Changes how tensors are printed from now on; what is not named stays.
 *
 * @returns the settings as they are now.
 * @example
 * setPrintOptions({ precision: 2 })
 * String(tensor([Math.PI])) // → tensor([3.14], shape=[1], dtype=float32)
 * setPrintOptions({ precision: 4 })
 */
export function setPrintOptions(changes: Partial<PrintOptions>): Readonly<PrintOptions> {
  return Object.assign(options, expectOptions('setPrintOptions', changes, PRINT))
}

/** The most elements that are read for one print, whatever the rank. */
const most = 2000

/** How many entries are shown at each end of a dim; null: everything is shown. */
export function edgeOf(shape: readonly number[]): number | null {
  if (numel(shape) <= options.threshold) return null
  const shown = (edge: number): number => shape.reduce((p, n) => p * Math.min(n, Math.max(1, 2 * edge)), 1)
  let edge = options.edgeitems
  while (edge > 0 && shown(edge) > most) edge--
  return edge
}

const parts = (n: number, edge: number | null): readonly [from: number, to: number][] =>
  edge === null || n <= 2 * edge
    ? [[0, n]]
    : [
        [0, edge],
        [n - edge, n],
      ]

/** Runs of neighbours in memory that hold what is shown of a layout, in order. */
function runsOf(view: Layout, edge: number | null): { offset: number; length: number }[] {
  const { shape, strides, offset } = view
  if (edge === null && isContiguous(view)) return [{ offset, length: numel(shape) }]
  const runs: { offset: number; length: number }[] = []
  const go = (dim: number, at: number): void => {
    if (dim === shape.length) {
      const last = runs.at(-1)
      if (last && last.offset + last.length === at) last.length++
      else runs.push({ offset: at, length: 1 })
      return
    }
    for (const [from, to] of parts(shape[dim], edge))
      for (let i = from; i < to; i++) go(dim + 1, at + i * strides[dim])
  }
  go(0, offset)
  return runs
}

/** The shown elements of a tensor in row-major order, read at once; null where its backend cannot. */
function shownOf(x: View & { readonly backend: Backend }, edge: number | null): number[] | null {
  const { backend, buffer, dtype } = x
  if (!backend.readSync) return null
  paging()?.bring(backend, x)
  const values: number[] = []
  for (const { offset, length } of runsOf(x, edge)) {
    const run = backend.readSync({ buffer, dtype, shape: [length], strides: [1], offset })
    for (let i = 0; i < length; i++) values.push(run[i])
  }
  return values
}

/** Writes a number with so many digits. Where two decimals are equally near it is the even one, as in PyTorch. */
function rounded(x: number, digits: number, by: 'toFixed' | 'toExponential'): string {
  const near = x[by](digits)
  const [whole, power = ''] = near.split('e')
  const exact = x[by](Math.min(100, digits + 50)).split('e')[0]
  const cut = exact.length - (Math.min(100, digits + 50) - digits)
  const tie = /^50*$/.test(exact.slice(cut))
  const kept = exact.slice(0, cut)
  // The digit before the tie is even already: cut off there.
  const text = tie && '02468'.includes(kept.replace('.', '').at(-1) as string) ? kept : whole
  if (by === 'toFixed') return text.endsWith('.') ? text.slice(0, -1) : text
  return `${text}e${power[0]}${power.slice(1).padStart(2, '0')}`
}

/** How to write an element, all of one width. */
function formatOf(values: ArrayLike<number>, dtype: DType): { width: number; format(value: number): string } {
  const list = Array.from(values)
  if (!isFloat(dtype)) {
    const text = (v: number): string => (dtype === 'bool' ? String(v !== 0) : String(v))
    const width = list.reduce((w, v) => Math.max(w, text(v).length), 0)
    return { width, format: (v) => text(v).padStart(width) }
  }
  const { precision } = options
  const finite = list.filter((v) => Number.isFinite(v) && v !== 0)
  const sizes = finite.map(Math.abs)
  const largest = sizes.reduce((a, b) => Math.max(a, b), 0)
  const smallest = sizes.reduce((a, b) => Math.min(a, b), Infinity)
  const whole = finite.every(Number.isInteger)
  const wide =
    finite.length > 0 && (largest / smallest > 1000 || largest > 1e8 || (!whole && smallest < 1e-4))
  const scientific = options.sciMode ?? wide
  const text = (v: number): string => {
    if (!Number.isFinite(v)) return Number.isNaN(v) ? 'nan' : v > 0 ? 'inf' : '-inf'
    const sign = Object.is(v, -0) ? '-' : ''
    if (scientific) return sign + rounded(v, precision, 'toExponential')
    return sign + (whole ? `${v.toFixed(0)}.` : rounded(v, precision, 'toFixed'))
  }
  const width = finite.reduce((w, v) => Math.max(w, text(v).length), 1)
  return { width, format: (v) => text(v).padStart(width) }
}

const chunks = <T>(list: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(list.length / size) }, (_, i) => list.slice(i * size, (i + 1) * size))

/** Nested brackets around the shown values, the first of them `indent` characters from the left. */
function brackets(
  values: ArrayLike<number>,
  shape: readonly number[],
  dtype: DType,
  edge: number | null,
  indent: number,
  lineWidth: number,
): string {
  if (numel(shape) === 0) return '[]'
  const { width, format } = formatOf(values, dtype)
  let next = 0
  const go = (dim: number, indent: number): string => {
    if (dim === shape.length) return format(values[next++])
    const inner = dim === shape.length - 1
    const entries: string[] = []
    parts(shape[dim], edge).forEach(([from, to], i) => {
      if (i === 1) entries.push(inner && entries.length > 0 ? ' ...' : '...')
      for (let k = from; k < to; k++) entries.push(go(dim + 1, indent + 1))
    })
    const margin = ' '.repeat(indent + 1)
    if (!inner) return `[${entries.join(`,${'\n'.repeat(shape.length - dim - 1)}${margin}`)}]`
    const perLine = Math.min(entries.length, Math.max(1, Math.floor((lineWidth - indent) / (width + 2))))
    const lines = chunks(entries, perLine).map((line) => line.join(', '))
    return `[${lines.join(`,\n${margin}`)}]`
  }
  return go(0, indent)
}

/** What a tensor tells of itself beside its elements. */
export interface Shown extends View {
  readonly backend: Backend
  readonly disposed: boolean
  readonly requiresGrad: boolean
  readonly gradFn: { readonly name: string } | null
}

/** The width of lines and the colours that `util.inspect` asks for. */
interface Style {
  readonly lineWidth?: number
  readonly color?: (value: string) => string
}

/**
 * A tensor as text. `values` are those of its shown elements where they have been read already; `freedBy` tells what
 * freed it.
 */
export function tensorText(
  x: Shown,
  freedBy: string | null,
  values?: ArrayLike<number>,
  { lineWidth = options.linewidth, color }: Style = {},
): string {
  const { shape, dtype, backend, gradFn } = x
  let body = '<await x.text()>'
  let coloured: string | null = null
  if (freedBy !== null) body = `<freed by ${freedBy}>`
  else {
    try {
      const edge = edgeOf(shape)
      const shown = values ?? shownOf(x, edge)
      if (shown) body = brackets(shown, shape, dtype, edge, 'tensor('.length, lineWidth)
      if (shown && color) coloured = body.replace(/[^\s,[\]]*[\da-z]\.?/g, color)
    } catch (error) {
      body = `<cannot be read: ${error instanceof Error ? error.message : String(error)}>`
    }
  }
  const device = backend.readSync && isDefaultBackend(backend) ? [] : [`device=${backend.name}`]
  const grad = gradFn ? [`gradFn=<${gradFn.name}>`] : x.requiresGrad ? ['requiresGrad=true'] : []
  let text = coloured ?? body
  // Of what is seen: a colour takes no room.
  let column = 'tensor('.length + body.length - (body.lastIndexOf('\n') + 1)
  for (const tag of [`shape=${show(shape)}`, `dtype=${dtype}`, ...device, ...grad]) {
    const fits = column + 2 + tag.length < lineWidth
    text += fits ? `, ${tag}` : `,\n${' '.repeat('tensor('.length)}${tag}`
    column = fits ? column + 2 + tag.length : 'tensor('.length + tag.length
  }
  return lineWidth === Infinity ? `tensor(${text.replace(/\n+ */g, ' ')})` : `tensor(${text})`
}

/** What Node's `util.inspect` passes to objects that show themselves. */
export interface InspectOptions {
  readonly breakLength?: number
  readonly colors?: boolean
  stylize?(text: string, style: string): string
}

/** What `util.inspect` is to show of a tensor at this depth. */
export function inspectTensor(
  x: Shown,
  freedBy: string | null,
  depth: number,
  { breakLength = Infinity, colors, stylize }: InspectOptions,
): string {
  if (depth < 0) return `[tensor ${show(x.shape)} ${x.dtype}]`
  const color = colors && stylize ? { color: (value: string) => stylize(value, 'number') } : {}
  const lineWidth = breakLength === Infinity ? Infinity : Math.min(options.linewidth, breakLength)
  return tensorText(x, freedBy, undefined, { lineWidth, ...color })
}

/** The key by which Node, Bun and Deno ask objects how to show them, in `console.log` and in what they print of errors. */
export const inspectSymbol = Symbol.for('nodejs.util.inspect.custom')

/** The key by which VS Code's debugger asks objects how to show them. */
export const debugSymbol = Symbol.for('debug.description')

/**
 * Gives `target` (an object, a function or a prototype) a text of its own wherever it is shown, and with `json` what
 * `JSON.stringify` writes of it.
 */
export function shownAs<T extends object>(
  target: T,
  text: (this: T) => string,
  json?: (this: T) => unknown,
): T {
  const own = { [inspectSymbol]: text, [debugSymbol]: text, toString: text, ...(json && { toJSON: json }) }
  for (const key of Reflect.ownKeys(own))
    Object.defineProperty(target, key, {
      value: own[key as keyof typeof own],
      writable: true,
      configurable: true,
    })
  return target
}

/** The base of classes that show themselves by their `toString`, in `console.log` and debuggers as in a string. */
export abstract class Printable {
  /** Shows it in one line or several. */
  abstract toString(): string

  /** @internal What `console.log` shows, where that is more than `toString` tells. */
  shown(): string {
    return this.toString()
  }

  /** @internal */
  [inspectSymbol](depth: number): string {
    return depth < 0 ? `[${this.constructor.name}]` : this.shown()
  }

  /** @internal */
  [debugSymbol](): string {
    return this.shown()
  }
}
