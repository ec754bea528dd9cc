/**
 * The parameters of a kernel by name, as the words of the block that it reads. Host and kernel ask one declaration where
 * each lies; a value that is missing, misspelt or of another kind does not compile:
 *
 *   const params = block({ n: word, eps: float, x: tensor })
 *   params.write(engine, { n, eps, x })
 *   const read = params.reader(address)   // in the kernel: read('n'), read('xPtr'), read('xRow')
 *
 * Test: block.test.ts.
 */

import { dtypeInfo, type View } from '@tilegrad/core'
import { f32bits } from './element.ts'
import { addressOf, type Engine } from './engine.ts'
import { type FunctionBuilder, type I32, i32, type Var } from './wasm/index.ts'

/** One word, or several that are written from one value of type T. */
export interface Part<T, End extends string = string> {
  /** What the names of its words end in, after its own name. */
  readonly ends: readonly End[]
  readonly put: (value: T, at: number, words: Int32Array) => void
}

export type Parts = Readonly<Record<string, Part<never>>>
export type ValuesOf<P extends Parts> = { readonly [N in keyof P]: P[N] extends Part<infer T> ? T : never }
type Names<P extends Parts> = {
  [N in keyof P & string]: P[N] extends Part<never, infer End> ? `${N}${End}` : never
}[keyof P & string]

type Singles<P extends Parts> = {
  [N in keyof P & string]: P[N] extends Part<never, ''> ? N : never
}[keyof P & string]

/** Parameters that are written together; readers also know those of the block before it. */
export interface Block<P extends Parts, Known extends string = Names<P>> {
  /** Places of all words that are known, in bytes. */
  readonly offsets: ReadonlyMap<string, number>
  /** The place of a word, in bytes. */
  readonly offset: (name: Known) => number
  /** Writes all its parameters, for the next launch; in the order of the declaration that is fastest. */
  readonly write: (engine: Engine, values: ValuesOf<P>) => void
  /** Writes some of them, where others stay as they are. */
  readonly set: (engine: Engine, values: Partial<ValuesOf<P>>) => void
  /** Reads words in a kernel whose parameters lie at an address. */
  readonly reader: (params: I32) => (name: Known) => I32
  /** Variables of all its single words, in a kernel whose parameters lie at an address. */
  readonly load: (f: FunctionBuilder, params: I32) => { readonly [N in Singles<P>]: Var<'i32'> }
}

/** Declares parameters of a kernel, which lie behind those of another block if there is one before. */
export function block<P extends Parts, Before extends string = never>(
  parts: P,
  before?: { readonly offsets: ReadonlyMap<string, number>; readonly offset: (name: Before) => number },
): Block<P, Names<P> | Before> {
  const names = Object.keys(parts)
  const index = new Map(names.map((name, i) => [name, i]))
  const offsets = new Map(before?.offsets)
  const members = names.map((name) => {
    const { ends, put } = parts[name] as Part<unknown>
    const at = offsets.size
    for (const end of ends) offsets.set(name + end, 4 * offsets.size)
    return { at, put: put === word.put ? null : put }
  })
  // Of one kind each: a loop over objects takes twice as long.
  const places = members.map(({ at }) => at)
  const puts = members.map(({ put }) => put)
  const offset = (name: string): number => offsets.get(name) as number
  const write = (engine: Engine, values: Readonly<Record<string, unknown>>): void => {
    // Compiling a kernel may grow memory, which renews its views.
    const { i32 } = engine.memory
    const base = engine.params >>> 2
    let i = 0
    for (const name in values) {
      if (names[i] !== name) i = index.get(name) as number
      const put = puts[i]
      if (put === null) i32[base + places[i]] = values[name] as number
      else put(values[name], base + places[i], i32)
      i++
    }
  }
  const load = (f: FunctionBuilder, params: I32): Record<string, Var<'i32'>> =>
    Object.fromEntries(
      names.flatMap((name) => (offsets.has(name) ? [[name, f.let(i32.load(params, offset(name)))]] : [])),
    )
  return {
    offsets,
    offset,
    load: load as Block<P>['load'],
    write,
    set: write,
    reader: (params) => (name) => i32.load(params, offset(name)),
  }
}

export const word: Part<number, ''> = {
  ends: [''],
  put: (value, at, words) => {
    words[at] = value
  },
}

/** The address of a tensor's first element. */
export const address: Part<View, ''> = {
  ends: [''],
  put: (view, at, words) => {
    words[at] = addressOf(view)
  },
}

/** A float64, which takes two words. */
export const double: Part<number, 'Low' | 'High'> = {
  ends: ['Low', 'High'],
  put: (value, at, words) => {
    doubles[0] = value
    words[at] = halves[0]
    words[at + 1] = halves[1]
  },
}
const doubles = new Float64Array(1)
const halves = new Int32Array(doubles.buffer)

/** A float32. */
export const float: Part<number, ''> = {
  ends: [''],
  put: (value, at, words) => {
    words[at] = f32bits(value)
  },
}

/** Where a tensor of up to four dims begins, and its strides in bytes: over batch, head, row and along the row. */
export const tensor: Part<View, 'Ptr' | 'Batch' | 'Head' | 'Row' | 'Step'> = {
  ends: ['Ptr', 'Batch', 'Head', 'Row', 'Step'],
  put: (view, at, words) => {
    const { bytes } = dtypeInfo[view.dtype]
    const { strides } = view
    words[at] = addressOf(view)
    for (let d = 0; d < 4; d++) words[at + 1 + d] = d < strides.length ? strides[d] * bytes : 0
  },
}

/** A part that only some calls have; in others its words are whatever they were. */
export const optional = <T, End extends string>({
  ends,
  put,
}: Part<T, End>): Part<T | null | undefined, End> => ({
  ends,
  put: (value, at, words) => {
    if (value != null) put(value, at, words)
  },
})
