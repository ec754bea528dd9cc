/** Loops over several operands, against walking every element by its coordinates. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { tensor } from '../src/index.ts'
import { collapse, denseFrom, leadOf, stridesOver, viewOf } from '../src/kernel.ts'
import type { Layout } from '../src/tensor/layout.ts'

/** The offsets of all elements in row-major order, by their coordinates. */
function walk(sizes: readonly number[], strides: readonly number[]): number[] {
  let offsets = [0]
  for (let d = 0; d < sizes.length; d++)
    offsets = offsets.flatMap((at) => Array.from({ length: sizes[d] }, (_, i) => at + i * strides[d] + 0))
  return offsets
}

const sizes = fc.array(fc.constantFrom(0, 1, 1, 2, 3, 4), { maxLength: 5 })
const filled = fc.array(fc.constantFrom(1, 1, 2, 3, 4), { maxLength: 5 })

/** Dense strides, of which some are then made 0, negative or anything: what merges and what does not. */
const stridesOf = (shape: readonly number[]): fc.Arbitrary<number[]> =>
  fc
    .tuple(...shape.map(() => fc.constantFrom('dense', 'dense', 'dense', 'zero', 'turned', 'odd')))
    .map((kinds) => {
      let step = 1
      return shape
        .map((_, d) => shape.length - 1 - d)
        .reduce<number[]>((out, d) => {
          const kind = kinds[d]
          out[d] = kind === 'zero' ? 0 : kind === 'turned' ? -step : kind === 'odd' ? step + 5 : step
          step *= Math.max(1, shape[d])
          return out
        }, new Array<number>(shape.length).fill(0))
    })

const operands = (shapes: fc.Arbitrary<number[]>) =>
  shapes.chain((shape) =>
    fc.tuple(fc.constant(shape), fc.array(stridesOf(shape), { minLength: 1, maxLength: 3 })),
  )

describe('collapse', () => {
  test('walks every operand as before, in the same order', () => {
    fc.assert(
      fc.property(operands(sizes), ([shape, strides]) => {
        const nest = collapse(shape, strides)
        expect(nest.strides).toHaveLength(strides.length)
        for (const [i, own] of strides.entries())
          expect(walk(nest.sizes, nest.strides[i])).toEqual(walk(shape, own))
      }),
    )
  })

  test('leaves no dim of size 1, and no two neighbours that could be one', () => {
    fc.assert(
      fc.property(operands(filled), ([shape, strides]) => {
        const nest = collapse(shape, strides)
        expect(nest.sizes).not.toContain(1)
        for (let d = 1; d < nest.sizes.length; d++)
          expect(nest.strides.every((own) => own[d - 1] === own[d] * nest.sizes[d])).toBe(false)
      }),
    )
  })

  test('merges what is dense in all operands, and stops where one of them is not', () => {
    expect(collapse([2, 3, 4], [[12, 4, 1]])).toEqual({ sizes: [24], strides: [[1]] })
    const transposed = collapse([2, 3, 4], [[12, 4, 1], [1, 2, 6]]) // biome-ignore format: operands side by side
    expect(transposed.sizes).toEqual([2, 3, 4])
    expect(
      collapse(
        [2, 3, 4],
        [
          [-12, -4, -1],
          [0, 0, 0],
        ],
      ),
    ).toEqual({ sizes: [24], strides: [[-1], [0]] })
    expect(collapse([1, 1], [[7, 9]])).toEqual({ sizes: [], strides: [[]] })
    expect(collapse([], [[], []])).toEqual({ sizes: [], strides: [[], []] })
  })
})

test('stridesOver repeats what a layout does not have', () => {
  fc.assert(
    fc.property(
      operands(filled),
      fc.array(fc.constantFrom(1, 2, 3), { maxLength: 2 }),
      fc.infiniteStream(fc.boolean()),
      ([shape, [strides]], outer, repeats) => {
        // Of the target some dims are repeated: there the layout has size 1.
        const own = shape.map((n) => (repeats.next().value ? 1 : n))
        const layout: Layout = { shape: own, strides, offset: 0 }
        const target = [...outer, ...shape]
        const at = own.map((n, d) => (n === 1 ? 0 : strides[d]))
        const inner = walk(shape, at)
        const times = outer.reduce<number>((n, size) => n * size, 1)
        expect(walk(target, stridesOver(layout, target))).toEqual(
          Array.from({ length: times }, () => inner).flat(),
        )
      },
    ),
  )
})

test('denseFrom tells whether the trailing dims are elements one after another', () => {
  fc.assert(
    fc.property(operands(filled), fc.nat(5), ([shape, [strides]], at) => {
      const lead = Math.min(at, shape.length)
      const offsets = walk(shape.slice(lead), strides.slice(lead))
      expect(denseFrom(lead, { shape, strides, offset: 3 })).toBe(offsets.every((o, i) => o === i))
    }),
  )
})

test('leadOf counts the dims before the trailing ones of a size', () => {
  expect(leadOf({ shape: [2, 3, 4], strides: [12, 4, 1], offset: 0 }, 4)).toBe(2)
  expect(leadOf({ shape: [2, 3, 4], strides: [12, 4, 1], offset: 0 }, 12)).toBe(1)
  expect(leadOf({ shape: [2, 3, 4], strides: [12, 4, 1], offset: 0 }, 1)).toBe(3)
  expect(leadOf({ shape: [4], strides: [1], offset: 0 }, 4)).toBe(0)
})

test('viewOf keeps the memory and the dtype of a tensor', () => {
  const x = tensor([[1, 2, 3, 4]], [2, 2]).narrow(0, 1, 1)
  const view = viewOf(x, [2], [1])
  expect(view).toEqual({ buffer: x.buffer, dtype: 'float32', shape: [2], strides: [1], offset: 2 })
  expect(viewOf(x, [1], [0], 5).offset).toBe(5)
})
