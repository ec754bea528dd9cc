import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { keepIn, prepareFolder, removeDrafts, writeWhole } from '../src/files.ts'

let folder = ''
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'tiny-transformer-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

it('replaces a file only when the new one is whole, and leaves no draft', () => {
  const file = join(folder, 'a.txt')
  writeFileSync(file, 'old')
  writeWhole(file, 'new', () => {
    expect(readFileSync(file, 'utf8')).toBe('old')
    expect(readdirSync(folder)).toHaveLength(2)
  })
  expect(readFileSync(file, 'utf8')).toBe('new')
  expect(readdirSync(folder)).toEqual(['a.txt'])
})

it('leaves the old file and no draft where it fails', () => {
  const file = join(folder, 'a.txt')
  writeFileSync(file, 'old')
  const fail = (): void =>
    writeWhole(file, 'new', () => {
      throw Object.assign(new Error('full'), { code: 'ENOSPC' })
    })
  expect(fail).toThrow(`${file} (3 bytes) cannot be written: no space is left on the device (ENOSPC)`)
  expect(readFileSync(file, 'utf8')).toBe('old')
  expect(readdirSync(folder)).toEqual(['a.txt'])
  mkdirSync(join(folder, 'taken'))
  expect(() => writeWhole(join(folder, 'taken'), 'x')).toThrow(/taken \(1 bytes\) cannot be written/)
  expect(() => writeWhole(join(folder, 'nowhere', 'x'), 'x')).toThrow(/its folder does not exist/)
  expect(readdirSync(folder)).toEqual(['a.txt', 'taken'])
})

it('tidies up the drafts of processes that are no more', () => {
  // No process has this number: the largest on Linux is 2²².
  for (const name of [
    'a.txt.99999999.draft',
    `b.txt.${process.ppid}.draft`,
    `c.${process.pid}.draft`,
    'draft',
  ])
    writeFileSync(join(folder, name), '')
  removeDrafts(folder)
  expect(readdirSync(folder).sort()).toEqual([`b.txt.${process.ppid}.draft`, 'draft'])
})

it('keeps files in a folder inside, in place of what it held', () => {
  for (const name of ['a', 'b']) writeFileSync(join(folder, name), name)
  keepIn(folder, 'kept', ['a', 'missing'])
  expect(readdirSync(join(folder, 'kept'))).toEqual(['a'])
  keepIn(folder, 'kept', ['b'])
  expect(readdirSync(join(folder, 'kept'))).toEqual(['b'])
  writeWhole(join(folder, 'b'), 'new')
  expect(readFileSync(join(folder, 'kept', 'b'), 'utf8')).toBe('b')
  expect(readdirSync(folder).sort()).toEqual(['a', 'b', 'kept'])
})

it('makes folders in folders, and says what is in the way', () => {
  prepareFolder(join(folder, 'x', 'y'))
  expect(readdirSync(join(folder, 'x', 'y'))).toEqual([])
  writeFileSync(join(folder, 'file'), '')
  expect(() => prepareFolder(join(folder, 'file'))).toThrow(/--out .*file: cannot write there: .*no folder/)
  expect(() => prepareFolder(join(folder, 'file', 'below'))).toThrow(/cannot write there/)
  // Node's own way to make folders never returns from this one.
  if (existsSync('/proc')) expect(() => prepareFolder('/proc/nothing')).toThrow(/cannot write there/)
})
