/**
 * What this machine gives at best, through the same WebAssembly and on the same threads as the kernels: the floors
 * that benchmarks compare with. Measured by kernels that do nothing else: multiply-adds on values that stay in
 * registers; a copy; a look at memory that is only read.
 */

import type { CpuBackend } from '../backend.ts'
import { type FunctionBuilder, f32x4, type I32, i32, type Var, v128 } from '../wasm/index.ts'

/** Measures once, in a few milliseconds at most; take the median of several. */
export interface Peaks {
  /** Multiply-adds on all threads, in GFLOP/s (two operations each); 256 bits wide where kernels can be. */
  flops(): number
  /** GB/s, counting bytes read and bytes written, of a copy that touches `bytes` bytes in all. */
  copy(bytes: number): number
  /** GB/s of reading the same `bytes` bytes again and again: from the caches, if they hold them. */
  read(bytes: number): number
  /** Frees the memory that was copied. */
  dispose(): void
}

/** Bytes per row of the copying and reading kernels: two cache lines. */
const block = 128

/** Rows [start, end) of `params[0]` repetitions each; `emit` gets the address of a row and a fixed place per thread. */
const overRows =
  (emit: (f: FunctionBuilder, from: Var<'i32'>, to: Var<'i32'>, sums: readonly Var<'v128'>[]) => void) =>
  (f: FunctionBuilder, start: I32, end: I32, params: I32, thread: I32): void => {
    // Few: V8 11 loads all values of a block first, and has 15 registers.
    const sums = Array.from({ length: 4 }, () => f.let(f32x4.const(0)))
    const offset = f.let(start.mul(block))
    const until = f.let(end.mul(block).add(i32.load(params, 4)))
    f.for(0, i32.load(params, 0), 1, () => {
      const from = f.let(offset.add(i32.load(params, 4)))
      const to = f.let(offset.add(i32.load(params, 8)))
      f.while(from.ne(until), () => {
        emit(f, from, to, sums)
        from.set(from.add(block))
        to.set(to.add(block))
      })
    })
    // Without a use the results, and with them the loads, would be no work at all.
    const place = f.let(i32.load(params, 12).add(thread.mul(block)))
    const values = sums.map((sum) => f.let(sum))
    values.forEach((sum, i) => f.store(place, sum, 16 * i))
  }

/** The peaks of a backend's threads and instruction set. Give its memory back with `dispose`. */
export function createPeaks(backend: CpuBackend): Peaks {
  const { engine, threads } = backend
  const { memory, features } = engine
  // Latency times width of the multipliers of today's cores is 8; twice that in halves for pairs.
  const chains = features.revectorized ? 20 : 10
  const steps = 4
  const multiply = engine.kernel('peaks:flops', (m) => {
    m.kernel('main', (f, start, end, params, thread) => {
      const place = f.let(i32.load(params, 0).add(thread.mul(1024)))
      const factor = f.let(v128.load32Splat(place, 0))
      const term = f.let(v128.load32Splat(place, 4))
      const loads = Array.from({ length: chains }, (_, i) => f.let(v128.load(place, 16 * i)))
      f.for(start, end, 1, () => {
        for (let step = 0; step < steps; step++) {
          for (const chain of loads) chain.set(f32x4.madd(chain, factor, term))
        }
      })
      loads.forEach((chain, i) => f.store(place, chain, 16 * i))
    })
  })
  const lanes = Array.from({ length: block / 16 }, (_, i) => 16 * i)
  const copying = engine.kernel('peaks:copy', (m) => {
    const emit = overRows((f, from, to) => {
      const values = lanes.map((at) => f.let(v128.load(from, at)))
      values.forEach((value, i) => f.store(to, value, 16 * i))
    })
    m.kernel('main', emit)
  })
  const reading = engine.kernel('peaks:read', (m) => {
    const emit = overRows((_, from, __, sums) => {
      sums.forEach((sum, i) =>
        sum.set(v128.or(sum, v128.or(v128.load(from, 16 * i), v128.load(from, 16 * i + 64)))),
      )
    })
    m.kernel('main', emit)
  })

  const place = memory.alloc(1024 * threads)
  // 1·x + 0: no infinities or subnormal numbers on the way, whatever was in memory.
  memory.f32.fill(0, place >>> 2, (place >>> 2) + 256 * threads)
  for (let t = 0; t < threads; t++) memory.f32[(place >>> 2) + 256 * t] = 1
  const areas: { ptr: number; bytes: number }[] = []
  /** The address of an area of zeros that is at least so large. */
  const area = (index: number, bytes: number): number => {
    const known = areas[index]
    if (known !== undefined && known.bytes >= bytes) return known.ptr
    if (known !== undefined) {
      memory.free(known.ptr)
      delete areas[index]
    }
    const ptr = memory.alloc(bytes)
    memory.u8.fill(0, ptr, ptr + bytes)
    areas[index] = { ptr, bytes }
    return ptr
  }
  const seconds = (run: () => void): number => {
    const begin = performance.now()
    run()
    return (performance.now() - begin) / 1000
  }
  /** Blocks of memory that every thread gets as many of. */
  const rowsOf = (bytes: number): number => Math.max(1, Math.round(bytes / block / threads)) * threads
  /** The number of passes that take a millisecond or more on any machine. */
  const timesOf = (bytes: number): number => Math.max(1, Math.round(2 ** 26 / bytes))

  return {
    flops() {
      const rounds = 2e5 * threads
      const time = seconds(() => engine.runStatic(multiply, rounds, [place]))
      return (rounds * chains * steps * 4 * 2) / time / 1e9
    },
    copy(bytes) {
      const rows = rowsOf(bytes / 2)
      const [from, to] = [area(0, rows * block), area(1, rows * block)]
      const times = timesOf(bytes)
      const time = seconds(() => engine.runStatic(copying, rows, [times, from, to, place]))
      return (2 * times * rows * block) / time / 1e9
    },
    read(bytes) {
      const rows = rowsOf(bytes)
      const from = area(0, rows * block)
      const times = timesOf(bytes)
      const time = seconds(() => engine.runStatic(reading, rows, [times, from, from, place]))
      return (times * rows * block) / time / 1e9
    },
    dispose() {
      for (const { ptr } of areas) memory.free(ptr)
      areas.length = 0
      memory.free(place)
    },
  }
}
