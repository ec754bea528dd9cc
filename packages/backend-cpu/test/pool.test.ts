/** The thread pool: every row once, errors reach the caller, dead workers are noticed, nothing keeps a process up. */
import { afterEach, describe, expect, test, vi } from 'vitest'
import { WorkerDiedError } from '../src/errors.ts'
import { detectFeatures, type FeatureOptions } from '../src/machine/features.ts'
import { Heap } from '../src/machine/heap.ts'
import { type Kernel, Pool } from '../src/machine/pool.ts'
import { f32, i32, i64, ModuleBuilder } from '../src/wasm/index.ts'

const pools: Pool[] = []
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close()))
})

function start(options: FeatureOptions, heapOptions: { initialBytes?: number } = {}) {
  const features = detectFeatures(options)
  const heap = new Heap({ shared: features.shared, ...heapOptions })
  const pool = new Pool(heap, features)
  pools.push(pool)
  const params = heap.alloc(64)
  const compile = (build: (m: ModuleBuilder) => void): Kernel => {
    const m = new ModuleBuilder(features)
    build(m)
    return pool.compile(m.build(), 'main')
  }
  return { heap, pool, params, compile }
}

/** rows[i] += i, and traps unless `start` is a multiple of the grain; parameters: address, grain. */
const mark = (m: ModuleBuilder) =>
  m.kernel('main', (f, start, end, params) => {
    const rows = f.let(i32.load(params))
    f.if(start.remS(i32.load(params, 4)), () => f.unreachable())
    f.for(start, end, 1, (i) => {
      const at = f.let(rows.add(i.shl(2)))
      f.store(at, i32.load(at).add(i))
    })
  })

/** The sum of rows [start, end) of an i32 array into one f32 per thread; parameters: array, sums. */
const sums = (m: ModuleBuilder) =>
  m.kernel('main', (f, start, end, params, thread) => {
    const rows = f.let(i32.load(params))
    const sum = f.local.f32(0)
    f.for(start, end, 1, (i) => sum.set(sum.add(f32.convertI32S(i32.load(rows.add(i.shl(2)))))))
    f.store(i32.load(params, 4).add(thread.shl(2)), sum)
  })

/**
 * Thread 0 waits until another one has a chunk, too, so that both surely take part; then each does its own.
 * A flag at `params`; gives up by a trap.
 */
const meet = (m: ModuleBuilder, others: (f: Parameters<Parameters<ModuleBuilder['kernel']>[1]>[0]) => void) =>
  m.kernel('main', (f, _start, _end, params, thread) => {
    f.if(
      thread,
      () => {
        f.atomicStore(params, 1)
        others(f)
      },
      () => {
        const turns = f.local.i64(0)
        f.loop((again) => {
          turns.set(turns.add(1))
          f.if(turns.gtS(20_000_000_000n), () => f.unreachable())
          again.brIf(f.atomicLoad(params).eqz())
        })
      },
    )
  })

