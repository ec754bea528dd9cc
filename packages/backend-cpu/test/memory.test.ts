/** The allocator: blocks never overlap, counters are right, memory stays bounded, misuse is reported. */
import { OutOfMemoryError } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { Heap } from '../src/machine/heap.ts'

/** Numbers in [0, 1) that repeat with the seed (the multiplier is Knuth's MMIX). */
function random(seed: number): () => number {
  let state = BigInt(seed)
  return () => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n)
    return Number(state >> 11n) / 2 ** 53
  }
}

/** Sizes spread evenly over orders of magnitude, as those of tensors are. */
const anySize = (next: () => number, max: number) => Math.floor(Math.exp(next() * Math.log(max)))

describe.each([true, false])('shared: %s', (shared) => {
  test.each([1, 2, 3])('random blocks never overlap and counters stay right, seed %i', (seed) => {
    const next = random(seed)
    const heap = new Heap({ shared, initialBytes: 65536, maxBytes: 2 ** 28 })
    const live: { ptr: number; bytes: number; mark: number }[] = []
    /** By 64 bytes of the heap: whether a block is there; and how many are. */
    const taken = new Uint8Array(2 ** 28 / 64)
    let count = 0
    /** Turns 64-byte units from free to taken or back; how many were not as expected. */
    const turn = (ptr: number, bytes: number, to: 0 | 1) => {
      let wrong = 0
      for (let unit = ptr / 64; unit < (ptr + bytes) / 64; unit++) {
        if (taken[unit] === to) wrong++
        taken[unit] = to
        count += to === 1 ? 1 : -1
      }
      return wrong
    }
    let peak = 0
    for (let round = 0; round < 4000; round++) {
      // Waves: first more come than go, then the reverse.
      const grow = round % 1000 < 500 ? 0.65 : 0.35
      if (live.length === 0 || next() < grow) {
        const bytes = next() < 0.05 ? 0 : anySize(next, 2 ** 20)
        const ptr = heap.alloc(bytes)
        expect(ptr).toBeGreaterThan(0)
        expect(ptr % 64).toBe(0)
        const size = heap.sizeOf(ptr)
        expect(size).toBeGreaterThanOrEqual(Math.max(1, bytes))
        // Rounding is bounded: 63 bytes, an eighth, or a page.
        expect(size - bytes).toBeLessThanOrEqual(Math.max(64, bytes / 8 + 64, bytes > 16384 ? 4095 : 0))
        const mark = round + 1
        expect(turn(ptr, size, 1)).toBe(0)
        heap.u8.fill(mark & 255, ptr, ptr + bytes)
        live.push({ ptr, bytes, mark })
      } else {
        const [block] = live.splice(Math.floor(next() * live.length), 1)
        const { ptr, bytes, mark } = block
        if (bytes > 0) expect([heap.u8[ptr], heap.u8[ptr + bytes - 1]]).toEqual([mark & 255, mark & 255])
        expect(turn(ptr, heap.sizeOf(ptr), 0)).toBe(0)
        heap.free(ptr)
      }
      const stats = heap.stats()
      peak = Math.max(peak, count * 64)
      expect(stats.liveBlocks).toBe(live.length)
      expect(stats.liveBytes).toBe(count * 64)
      expect(stats.peakBytes).toBe(peak)
      expect(stats.heapBytes).toBe(heap.memory.buffer.byteLength)
      expect(stats.pooledBytes + stats.liveBytes).toBe(stats.heapBytes - 4096)
    }
    // Everything freed comes back together: one block can have nearly all of it.
    for (const { ptr } of live) heap.free(ptr)
    const { heapBytes, liveBytes } = heap.stats()
    expect(liveBytes).toBe(0)
    // One empty slab per small size may stay, and lie in between.
    heap.free(heap.alloc((heapBytes - 49 * 65536) / 50))
    expect(heap.stats().heapBytes).toBe(heapBytes)
  })

  test('views follow growth', () => {
    const heap = new Heap({ shared, initialBytes: 65536 })
    const first = heap.alloc(1000)
    heap.f32[first / 4] = 1.5
    const old = heap.f32
    const second = heap.alloc(10 * 2 ** 20)
    expect(heap.f32 === old).toBe(false)
    expect(heap.f32.byteLength).toBe(heap.memory.buffer.byteLength)
    expect(heap.f32[first / 4]).toBe(1.5)
    heap.i32[second / 4 + 2 ** 20] = 7
    const view = heap.view(second + 4 * 2 ** 20, Int32Array, 3)
    expect([...view]).toEqual([7, 0, 0])
    expect(heap.u8[second + 4 * 2 ** 20]).toBe(7)
    expect(heap.u32[second / 4 + 2 ** 20]).toBe(7)
    expect(heap.f64.length * 8).toBe(heap.u8.length)
  })

  test('exhaustion says what was asked, what is live, what is the limit; and frees help', () => {
    const heap = new Heap({ shared, initialBytes: 65536, maxBytes: 2 ** 22 })
    const kept = heap.alloc(2 ** 21)
    let error: unknown
    try {
      heap.alloc(3 * 2 ** 20)
    } catch (e) {
      error = e
    }
    expect(error).toBeInstanceOf(OutOfMemoryError)
    expect(error).toMatchObject({ requestedBytes: 3 * 2 ** 20, liveBytes: 2 ** 21, limitBytes: 2 ** 22 })
    expect(String(error)).toMatch(/3\.0 MiB asked for, but 2\.0 MiB of at most 4\.0 MiB/)
    expect(heap.stats().liveBlocks).toBe(1)
    heap.free(kept)
    heap.free(heap.alloc(3 * 2 ** 20))
    const small: number[] = []
    expect(() => {
      for (;;) small.push(heap.alloc(64))
    }).toThrow(OutOfMemoryError)
    expect(small.length).toBeGreaterThan((2 ** 22 - 2 * 65536) / 64)
    for (const ptr of small) heap.free(ptr)
    expect(heap.stats().liveBytes).toBe(0)
    heap.free(heap.alloc(3 * 2 ** 20))
  })
})

