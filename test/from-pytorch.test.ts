import * as data from '@tilegrad/data'
import * as tilegrad from 'tilegrad'
import { expect, test } from 'vitest'
import { pageWith, tables } from '../scripts/from-pytorch.mjs'

test('docs/from-pytorch.md is what the library answers: run node scripts/from-pytorch.mjs after a build', () => {
  const { before, after } = pageWith(tilegrad, data)
  expect(before).toBe(after)
})

test('a name that went, and that nobody wrote why, is found', () => {
  const { Linear, ...rest } = tilegrad
  expect(Linear).toBeDefined()
  expect(() => tables(rest, data)).toThrow(/^torch.nn.Linear is not here/)
})

test('most of the names that are met are there under their own', () => {
  const { there, other, out } = tables(tilegrad, data).count
  expect(there).toBeGreaterThan(700)
  expect(there / (there + other + out)).toBeGreaterThan(0.5)
})