describe.each([1, 2, 3, 4])('%i threads', (threads) => {
  test.each([true, false])('every row is computed exactly once (workers awaited: %s)', async (wait) => {
    const { heap, pool, params, compile } = start({ threads })
    expect(pool.threads).toBe(threads)
    if (wait) await pool.ready()
    const kernel = compile(mark)
    const rows = heap.alloc(4 * 5000)
    for (const total of [0, 1, 2, 3, 7, 64, 1001, 5000]) {
      for (const grain of [1, 4, 100, 10_000]) {
        const array = heap.view(rows, Int32Array, 5000).fill(0)
        heap.i32[params >> 2] = rows
        heap.i32[(params >> 2) + 1] = grain
        pool.run(kernel, total, grain, params)
        expect(array.every((x, i) => x === (i < total ? i : 0))).toBe(true)
      }
    }
  })

  test('static parts: one call per thread, the same whoever runs them', async () => {
    const { heap, pool, params, compile } = start({ threads })
    const kernel = compile(sums)
    const rows = heap.alloc(4 * 5000)
    const out = heap.alloc(4 * 8)
    heap.view(rows, Int32Array, 5000).forEach((_, i, a) => {
      a[i] = (i * 37) % 101
    })
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = out
    for (const ready of [false, true]) {
      if (ready) await pool.ready()
      for (const total of [0, 1, 2, 3, 7, 1001, 5000]) {
        const got = heap.view(out, Float32Array, 8).fill(-1)
        pool.runStatic(kernel, total, params)
        const part = Math.ceil(total / threads)
        for (let t = 0; t < 8; t++) {
          const own = heap
            .view(rows, Int32Array, 5000)
            .slice(Math.min(t * part, total), Math.min((t + 1) * part, total))
          const want = own.reduce((a, b) => a + b, 0)
          expect(got[t]).toBe(t < threads ? want : -1)
        }
      }
    }
  })

  test('many runs in a row, some while workers sleep', async () => {
    const { heap, pool, params, compile } = start({ threads })
    await pool.ready()
    const kernel = compile(mark)
    const rows = heap.alloc(4 * 300)
    const array = heap.view(rows, Int32Array, 300).fill(0)
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = 1
    let runs = 0
    for (const total = 300; runs < 5000; runs++) {
      pool.run(kernel, total, 1, params)
      if (runs % 500 === 0) await new Promise((resolve) => setTimeout(resolve, 1))
    }
    expect(array.every((x, i) => x === i * runs)).toBe(true)
  })
})

test('workers take part', async () => {
  const { pool, params, compile } = start({ threads: 2 })
  await pool.ready()
  const kernel = compile((m) => meet(m, () => {}))
  // Would trap if thread 0 ran alone.
  pool.run(kernel, 2, 1, params)
})

test('workers find kernels and data in memory that grew after they started', async () => {
  const { heap, pool, params, compile } = start({ threads: 2 }, { initialBytes: 2 ** 17 })
  await pool.ready()
  const { heapBytes } = heap.stats()
  // Uses up what is free below the old end, and the slab that may lie across it.
  while (heap.stats().heapBytes === heapBytes) heap.alloc(64)
  for (let i = 0; i < 1024; i++) heap.alloc(64)
  heap.alloc(2 ** 24)
  const kernel = compile((m) => meet(m, (f) => f.store(params, i32.const(7), 2 ** 24 + 64)))
  expect(kernel.entry).toBeGreaterThan(heapBytes)
  pool.run(kernel, 2, 1, params)
  expect(heap.i32[(params + 2 ** 24 + 64) / 4]).toBe(7)
})

test('several kernels of one module', async () => {
  const { heap, pool, params } = start({ threads: 2 })
  await pool.ready()
  const m = new ModuleBuilder(pool.features)
  for (const [name, value] of [
    ['one', 1],
    ['two', 2],
  ] as const) {
    m.kernel(name, (f, start, end, p) => {
      f.for(start, end, 1, (i) => f.store(p.add(i.shl(2)), i32.const(value)))
    })
  }
  const bytes = m.build()
  const kernels = ['one', 'two'].map((name) => pool.compile(bytes, name))
  for (const [i, kernel] of kernels.entries()) {
    pool.run(kernel, 16, 1, params)
    expect([...heap.view(params, Int32Array, 16)]).toEqual(new Array(16).fill(i + 1))
  }
  expect(() => pool.compile(bytes, 'three')).toThrow('no kernel "three"')
})

