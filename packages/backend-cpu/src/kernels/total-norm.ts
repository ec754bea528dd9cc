/**
 * The Euclidean norm of many tensors together. Blocks of 4096 elements are added up in float32 lanes, each by one
 * thread, into one float64 per block; these are then added in their order, so that the result does not depend on how
 * many threads there are.
 *
 * Measured, Node 24, 2 threads: 804,096 elements in 27 tensors, out of the cache, 0.19 ms; squares and sums one by one
 * took 0.5 to 1.0 ms.
 *
 * Reference: `TOTAL_NORM` in core's ops/total-norm.ts. Test: total-norm.test.ts.
 */

import { layout } from '@tilegrad/core'
import type { KernelFactory } from '../engine.ts'
import { f32, f64, i32, type ModuleBuilder } from '../wasm/index.ts'
import { floatFolds, foldRow, streamGrain, total } from './rows.ts'

/** Elements of a block: what `foldRow` adds up before it goes over to float64. */
const blockElements = 4096
/** Bytes of an entry of the table: number of the first block, address, elements. */
const entry = 12

export const totalNorm: KernelFactory<Record<never, never>> = (engine) => {
  const { memory } = engine
  let buffer = 0
  let capacity = 0
  return {
    dtypes: [['float32']],
    supports: (inputs) => inputs.every(layout.isContiguous),
    run([out], inputs) {
      const sizes = inputs.map((x) => layout.numel(x.shape))
      const blocks = sizes.reduce((n, size) => n + Math.ceil(size / blockElements), 0)
      const bytes = 8 * blocks + entry * inputs.length
      if (bytes > capacity) {
        if (buffer !== 0) memory.free(buffer)
        // There is none if the next line throws.
        capacity = 0
        buffer = 0
        buffer = memory.alloc(2 * bytes)
        capacity = 2 * bytes
      }
      // Sums first: they want to lie at multiples of 8.
      const table = buffer + 8 * blocks
      const { i32 } = memory
      let at = table >>> 2
      let first = 0
      sizes.forEach((size, k) => {
        i32[at++] = first
        i32[at++] = engine.address(inputs[k])
        i32[at++] = size
        first += Math.ceil(size / blockElements)
      })
      const grain = streamGrain / blockElements
      engine.run(engine.kernel('total_norm blocks', buildBlocks), blocks, grain, [
        table,
        inputs.length,
        buffer,
      ])
      engine.run(engine.kernel('total_norm', buildNorm), 1, 1, [engine.address(out), blocks, buffer])
    },
  }
}

/** Sums of squares of blocks [start, end). Parameters: table, its entries, sums. */
function buildBlocks(m: ModuleBuilder): void {
  m.kernel('main', (f, start, end, params) => {
    const table = f.let(i32.load(params, 0))
    const sums = f.let(i32.load(params, 8))
    const low = f.local.i32(0)
    const high = f.local.i32(i32.load(params, 4))
    f.while(low.add(1).ltS(high), () => {
      const middle = f.let(low.add(high).shrU(1))
      f.if(
        i32.load(table.add(middle.mul(entry))).leS(start),
        () => low.set(middle),
        () => high.set(middle),
      )
    })
    const at = f.local.i32(table.add(low.mul(entry)))
    f.for(start, end, 1, (block) => {
      const skip = f.let(block.sub(i32.load(at)).mul(blockElements))
      // This tensor has no such block: on to the next one that is not empty.
      f.while(skip.geS(i32.load(at, 8)), () => {
        at.set(at.add(entry))
        skip.set(0)
      })
      const row = f.let(i32.load(at, 4).add(skip.shl(2)))
      const left = f.let(i32.load(at, 8).sub(skip))
      const sum = total(f, floatFolds.sum)
      const n = f.let(i32.select(left.ltS(blockElements), left, blockElements))
      foldRow(f, n, 4, floatFolds.sum, [sum], (v) => {
        const x = f.let(v.load(row))
        return [[x, x]]
      })
      f.store(sums.add(block.shl(3)), sum)
    })
  })
}

/** Parameters: address of the norm, blocks, sums. */
function buildNorm(m: ModuleBuilder): void {
  m.kernel('main', (f, _start, _end, params) => {
    const sum = f.local.f64(0)
    const sums = f.let(i32.load(params, 8))
    f.for(0, i32.load(params, 4), 1, (block) => sum.set(sum.add(f64.load(sums.add(block.shl(3))))))
    f.store(i32.load(params, 0), f32.demoteF64(sum.sqrt()))
  })
}
