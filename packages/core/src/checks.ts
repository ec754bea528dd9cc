/** Words for wrong guesses: what was got, what was expected, and the name that was probably meant. */

import { DTypeError, ShapeError, show, ValueError } from './errors.ts'
import { type DType, info, isFloat } from './tensor/dtype.ts'

/** The names of the options O: one that is forgotten here does not compile. */
export type Names<O> = { readonly [K in keyof Required<O>]: 1 }

/** Names from elsewhere that no distance leads to. */
const others: Readonly<Record<string, string>> = {
  learningrate: 'lr',
  epsilon: 'eps',
  axis: 'dim',
  p: 'dropout',
  dmodel: 'embedDim',
  hiddensize: 'embedDim',
  nembd: 'embedDim',
  nhead: 'numHeads',
  nlayer: 'numLayers',
  contextlength: 'blockSize',
  maxtokens: 'maxNewTokens',
  decay: 'weightDecay',
  unbiased: 'correction',
  ddof: 'correction',
  reduce: 'reduction',
  attn: 'attention',
  swish: 'silu',
  theta: 'base',
  ropetheta: 'base',
  eostoken: 'stop',
  eostokenid: 'stop',
  dosample: 'temperature',
  float: 'float32',
  double: 'float64',
  half: 'float16',
  f32: 'float32',
  f64: 'float64',
  long: 'int32',
  int: 'int32',
  int64: 'int32',
  i32: 'int32',
  boolean: 'bool',
  gpu: 'webgpu',
  cuda: 'webgpu',
  mps: 'webgpu',
}

/** The plain form of a name: `keep_dim`, `keepDim` and `KeepDim` are one. */
const plain = (name: string): string => name.replaceAll(/[_\-\s.]/g, '').toLowerCase()

/** How many letters must be put in, taken out or changed to make b of a (Levenshtein 1966). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + Number(a[i - 1] !== b[j - 1])))
    row = next
  }
  return row[b.length]
}

/** Which of the names was probably meant; null if none is near. @internal */
export function nearest(name: string, names: readonly string[]): string | null {
  const wanted = plain(name).slice(0, 64)
  if (Object.hasOwn(others, wanted) && names.includes(others[wanted])) return others[wanted]
  let best: string | null = null
  let least = Math.ceil(wanted.length / 3) + 1
  for (const candidate of names) {
    const other = plain(candidate)
    // A part of a name is nearly the name.
    const far = wanted.length > 2 && other.includes(wanted) ? 1 : distance(wanted, other)
    if (far < least) [best, least] = [candidate, far]
  }
  return best
}

const guess = (name: string, names: readonly string[]): string => {
  const meant = nearest(name, names)
  return meant === null ? '' : `; did you mean '${meant}'?`
}

/**
 * Says in a few words what a value is, for messages.
 *
 * @example
 * describeValue('abc') // → 'abc'
 * describeValue(zeros([2, 3])) // → a tensor [2, 3]
 */
export function describe(value: unknown): string {
  if (typeof value === 'string') return `'${value.length > 40 ? `${value.slice(0, 40)}…` : value}'`
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return value.name ? `the function ${value.name}` : 'a function'
  if (typeof value !== 'object' || value === null) return String(value)
  if (value instanceof Promise) return 'a promise; did you forget await?'
  const { shape, dtype, forward } = value as Record<string, unknown>
  const name = value.constructor?.name ?? 'Object'
  if (Array.isArray(shape) && typeof dtype === 'string')
    return name === 'Object'
      ? `a plain copy of a tensor ${show(shape)}; tensor(data, shape, { dtype }) makes it one again`
      : `a tensor ${show(shape)}`
  if (typeof forward === 'function') return `a module ${name}; call its forward, or take its parameters()`
  if (Array.isArray(value))
    return value.length > 8
      ? `an array of ${value.length}`
      : `an array [${value.map((v) => (typeof v === 'object' ? '…' : String(v))).join(', ')}]`
  return name === 'Object'
    ? `an object with ${Object.keys(value).slice(0, 5).join(', ') || 'nothing'}`
    : `an object of class ${name}`
}

/**
 * The options of an operator, if it knows all of them. For authors of layers and operators.
 *
 * @throws ValueError naming an option that is not known, and the nearest one that is.
 * @example
 * const known = { keepdim: 1 } as const
 * expectOptions('myOp', { keepdim: true }, known).keepdim // → true
 */
