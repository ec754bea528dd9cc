/** What needs a process of its own: exiting with workers alive, V8 flags, bundling for browsers. */
import { spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { afterAll, beforeAll, expect, test } from 'vitest'

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))
let folder = ''

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tilegrad-'))
  const result = await build({
    stdin: {
      contents: `
        export * from './machine/features.ts'
        export * from './machine/heap.ts'
        export * from './machine/pool.ts'
        export * from './wasm/index.ts'`,
      resolveDir: here('../src'),
    },
    alias: { '@tilegrad/core': here('../../core/test/support/basics.ts') },
    bundle: true,
    format: 'esm',
    // A browser build fails on any import of a Node module.
    platform: 'browser',
    write: false,
  })
  await writeFile(join(folder, 'pool.mjs'), result.outputFiles[0].contents)
})
afterAll(() => rm(folder, { recursive: true }))

const prologue = `
  import { detectFeatures, Heap, Pool, ModuleBuilder, f32x4, v128 } from './pool.mjs'
  const features = detectFeatures({ threads: 4 })
  const heap = new Heap({ shared: features.shared })
  const pool = new Pool(heap, features)
  const m = new ModuleBuilder(features)
  m.kernel('main', (f, start, end, params) => f.store(params, f32x4.madd(v128.load(params), v128.load(params), 1)))
  const kernel = pool.compile(m.build(), 'main')
  const params = heap.alloc(64)
  const use = () => pool.run(kernel, 1000, 1, params)
`

// How long an end takes depends on how busy the machine is; what could put it off is a timer.
const epilogue = `console.log(process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length, 'timers')`
const idle = '0 timers\n'

/** Runs a program in a new process: exit code, and what it prints; at last how many timers it waits for. */
async function run(program: string, env: Record<string, string> = {}) {
  const file = join(folder, `${Math.random().toString(36).slice(2)}.mjs`)
  await writeFile(file, `${prologue}${program}\n${epilogue}`)
  const child = spawn(process.execPath, [file], { env: { ...process.env, ...env } })
  let output = ''
  child.stdout.on('data', (data) => {
    output += data
  })
  child.stderr.on('data', (data) => {
    output += data
  })
  // Only to end what hangs.
  const timer = setTimeout(() => child.kill('SIGKILL'), 240_000)
  const code = await new Promise((resolve) => child.on('close', resolve))
  clearTimeout(timer)
  return { code, output }
}

test.each([
  ['sleeping workers', 'await pool.ready(); use(); await new Promise((r) => setTimeout(r, 100))'],
  ['spinning workers', 'await pool.ready(); for (let i = 0; i < 1000; i++) use()'],
  ['workers that are starting', 'use()'],
  ['workers that nobody used', ''],
  ['closed workers', 'await pool.ready(); use(); await pool.close()'],
])('a process ends by itself: %s', async (_, program) => {
  const { code, output } = await run(program)
  expect(output).toBe(idle)
  expect(code).toBe(0)
})

test('TILEGRAD_WASM_FLAGS=off leaves the flags of V8 alone', async () => {
  const program = `console.log(detectFeatures({ level: 'relaxed' }).level, features.level); use()`
  const off = await run(program, { TILEGRAD_WASM_FLAGS: 'off' })
  const on = await run(program, { TILEGRAD_WASM_FLAGS: '' })
  const major = Number.parseInt(process.versions.node, 10)
  const revectorized = major >= 24 && process.arch === 'x64' ? 'revectorized' : 'relaxed'
  expect(on.output).toContain(`relaxed ${revectorized}\n`)
  expect(off.output).toContain(major >= 22 ? 'relaxed relaxed\n' : 'simd simd\n')
  expect([on.code, off.code]).toEqual([0, 0])
})

test('workers may be forbidden: the caller works alone', async () => {
  const flag = Number.parseInt(process.versions.node, 10) >= 24 ? '--permission' : '--experimental-permission'
  const program = `
    use()
    await pool.ready().then(() => console.log('started'), (error) => console.log(error.code))`
  const { code, output } = await run(program, { NODE_OPTIONS: `${flag} --allow-fs-read=*` })
  expect(output).toContain('ERR_ACCESS_DENIED')
  expect(code).toBe(0)
})

test('a program whose event loop stands still while workers start: slow chunks on a worker are no death', async () => {
  // Each row keeps a thread busy well beyond the patience with which the caller looks for dead workers.
  const { output } = await run(`
    const slow = new ModuleBuilder(features)
    slow.kernel('slow', (f, start, end) => f.for(start, end, 1, () => f.for(0, 5_000_000, 1, () => f.atomicFence())))
    const rows = pool.compile(slow.build(), 'slow')
    await new Promise((resolve) => setTimeout(resolve, 1))
    const began = Date.now()
    while (Date.now() - began < 3000) pool.run(rows, 5, 1, params)
  `)
  expect(output).toBe(idle)
})
