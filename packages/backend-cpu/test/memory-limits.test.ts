/** Sizes past the limit, however large, are refused with a typed error, and leave memory and its counters as they were. */
import * as core from '@tilegrad/core'
import { OutOfMemoryError, ShapeError, type Tensor, TilegradError } from '@tilegrad/core'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { type CpuBackend, createCpuBackend } from '../src/index.ts'
import { Heap } from '../src/machine/heap.ts'
import { PageRuns } from '../src/machine/page-runs.ts'

/** Numbers in [0, 1) that repeat with the seed (the multiplier is Knuth's MMIX). */
function random(seed: number): () => number {
  let state = BigInt(seed)
  return () => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n)
    return Number(state >> 11n) / 2 ** 53
  }
}

/** Around every power of two from 2²⁰ to 2⁶³, where numbers of pages or bytes may wrap. */
const large = Array.from({ length: 44 }, (_, i) => 2 ** (20 + i)).flatMap((n) => [
  n - 1,
  n,
  n + 1,
  n + 8192,
  n + 2 ** 20,
  1.5 * n,
])

describe('the allocator', () => {
  test.each([...large, 1e300, Number.MAX_VALUE, Number.POSITIVE_INFINITY])('refuses %d bytes', (bytes) => {
    const heap = new Heap({ initialBytes: 65536, maxBytes: 2 ** 20 })
    const kept = heap.alloc(5000)
    heap.u8.fill(7, kept, kept + 5000)
    const before = heap.stats()
    if (bytes >= 2 ** 20 - 65536) expect(() => heap.alloc(bytes)).toThrow(OutOfMemoryError)
    expect(heap.stats()).toEqual(before)
    expect(heap.view(kept, Uint8Array, 5000).every((x) => x === 7)).toBe(true)
  })

  test('finds no run for lengths that are none', () => {
    const runs = new PageRuns(100)
    for (const length of [0, -1, 100, 101, 2 ** 20, 2 ** 31, 2 ** 32 + 1, 2 ** 53, 1e300, Number.NaN])
      expect(runs.take(length)).toBe(-1)
    expect([runs.free(), runs.largest()]).toEqual([99, 99])
    expect(runs.take(99)).toBe(1)
    expect([runs.free(), runs.largest()]).toEqual([0, 0])
  })

  test.each([1, 2, 3])('knows what is free and the longest run of it, seed %i', (seed) => {
    const next = random(seed)
    const pages = 400
    const runs = new PageRuns(pages)
    const taken = new Uint8Array(pages).fill(1, 0, 1)
    const live: { page: number; length: number }[] = []
    for (let round = 0; round < 3000; round++) {
      if (live.length === 0 || next() < 0.55) {
        // One in ten is absurd.
        const length = next() < 0.1 ? Math.floor(2 ** (32 + 20 * next())) : 1 + Math.floor(next() * 40)
        const page = runs.take(length)
        if (page >= 0) {
          expect(taken.subarray(page, page + length).every((t) => t === 0)).toBe(true)
          taken.fill(1, page, page + length)
          live.push({ page, length })
        }
      } else {
        const [{ page, length }] = live.splice(Math.floor(next() * live.length), 1)
        runs.release(page)
        taken.fill(0, page, page + length)
      }
      const free = taken
        .join('')
        .split('1')
        .map((zeros) => zeros.length)
      expect(runs.free()).toBe(free.reduce((a, b) => a + b))
      expect(runs.largest()).toBe(Math.max(...free))
    }
  })

  test('names fragmentation where enough is free, but not in one piece', () => {
    const heap = new Heap({ initialBytes: 65536, maxBytes: 2 ** 24 })
    const blocks = Array.from({ length: 15 }, () => heap.alloc(2 ** 20))
    blocks.forEach((ptr, i) => {
      if (i % 2 === 0) heap.free(ptr)
    })
    // Eight pieces of 1 MiB, the last of them joined with what has never been used.
    expect(() => heap.alloc(2 ** 22)).toThrow(
      /4\.0 MiB asked for, but 7\.0 MiB of at most 16\.0 MiB are in use, and the 9\.0 MiB that are free lie in pieces of at most 2\.0 MiB \(fragmentation\); free tensors/,
    )
    // Too much in any case: no word of pieces.
    expect(() => heap.alloc(2 ** 23 + 2 ** 21)).toThrow(/16\.0 MiB are in use; free tensors/)
    heap.free(heap.alloc(2 ** 21 - 8192))
  })

  test('scratch memory that could not be had is asked for again', () => {
    const backend = createCpuBackend({ threads: 1, maxBytes: 2 ** 22 })
    const { engine } = backend
    const { liveBytes } = backend.stats()
    for (let i = 0; i < 3; i++) {
      engine.scratch(2 ** (16 + i))
      expect(() => engine.scratch(2 ** 23)).toThrow(OutOfMemoryError)
      expect(backend.stats().liveBytes).toBe(liveBytes)
    }
    expect(engine.scratch(1024)).toBeGreaterThan(0)
  })
})

