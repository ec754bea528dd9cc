import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as formula from '@tilegrad/core/formula'
import { transform } from 'esbuild'
import * as tilegrad from 'tilegrad'
import { describe, expect, it } from 'vitest'

/**
 * Runs every code example: the ts blocks of README.md and the guides (a page's blocks one after the other, as a reader
 * would), and the `@example` of every docstring. An import of tilegrad's packages is taken as said; a comment
 * `// → text` behind an expression statement asserts what `String(value)` of it, awaited, is.
 */
const root = fileURLToPath(new URL('..', import.meta.url))
const names = { ...tilegrad, formula: formula.elementwise }

interface Example {
  where: string
  code: string
}

const pages = [
  'README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((f) => f.endsWith('.md'))
    .map((f) => `docs/${f}`),
]

function fromPage(file: string): Example[] {
  const blocks = [...readFileSync(join(root, file), 'utf8').matchAll(/```ts\n([\s\S]*?)```/g)].map(
    (m) => m[1] ?? '',
  )
  return blocks.length > 0 ? [{ where: file, code: blocks.join('\n') }] : []
}

function fromSource(file: string): Example[] {
  const text = readFileSync(file, 'utf8')
  return [...text.matchAll(/^ *\* @example\n((?: *\* ?.*\n)*?) *(?:\*\/|\* @)/gm)].map((m) => ({
    where: `${relative(root, file)}:${text.slice(0, m.index).split('\n').length}`,
    code: (m[1] ?? '').replace(/^ *\* ?/gm, '').replace(/^```.*$/gm, ''),
  }))
}

const sources = readdirSync(join(root, 'packages'), { recursive: true, encoding: 'utf8' })
  .filter((f) => /^[\w-]+\/src\/.*\.ts$/.test(f))
  .map((f) => join(root, 'packages', f))

async function run(code: string): Promise<string[]> {
  const asserted = code
    .replace(/^import\b[^\n]*from '(?:tilegrad|@tilegrad\/[\w/-]+)'$/gm, '')
    .replace(
      /^(?!\s*(?:const|let|var|\/\/))(.+?);?\s*\/\/ → (.+)$/gm,
      (_, value: string, text: string) => `same(await (${value}), ${JSON.stringify(text.trim())})`,
    )
  const { code: js } = await transform(`async function example() {\n${asserted}\n}`, {
    loader: 'ts',
    target: 'es2022',
  })
  const seen: string[] = []
  const console_ = { ...console, log: () => {} }
  const same = (value: unknown, text: string): void => {
    seen.push(text)
    expect(String(value)).toBe(text)
  }
  const known = { ...names, elementwise: formula.elementwise, console: console_, same }
  await new Function(...Object.keys(known).filter((n) => n !== 'var'), `${js}\nreturn example()`)(
    ...Object.entries(known)
      .filter(([n]) => n !== 'var')
      .map(([, v]) => v),
  )
  return seen
}

describe('examples run', () => {
  const all = [...pages.flatMap(fromPage), ...sources.flatMap(fromSource)]
  it('there are some', () => expect(all.length).toBeGreaterThan(5))
  for (const { where, code } of all) it(where, () => run(code))
})
