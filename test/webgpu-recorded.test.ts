/**
 * Kernels of the WebGPU backend remember what they did for operands of some layouts. For every operator, that is what
 * they do when asked anew: the same shaders on the same grids and buffers with the same parameters. On Dawn's backend 'null', as
 * nothing needs to be computed.
 */
import { listen } from '@tilegrad/core/kernel'
import { backward, type Call, isFloat, scope, sum, type Tensor, type View, withBackend } from 'tilegrad'
import { expect, test } from 'vitest'
import { observed } from '../packages/backend-webgpu/test/support/observed.ts'
import { type Row, table } from './op-table.ts'
import { type Arg, LAYOUTS, type LayoutKind, make, tensorsIn } from './samples.ts'

type Observed = Awaited<ReturnType<typeof observed>>

async function call(
  { backend, seen }: Observed,
  row: Row,
  sample: readonly Arg[],
  layout: LayoutKind,
  seed: number,
) {
  seen.dispatches.length = 0
  seen.again = 0
  withBackend(backend, () =>
    scope(() => {
      const requiresGrad = row.order > 0
      const args = make(sample, { backend, float: 'float32', layout, seed, requiresGrad })
      const made = (row.run as (...a: unknown[]) => Tensor | readonly Tensor[])(...args)
      for (const y of (Array.isArray(made) ? made : [made]) as Tensor[])
        if (y.requiresGrad && isFloat(y.dtype)) backward(sum(y), { retainGraph: true })
      // Left to the garbage collector, their buffers would come back at any time.
      for (const t of tensorsIn(args)) t.grad?.dispose()
    }),
  )
  await backend.finished()
  return { dispatches: [...seen.dispatches], again: seen.again }
}

test('every operator does again what it would do anew', async () => {
  const [first, second] = [await observed(), await observed({ anew: true })]
  let all = 0
  let again = 0
  for (const row of table)
    for (const layout of row.dense ? (['dense'] as const) : LAYOUTS)
      for (const sample of row.samples) {
        for (const each of [first, second]) await call(each, row, sample, layout, 6)
        const got = await call(first, row, sample, layout, 5)
        const want = await call(second, row, sample, layout, 5)
        expect(want.again).toBe(0)
        expect(got.dispatches, `${row.name}(${JSON.stringify(sample)}) ${layout}`).toEqual(want.dispatches)
        all += got.dispatches.length
        again += got.again
      }
  // All but those with bytes from the host and with numbers drawn anew.
  expect(again / all).toBeGreaterThan(0.9)
  for (const { backend } of [first, second]) backend.close()
})

const viewOf = ({ buffer, dtype, shape, strides, offset }: View): View => ({
  buffer,
  dtype,
  shape,
  strides,
  offset,
})

test('every operator can be made ready to run again, in as many dispatches', async () => {
  const seen = await observed()
  const { backend } = seen
  const { engine } = backend
  let all = 0
  for (const row of table)
    for (const sample of row.samples) {
      const name = `${row.name}(${JSON.stringify(sample)})`
      // The memory of the calls stays taken.
      const { free } = backend
      const held: object[] = []
      backend.free = (buffer) => void held.push(buffer)
      const calls: Call[] = []
      const before = listen({
        call(made, go) {
          const [outputs, inputs] = [made.outputs.map(viewOf), made.inputs.map(viewOf)]
          if (made.backend === backend) calls.push({ ...made, outputs, inputs })
          go()
        },
        begin() {},
        composed() {},
      })
      try {
        await call(seen, row, sample, 'dense', 6)
      } finally {
        listen(before)
      }
      const { usedBuffers } = backend.stats()
      const prepared = backend.prepare?.(calls)
      const { dispatches } = engine.counts
      for (const { kernel, outputs, inputs, attrs, numbers } of calls)
        kernel.run(outputs, inputs, attrs, numbers)
      const count = engine.counts.dispatches - dispatches
      expect(prepared?.launches, name).toBe(count)
      all += count
      prepared?.run()
      await backend.finished()
      prepared?.release()
      expect(backend.stats().usedBuffers, name).toBe(usedBuffers)
      backend.free = free
      for (const buffer of held) free(buffer)
    }
  expect(all).toBeGreaterThan(table.length)
  backend.close()
})