test('a block freed twice, or never allocated, is reported', () => {
  const heap = new Heap()
  for (const bytes of [10, 5000, 20000, 2 ** 20]) {
    const ptr = heap.alloc(bytes)
    const other = heap.alloc(bytes)
    expect(() => heap.free(ptr + 32)).toThrow('not a live block')
    expect(() => heap.free(ptr + 1)).toThrow('not a live block')
    heap.free(ptr)
    expect(() => heap.free(ptr)).toThrow(`address ${ptr} is not a live block`)
    expect(() => heap.sizeOf(ptr)).toThrow('not a live block')
    heap.free(other)
    expect(() => heap.free(other)).toThrow('not a live block')
  }
  for (const ptr of [0, 4096, 2 ** 31, -64, Number.NaN]) {
    expect(() => heap.free(ptr)).toThrow('not a live block')
    expect(() => heap.sizeOf(ptr)).toThrow('not a live block')
  }
  expect(() => heap.alloc(-1)).toThrow('expected a number >= 0')
  expect(() => heap.alloc(Number.NaN)).toThrow('expected a number >= 0')
  expect(heap.stats().liveBlocks).toBe(0)
})

test('memory stays bounded when sizes vary for a long time', () => {
  const next = random(9)
  const heap = new Heap({ initialBytes: 65536 })
  const live: number[] = []
  let liveBytes = 0
  let most = 0
  // 200,000 blocks of 64 bytes … 4 MiB pass through a window of at most 64 MiB.
  for (let i = 0; i < 200_000; i++) {
    const bytes = anySize(next, 2 ** 22)
    while (liveBytes + bytes > 2 ** 26) {
      const [ptr] = live.splice(Math.floor(next() * live.length), 1)
      liveBytes -= heap.sizeOf(ptr)
      heap.free(ptr)
    }
    const ptr = heap.alloc(bytes)
    live.push(ptr)
    liveBytes += heap.sizeOf(ptr)
    most = Math.max(most, liveBytes)
  }
  // Fragmentation and growth by quarters: measured 1.36 times what is live.
  expect(heap.stats().heapBytes).toBeLessThan(2 * most)
})

test('a step that repeats takes the same addresses and no more memory', () => {
  const heap = new Heap({ initialBytes: 65536 })
  const sizes = Array.from({ length: 200 }, (_, i) => ((i * 7919) % 50_000) + 1)
  const step = () => {
    const blocks = sizes.map((bytes) => heap.alloc(bytes))
    for (const ptr of blocks) heap.free(ptr)
  }
  step()
  const { heapBytes } = heap.stats()
  for (let i = 0; i < 100; i++) step()
  expect(heap.stats().heapBytes).toBe(heapBytes)
})

test('resetPeak starts from what is live', () => {
  const heap = new Heap()
  const kept = heap.alloc(64)
  heap.free(heap.alloc(2 ** 20))
  expect(heap.stats().peakBytes).toBe(2 ** 20 + 64)
  heap.resetPeak()
  expect(heap.stats().peakBytes).toBe(64)
  heap.free(kept)
})

test('addresses above 2 GiB work', () => {
  // Reserves address space only: untouched pages cost nothing.
  const heap = new Heap({ shared: true })
  const large = heap.alloc(2 ** 31)
  const above = heap.alloc(2 ** 20)
  expect(above).toBeGreaterThan(2 ** 31)
  heap.f32[above / 4] = 2.5
  expect(heap.view(above, Float32Array, 1)[0]).toBe(2.5)
  heap.free(above)
  heap.free(large)
  expect(() => heap.free(above)).toThrow('not a live block')
})

test('bad sizes are refused', () => {
  expect(() => new Heap({ initialBytes: 2 ** 21, maxBytes: 2 ** 20 })).toThrow('expected 64 KiB')
  expect(() => new Heap({ maxBytes: 2 ** 33 })).toThrow('expected 64 KiB')
  expect(() => new Heap({ maxBytes: Number.NaN })).toThrow('expected 64 KiB')
})
