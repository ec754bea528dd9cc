/** Parameters of kernels: fields and values by name. */

import { ValueError } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import {
  block,
  f32,
  group,
  i32,
  list,
  numbers,
  several,
  u32,
  type ValuesOf,
  when,
} from '../src/wgsl/block.ts'

/** A part as kernels have them: where an operand begins, and its strides. */
const operand = several(
  (name) => ['At', 'Row', 'Step'].map((part) => `${name}${part}: i32`),
  ({ offset, strides }: { offset: number; strides: readonly number[] }) => [offset, ...strides],
)
const x = { offset: 5, strides: [-3, 2] }

describe('a block', () => {
  const params = block({ rows: u32, share: f32, x: operand, low: i32 })

  test('has fields in the order of its declaration', () => {
    expect(params.fields).toEqual([
      'rows: u32',
      'share: f32',
      'xAt: i32',
      'xRow: i32',
      'xStep: i32',
      'low: i32',
    ])
  })

  test('takes values by name, in whatever order they come', () => {
    const { u32, f32, scalars } = params.words({ low: -7, x, share: 0.25, rows: 2 ** 32 - 1 })
    expect([...new Int32Array(u32.buffer)]).toEqual([-1, 0x3e800000, 5, -3, 2, -7])
    expect(f32[1]).toBe(0.25)
    expect(scalars).toEqual([])
  })

  test('takes infinities and NaN where fields are f32, and nothing of a call before', () => {
    const both = block({ a: f32, b: f32 })
    expect([...both.words({ a: -Infinity, b: NaN }).f32]).toEqual([-Infinity, NaN])
    expect([...both.words({ a: 0, b: -0 }).f32]).toEqual([0, -0])
  })

  test('names that are missing, misspelt or too many, and values of another kind, do not compile', () => {
    const take = (_: ValuesOf<typeof params>): void => {}
    const rest = { share: 1, x, low: 0 }
    take({ rows: 1, ...rest })
    // @ts-expect-error rows is missing.
    take(rest)
    // @ts-expect-error rows is misspelt.
    take({ row: 1, ...rest })
    // @ts-expect-error there is no columns.
    take({ rows: 1, columns: 1, ...rest })
    // @ts-expect-error an operand is no number.
    take({ rows: 1, share: 1, x: 5, low: 0 })
    // @ts-expect-error nor is a number an operand.
    take({ rows: x, ...rest })
    // @ts-expect-error rows is undefined.
    take({ rows: undefined, ...rest })
  })
})

test('names that occur twice, as of a group and beside it, are refused', () => {
  expect(() => block({ blocks: u32, options: group({ blocks: i32 }) })).toThrow(ValueError)
})

test('a group is written together, under its own names', () => {
  const params = block({ first: u32, slopes: group({ slopesAt: i32, x: operand }), last: u32 })
  expect(params.fields.map((field) => field.split(':')[0])).toEqual([
    ...['first', 'slopesAt', 'xAt', 'xRow', 'xStep', 'last'],
  ])
  expect([...params.words({ last: 9, slopes: { x, slopesAt: 1 }, first: 8 }).u32]).toEqual([
    ...[8, 1, 5, 2 ** 32 - 3, 2, 9],
  ])
})

test('groups of a list have their numbers behind the names', () => {
  const params = block({ base: u32, calls: list([{ end: u32 }, { end: u32, x: operand }]) })
  expect(params.fields.map((field) => field.split(':')[0])).toEqual([
    ...['base', 'end0', 'end1', 'x1At', 'x1Row', 'x1Step'],
  ])
  const { u32: words } = params.words({ base: 1, calls: [{ end: 2 }, { end: 3, x }] })
  expect([...words]).toEqual([1, 2, 3, 5, 2 ** 32 - 3, 2])
})

test('what only some kernels have takes no words in others', () => {
  const params = (masked: boolean) => block({ rows: u32, mask: when(masked, operand), keys: u32 })
  expect([...params(true).words({ rows: 1, mask: x, keys: 2 }).u32]).toEqual([1, 5, 2 ** 32 - 3, 2, 2])
  for (const mask of [x, null, undefined])
    expect([...params(false).words({ rows: 1, mask, keys: 2 }).u32]).toEqual([1, 2])
  for (const mask of [null, undefined])
    expect(() => params(true).words({ rows: 1, mask, keys: 2 })).toThrow(ValueError)
  const take = (_: ValuesOf<typeof params>): void => {}
  // @ts-expect-error it must be said that there is none.
  take({ rows: 1, keys: 2 })
})

test("a call's numbers are told by their places", () => {
  const program = [
    { source: 2, dtype: 'float32' },
    { source: 0, dtype: 'bool' },
  ] as const
  const params = block({ count: u32, a: numbers(program), b: numbers(program) })
  expect(params.fields).toEqual(['count: u32', 'a_0: f32', 'a_1: u32', 'b_0: f32', 'b_1: u32'])
  const { u32: words, scalars } = params.words({ count: 7, a: 0, b: 3 })
  expect([...words]).toEqual([7, 0, 0, 0, 0])
  expect(scalars).toEqual([
    { at: 1, source: 2, dtype: 'float32' },
    { at: 2, source: 0, dtype: 'bool' },
    { at: 3, source: 5, dtype: 'float32' },
    { at: 4, source: 3, dtype: 'bool' },
  ])
})