describe.each(['cpu', 'reference'] as const)('%s: tensors past the limit', (device) => {
  let cpu: CpuBackend
  beforeAll(() => {
    cpu = createCpuBackend({ threads: 1, maxBytes: 2 ** 24 })
  })
  afterAll(() => cpu.close())

  const one = core.ones([1], { device: 'reference' })
  const expanded = (shape: number[]): Tensor => one.to(device === 'cpu' ? cpu : 'reference').expand(shape)
  const options = () => ({ device: device === 'cpu' ? cpu : 'reference' })
  const makers: Record<string, (n: number) => unknown> = {
    zeros: (n) => core.zeros([n], options()),
    square: (n) => core.zeros([n, n], options()),
    cube: (n) => core.zeros([n, n, n], options()),
    double: (n) => core.zeros([n], { dtype: 'float64', ...options() }),
    integers: (n) => core.zeros([n], { dtype: 'int32', ...options() }),
    bools: (n) => core.zeros([8, n], { dtype: 'bool', ...options() }),
    arange: (n) => core.arange(0, n, 1, { dtype: 'float32', ...options() }),
    linspace: (n) => core.linspace(0, 1, n, options()),
    eye: (n) => core.eye(n, 2, options()),
    randn: (n) => core.randn([n], options()),
    randint: (n) => core.randint(0, 3, [n], options()),
    randperm: (n) => core.randperm(n, options()),
    contiguous: (n) => expanded([2, n]).contiguous(),
    add: (n) => expanded([n]).add(1),
    to: (n) => expanded([n]).to('float64'),
    cat: (n) => core.cat([expanded([n]), expanded([1])], 0),
    pad: (n) => expanded([1]).pad([0, n]),
    matmul: (n) => expanded([n, 1]).matmul(expanded([1, 2])),
    softmax: (n) => expanded([n, 1]).softmax(1),
    sort: (n) => expanded([n]).sort(0),
    cumsum: (n) => expanded([n]).cumsum(0),
    gather: (n) => expanded([1]).gather(0, core.zeros([1], { dtype: 'int32', ...options() }).expand([n])),
    dataSync: (n) => expanded([2, n]).dataSync(),
  }
  // The reference backend has as much as the machine: these no machine has.
  const sizes = [2 ** 42 + 8192, 2 ** 43 + 65536, 2 ** 52 + 1, 2 ** 53, 2 ** 60, 1e300]
  if (device === 'cpu') sizes.push(2 ** 32, 2 ** 32 + 1, 2 ** 41 + 16)
  test.each(Object.entries(makers))('%s', async (_, make) => {
    await collected()
    // What the engine keeps for a kernel, and what checking it takes, is there after the first call.
    core.scope(() => void make(1))
    for (const n of sizes) {
      const before = core.memory()
      const { liveBytes } = cpu.stats()
      let error: unknown
      core.scope(() => {
        try {
          make(n)
        } catch (e) {
          error = e
        }
      })
      expect(error, `${n}`).toBeInstanceOf(TilegradError)
      expect(error instanceof OutOfMemoryError || error instanceof ShapeError, String(error)).toBe(true)
      expect(core.memory().tensors).toBe(before.tensors)
      expect(core.memory().bytes).toBe(before.bytes)
      expect(cpu.stats().liveBytes).toBe(liveBytes)
    }
  })
})

test('no tensor shares memory with one of 2^42 + 8192 elements', () => {
  const cpu = createCpuBackend({ threads: 1 })
  const { liveBytes, limitBytes } = cpu.stats()
  expect(() => core.zeros([2 ** 42 + 8192], { device: cpu })).toThrow(
    'float32 [4398046519296]: memory: 16777216.0 MiB asked for',
  )
  expect(cpu.stats()).toMatchObject({ liveBytes, limitBytes })
  const x = core.ones([1000, 1000], { device: cpu })
  expect(x.sum().itemSync()).toBe(1e6)
})
