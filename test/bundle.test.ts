/** What users' bundlers make of the packages as they are built. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import { expect, test } from 'vitest'
import { bundled } from '../scripts/bundled.mjs'

const here = fileURLToPath(new URL('.', import.meta.url))
const gzip = (files: readonly Uint8Array[]): number =>
  files.reduce((sum, file) => sum + gzipSync(file, { level: 9 }).length, 0)
const text = (files: readonly Uint8Array[]): string =>
  files.map((file) => new TextDecoder().decode(file)).join('\n')

const line = `import { tensor } from 'tilegrad'; console.log(tensor([1, 2, 3]).mul(2).dataSync().join())`

test('a program of one line takes at most 100 kB until it asks for a GPU', async () => {
  const { first, all } = await bundled(line, here)
  expect(gzip(first)).toBeLessThan(100_000)
  // The engine for GPUs is there, in a file of its own.
  expect(text(first)).not.toContain('@compute')
  expect(text(all)).toContain('@compute')
})

test('the bundle of a program of one line runs', async () => {
  const { first } = await bundled(line.replace('tilegrad', '@tilegrad/core'), here)
  const folder = mkdtempSync(join(tmpdir(), 'tilegrad-bundle-'))
  try {
    const file = join(folder, 'program.mjs')
    writeFileSync(file, text(first))
    expect(spawnSync(process.execPath, [file], { encoding: 'utf8' }).stdout).toBe('2,4,6\n')
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('methods of modules that a bundle leaves out say what to import, and come with it', async () => {
  const run = async (program: string): Promise<string> => {
    const { first } = await bundled(program, here)
    const folder = mkdtempSync(join(tmpdir(), 'tilegrad-bundle-'))
    try {
      const file = join(folder, 'program.mjs')
      writeFileSync(file, text(first))
      return spawnSync(process.execPath, [file], { encoding: 'utf8' }).stdout
    } finally {
      rmSync(folder, { recursive: true })
    }
  }
  const program = (more: string): string => `import { tensor } from '@tilegrad/core'; ${more}
    try { console.log(tensor([1, 3, 2]).max().dataSync().join()) } catch (error) { console.log(error.message) }`
  expect(await run(program(''))).toMatch(/^max: .*import 'tilegrad\/methods'/)
  expect(await run(program(`import '@tilegrad/core/methods'`))).toBe('3\n')
  expect(await run(program(`import { Linear } from '@tilegrad/nn'; console.log(typeof Linear)`))).toBe(
    'function\n3\n',
  )
  expect(await run(program(`import { median } from '@tilegrad/core'; console.log(typeof median)`))).toBe(
    'function\n3\n',
  )
})

test('a bundle for Node, where the engine is a file that is loaded at first use, is whole and runs', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'tilegrad-bundle-'))
  try {
    const file = join(folder, 'program.mjs')
    await build({
      stdin: { contents: line, resolveDir: here },
      outfile: file,
      bundle: true,
      format: 'esm',
      platform: 'node',
      external: ['webgpu'],
      logLevel: 'error',
      banner: {
        js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url)",
      },
    })
    expect(spawnSync(process.execPath, [file], { encoding: 'utf8' }).stdout).toBe('2,4,6\n')
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('the CPU engine is loaded by the first operator, not before', () => {
  const program = `
    import { createRequire } from 'node:module'
    import { tensor } from 'tilegrad'
    const loaded = () => Object.keys(createRequire(import.meta.url).cache).filter((file) => /engine\\.cjs$/.test(file)).length
    const before = loaded()
    console.log(tensor([1, 2, 3]).mul(2).dataSync().join(), before, loaded())
    process.exit()`
  const args = ['--input-type=module', '-e', program]
  const { stdout, stderr } = spawnSync(process.execPath, args, { cwd: here, encoding: 'utf8' })
  expect([stdout, stderr]).toEqual(['2,4,6 0 1\n', ''])
})

test('layers are not bundled for a program that has none', async () => {
  const model = `import { GPT } from 'tilegrad'; console.log(GPT)`
  expect(text((await bundled(model, here)).first)).toContain('lm_head')
  expect(text((await bundled(line, here)).first)).not.toContain('lm_head')
})

test('what Node loads is one file for each package, with the names of the sources', () => {
  const program = `
    import { checkLeaks, LeakError, Linear, Module, ShapeError, Tensor, zeros } from 'tilegrad'
    import { elementwise } from '@tilegrad/core/formula'
    console.log([Linear, Module, ShapeError, Tensor].map(({ name }) => name).join())
    console.log(elementwise('x + 1')(zeros([1])) instanceof Tensor)
    console.log(['core', 'backend-cpu', 'nn'].map((name) => import.meta.resolve('@tilegrad/' + name).split('/dist/')[1]).join())
    const user = () => void zeros([1]).mul(2)
    try { checkLeaks(user) } catch (error) {
      console.log(error instanceof LeakError, error.leaks.every(({ origin }) => origin.trim().startsWith('at user')))
    }
    process.exit()`
  const args = ['--input-type=module', '-e', program]
  const { stdout } = spawnSync(process.execPath, args, { cwd: here, encoding: 'utf8' })
  expect(stdout).toBe('Linear,Module,ShapeError,Tensor\ntrue\nindex.js,index.js,index.js\ntrue true\n')
})
