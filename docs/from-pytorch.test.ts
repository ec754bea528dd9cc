/** docs/from-pytorch.md tells what the library answers, and the code that it gives in place of a name compiles. */
import * as data from '@tilegrad/data'
import * as tilegrad from 'tilegrad'
import { expect, test } from 'vitest'
import { pageWith, tables } from '../scripts/from-pytorch.mjs'
import { elsewhere } from '../scripts/torch-names.mjs'
import { typeErrors } from './support/examples.ts'

test('the page is what the library answers: run node scripts/from-pytorch.mjs after a build', () => {
  const { before, after } = pageWith(tilegrad, data)
  expect(before).toBe(after)
})

test('a name that went, and that nobody wrote why, is found', () => {
  const { Linear, ...rest } = tilegrad
  expect(Linear).toBeDefined()
  expect(() => tables(rest, data)).toThrow(/^torch.nn.Linear is not here/)
})

test('nothing is told in place of names that are there by now', () => {
  expect(tables(tilegrad, data).unused).toEqual([])
})

test('a name that means something else here is not counted as there', () => {
  const { text } = tables(tilegrad, data)
  const own = (space: string) => text.split(`### ${space}\n`)[1]?.match(/\d+ under their own name.*/)?.[0]
  expect(own('torch')).toContain('`multinomial`')
  expect(own('torch')).not.toContain('`gradient`')
  expect(own('torch.func')).not.toContain('`grad`')
})

test('most of the names that are met are there under their own', () => {
  const { there, renamed, written, out } = tables(tilegrad, data).count
  expect(there).toBeGreaterThan(700)
  expect(there / (there + renamed + written + out)).toBeGreaterThan(0.5)
})

/** What the code in place of names is about. */
const about = `
declare const x: Tensor, y: Tensor, a: Tensor, b: Tensor, v: Tensor, w: Tensor, p: Tensor, index: Tensor, values: Tensor
declare const dim: number, k: number, n: number, value: number, mean: number, std: number
declare const shape: readonly number[], sizes: readonly number[], array: number[], typedArray: Float32Array
declare const model: Module, params: Tensor[], dataset: TensorDataset
declare const fn: (x: Tensor) => Tensor, hook: (g: Tensor) => void
`
const declared = new Set(about.match(/\w+(?=: )/g))

test('what is to be written in place of a name compiles', () => {
  const rows = Object.entries(elsewhere).map(([names, here]) => {
    const code = [...here.matchAll(/(the type )?`([^`]*)`/g)].map(([, type, code = '']) =>
      type ? `export type _${code} = ${code}` : `void (${code})`,
    )
    // Neither what follows a dot, nor text.
    const used = new Set(
      code
        .join('\n')
        .replace(/(?<!\.\.)\.\w+|'[^']*'/g, '')
        .match(/\b[A-Za-z]\w*/g),
    )
    for (const name of declared) used.delete(name)
    for (const name of ['Tensor', 'Module', 'TensorDataset']) used.add(name)
    const types = ['DType', 'Dataset', 'IterableDataset', 'Sampler']
    const from = (names: object, more: readonly string[]) =>
      [...used].filter((name) => name in names || more.includes(name)).join(', ')
    const imports = `import { ${from(tilegrad, types.slice(0, 1))} } from 'tilegrad'
import { ${from(data, types.slice(1))} } from '@tilegrad/data'`
    return { where: names, code: `${imports}\n${about}${code.join('\n')}\nexport {}\n` }
  })
  expect(rows.length).toBeGreaterThan(100)
  const errors = [...typeErrors(rows)].filter(([, found]) => found.length > 0)
  expect(Object.fromEntries(errors)).toEqual({})
})
