/**
 * The parameters of a kernel, declared once for both sides. Fields have names and types; the shader's struct is made of
 * them, and the host gives values by name, so that one that is missing, misspelt or of the wrong kind does not compile:
 *
 *   const params = block({ rows: u32, share: f32, x: walk(rank) })
 *   params.fields                  // rows: u32, share: f32, x_n0: u32, x_s0: i32
 *   engine.run(kernel, buffers, { rows, share: 1 / n, x: walkOf(nest, 0) }, grid(rows))
 *
 * Values are written where a call comes for the first time: what is done again keeps its words (commands/replay.ts).
 * Test: block.test.ts.
 */

import { type DType, ValueError } from '@tilegrad/core'
import { elements, laneOf } from './element.ts'

/** A parameter of a dispatch, at position `at`, that is the call's number `source`. */
export interface Scalar {
  readonly at: number
  readonly source: number
  readonly dtype: DType
}

/** What a call's parameters are written to. */
export interface Words {
  readonly u32: Uint32Array
  /** The memory of `u32`, as floats. */
  readonly f32: Float32Array
  /** The parameters that are numbers of the call's, which are written anew each time that it is done. */
  readonly scalars: Scalar[]
}

/** One field, or several that are written from one value of type T, as an operand's offset and strides. */
export interface Part<T> {
  /** Its fields, each `name: u32`, `i32` or `f32`, in a block where it is called `name`. */
  readonly fields: (name: string) => readonly string[]
  /** Writes a value: a word for each field, from place `at` on. */
  readonly put: (value: T, at: number, words: Words) => void
}

type Parts = Readonly<Record<string, Part<never>>>
/** The values of parts, by their names. */
type Values<P extends Parts> = { readonly [N in keyof P]: P[N] extends Part<infer T> ? T : never }

export interface Block<V> {
  /** The fields of the shader's struct, in order. */
  readonly fields: readonly string[]
  readonly words: (values: V) => Words
}

/** The values that a block takes, or the block that a function makes. */
export type ValuesOf<B> =
  B extends Block<infer V> ? V : B extends (...args: never[]) => Block<infer V> ? V : never

/** Declares the parameters of a kernel. */
export function block<P extends Parts>(parts: P): Block<Values<P>> {
  const { fields, put } = group(parts)
  const all = fields('')
  const names = new Set(all.map((field) => field.split(':')[0]))
  if (names.size < all.length) throw new ValueError(`webgpu: a name occurs twice in ${all}`)
  return {
    fields: all,
    words(values) {
      const u32 = new Uint32Array(all.length)
      const words: Words = { u32, f32: new Float32Array(u32.buffer), scalars: [] }
      put(values, 0, words)
      return words
    },
  }
}

const whole = (type: 'u32' | 'i32'): Part<number> => ({
  fields: (name) => [`${name}: ${type}`],
  put: (value, at, { u32 }) => {
    u32[at] = value
  },
})
export const u32 = whole('u32')
export const i32 = whole('i32')
export const f32: Part<number> = {
  fields: (name) => [`${name}: f32`],
  put: (value, at, { f32 }) => {
    f32[at] = value
  },
}

/** A part of whole numbers, which `words` takes from a value. */
export function several<T>(fields: Part<T>['fields'], words: (value: T) => readonly number[]): Part<T> {
  const names = fields('…')
  return {
    fields,
    put(value, at, { u32 }) {
      const list = words(value)
      if (list.length !== names.length)
        throw new ValueError(`webgpu: a kernel got ${list.length} numbers for ${names}`)
      u32.set(list, at)
    },
  }
}

/** Parts of their own names, with `suffix` behind these, that are given together. */
export function group<P extends Parts>(parts: P, suffix = ''): Part<Values<P>> {
  let end = 0
  const fields: string[] = []
  const members = Object.entries(parts).map(([name, part]) => {
    const at = end
    const own = part.fields(name + suffix)
    fields.push(...own)
    end += own.length
    return { name, at, put: part.put }
  })
  return {
    fields: () => fields,
    put: (values, start, words) => {
      for (const { name, at, put } of members) put(values[name] as never, start + at, words)
    },
  }
}

/** Groups that are given as a list: the number of each stands behind its names. */
export function list<P extends Parts>(groups: readonly P[]): Part<readonly Values<P>[]> {
  const members = groups.map((parts, i) => group(parts, `${i}`))
  const lengths = members.map(({ fields }) => fields('').length)
  return {
    fields: () => members.flatMap(({ fields }) => fields('')),
    put: (values, start, words) => {
      let at = start
      for (const [i, { put }] of members.entries()) {
        put(values[i], at, words)
        at += lengths[i]
      }
    },
  }
}

/** A part that only some kernels of a family have; to the others its value is nothing. */
export const when = <T>(present: boolean, { fields, put }: Part<T>): Part<T | null | undefined> => ({
  fields: (name) => (present ? fields(name) : []),
  put: (value, at, words) => {
    if (!present) return
    if (value == null) throw new ValueError(`webgpu: a kernel got no value for ${fields('…')[0]}`)
    put(value, at, words)
  },
})

/** Numbers of the call's, which a program has; the value is the place of the first of them among all of the call's. */
export const numbers = (
  params: readonly { readonly source: number; readonly dtype: DType }[],
): Part<number> => ({
  fields: (name) => params.map(({ dtype }, slot) => `${name}_${slot}: ${elements[laneOf(dtype)].item}`),
  put: (first, at, { scalars }) => {
    for (const [slot, { source, dtype }] of params.entries())
      scalars.push({ at: at + slot, source: first + source, dtype })
  },
})