describe('errors', () => {
  test('a trap in a worker is an error of the caller, and the pool goes on', async () => {
    const { heap, pool, params, compile } = start({ threads: 3 })
    await pool.ready()
    const kernel = compile((m) => meet(m, (f) => f.store(i32.const(-1), f32.const(0))))
    for (let i = 0; i < 3; i++) {
      heap.i32[params >> 2] = 0
      const run = () => pool.run(kernel, 2, 1, params)
      expect(run).toThrow(WebAssembly.RuntimeError)
      heap.i32[params >> 2] = 0
      expect(run).toThrow(/memory access out of bounds \(kernel "main", thread [12]\)/)
    }
    const good = compile((m) => meet(m, () => {}))
    heap.i32[params >> 2] = 0
    pool.run(good, 2, 1, params)
  })

  test('a trap on the calling thread leaves no work behind', async () => {
    const { heap, pool, params, compile } = start({ threads: 2 })
    await pool.ready()
    const kernel = compile((m) => m.kernel('main', (f) => f.unreachable()))
    for (let i = 0; i < 100; i++) {
      expect(() => pool.run(kernel, 100, 1, params)).toThrow('unreachable')
      expect(() => pool.run(kernel, 1, 1, params)).toThrow('unreachable')
      expect(() => pool.runStatic(kernel, 100, params)).toThrow('unreachable')
    }
    const rows = heap.alloc(400)
    const array = heap.view(rows, Int32Array, 100).fill(0)
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = 1
    pool.run(compile(mark), 100, 1, params)
    expect(array.every((x, i) => x === i)).toBe(true)
  })

  test('long and odd messages arrive', async () => {
    const { heap, pool, params, compile } = start({ threads: 2 })
    await pool.ready()
    // The worker reads bytes that are no module; their text is part of V8's message.
    const kernel = compile((m) => meet(m, () => {}))
    heap.u8.set(new TextEncoder().encode('\u0001"\\é'), heap.u32[kernel.entry >> 2])
    const fn = () => {
      const end = performance.now() + 200
      while (performance.now() < end) {}
    }
    // On a busy machine the worker may come too late for its row, and the caller takes both.
    const runs = () => {
      for (let i = 0; i < 100; i++) pool.run({ ...kernel, fn }, 2, 1, params)
    }
    expect(runs).toThrow(WebAssembly.CompileError)
  })

  test('a grain that is no number of rows', async () => {
    const { pool, params, compile } = start({ threads: 2 })
    await pool.ready()
    const kernel = compile(mark)
    expect(() => pool.run(kernel, 10, 0, params)).toThrow('expected an integer >= 1')
    expect(() => pool.run(kernel, 10, Number.NaN, params)).toThrow('expected an integer >= 1')
  })
})

describe('workers that end', () => {
  const check = ({ heap, pool, params, compile }: ReturnType<typeof start>) => {
    const rows = heap.alloc(4000)
    const array = heap.view(rows, Int32Array, 1000).fill(0)
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = 1
    pool.run(compile(mark), 1000, 1, params)
    expect(array.every((x, i) => x === i)).toBe(true)
  }

  test('before a run: the others do the work', async () => {
    const setup = start({ threads: 3 })
    await setup.pool.ready()
    await setup.pool.workers[0].terminate()
    check(setup)
    await setup.pool.workers[1].terminate()
    check(setup)
  })

  test('with a chunk in its hands: an error at once, and the pool goes on', async () => {
    const setup = start({ threads: 2 })
    const { pool, params, compile, heap } = setup
    await pool.ready()
    const kernel = compile((m) => meet(m, (f) => f.loop((again) => again.br())))
    // Thread 0 runs this in place of the kernel: the event loop stands still, as it does in any run.
    const fn: Kernel['fn'] = (...rows) => {
      kernel.fn(...rows)
      void pool.workers[0].terminate()
    }
    expect(() => pool.run({ ...kernel, fn }, 2, 1, params)).toThrow(WorkerDiedError)
    check(setup)
    // The 'exit' events arrive, and count nobody out twice.
    await new Promise((resolve) => setTimeout(resolve, 50))
    check(setup)
    heap.i32[params >> 2] = 0
  })

  test('one dies while another still computes: the error waits for the living', async () => {
    const { heap, pool, params, compile } = start({ threads: 3 })
    await pool.ready()
    // Threads 1 and 2 count themselves in; thread 1 hangs, thread 2 computes for a while and leaves a mark.
    const kernel = compile((m) =>
      m.kernel('main', (f, _s, _e, p, thread) => {
        f.atomicRmw('add', p, 1)
        f.loop((again) => again.brIf(f.atomicLoad(p).ltS(3)))
        f.if(thread.eq(1), () => f.loop((again) => again.br()))
        f.if(thread.eq(2), () => {
          const turns = f.local.i64(0)
          f.while(turns.ltS(400_000_000n), () => turns.set(turns.add(1)))
          f.store(p, i64.const(9), 8)
        })
      }),
    )
    const fn: Kernel['fn'] = (...rows) => {
      kernel.fn(...rows)
      void pool.workers[0].terminate()
    }
    expect(() => pool.run({ ...kernel, fn }, 3, 1, params)).toThrow(
      /worker 1 ended while it ran kernel "main"/,
    )
    expect(heap.i32[(params + 8) >> 2]).toBe(9)
  })

  test('at any moment: never a hang, never a wrong result', async () => {
    for (let round = 0; round < 20; round++) {
      const setup = start({ threads: 2 })
      await setup.pool.ready()
      void setup.pool.workers[0].terminate()
      const until = performance.now() + round / 5
      do {
        try {
          check(setup)
        } catch (error) {
          expect(error).toBeInstanceOf(WorkerDiedError)
        }
      } while (performance.now() < until)
      check(setup)
    }
  })

  test('ready() rejects if a worker cannot start', async () => {
    const { pool } = start({ threads: 2 })
    void pool.workers[0].terminate()
    await expect(pool.ready()).rejects.toThrow('worker 1 ended')
  })

  test('close() ends them and frees what they used', async () => {
    const features = detectFeatures({ threads: 3 })
    const heap = new Heap({ shared: true })
    const pool = new Pool(heap, features)
    const m = new ModuleBuilder(features)
    mark(m)
    const kernel = pool.compile(m.build(), 'main')
    expect(heap.stats().liveBlocks).toBeGreaterThan(0)
    await pool.close()
    await pool.close()
    expect(heap.stats().liveBlocks).toBe(0)
    const rows = heap.alloc(400)
    const params = heap.alloc(8)
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = 1
    pool.run(kernel, 100, 1, params)
    expect(heap.i32[(rows >> 2) + 99]).toBe(99)
  })
})

