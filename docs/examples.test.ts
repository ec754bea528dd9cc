import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { examples, observed, root, shown, typeErrors } from './support/examples.ts'
import { startAnew } from './support/fresh.ts'

/**
 * Runs every example as a reader pastes it: the ts blocks of a page one after the other in one file, and each `@example`
 * of a docstring. A comment `// → text` behind an expression asserts its value, and strict TypeScript has no complaint.
 */
const parent = join(root, '.reports')
mkdirSync(parent, { recursive: true })
const folder = mkdtempSync(join(parent, 'examples-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function seen(value: unknown, text: string): void {
  if (value instanceof Promise) throw new Error(`${text} is the value of a promise; await it`)
  expect([String(value), shown(value)]).toContain(text)
}

let count = 0
async function run(code: string): Promise<void> {
  const file = join(folder, `example-${count++}.ts`)
  writeFileSync(file, observed(code))
  vi.stubGlobal('seen', seen)
  const log = vi.spyOn(console, 'log').mockImplementation(() => {})
  try {
    await import(pathToFileURL(file).href)
  } finally {
    log.mockRestore()
    vi.unstubAllGlobals()
  }
}

it('there are many examples', () => expect(examples.length).toBeGreaterThan(100))

describe('examples run as pasted', () => {
  // Whatever an earlier one has done, or left undone where it failed: each finds what a new process has.
  beforeEach(startAnew)

  for (const { where, code } of examples) it(where, () => run(code))
})

describe('examples type-check', () => {
  const errors = typeErrors(examples)
  for (const { where } of examples) it(where, () => expect(errors.get(where)).toEqual([]))
})