export function expectOptions<O extends object>(op: string, options: O, names: Names<O>): O {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw noOptions(op, options, names)
  for (const name in options) if (!Object.hasOwn(names, name)) throw unknownOption(op, options, name, names)
  return options
}

const listed = (names: object): string => Object.keys(names).join(', ')

const noOptions = (op: string, got: unknown, names: object): ValueError =>
  new ValueError(
    `${op}: options are an object such as { ${Object.keys(names)[0]}: … }, got ${describe(got)}${typeof got === 'number' ? ' (several dims go into an array)' : ''}; known: ${listed(names)}`,
  )

function unknownOption(op: string, options: object, name: string, names: object): ValueError {
  const { name: kind } = options.constructor ?? Object
  if (!Object.hasOwn(options, name) || kind !== 'Object') return noOptions(op, options, names)
  return new ValueError(
    `${op}: there is no option ${describe(name)}${guess(name, Object.keys(names)) || ';'} known: ${listed(names)}`,
  )
}

/** @throws DTypeError for what is no dtype, naming the nearest. @internal */
export function expectDType(op: string, dtype: DType): DType {
  if (Object.hasOwn(info, dtype)) return dtype
  throw new DTypeError(
    `${op}: ${describe(dtype)} is no dtype${guess(String(dtype), Object.keys(info)) || ';'} known: ${listed(info)}`,
  )
}

/** The end of a message about a name: the nearest of those known, and all of them. @internal */
export const amongKnown = (name: string, names: readonly string[]): string =>
  `${guess(name, names) || ';'} known: ${names.join(', ')}`

/** Sizes, or dims, in an array or one after the other: `reshape([2, 3])` and `reshape(2, 3)`. @internal */
export function sizesOf(
  op: string,
  first: number | readonly number[],
  more: readonly number[],
): readonly number[] {
  if (typeof first === 'number') return more.length === 0 ? [first] : [first, ...more]
  if (Array.isArray(first) && more.length === 0) return first
  throw new ShapeError(
    `${op}: takes numbers, as ${op}([2, 3]) or ${op}(2, 3), got ${[first, ...more].map(describe).join(', ')}`,
  )
}

/** @throws ValueError where a function is due and something else came. @internal */
export function expectFunction(op: string, fn: unknown): void {
  if (typeof fn !== 'function') throw new ValueError(`${op}: takes a function, got ${describe(fn)}`)
}

/** @throws ValueError where a number is due and something else came. @internal */
export function expectNumber(op: string, value: unknown): void {
  if (typeof value !== 'number') throw new ValueError(`${op}: takes a number, got ${describe(value)}`)
}

/** @throws DTypeError where floats are due and other elements came. @internal */
export function expectFloat(op: string, dtype: DType): void {
  if (!isFloat(dtype))
    throw new DTypeError(`${op}: takes floating tensors, not ${dtype}; convert with .to('float32')`)
}

/** @throws DTypeError where indices, classes or positions are due and other elements came. @internal */
export function expectInt(op: string, what: string, dtype: DType): void {
  if (dtype !== 'int32')
    throw new DTypeError(`${op}: ${what} must be int32, not ${dtype}; convert with .to('int32')`)
}

/** @throws ValueError for what is no reduction of losses. @internal */
export function expectReduction(op: string, reduction: string): void {
  if (reduction !== 'mean' && reduction !== 'sum' && reduction !== 'none')
    throw new ValueError(`${op}: reduction must be 'mean', 'sum' or 'none', not '${String(reduction)}'`)
}

function expectWhole(op: string, name: string, value: number): void {
  if (!Number.isInteger(value) || value < 0)
    throw new ValueError(`${op}: ${name} must be a whole number ≥ 0, got ${value}`)
}

/** @throws ValueError for a window or global tokens that attention cannot have; 0 stands for none. @internal */
export function expectWindow(op: string, window: number, globalTokens: number): void {
  expectWhole(op, 'window', window)
  expectWhole(op, 'globalTokens', globalTokens)
  if (globalTokens > 0 && window === 0)
    throw new ValueError(`${op}: globalTokens are exceptions from a window; give one, such as window: 256`)
}