describe('without shared memory', () => {
  afterEach(() => vi.unstubAllGlobals())

  test.each(['asked for', 'missing'])('%s: one thread, the same results', async (why) => {
    if (why === 'missing') vi.stubGlobal('SharedArrayBuffer', undefined)
    const { heap, pool, params, compile } = start(
      why === 'missing' ? { threads: 4 } : { threads: 4, shared: false },
    )
    expect(pool.features.shared).toBe(false)
    expect(pool.threads).toBe(1)
    await pool.ready()
    const rows = heap.alloc(4 * 1000)
    heap.view(rows, Int32Array, 1000).fill(0)
    heap.i32[params >> 2] = rows
    heap.i32[(params >> 2) + 1] = 1
    pool.run(compile(mark), 1000, 1, params)
    expect(heap.view(rows, Int32Array, 1000).every((x, i) => x === i)).toBe(true)
    const out = heap.alloc(4)
    heap.i32[(params >> 2) + 1] = out
    pool.runStatic(compile(sums), 1000, params)
    expect(heap.f32[out >> 2]).toBe((999 * 1000) / 2)
  })

  test('a pool refuses memory of the other kind', () => {
    const features = detectFeatures({ shared: false })
    expect(() => new Pool(new Heap({ shared: true }), features)).toThrow('disagree')
  })
})

describe('features', () => {
  test('levels are bounds, and what is found is told', () => {
    expect(detectFeatures({ level: 'simd' })).toMatchObject({
      level: 'simd',
      relaxed: false,
      revectorized: false,
    })
    const relaxed = detectFeatures({ level: 'relaxed' })
    expect(relaxed.revectorized).toBe(false)
    expect(relaxed.level).toBe(relaxed.relaxed ? 'relaxed' : 'simd')
    const best = detectFeatures()
    expect(best.level).toBe(best.revectorized ? 'revectorized' : relaxed.level)
    expect(detectFeatures({ threads: 3 }).threads).toBe(3)
    expect(() => detectFeatures({ threads: 0 })).toThrow('expected an integer in 1 … 256')
    expect(() => detectFeatures({ threads: 1.5 })).toThrow('expected an integer in 1 … 256')
  })
})
