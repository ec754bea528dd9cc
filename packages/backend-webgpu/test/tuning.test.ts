/** What is measured of a GPU, and what the plan of matrix products makes of it. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import type { Engine } from '../src/commands/queue.ts'
import type { Gpu } from '../src/device/gpu.ts'
import { software, type TileKind, type Tuning, untuned } from '../src/device/tuning.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { kinds, planOf } from '../src/kernels/matmul/plan.ts'
import type { Matrix, Problem } from '../src/kernels/matmul/problem.ts'
import { tune, tuningOf } from '../src/kernels/matmul/tuning.ts'

const folder = mkdtempSync(join(tmpdir(), 'tilegrad-'))
vi.stubEnv('XDG_CACHE_HOME', folder)
vi.stubEnv('LOCALAPPDATA', folder)
vi.stubEnv('HOME', folder)
afterAll(() => {
  vi.unstubAllEnvs()
  rmSync(folder, { recursive: true })
})

const { gpu, engine } = await createWebGpuBackend()

it('is not done on software adapters', () => {
  expect(gpu.isSoftware).toBe(true)
  expect(engine.tuning).toBe(software)
})

it('counts cores and finds tiles of no use', async () => {
  const good = { bm: 32, bn: 32, bk: 16, tm: 4, tn: 4, slices: 1 }
  // One thread per workgroup, which reads as much as it multiplies.
  const bad = { ...good, bm: 4, bn: 4, bk: 4 }
  // Software's times are the machine's, which may be busy: where they make no sense, they are taken again.
  const measure = async (left: number): Promise<Tuning> => {
    try {
      return await tune(gpu, { middle: bad, small: good })
    } catch (error) {
      if (left === 0 || !`${error}`.includes('the times make no sense')) throw error
      return measure(left - 1)
    }
  }
  const { cores, slow } = await measure(10)
  expect(cores).toBeGreaterThanOrEqual(4)
  expect(cores % 4).toBe(0)
  expect(slow).toEqual(['middle'])
})

const files = (): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))

describe('the tuning of a GPU', () => {
  const other = (description: string): Gpu => ({ ...gpu, limits: gpu.limits, info: { description } }) as Gpu
  const found: Tuning = { cores: 20, slow: ['large'] }
  it('is measured once, also for devices that are opened together or later', async () => {
    let count = 0
    const measure = async (): Promise<Tuning> => {
      count++
      return found
    }
    const both = await Promise.all([tuningOf(other('one'), measure), tuningOf(other('one'), measure)])
    expect([...both, await tuningOf(other('one'), measure)]).toEqual([found, found, found])
    expect(count).toBe(1)
    await tuningOf(other('another'), measure)
    expect(count).toBe(2)
  })
  it('is that of an H100 where measuring fails, which is told and tried again', async () => {
    const errors: string[] = []
    const broken = {
      ...other('broken'),
      adapterName: 'acme',
      onError: (message: string) => errors.push(message),
    }
    expect(await tuningOf(broken, () => Promise.reject(new Error('it was busy')))).toEqual(untuned)
    expect(errors).toEqual(['measuring acme failed, plans are those of an H100: it was busy'])
    expect(await tuningOf(broken, async () => found)).toEqual(found)
  })
  it('outlasts the process, unless its file is broken or cannot be written', async () => {
    const later = async (measured: Tuning): Promise<Tuning> => {
      vi.resetModules()
      const again = await import('../src/kernels/matmul/tuning.ts')
      return again.tuningOf(other('lasting'), async () => measured)
    }
    const first: Tuning = { ...found, matrices: { wide: 1.25 } }
    const second: Tuning = { cores: 8, slow: [] }
    const others = new Set(files())
    expect(await later(first)).toEqual(first)
    expect(await later(second)).toEqual(first)
    const [file] = files().filter((name) => !others.has(name)) as [string]
    for (const text of [
      '{"cores": 1',
      'null',
      '{"cores":"8","slow":[]}',
      '{"cores":8,"slow":["huge"]}',
      '{"cores":8,"slow":[],"matrices":{"huge":1}}',
      '{"cores":8,"slow":[],"matrices":{"wide":-1}}',
    ]) {
      writeFileSync(file, text)
      expect(await later(second)).toEqual(second)
      expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(second)
    }
    rmSync(folder, { recursive: true })
    writeFileSync(folder, 'no folder')
    expect(await later(first)).toEqual(first)
  })
})

describe('the plan', () => {
  const matrix = (row: number): Matrix => ({ offset: 0, row, column: 1, batch: [] }) as unknown as Matrix
  const plan = (size: number, cores: number, slow: readonly TileKind[] = []) => {
    const [a, b] = [matrix(size), matrix(size)]
    const p: Problem = {
      m: size,
      n: size,
      k: 512,
      items: 1,
      sizes: [],
      type: 'f32',
      a,
      b,
      outs: [],
      extras: [],
    }
    const { tile, splits } = planOf({ gpu, tuning: { cores, slow } } as unknown as Engine, p, true)
    return [Object.entries(kinds).find(([, other]) => other === tile)?.[0], splits]
  }
  it('takes large tiles where they keep all cores busy', () => {
    expect(plan(512, 132)).toEqual(['small', 1])
    expect(plan(512, 32)).toEqual(['middle', 1])
    expect(plan(512, 8)).toEqual(['large', 1])
  })
  it('leaves out what is slow', () => {
    expect(plan(4096, 132)).toEqual(['large', 1])
    expect(plan(4096, 132, ['large'])).toEqual(['broad', 1])
    expect(plan(4096, 132, ['large', 'broad'])).toEqual(['middle', 1])
    expect(plan(4096, 132, ['large', 'broad', 'middle'])).toEqual(['small', 1])
  })
})
